//! Merging the bytes of one piece into tokens: the two ways for short stretches.
//!
//! A stretch starts as one token per byte. Adjacent tokens merge in the order of their rank, the
//! leftmost pair first where ranks are equal, until no two neighbours have a rank.
//!
//! Words, of at most [`WORD`] bytes, are nearly all. [`merge_word`] keeps the ranks of their pairs
//! side by side and looks through all of them for the lowest each time: six rounds for the usual
//! word, of which the look-ups of two pairs are half the time. It reads one number after the other
//! on purpose. A wide load of what was stored in parts just before waits for these stores: with
//! wide instructions a word takes 350 ns, so 260 (English names and rare words, cl100k).
//!
//! [`Scan`] does the same for up to [`SCAN`] bytes; there wide instructions pay. The pairs stay
//! where they are and a rank has its place in its low byte, so a round is one minimum over an array
//! of numbers and two look-ups. Both are `O(n^2)` for n bytes. [`Heap`] takes `O(n log n)`; only
//! stretches above that go there. [`crate::long`] cuts a long piece into short stretches.
//!
//! What did not help: merging eight words side by side, so that one waits for memory while the
//! others go on (340 ns per word: branches are what costs, not memory), and tokens found from the
//! left in a trie with a check of neighbours (420 ns, and 25 ms to build the trie).
//!
//! All are held to `python/tinylm/reference/byte_bpe.py` by the rungs of [`crate::bpe`].

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::pairs::{Merges, NEVER};

/// Bytes that [`merge_word`] takes at most: places fit four bits.
const WORD: usize = 16;
/// Bytes that a [`Scan`] takes at most: places and their end fit one byte.
pub(crate) const SCAN: usize = 255;
/// Ranks are below this, so that a rank and a place fit one signed number.
pub(crate) const RANKS: usize = (1 << 23) - 1;
/// No merge: above every rank and place. Signed, because x86-64 without extensions has no unsigned
/// minimum of 32 bits.
const NONE: i32 = i32::MAX;

/// Memory that merging reuses from piece to piece.
#[derive(Default)]
pub(crate) struct Scratch {
    scan: Box<Scan>,
    heap: Heap,
    /// The tokens of a window, and those of two neighbours.
    pub(crate) window: Vec<u32>,
    pub(crate) border: Vec<u32>,
}

impl Scratch {
    /// Appends the tokens of a stretch of bytes, below 4 GiB.
    pub(crate) fn merge(&mut self, merges: &Merges, bytes: &[u8], out: &mut Vec<u32>) {
        if bytes.len() <= WORD {
            merge_word(merges, bytes, out);
        } else if bytes.len() <= SCAN {
            self.scan.merge(merges, bytes, out);
        } else {
            self.heap.merge(merges, bytes, out);
        }
    }
}

/// The state of a stretch of at most [`SCAN`] bytes; each array is by the place of a token's first
/// byte.
pub(crate) struct Scan {
    /// Rank and place of the merge with the next token, or [`NONE`].
    pairs: [i32; SCAN + 1],
    ids: [u32; SCAN + 1],
    next: [u8; SCAN + 1],
    previous: [u8; SCAN + 1],
    /// The number of bytes.
    end: usize,
}

/// Appends the tokens of at most [`WORD`] bytes.
fn merge_word(merges: &Merges, bytes: &[u8], out: &mut Vec<u32>) {
    // Above every rank, with room for a place below it.
    const NONE: u32 = u32::MAX >> 4;
    let (mut ids, mut ranks) = ([0; WORD], [NONE; WORD]);
    for (id, &byte) in ids.iter_mut().zip(bytes) {
        *id = merges.byte_id(byte);
    }
    for (rank, pair) in ranks.iter_mut().zip(bytes.windows(2)) {
        *rank = merges.rank_of_bytes(pair[0], pair[1]).min(NONE);
    }
    let mut end = bytes.len();
    loop {
        // Of equal ranks the leftmost has the lowest place.
        let places = ranks[..end].iter().zip(0..);
        let lowest = places.fold(u32::MAX, |low, (rank, at)| low.min(rank << 4 | at));
        let (rank, at) = (lowest >> 4, (lowest & 15) as usize);
        if rank == NONE {
            break;
        }
        let id = merges.pairs.made(rank);
        ids[at] = id;
        // What is behind moves up: there are no gaps to step over.
        end -= 1;
        for next in at + 1..end {
            ids[next] = ids[next + 1];
            ranks[next] = ranks[next + 1];
        }
        ranks[at] = NONE;
        if at + 1 < end {
            ranks[at] = merges.pairs.rank(id, ids[at + 1]).min(NONE);
        }
        if at > 0 {
            ranks[at - 1] = merges.pairs.rank(ids[at - 1], id).min(NONE);
        }
    }
    out.extend_from_slice(&ids[..end]);
}

impl Default for Scan {
    fn default() -> Self {
        Self {
            pairs: [NONE; SCAN + 1],
            ids: [0; SCAN + 1],
            next: [0; SCAN + 1],
            previous: [0; SCAN + 1],
            end: 0,
        }
    }
}

impl Scan {
    /// Appends the tokens of `piece`, of 1 to [`SCAN`] bytes.
    pub(crate) fn merge(&mut self, merges: &Merges, piece: &[u8], out: &mut Vec<u32>) {
        self.begin(merges, piece);
        while let Some(at) = self.lowest(merges) {
            self.renew(merges, at);
        }
        let mut at = 0;
        while at < self.end {
            out.push(self.ids[at]);
            at = usize::from(self.next[at]);
        }
    }

