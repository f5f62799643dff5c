//! Unigram beyond the best segmentation: the n best ones, and one drawn by its probability.
//!
//! The n best: every place of a piece keeps the n best ways to get there, each as the last token
//! and the number of the way to its start. One drawn: the weights of all segmentations are summed
//! from the left, then tokens are drawn from the right (forward filtering, backward sampling), so
//! no list of segmentations is needed.
//!
//! Kudo 2018, arXiv:1804.10959, section 3.2. Defined by `n_best` and `sample` in
//! `python/tinylm/reference/unigram.py`, held to them by the rungs `unigram n best` and
//! `unigram sample`.

use crate::draws::Draws;
use crate::unigram::{Edge, Unigram};
use crate::{Error, Interrupt};

/// Tokens between two calls of the interrupt.
const TICK: usize = 1 << 14;

/// A way to a place: its score, the last token, and the number of the way to where that begins.
#[derive(Clone, Copy)]
struct Way {
    score: f64,
    last: Edge,
    before: u32,
}

/// A segmentation of a piece: its score with those before it, the number of the one before it, and
/// its tokens.
pub(crate) struct Found {
    pub(crate) score: f64,
    pub(crate) before: u32,
    pub(crate) ids: Vec<u32>,
}

/// The `n` best segmentations of `piece`, the best first, each after one of those that have the
/// scores `before`. Of equal ones the one whose last token begins first comes first.
///
/// # Errors
///
/// What `interrupt` returns.
pub(crate) fn n_best(
    model: &Unigram,
    piece: &[u8],
    before: &[f64],
    n: usize,
    interrupt: &mut Interrupt<'_>,
) -> Result<Vec<Found>, Error> {
    let none = Edge {
        start: 0,
        end: 0,
        token: 0,
        score: 0.0,
    };
    let mut ways: Vec<Vec<Way>> = vec![Vec::new(); piece.len() + 1];
    ways[0] = (0..)
        .zip(before)
        .map(|(number, &score)| Way {
            score,
            last: none,
            before: number,
        })
        .collect();
    let cut = |ways: &mut Vec<Way>| {
        // Stable, so that of equal ones those stay first that came first.
        ways.sort_by(|a, b| b.score.total_cmp(&a.score));
        ways.truncate(n);
    };
    let edges = edges(model, piece, interrupt)?;
    let mut at = None;
    for (number, &last) in edges.iter().enumerate() {
        if number.is_multiple_of(TICK / n.min(TICK)) {
            interrupt()?;
        }
        let (to_start, from_end) = ways.split_at_mut(last.end);
        let start = &mut to_start[last.start];
        if at != Some(last.start) {
            // All tokens that end here have been seen.
            cut(start);
            at = Some(last.start);
        }
        from_end[0].extend((0..).zip(&*start).map(|(number, way)| Way {
            score: way.score + last.score,
            last,
            before: number,
        }));
    }
    cut(&mut ways[piece.len()]);
    let mut path = Vec::new();
    let segmentation = |way: &Way| {
        path.clear();
        let mut way = *way;
        while way.last.end > 0 {
            path.push(way.last);
            way = ways[way.last.start][way.before as usize];
        }
        path.reverse();
        let mut ids = Vec::with_capacity(path.len());
        model.ids(piece, &path, &mut ids);
        (way.before, ids)
    };
    let last = &ways[piece.len()];
    let found = last.iter().map(segmentation).zip(last);
    Ok(found
        .map(|((before, ids), way)| Found {
            score: way.score,
            before,
            ids,
        })
        .collect())
}

/// Appends the tokens of a segmentation of `piece` drawn with a probability proportional to
/// `exp(alpha * its score)`. One number is drawn for each token, from the right.
///
/// # Errors
///
/// What `interrupt` returns.
pub(crate) fn sample(
    model: &Unigram,
    piece: &[u8],
    alpha: f64,
    draws: &mut Draws,
    out: &mut Vec<u32>,
    interrupt: &mut Interrupt<'_>,
) -> Result<(), Error> {
    let mut edges = edges(model, piece, interrupt)?;
    // The logarithm of the summed weights of all segmentations up to each place.
    let mut sums = vec![f64::NEG_INFINITY; piece.len() + 1];
    sums[0] = 0.0;
    for edge in &edges {
        sums[edge.end] = log_add(sums[edge.end], sums[edge.start] + alpha * edge.score);
    }
    // Stable: of one end still by start.
    edges.sort_by_key(|edge| edge.end);
    let mut path = Vec::new();
    let (mut end, mut rest) = (piece.len(), edges.as_slice());
    while end > 0 {
        let first = rest.partition_point(|edge| edge.end < end);
        let here = &rest[first..];
        rest = &rest[..first];
        let mut left = draws.next();
        let Some(mut chosen) = here.last() else {
            break;
        };
        for edge in here {
            left -= (sums[edge.start] + alpha * edge.score - sums[end]).exp();
            // If rounding leaves a little at the end, it is the last one.
            if left < 0.0 {
                chosen = edge;
                break;
            }
        }
        path.push(*chosen);
        end = chosen.start;
        // Tokens that end between here and there cross the one that was chosen.
        let kept = rest.partition_point(|edge| edge.end <= end);
        rest = &rest[..kept];
    }
    path.reverse();
    model.ids(piece, &path, out);
    Ok(())
}

/// All tokens in a piece, by start and end.
fn edges(model: &Unigram, piece: &[u8], interrupt: &mut Interrupt<'_>) -> Result<Vec<Edge>, Error> {
    let mut edges = Vec::new();
    model.edges(piece, interrupt, |edge| edges.push(edge))?;
    Ok(edges)
}

/// `ln(exp(a) + exp(b))`.
fn log_add(a: f64, b: f64) -> f64 {
    let (high, low) = (a.max(b), a.min(b));
    if low == f64::NEG_INFINITY {
        return high;
    }
    high + (1.0 + (low - high).exp()).ln()
}
