//! Learning a Unigram vocabulary: EM over far too many tokens, of which the useless ones go.
//!
//! Each round fits the probabilities to the words twice and then removes a quarter of the tokens,
//! those without which the words lose least likelihood, until few enough are left. The words with
//! all tokens in them are a lattice ([`crate::seeds`]); what goes is taken out of it, so each round
//! is cheaper than the one before it.
//!
//! Probabilities are multiplied, not their logarithms added: a step is a multiplication where it
//! would be an exponential and a logarithm. A factor for each byte of a token keeps products near
//! 1; every segmentation of a word has the same bytes, so the factor changes no share. Where that
//! does not suffice, a word is weighed by logarithms.
//!
//! Kudo 2018, arXiv:1804.10959. Defined by `e_step`, `m_step` and `losses` in
//! `python/tinylm/reference/unigram.py`, held to it by the rung `train unigram`.

use crate::logs::{by_logarithms, digamma, sort_by_worth};
use crate::seeds::{Edge, Lattice, Rules, Seed, Span, lattice};
use crate::{Error, Interrupt};

/// Seeds at most.
const SEEDS: usize = 1_000_000;
/// The part of the tokens that a round keeps.
const KEPT: f64 = 0.75;
/// Fits between two removals.
const FITS: usize = 2;
/// The last round leaves this many times the tokens asked for; the most probable of them stay.
const SPARE: f64 = 1.1;
/// Tokens that are expected less often go.
const LEAST: f64 = 0.5;
/// Numbers that differ by less are taken for equal, so that rounding decides nothing.
const SLACK: f64 = 1e-9;
/// Words between two calls of the interrupt.
const TICK: usize = 1 << 12;

/// A vocabulary that was learned: tokens with their log probabilities, the required ones first.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainedUnigram {
    /// The bytes of each token.
    pub tokens: Vec<Vec<u8>>,
    /// The scores in the same order.
    pub scores: Vec<f64>,
}

/// What to learn.
pub struct UnigramTraining<'a> {
    /// Tokens at most, with the required ones.
    pub size: usize,
    /// How often a string must occur in the words to be a token.
    pub min_frequency: u64,
    /// Tokens that there must be: the 256 bytes, or every character of the words.
    pub required: &'a [Vec<u8>],
    /// Whether a string may be a token.
    pub valid: &'a dyn Fn(&[u8]) -> bool,
}

/// A call of `progress(done, all)` for each round; an error from it ends the work.
pub(crate) type Progress<'a> = dyn FnMut(usize, usize) -> Result<(), Error> + 'a;

/// The lattice and what is known of its tokens.
struct Trainer {
    lattice: Lattice,
    required: usize,
    scores: Vec<f64>,
    /// ln of the factor for each byte.
    factor: f64,
}

/// Learns tokens from words and their counts.
///
/// # Errors
///
/// [`Error::EmptyCorpus`] without words, and what `progress` returns, which is called every few
/// milliseconds too, with the numbers of the last round.
pub fn unigram<'a>(
    words: impl Iterator<Item = (&'a [u8], u64)>,
    training: &UnigramTraining<'_>,
    progress: &mut Progress<'_>,
) -> Result<TrainedUnigram, Error> {
    let rules = Rules {
        required: training.required,
        over_bytes: training.required.iter().all(|token| token.len() == 1)
            && training.required.len() == 256,
        valid: training.valid,
        least: training.min_frequency.max(2),
        most: SEEDS,
    };
    let lattice = lattice(words, &rules, &mut || progress(0, training.size))?;
    if lattice.words.is_empty() {
        return Err(Error::EmptyCorpus);
    }
    let mut trainer = Trainer::new(lattice, training.required.len());
    let first = trainer.scores.len();
    let desired = (training.size as f64 * SPARE) as usize;
    loop {
        let left = trainer.scores.len();
        let done = done(first, left, desired, training.size);
        let mut stop = || progress(done, training.size);
        for _ in 0..FITS {
            trainer.fit(true, &mut stop)?;
        }
        if trainer.scores.len() <= desired {
            break;
        }
        let before = trainer.scores.len();
        trainer.prune(desired, &mut stop)?;
        // Everything that is left must stay.
        if trainer.scores.len() == before {
            break;
        }
    }
    trainer.keep_most_probable(training.size);
    for _ in 0..FITS {
        trainer.fit(false, &mut || progress(training.size, training.size))?;
    }
    Ok(trainer.trained())
}

/// How far the work is, out of `all`: each round removes a part, so the logarithm of what is left
/// falls evenly.
fn done(first: usize, left: usize, desired: usize, all: usize) -> usize {
    let (first, left) = (first as f64 + 1.0, left as f64 + 1.0);
    let whole = (first / (desired as f64 + 1.0)).ln();
    if whole <= 0.0 {
        return 0;
    }
    ((first / left).ln() / whole * all as f64).clamp(0.0, all as f64 - 1.0) as usize
}

