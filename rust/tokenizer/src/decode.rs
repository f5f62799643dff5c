//! Ids to bytes: what a tokenizer does with its `vocab`, and with `surfaces` where it has some.

use std::mem::MaybeUninit;

use crate::memory::as_uninit;
use crate::surfaces::{Opening, Surfaces};
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

    /// What decoding the ids of a text begins with; see [`Tokenizer::decode_some`].
    pub fn opening(&self) -> Option<Opening> {
        self.surfaces.as_ref().map(Surfaces::opening)
    }

    /// Decodes as many of `ids` as `out` has room for; how many it took and how many bytes they
    /// gave. So many bytes of `out` are set.
    ///
    /// `opening` says how far the beginning of the text is, and moves on. Room for
    /// [`Tokenizer::longest`] bytes is enough for an id.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownId`] for a number that is no token's id.
    pub fn decode_some(
        &self,
        opening: &mut Option<Opening>,
        mut ids: impl Iterator<Item = i64>,
        out: &mut [MaybeUninit<u8>],
    ) -> Result<(usize, usize), Error> {
        let (mut taken, mut end) = (0, 0);
        while let (Some(surfaces), Some(begun)) = (&self.surfaces, opening.as_mut()) {
            // One token as a rule: then nothing depends on the place any more.
            if begun.is_over() {
                *opening = None;
                break;
            }
            if out.len() - end < self.longest() {
                return Ok((taken, end));
            }
            let Some(id) = ids.next() else {
                return Ok((taken, end));
            };
            let token = self.vocab.token(id)?;
            let bytes = surfaces.next(begun, id as u32, token);
            out[end..end + bytes.len()].copy_from_slice(as_uninit(bytes));
            (taken, end) = (taken + 1, end + bytes.len());
        }
        let (more, bytes) = self.vocab.decode_some(ids, &mut out[end..])?;
        Ok((taken + more, end + bytes))
    }

    /// No token gives more bytes than this.
    pub fn longest(&self) -> usize {
        self.vocab.longest()
    }
}
