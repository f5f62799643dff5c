//! Merging the bytes of one piece into tokens.
//!
//! The piece starts as one token per byte. Adjacent tokens merge in the order of their rank, the
//! leftmost pair first where ranks are equal, until no two neighbours have a rank.
//!
//! A piece is usually a word with the space before it, so a linear scan over the live pairs beats
//! any queue: the whole state is a few cache lines. It costs `O(n^2)` for n bytes. From
//! [`HEAP_FROM`] bytes on a heap keeps the cost at `O(n log n)`, which makes a megabyte of `x`
//! harmless. Both give the same tokens.
//!
//! Defined by `encode` and `encode_ranks` in `python/tinylm/reference/byte_bpe.py`, held to them
//! by the rungs `encode`, `encode whole pieces` and `encode ranks`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

use crate::cache::Key;
use crate::whole::Whole;
use crate::{Error, Interrupt};

/// Pieces of this many bytes and more are merged with a heap.
///
/// Measured with pieces of n letters from Python's library and a vocabulary of 8,192, on one core
/// of a busy machine: the scan makes 20 MB/s of pieces of 25 bytes where the heap makes 8, and 1.5
/// of 800 bytes where the heap makes 7. They are equal somewhere between 100 and 150 bytes.
const HEAP_FROM: usize = 100;
/// Merges between two calls of the interrupt: at the heap's 7 MB/s, about 5 ms.
const TICK: usize = 1 << 15;
/// The rank of a pair that does not merge: above every rank, so that a search for the lowest needs
/// no case of its own.
const NEVER: u32 = u32::MAX;
/// No neighbour. It is no index of a node: `nodes.get` gives None for it, which ends the list at
/// both sides.
const NONE: u32 = u32::MAX;

/// When a pair merges, and into what.
#[derive(Debug, Clone, Copy)]
struct Merge {
    rank: u32,
    id: u32,
}

/// The merge of two tokens that do not merge. Nobody reads its id.
const NO_MERGE: Merge = Merge { rank: NEVER, id: 0 };

/// The merges of a vocabulary.
#[derive(Debug)]
pub(crate) struct Bpe {
    /// The id of each byte; ids need not be in the order of the bytes.
    byte_ids: [u32; 256],
    /// Merges of two single bytes, by the bytes: the first look-up of every piece.
    byte_pairs: Vec<Merge>,
    /// All merges by `pair(left, right)`.
    pairs: FxHashMap<u64, Merge>,
    /// Pieces that stay whole, if the vocabulary has that rule.
    whole: Option<Whole>,
}

/// Memory that merging reuses from piece to piece.
#[derive(Default)]
pub(crate) struct Scratch {
    /// For the scan.
    parts: Vec<Part>,
    /// For the heap, with the heap's own memory.
    nodes: Vec<Node>,
    heap: Vec<Reverse<u64>>,
}

/// A token and the merge of it with the token after it.
#[derive(Clone, Copy)]
struct Part {
    id: u32,
    merge: Merge,
}

/// A [`Part`] in a doubly linked list.
#[derive(Clone, Copy)]
struct Node {
    part: Part,
    previous: u32,
    next: u32,
}

/// Two numbers in one, ordered by the first.
fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// All ways to make a token from two others, as (rank, left, right, id); the rank is the id.
///
/// A token of n bytes has n - 1 ways to be cut in two; each half is looked up by its bytes.
pub(crate) fn every_split(
    tokens: &[(Vec<u8>, u32)],
    id_of: &FxHashMap<&[u8], u32>,
) -> Vec<(u32, u32, u32, u32)> {
    let mut splits = Vec::new();
    for (token, id) in tokens {
        for middle in 1..token.len() {
            if let (Some(&left), Some(&right)) =
                (id_of.get(&token[..middle]), id_of.get(&token[middle..]))
            {
                splits.push((*id, left, right, *id));
            }
        }
    }
    splits
}

