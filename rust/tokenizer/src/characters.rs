//! The alphabet of a vocabulary over characters: which characters are tokens of their own.
//!
//! As in sentencepiece (`character_coverage`) the most frequent characters are taken until they
//! are a given share of the text, and as in Hugging Face's `tokenizers` (`initial_alphabet`,
//! `limit_alphabet`) some are always taken and there is a limit. What is left out divides the
//! words in training, and is encoded as bytes or as unknown.
//!
//! Defined by `alphabet` and `within` in `python/tinylm/reference/char_bpe.py`, held to it by the
//! rungs `alphabet` and `train characters`.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::fallback::width;
use crate::table::Table;
use crate::words::Words;

/// Which characters of a text are tokens.
#[derive(Debug, Clone)]
pub struct Characters {
    /// Always, whether they occur or not.
    pub initial: Vec<char>,
    /// The share of the text that they are at least, above 0 and at most 1.
    pub coverage: f64,
    /// How many at most, the initial ones included.
    pub limit: usize,
}

impl Characters {
    /// The characters of `words` that are tokens, with how often each occurs, the most frequent
    /// first and in their order where equal. Bytes that are not UTF-8 are no characters.
    pub fn alphabet(&self, words: &Words) -> Vec<(char, u64)> {
        let mut counts: FxHashMap<char, u64> = FxHashMap::default();
        let mut ascii = [0u64; 128];
        for (word, count) in words.iter() {
            for chunk in word.utf8_chunks() {
                for char in chunk.valid().chars() {
                    match ascii.get_mut(char as usize) {
                        Some(sum) => *sum += count,
                        None => *counts.entry(char).or_default() += count,
                    }
                }
            }
        }
        let plain = (0..128u8).map(char::from).zip(ascii);
        counts.extend(plain.filter(|(_, count)| *count > 0));
        let all: u64 = counts.values().sum();
        let order = |a: &(char, u64), b: &(char, u64)| b.1.cmp(&a.1).then(a.0.cmp(&b.0));
        let initial: FxHashSet<char> = self.initial.iter().copied().collect();
        let mut taken: Vec<(char, u64)> = initial
            .iter()
            .map(|char| (*char, counts.get(char).copied().unwrap_or(0)))
            .collect();
        let mut others: Vec<(char, u64)> = counts.into_iter().collect();
        others.sort_unstable_by(order);
        let mut covered = 0;
        for (char, count) in others {
            if covered as f64 >= self.coverage * all as f64 {
                break;
            }
            covered += count;
            if !initial.contains(&char) && taken.len() < self.limit {
                taken.push((char, count));
            }
        }
        taken.sort_unstable_by(order);
        taken
    }
}

/// The parts of `words` between characters that are not in `alphabet`, counted anew.
pub fn within(words: &Words, alphabet: &[Vec<u8>]) -> Words {
    let alphabet: FxHashSet<&[u8]> = alphabet.iter().map(Vec::as_slice).collect();
    let mut table = Table::new();
    for (word, count) in words.iter() {
        let (mut start, mut at) = (0, 0);
        while at < word.len() {
            let length = width(&word[at..]);
            if !alphabet.contains(&word[at..at + length]) {
                if start < at {
                    table.add(word, start, at, count);
                }
                start = at + length;
            }
            at += length;
        }
        if start < word.len() {
            table.add(word, start, word.len(), count);
        }
    }
    let mut words = table.drain();
    words.sort();
    words
}
