//! BPE-dropout: merging in which each merge that is due may be passed over.
//!
//! In each round the merges that could be applied are tried in their order, the lowest rank first
//! and the leftmost of equal ones. Each is passed over with the probability p; the first that is
//! not is applied. If all are passed over, the piece stays as it is. So p = 0 is plain merging and
//! p = 1 leaves single symbols. This is what Hugging Face's `tokenizers` does.
//!
//! Provilkov, Emelianenko and Voita 2020, arXiv:1910.13267. Defined by `merge_all` in
//! `python/tinylm/reference/char_bpe.py`, held to it by the rungs `bpe dropout` and
//! `char bpe dropout`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::draws::Draws;
use crate::{Error, Interrupt};

/// Merges tried between two calls of the interrupt: about 5 ms.
const TICK: usize = 1 << 15;
/// No neighbour.
const NONE: u32 = u32::MAX;

/// A symbol in a doubly linked list, and its merge with the next as (rank, id).
#[derive(Clone, Copy)]
struct Node {
    id: u32,
    merge: Option<(u32, u32)>,
    previous: u32,
    next: u32,
}

/// Appends what merging makes of `symbols`, where `merge_of` gives rank and id for two neighbours.
///
/// # Errors
///
/// What `interrupt` returns.
pub(crate) fn merge(
    symbols: &[u32],
    merge_of: impl Fn(u32, u32) -> Option<(u32, u32)>,
    p: f64,
    draws: &mut Draws,
    out: &mut Vec<u32>,
    interrupt: &mut Interrupt<'_>,
) -> Result<(), Error> {
    let mut nodes: Vec<Node> = Vec::with_capacity(symbols.len());
    for (at, &id) in (0u32..).zip(symbols) {
        let after = symbols.get(at as usize + 1);
        nodes.push(Node {
            id,
            merge: after.and_then(|&after| merge_of(id, after)),
            previous: at.wrapping_sub(1),
            next: if after.is_some() { at + 1 } else { NONE },
        });
    }
    // Rank above, position below: the leftmost of equal ranks comes first.
    let entry = |merge: Option<(u32, u32)>, at: u32| {
        merge.map(|(rank, _)| Reverse(u64::from(rank) << 32 | u64::from(at)))
    };
    let entries = (0u32..)
        .zip(&nodes)
        .filter_map(|(at, n)| entry(n.merge, at));
    let mut heap: BinaryHeap<_> = entries.collect();
    // What this round has passed over; the next one tries it again.
    let mut passed: Vec<Reverse<u64>> = Vec::new();
    let mut ticks = 0usize;
    while let Some(Reverse(top)) = heap.pop() {
        ticks += 1;
        if ticks.is_multiple_of(TICK) {
            interrupt()?;
        }
        let (rank, at) = ((top >> 32) as u32, top as u32);
        let node = nodes[at as usize];
        // Left behind by a merge nearby. Two merges of one place may have one rank, and then there
        // are two entries for the one that stands there now, one after the other.
        let (Some((now, id)), Some(gone)) = (node.merge, nodes.get(node.next as usize)) else {
            continue;
        };
        if now != rank || passed.last() == Some(&Reverse(top)) {
            continue;
        }
        if draws.next() < p {
            passed.push(Reverse(top));
            continue;
        }
        let after = gone.next;
        // What is merged away must not be taken for a live pair when its entry comes up.
        nodes[node.next as usize].merge = None;
        let mut merge = None;
        if let Some(right) = nodes.get_mut(after as usize) {
            right.previous = at;
            merge = merge_of(id, right.id);
        }
        nodes[at as usize] = Node {
            id,
            merge,
            previous: node.previous,
            next: after,
        };
        heap.extend(entry(merge, at));
        if let Some(left) = nodes.get_mut(node.previous as usize) {
            left.merge = merge_of(left.id, id);
            heap.extend(entry(left.merge, node.previous));
        }
        heap.extend(passed.drain(..));
    }
    let mut at = 0;
    while let Some(node) = nodes.get(at as usize) {
        out.push(node.id);
        at = node.next;
    }
    Ok(())
}
