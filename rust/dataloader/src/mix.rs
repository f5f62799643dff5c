//! The plan of rows from several sources, in shares that are exact.
//!
//! Rows are cut into blocks of a few dozen. What a source has given by the end of a block is its
//! share of all rows until there, rounded so that the numbers add up to the rows (largest
//! remainders). So every block ends within one row of every share, and any block is computed
//! without those before it. Inside a block the sources are shuffled:
//!
//! ```text
//! shares 5/8, 2/8, 1/8      block 0             block 1             block of 8 rows
//! before the block          0 0 0               5 2 1
//! source of each row        a b a a c a b a     a a b c a b a a     shuffled by (seed, block)
//! its row of that source    0 0 1 2 0 3 1 4     5 6 2 1 7 3 8 9     counted over the whole run
//! ```
//!
//! The k-th row of a source over the run is row `k % n` of its epoch `k / n`, in the order that it
//! has alone. A mixture has one epoch without an end; what repeats is its sources.
//!
//! Weights that change over a run are [`Stage`]s of constant shares. A stage begins exactly at its
//! row, with a block, and counts from there. The last block before it is cut: its rows are the first
//! of a shuffled block, so the shares hold there on average. What the stages before have given is
//! summed once, when the plan is made, so a row is found by a bisection of the stages, and no table
//! grows with the rows.
//!
//! A row costs a look-up in the table of its block and one division, before what its source's plan
//! costs. The table is made anew for each block, in time for its rows and `S log S` for S sources.
//!
//! Defined by `python/tinylm/reference/mixture.py`, held to it by the rung `mixture`.

use std::sync::Arc;

use crate::batch::MAX_ROWS;
use crate::order::{BLOCK_TOKENS, Permutation, WINDOW_BLOCKS, key};
use crate::plan::{Piece, Plan, Span};
use crate::{Error, Result, within};

/// The stream of random numbers that shuffles blocks; 0 to 4 are those of [`crate::order`] and
/// [`crate::packed`].
const MIX: u64 = 5;
/// The stream of the sources' seeds.
const SOURCES: u64 = 6;
/// What the shares of a stage add up to.
pub const WHOLE: u64 = 1 << 32;
/// Rows of a block, if no share is too small for it.
const BLOCK_ROWS: u64 = 32;
/// The least share above 0: one row of the largest block, whose table takes 512 KiB.
pub const LEAST_SHARE: u64 = WHOLE >> 16;
/// Far more sources than anybody names, and few enough for 16 bits.
const MAX_SOURCES: u64 = 1024;
/// Tokens of all sources that may be cached together: those of eight large ones, 512 MiB of
/// `uint16`. More sources are read row by row, or their caches would fill the memory.
const MOST_CACHED: u64 = 8 * 2 * WINDOW_BLOCKS * BLOCK_TOKENS;

/// Shares that hold from a row of the run on.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The row of the run with which it begins.
    pub first_row: u64,
    /// A number for each source; [`WHOLE`] together.
    pub shares: Vec<u64>,
}

/// Rows from several plans, each of one source of its own.
#[derive(Clone, Debug)]
pub struct Mixture<P> {
    plans: Vec<P>,
    seed: u64,
    stages: Arc<[Begun]>,
    scattered: bool,
    /// The block of the row asked for last.
    block: Block,
}

/// A stage, and what was given before it.
#[derive(Debug)]
struct Begun {
    first_row: u64,
    /// The row with which the next stage begins.
    end_row: u64,
    block_rows: u64,
    shares: Vec<u64>,
    before: Vec<u64>,
}

/// Which source gives each row of a block, as far as its stage goes.
#[derive(Clone, Debug, Default)]
struct Block {
    first_row: u64,
    /// The rows that each source gives before it.
    before: Vec<u64>,
    /// The source of each row, and how many of its rows in the block come before. Empty before the
    /// first row is asked for.
    rows: Vec<(u16, u32)>,
}

/// The seed of the order of a source: equal texts in two sources are not read in step.
pub fn seed_of(seed: u64, source: usize) -> u64 {
    if source == 0 {
        return seed;
    }
    key(&[seed, SOURCES, source as u64])
}

