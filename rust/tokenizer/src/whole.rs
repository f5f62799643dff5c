//! Pieces that are tokens as they stand, whatever the merges would make of them.
//!
//! tiktoken's rule asks this before it merges, and so does `ignore_merges` in a `tokenizer.json`.
//! A vocabulary of whole words has no other way to a token of more than one byte. A lookup hashes
//! the piece once.
//!
//! Defined by `encode_ranks` in `python/tinylm/reference/byte_bpe.py`, held to it by the rung
//! `encode ranks`.

use rustc_hash::FxHashMap;

use crate::cache::{self, Key};

/// The tokens of a vocabulary by their bytes; short ones by the key that the cache has anyway.
#[derive(Debug, Default)]
pub(crate) struct Whole {
    /// By [`cache::key`].
    short: FxHashMap<Key, u32>,
    /// Those above [`cache::LONGEST`] bytes, by their bytes.
    long: FxHashMap<Box<[u8]>, u32>,
}

impl Whole {
    /// From the ordinary tokens and their ids.
    pub(crate) fn new(tokens: &[(Vec<u8>, u32)]) -> Self {
        let mut whole = Self::default();
        for (token, id) in tokens {
            if token.len() <= cache::LONGEST {
                whole.short.insert(cache::key(token, 0, token.len()), *id);
            } else {
                whole.long.insert(token.as_slice().into(), *id);
            }
        }
        whole
    }

    /// The token that `piece` is; `key` is its [`cache::key`] if it is short.
    ///
    /// None if no token has exactly these bytes.
    pub(crate) fn get(&self, piece: &[u8], key: Option<Key>) -> Option<u32> {
        // The caller has made the key for the cache already; it is not computed twice.
        match key {
            Some(key) => self.short.get(&key).copied(),
            None => self.long.get(piece).copied(),
        }
    }
}
