//! Rows to batches: what the pieces of a plan become.
//!
//! A [`Filler`] asks the plan for the pieces of a row, reads each with the token after it, and
//! appends inputs, targets and, for a packed plan, positions and documents. [`crate::plan`] has
//! the contract. Nothing here knows an order or a file.
//!
//! There is one global order of rows. Batch `k` of a stream is rows `first + k * batch_size` and
//! so on, over the ends of epochs, and [`Slice`] says which of them are ours. So the number of
//! ranks cannot be seen in what they get together, and two ranks never get the same row.
//!
//! Filling a batch costs one conversion of its bytes for each of its two arrays, which are
//! allocated once per batch.
//!
//! Defined by `fill`, `row` and `global_rows` in `python/tinylm/reference/order.py`, held to them
//! by the rungs `row`, `batches`, `batches resumed` and `epoch`.

use std::sync::Arc;

pub use crate::arrays::{Batch, IGNORED, PADDING, Shape};
use crate::arrays::{Row, from};
use crate::format::{Element, Width};
use crate::memory::ask_for;
use crate::plan::{Piece, Plan};
use crate::read::{Reading, Run, Tokens};
use crate::slots::Block;
use crate::{Error, Result, within};

/// Rows of a global batch.
///
/// Even 2^31 batches of this size have no more rows than [`MAX_ROWS`].
pub const MAX_BATCH_SIZE: u64 = 1 << 31;
/// Processes that may share the batches of a rank.
pub const MAX_EVERY: u64 = 1 << 10;
/// Numbers of rows stay below this, far from any overflow.
pub const MAX_ROWS: u64 = 1 << 62;

/// Targets compared at once in the search for eos: a few vector instructions without a branch.
const CHUNK: usize = 64;

/// Which targets a loss leaves out beside those that do not exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Masked {
    /// None.
    #[default]
    Nothing,
    /// Those after the first of this id in a piece.
    After(u32),
    /// Those of this id: the ends of documents.
    At(u32),
}

/// Which rows of each global batch are ours, and how far the stream goes.
///
/// ```
/// use tinylm_dataloader::Slice;
///
/// // Rank 1 of 2 gets rows 1 and 3 of each five; 12 rows make three batches.
/// let slice = Slice { batch_size: 5, rank: 1, world_size: 2, first_row: 0, end_row: Some(12), every: 1 };
/// slice.check()?;
/// assert_eq!((slice.rows(), slice.n_batches()), (2, Some(3)));
/// # Ok::<(), tinylm_dataloader::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Slice {
    /// Rows of a global batch.
    pub batch_size: u64,
    /// The first of our rows in it.
    pub rank: u64,
    /// The distance between our rows.
    pub world_size: u64,
    /// The first row of the stream, counted from row 0 of epoch 0.
    pub first_row: u64,
    /// The row before which the stream ends; the last batch is padded.
    pub end_row: Option<u64>,
    /// Of how many batches one is ours: 1 for all. The others are those of other processes that
    /// share the work of a rank; their `first_row` is further on.
    pub every: u64,
}

impl Slice {
    /// Checks the numbers against each other.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`], which names the number and its limits.
    pub fn check(&self) -> Result<()> {
        within("batch_size", self.batch_size, 1, MAX_BATCH_SIZE)?;
        // Every rank has a row of every batch.
        within("world_size", self.world_size, 1, self.batch_size)?;
        within("rank", self.rank, 0, self.world_size - 1)?;
        within("every", self.every, 1, MAX_EVERY)?;
        within("first_row", self.first_row, 0, MAX_ROWS - 1)
    }

    /// Rows of a batch that are ours.
    ///
    /// Ranks may differ by one: rows are dealt out one by one.
    pub fn rows(&self) -> u64 {
        (self.batch_size - self.rank).div_ceil(self.world_size)
    }

    /// Batches until the end, if there is one.
    pub fn n_batches(&self) -> Option<u64> {
        let apart = self.batch_size * self.every;
        self.end_row
            .map(|end| end.saturating_sub(self.first_row).div_ceil(apart))
    }
}

/// A row whose bytes are at hand.
#[derive(Debug, Default)]
struct Found {
    pieces: Vec<Piece>,
    /// Its tokens and the one after each piece, piece by piece.
    runs: Vec<Run>,
    /// For each piece, where its runs end.
    until: Vec<usize>,
}