impl Bpe {
    /// From tokens and either their merges in order, or None for tiktoken's rule: any two
    /// neighbours whose bytes are a token merge, the lowest id first.
    ///
    /// # Errors
    ///
    /// [`Error::Vocabulary`] if a token is empty or repeated, if a byte has no token, or if a merge
    /// is repeated, or names or makes a token that does not exist.
    pub(crate) fn new(
        tokens: &[(Vec<u8>, u32)],
        merges: Option<&[(u32, u32)]>,
        whole_pieces: bool,
        missing: &[u8],
    ) -> Result<Self, Error> {
        // Borrowed from `tokens`: nothing is copied for what is needed only while building.
        let mut id_of = FxHashMap::default();
        for (token, id) in tokens {
            if token.is_empty() {
                return Err(Error::Vocabulary(format!("token {id} is empty")));
            }
            if let Some(other) = id_of.insert(token.as_slice(), *id) {
                let message = format!("tokens {other} and {id} have the same bytes");
                return Err(Error::Vocabulary(message));
            }
        }
        // Ids that no token has, for bytes that no piece has.
        let mut unused = tokens.iter().map(|(_, id)| id + 1).max().unwrap_or(0)..;
        let mut byte_ids = [0; 256];
        for (byte, slot) in (0..=255u8).zip(&mut byte_ids) {
            let id = id_of.get([byte].as_slice()).copied();
            let id = id.or_else(|| unused.next().filter(|_| missing.contains(&byte)));
            *slot = id.ok_or_else(|| {
                Error::Vocabulary(format!(
                    "byte 0x{byte:02x} is not a token; all 256 bytes must be, or some text \
                     could not be encoded"
                ))
            })?;
        }
        let ranked = match merges {
            Some(merges) => in_order(tokens, merges, &id_of)?,
            None => every_split(tokens, &id_of),
        };
        let mut pairs = FxHashMap::default();
        for (rank, left, right, id) in ranked {
            if pairs
                .insert(pair(left, right), Merge { rank, id })
                .is_some()
            {
                let message = format!("the merge of tokens {left} and {right} is listed twice");
                return Err(Error::Vocabulary(message));
            }
        }
        // A table of 65,536 merges: most look-ups are for two bytes, and they need no hash.
        let byte_pairs = byte_ids
            .iter()
            .flat_map(|&left| byte_ids.iter().map(move |&right| pair(left, right)))
            .map(|key| pairs.get(&key).copied().unwrap_or(NO_MERGE))
            .collect();
        let whole = whole_pieces.then(|| Whole::new(tokens));
        Ok(Self {
            byte_ids,
            byte_pairs,
            pairs,
            whole,
        })
    }

