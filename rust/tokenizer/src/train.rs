//! Learning the merges of byte-level BPE from the counts of words.
//!
//! The most frequent pair of neighbours becomes a token, again and again. Counts change only
//! around the places where a pair was merged, so each pair keeps its places. The words lie
//! in one array of cells, a token's id in its first cell and in its last: whoever stands at
//! a border between tokens sees both neighbours without links. A place is out of date exactly
//! if the cells there no longer hold its pair: a merge overwrites the cell where its right
//! token began, and no longer token can be mistaken for the one that began there. One merge of
//! one place costs `O(1)`, in a word of ten bytes as in one of ten million.
//!
//! No two merges make the same bytes, and no pair is merged twice. A stretch of text that is one
//! token now was never crossed by a merge, not even in a run such as `aaaa`, which is merged from
//! its left: so it was merged as it would be alone, whatever stands around it, and every such
//! stretch became a token in the same merge. Places therefore stay in the order of the text.
//!
//! Defined by `python/tinylm/reference/byte_bpe.py`.
//! Held to it by the rungs `train ties=ids`, `train ties=bytes` and `train many words`.
//!
//! The cost, for n bytes of distinct words: the text has n places of pairs at first and each merged
//! place adds two. A merged place also removes one token, so there are fewer than n of them. All
//! merges together therefore visit at most 3n places. To these come the operations of the heap,
//! `O(log n)` each.

use rustc_hash::FxHashMap;

use crate::count::Word;
use crate::heap::Heap;
use crate::{Error, Interrupt};

/// The cell between two words.
const BORDER: u32 = u32::MAX;
/// Places visited between two calls of the interrupt. Most merges visit fewer and are followed by
/// a call of their own; only the first ones of a large corpus need this.
const TICK: usize = 1 << 16;

/// Which of the pairs with the highest count is merged first.
///
/// A rule is needed, because ties are common and each choice changes all later merges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ties {
    /// The smaller (left id, right id): the pair of the older tokens.
    Ids,
    /// The greater (left bytes, right bytes): the order does not depend on ids.
    Bytes,
}

/// A vocabulary as learned: id `i` is `tokens[i]`.
///
/// Merge number m makes token 256 + m.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trained {
    /// The 256 bytes, then what was learned, in order.
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

/// Learns merges of the pieces in `words` until there are `target` tokens, special ones not
/// included, or no pair occurs `min_frequency` times; `progress(tokens, target)` is an
/// [`Interrupt`] too.
///
/// `words` are distinct pieces with their counts, in any order: the result depends on the pieces
/// and their counts alone.
///
/// # Errors
///
/// [`Error::TooLong`] for 4 GiB and more of distinct text, and any error of `progress`.
///
/// ```
/// use tinylm_tokenizer::{Ties, train_bpe};
///
/// let words = vec![((*b"abab").into(), 2), ((*b"ab").into(), 1)];
/// let trained = train_bpe(words, 258, 1, Ties::Ids, &mut |_, _| Ok(()))?;
/// // (a, b) occurs five times; then (ab, ab) twice.
/// assert_eq!(trained.tokens[256..], [b"ab".to_vec(), b"abab".to_vec()]);
/// assert_eq!(trained.merges, [(97, 98), (256, 256)]);
/// # Ok::<(), tinylm_tokenizer::Error>(())
/// ```
pub fn bpe(
    words: Vec<Word>,
    target: usize,
    min_frequency: u64,
    ties: Ties,
    progress: &mut dyn FnMut(usize, usize) -> Result<(), Error>,
) -> Result<Trained, Error> {
    let mut trainer = Trainer::new(words, ties, &mut || progress(256, target))?;
    let mut merges = Vec::new();
    while trainer.tokens.len() < target {
        let made = trainer.tokens.len();
        let mut interrupt = || progress(made, target);
        interrupt()?;
        let Some(best) = trainer.best(min_frequency) else {
            break;
        };
        merges.push((best.left, best.right));
        trainer.merge(best, &mut interrupt)?;
    }
    // Told once more at the end, so that a line of progress shows the last number.
    progress(trainer.tokens.len(), target)?;
    Ok(Trained {
        tokens: trainer.tokens,
        merges,
    })
}

/// A pair as the heap sees it; out of date once `count` is not the pair's count.
#[derive(Clone, Copy)]
struct Candidate {
    count: i64,
    left: u32,
    right: u32,
    pair: u32,
}

