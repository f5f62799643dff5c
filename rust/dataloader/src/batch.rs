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

use crate::format::Element;
use crate::plan::{Piece, Plan};
use crate::read::{Reading, Tokens};
use crate::{Error, Result, within};

/// The target that a loss leaves out.
///
/// torch's `cross_entropy` has this number as its default, so no caller has to pass it on.
pub const IGNORED: i64 = -100;
/// The document of padding.
///
/// Real documents count from 0, so a mask of equal documents joins no token with padding.
pub const PADDING: i64 = -1;
/// Rows of a global batch.
///
/// Even 2^31 batches of this size have no more rows than [`MAX_ROWS`].
pub const MAX_BATCH_SIZE: u64 = 1 << 31;
/// Numbers of rows stay below this, far from any overflow.
pub const MAX_ROWS: u64 = 1 << 62;

/// Targets compared at once in the search for eos: a few vector instructions without a branch.
const CHUNK: usize = 64;

/// Arrays of `rows` x `row_length`, row by row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch<E> {
    /// What the model reads.
    pub tokens: Vec<E>,
    /// What it should say, -100 where it does not matter.
    pub targets: Vec<E>,
    /// Places of the tokens in their pieces; empty if every row is one piece.
    pub positions: Vec<E>,
    /// Numbers of the tokens' documents, -1 for padding; empty if every row is one piece.
    pub documents: Vec<E>,
    /// Where the pieces of each row end in it: [`Plan::most_pieces`] numbers, and the length of the
    /// row for pieces that it does not have, and once more; empty if every row is one piece.
    pub ends: Vec<E>,
}

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

impl<E: Element> Batch<E> {
    /// An empty batch with room for `n` tokens.
    fn with_room(n: usize, ends: usize) -> Self {
        // An empty vector allocates nothing: windows pay for two arrays, not for five.
        let other = if ends > 0 { n } else { 0 };
        Self {
            // The token after a piece is read behind its inputs, and removed.
            tokens: Vec::with_capacity(n + 1),
            targets: Vec::with_capacity(n),
            positions: Vec::with_capacity(other),
            documents: Vec::with_capacity(other),
            ends: Vec::with_capacity(ends),
        }
    }

    /// Appends padding up to `n` tokens.
    fn pad(&mut self, n: usize, packed: bool) {
        // Any id would do: no target is behind it. 0 is in every vocabulary.
        self.tokens.resize(n, E::from_id(0));
        self.targets.resize(n, E::from_id(IGNORED));
        if packed {
            self.positions.resize(n, E::from_id(0));
            self.documents.resize(n, E::from_id(PADDING));
        }
    }
}

/// Which rows of each global batch are ours, and how far the stream goes.
///
/// ```
/// use tinylm_dataloader::Slice;
///
/// // Rank 1 of 2 gets rows 1 and 3 of each five; 12 rows make three batches.
/// let slice = Slice { batch_size: 5, rank: 1, world_size: 2, first_row: 0, end_row: Some(12) };
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
        self.end_row
            .map(|end| end.saturating_sub(self.first_row).div_ceil(self.batch_size))
    }
}

