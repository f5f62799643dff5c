//! Unigram with the sums of sentencepiece, which decide between segmentations that are nearly equal.
//!
//! sentencepiece adds the scores of a text from its beginning in float32. So of two segmentations
//! with equal sums, such as `x xx` and `xx x`, the one that it takes depends on the rounding, and
//! with it on all text before. For nearly all words the best segmentation is better by far more
//! than rounding can change: those are what they are by themselves, and caches keep them. For the
//! others the sum of the text before is found, by the same additions, and the word begins with it.
//!
//! The bound: a text whose sum is below [`SUM`] rounds each addition by at most 2^-11, so two ways
//! through a word of n characters are rounded by n * 2^-10 at most. Above that, words that are
//! closer than their rounding may be cut as they are by themselves; 2^14 is 5 to 10 kB of text.
//!
//! Defined by `viterbi_float32` in `python/tinylm/reference/unigram.py`, held to it by the rung
//! `unigram float32`, and to sentencepiece by `tests/test_sentencepiece.py`.

use crate::unigram::{self, Edge, Unigram};
use crate::{Error, Interrupt};

/// Up to this sum the bound of the rounding holds.
const SUM: f64 = 16384.0;
/// What two ways through a word are rounded by for each of its characters: half an ulp below [`SUM`],
/// for both.
const ROUNDING: f64 = SUM / (1 << 24) as f64;

/// How far the sum of a text is known, and memory.
#[derive(Default)]
pub(crate) struct Scratch {
    /// The place in the text, and the sum of what is before it.
    at: usize,
    sum: f32,
    best: unigram::Scratch,
    /// The best way to each place in float32: its score and its last token.
    rounded: Vec<(f32, Option<Edge>)>,
    path: Vec<Edge>,
}

impl Scratch {
    /// A text begins, at this place of its bytes.
    pub(crate) fn begin(&mut self, at: usize) {
        (self.at, self.sum) = (at, 0.0);
    }
}

/// Gives `each` the tokens of the piece `text[from..to]` and the bytes of it that they cover;
/// returns whether they depend on it alone.
///
/// # Errors
///
/// [`Error::TooLong`] for a piece of 4 GiB or more, and any error that `interrupt` returns.
pub(crate) fn encode(
    model: &Unigram,
    text: &[u8],
    (from, to): (usize, usize),
    scratch: &mut Scratch,
    each: impl FnMut(u32, (usize, usize)),
    interrupt: &mut Interrupt<'_>,
) -> Result<bool, Error> {
    let piece = &text[from..to];
    if model.best(piece, ROUNDING, &mut scratch.best, interrupt)? {
        model.each_id(piece, &scratch.best.path, each);
        return Ok(true);
    }
    // Tokens end before blanks, so the text before it may be added up as one piece.
    let before = &text[scratch.at..from];
    let sum = forward(model, before, scratch.sum, &mut scratch.rounded, interrupt)?;
    scratch.sum = forward(model, piece, sum, &mut scratch.rounded, interrupt)?;
    scratch.at = to;
    let path = &mut scratch.path;
    path.clear();
    let mut end = piece.len();
    while let Some(edge) = scratch.rounded[end].1 {
        path.push(edge);
        end = edge.start;
    }
    path.reverse();
    model.each_id(piece, path, each);
    Ok(false)
}

/// The best ways to the places of `piece` by sums in float32 that begin with `sum`; returns that of
/// all.
fn forward(
    model: &Unigram,
    piece: &[u8],
    sum: f32,
    best: &mut Vec<(f32, Option<Edge>)>,
    interrupt: &mut Interrupt<'_>,
) -> Result<f32, Error> {
    best.clear();
    best.resize(piece.len() + 1, (0.0, None));
    best[0].0 = sum;
    model.edges(piece, interrupt, |edge| {
        let score = (f64::from(best[edge.start].0) + edge.score) as f32;
        let place = &mut best[edge.end];
        if place.1.is_none() || score > place.0 {
            *place = (score, Some(edge));
        }
    })?;
    Ok(best[piece.len()].0)
}
