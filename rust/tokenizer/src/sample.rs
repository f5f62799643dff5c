//! Other segmentations of a text than the one of [`Tokenizer::encode`]: the n best, or one drawn.
//!
//! A model that sees a text cut in several ways learns more of its words (subword regularisation).
//! Unigram draws among all segmentations by their probability, BPE passes merges over.
//!
//! Kudo 2018, arXiv:1804.10959; Provilkov et al. 2020, arXiv:1910.13267.

use crate::draws::Draws;
use crate::encode::Tokenizer;
use crate::model::Model;
use crate::stages::Part;
use crate::unigram_sample::{self, Found};
use crate::{Error, Interrupt, Policy, dropout};

/// The segmentations that [`Tokenizer::n_best`] gives at most.
const MOST: usize = 1024;
/// Pieces between two calls of the interrupt.
const TICK: usize = 1 << 10;

/// How a segmentation is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampling {
    /// Of a Unigram: with a probability proportional to `exp(alpha * score)`, among all
    /// segmentations or the `n_best` best ones of the text.
    Alpha {
        /// 0 draws evenly, 1 by the probabilities of the model, more prefers the best.
        alpha: f64,
        /// None for all of them.
        n_best: Option<usize>,
    },
    /// Of a BPE: each merge is passed over with this probability, whenever it is due.
    Dropout(f64),
}

/// What a text consists of after all stages before the model.
enum Item<'a> {
    Piece(&'a [u8]),
    /// An added token.
    Token(u32),
}