/// The rows of each source among `rows`: its share rounded down, or up for the largest rests.
fn quotas(shares: &[u64], rows: u64) -> Vec<u64> {
    let product = |share: u64| u128::from(share) * u128::from(rows);
    let mut whole: Vec<u64> = shares
        .iter()
        .map(|&share| (product(share) >> 32) as u64)
        .collect();
    let left = (rows - whole.iter().sum::<u64>()) as usize;
    let mut rests: Vec<(u64, usize)> = shares
        .iter()
        .map(|&share| product(share) as u64 % WHOLE)
        .zip(0..)
        .collect();
    // Of equal rests that of the first source counts as larger.
    rests.sort_unstable_by_key(|&(rest, source)| (u64::MAX - rest, source));
    for &(_, source) in rests.iter().take(left) {
        whole[source] += 1;
    }
    whole
}

/// Rows of a block: a power of two, enough for each share above 0 to be a row of it.
///
/// With a row in every block, a rounded number never falls from one block to the next.
fn block_rows(shares: &[u64]) -> u64 {
    let least = shares.iter().copied().filter(|&share| share > 0).min();
    let enough = WHOLE.div_ceil(least.unwrap_or(WHOLE)).next_power_of_two();
    enough.max(BLOCK_ROWS)
}

fn check(stages: &[Stage], sources: usize) -> Result<()> {
    within("sources", sources as u64, 1, MAX_SOURCES)?;
    if stages.first().is_none_or(|stage| stage.first_row != 0) {
        let problem = "the first stage of a mixture begins at row 0";
        return Err(Error::Invalid(problem.to_owned()));
    }
    if !stages.is_sorted_by(|one, two| one.first_row < two.first_row) {
        let problem = "the stages of a mixture begin one after the other";
        return Err(Error::Invalid(problem.to_owned()));
    }
    for stage in stages {
        within("first_row", stage.first_row, 0, MAX_ROWS - 1)?;
        for &share in stage.shares.iter().filter(|&&share| share > 0) {
            within("share", share, LEAST_SHARE, WHOLE)?;
        }
        let sum: u64 = stage.shares.iter().sum();
        if stage.shares.len() != sources || sum != WHOLE {
            let n = stage.shares.len();
            return Err(Error::Invalid(format!(
                "{n} shares that add up to {sum}: must be {sources} that add up to {WHOLE}"
            )));
        }
    }
    Ok(())
}

impl<P: Plan> Mixture<P> {
    /// Rows of `plans` by the shares of `stages`. The pieces of plan `s` are of source `s`,
    /// whatever they say.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for plans whose rows differ in kind or length, and for shares that are
    /// too small or do not add up.
    pub fn new(plans: Vec<P>, stages: &[Stage], seed: u64) -> Result<Self> {
        check(stages, plans.len())?;
        let kind = |plan: &P| (plan.row_length(), plan.packed());
        if plans.iter().any(|plan| kind(plan) != kind(&plans[0])) {
            let problem = "the rows of all sources must have one length, and be packed or not";
            return Err(Error::Invalid(problem.to_owned()));
        }
        let mut begun: Vec<Begun> = Vec::with_capacity(stages.len());
        let mut before = vec![0; plans.len()];
        let ends = stages.iter().skip(1).map(|stage| stage.first_row);
        for (stage, end_row) in stages.iter().zip(ends.chain([u64::MAX])) {
            let next = Begun {
                first_row: stage.first_row,
                end_row,
                block_rows: block_rows(&stage.shares),
                shares: stage.shares.clone(),
                before,
            };
            // No stage follows the last one.
            before = match end_row {
                u64::MAX => Vec::new(),
                end => next.block(seed, end - 1).counts(end),
            };
            begun.push(next);
        }
        let two_windows = 2 * WINDOW_BLOCKS * BLOCK_TOKENS;
        let cached = |plan: &P| {
            let tokens = plan.n_rows().saturating_mul(plan.row_length() as u64);
            tokens.min(two_windows)
        };
        let scattered = plans.iter().any(Plan::scattered)
            || plans.iter().map(cached).sum::<u64>() > MOST_CACHED;
        Ok(Self {
            plans,
            seed,
            stages: begun.into(),
            scattered,
            block: Block::default(),
        })
    }

