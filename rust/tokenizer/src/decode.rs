//! Ids to bytes: what a tokenizer does with its `vocab`, and with `surfaces` where it has some.

use std::mem::MaybeUninit;

use crate::{Error, Tokenizer};

impl Tokenizer {
    /// The bytes of all of `ids`, joined.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownId`] for an id that no token has.
    pub fn decode(&self, ids: &[u32]) -> Result<Vec<u8>, Error> {
        match &self.surfaces {
            Some(surfaces) => surfaces.decode(&self.vocab, ids),
            None => self.vocab.decode(ids),
        }
    }

    /// Whether decoding only joins the bytes of tokens, so that `decoded_length` and `decode_some`
    /// give what `decode` gives.
    pub fn joins_tokens(&self) -> bool {
        self.surfaces.is_none()
    }

    /// How many bytes the tokens of these ids have together.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownId`] for a number that is no token's id.
    pub fn decoded_length(&self, ids: impl Iterator<Item = i64>) -> Result<usize, Error> {
        self.vocab.length(ids)
    }

    /// Decodes as many of `ids` as `out` has room for; how many it took and how many bytes they
    /// gave. So many bytes of `out` are set.
    ///
    /// # Errors
    ///
    /// As `decoded_length`.
    pub fn decode_some(
        &self,
        ids: impl Iterator<Item = i64>,
        out: &mut [MaybeUninit<u8>],
    ) -> Result<(usize, usize), Error> {
        self.vocab.decode_some(ids, out)
    }
}