impl Tokenizer {
    /// The tokens of `text` in a segmentation that is drawn; equal seeds draw alike.
    ///
    /// # Errors
    ///
    /// [`Error::Sampling`] for numbers out of range and for a model that cannot draw so, and
    /// those of [`Tokenizer::encode`].
    pub fn sample(
        &self,
        text: &[u8],
        policy: &Policy,
        sampling: Sampling,
        seed: u64,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<Vec<u32>, Error> {
        let mut draws = Draws::new(seed);
        match sampling {
            Sampling::Dropout(p) => self.dropped(text, policy, p, &mut draws, interrupt),
            Sampling::Alpha { alpha, n_best } => {
                if !(0.0..f64::INFINITY).contains(&alpha) {
                    return fail(format!("alpha {alpha} must be a number of at least 0"));
                }
                if let Some(n) = n_best {
                    let found = self.n_best(text, n, policy, interrupt)?;
                    return Ok(one_of(found, alpha, draws.next()));
                }
                let model = self.unigram("alpha")?;
                let mut out = Vec::new();
                self.walk(text, policy, interrupt, &mut |item, interrupt| match item {
                    Item::Piece(piece) => {
                        unigram_sample::sample(model, piece, alpha, &mut draws, &mut out, interrupt)
                    }
                    Item::Token(id) => {
                        out.push(id);
                        Ok(())
                    }
                })?;
                Ok(out)
            }
        }
    }

    /// The `n` best segmentations of `text` by a Unigram with their scores, the best first; fewer
    /// if there are no more. An added token has the score 0.
    ///
    /// # Errors
    ///
    /// [`Error::Sampling`] for `n` out of range and for another model, and those of
    /// [`Tokenizer::encode`].
    pub fn n_best(
        &self,
        text: &[u8],
        n: usize,
        policy: &Policy,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<Vec<(f64, Vec<u32>)>, Error> {
        if !(1..=MOST).contains(&n) {
            return fail(format!("n_best {n} must be from 1 to {MOST}"));
        }
        let model = self.unigram("n_best")?;
        let mut scores = vec![0.0];
        // What each piece gives: each way names the one before it.
        let mut steps: Vec<Vec<(u32, Vec<u32>)>> = Vec::new();
        self.walk(text, policy, interrupt, &mut |item, interrupt| {
            let piece = match item {
                Item::Piece(piece) => piece,
                Item::Token(id) => {
                    let alone = (0..scores.len() as u32).map(|way| (way, vec![id]));
                    steps.push(alone.collect());
                    return Ok(());
                }
            };
            let found = unigram_sample::n_best(model, piece, &scores, n, interrupt)?;
            scores = found.iter().map(|found| found.score).collect();
            let step = |found: Found| (found.before, found.ids);
            steps.push(found.into_iter().map(step).collect());
            Ok(())
        })?;
        let whole = |(way, score): (usize, f64)| {
            let (mut way, mut parts) = (way, Vec::new());
            for step in steps.iter().rev() {
                let (before, ids) = &step[way];
                parts.push(ids.as_slice());
                way = *before as usize;
            }
            parts.reverse();
            (score, parts.concat())
        };
        Ok(scores.iter().copied().enumerate().map(whole).collect())
    }

    /// The tokens of `text` with BPE-dropout.
    fn dropped(
        &self,
        text: &[u8],
        policy: &Policy,
        p: f64,
        draws: &mut Draws,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<Vec<u32>, Error> {
        if !(0.0..=1.0).contains(&p) {
            return fail(format!("dropout {p} must be from 0 to 1"));
        }
        if let Some(reason) = no_merges(&self.model) {
            return fail(reason.into());
        }
        if p == 0.0 {
            return self.encode(text, policy, interrupt);
        }
        let (mut out, mut symbols) = (Vec::new(), Vec::new());
        self.walk(text, policy, interrupt, &mut |item, interrupt| {
            let piece = match item {
                Item::Piece(piece) => piece,
                Item::Token(id) => {
                    out.push(id);
                    return Ok(());
                }
            };
            symbols.clear();
            match &self.model {
                Model::Bpe(bpe) => {
                    bpe.symbols(piece, &mut symbols)?;
                    let merge_of = |left, right| bpe.merge_of(left, right);
                    dropout::merge(&symbols, merge_of, p, draws, &mut out, interrupt)
                }
                Model::CharBpe(bpe) => {
                    bpe.unmerged(piece, &mut symbols)?;
                    let merge_of = |left, right| bpe.rank_and_id(left, right);
                    dropout::merge(&symbols, merge_of, p, draws, &mut out, interrupt)
                }
                _ => Ok(()),
            }
        })?;
        Ok(out)
    }

    /// The model if it is a Unigram; `what` is asked of it.
    fn unigram(&self, what: &str) -> Result<&crate::unigram::Unigram, Error> {
        match &self.model {
            Model::Unigram(model) | Model::Float32(model) => Ok(model),
            Model::WordPiece(_) => fail(format!(
                "{what} is for Unigram; WordPiece has neither probabilities nor merges to draw with"
            )),
            _ => fail(format!(
                "{what} is for Unigram; a BPE has no probabilities: pass dropout"
            )),
        }
    }

    /// Gives `each` the pieces and the added tokens of `text`, in order.
    fn walk(
        &self,
        text: &[u8],
        policy: &Policy,
        interrupt: &mut Interrupt<'_>,
        each: &mut dyn FnMut(Item<'_>, &mut Interrupt<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut ticks = 0usize;
        let mut each = |item: Item<'_>, interrupt: &mut Interrupt<'_>| {
            ticks += 1;
            if ticks.is_multiple_of(TICK) {
                interrupt()?;
            }
            each(item, interrupt)
        };
        self.added
            .segments(text, policy, interrupt, |segment, interrupt| {
                let view = &text[..segment.end];
                if let Some(staged) = &self.staged {
                    let (stretch, first) = (&view[segment.start..], segment.start == 0);
                    staged.run(
                        stretch,
                        first,
                        None,
                        policy,
                        interrupt,
                        &mut |part, interrupt| match part {
                            Part::Pieces(text, spans, _) => spans
                                .iter()
                                .try_for_each(|&(a, b)| each(Item::Piece(&text[a..b]), interrupt)),
                            Part::Text(text, _) => self
                                .pattern
                                .pieces(text, 0, |a, b| each(Item::Piece(&text[a..b]), interrupt)),
                            Part::Token(id, _) => each(Item::Token(id), interrupt),
                        },
                    )?;
                } else {
                    self.pattern.pieces(view, segment.start, |a, b| {
                        each(Item::Piece(&view[a..b]), interrupt)
                    })?;
                }
                match segment.token {
                    Some((id, _)) => each(Item::Token(id), interrupt),
                    None => Ok(()),
                }
            })
    }
}

/// Why dropout has nothing to drop, if so.
fn no_merges(model: &Model) -> Option<&'static str> {
    match model {
        Model::Bpe(bpe) if !bpe.has_merges() => {
            Some("dropout is for BPE with merges; this vocabulary of whole pieces has none")
        }
        Model::Bpe(_) | Model::CharBpe(_) => None,
        Model::WordPiece(_) => {
            Some("dropout is for BPE; WordPiece has no merges that could be passed over")
        }
        Model::Unigram(_) | Model::Float32(_) => {
            Some("dropout is for BPE; a Unigram draws among segmentations: pass alpha")
        }
        #[cfg(test)]
        Model::Longest(_) => Some("dropout is for BPE"),
    }
}

/// One of some segmentations, drawn by `exp(alpha * score)` with a number below 1.
fn one_of(found: Vec<(f64, Vec<u32>)>, alpha: f64, draw: f64) -> Vec<u32> {
    let best = found.first().map_or(0.0, |found| found.0);
    let weight = |score: f64| (alpha * (score - best)).exp();
    let total: f64 = found.iter().map(|(score, _)| weight(*score)).sum();
    let mut left = draw * total;
    let mut last = Vec::new();
    for (score, ids) in found {
        left -= weight(score);
        last = ids;
        if left < 0.0 {
            break;
        }
    }
    last
}

fn fail<T>(message: String) -> Result<T, Error> {
    Err(Error::Sampling(message))
}
