//! The pairs of neighbouring tokens in a training: how often each occurs, and where.
//!
//! Pairs are found by open addressing over 32-bit indices. Each pair keeps the places where it
//! began in a run of one shared array: the room of a run is the power of two at or above its
//! length, so a pair needs no capacity beside it, a run that is full moves to one twice as long,
//! and runs that are given back are used again, in halves if need be. A pair with one place, as
//! most of those made late in a training have, keeps it in itself. So a pair takes 24 bytes and 4
//! to 8 for each place, where a vector for each took 32, the places and an allocation. A pair
//! whose count has fallen to 0 is gone, and its index is given to another.

use crate::Error;

/// The two ids of a pair in one number, in the order of (left, right).
pub(crate) type Key = u64;

/// The key of a pair of ids.
pub(crate) fn key(left: u32, right: u32) -> Key {
    Key::from(left) << 32 | Key::from(right)
}

/// The ids of a key.
pub(crate) fn ids(key: Key) -> (u32, u32) {
    ((key >> 32) as u32, key as u32)
}

/// A pair of tokens.
struct Pair {
    key: Key,
    /// Signed, to notice a count below 0 as such. Counts of real text are far below 2^63.
    count: i64,
    /// The place, if there is one; where their run begins in `places`, if there are more.
    at: u32,
    /// How many places there are.
    len: u32,
}

/// A slot that no pair has used yet.
const FREE: u32 = 0;
/// A slot of a pair that is gone: a search goes on behind it.
const GONE: u32 = u32::MAX;
/// The key of a pair that is gone: no id is as large.
const NO_KEY: Key = Key::MAX;

/// All pairs of a training.
pub(crate) struct Pairs {
    all: Vec<Pair>,
    /// Indices of pairs that are gone.
    unused: Vec<u32>,
    /// A power of two of indices of pairs, plus one, or [`FREE`] or [`GONE`].
    slots: Vec<u32>,
    /// Slots that are not free, at most half of them.
    used: usize,
    /// Runs of 2, 4, 8 and so on places.
    places: Vec<u32>,
    /// Where the runs of 2^k places that no pair uses begin.
    free: [Vec<u32>; 32],
}

impl Pairs {
    /// No pairs.
    pub(crate) fn new() -> Self {
        Self {
            all: Vec::new(),
            unused: Vec::new(),
            slots: vec![FREE; 1 << 12],
            used: 0,
            places: Vec::new(),
            free: [const { Vec::new() }; 32],
        }
    }

    /// Indices are below this.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// The key and the count of a pair; None if it is gone.
    pub(crate) fn get(&self, pair: usize) -> Option<(Key, i64)> {
        let Pair { key, count, .. } = self.all[pair];
        (key != NO_KEY).then_some((key, count))
    }

    /// The index of a pair that may or may not be here yet. `hint` is looked at first: callers who
    /// ask for the same pair again and again keep its index.
    #[inline]
    pub(crate) fn find(&self, key: Key, hint: u32) -> Option<usize> {
        let hint = hint as usize;
        if self.all.get(hint).is_some_and(|pair| pair.key == key) {
            return Some(hint);
        }
        let slot = self.slot_of(key)?;
        Some(self.slots[slot] as usize - 1)
    }