    /// The rows that each source gives before row `i`.
    pub fn counts(&mut self, i: u64) -> Vec<u64> {
        self.enter(i);
        self.block.counts(i)
    }

    /// The plans of the sources.
    pub fn plans(&self) -> &[P] {
        &self.plans
    }

    /// Moves to the block of row `i`.
    #[inline]
    fn enter(&mut self, i: u64) {
        // Rows before the block wrap around and are as far away as those after it.
        if i.wrapping_sub(self.block.first_row) < self.block.rows.len() as u64 {
            return;
        }
        let after = self.stages.partition_point(|stage| stage.first_row <= i);
        // The first stage begins at row 0, so there is one before.
        self.block = self.stages[after.saturating_sub(1)].block(self.seed, i);
    }
}

impl Begun {
    /// The block of row `i` of the run, a row of this stage.
    fn block(&self, seed: u64, i: u64) -> Block {
        let begin = (i - self.first_row) / self.block_rows * self.block_rows;
        let end = begin + self.block_rows;
        let first_row = self.first_row + begin;
        let (one, two) = (quotas(&self.shares, begin), quotas(&self.shares, end));
        let mut places = Vec::with_capacity(self.block_rows as usize);
        for (source, (one, two)) in (0..).zip(one.iter().zip(two)) {
            places.resize(places.len() + (two - one) as usize, source);
        }
        let mixed = Permutation::new(self.block_rows, key(&[seed, MIX, first_row]));
        let mut given = vec![0; self.shares.len()];
        // The next stage may cut it.
        let rows = (0..self.block_rows.min(self.end_row - first_row)).map(|place| {
            let source: u16 = places[mixed.at(place) as usize];
            let nth = &mut given[usize::from(source)];
            *nth += 1;
            (source, *nth - 1)
        });
        Block {
            first_row,
            rows: rows.collect(),
            before: self.before.iter().zip(one).map(|(a, b)| a + b).collect(),
        }
    }
}

impl Block {
    /// The rows that each source gives before row `i` of the run, one of the block or its end.
    fn counts(&self, i: u64) -> Vec<u64> {
        let mut counts = self.before.clone();
        for &(source, _) in self.rows.iter().take((i - self.first_row) as usize) {
            counts[usize::from(source)] += 1;
        }
        counts
    }
}

impl<P: Plan> Plan for Mixture<P> {
    /// As many as can be numbered: epochs are those of the sources.
    fn n_rows(&self) -> u64 {
        MAX_ROWS
    }

    fn row_length(&self) -> usize {
        self.plans[0].row_length()
    }

    #[inline]
    fn row(&mut self, _epoch: u64, i: u64, pieces: &mut Vec<Piece>) {
        self.enter(i);
        let (source, nth) = self.block.rows[(i - self.block.first_row) as usize];
        let source = usize::from(source);
        let nth = self.block.before[source] + u64::from(nth);
        let plan = &mut self.plans[source];
        let (n_rows, first) = (plan.n_rows(), pieces.len());
        plan.row(nth / n_rows, nth % n_rows, pieces);
        for piece in &mut pieces[first..] {
            piece.source = source;
        }
    }

    fn packed(&self) -> bool {
        self.plans[0].packed()
    }

    fn most_pieces(&self) -> usize {
        let most = self.plans.iter().map(Plan::most_pieces).max();
        most.unwrap_or(1)
    }

    fn scattered(&self) -> bool {
        self.scattered
    }

    fn ahead(&mut self, _epoch: u64, i: u64, n: u64) -> Vec<Span> {
        if self.scattered {
            return Vec::new();
        }
        let (from, to) = (self.counts(i), self.counts(i + n));
        let mut spans = Vec::new();
        for (source, plan) in self.plans.iter_mut().enumerate() {
            let (first, n, n_rows) = (from[source], to[source] - from[source], plan.n_rows());
            if n > 0 {
                let wanted = plan.ahead(first / n_rows, first % n_rows, n);
                spans.extend(wanted.into_iter().map(|span| Span { source, ..span }));
            }
        }
        spans
    }
}