/// Makes batches of the rows of a plan; each thread has its own.
#[derive(Debug)]
pub struct Filler<P> {
    sources: Vec<(Arc<Tokens>, Reading)>,
    plan: P,
    masked: Masked,
    /// The row that is filled, and the one after it. Kept so that rows need no allocation.
    rows: [Found; 2],
}

impl<P: Clone> Clone for Filler<P> {
    fn clone(&self) -> Self {
        Self {
            sources: self.sources.clone(),
            plan: self.plan.clone(),
            masked: self.masked,
            rows: Default::default(),
        }
    }
}

impl<P: Plan> Filler<P> {
    /// A filler of the rows of `plan`, whose pieces lie in `sources`.
    ///
    /// Make it in the process that uses it: a forked child must not lock the cache.
    pub fn new(sources: Vec<Arc<Tokens>>, plan: P, masked: Masked) -> Self {
        let reading = if plan.scattered() {
            Reading::Far
        } else {
            Reading::Near
        };
        let with_reading = |tokens: Arc<Tokens>| {
            // Asked once per stream and not once per row: a stream never moves to another process.
            let reading = tokens.allowed(reading);
            (tokens, reading)
        };
        Self {
            sources: sources.into_iter().map(with_reading).collect(),
            plan,
            masked,
            rows: Default::default(),
        }
    }

    /// Where the arrays of `rows` rows lie.
    pub fn shape(&self, rows: u64) -> Shape {
        let ends = self.plan.most_pieces() + 1;
        Shape {
            rows: rows as usize,
            length: self.plan.row_length(),
            ends: if self.plan.packed() { ends } else { 0 },
        }
    }

    /// Row `i` of `epoch` as a batch of one.
    ///
    /// # Errors
    ///
    /// What reading the tokens gives, or [`Error::Invalid`] for a wrong plan.
    pub fn row<E: Element>(&mut self, epoch: u64, i: u64) -> Result<Batch<E>> {
        let shape = self.shape(1);
        let block = Block::alone(shape.size());
        let mut batch = Batch { shape, block };
        let mut found = Found::default();
        self.find(epoch, i, &mut found)?;
        self.fill(&found, &mut batch.row(0));
        Ok(batch)
    }

    /// Reads what row `i` of `epoch` needs, to be filled next.
    fn find(&mut self, epoch: u64, i: u64, next: &mut Found) -> Result<()> {
        next.pieces.clear();
        next.runs.clear();
        next.until.clear();
        self.plan.row(epoch, i, &mut next.pieces);
        let length: usize = next.pieces.iter().map(|piece| piece.length).sum();
        // More would be cut off, and nothing later would notice.
        if length > self.plan.row_length() || next.pieces.len() > self.plan.most_pieces() {
            let n = next.pieces.len();
            let problem = format!(
                "row {i} of epoch {epoch} has {length} inputs in {n} pieces: a bug in its plan"
            );
            return Err(Error::Invalid(problem));
        }
        for piece in &next.pieces {
            let Some((tokens, reading)) = self.sources.get(piece.source) else {
                let problem = format!("there is no source {}: a bug in a plan", piece.source);
                return Err(Error::Invalid(problem));
            };
            // A token more, for the last target, unless the source ends here.
            let left = tokens.n_tokens().saturating_sub(piece.start);
            let after = usize::from(left > piece.length as u64);
            tokens.visit(piece.start, piece.length + after, *reading, |run| {
                // It is used when the row before it is filled.
                ask_for(run.bytes());
                next.runs.push(run);
            })?;
            next.until.push(next.runs.len());
        }
        Ok(())
    }

