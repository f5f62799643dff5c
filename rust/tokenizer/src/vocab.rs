//! Ids to bytes: the vocabulary laid out for decoding at the speed of memory.
//!
//! A token of at most 15 bytes, as most are, lies in a slot of 16 bytes at the index
//! of its id, with its length behind it. So one lookup gives both, and decoding copies whole slots
//! one over the end of the other. Longer tokens lie in an array of their own, and their slots say
//! where. A token of a text takes 2 ns, most of it waiting for slots that are not in the first
//! cache; the same with 256 tokens alone takes 0.9.
//!
//! Defined by `decode` in `python/tinylm/reference/byte_bpe.py`, held to it by the rungs `decode`
//! and `decode bytes`.

use std::mem::MaybeUninit;

use crate::Error;
use crate::memory::as_uninit;

/// Tokens up to this length live in their slot, the last byte of which is the length.
const INLINE: usize = 15;
/// Marks a slot that says where in `packed` its token is.
const LONG: u8 = 254;
/// Marks an id that no token has.
const HOLE: u8 = 255;
/// Largest id allowed: the tables take 16 bytes for each id below it.
const MAX_ID: u32 = (1 << 24) - 1;

/// The bytes of each token by id.
#[derive(Debug)]
pub(crate) struct Vocab {
    /// By id: the bytes of the token, or offset and length in `packed`, and, last, the number of
    /// bytes or a mark.
    slots: Vec<[u8; 16]>,
    /// The bytes of the long tokens in a row.
    packed: Vec<u8>,
    /// The length of the longest token, and at least a slot's.
    longest: usize,
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
            packed: Vec::new(),
            longest: INLINE + 1,
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
            vocab.expect(token.len());
            if token.len() <= INLINE {
                vocab.slots[at] = Self::slot(token, token.len() as u8);
            } else {
                let place = [vocab.packed.len(), token.len()].map(|number| number as u32);
                if vocab.packed.len() > u32::MAX as usize - token.len() {
                    let message = "the tokens above 15 bytes have over 4 GiB together";
                    return Err(Error::Vocabulary(message.into()));
                }
                let place = place.map(u32::to_le_bytes);
                vocab.slots[at] = Self::slot(place.as_flattened(), LONG);
                vocab.packed.extend_from_slice(token);
            }
        }
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
                let (numbers, _) = slot.as_chunks::<4>();
                let [start, length] =
                    [numbers[0], numbers[1]].map(|bytes| u32::from_le_bytes(bytes) as usize);
                self.packed.get(start..start + length)
            }
            length => Some(&slot[..usize::from(length)]),
        }
    }

    /// Writes the bytes of `ids`, joined, to `out` while there is room; how many ids it took and
    /// how many bytes they gave.
    ///
    /// Whole slots are copied, 16 bytes whatever the token's length: a fixed size is a single load
    /// and store. What follows the last token in `out` is overwritten too.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownId`] for an id that no token has.
    pub(crate) fn decode_some(
        &self,
        ids: impl Iterator<Item = i64>,
        out: &mut [MaybeUninit<u8>],
    ) -> Result<(usize, usize), Error> {
        let (mut taken, mut end) = (0, 0);
        for id in ids {
            // Widened without its sign: what is negative is above every id.
            let found = usize::try_from(id.cast_unsigned()).ok();
            let slot = found.and_then(|id| self.slots.get(id));
            let slot = slot.ok_or_else(|| self.unknown(id))?;
            let length = usize::from(slot[INLINE]);
            if length <= INLINE && end + 16 <= out.len() {
                out[end..end + 16].copy_from_slice(as_uninit(slot));
                end += length;
            } else {
                // A long token, or none, or one of the last few.
                let token = self.token(id)?;
                let Some(place) = out.get_mut(end..end + token.len()) else {
                    break;
                };
                place.copy_from_slice(as_uninit(token));
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
    /// As `decode_some`.
    pub(crate) fn decode(&self, ids: &[u32]) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        for &id in ids {
            out.extend_from_slice(self.token(i64::from(id))?);
        }
        Ok(out)
    }

    /// No token gives more bytes than this.
    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    /// Makes [`Vocab::longest`] at least this.
    pub(crate) fn expect(&mut self, length: usize) {
        self.longest = self.longest.max(length);
    }

    /// The bytes of a token, wherever they are.
    pub(crate) fn token(&self, id: i64) -> Result<&[u8], Error> {
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
