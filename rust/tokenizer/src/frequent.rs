//! A vocabulary of the most frequent pieces as they stand: whole words or characters.
//!
//! These are the simplest tokenizers, and useful to compare byte-pair encoding with. The 256 bytes
//! come first, so every text can be encoded. The cost is at most one sort of the words.
//!
//! Defined by `most_frequent` in `python/tinylm/reference/byte_bpe.py`, held to it by the rung
//! `train whole pieces`.

use crate::goal::{Goal, Ties, Trained};
use crate::words::Words;

/// The bytes and the most frequent pieces of two bytes and more, without merges, by the same rules
/// as merges are learned.
///
/// `words` come most frequent first, in the order of their bytes where equal, which is how
/// [`Ties::Ids`] wants them.
///
/// ```
/// use tinylm_tokenizer::{Goal, Words, most_frequent};
///
/// let words = [("the", 3), ("a", 2), ("cat", 1)];
/// let words: Words = words.iter().map(|&(word, n)| (word.as_bytes(), n)).collect();
/// let trained = most_frequent(&words, &Goal::new(258));
/// // "a" is one of the 256 bytes already.
/// assert_eq!(trained.tokens[256..], [b"the".to_vec(), b"cat".to_vec()]);
/// assert!(trained.merges.is_empty());
/// ```
pub fn most_frequent(words: &Words, goal: &Goal) -> Trained {
    let mut frequent: Vec<(&[u8], u64)> = words
        .iter()
        .filter(|(word, n)| {
            (2..=goal.max_token_length).contains(&word.len())
                && *n >= goal.min_frequency
                && !goal.blocked.forbids(word, b"")
        })
        .collect();
    if goal.ties == Ties::Bytes {
        // Of equal counts the greater bytes come first, as in `better` of the trainer.
        frequent.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| b.0.cmp(a.0)));
    }
    let mut tokens = Trained::bytes();
    // No underflow: a target below 256 still gives the bytes, and nothing else.
    let room = goal.target.saturating_sub(tokens.len());
    tokens.extend(frequent.iter().map(|(word, _)| word.to_vec()).take(room));
    Trained {
        tokens,
        merges: Vec::new(),
    }
}
