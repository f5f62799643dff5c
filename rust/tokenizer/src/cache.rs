//! The pieces known by heart and their tokens: nearly every piece of a text has been seen before.
//!
//! One open-addressed table for each thread. A slot is half a line of the processor's cache: 16
//! bytes for the [`Key`] and 16 for up to three ids and their number. A piece of at most 15 bytes
//! and its length are its key, so two pieces are compared without a loop, and the ids of a hit are
//! one load and one store. A longer piece, or one of more ids, has them in an arena: its slot says
//! where, and for a long piece the bytes are compared there.
//!
//! The two slots of a line are loaded together and chosen without a branch: of the pieces of
//! English, 6 of 100 are not in the first place for their hash. Common tokens are: they come first
//! in a seed.
//!
//! A table begins with a [seed](crate::model::Model::seed), the pieces that are tokens as they stand, so a common word is never merged at all. It grows until [`MOST`] slots are three
//! quarters full or an arena is; then it begins again from the seed. With the arenas that is at
//! most 48 MiB for each thread, beside the seed.
//!
//! The cache holds what the model would give, so it can change the speed but never a token. It
//! needs no lock: each thread has its own.

use crate::memory::{prefetch, vec_of};

/// Pieces up to this length are their own key; with the length they fill its 16 bytes.
pub(crate) const LONGEST: usize = 15;
/// Pieces up to this length are remembered. Longer ones hardly ever come twice.
pub(crate) const LIMIT: usize = 128;
/// Ids that fit beside the key: with their number a slot is 32 bytes.
const INLINE: usize = 3;
/// What a slot holds beside the key: the ids and their number.
pub(crate) const LANES: usize = INLINE + 1;
/// Added to the number of ids that are in the arena.
const SPILLED: usize = INLINE + 1;
/// Slots at first, if the seed is small: 64 KiB, cheap for a short text.
const FIRST: usize = 1 << 11;
/// Slots at most: 32 MiB.
const MOST: usize = 1 << 20;
/// Bytes in an arena at most.
const ARENA: usize = 8 << 20;

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
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(32))]
pub(crate) struct Slot {
    key: Key,
    /// Up to three ids and their number; or, with a number above three, the place of the ids, the
    /// place of the bytes, and anything.
    pub(crate) lanes: [u32; LANES],
}

/// Two slots that are loaded together; the second is used after the first.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(64))]
struct Line([Slot; 2]);

/// A piece by its key, and where to look for it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Place {
    key: Key,
    hash: u32,
}

/// A table from pieces to tokens, for one thread.
#[derive(Debug)]
pub(crate) struct Cache {
    /// A power of two of them; of their slots at most three quarters are used.
    lines: Vec<Line>,
    used: usize,
    /// The ids of the pieces that do not fit a slot, and the bytes of the long ones.
    ids: Vec<u32>,
    bytes: Vec<u8>,
}

/// The key of `text[start..end]`, a piece of 1 to [`LONGEST`] bytes.
///
/// The length is the highest byte, so "a" and "a\0" have different keys.
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

/// The key of a piece above [`LONGEST`] bytes: a hash of them and their number.
///
/// The highest byte is no length of a short piece. Two long pieces may have one key, so whoever
/// finds it compares the bytes.
#[inline(never)]
fn long_key(piece: &[u8]) -> Key {
    let word = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
    let (words, _) = piece.as_chunks::<8>();
    // The last eight bytes once more, so that no loop over single bytes is needed.
    let last = piece.last_chunk::<8>().map_or(0, word);
    let folded = words
        .iter()
        .map(word)
        .chain([last])
        .fold(piece.len() as u64, |sum, word| {
            (sum ^ word)
                .wrapping_mul(0x9E37_79B9_7F4A_7C15)
                .rotate_left(29)
        });
    u128::from(folded) | (piece.len() as u128) << 64 | 0xFF << 120
}

/// Free lines.
fn free(number: usize) -> Vec<Line> {
    let mut lines = vec_of(number);
    lines.resize(number, Line::default());
    lines
}

impl Default for Cache {
    fn default() -> Self {
        Self::for_pieces(0)
    }
}

impl Slot {
    /// How many ids there are, if they are in the lanes.
    #[inline]
    pub(crate) fn number(&self) -> Option<usize> {
        let number = self.lanes[INLINE] as usize;
        (number <= INLINE).then_some(number)
    }
}

impl Cache {
    /// An empty table with room for about this many pieces.
    pub(crate) fn for_pieces(pieces: usize) -> Self {
        let lines = pieces.next_power_of_two().clamp(FIRST / 2, MOST / 2);
        Self {
            lines: free(lines),
            used: 0,
            ids: Vec::new(),
            bytes: Vec::new(),
        }
    }