/// A pair of tokens: how often it occurs, and cells where it began once.
#[derive(Default)]
struct Pair {
    count: i64,
    places: Vec<u32>,
}

/// The state of a training: the corpus as cells, the pairs in it, and the best of them on a heap.
struct Trainer {
    ties: Ties,
    /// The tokens so far; a new one's id is its index.
    tokens: Vec<Vec<u8>>,
    /// A cell for each byte of the words, with borders between words. A token is written in its
    /// first and in its last cell, so both neighbours find it.
    cells: Vec<u32>,
    /// The word that each cell is of.
    word_at: Vec<u32>,
    /// How often each word occurs.
    frequency: Vec<i64>,
    pairs: Vec<Pair>,
    /// The index in `pairs` of each pair; an index, so that the heap needs no hash.
    pair_at: FxHashMap<(u32, u32), u32>,
    heap: Heap<Candidate>,
    /// Pairs whose count rose in the merge at hand.
    risen: Vec<(u32, u32, u32)>,
}

impl Trainer {
    /// Lays the words out as cells and counts their pairs.
    fn new(words: Vec<Word>, ties: Ties, interrupt: &mut Interrupt<'_>) -> Result<Self, Error> {
        // A border before the first word and one after each.
        let length = words.iter().map(|(word, _)| word.len() + 1).sum::<usize>() + 1;
        // Places are 32 bits, and BORDER is no id.
        if length >= BORDER as usize {
            return Err(Error::TooLong {
                what: "the distinct text of the corpus",
                length,
            });
        }
        let mut trainer = Self {
            ties,
            tokens: Trained::bytes(),
            cells: vec![BORDER],
            word_at: vec![0],
            frequency: Vec::with_capacity(words.len()),
            pairs: Vec::new(),
            pair_at: FxHashMap::default(),
            heap: Heap::new(Vec::new(), |_, _| false),
            risen: Vec::new(),
        };
        // Two arrays of 32 bits, so 8 bytes for each byte and border.
        trainer.cells.reserve(length);
        trainer.word_at.reserve(length);
        for (number, (word, count)) in (0u32..).zip(words) {
            // Signed, to notice a count below 0 as such. Counts of real text are far below 2^63.
            trainer.frequency.push(count as i64);
            trainer
                .cells
                .extend(word.iter().map(|&byte| u32::from(byte)));
            trainer.cells.push(BORDER);
            trainer.word_at.resize(trainer.cells.len(), number);
        }
        trainer.count_pairs(interrupt)?;
        Ok(trainer)
    }

    /// Counts the pairs of bytes, where every training begins.
    fn count_pairs(&mut self, interrupt: &mut Interrupt<'_>) -> Result<(), Error> {
        for at in 1..self.cells.len() - 1 {
            if at % TICK == TICK - 1 {
                interrupt()?;
            }
            let (left, right) = (self.cells[at], self.cells[at + 1]);
            // A pair never crosses a border: training learns inside of pieces only.
            if left != BORDER && right != BORDER {
                let count = self.frequency[self.word_at[at] as usize];
                self.raise(left, right, count, at);
            }
        }
        // All of them have risen; the heap is made of all at once, which is linear.
        self.risen.clear();
        let mut candidates = Vec::with_capacity(self.pairs.len());
        #[expect(clippy::iter_over_hash_type, reason = "the heap's order is total")]
        for (&(left, right), &pair) in &self.pair_at {
            let count = self.pairs[pair as usize].count;
            candidates.push(Candidate {
                count,
                left,
                right,
                pair,
            });
        }
        self.heap = Heap::new(candidates, |a, b| better(&self.tokens, self.ties, a, b));
        Ok(())
    }

    /// The pair to merge, if one occurs often enough.
    fn best(&mut self, min_frequency: u64) -> Option<Candidate> {
        let Self {
            heap,
            tokens,
            ties,
            pairs,
            ..
        } = self;
        let better = |a: &Candidate, b: &Candidate| better(tokens, *ties, a, b);
        loop {
            let top = heap.pop(better)?;
            let count = pairs[top.pair as usize].count;
            // A merge has used up all its places.
            if count <= 0 {
                continue;
            }
            if count == top.count {
                return (count as u64 >= min_frequency).then_some(top);
            }
            // Counts only fall without being pushed again, so this pair cannot come too late.
            heap.push(Candidate { count, ..top }, better);
        }
    }

