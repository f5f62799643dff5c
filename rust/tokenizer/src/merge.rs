//! Merging the bytes of one piece into tokens: the two ways for short stretches.
//!
//! A stretch starts as one token per byte. Adjacent tokens merge in the order of their rank, the
//! leftmost pair first where ranks are equal, until no two neighbours have a rank.
//!
//! [`Scan`] looks through all pairs for the lowest rank each time. The pairs stay where they are
//! and a rank has its place in its low byte, so a round is one minimum over an array of numbers,
//! which the compiler makes of wide instructions, and two look-ups. That is `O(n^2)` for n bytes,
//! of which there are at most [`SCAN`]. [`Heap`] takes `O(n log n)`; only stretches above that go
//! there. [`crate::long`] cuts a long piece into short stretches.
//!
//! Both are held to `python/tinylm/reference/byte_bpe.py` by the rungs of [`crate::bpe`].

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::pairs::{Merges, NEVER};

/// Bytes that a [`Scan`] takes at most: places and their end fit one byte.
pub(crate) const SCAN: usize = 255;
/// Ranks are below this, so that a rank and a place fit one signed number.
pub(crate) const RANKS: usize = (1 << 23) - 1;
/// No merge: above every rank and place. Signed, because x86-64 without extensions has no unsigned
/// minimum of 32 bits.
const NONE: i32 = i32::MAX;

/// Pieces that are merged side by side. Their states are 16 KiB.
pub(crate) const LANES: usize = 8;

/// Memory that merging reuses from piece to piece.
#[derive(Default)]
pub(crate) struct Scratch {
    pub(crate) scans: Box<[Scan; LANES]>,
    heap: Heap,
    /// The tokens of a window, and those of two neighbours.
    pub(crate) window: Vec<u32>,
    pub(crate) border: Vec<u32>,
}

impl Scratch {
    /// Appends the tokens of a stretch of bytes, below 4 GiB.
    pub(crate) fn merge(&mut self, merges: &Merges, bytes: &[u8], out: &mut Vec<u32>) {
        if bytes.len() <= SCAN {
            self.scans[0].merge(merges, bytes, out);
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
    /// The place of the token made last.
    at: u8,
}

/// Merges several pieces side by side: while one waits for the ranks of its new pairs, the others
/// go on. `each` gets the number of a piece and its tokens.
///
/// A piece has 1 to [`SCAN`] bytes, and there are at most as many as `scans`.
pub(crate) fn side_by_side<'a>(
    scans: &mut [Scan],
    merges: &Merges,
    pieces: impl Iterator<Item = &'a [u8]>,
    tokens: &mut Vec<u32>,
    mut each: impl FnMut(usize, &[u32]),
) {
    let (mut busy, mut all) = (0u32, 0);
    for (number, (scan, piece)) in scans.iter_mut().zip(pieces).enumerate() {
        scan.begin(merges, piece);
        busy |= 1 << number;
        all = number + 1;
    }
    while busy != 0 {
        for (number, scan) in scans.iter_mut().enumerate() {
            if busy >> number & 1 == 0 {
                continue;
            }
            if scan.lowest(merges) {
                let (before, id, after) = scan.around();
                for (left, right) in [(before, Some(id)), (Some(id), after)] {
                    if let (Some(left), Some(right)) = (left, right) {
                        merges.pairs.prefetch(left, right);
                    }
                }
            } else {
                busy &= !(1 << number);
            }
        }
        for (number, scan) in scans.iter_mut().enumerate() {
            if busy >> number & 1 == 1 {
                scan.renew(merges);
            }
        }
    }
    for (number, scan) in scans[..all].iter().enumerate() {
        tokens.clear();
        scan.append(tokens);
        each(number, tokens);
    }
}

impl Default for Scan {
    fn default() -> Self {
        Self {
            pairs: [NONE; SCAN + 1],
            ids: [0; SCAN + 1],
            next: [0; SCAN + 1],
            previous: [0; SCAN + 1],
            end: 0,
            at: 0,
        }
    }
}

impl Scan {
    /// Appends the tokens of `piece`, of 1 to [`SCAN`] bytes.
    pub(crate) fn merge(&mut self, merges: &Merges, piece: &[u8], out: &mut Vec<u32>) {
        self.begin(merges, piece);
        while self.lowest(merges) {
            self.renew(merges);
        }
        self.append(out);
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

    /// Merges the pair of the lowest rank; false if none is left.
    ///
    /// Then the two pairs around the new token have changed, which is left to [`Scan::renew`].
    fn lowest(&mut self, merges: &Merges) -> bool {
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
            return false;
        }
        self.at = lowest as u8;
        let at = usize::from(self.at);
        let right = usize::from(self.next[at]);
        let after = self.next[right];
        self.ids[at] = merges.pairs.made((lowest >> 8) as u32);
        self.next[at] = after;
        self.pairs[right] = NONE;
        if usize::from(after) < self.end {
            self.previous[usize::from(after)] = self.at;
        }
        true
    }

    /// The pairs around the token made last: with the one before it and the one after it.
    #[inline]
    fn around(&self) -> (Option<u32>, u32, Option<u32>) {
        let at = usize::from(self.at);
        let before = (at > 0).then(|| self.ids[usize::from(self.previous[at])]);
        let after = usize::from(self.next[at]);
        let after = (after < self.end).then(|| self.ids[after]);
        (before, self.ids[at], after)
    }

    /// Looks up the pairs that [`Scan::lowest`] has changed.
    fn renew(&mut self, merges: &Merges) {
        let (before, id, after) = self.around();
        self.set(
            self.at,
            after.map_or(NEVER, |after| merges.pairs.rank(id, after)),
        );
        if let Some(before) = before {
            self.set(
                self.previous[usize::from(self.at)],
                merges.pairs.rank(before, id),
            );
        }
    }

    /// Appends the tokens.
    fn append(&self, out: &mut Vec<u32>) {
        let mut at = 0;
        while at < self.end {
            out.push(self.ids[at]);
            at = usize::from(self.next[at]);
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