    /// The slot of a pair.
    #[inline]
    fn slot_of(&self, key: Key) -> Option<usize> {
        let mut at = self.home(key);
        loop {
            match self.slots[at] {
                FREE => return None,
                GONE => {}
                pair if self.all[pair as usize - 1].key == key => return Some(at),
                _ => {}
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }

    /// Adds a pair that is not here yet; its index.
    pub(crate) fn insert(&mut self, key: Key) -> usize {
        if self.used * 2 >= self.slots.len() {
            self.rebuild();
        }
        let pair = Pair {
            key,
            count: 0,
            at: 0,
            len: 0,
        };
        let index = if let Some(index) = self.unused.pop() {
            self.all[index as usize] = pair;
            index as usize
        } else {
            self.all.push(pair);
            self.all.len() - 1
        };
        self.place_index(index);
        index
    }

    /// Makes a table without slots of pairs that are gone, and a larger one if it is needed.
    fn rebuild(&mut self) {
        let live = self.all.len() - self.unused.len();
        let slots = (live * 4).next_power_of_two().max(self.slots.len());
        // The old slots go first: the pairs hold all that is needed.
        self.slots = Vec::new();
        self.slots = vec![FREE; slots];
        self.used = 0;
        for pair in 0..self.all.len() {
            if self.all[pair].key != NO_KEY {
                self.place_index(pair);
            }
        }
    }

    /// Adds a pair that is not here yet, which stands at `n` places and occurs `count` times; the
    /// index of its first place for `write`. After the last one, `finish_runs` must be called.
    ///
    /// # Errors
    ///
    /// As `add`.
    pub(crate) fn insert_run(&mut self, key: Key, count: i64, n: u32) -> Result<u32, Error> {
        // Its final length at once: growing to it would leave shorter runs behind.
        let at = self.take(n.next_power_of_two().trailing_zeros() as usize)?;
        let pair = self.insert(key);
        self.all[pair] = Pair {
            key,
            count,
            at,
            len: n,
        };
        Ok(at)
    }

    /// Writes one place of a run.
    #[inline]
    pub(crate) fn write(&mut self, at: u32, place: u32) {
        self.places[at as usize] = place;
    }

    /// Moves the places of pairs that have only one into the pairs.
    pub(crate) fn finish_runs(&mut self) {
        for pair in self.all.iter_mut().filter(|pair| pair.len == 1) {
            pair.at = self.places[pair.at as usize];
        }
    }

    /// Takes `count` from a pair; one that stands nowhere any more is gone.
    #[inline]
    pub(crate) fn lower(&mut self, pair: usize, count: i64) {
        let found = &mut self.all[pair];
        found.count -= count;
        if found.count == 0 {
            self.remove(pair);
        }
    }

    /// Adds an occurrence at `place`, which `count` words hold.
    ///
    /// # Errors
    ///
    /// [`Error::TooLong`] for more places than 32 bits can number.
    #[inline]
    pub(crate) fn add(&mut self, pair: usize, count: i64, place: u32) -> Result<(), Error> {
        let found = &mut self.all[pair];
        found.count += count;
        let len = found.len;
        if len == 0 {
            found.at = place;
        } else if len.is_power_of_two() {
            // The run is full; one place alone has no run.
            let (old, class) = (found.at, len.trailing_zeros() as usize);
            let new = self.take(class + 1)?;
            let start = new as usize;
            if len == 1 {
                self.places[start] = old;
            } else {
                let from = old as usize;
                self.places.copy_within(from..from + len as usize, start);
                self.free[class].push(old);
            }
            self.places[start + len as usize] = place;
            self.all[pair].at = new;
        } else {
            self.places[found.at as usize + len as usize] = place;
        }
        self.all[pair].len += 1;
        Ok(())
    }

    /// Takes a pair out; its places, in the order in which they were added, go into `out`.
    pub(crate) fn take_out(&mut self, pair: usize, out: &mut Vec<u32>) {
        let found = &self.all[pair];
        out.clear();
        if found.len == 1 {
            out.push(found.at);
        } else {
            let start = found.at as usize;
            out.extend_from_slice(&self.places[start..start + found.len as usize]);
        }
        self.remove(pair);
    }

    /// Forgets a pair.
    fn remove(&mut self, pair: usize) {
        if let Some(slot) = self.slot_of(self.all[pair].key) {
            self.slots[slot] = GONE;
        }
        let found = &mut self.all[pair];
        found.key = NO_KEY;
        if found.len > 1 {
            let class = found.len.next_power_of_two().trailing_zeros();
            self.free[class as usize].push(found.at);
        }
        self.unused.push(pair as u32);
    }

    /// A run of 2^class places: one that was given back, or a new one.
    fn take(&mut self, class: usize) -> Result<u32, Error> {
        if let Some(larger) = (class..32).find(|&larger| !self.free[larger].is_empty())
            && let Some(run) = self.free[larger].pop()
        {
            // What is too long is halved; the other halves are free.
            for half in class..larger {
                self.free[half].push(run + (1 << half));
            }
            return Ok(run);
        }
        let start = self.places.len();
        self.places.resize(start + (1 << class), 0);
        u32::try_from(self.places.len()).map_err(|_| Error::TooLong {
            what: "the list of all places of pairs",
            length: self.places.len(),
        })?;
        Ok(start as u32)
    }

    /// Puts the index of a pair into the first slot from its home on that holds none.
    ///
    /// Slots of pairs that are gone are used again: in `aaaa` the pair of a merged token with the
    /// next `a` comes and goes at every place, and would leave a slot behind each time.
    fn place_index(&mut self, pair: usize) {
        let mut at = self.home(self.all[pair].key);
        while self.slots[at] != FREE && self.slots[at] != GONE {
            at = (at + 1) & (self.slots.len() - 1);
        }
        self.used += usize::from(self.slots[at] == FREE);
        self.slots[at] = pair as u32 + 1;
    }

    /// Where the search for a key begins.
    fn home(&self, key: Key) -> usize {
        // The upper bits of a product depend on all bits of the key.
        let bits = self.slots.len().trailing_zeros();
        (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - bits)) as usize
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn pairs_keep_their_places_while_others_come_and_go() {
        let mut state = 1u64;
        let mut below = |bound: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % bound
        };
        let mut pairs = Pairs::new();
        let mut naive: HashMap<Key, (i64, Vec<u32>)> = HashMap::new();
        for n in 1..40 {
            let at = pairs.insert_run(key(n, n), i64::from(3 * n), n).unwrap();
            for place in 0..n {
                pairs.write(at + place, 1000 * n + place);
            }
            let places = (0..n).map(|place| 1000 * n + place).collect();
            naive.insert(key(n, n), (i64::from(3 * n), places));
        }
        pairs.finish_runs();
        let (mut out, mut gone) = (Vec::new(), 0);
        for place in 0..200_000u32 {
            let wanted = key(below(90) as u32, below(90) as u32);
            let hint = below(9_000) as u32;
            let pair = pairs
                .find(wanted, hint)
                .unwrap_or_else(|| pairs.insert(wanted));
            assert_eq!(pairs.find(wanted, pair as u32), Some(pair));
            let entry = naive.entry(wanted).or_default();
            if below(30) == 0 && entry.0 > 0 {
                if below(2) == 0 {
                    pairs.take_out(pair, &mut out);
                    assert_eq!(out, entry.1);
                } else {
                    pairs.lower(pair, entry.0);
                }
                naive.remove(&wanted);
                assert_eq!(pairs.find(wanted, pair as u32), None);
                gone += 1;
                continue;
            }
            let count = 1 + below(5) as i64;
            pairs.add(pair, count, place).unwrap();
            entry.0 += count;
            entry.1.push(place);
            assert_eq!(pairs.get(pair), Some((wanted, entry.0)));
        }
        assert!(gone > 1000 && pairs.len() < naive.len() + 1000);
        // Runs that were given back are used again, or this would be many times as long.
        let live: usize = naive.values().map(|entry| entry.1.len()).sum();
        assert!(pairs.places.len() < 8 * live);
    }
}
