//! Ids to bytes: the vocabulary laid out for decoding at the speed of memory.
//!
//! A token of at most 15 bytes, as most are, lies in a slot of 16 bytes at the index
//! of its id, with its length behind it. So one lookup gives both, and decoding copies whole slots
//! one over the end of the other. Longer tokens lie in an array of their own.
//!
//! Defined by `decode` in `python/tinylm/reference/byte_bpe.py`, held to it by the rungs `decode`
//! and `decode bytes`.

use crate::Error;

/// Tokens up to this length live in their slot, the last byte of which is the length.
const INLINE: usize = 15;
/// Marks a slot whose token is in `long`.
const LONG: u8 = 254;
/// Marks an id that no token has.
const HOLE: u8 = 255;
/// Largest id allowed: the tables take 16 bytes for each id below it.
const MAX_ID: u32 = (1 << 24) - 1;
/// Ids decoded between two looks at the output's length. Each needs room for a whole slot, so a
/// block needs 64 KiB.
const BLOCK: usize = 4096;

/// The bytes of each token by id.
#[derive(Debug)]
pub(crate) struct Vocab {
    /// By id: the bytes of the token and, last, their number or a mark.
    slots: Vec<[u8; 16]>,
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

    /// The bytes of all of `ids`, joined.
    ///
    /// Whole slots are copied, 16 bytes whatever the token's length: a fixed size is a single
    /// load and store.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownId`] for an id that no token has.
    pub(crate) fn decode(&self, ids: &[u32]) -> Result<Vec<u8>, Error> {
        let mut out: Vec<u8> = Vec::new();
        let mut end = 0;
        for (number, block) in ids.chunks(BLOCK).enumerate() {
            let room = end + 16 * BLOCK;
            if out.len() < room {
                // The share of the ids still to come, from what those before them took.
                let blocks = ids.len().div_ceil(BLOCK) - number;
                let expected = end.checked_div(number).unwrap_or(0) * blocks;
                out.resize(room + expected, 0);
            }
            for &id in block {
                let Some(slot) = self.slots.get(id as usize) else {
                    return Err(self.unknown(id));
                };
                let length = slot[INLINE];
                if usize::from(length) <= INLINE {
                    // Always inside: `room` has a whole slot for every id of the block.
                    if let Some(place) = out.get_mut(end..end + 16) {
                        place.copy_from_slice(slot);
                    }
                    end += usize::from(length);
                } else {
                    // A long token, or none. Both are rare, so a search of `O(log n)` will do.
                    let token = self.get(id).ok_or_else(|| self.unknown(id))?;
                    // Room for this token and for the full slots of the rest of the block.
                    out.resize(out.len().max(end + token.len() + 16 * BLOCK), 0);
                    out[end..end + token.len()].copy_from_slice(token);
                    end += token.len();
                }
            }
        }
        // The rest is room and what slots wrote past their tokens.
        out.truncate(end);
        Ok(out)
    }

    /// The error for an id without a token.
    fn unknown(&self, id: u32) -> Error {
        Error::UnknownId {
            id: i64::from(id),
            vocab_size: self.len(),
        }
    }
}
