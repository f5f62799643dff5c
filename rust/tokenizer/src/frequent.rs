//! A vocabulary of the most frequent pieces as they stand: whole words or characters.
//!
//! Defined by `python/tinylm/reference/byte_bpe.py`.

use crate::count::Word;
use crate::train::{Ties, Trained};

/// The bytes and the most frequent pieces of two bytes and more, `target` tokens at most, without
/// merges. `words` come most frequent first, in the order of their bytes where equal, which is
/// how [`Ties::Ids`] wants them.
pub fn most_frequent(
    mut words: Vec<Word>,
    target: usize,
    min_frequency: u64,
    ties: Ties,
) -> Trained {
    if ties == Ties::Bytes {
        words.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| b.0.cmp(&a.0)));
    }
    let mut tokens = Trained::bytes();
    let frequent = words
        .into_iter()
        .filter(|(word, n)| word.len() > 1 && *n >= min_frequency);
    let room = target.saturating_sub(tokens.len());
    tokens.extend(frequent.map(|(word, _)| word.into_vec()).take(room));
    Trained {
        tokens,
        merges: Vec::new(),
    }
}
