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
//! Held to it by the rungs `train ties=ids`, `train ties=bytes`, `train characters` and `train many
//! words`.
//!
//! The cost, for n bytes of distinct words: the text has n places of pairs at first and each merged
//! place adds two. A merged place also removes one token, so there are fewer than n of them. All
//! merges together therefore visit at most 3n places. To these come the operations of the heap,
//! `O(log n)` each.
//!
//! A pair that a merge makes holds the new token, so its places are all made by that merge, and
//! afterwards its count only falls. So the pairs to offer to the heap are those that the merge has
//! made, and one whose count has fallen to 0 is gone for good.

use crate::cells::{self, BORDER, Frequencies};
use crate::goal::{Goal, Ties, Trained};
use crate::heap::Heap;
use crate::occurrences::{self as pairs, Key, Pairs};
use crate::units::Units;
use crate::words::Words;
use crate::{Error, Interrupt};

/// Places visited between two calls of the interrupt. Most merges visit fewer and are followed by
/// a call of their own; only the first ones of a large corpus need this.
const TICK: usize = 1 << 16;
/// Places that are looked at together.
const GROUP: usize = 32;

/// Learns merges of the pieces in `words` until there are `goal.target` tokens, or no pair is left
/// that may merge; `progress(tokens, target)` is an [`Interrupt`] too.
///
/// `words` are distinct pieces with their counts, in any order: the result depends on the pieces
/// and their counts alone. It is quickest with the most frequent first.
///
/// # Errors
///
/// [`Error::TooLong`] for 4 GiB and more of distinct text, and any error of `progress`.
///
/// ```
/// use tinylm_tokenizer::{Goal, Words, train_bpe};
///
/// let words: Words = [(b"abab".as_slice(), 2), (b"ab".as_slice(), 1)].into_iter().collect();
/// let trained = train_bpe(&words, Goal::new(258), &mut |_, _| Ok(()))?;
/// // (a, b) occurs five times; then (ab, ab) twice.
/// assert_eq!(trained.tokens[256..], [b"ab".to_vec(), b"abab".to_vec()]);
/// assert_eq!(trained.merges, [(97, 98), (256, 256)]);
/// # Ok::<(), tinylm_tokenizer::Error>(())
/// ```
pub fn bpe(
    words: &Words,
    goal: Goal,
    progress: &mut dyn FnMut(usize, usize) -> Result<(), Error>,
) -> Result<Trained, Error> {
    let target = goal.target;
    let first = 256 + goal.characters.len();
    let mut trainer = Trainer::new(words, goal, &mut || progress(first, target))?;
    let mut merges = Vec::new();
    while trainer.tokens.len() < target {
        let made = trainer.tokens.len();
        let mut interrupt = || progress(made, target);
        interrupt()?;
        let Some((left, right, pair)) = trainer.best() else {
            break;
        };
        merges.push((left, right));
        trainer.merge(left, right, pair, &mut interrupt)?;
    }
    // Told once more at the end, so that a line of progress shows the last number.
    progress(trainer.tokens.len(), target)?;
    Ok(trainer.finish(merges))
}

/// A pair as the heap sees it; out of date once `count` is not the pair's count.
#[derive(Clone, Copy)]
struct Candidate {
    count: i64,
    key: Key,
}

/// The state of a training: the corpus as cells, the pairs in it, and the best of them on a heap.
struct Trainer {
    goal: Goal,
    /// The id of each byte; its number but for [`Ties::HuggingFace`].
    byte_ids: [u32; 256],
    /// The tokens so far; a new one's id is its index.
    tokens: Vec<Vec<u8>>,
    /// Bytes of each token, and so the cells that it takes.
    lengths: Vec<u32>,
    /// A cell for each byte of the words, with borders between words. A token is written in its
    /// first and in its last cell, so both neighbours find it.
    cells: Vec<u32>,
    frequencies: Frequencies,
    pairs: Pairs,
    heap: Heap<Candidate>,
    /// By token: the pair of it and the left token of the merge at hand; of the right token and
    /// it; of it and the new token; of the new token and it. Each only a hint for `Pairs::find`.
    hints: [Vec<u32>; 4],
    /// The places of the merge at hand, and the pairs that it has made.
    places: Vec<u32>,
    raised: Vec<usize>,
}