impl Trainer {
    fn new(lattice: Lattice, required: usize) -> Self {
        // The characters that a token covers, as a share of all.
        let worth = |seed: &Seed| (seed.count.max(1) * u64::from(seed.length)) as f64;
        let total: f64 = lattice.seeds.iter().map(worth).sum();
        let scores = lattice.seeds.iter().map(|seed| (worth(seed) / total).ln());
        Self {
            scores: scores.collect(),
            required,
            factor: 2.0,
            lattice,
        }
    }

    /// The words, each with its edges.
    fn words(&self) -> impl Iterator<Item = (&Span, &[Edge])> {
        let words = &self.lattice.words;
        let ends = words[1..].iter().map(|word| word.edges);
        let ends = ends.chain([self.lattice.edges.len() as u32]);
        words.iter().zip(ends).map(|(word, end)| {
            let edges = &self.lattice.edges[word.edges as usize..end as usize];
            (word, edges)
        })
    }

    /// One step of EM. With `drop`, tokens that are expected too seldom go, and rare ones lose by
    /// the prior; without, the scores are the logarithms of the shares.
    fn fit(&mut self, drop: bool, interrupt: &mut Interrupt<'_>) -> Result<(), Error> {
        let mut expected = self.expected(interrupt)?;
        for count in &mut expected[..self.required] {
            *count = count.max(LEAST);
        }
        if drop {
            let keep: Vec<bool> = expected.iter().map(|n| *n >= LEAST - SLACK).collect();
            self.remove(&keep);
            expected.retain(|n| *n >= LEAST - SLACK);
        } else {
            // Also what is never used keeps a score.
            for count in &mut expected {
                *count = count.max(LEAST);
            }
        }
        let total: f64 = expected.iter().sum();
        let log = if drop { digamma } else { f64::ln };
        let all = log(total);
        self.scores = expected.iter().map(|&count| log(count) - all).collect();
        Ok(())
    }

    /// How often each token is expected in the words; sets the factor for the next time.
    fn expected(&mut self, interrupt: &mut Interrupt<'_>) -> Result<Vec<f64>, Error> {
        let lengths = self.lattice.seeds.iter().map(|seed| f64::from(seed.length));
        let weights = self.scores.iter().zip(lengths);
        let weights: Vec<f64> = weights
            .map(|(score, length)| (score + self.factor * length).exp())
            .collect();
        let mut expected = vec![0.0; weights.len()];
        let (mut alpha, mut beta) = (Vec::new(), Vec::new());
        let (mut logs, mut bytes) = (0.0, 0.0);
        for (number, (word, edges)) in self.words().enumerate() {
            if number.is_multiple_of(TICK) {
                interrupt()?;
            }
            let (length, count) = ((word.end - word.start) as usize, word.count as f64);
            alpha.clear();
            alpha.resize(length + 1, 0.0);
            alpha[0] = 1.0;
            for edge in edges {
                alpha[usize::from(edge.end)] +=
                    alpha[usize::from(edge.start)] * weights[edge.token as usize];
            }
            let all: f64 = alpha[length];
            bytes += count * length as f64;
            // Far from the limits of float64, so that no share of it is lost.
            if !(1e-200..1e200).contains(&all) {
                logs += count * by_logarithms(edges, length, count, &self.scores, &mut expected);
                continue;
            }
            logs += count * (all.ln() - self.factor * length as f64);
            beta.clear();
            beta.resize(length + 1, 0.0);
            beta[length] = count / all;
            for edge in edges.iter().rev() {
                let weight = weights[edge.token as usize] * beta[usize::from(edge.end)];
                beta[usize::from(edge.start)] += weight;
                expected[edge.token as usize] += alpha[usize::from(edge.start)] * weight;
            }
        }
        self.factor = -logs / bytes;
        Ok(expected)
    }

    /// Removes the tokens without which the words lose least, and those that no best segmentation
    /// uses; of all, [`KEPT`] stay, but not less than `desired`.
    fn prune(&mut self, desired: usize, interrupt: &mut Interrupt<'_>) -> Result<(), Error> {
        let losses = self.losses(interrupt)?;
        let target = desired.max((self.scores.len() as f64 * KEPT) as usize);
        let mut keep: Vec<bool> = losses.iter().map(|&loss| loss == f64::INFINITY).collect();
        let room = target.saturating_sub(keep.iter().filter(|&&keep| keep).count());
        let mut rest: Vec<usize> = (0..losses.len())
            .filter(|&token| losses[token].is_finite())
            .collect();
        sort_by_worth(&mut rest, &losses);
        for &token in rest.iter().take(room) {
            keep[token] = true;
        }
        self.remove(&keep);
        Ok(())
    }

