//! Rows to batches: `tokens[B, T]` and `targets[B, T]`, the targets one token later.

use crate::format::Width;
use crate::order::{Rows, Walk};
use crate::read::{Reading, Tokens};
use crate::{Error, Result};

/// The target that a loss leaves out.
pub const IGNORED: i32 = -100;

/// An integer that a batch may be made of.
pub trait Element: Copy + PartialEq + Send + 'static {
    /// The value of an id (or of [`IGNORED`]) in this type.
    fn from_id(id: i64) -> Self;
    /// Appends tokens as they lie on disk.
    fn extend(out: &mut Vec<Self>, bytes: &[u8], width: Width);
}

macro_rules! element {
    ($type:ty) => {
        impl Element for $type {
            fn from_id(id: i64) -> Self {
                id as Self
            }

            #[inline]
            #[allow(clippy::cast_lossless, reason = "one macro for narrow and wide types")]
            fn extend(out: &mut Vec<Self>, bytes: &[u8], width: Width) {
                match width {
                    Width::Two => out.extend(
                        bytes
                            .chunks_exact(2)
                            .map(|b| u16::from_le_bytes([b[0], b[1]]) as Self),
                    ),
                    Width::Four => out.extend(
                        bytes
                            .chunks_exact(4)
                            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as Self),
                    ),
                }
            }
        }
    };
}
element!(u16);
element!(u32);
element!(i32);
element!(i64);

/// Two arrays of `rows` x `context_length`, row by row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch<E> {
    /// What the model reads.
    pub tokens: Vec<E>,
    /// What it should say, -100 where it does not matter.
    pub targets: Vec<E>,
}

/// Which rows of each global batch are ours, and how far the stream goes.
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
    pub fn check(&self) -> Result<()> {
        if self.world_size == 0 || self.rank >= self.world_size {
            return Err(Error::Invalid(format!(
                "rank is {}; it must be below world_size = {}",
                self.rank, self.world_size
            )));
        }
        if self.batch_size < self.world_size {
            return Err(Error::Invalid(format!(
                "batch_size is {}; it must be at least world_size = {}, one row a rank",
                self.batch_size, self.world_size
            )));
        }
        Ok(())
    }

    /// Rows of a batch that are ours.
    pub fn rows(&self) -> u64 {
        (self.batch_size - self.rank).div_ceil(self.world_size)
    }

    /// Batches until the end, if there is one.
    pub fn n_batches(&self) -> Option<u64> {
        self.end_row
            .map(|end| end.saturating_sub(self.first_row).div_ceil(self.batch_size))
    }
}

/// Makes batches of one dataset; each thread has its own.
#[derive(Debug)]
pub struct Filler<'a, E> {
    tokens: &'a Tokens,
    rows: &'a Rows,
    /// Targets after the first of these in a row are left out.
    mask_after: Option<u32>,
    walk: Walk<'a>,
    reading: Reading,
    window: Vec<E>,
}

impl<'a, E: Element> Filler<'a, E> {
    /// A filler over `rows` of `tokens`.
    pub fn new(tokens: &'a Tokens, rows: &'a Rows, mask_after: Option<u32>) -> Self {
        let reading = if rows.scattered() {
            Reading::Far
        } else {
            Reading::Near
        };
        Self {
            reading: tokens.allowed(reading),
            tokens,
            rows,
            mask_after,
            walk: rows.walk(),
            window: Vec::new(),
        }
    }

    /// Appends row `i` of `epoch`.
    pub fn row(&mut self, epoch: u64, i: u64, batch: &mut Batch<E>) -> Result<()> {
        let length = self.rows.context_length();
        let start = self.walk.start(epoch, i);
        let n = (self.tokens.n_tokens().saturating_sub(start) as usize).min(length + 1);
        self.window.clear();
        self.tokens.read(start, n, self.reading, &mut self.window)?;
        let targets = batch.targets.len();
        batch
            .tokens
            .extend_from_slice(self.window.get(..n.min(length)).unwrap_or_default());
        batch
            .targets
            .extend_from_slice(self.window.get(1..).unwrap_or_default());
        // A short row: its last token has a target no longer, and what follows is padding.
        batch.tokens.resize(targets + length, E::from_id(0));
        batch
            .targets
            .resize(targets + length, E::from_id(i64::from(IGNORED)));
        if let Some(eos) = self.mask_after {
            let row = batch.targets.get_mut(targets..).unwrap_or_default();
            let eos = E::from_id(i64::from(eos));
            let after = row
                .iter()
                .position(|&id| id == eos)
                .map_or(length, |at| at + 1);
            row.iter_mut()
                .skip(after)
                .for_each(|id| *id = E::from_id(i64::from(IGNORED)));
        }
        Ok(())
    }

    /// Our rows of the `number`-th batch of a stream.
    pub fn batch(&mut self, slice: &Slice, number: u64) -> Result<Batch<E>> {
        let length = self.rows.context_length();
        let size = slice.rows() as usize * length;
        let mut batch = Batch {
            tokens: Vec::with_capacity(size),
            targets: Vec::with_capacity(size),
        };
        let n_rows = self.rows.n_rows();
        let first = slice.first_row + number * slice.batch_size;
        for k in 0..slice.rows() {
            let row = first + slice.rank + k * slice.world_size;
            if slice.end_row.is_some_and(|end| row >= end) {
                break;
            }
            self.row(row / n_rows, row % n_rows, &mut batch)?;
        }
        batch.tokens.resize(size, E::from_id(0));
        batch.targets.resize(size, E::from_id(i64::from(IGNORED)));
        for (start, n) in self
            .walk
            .ahead(first / n_rows, first % n_rows, slice.batch_size)
        {
            self.tokens.warm(start, n)?;
        }
        Ok(batch)
    }
}