    /// Makes a token of a pair and writes it wherever the pair stands, from the left.
    fn merge(&mut self, best: Candidate, interrupt: &mut Interrupt<'_>) -> Result<(), Error> {
        let Candidate {
            left, right, pair, ..
        } = best;
        let (left_length, right_length) = (self.length(left), self.length(right));
        let merged = self.tokens.len() as u32;
        self.tokens.push(
            [
                self.tokens[left as usize].as_slice(),
                &self.tokens[right as usize],
            ]
            .concat(),
        );
        // The pair is gone after this merge: nothing will ask for its places again.
        let places = std::mem::take(&mut self.pairs[pair as usize].places);
        // From left to right, as encoding merges: in `aaa` the first two.
        debug_assert!(places.is_sorted());
        for (visited, &place) in places.iter().enumerate() {
            if visited % TICK == TICK - 1 {
                interrupt()?;
            }
            let start = place as usize;
            let middle = start + left_length;
            // The pair began here once; another merge may have taken one of its tokens.
            if self.cells[start] != left || self.cells[middle] != right {
                continue;
            }
            let end = middle + right_length;
            let count = self.frequency[self.word_at[start] as usize];
            // Cells before and after always exist: a border is first and last.
            let (before, after) = (self.cells[start - 1], self.cells[end]);
            // Counts change for the pair itself and for the two neighbours, and nowhere else.
            self.pairs[pair as usize].count -= count;
            if before != BORDER {
                self.lower(before, left, count);
                self.raise(before, merged, count, start - self.length(before));
            }
            if after != BORDER {
                self.lower(right, after, count);
                self.raise(merged, after, count, start);
            }
            self.cells[start] = merged;
            // No border any more: what once began here must not be found again.
            // The other cells of the token keep old ids, which nobody reads.
            self.cells[middle] = merged;
            self.cells[end - 1] = merged;
        }
        self.offer_risen();
        Ok(())
    }

    /// Bytes of a token, and so the cells that it takes.
    fn length(&self, token: u32) -> usize {
        self.tokens[token as usize].len()
    }

    /// Takes `count` from a pair. The heap is not told: `best` looks again at what it takes.
    fn lower(&mut self, left: u32, right: u32, count: i64) {
        if let Some(&pair) = self.pair_at.get(&(left, right)) {
            self.pairs[pair as usize].count -= count;
        }
    }

    /// Adds `count` to a pair that begins at `place`.
    fn raise(&mut self, left: u32, right: u32, count: i64, place: usize) {
        let new = self.pairs.len() as u32;
        let pair = *self.pair_at.entry((left, right)).or_insert(new);
        if pair == new {
            self.pairs.push(Pair::default());
        }
        let known = &mut self.pairs[pair as usize];
        known.count += count;
        known.places.push(place as u32);
        // Places of one pair often follow each other; the rest is removed by `offer_risen`.
        if self.risen.last() != Some(&(pair, left, right)) {
            self.risen.push((pair, left, right));
        }
    }

    /// Pushes the pairs whose counts have risen, once each.
    fn offer_risen(&mut self) {
        // One entry for each pair, in an order that no hash decides.
        self.risen.sort_unstable();
        self.risen.dedup();
        let Self {
            heap,
            tokens,
            ties,
            pairs,
            risen,
            ..
        } = self;
        for (pair, left, right) in risen.drain(..) {
            let count = pairs[pair as usize].count;
            if count > 0 {
                let candidate = Candidate {
                    count,
                    left,
                    right,
                    pair,
                };
                heap.push(candidate, |a, b| better(tokens, *ties, a, b));
            }
        }
    }
}

/// Whether `a` is merged before `b`. The order is total: no two candidates are equal twice.
///
/// The bytes are compared only where counts tie.
fn better(tokens: &[Vec<u8>], ties: Ties, a: &Candidate, b: &Candidate) -> bool {
    if a.count != b.count {
        return a.count > b.count;
    }
    match ties {
        Ties::Ids => (a.left, a.right) < (b.left, b.right),
        Ties::Bytes => {
            let bytes = |c: &Candidate| (&tokens[c.left as usize], &tokens[c.right as usize]);
            bytes(a) > bytes(b)
        }
    }
}
