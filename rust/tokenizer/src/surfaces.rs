//! How tokens look in a text, where that is not simply their bytes.
//!
//! The decoders of a `tokenizer.json` turn U+2581 into a blank, take `##` away or put a blank in
//! front, and treat the token that begins a text in another way than the others. All that is known
//! for each token before any text is decoded, so decoding stays a copy for each id.
//!
//! Defined by `decode` in `python/tinylm/reference/stages.py`, held to it by the rung `surfaces`.

use rustc_hash::FxHashMap;

use crate::Error;
use crate::vocab::Vocab;

/// The bytes of tokens in a text.
#[derive(Debug, Clone, Default)]
pub struct Surfaces {
    /// Of tokens that look otherwise than they are written, and of those that no text gives.
    pub all: Vec<(u32, Vec<u8>)>,
    /// Of tokens that look otherwise at the beginning of a text.
    pub first: FxHashMap<u32, Vec<u8>>,
    /// A character, and how many of it the beginning of a text loses.
    pub strip: Option<(char, usize)>,
}

/// Where a decoder is in a text: nothing or little of it has come yet.
#[derive(Debug, Clone)]
pub struct Opening {
    first: bool,
    strip: usize,
}

impl Opening {
    /// Whether tokens look as they do anywhere.
    pub(crate) fn is_over(&self) -> bool {
        !self.first && self.strip == 0
    }
}

impl Surfaces {
    /// The most bytes that a token has at the beginning of a text.
    pub(crate) fn longest_first(&self) -> usize {
        self.first.values().map(Vec::len).max().unwrap_or(0)
    }

    /// The state before the first token.
    pub fn opening(&self) -> Opening {
        let strip = self.strip.map_or(0, |(_, count)| count);
        Opening { first: true, strip }
    }

    /// What the next token gives, which by itself has these `bytes`.
    pub fn next<'a>(&'a self, opening: &mut Opening, id: u32, bytes: &'a [u8]) -> &'a [u8] {
        let mut bytes = bytes;
        if std::mem::take(&mut opening.first)
            && let Some(first) = self.first.get(&id)
        {
            bytes = first;
        }
        while opening.strip > 0 && !bytes.is_empty() {
            let stripped = self
                .strip
                .and_then(|(char, _)| bytes.strip_prefix(char.encode_utf8(&mut [0; 4]).as_bytes()));
            opening.strip = stripped.map_or(0, |_| opening.strip - 1);
            bytes = stripped.unwrap_or(bytes);
        }
        bytes
    }

    /// The bytes of a text.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownId`] for an id that no token has.
    pub(crate) fn decode(&self, vocab: &Vocab, ids: &[u32]) -> Result<Vec<u8>, Error> {
        let mut opening = self.opening();
        let mut start = Vec::new();
        let mut at = 0;
        // One token as a rule: then nothing depends on the place any more.
        while at < ids.len() && !opening.is_over() {
            let bytes = vocab.decode(&ids[at..=at])?;
            start.extend_from_slice(self.next(&mut opening, ids[at], &bytes));
            at += 1;
        }
        start.extend(vocab.decode(&ids[at..])?);
        Ok(start)
    }
}
