//! What a training is to reach, by which rules, and what it gives: shared by all trainers.

use rustc_hash::FxHashSet;

/// Which of the pairs with the highest count is merged first.
///
/// A rule is needed, because ties are common and each choice changes all later merges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ties {
    /// The smaller (left id, right id): the pair of the older tokens.
    Ids,
    /// The greater (left bytes, right bytes): the order does not depend on ids.
    Bytes,
    /// As Hugging Face's trainer: the smaller (left id, right id) if bytes had their ids in the
    /// order of the characters that stand for them in GPT-2's alphabet. Over characters it is
    /// [`Ties::Ids`], as these are in their order there too.
    HuggingFace,
}

impl Ties {
    /// The id of each byte while training: its number, but for [`Ties::HuggingFace`].
    pub(crate) fn byte_ids(self) -> [u32; 256] {
        let mut bytes: Vec<u8> = (0..=255).collect();
        if self == Ties::HuggingFace {
            // GPT-2's alphabet: printable Latin-1 stands for itself, all others come after U+00FF.
            let printable = |byte: u8| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
            bytes.sort_by_key(|&byte| !printable(byte));
        }
        let mut ids = [0; 256];
        for (id, byte) in (0..).zip(bytes) {
            ids[usize::from(byte)] = id;
        }
        ids
    }
}

/// What must not be made, whatever the counts.
#[derive(Debug, Clone, Default)]
pub struct Blocked {
    /// The bytes of tokens.
    pub tokens: FxHashSet<Vec<u8>>,
    /// The bytes of two tokens that must not merge.
    pub pairs: FxHashSet<(Vec<u8>, Vec<u8>)>,
}

impl Blocked {
    /// Whether two tokens must not merge.
    pub(crate) fn forbids(&self, left: &[u8], right: &[u8]) -> bool {
        (!self.tokens.is_empty() && self.tokens.contains(&[left, right].concat()))
            || (!self.pairs.is_empty() && self.pairs.contains(&(left.to_vec(), right.to_vec())))
    }
}

/// What a training is to reach, and by which rules.
#[derive(Debug, Clone)]
pub struct Goal {
    /// Tokens to make, the 256 bytes and the characters included and special ones not.
    pub target: usize,
    /// Characters of several bytes that are tokens from the beginning, in their order; a piece must
    /// have no others then. Empty for BPE over bytes.
    pub characters: Vec<Vec<u8>>,
    /// What is never made.
    pub blocked: Blocked,
    /// Pairs and pieces that occur less often are left alone.
    pub min_frequency: u64,
    /// No token is made longer than this many bytes.
    pub max_token_length: usize,
    /// The order of pairs with equal counts.
    pub ties: Ties,
}

impl Goal {
    /// `target` tokens, by the usual rules: no limits, and ties by [`Ties::Ids`].
    pub fn new(target: usize) -> Self {
        Self {
            target,
            characters: Vec::new(),
            blocked: Blocked::default(),
            min_frequency: 1,
            max_token_length: usize::MAX,
            ties: Ties::Ids,
        }
    }
}

/// A vocabulary as learned: id `i` is `tokens[i]`.
///
/// Merge number m makes token 256 + m, or as many more as there are characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trained {
    /// The 256 bytes, the characters, then what was learned, in order.
    pub tokens: Vec<Vec<u8>>,
    /// The pairs of ids that merge, in order.
    pub merges: Vec<(u32, u32)>,
}

impl Trained {
    /// The bytes alone, where every vocabulary begins.
    pub(crate) fn bytes() -> Vec<Vec<u8>> {
        (0..=255u8).map(|byte| vec![byte]).collect()
    }
}
