//! What training begins with: the symbols of a word and the pairs of neighbouring ones.
//!
//! Units are the 256 bytes, or the characters of an alphabet. A character of several bytes is a
//! token from the beginning, which takes as many cells as it has bytes, like a token that was
//! merged: so the training itself does not know which it is.

use rustc_hash::FxHashMap;

use crate::fallback::width;
use crate::goal::{Goal, Ties, Trained};
use crate::occurrences::{self as pairs, Key, Pairs};
use crate::words::Words;
use crate::{Error, Interrupt};

/// Bytes of words between two calls of the interrupt.
const TICK: usize = 1 << 16;

/// The ids of the symbols.
pub(crate) struct Units {
    /// The id of each byte; its number but for [`Ties::HuggingFace`].
    pub(crate) byte_ids: [u32; 256],
    /// Those of the characters of several bytes.
    characters: FxHashMap<Box<[u8]>, u32>,
}

impl Units {
    /// Those of a goal.
    pub(crate) fn new(goal: &Goal) -> Self {
        let ties = if goal.characters.is_empty() {
            goal.ties
        } else {
            // Hugging Face orders an alphabet by its characters, as the ids are.
            Ties::Ids
        };
        let characters = goal.characters.iter().map(|c| c.as_slice().into());
        Self {
            byte_ids: ties.byte_ids(),
            characters: characters.zip(256..).collect(),
        }
    }

    /// The tokens of the symbols by their ids.
    pub(crate) fn tokens(&self, goal: &Goal) -> Vec<Vec<u8>> {
        let mut tokens = Trained::bytes();
        for byte in 0..=255u8 {
            tokens[self.byte_ids[usize::from(byte)] as usize] = vec![byte];
        }
        tokens.extend_from_slice(&goal.characters);
        tokens
    }

    /// The id and the length of the symbol that `rest` begins with.
    #[inline]
    fn first(&self, rest: &[u8]) -> (u32, usize) {
        let length = width(rest);
        if length > 1
            && let Some(&id) = self.characters.get(&rest[..length])
        {
            return (id, length);
        }
        (self.byte_ids[usize::from(rest[0])], 1)
    }

    /// Appends the cells of a word: an id for each byte, that of its symbol.
    pub(crate) fn write(&self, word: &[u8], cells: &mut Vec<u32>) {
        if self.characters.is_empty() {
            cells.extend(word.iter().map(|&byte| self.byte_ids[usize::from(byte)]));
            return;
        }
        let mut at = 0;
        while at < word.len() {
            let (id, length) = self.first(&word[at..]);
            cells.extend(std::iter::repeat_n(id, length));
            at += length;
        }
    }

    /// Counts the pairs of symbols and notes their places.
    ///
    /// # Errors
    ///
    /// What `interrupt` returns, and [`Error::TooLong`] for too many places.
    pub(crate) fn count_pairs(
        &self,
        words: &Words,
        pairs: &mut Pairs,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<(), Error> {
        let mut places = 0;
        let mut tick = |bytes: usize| {
            places += bytes;
            if places < TICK {
                return Ok(());
            }
            places = 0;
            interrupt()
        };
        if self.characters.is_empty() {
            self.count_bytes(words, pairs, &mut tick)
        } else {
            self.count_characters(words, pairs, &mut tick)
        }
    }

    /// The pairs of bytes, which need no hash. Twice through the text: their lists get their
    /// length first.
    fn count_bytes(
        &self,
        words: &Words,
        pairs: &mut Pairs,
        tick: &mut dyn FnMut(usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let index = |bytes: &[u8]| usize::from(bytes[0]) << 8 | usize::from(bytes[1]);
        let mut found = vec![(0i64, 0u32); 1 << 16];
        for (word, count) in words.iter() {
            // A pair never crosses a border: training learns inside of pieces only.
            for part in word.windows(2) {
                let (sum, n) = &mut found[index(part)];
                *sum += count as i64;
                *n += 1;
            }
            tick(word.len())?;
        }
        let mut next = vec![0u32; 1 << 16];
        for (bytes, &(sum, n)) in found.iter().enumerate().filter(|(_, pair)| pair.1 > 0) {
            let key = pairs::key(self.byte_ids[bytes >> 8], self.byte_ids[bytes & 255]);
            next[bytes] = pairs.insert_run(key, sum, n)?;
        }
        let mut place = 1;
        for (word, _) in words.iter() {
            for part in word.windows(2) {
                let at = &mut next[index(part)];
                pairs.write(*at, place);
                *at += 1;
                place += 1;
            }
            // The last byte and the border; a piece has at least one byte.
            place += 2;
            tick(word.len())?;
        }
        pairs.finish_runs();
        Ok(())
    }

    /// The pairs of characters, found by hash, else as those of bytes.
    fn count_characters(
        &self,
        words: &Words,
        pairs: &mut Pairs,
        tick: &mut dyn FnMut(usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        // By the key of a pair: its count, its places, and then where the next one is written.
        let mut found: FxHashMap<Key, (i64, u32)> = FxHashMap::default();
        for (word, count) in words.iter() {
            self.each_pair(word, |_, key| {
                let (sum, n) = found.entry(key).or_default();
                *sum += count as i64;
                *n += 1;
            });
            tick(word.len())?;
        }
        let mut order: Vec<(Key, (i64, u32))> = found.drain().collect();
        order.sort_unstable();
        for (key, (sum, n)) in order {
            found.insert(key, (0, pairs.insert_run(key, sum, n)?));
        }
        let mut start = 1u32;
        for (word, _) in words.iter() {
            self.each_pair(word, |at, key| {
                if let Some((_, next)) = found.get_mut(&key) {
                    pairs.write(*next, start + at as u32);
                    *next += 1;
                }
            });
            // The border after it.
            start += word.len() as u32 + 1;
            tick(word.len())?;
        }
        pairs.finish_runs();
        Ok(())
    }

    /// Gives `each` the place of every pair of symbols in a word, and its key.
    fn each_pair(&self, word: &[u8], mut each: impl FnMut(usize, Key)) {
        let Some(_) = word.first() else { return };
        let (mut left, mut length) = self.first(word);
        let mut at = 0;
        while at + length < word.len() {
            let (right, next) = self.first(&word[at + length..]);
            each(at, pairs::key(left, right));
            at += length;
            (left, length) = (right, next);
        }
    }
}
