//! A vocabulary of the most frequent pieces as they stand: whole words or characters.
//!
//! These are the simplest tokenizers, and useful to compare byte-pair encoding with. The 256 bytes
//! come first, so every text can be encoded. The cost is at most one sort of the words.
//!
//! Defined by `most_frequent` in `python/tinylm/reference/byte_bpe.py`, held to it by the rung
//! `train whole pieces`.

use crate::count::Word;
use crate::train::{Ties, Trained};

/// The bytes and the most frequent pieces of two bytes and more, `target` tokens at most, without
/// merges. `words` come most frequent first, in the order of their bytes where equal, which is
/// how [`Ties::Ids`] wants them.
///
/// ```
/// use tinylm_tokenizer::{Ties, most_frequent};
///
/// let words = vec![((*b"the").into(), 3), ((*b"a").into(), 2), ((*b"cat").into(), 1)];
/// let trained = most_frequent(words, 258, 1, Ties::Ids);
/// // "a" is one of the 256 bytes already.
/// assert_eq!(trained.tokens[256..], [b"the".to_vec(), b"cat".to_vec()]);
/// assert!(trained.merges.is_empty());
/// ```
pub fn most_frequent(
    mut words: Vec<Word>,
    target: usize,
    min_frequency: u64,
    ties: Ties,
) -> Trained {
    if ties == Ties::Bytes {
        // Of equal counts the greater bytes come first, as in `better` of the trainer.
        words.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| b.0.cmp(&a.0)));
    }
    let mut tokens = Trained::bytes();
    let frequent = words
        .into_iter()
        .filter(|(word, n)| word.len() > 1 && *n >= min_frequency);
    // No underflow: a target below 256 still gives the bytes, and nothing else.
    let room = target.saturating_sub(tokens.len());
    tokens.extend(frequent.map(|(word, _)| word.into_vec()).take(room));
    Trained {
        tokens,
        merges: Vec::new(),
    }
}
