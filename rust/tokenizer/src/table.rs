//! Tables that count pieces: open addressing, one for short pieces and one for long ones.
//!
//! A piece of at most [`cache::LONGEST`] bytes is one number of 16 bytes, which the table holds
//! itself: 24 bytes a slot with its count. Longer pieces lie in [`Words`], and the table holds
//! their numbers. Counting one piece costs `O(1)`, and the length of a long one.

use std::hash::Hasher;

use rustc_hash::FxHasher;

use crate::cache::{self, Key};
use crate::words::Words;

/// A slot for a short piece; a key of 0 is free. In halves, because a number of 16 bytes would be
/// aligned to 16 and make the slot 32.
#[derive(Clone, Copy, Default)]
struct Short {
    key: [u64; 2],
    count: u64,
}

/// Counts of distinct pieces.
pub(crate) struct Table {
    /// A power of two of slots, at most half of them used.
    short: Vec<Short>,
    used: usize,
    long: Long,
}

/// Counts of pieces that fit no key.
#[derive(Default)]
struct Long {
    /// A power of two of numbers of pieces, plus one; 0 is free. At most half of them are used.
    slots: Vec<u32>,
    words: Words,
    /// The hash of each piece: it is compared first, and needed when the table grows.
    hashes: Vec<u32>,
}

impl Table {
    /// An empty table, which grows as pieces come.
    pub(crate) fn new() -> Self {
        Self {
            // 96 KiB: small texts must not pay for a large table.
            short: vec![Short::default(); 1 << 12],
            used: 0,
            long: Long::default(),
        }
    }

    /// Adds `count` to the piece `text[from..to]`.
    #[inline]
    pub(crate) fn add(&mut self, text: &[u8], from: usize, to: usize, count: u64) {
        if to - from <= cache::LONGEST {
            self.add_short(cache::key(text, from, to), count);
        } else {
            self.long.add(&text[from..to], count);
        }
    }

    /// Adds all counts of `words`.
    pub(crate) fn add_words(&mut self, words: &Words) {
        for (piece, count) in words.iter() {
            self.add(piece, 0, piece.len(), count);
        }
    }

    /// Takes all counts of another table, which is empty afterwards.
    pub(crate) fn take(&mut self, other: &mut Self) {
        let other = std::mem::replace(other, Self::new());
        for slot in other.short.iter().filter(|slot| slot.count != 0) {
            self.add_short(joined(slot.key), slot.count);
        }
        // The larger memory of long pieces stays, the smaller is copied.
        for (piece, count) in other.long.words.iter() {
            self.long.add(piece, count);
        }
    }

    /// The pieces in no order; the table is empty afterwards.
    pub(crate) fn drain(&mut self) -> Words {
        let table = std::mem::replace(self, Self::new());
        let mut words = table.long.words;
        for slot in table.short.iter().filter(|slot| slot.count != 0) {
            // The last byte of a key is the length of its piece.
            let bytes = joined(slot.key).to_le_bytes();
            words.push(&bytes[..usize::from(bytes[15])], slot.count);
        }
        words
    }

    /// Bytes of memory.
    pub(crate) fn memory(&self) -> usize {
        let long = self.long.slots.capacity() + self.long.hashes.capacity();
        self.short.capacity() * size_of::<Short>() + 4 * long + self.long.words.memory()
    }

    /// Counts a piece by its key, with linear probing.
    #[inline]
    fn add_short(&mut self, key: Key, count: u64) {
        let halves = [key as u64, (key >> 64) as u64];
        // The number of slots is a power of two.
        let mask = self.short.len() - 1;
        let mut at = cache::hash(key) as usize & mask;
        loop {
            let slot = &mut self.short[at];
            if slot.key == halves {
                slot.count += count;
                return;
            }
            if slot.count == 0 {
                *slot = Short { key: halves, count };
                break;
            }
            at = (at + 1) & mask;
        }
        self.used += 1;
        // Half empty, so that probes stay short.
        if self.used * 2 > self.short.len() {
            let larger = vec![Short::default(); self.short.len() * 2];
            self.used = 0;
            for old in std::mem::replace(&mut self.short, larger) {
                if old.count != 0 {
                    // Never deeper than one call: the larger table is at most a quarter full here.
                    self.add_short(joined(old.key), old.count);
                }
            }
        }
    }
}

impl Long {
    /// Adds to the count of a piece.
    fn add(&mut self, piece: &[u8], count: u64) {
        if self.hashes.len() * 2 >= self.slots.len() {
            self.grow();
        }
        let mut hasher = FxHasher::default();
        hasher.write(piece);
        let hash = hasher.finish() as u32;
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        while let Some(number) = (self.slots[at] as usize).checked_sub(1) {
            if self.hashes[number] == hash && self.words.get(number) == piece {
                self.words.add(number, count);
                return;
            }
            at = (at + 1) & mask;
        }
        self.words.push(piece, count);
        self.hashes.push(hash);
        // Pieces of over 15 bytes: 2^32 of them would be 64 GiB.
        self.slots[at] = self.hashes.len() as u32;
    }

    /// Twice the slots, with the same pieces.
    fn grow(&mut self) {
        let slots = (self.slots.len() * 2).max(64);
        self.slots.clear();
        self.slots.resize(slots, 0);
        for (number, &hash) in (1u32..).zip(&self.hashes) {
            let mut at = hash as usize & (slots - 1);
            while self.slots[at] != 0 {
                at = (at + 1) & (slots - 1);
            }
            self.slots[at] = number;
        }
    }
}

/// A key from its halves.
fn joined(key: [u64; 2]) -> Key {
    Key::from(key[0]) | Key::from(key[1]) << 64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn tables_count_as_a_map_does_however_they_grow_and_join() {
        let mut state = 7u64;
        let mut below = |bound: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % bound
        };
        let mut map: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        let mut tables = [Table::new(), Table::new(), Table::new()];
        for _ in 0..60_000 {
            let length = 1 + below(24) as usize;
            // Few letters and zeros too: short pieces repeat, long ones seldom.
            let piece: Vec<u8> = (0..length).map(|_| below(3) as u8 * 90).collect();
            let count = 1 + below(4);
            *map.entry(piece.clone()).or_default() += count;
            tables[below(3) as usize].add(&piece, 0, piece.len(), count);
        }
        let [mut all, mut second, mut third] = tables;
        all.take(&mut second);
        let words = third.drain();
        all.add_words(&words);
        let mut words = all.drain();
        let total: BTreeMap<Vec<u8>, u64> = words.iter().map(|(w, n)| (w.into(), n)).collect();
        assert_eq!(total, map);
        assert_eq!(words.len(), map.len());
        words.sort();
        assert!(words.iter().map(|(_, n)| n).is_sorted_by(|a, b| a >= b));
        assert!(all.drain().is_empty() && second.drain().is_empty());
    }
}
