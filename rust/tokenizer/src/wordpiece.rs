//! `WordPiece`: from the left, the longest token that stands there, as BERT encodes.
//!
//! Tokens inside a word have a prefix of their own, `##` in BERT. A word of which some part has no
//! token is unknown as a whole, and so is one that is too long.
//!
//! Linear in the piece times the longest token. Y. Wu et al. 2016, arXiv:1609.08144, section 4.1.
//!
//! Defined by `encode` in `python/tinylm/reference/wordpiece.py`, held to it by the rung `wordpiece`.

use crate::fallback::{ids_of, width};
use crate::trie::Trie;
use crate::{Error, Tokens};

/// The tokens of a vocabulary by where they may stand.
#[derive(Debug)]
pub(crate) struct WordPiece {
    /// All tokens: also one with the prefix may begin a word, whose text is then the prefix.
    first: Trie,
    /// The tokens with the prefix, without it.
    inner: Trie,
    unknown: u32,
    /// Words of more characters are unknown.
    longest: usize,
}

impl WordPiece {
    /// From tokens as a `vocab.txt` writes them.
    ///
    /// # Errors
    ///
    /// [`Error::Vocabulary`] for a token that is empty or listed twice.
    pub(crate) fn new(
        tokens: &Tokens,
        unknown: u32,
        prefix: &[u8],
        longest: usize,
    ) -> Result<Self, Error> {
        ids_of(tokens)?;
        let inner = tokens.iter().filter_map(|(token, id)| {
            let rest = token.strip_prefix(prefix)?;
            (!rest.is_empty()).then_some((rest, id))
        });
        Ok(Self {
            inner: Trie::new(inner),
            first: Trie::new(tokens.iter()),
            unknown,
            longest,
        })
    }

    /// Appends the tokens of `piece`.
    pub(crate) fn encode(&self, piece: &[u8], out: &mut Vec<u32>) {
        self.parts(piece, out, |id, _| id);
    }

    /// Appends the tokens of `piece`, each with the bytes of it that it covers.
    pub(crate) fn places(&self, piece: &[u8], out: &mut Vec<(u32, (usize, usize))>) {
        self.parts(piece, out, |id, place| (id, place));
    }

    /// Appends what `make` gives for each token and its bytes.
    fn parts<T>(&self, piece: &[u8], out: &mut Vec<T>, make: impl Fn(u32, (usize, usize)) -> T) {
        let before = out.len();
        if self.is_too_long(piece) {
            out.push(make(self.unknown, (0, piece.len())));
            return;
        }
        let mut at = 0;
        while at < piece.len() {
            let trie = if at == 0 { &self.first } else { &self.inner };
            let Some((length, id)) = trie.longest(&piece[at..]) else {
                out.truncate(before);
                out.push(make(self.unknown, (0, piece.len())));
                return;
            };
            out.push(make(id, (at, at + length)));
            at += length;
        }
    }

    /// Whether it has more characters than a word may have.
    fn is_too_long(&self, piece: &[u8]) -> bool {
        if piece.len() <= self.longest {
            return false;
        }
        let (mut at, mut characters) = (0, 0);
        while at < piece.len() && characters <= self.longest {
            at += width(&piece[at..]);
            characters += 1;
        }
        characters > self.longest
    }
}