impl Trainer {
    /// Lays the words out as cells and counts their pairs.
    fn new(words: &Words, goal: Goal, interrupt: &mut Interrupt<'_>) -> Result<Self, Error> {
        let symbols = Units::new(&goal);
        let (tokens, byte_ids) = (symbols.tokens(&goal), symbols.byte_ids);
        let (cells, frequencies) = cells::lay_out(words, &symbols)?;
        let mut pairs = Pairs::new();
        symbols.count_pairs(words, &mut pairs, interrupt)?;
        let mut trainer = Self {
            goal,
            byte_ids,
            hints: [const { Vec::new() }; 4].map(|_: Vec<u32>| vec![0; tokens.len()]),
            lengths: tokens.iter().map(|token| token.len() as u32).collect(),
            tokens,
            cells,
            frequencies,
            pairs,
            heap: Heap::new(Vec::new(), |_, _| false),
            places: Vec::new(),
            raised: Vec::new(),
        };
        let all = 0..trainer.pairs.len();
        let candidates = all.filter_map(|pair| trainer.candidate(pair)).collect();
        // Made of all at once, which is linear.
        trainer.heap = Heap::new(candidates, |a, b| {
            better(&trainer.tokens, trainer.goal.ties, a, b)
        });
        Ok(trainer)
    }

    /// What the heap should know of a pair; None for one that is gone or must not merge.
    fn candidate(&self, pair: usize) -> Option<Candidate> {
        let (key, count) = self.pairs.get(pair)?;
        let (left, right) = pairs::ids(key);
        let length = self.length(left) + self.length(right);
        let bytes = |id: u32| self.tokens[id as usize].as_slice();
        let may = count as u64 >= self.goal.min_frequency
            && length <= self.goal.max_token_length
            && !self.goal.blocked.forbids(bytes(left), bytes(right));
        may.then_some(Candidate { count, key })
    }

    /// The pair to merge, as its ids and its index, if one occurs often enough.
    fn best(&mut self) -> Option<(u32, u32, usize)> {
        let Self {
            heap,
            tokens,
            goal,
            pairs,
            ..
        } = self;
        let better = |a: &Candidate, b: &Candidate| better(tokens, goal.ties, a, b);
        loop {
            let top = heap.pop(better)?;
            // A pair that is not found has gone since.
            let Some(pair) = pairs.find(top.key, 0) else {
                continue;
            };
            let (key, count) = pairs.get(pair)?;
            if count == top.count {
                let (left, right) = pairs::ids(key);
                return Some((left, right, pair));
            }
            // Counts only fall without being pushed again, so this pair cannot come too late.
            if count as u64 >= goal.min_frequency {
                heap.push(Candidate { count, key }, better);
            }
        }
    }