    /// Fills a row with what was found for it.
    fn fill<E: Element>(&self, found: &Found, row: &mut Row<'_, E>) {
        let (mut at, mut first) = (0, 0);
        for (number, (piece, &until)) in found.pieces.iter().zip(&found.until).enumerate() {
            let end = at + piece.length;
            let tokens = row.tokens.get_mut(at..end).unwrap_or_default();
            let targets = row.targets.get_mut(at..end).unwrap_or_default();
            // `find` has looked for the source.
            let source = self.sources.get(piece.source);
            let width = source.map_or(Width::Two, |(tokens, _)| tokens.width());
            // Both arrays are converted from the bytes. Copying the targets from the tokens took
            // three times as long on an AMD EPYC: the two arrays lie eight bytes apart modulo a
            // page, which may be why.
            let mut done = 0;
            for run in found.runs.get(first..until).unwrap_or_default() {
                let bytes = run.bytes();
                E::convert(from(tokens, done), bytes, width);
                // A target is the token after: the first token of the piece is none.
                let skipped = if done == 0 { width.bytes() } else { 0 };
                let after_first = bytes.get(skipped..).unwrap_or_default();
                E::convert(from(targets, done.saturating_sub(1)), after_first, width);
                done += bytes.len() / width.bytes();
            }
            // At the end of the source, the last input has no target.
            from(targets, done.saturating_sub(1)).fill(E::from_id(IGNORED));
            match self.masked {
                Masked::Nothing => {}
                Masked::After(eos) => leave_out_after(targets, E::from_id(eos.into())),
                Masked::At(eos) => leave_out(targets, E::from_id(eos.into())),
            }
            // Both empty if every row is one piece.
            let positions = row.positions.get_mut(at..end).unwrap_or_default();
            for (place, position) in positions.iter_mut().enumerate() {
                *position = E::from_id(place as i64);
            }
            let documents = row.documents.get_mut(at..end).unwrap_or_default();
            documents.fill(E::from_id(i64::from(piece.document)));
            if let Some(place) = row.ends.get_mut(number) {
                *place = E::from_id(end as i64);
            }
            (at, first) = (end, until);
        }
        row.pad(at, found.pieces.len());
    }

    /// Our rows of the `number`-th batch of a stream, in memory for their [`Shape`].
    ///
    /// # Errors
    ///
    /// What reading the tokens gives. Batches do not depend on each other, so others still succeed.
    pub fn batch<E: Element>(
        &mut self,
        slice: &Slice,
        number: u64,
        block: Block<E>,
    ) -> Result<Batch<E>> {
        let n_rows = self.plan.n_rows();
        let shape = self.shape(slice.rows());
        let mut batch = Batch { shape, block };
        // No overflow: `first_row` is below 2^62, and no run lasts for as many rows more.
        let first = slice.first_row + number * slice.every * slice.batch_size;
        let row_of = |k: u64| {
            let row = first + slice.rank + k * slice.world_size;
            let inside = k < slice.rows() && slice.end_row.is_none_or(|end| row < end);
            inside.then_some((row / n_rows, row % n_rows))
        };
        let [mut this, mut next] = std::mem::take(&mut self.rows);
        let mut at = row_of(0);
        if let Some((epoch, i)) = at {
            self.find(epoch, i, &mut this)?;
        }
        for k in 0..slice.rows() {
            let after = row_of(k + 1);
            // Before this row is filled, so that the memory has the next one on the way.
            if let Some((epoch, i)) = after {
                self.find(epoch, i, &mut next)?;
            }
            let mut row = batch.row(k as usize);
            match at {
                Some(_) => self.fill(&this, &mut row),
                None => row.pad(0, 0),
            }
            std::mem::swap(&mut this, &mut next);
            at = after;
        }
        // No block is kept from one batch to the next.
        this.runs.clear();
        next.runs.clear();
        self.rows = [this, next];
        // After the batch is complete: what is read ahead never delays it.
        let ahead = self
            .plan
            .ahead(first / n_rows, first % n_rows, slice.batch_size);
        for span in ahead {
            if let Some((tokens, _)) = self.sources.get(span.source) {
                tokens.warm(span.start, span.length)?;
            }
        }
        Ok(batch)
    }
}

/// Ignores the targets that are `eos`.
fn leave_out<E: Element>(targets: &mut [E], eos: E) {
    let ignored = E::from_id(IGNORED);
    for target in targets {
        *target = if *target == eos { ignored } else { *target };
    }
}

/// Ignores the targets after the first `eos`.
///
/// With these chunks, batches of 32 x 256 took 0.88 of the processor time of a plain search (median
/// of 21 rounds).
#[expect(clippy::needless_bitwise_bool, reason = "no branch per target")]
fn leave_out_after<E: Element>(piece: &mut [E], eos: E) {
    // Whole chunks are compared at once; most rows have no eos, so this is all that most need.
    let has = |chunk: &[E]| chunk.iter().fold(false, |has, &id| has | (id == eos));
    let before = CHUNK * piece.chunks(CHUNK).take_while(|chunk| !has(chunk)).count();
    let rest = piece.get(before..).unwrap_or_default();
    if let Some(at) = rest.iter().position(|&id| id == eos) {
        let at = before + at;
        let after = piece.get_mut(at + 1..).unwrap_or_default();
        after.fill(E::from_id(IGNORED));
    }
}