/// Makes batches of the rows of a plan; each thread has its own.
#[derive(Clone, Debug)]
pub struct Filler<P> {
    sources: Vec<(Arc<Tokens>, Reading)>,
    plan: P,
    masked: Masked,
    /// The pieces of one row, kept so that a row needs no allocation.
    pieces: Vec<Piece>,
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
            pieces: Vec::new(),
        }
    }

    /// Appends row `i` of `epoch`.
    ///
    /// # Errors
    ///
    /// What reading the tokens gives, or [`Error::Invalid`] for a wrong plan. The batch then ends
    /// inside a row and is of no use.
    pub fn row<E: Element>(&mut self, epoch: u64, i: u64, batch: &mut Batch<E>) -> Result<()> {
        // By the targets: while a piece is read, the tokens are one longer.
        let end = batch.targets.len() + self.plan.row_length();
        self.pieces.clear();
        self.plan.row(epoch, i, &mut self.pieces);
        let length: usize = self.pieces.iter().map(|piece| piece.length).sum();
        // A longer row would shift every row after it, and nothing later would notice.
        if length > self.plan.row_length() || self.pieces.len() > self.plan.most_pieces() {
            let n = self.pieces.len();
            let problem = format!(
                "row {i} of epoch {epoch} has {length} inputs in {n} pieces: a bug in its plan"
            );
            return Err(Error::Invalid(problem));
        }
        for piece in &self.pieces {
            self.piece(piece, batch)?;
        }
        let packed = self.plan.packed();
        if packed {
            self.ends(batch);
        }
        batch.pad(end, packed);
        Ok(())
    }

    /// Appends the inputs of a piece, the token after each, and what a packed plan says of them.
    #[inline]
    fn piece<E: Element>(&self, piece: &Piece, batch: &mut Batch<E>) -> Result<()> {
        let Some((tokens, reading)) = self.sources.get(piece.source) else {
            let problem = format!("there is no source {}: a bug in a plan", piece.source);
            return Err(Error::Invalid(problem));
        };
        // Places in the batch, because it has other rows before.
        let (first, length) = (batch.tokens.len(), piece.length);
        let left = tokens.n_tokens().saturating_sub(piece.start);
        let after = usize::from(left > length as u64);
        // A token more, for the last target, unless the source ends here.
        let width = tokens.width();
        // The first token read is no target.
        let mut skip = width.bytes();
        // Both arrays are converted from the bytes. Copying the targets from the tokens took three
        // times as long on an AMD EPYC, 29 us instead of 8 per row of 2,048 in a loop of its own;
        // the two arrays lie eight bytes apart modulo a page, which may be why.
        tokens.visit(piece.start, length + after, *reading, |bytes| {
            E::extend(&mut batch.tokens, bytes, width);
            let after_first = bytes.get(skip..).unwrap_or_default();
            E::extend(&mut batch.targets, after_first, width);
            skip = 0;
        })?;
        batch.tokens.truncate(first + length);
        // At the end of the source, the last input has no target.
        batch.targets.resize(first + length, E::from_id(IGNORED));
        match self.masked {
            Masked::Nothing => {}
            Masked::After(eos) => {
                leave_out_after(&mut batch.targets, first, E::from_id(eos.into()));
            }
            Masked::At(eos) => leave_out(&mut batch.targets, first, E::from_id(eos.into())),
        }
        if self.plan.packed() {
            batch.positions.extend((0..length as i64).map(E::from_id));
            let document = E::from_id(i64::from(piece.document));
            batch.documents.resize(first + length, document);
        }
        Ok(())
    }

    /// Appends where the pieces of the row end. A row of no pieces is all padding.
    fn ends<E: Element>(&self, batch: &mut Batch<E>) {
        let size = batch.ends.len() + self.plan.most_pieces() + 1;
        let mut end = 0;
        for piece in &self.pieces {
            end += piece.length;
            batch.ends.push(E::from_id(end as i64));
        }
        let length = E::from_id(self.plan.row_length() as i64);
        batch.ends.resize(size, length);
    }

    /// Our rows of the `number`-th batch of a stream.
    ///
    /// # Errors
    ///
    /// What reading the tokens gives. Batches do not depend on each other, so others still succeed.
    pub fn batch<E: Element>(&mut self, slice: &Slice, number: u64) -> Result<Batch<E>> {
        let (packed, n_rows) = (self.plan.packed(), self.plan.n_rows());
        let rows = slice.rows() as usize;
        let size = rows * self.plan.row_length();
        let ends = if packed {
            rows * (self.plan.most_pieces() + 1)
        } else {
            0
        };
        let mut batch = Batch::with_room(size, ends);
        // No overflow: `first_row` is below 2^62, and no run lasts for as many rows more.
        let first = slice.first_row + number * slice.batch_size;
        for k in 0..slice.rows() {
            let row = first + slice.rank + k * slice.world_size;
            // Rows ascend, so every later row of this rank is past the end too.
            if slice.end_row.is_some_and(|end| row >= end) {
                break;
            }
            self.row(row / n_rows, row % n_rows, &mut batch)?;
        }
        batch.pad(size, packed);
        // Rows past the end of the stream are one stretch of padding.
        let length = E::from_id(self.plan.row_length() as i64);
        batch.ends.resize(ends, length);
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

/// Ignores the targets that are `eos` from `first` on.
fn leave_out<E: Element>(targets: &mut [E], first: usize, eos: E) {
    let ignored = E::from_id(IGNORED);
    for target in targets.get_mut(first..).unwrap_or_default() {
        *target = if *target == eos { ignored } else { *target };
    }
}

/// Ignores the targets after the first `eos` from `first` on.
///
/// With these chunks, batches of 32 x 256 took 0.88 of the processor time of a plain search (median
/// of 21 rounds).
#[expect(clippy::needless_bitwise_bool, reason = "no branch per target")]
fn leave_out_after<E: Element>(targets: &mut [E], first: usize, eos: E) {
    let piece = targets.get_mut(first..).unwrap_or_default();
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