    /// Makes a token of a pair and writes it wherever the pair stands, from the left.
    fn merge(
        &mut self,
        left: u32,
        right: u32,
        pair: usize,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<(), Error> {
        let left_length = self.length(left);
        let merged = self.tokens.len() as u32;
        let bytes = [
            self.tokens[left as usize].as_slice(),
            &self.tokens[right as usize],
        ];
        self.tokens.push(bytes.concat());
        self.lengths
            .push((self.length(left) + self.length(right)) as u32);
        for hints in &mut self.hints {
            hints.push(0);
        }
        // The pair is gone after this merge: nothing will ask for it again.
        let mut places = std::mem::take(&mut self.places);
        self.pairs.take_out(pair, &mut places);
        // From left to right, as encoding merges: in `aaa` the first two.
        debug_assert!(places.is_sorted());
        let stands = |cells: &[u32], place: u32| {
            let start = place as usize;
            // The pair began here once; another merge may have taken one of its tokens.
            (cells[start] ^ left) | (cells[start + left_length] ^ right) == 0
        };
        let mut found = [0; GROUP];
        let ticks = TICK / GROUP;
        for (number, group) in places.chunks(GROUP).enumerate() {
            if number % ticks == ticks - 1 {
                interrupt()?;
            }
            // Without a branch: cells far apart are waited for together, not one after the other.
            let mut many = 0;
            for &place in group {
                found[many] = place;
                many += usize::from(stands(&self.cells, place));
            }
            for &place in &found[..many] {
                // Again, because the place before may have been merged since: `aa` in `aaa`.
                if stands(&self.cells, place) {
                    self.merge_at(place, left, right, merged)?;
                }
            }
        }
        self.places = places;
        // All that this merge has raised is new; some of it is gone again.
        let mut raised = std::mem::take(&mut self.raised);
        for pair in raised.drain(..) {
            if let Some(candidate) = self.candidate(pair) {
                let (tokens, ties) = (&self.tokens, self.goal.ties);
                self.heap.push(candidate, |a, b| better(tokens, ties, a, b));
            }
        }
        self.raised = raised;
        Ok(())
    }

    /// Writes the token `merged` over the pair that begins at `place`.
    #[inline]
    fn merge_at(&mut self, place: u32, left: u32, right: u32, merged: u32) -> Result<(), Error> {
        let start = place as usize;
        let middle = start + self.length(left);
        let end = middle + self.length(right);
        let count = self.frequencies.at(place);
        // Cells before and after always exist: a border is first and last.
        let (before, after) = (self.cells[start - 1], self.cells[end]);
        // Counts change for the pairs with the two neighbours, and nowhere else.
        if before != BORDER {
            let at = start - self.length(before);
            self.lower(0, before, pairs::key(before, left), count);
            self.raise(2, before, pairs::key(before, merged), count, at)?;
        }
        if after != BORDER {
            self.lower(1, after, pairs::key(right, after), count);
            self.raise(3, after, pairs::key(merged, after), count, start)?;
        }
        self.cells[start] = merged;
        // No border any more: what once began here must not be found again.
        // The other cells of the token keep old ids, which nobody reads.
        self.cells[middle] = merged;
        self.cells[end - 1] = merged;
        Ok(())
    }

    /// Bytes of a token, and so the cells that it takes.
    fn length(&self, token: u32) -> usize {
        self.lengths[token as usize] as usize
    }

    /// Takes `count` from a pair. The heap is not told: `best` looks again at what it takes.
    fn lower(&mut self, side: usize, token: u32, key: Key, count: i64) {
        let hint = &mut self.hints[side][token as usize];
        if let Some(pair) = self.pairs.find(key, *hint) {
            *hint = pair as u32;
            self.pairs.lower(pair, count);
        }
    }

    /// Adds `count` to a pair that begins at `place`.
    fn raise(
        &mut self,
        side: usize,
        token: u32,
        key: Key,
        count: i64,
        place: usize,
    ) -> Result<(), Error> {
        let hint = &mut self.hints[side][token as usize];
        let pair = self.pairs.find(key, *hint).unwrap_or_else(|| {
            let pair = self.pairs.insert(key);
            self.raised.push(pair);
            pair
        });
        *hint = pair as u32;
        self.pairs.add(pair, count, place as u32)
    }

    /// The vocabulary, with the bytes in their own order.
    fn finish(self, mut merges: Vec<(u32, u32)>) -> Trained {
        let Self {
            tokens: mut learned,
            byte_ids,
            ..
        } = self;
        let mut bytes = [0; 256];
        for (byte, &id) in (0..).zip(&byte_ids) {
            bytes[id as usize] = byte;
        }
        let own = |id: u32| bytes.get(id as usize).copied().unwrap_or(id);
        for (left, right) in &mut merges {
            (*left, *right) = (own(*left), own(*right));
        }
        let mut tokens = Trained::bytes();
        tokens.extend(learned.drain(256..));
        Trained { tokens, merges }
    }
}

/// Whether `a` is merged before `b`. The order is total: no two candidates are equal twice.
///
/// The bytes are compared only where counts tie.
fn better(tokens: &[Vec<u8>], ties: Ties, a: &Candidate, b: &Candidate) -> bool {
    if a.count != b.count {
        return a.count > b.count;
    }
    if ties == Ties::Bytes {
        let bytes = |c: &Candidate| {
            let (left, right) = pairs::ids(c.key);
            (&tokens[left as usize], &tokens[right as usize])
        };
        return bytes(a) > bytes(b);
    }
    a.key < b.key
}