    /// Appends the tokens of `piece`, whose [`crate::cache::key`] is `key` if it is short.
    ///
    /// # Errors
    ///
    /// [`Error::TooLong`] for a piece of 4 GiB or more, and any error that `interrupt` returns.
    pub(crate) fn encode(
        &self,
        piece: &[u8],
        key: Option<Key>,
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<(), Error> {
        if let Some(id) = self.whole.as_ref().and_then(|whole| whole.get(piece, key)) {
            out.push(id);
            return Ok(());
        }
        // The kinds byte, char and whitespace have no merges; what is no whole piece is bytes.
        if self.pairs.is_empty() {
            out.extend(piece.iter().map(|&byte| self.byte_ids[usize::from(byte)]));
            return Ok(());
        }
        if piece.len() < HEAP_FROM {
            self.merge_short(piece, &mut scratch.parts, out);
            return Ok(());
        }
        self.merge_long(piece, scratch, out, interrupt)
    }

    /// The merge of two tokens, or [`NO_MERGE`].
    fn merge_of(&self, left: u32, right: u32) -> Merge {
        self.pairs
            .get(&pair(left, right))
            .copied()
            .unwrap_or(NO_MERGE)
    }

    /// The bytes of `piece` as parts with the merges between them.
    fn parts<'a>(&'a self, piece: &'a [u8]) -> impl Iterator<Item = Part> + 'a {
        piece.iter().enumerate().map(|(at, &byte)| {
            let merge = match piece.get(at + 1) {
                Some(&next) => self.byte_pairs[usize::from(byte) << 8 | usize::from(next)],
                None => NO_MERGE,
            };
            Part {
                id: self.byte_ids[usize::from(byte)],
                merge,
            }
        })
    }

    /// Merges a short piece: each round looks through all parts for the lowest rank.
    ///
    /// Quadratic in the piece, which [`HEAP_FROM`] bounds.
    fn merge_short(&self, piece: &[u8], parts: &mut Vec<Part>, out: &mut Vec<u32>) {
        parts.clear();
        parts.extend(self.parts(piece));
        loop {
            let mut best = 0;
            let mut lowest = NEVER;
            for (at, part) in parts.iter().enumerate() {
                // Strictly lower: of equal ranks the leftmost stays.
                if part.merge.rank < lowest {
                    (best, lowest) = (at, part.merge.rank);
                }
            }
            if lowest == NEVER {
                break;
            }
            let id = parts[best].merge.id;
            // Moves the rest down; `merge_long` has links instead.
            parts.remove(best + 1);
            let merge = parts
                .get(best + 1)
                .map_or(NO_MERGE, |next| self.merge_of(id, next.id));
            parts[best] = Part { id, merge };
            // Only the two pairs around the new token have changed.
            if best > 0 {
                parts[best - 1].merge = self.merge_of(parts[best - 1].id, id);
            }
        }
        out.extend(parts.iter().map(|part| part.id));
    }

    /// Merges a long piece: the parts are a linked list, the heap has the merges to come.
    ///
    /// Entries of the heap are never removed. One that a merge nearby made wrong is told by its
    /// rank when it comes up.
    ///
    /// The heap gets one entry per byte and at most two per merge, so 3n in all.
    fn merge_long(
        &self,
        piece: &[u8],
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<(), Error> {
        // Positions are 32 bits, and NONE is not one of them.
        if piece.len() >= NONE as usize {
            return Err(Error::TooLong {
                what: "a piece of the text",
                length: piece.len(),
            });
        }
        let nodes = &mut scratch.nodes;
        nodes.clear();
        // Rank above, position below: the leftmost of equal ranks comes first.
        let mut entries = std::mem::take(&mut scratch.heap);
        entries.clear();
        let mut heap = BinaryHeap::from(entries);
        for (at, part) in (0u32..).zip(self.parts(piece)) {
            if at as usize % TICK == TICK - 1 {
                interrupt()?;
            }
            nodes.push(Node {
                part,
                // Of the first node this is NONE.
                previous: at.wrapping_sub(1),
                next: at + 1,
            });
            heap.extend(entry(&part, at));
        }
        if let Some(last) = nodes.last_mut() {
            last.next = NONE;
        }
        let mut ticks = 0usize;
        while let Some(Reverse(top)) = heap.pop() {
            ticks += 1;
            if ticks % TICK == TICK - 1 {
                interrupt()?;
            }
            let (rank, at) = ((top >> 32) as u32, top as u32);
            let node = nodes[at as usize];
            // Left behind by a merge nearby; what replaced it is in the heap
            // too. If the ranks are equal, the pair that is here now is due, whoever pushed it.
            if node.part.merge.rank != rank {
                continue;
            }
            let (id, gone) = (node.part.merge.id, nodes[node.next as usize]);
            // What is merged away must not be taken for a live pair when its entry comes up.
            nodes[node.next as usize].part.merge = NO_MERGE;
            let merge = match nodes.get_mut(gone.next as usize) {
                Some(after) => {
                    after.previous = at;
                    let right = after.part.id;
                    self.merge_of(id, right)
                }
                None => NO_MERGE,
            };
            nodes[at as usize] = Node {
                part: Part { id, merge },
                next: gone.next,
                ..node
            };
            heap.extend(entry(&Part { id, merge }, at));
            if let Some(before) = nodes.get_mut(node.previous as usize) {
                before.part.merge = self.merge_of(before.part.id, id);
                heap.extend(entry(&before.part, node.previous));
            }
        }
        let mut at = 0;
        while let Some(node) = nodes.get(at as usize) {
            out.push(node.part.id);
            at = node.next;
        }
        scratch.heap = heap.into_vec();
        Ok(())
    }
}

/// The entry of the heap for a part: nothing if it does not merge.
fn entry(part: &Part, at: u32) -> Option<Reverse<u64>> {
    let rank = part.merge.rank;
    (rank != NEVER).then(|| Reverse(pair(rank, at)))
}

/// The listed merges as (rank, left, right, id).
fn in_order(
    tokens: &[(Vec<u8>, u32)],
    merges: &[(u32, u32)],
    id_of: &FxHashMap<&[u8], u32>,
) -> Result<Vec<(u32, u32, u32, u32)>, Error> {
    let bytes_of: FxHashMap<u32, &[u8]> = tokens
        .iter()
        .map(|(token, id)| (*id, token.as_slice()))
        .collect();
    // One buffer for all: a vocabulary has hundreds of thousands of merges.
    let mut joined = Vec::new();
    (0u32..)
        .zip(merges)
        .map(|(rank, &(left, right))| {
            let missing = |what: String| {
                Error::Vocabulary(format!("merge {rank} of tokens {left} and {right}: {what}"))
            };
            joined.clear();
            for id in [left, right] {
                let part = bytes_of
                    .get(&id)
                    .ok_or_else(|| missing(format!("no token {id}")))?;
                joined.extend_from_slice(part);
            }
            let id = id_of
                .get(joined.as_slice())
                .ok_or_else(|| missing("its result is not a token".into()))?;
            Ok((rank, left, right, *id))
        })
        .collect()
}
