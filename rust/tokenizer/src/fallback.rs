//! What the models over characters share: what a character without a token becomes.
//!
//! Llama, Mistral and Gemma have tokens named `<0x00>` to `<0xFF>`. A character without a token of
//! its own becomes those of its UTF-8 bytes.

use rustc_hash::FxHashMap;

use crate::{Error, Tokens};

/// The tokens of bytes and the unknown token of a vocabulary, where it has them.
#[derive(Debug)]
pub(crate) struct Fallback {
    bytes: Option<Box<[Option<u32>; 256]>>,
    unknown: Option<u32>,
    /// Whether neighbours that are unknown are one token.
    fuse: bool,
}

impl Fallback {
    /// `use_bytes`: whether unknown characters become bytes where all of theirs are tokens.
    pub(crate) fn new(
        id_of: &FxHashMap<&[u8], u32>,
        use_bytes: bool,
        unknown: Option<u32>,
        fuse: bool,
    ) -> Self {
        let named = |byte: usize| id_of.get(format!("<0x{byte:02X}>").as_bytes()).copied();
        Self {
            bytes: use_bytes.then(|| Box::new(std::array::from_fn(named))),
            unknown,
            fuse,
        }
    }

    /// Calls `each(id, bytes of it)` for the tokens of `text`, some characters without a token of
    /// their own; `after_unknown` says whether the token before it is unknown.
    ///
    /// Returns whether the last of its tokens is unknown. Without bytes and without an unknown
    /// token the text is left out, as Hugging Face's `tokenizers` has it.
    pub(crate) fn tokens(
        &self,
        text: &[u8],
        after_unknown: bool,
        mut each: impl FnMut(u32, usize),
    ) -> bool {
        if let Some(ids) = &self.bytes
            && text.iter().all(|&byte| ids[usize::from(byte)].is_some())
        {
            for id in text.iter().filter_map(|&byte| ids[usize::from(byte)]) {
                each(id, 1);
            }
            return false;
        }
        let Some(unknown) = self.unknown else {
            return after_unknown;
        };
        if !(self.fuse && after_unknown) {
            each(unknown, text.len());
        }
        true
    }
}

/// The length of the character that `text` begins with; 1 for a byte that begins none.
#[inline]
pub(crate) fn width(text: &[u8]) -> usize {
    let Some(&lead) = text.first() else { return 0 };
    let length = match lead {
        0xC2..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF4 => 4,
        _ => return 1,
    };
    // Rare, so the standard library may judge.
    match text.get(..length) {
        Some(bytes) if std::str::from_utf8(bytes).is_ok() => length,
        _ => 1,
    }
}

/// The ids by the bytes of the tokens.
///
/// # Errors
///
/// [`Error::Vocabulary`] for a token that is empty or listed twice.
pub(crate) fn ids_of(tokens: &Tokens) -> Result<FxHashMap<&[u8], u32>, Error> {
    let mut ids = FxHashMap::default();
    for (token, id) in tokens.iter() {
        if token.is_empty() {
            return Err(Error::Vocabulary(format!("token {id} is empty")));
        }
        if let Some(other) = ids.insert(token, id) {
            let message = format!("tokens {other} and {id} have the same bytes");
            return Err(Error::Vocabulary(message));
        }
    }
    Ok(ids)
}