    /// Takes a piece: one token for each byte.
    fn begin(&mut self, merges: &Merges, piece: &[u8]) {
        self.end = piece.len();
        for (at, &byte) in piece.iter().enumerate() {
            self.ids[at] = merges.byte_id(byte);
            self.next[at] = (at + 1) as u8;
            self.previous[at] = at.wrapping_sub(1) as u8;
            let next = piece.get(at + 1);
            let rank = next.map_or(NEVER, |&next| merges.rank_of_bytes(byte, next));
            self.set(at as u8, rank);
        }
        // Whole groups of eight, so that the minimum needs no loop over single numbers.
        let padded = self.padded();
        self.pairs[self.end..padded].fill(NONE);
    }

    /// The length in whole groups of eight.
    fn padded(&self) -> usize {
        (self.end + 7) & !7
    }

    /// Merges the pair of the lowest rank and gives its place; None if no pair is left.
    ///
    /// Then the two pairs around the new token have changed, which is left to [`Scan::renew`].
    fn lowest(&mut self, merges: &Merges) -> Option<u8> {
        let lowest =
            self.pairs[..self.padded()]
                .chunks_exact(8)
                .fold([NONE; 8], |mut low, group| {
                    for (low, &pair) in low.iter_mut().zip(group) {
                        *low = (*low).min(pair);
                    }
                    low
                });
        // Of equal ranks the leftmost has the lowest place.
        let lowest = lowest.into_iter().fold(NONE, i32::min);
        if lowest == NONE {
            return None;
        }
        let place = lowest as u8;
        let at = usize::from(place);
        let right = usize::from(self.next[at]);
        let after = self.next[right];
        self.ids[at] = merges.pairs.made((lowest >> 8) as u32);
        self.next[at] = after;
        self.pairs[right] = NONE;
        if usize::from(after) < self.end {
            self.previous[usize::from(after)] = place;
        }
        Some(place)
    }

    /// Looks up the pairs of the token at `place` with the one before it and the one after it.
    fn renew(&mut self, merges: &Merges, place: u8) {
        let at = usize::from(place);
        let (id, after) = (self.ids[at], usize::from(self.next[at]));
        let mut rank = NEVER;
        if after < self.end {
            rank = merges.pairs.rank(id, self.ids[after]);
        }
        self.set(place, rank);
        if at > 0 {
            let before = self.previous[at];
            let rank = merges.pairs.rank(self.ids[usize::from(before)], id);
            self.set(before, rank);
        }
    }

    /// Notes the rank of the token at `at` with the next one.
    #[inline]
    fn set(&mut self, at: u8, rank: u32) {
        self.pairs[usize::from(at)] = if rank == NEVER {
            NONE
        } else {
            (rank << 8) as i32 | i32::from(at)
        };
    }
}

/// The state of a long stretch, and the merges to come.
#[derive(Default)]
struct Heap {
    nodes: Vec<Node>,
    entries: Vec<Reverse<u64>>,
}

/// A token in a doubly linked list, and the rank of its merge with the next one.
#[derive(Clone, Copy)]
struct Node {
    id: u32,
    rank: u32,
    previous: u32,
    next: u32,
}

impl Heap {
    /// Appends the tokens of `piece`, which must be below 4 GiB.
    ///
    /// Entries of the heap are never removed. One that a merge nearby made wrong is told by its
    /// rank when it comes up. The heap gets one entry per byte and at most two per merge, so 3n in
    /// all.
    pub(crate) fn merge(&mut self, merges: &Merges, piece: &[u8], out: &mut Vec<u32>) {
        let nodes = &mut self.nodes;
        nodes.clear();
        let mut entries = std::mem::take(&mut self.entries);
        entries.clear();
        // Rank above, position below: the leftmost of equal ranks comes first.
        let entry = |rank: u32, at: u32| {
            (rank != NEVER).then(|| Reverse(u64::from(rank) << 32 | u64::from(at)))
        };
        for (at, &byte) in (0u32..).zip(piece) {
            let next = piece.get(at as usize + 1);
            let rank = next.map_or(NEVER, |&next| merges.rank_of_bytes(byte, next));
            nodes.push(Node {
                id: merges.byte_id(byte),
                rank,
                // Of the first node this is no index, and neither is the next of the last.
                previous: at.wrapping_sub(1),
                next: at + 1,
            });
            entries.extend(entry(rank, at));
        }
        let mut heap = BinaryHeap::from(entries);
        while let Some(Reverse(top)) = heap.pop() {
            let (rank, at) = ((top >> 32) as u32, top as u32);
            let node = nodes[at as usize];
            // Left behind by a merge nearby; what replaced it is in the heap too. If the ranks are
            // equal, the pair that is here now is due, whoever pushed it.
            if node.rank != rank {
                continue;
            }
            let (id, gone) = (merges.pairs.made(rank), nodes[node.next as usize]);
            // What is merged away must not be taken for a live pair when its entry comes up.
            nodes[node.next as usize].rank = NEVER;
            let rank = match nodes.get_mut(gone.next as usize) {
                Some(after) => {
                    after.previous = at;
                    merges.pairs.rank(id, after.id)
                }
                None => NEVER,
            };
            nodes[at as usize] = Node {
                id,
                rank,
                next: gone.next,
                ..node
            };
            heap.extend(entry(rank, at));
            if let Some(before) = nodes.get_mut(node.previous as usize) {
                before.rank = merges.pairs.rank(before.id, id);
                heap.extend(entry(before.rank, node.previous));
            }
        }
        let mut at = 0;
        while let Some(node) = nodes.get(at as usize) {
            out.push(node.id);
            at = node.next;
        }
        self.entries = heap.into_vec();
    }
}