    /// Where the piece `text[from..to]` would be; begins to load it.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "once for each piece, from eight loops"
    )]
    pub(crate) fn place(&self, text: &[u8], from: usize, to: usize) -> Place {
        let len = to - from;
        let key = if len <= LONGEST {
            key(text, from, to)
        } else if len <= LIMIT {
            long_key(&text[from..to])
        } else {
            // The key of no piece: not found, and never put.
            0xFE << 120
        };
        let hash = hash(key) as u32;
        prefetch(&self.lines, hash as usize & (self.lines.len() - 1));
        Place { key, hash }
    }

    /// The slot with the key of the piece, if there is one. That of a long piece may be another's.
    #[inline]
    pub(crate) fn find(&self, place: &Place) -> Option<&Slot> {
        let mask = self.lines.len() - 1;
        let mut at = place.hash as usize & mask;
        loop {
            let [first, second] = &self.lines[at].0;
            // Chosen without a branch, which nobody could predict.
            let slot = if first.key == place.key {
                first
            } else {
                second
            };
            if slot.key == place.key {
                return Some(slot);
            }
            // There always is a free slot.
            if second.key == 0 {
                return None;
            }
            at = (at + 1) & mask;
        }
    }

    /// The ids of a piece, if it is known.
    pub(crate) fn ids(&self, place: &Place, piece: &[u8]) -> Option<&[u32]> {
        let slot = self.find(place)?;
        if let Some(number) = slot.number() {
            return Some(&slot.lanes[..number]);
        }
        let [ids_at, bytes_at, _, mark] = slot.lanes.map(|lane| lane as usize);
        let ids = &self.ids[ids_at..ids_at + mark - SPILLED];
        let known =
            piece.len() <= LONGEST || { self.bytes[bytes_at..].get(..piece.len()) == Some(piece) };
        known.then_some(ids)
    }

    /// Remembers the tokens of a piece that was not found; false if there is no more room.
    ///
    /// A piece above [`LIMIT`], and one whose key another has, are left out: that costs time only.
    pub(crate) fn put(&mut self, place: &Place, piece: &[u8], ids: &[u32]) -> bool {
        if piece.len() > LIMIT {
            return true;
        }
        let mut slot = Slot {
            key: place.key,
            lanes: [0; LANES],
        };
        if piece.len() <= LONGEST && ids.len() <= INLINE {
            slot.lanes[..ids.len()].copy_from_slice(ids);
            slot.lanes[INLINE] = ids.len() as u32;
        } else {
            if self.ids.len() * 4 > ARENA || self.bytes.len() > ARENA {
                return false;
            }
            let number = (SPILLED + ids.len()) as u32;
            slot.lanes = [self.ids.len() as u32, self.bytes.len() as u32, 0, number];
            self.ids.extend_from_slice(ids);
            if piece.len() > LONGEST {
                self.bytes.extend_from_slice(piece);
            }
        }
        if self.used * 2 >= self.lines.len() * 3 {
            if self.lines.len() * 2 == MOST {
                return false;
            }
            self.grow();
        }
        self.fill(slot, place.hash);
        true
    }

    /// Whether a seed always takes the token of this number. Two longer tokens may have one key.
    pub(crate) fn takes(number: usize, token: &[u8]) -> bool {
        // At least half of the slots are for what a text brings.
        number < MOST / 2 && token.len() <= LONGEST
    }

    /// Remembers a token that stays whole, in a seed that has room.
    pub(crate) fn plant(&mut self, token: &[u8], id: u32) {
        let place = self.place(token, 0, token.len());
        if self.used < MOST / 2 && self.find(&place).is_none() {
            self.put(&place, token, &[id]);
        }
    }

    /// Puts a slot in the first free place for its hash.
    fn fill(&mut self, slot: Slot, hash: u32) {
        let mask = self.lines.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            for place in &mut self.lines[at].0 {
                if place.key == slot.key {
                    return;
                }
                if place.key == 0 {
                    *place = slot;
                    self.used += 1;
                    return;
                }
            }
            at = (at + 1) & mask;
        }
    }

    /// Four times the slots while there are few, then twice, with what was in them.
    fn grow(&mut self) {
        let factor = if self.lines.len() < 1 << 15 { 4 } else { 2 };
        let lines = free(self.lines.len() * factor);
        let old = std::mem::replace(&mut self.lines, lines);
        self.used = 0;
        let slots = old.into_iter().flat_map(|line| line.0);
        for slot in slots.filter(|slot| slot.key != 0) {
            self.fill(slot, hash(slot.key) as u32);
        }
    }
}
