//! Unigram: the segmentation of a piece whose tokens have the highest sum of log probabilities.
//!
//! `best[end] = max over tokens that end there of best[start] + score(token)`, from the left; the
//! best path is then read off from the right. A trie gives the tokens that begin at a place. Linear
//! in the piece times the longest token.
//!
//! A character without a token is unknown: its score lies [`PENALTY`] below the lowest of all. If
//! each of the 256 bytes is a token, the tokens are bytes, not characters, and nothing is unknown.
//!
//! Kudo 2018, arXiv:1804.10959. Of paths with equal sums the one is taken that Hugging Face's
//! `tokenizers` takes: its last token is the longest, then the one before it.
//!
//! Defined by `encode` in `python/tinylm/reference/unigram.py`, held to it by the rung `unigram`.

use crate::error::numbered;
use crate::fallback::{Fallback, ids_of, width};
use crate::trie::Trie;
use crate::{Error, Interrupt, Tokens};

/// How far the score of an unknown character lies below the lowest score; sentencepiece's number.
const PENALTY: f64 = 10.0;
/// Places between two calls of the interrupt: about 5 ms at 7 MB/s.
const TICK: usize = 1 << 15;
/// The number of no token, and the start of no path.
const NONE: u32 = u32::MAX;

/// The tokens of a vocabulary and their log probabilities.
#[derive(Debug)]
pub(crate) struct Unigram {
    trie: Trie,
    /// The ids of the tokens, by their numbers in the trie, and their scores.
    ids: Vec<u32>,
    scores: Vec<f64>,
    unknown_score: f64,
    fallback: Fallback,
    /// Whether all 256 bytes are tokens, so that a token may begin inside a character.
    over_bytes: bool,
}

/// A token somewhere in a piece, or an unknown character, with its score.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Edge {
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// In the trie; NONE for an unknown character.
    pub(crate) token: u32,
    pub(crate) score: f64,
}

/// The best path that ends at a place: its score and its last token, and the score of the second.
#[derive(Debug, Clone, Copy)]
struct Best {
    score: f64,
    second: f64,
    start: u32,
    /// In the trie; NONE for an unknown character.
    token: u32,
}

const UNREACHED: Best = Best {
    score: f64::NEG_INFINITY,
    second: f64::NEG_INFINITY,
    start: NONE,
    token: NONE,
};

/// Memory that is reused from piece to piece.
#[derive(Default)]
pub(crate) struct Scratch {
    best: Vec<Best>,
    /// The tokens of the best path; the score of each is the sum up to it.
    pub(crate) path: Vec<Edge>,
}

impl Unigram {
    /// From tokens and their scores in the same order.
    ///
    /// # Errors
    ///
    /// [`Error::Vocabulary`] for tokens that are empty or listed twice, for another number of
    /// scores, for one that is no number, and for a vocabulary without an unknown token that
    /// cannot say every text.
    pub(crate) fn new(
        tokens: &Tokens,
        scores: &[f64],
        unknown: Option<u32>,
        byte_fallback: bool,
    ) -> Result<Self, Error> {
        let fail = |message: String| Err(Error::Vocabulary(message));
        let id_of = ids_of(tokens)?;
        if scores.len() != tokens.len() {
            return fail(format!(
                "{} tokens have {} scores; each needs one",
                tokens.len(),
                scores.len()
            ));
        }
        if let Some(at) = scores
            .iter()
            .position(|s| s.is_nan() || *s == f64::INFINITY)
        {
            let (score, id) = (scores[at], tokens.ids()[at]);
            return fail(format!(
                "the score {score} of token {id} is no logarithm of a probability"
            ));
        }
        let over_bytes = (0..=255u8).all(|byte| id_of.contains_key([byte].as_slice()));
        if unknown.is_none() && !over_bytes {
            return fail(
                "the vocabulary has no unknown token, and not all 256 bytes are tokens: some text \
                 could not be encoded"
                    .into(),
            );
        }
        // No text becomes a token without a probability: those of bytes, whose names are text too.
        let known = || (0u32..).zip(scores).filter(|(_, score)| score.is_finite());
        let lowest = known().fold(f64::INFINITY, |low, (_, &score)| low.min(score));
        Ok(Self {
            trie: Trie::new(known().map(|(at, _)| (tokens.bytes(at as usize), at))),
            ids: tokens.ids().to_vec(),
            scores: scores.to_vec(),
            unknown_score: if lowest.is_finite() { lowest } else { 0.0 } - PENALTY,
            fallback: Fallback::new(&id_of, byte_fallback, unknown, true),
            over_bytes,
        })
    }

    /// The same model, in which also unknown characters have a score of float32.
    pub(crate) fn rounded(mut self) -> Self {
        self.unknown_score = f64::from(self.unknown_score as f32);
        self
    }

