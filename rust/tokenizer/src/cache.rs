//! The pieces seen lately and their tokens: nine of ten pieces of a text have been seen before.
//!
//! A piece of at most 15 bytes and its length are one number of 16 bytes, the [`Key`]. So two
//! pieces are compared without a loop. A slot holds the key and up to three ids. Each piece may
//! lie in one of two neighbouring slots, and a third one overwrites the older of the two. So a
//! lookup and an insertion both cost `O(1)`.
//!
//! The cache holds what the model would give, so it can change the speed but never a token. It
//! needs no lock: each thread has its own.

/// Pieces up to this length are cached; with the length they fill the 16 bytes of a key.
pub(crate) const LONGEST: usize = 15;
/// Tokens that fit beside the key: with their number a slot is 32 bytes. Pieces of more tokens are
/// rare, but are merged again each time: with those over [`LONGEST`] they take most of the 94 of
/// 250 instructions per token of text seen before that neither the scanner nor the look-up takes
/// (callgrind, docs/log.md).
const INLINE: usize = 3;
/// Slots at first: 64 KiB, cheap for a short text.
const FIRST: usize = 1 << 11;
/// Slots at most: 4 MiB, which a core's share of the last-level cache holds.
const MOST: usize = 1 << 17;

/// `MASKS[n]` keeps the n lowest bytes of a number.
const MASKS: [u128; 16] = {
    let mut masks = [0; 16];
    let mut len = 1;
    while len < 16 {
        masks[len] = (1 << (8 * len)) - 1;
        len += 1;
    }
    masks
};

/// The bytes of a piece and its length in one number; 0 for no piece.
pub(crate) type Key = u128;

/// A piece and its tokens; a key of 0 marks a free slot.
#[derive(Clone, Copy, Default)]
struct Slot {
    key: Key,
    // Only the first `len` are ids.
    ids: [u32; INLINE],
    len: u32,
}

/// A two-way set-associative cache from pieces to tokens, for one thread.
pub(crate) struct Cache {
    /// A power of two of them; the two places of a key are neighbours.
    slots: Vec<Slot>,
    /// How often a slot was filled, with those overwritten: it only decides when to grow.
    used: usize,
}

/// The key of `text[start..end]`, a piece of 1 to [`LONGEST`] bytes.
///
/// The length is the highest byte, so "a" and "a\0" have different keys. A longer piece gets a
/// wrong key, so callers compare its length with [`LONGEST`] first.
#[inline]
pub(crate) fn key(text: &[u8], start: usize, end: usize) -> Key {
    let len = end - start;
    // One load and a mask; only the last bytes of a text are copied.
    let bytes = if let Some(bytes) = text[start..].first_chunk::<16>() {
        // `& 15` changes nothing, but with it the compiler needs no bounds check.
        u128::from_le_bytes(*bytes) & MASKS[len & 15]
    } else {
        let mut bytes = [0; 16];
        bytes[..len].copy_from_slice(&text[start..end]);
        u128::from_le_bytes(bytes)
    };
    // The length is never 0, so no key is 0, which marks a free slot.
    bytes | (len as u128) << 120
}

/// A multiply that folds all 128 bits into 64.
///
/// A bad hash costs speed alone, never a wrong token, so it need not resist chosen pieces.
#[inline]
pub(crate) fn hash(key: Key) -> u64 {
    let (low, high) = (key as u64, (key >> 64) as u64);
    let product =
        u128::from(low ^ 0x9E37_79B9_7F4A_7C15) * u128::from(high ^ 0xD6E8_FEB8_6659_FD93);
    product as u64 ^ (product >> 64) as u64
}

impl Default for Cache {
    fn default() -> Self {
        let slots = vec![Slot::default(); FIRST];
        Self { slots, used: 0 }
    }
}

impl Cache {
    /// Appends the tokens of the piece with this key, if it is here.
    #[inline]
    pub(crate) fn append(&self, key: Key, out: &mut Vec<u32>) -> bool {
        let home = hash(key) as usize & (self.slots.len() - 1);
        for at in [home, home ^ 1] {
            let slot = &self.slots[at];
            if slot.key == key {
                // All lanes at once, then back to the length: no loop for one or two tokens.
                // No underflow: INLINE ids have just been appended.
                out.extend_from_slice(&slot.ids);
                out.truncate(out.len() + slot.len as usize - INLINE);
                return true;
            }
        }
        false
    }

    /// Remembers the tokens of a piece; of two others in its place the older one goes.
    ///
    /// The piece must not be here yet: a second copy would push out another piece.
    pub(crate) fn put(&mut self, key: Key, ids: &[u32]) {
        // What does not fit is merged again each time (see INLINE).
        if ids.len() > INLINE {
            return;
        }
        // `used` counts overwritten pieces too: a table that overwrites much should grow as well.
        if self.used * 2 > self.slots.len() && self.slots.len() < MOST {
            self.grow();
        }
        let mut slot = Slot {
            key,
            ids: [0; INLINE],
            len: ids.len() as u32,
        };
        slot.ids[..ids.len()].copy_from_slice(ids);
        self.place(slot);
    }

    /// Puts a slot in its first place; the one that was there moves to the second.
    fn place(&mut self, slot: Slot) {
        let home = hash(slot.key) as usize & (self.slots.len() - 1);
        // The newer piece takes the place that is looked at first.
        self.slots[home ^ 1] = std::mem::replace(&mut self.slots[home], slot);
        self.used += 1;
    }

    /// Eight times the slots, with what was in them.
    fn grow(&mut self) {
        // 2,048, 16,384 and 131,072 slots: two moves until the largest size.
        let slots = vec![Slot::default(); self.slots.len() * 8];
        let old = std::mem::replace(&mut self.slots, slots);
        self.used = 0;
        for slot in old.into_iter().filter(|slot| slot.key != 0) {
            self.place(slot);
        }
    }
}
