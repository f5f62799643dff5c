//! Ids to bytes: the vocabulary laid out for decoding at the speed of memory.
//!
//! A token of at most 15 bytes, as most are, lies in a slot of 16 bytes at the index
//! of its id, with its length behind it. So one lookup gives both, and decoding copies whole slots
//! one over the end of the other. Longer tokens lie in an array of their own.
//!
//! Defined by `decode` in `python/tinylm/reference/byte_bpe.py`, held to it by the rungs `decode`
//! and `decode bytes`.

use std::mem::MaybeUninit;

use crate::Error;

/// Tokens up to this length live in their slot, the last byte of which is the length.
const INLINE: usize = 15;
/// Marks a slot whose token is in `long`.
const LONG: u8 = 254;
/// Marks an id that no token has.
const HOLE: u8 = 255;
/// Largest id allowed: the tables take 16 bytes for each id below it.
const MAX_ID: u32 = (1 << 24) - 1;

/// The bytes of each token by id.
#[derive(Debug)]
pub(crate) struct Vocab {
    /// By id: the bytes of the token and, last, their number or a mark.
    slots: Vec<[u8; 16]>,
    /// The last byte of each slot, for `length`: a sixteenth of the memory.
    lengths: Vec<u8>,
    /// Offset and length in `packed` of tokens above [`INLINE`] bytes; sorted by id.
    long: Vec<(u32, usize, usize)>,
    /// The bytes of the long tokens in a row.
    packed: Vec<u8>,
}

impl Vocab {
    /// From the bytes and ids of all tokens, added ones included, in any order.
    ///
    /// # Errors
    ///
    /// [`Error::Vocabulary`] for an id above [`MAX_ID`], and for two tokens with one id.
    pub(crate) fn new<'a>(tokens: impl Iterator<Item = (&'a [u8], u32)>) -> Result<Self, Error> {
        let mut vocab = Self {
            slots: Vec::new(),
            lengths: Vec::new(),
            long: Vec::new(),
            packed: Vec::new(),
        };
        for (token, id) in tokens {
            // A damaged file must not take all memory.
            if id > MAX_ID {
                let message = format!("token id {id} is above the limit {MAX_ID}");
                return Err(Error::Vocabulary(message));
            }
            let at = id as usize;
            if at >= vocab.slots.len() {
                // Ids may have holes, which stay marked as such.
                vocab.slots.resize(at + 1, Self::slot(&[], HOLE));
            }
            // Checked here, because ordinary and added tokens meet here first.
            if vocab.slots[at][INLINE] != HOLE {
                return Err(Error::Vocabulary(format!("two tokens have the id {id}")));
            }
            if token.len() <= INLINE {
                vocab.slots[at] = Self::slot(token, token.len() as u8);
            } else {
                vocab.slots[at] = Self::slot(&[], LONG);
                vocab.long.push((id, vocab.packed.len(), token.len()));
                vocab.packed.extend_from_slice(token);
            }
        }
        // `get` searches it by id.
        vocab.long.sort_unstable();
        vocab.lengths = vocab.slots.iter().map(|slot| slot[INLINE]).collect();
        Ok(vocab)
    }

    /// A slot of a token's bytes and a mark.
    fn slot(token: &[u8], mark: u8) -> [u8; 16] {
        let mut slot = [0; 16];
        slot[..token.len()].copy_from_slice(token);
        slot[INLINE] = mark;
        slot
    }

    /// One more than the largest id.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The bytes of token `id`, if there is such a token.
    pub(crate) fn get(&self, id: u32) -> Option<&[u8]> {
        let slot = self.slots.get(id as usize)?;
        match slot[INLINE] {
            HOLE => None,
            LONG => {
                let at = self.long.binary_search_by_key(&id, |entry| entry.0).ok()?;
                let (_, start, length) = self.long[at];
                Some(&self.packed[start..start + length])
            }
            length => Some(&slot[..usize::from(length)]),
        }
    }

    /// How many bytes `ids` have together.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownId`] for an id that no token has.
    pub(crate) fn length(&self, ids: impl Iterator<Item = i64>) -> Result<usize, Error> {
        let mut length = 0;
        for id in ids {
            let found = usize::try_from(id).ok().and_then(|id| self.lengths.get(id));
            let mark = *found.ok_or_else(|| self.unknown(id))?;
            length += if usize::from(mark) <= INLINE {
                usize::from(mark)
            } else {
                // A long token, or none. Both are rare, so a search of `O(log n)` will do.
                self.token(id)?.len()
            };
        }
        Ok(length)
    }

    /// Writes the bytes of `ids`, joined, to `out` while there is room; how many ids it took and
    /// how many bytes they gave.
    ///
    /// Whole slots are copied, 16 bytes whatever the token's length: a fixed size is a single load
    /// and store. What follows the last token in `out` is overwritten too.
    ///
    /// # Errors
    ///
    /// As `length`.
    pub(crate) fn decode_some(
        &self,
        ids: impl Iterator<Item = i64>,
        out: &mut [MaybeUninit<u8>],
    ) -> Result<(usize, usize), Error> {
        let (mut taken, mut end) = (0, 0);
        for id in ids {
            let found = usize::try_from(id).ok().and_then(|id| self.slots.get(id));
            let slot = found.ok_or_else(|| self.unknown(id))?;
            let length = usize::from(slot[INLINE]);
            if length <= INLINE && end + 16 <= out.len() {
                out[end..end + 16].copy_from_slice(&slot.map(MaybeUninit::new));
                end += length;
            } else {
                // A long token, or none, or one of the last few. All are rare, so a search of
                // `O(log n)` will do.
                let token = self.token(id)?;
                let Some(place) = out.get_mut(end..end + token.len()) else {
                    break;
                };
                for (byte, &value) in place.iter_mut().zip(token) {
                    byte.write(value);
                }
                end += token.len();
            }
            taken += 1;
        }
        Ok((taken, end))
    }

    /// The bytes of all of `ids`, joined.
    ///
    /// # Errors
    ///
    /// As `length`.
    pub(crate) fn decode(&self, ids: &[u32]) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        for &id in ids {
            out.extend_from_slice(self.token(i64::from(id))?);
        }
        Ok(out)
    }

    /// The bytes of a token, wherever they are.
    fn token(&self, id: i64) -> Result<&[u8], Error> {
        let found = u32::try_from(id).ok().and_then(|id| self.get(id));
        found.ok_or_else(|| self.unknown(id))
    }

    /// The error for an id without a token.
    fn unknown(&self, id: i64) -> Error {
        Error::UnknownId {
            id,
            vocab_size: self.len(),
        }
    }
}