    /// What the log likelihood of the words loses without each token: infinite if it must stay,
    /// minus infinity if no best segmentation has it.
    fn losses(&self, interrupt: &mut Interrupt<'_>) -> Result<Vec<f64>, Error> {
        let mut used = vec![0.0f64; self.scores.len()];
        // Somewhere in the words: the edges there are all tokens inside it.
        let mut place: Vec<Option<(&[Edge], Edge)>> = vec![None; self.scores.len()];
        let mut best = Vec::new();
        for (number, (word, edges)) in self.words().enumerate() {
            if number.is_multiple_of(TICK) {
                interrupt()?;
            }
            for edge in edges {
                place[edge.token as usize].get_or_insert((edges, *edge));
            }
            let length = (word.end - word.start) as u16;
            self.best(edges, 0, length, None, &mut best);
            let mut end = length;
            while end > 0 {
                let edge = best[usize::from(end)].1;
                used[edge.token as usize] += word.count as f64;
                end = edge.start;
            }
        }
        let total: f64 = used.iter().sum();
        let mut losses = vec![f64::INFINITY; self.scores.len()];
        for token in self.required..self.scores.len() {
            let Some((edges, own)) = place[token] else {
                losses[token] = f64::NEG_INFINITY;
                continue;
            };
            let first = edges.partition_point(|edge| edge.start < own.start);
            let end = edges.partition_point(|edge| edge.start < own.end);
            let length = own.end - own.start;
            self.best(
                &edges[first..end],
                own.start,
                length,
                Some(own.token),
                &mut best,
            );
            let freq = used[token];
            let (score, last) = best[usize::from(length)];
            if last.end == 0 {
                continue;
            }
            if freq == 0.0 || score > self.scores[token] + SLACK {
                losses[token] = f64::NEG_INFINITY;
                continue;
            }
            let (mut parts, mut gained) = (0.0, 0.0);
            let mut at = length;
            while at > 0 {
                let edge = best[usize::from(at)].1;
                gained += (used[edge.token as usize] + freq).ln();
                parts += 1.0;
                at = edge.start - own.start;
            }
            let after = (total + freq * (parts - 1.0)).ln();
            losses[token] = freq * ((freq / total).ln() - gained + parts * after);
        }
        Ok(losses)
    }

    /// The best score at each place of `length` bytes from `start`, and the edge that ends there;
    /// its end is 0 at a place that none reaches.
    fn best(
        &self,
        edges: &[Edge],
        start: u16,
        length: u16,
        without: Option<u32>,
        best: &mut Vec<(f64, Edge)>,
    ) {
        let none = Edge {
            token: 0,
            start: 0,
            end: 0,
        };
        best.clear();
        best.resize(usize::from(length) + 1, (f64::NEG_INFINITY, none));
        best[0].0 = 0.0;
        for edge in edges {
            let (from, to) = (edge.start - start, edge.end - start);
            if to > length || Some(edge.token) == without {
                continue;
            }
            let score = best[usize::from(from)].0 + self.scores[edge.token as usize];
            if score > best[usize::from(to)].0 + SLACK {
                best[usize::from(to)] = (score, *edge);
            }
        }
    }

    /// Leaves the required tokens and the most probable others, `size` in all.
    fn keep_most_probable(&mut self, size: usize) {
        let mut order: Vec<usize> = (self.required..self.scores.len()).collect();
        sort_by_worth(&mut order, &self.scores);
        let mut keep = vec![false; self.scores.len()];
        keep[..self.required].fill(true);
        for &token in order.iter().take(size.saturating_sub(self.required)) {
            keep[token] = true;
        }
        self.remove(&keep);
    }

    /// Takes tokens out of the lattice; the others move up.
    fn remove(&mut self, keep: &[bool]) {
        let gone = u32::MAX;
        let mut next = 0;
        let numbers: Vec<u32> = keep
            .iter()
            .map(|&keep| {
                next += u32::from(keep);
                if keep { next - 1 } else { gone }
            })
            .collect();
        let mut kept = keep.iter();
        self.scores.retain(|_| *kept.next().unwrap_or(&false));
        let mut kept = keep.iter();
        self.lattice
            .seeds
            .retain(|_| *kept.next().unwrap_or(&false));
        let Lattice { words, edges, .. } = &mut self.lattice;
        let (mut read, mut written) = (0, 0);
        for at in 0..words.len() {
            let end = words
                .get(at + 1)
                .map_or(edges.len(), |next| next.edges as usize);
            words[at].edges = written as u32;
            for from in read..end {
                let token = numbers[edges[from].token as usize];
                if token != gone {
                    edges[written] = Edge {
                        token,
                        ..edges[from]
                    };
                    written += 1;
                }
            }
            read = end;
        }
        edges.truncate(written);
    }

    /// The required tokens, then the others by falling score.
    fn trained(self) -> TrainedUnigram {
        let mut order: Vec<usize> = (0..self.scores.len()).collect();
        let bytes = |token: usize| {
            let seed = self.lattice.seeds[token];
            let start = seed.start as usize;
            &self.lattice.text[start..start + usize::from(seed.length)]
        };
        sort_by_worth(&mut order[self.required..], &self.scores);
        TrainedUnigram {
            tokens: order.iter().map(|&token| bytes(token).into()).collect(),
            scores: order.iter().map(|&token| self.scores[token]).collect(),
        }
    }
}