    /// Appends the tokens of `piece`.
    ///
    /// # Errors
    ///
    /// [`Error::TooLong`] for a piece of 4 GiB or more, and any error that `interrupt` returns.
    pub(crate) fn encode(
        &self,
        piece: &[u8],
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<(), Error> {
        self.parts(piece, scratch, interrupt, |id, _| out.push(id))
    }

    /// Appends the tokens of `piece`, each with the bytes of it that it covers; errors as `encode`.
    pub(crate) fn places(
        &self,
        piece: &[u8],
        scratch: &mut Scratch,
        out: &mut Vec<(u32, (usize, usize))>,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<(), Error> {
        self.parts(piece, scratch, interrupt, |id, place| out.push((id, place)))
    }

    /// Calls `each` with the tokens of the best path and their bytes.
    #[inline]
    fn parts(
        &self,
        piece: &[u8],
        scratch: &mut Scratch,
        interrupt: &mut Interrupt<'_>,
        mut each: impl FnMut(u32, (usize, usize)),
    ) -> Result<(), Error> {
        self.best(piece, 0.0, scratch, interrupt)?;
        self.each_id(piece, &scratch.path, &mut each);
        Ok(())
    }

    /// Gives `each` the tokens in `piece` by start and end, and its unknown characters.
    ///
    /// # Errors
    ///
    /// [`Error::TooLong`] for a piece of 4 GiB or more, and any error that `interrupt` returns.
    pub(crate) fn edges(
        &self,
        piece: &[u8],
        interrupt: &mut Interrupt<'_>,
        mut each: impl FnMut(Edge),
    ) -> Result<(), Error> {
        numbered(piece)?;
        let (mut start, mut tick) = (0, TICK);
        while start < piece.len() {
            if start >= tick {
                interrupt()?;
                tick = start + TICK;
            }
            let rest = &piece[start..];
            let character = if self.over_bytes { 1 } else { width(rest) };
            let mut is_known = false;
            self.trie.prefixes(rest, |length, token| {
                is_known |= length == character;
                each(Edge {
                    start,
                    end: start + length,
                    token,
                    score: self.scores[token as usize],
                });
            });
            if !is_known {
                each(Edge {
                    start,
                    end: start + character,
                    token: NONE,
                    score: self.unknown_score,
                });
            }
            start += character;
        }
        Ok(())
    }

    /// Appends the ids of a segmentation of `piece`; unknown neighbours are one stretch.
    pub(crate) fn ids(&self, piece: &[u8], path: &[Edge], out: &mut Vec<u32>) {
        self.each_id(piece, path, |id, _| out.push(id));
    }

    /// As [`Unigram::ids`], with the bytes of the piece that each covers.
    pub(crate) fn each_id(
        &self,
        piece: &[u8],
        path: &[Edge],
        mut each: impl FnMut(u32, (usize, usize)),
    ) {
        for part in path.chunk_by(|a, b| a.token == NONE && b.token == NONE) {
            let (first, last) = (part[0], part[part.len() - 1]);
            if let Some(&id) = self.ids.get(first.token as usize) {
                each(id, (first.start, first.end));
            } else {
                let mut at = first.start;
                let unknown = |id, length| {
                    each(id, (at, at + length));
                    at += length;
                };
                self.fallback
                    .tokens(&piece[first.start..last.end], false, unknown);
            }
        }
    }

    /// Writes the tokens of the best path into `scratch.path`; returns whether the sum of
    /// each is better than that of any other way to the place where it ends, by more than `rounding`
    /// for each character before.
    ///
    /// # Errors
    ///
    /// [`Error::TooLong`] for a piece of 4 GiB or more, and any error that `interrupt` returns.
    #[inline]
    pub(crate) fn best(
        &self,
        piece: &[u8],
        rounding: f64,
        scratch: &mut Scratch,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<bool, Error> {
        let Scratch { best, path } = scratch;
        best.clear();
        best.resize(piece.len() + 1, UNREACHED);
        best[0].score = 0.0;
        self.edges(piece, interrupt, |edge| {
            let score = best[edge.start].score + edge.score;
            let place = &mut best[edge.end];
            // Strictly: of equal paths the one with the earlier start stays. Without a branch,
            // which nobody could predict.
            let better = place.start == NONE || score > place.score;
            let (lower, last) = if better {
                (place.score, (edge.start as u32, edge.token))
            } else {
                (score, (place.start, place.token))
            };
            *place = Best {
                score: if better { score } else { place.score },
                second: if lower > place.second {
                    lower
                } else {
                    place.second
                },
                start: last.0,
                token: last.1,
            };
        })?;
        path.clear();
        let (mut end, mut is_clear) = (piece.len(), true);
        while end > 0 {
            let Best {
                score,
                second,
                start,
                token,
            } = best[end];
            let margin = score - second;
            // The bytes first, which are no fewer and need no counting.
            is_clear = is_clear
                && (margin > end as f64 * rounding
                    || !self.over_bytes && margin > characters(&piece[..end]) as f64 * rounding);
            path.push(Edge {
                start: start as usize,
                end,
                token,
                score,
            });
            end = start as usize;
        }
        path.reverse();
        Ok(is_clear)
    }
}

/// How many characters there are in text.
fn characters(text: &[u8]) -> usize {
    text.iter().filter(|&&byte| byte & 0xC0 != 0x80).count()
}
