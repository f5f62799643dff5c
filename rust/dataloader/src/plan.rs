//! What a row is made of: the step between the order and the batch.
//!
//! The order says which row comes when. A [`Plan`] turns the number of a row into [`Piece`]s, each
//! a run of tokens of one document in one source. The batch is filled from the pieces and knows
//! neither the order nor how the pieces were chosen.
//!
//! ```text
//! row(epoch, i) -> pieces (source, start, length, document)
//!
//! windows     |------------- one piece of T inputs -------------|
//! packing     |-- document 0 --|------- document 1 -------|-- 2 --| padding |
//! mixture     as either, each row of one of several sources
//! ```
//!
//! [`Windows`] cuts rows from a source without regard to documents, [`Packed`](crate::Packed) fills
//! them with whole documents, [`Mixture`](crate::Mixture) takes the rows of several sources.
//!
//! # The contract
//!
//! - `length` counts inputs. The pieces of a row follow each other in it without gaps and have at
//!   most [`Plan::row_length`] inputs together; the rest of the row is padding.
//! - The target of every input is the token after it *in its source*, also for the last input of
//!   a piece. It is [`IGNORED`](crate::batch::IGNORED) where the source ends, so reading a piece
//!   takes `length + 1` tokens, or `length` at the end. A target is never the first token of the
//!   next piece.
//! - Documents end with eos, so a piece that stops one token before its document does has eos as
//!   its last target, and no target crosses into another document. A plan that lets a piece run
//!   on over the end of a document, as windows do, says so with its length.
//! - Positions count from 0 in every piece, `document` is repeated for every input of a piece, and
//!   the end of every piece is noted. A plan of one piece per row (not [`Plan::packed`]) has none
//!   of them in its batches: there, the positions of every row are 0 to T-1 and every row is one
//!   document.
//! - Padding is token 0, target [`IGNORED`](crate::batch::IGNORED), position 0, document -1.
//!
//! A plan is a pure function of (epoch, row), or resuming would not give the same rows. Each
//! thread works with a clone, so a plan may keep what the next row needs, such as a permutation.
//! Defined by `fill` in `python/tinylm/reference/order.py`.
//! It is held to that definition by the rungs `row` and `epoch`.

use std::fmt::Debug;

use crate::format::{BLOCK_BYTES, Width};
use crate::order::{BLOCK_TOKENS, Order, Shuffle, WINDOW_BLOCKS, anywhere};
use crate::{Error, Result, within};

/// The longest row, and the longest stride.
///
/// The product of a row and the stride cannot overflow: it is a place in the dataset.
pub const MAX_CONTEXT_LENGTH: u64 = 1 << 31;

/// Inputs of a row that follow each other in a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which of the sources.
    pub source: usize,
    /// The first input's place in it.
    pub start: u64,
    /// How many inputs.
    pub length: usize,
    /// The number of their document, for the mask; 0 or more.
    pub document: u32,
}

/// Tokens that will be wanted soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Which of the sources.
    pub source: usize,
    /// The first token's place in it.
    pub start: u64,
    /// How many tokens.
    pub length: u64,
}

/// From the number of a row to its pieces; the module's page has the contract.
///
/// A `Clone` goes to each thread, hence `Send` and `'static`.
pub trait Plan: Clone + Debug + Send + 'static {
    /// Rows of one epoch; at least 1.
    ///
    /// The same in every epoch: the stream finds epoch and row by division.
    fn n_rows(&self) -> u64;

    /// Inputs of one row, padding included.
    fn row_length(&self) -> usize;

    /// Appends the pieces of row `i < n_rows` of `epoch`.
    ///
    /// It takes `&mut self` for what it keeps from row to row, and `pieces` so that nothing is
    /// allocated.
    fn row(&mut self, epoch: u64, i: u64, pieces: &mut Vec<Piece>);

    /// Whether a row may have several pieces, so that batches carry positions and documents.
    fn packed(&self) -> bool;

    /// The most pieces that any row has.
    fn most_pieces(&self) -> usize {
        1
    }

    /// Whether consecutive rows are far apart, so that reading whole blocks for them is a waste.
    ///
    /// Such rows are read alone once their block has been hashed: see
    /// [`Reading::Far`](crate::read::Reading::Far).
    fn scattered(&self) -> bool {
        false
    }

    /// Returns an error unless an epoch has a row `i`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`], with the number of rows.
    fn check_row(&self, i: u64) -> Result<()> {
        let n_rows = self.n_rows();
        if i < n_rows {
            return Ok(());
        }
        let problem = format!("row {i} of an epoch of {n_rows} rows");
        Err(Error::Invalid(problem))
    }

    /// The tokens to read into the cache while rows `i..i + n` of `epoch` are served.
    ///
    /// Only a hint: rows are the same without it. It must be cheap, as it is asked for each batch.
    fn ahead(&mut self, _epoch: u64, _i: u64, _n: u64) -> Vec<Span> {
        Vec::new()
    }
}

/// The plan of rows that are cut from one source without regard to documents: row `k` begins at
/// token `k * stride` and is one piece.
///
/// ```
/// use tinylm_dataloader::{Order, Plan, Windows};
///
/// // Ten tokens, rows of four, one each two tokens: rows begin at 0, 2, 4 and 6.
/// let mut rows = Windows::new(Order::Sequential, 0, 10, 4, 2)?;
/// assert_eq!(rows.n_rows(), 4);
/// assert_eq!(rows.start(0, 3), 6);
/// # Ok::<(), tinylm_dataloader::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Windows {
    order: Order,
    seed: u64,
    n_tokens: u64,
    context_length: u64,
    stride: u64,
    n_rows: u64,
    shuffle: Shuffle,
}

impl Windows {
    /// Windows of `context_length + 1` tokens, one each `stride` tokens.
    ///
    /// The last row is the first to reach the end of the dataset: shuffled, it begins early enough
    /// to be whole; sequential, it is padded, so that no target is scored twice.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a number out of its range, and for a dataset too short for a row.
    pub fn new(
        order: Order,
        seed: u64,
        n_tokens: u64,
        context_length: u64,
        stride: u64,
    ) -> Result<Self> {
        // Checked first: the sums below cannot overflow after it.
        within("context_length", context_length, 1, MAX_CONTEXT_LENGTH)?;
        // A longer stride would leave targets out.
        within("stride", stride, 1, context_length)?;
        // Sequential rows are padded, so one token and its target are enough.
        let least = if order == Order::Sequential {
            2
        } else {
            context_length + 1
        };
        if n_tokens < least {
            return Err(Error::Invalid(format!(
                "the dataset has {n_tokens} tokens and a row needs {least}: prepare more text or lower context_length = {context_length}"
            )));
        }
        // The last token is only a target, hence the 1 less.
        let n_rows = 1
            + (n_tokens - 1)
                .saturating_sub(context_length)
                .div_ceil(stride);
        Ok(Self {
            order,
            seed,
            n_tokens,
            context_length,
            stride,
            n_rows,
            shuffle: Shuffle::new(seed, n_rows, stride),
        })
    }

    /// The token at which row `i` of `epoch` begins.
    pub fn start(&mut self, epoch: u64, i: u64) -> u64 {
        // Where the last whole row begins; a sequential dataset may be shorter than that.
        let last = self.n_tokens.saturating_sub(self.context_length + 1);
        match self.order {
            Order::Sequential => i * self.stride,
            Order::Random => anywhere(self.seed, epoch, i, last + 1),
            // The last row begins early and repeats targets; padding would waste a part of a step.
            Order::Shuffle => last.min(self.shuffle.row(epoch, i) * self.stride),
        }
    }
}

impl Plan for Windows {
    fn n_rows(&self) -> u64 {
        self.n_rows
    }

    fn row_length(&self) -> usize {
        self.context_length as usize
    }

    #[inline]
    fn row(&mut self, epoch: u64, i: u64, pieces: &mut Vec<Piece>) {
        let start = self.start(epoch, i);
        // Only the last row of a sequential epoch has fewer than a context.
        let left = self.n_tokens.saturating_sub(start);
        // One source and one document, as the batch has no mask.
        pieces.push(Piece {
            source: 0,
            start,
            length: self.context_length.min(left) as usize,
            document: 0,
        });
    }

    fn packed(&self) -> bool {
        false
    }

    fn scattered(&self) -> bool {
        self.order == Order::Random
    }

    fn ahead(&mut self, epoch: u64, i: u64, n: u64) -> Vec<Span> {
        if self.order != Order::Shuffle {
            return Vec::new();
        }
        // As in `start`: `new` has refused a shuffled dataset that is shorter than a row.
        let last = self.n_tokens - self.context_length - 1;
        // In tokens.
        let block = self.shuffle.block_rows() * self.stride;
        let rows = self.shuffle.ahead(epoch, i, n);
        rows.into_iter()
            .map(|row| {
                let start = last.min(row * self.stride);
                Span {
                    source: 0,
                    start,
                    length: block.min(self.n_tokens - start),
                }
            })
            .collect()
    }
}

/// How many blocks of a source to keep in memory: those of two windows of the shuffle, the one
/// that is served and the next, which is read ahead. 128 MiB of `uint16`, 192 MiB of `uint32`.
///
/// With less room, blocks that are read ahead would push out blocks that are still in use.
pub fn cached_blocks(width: Width) -> usize {
    // A block of rows touches one block of bytes more than it fills.
    let touched = BLOCK_TOKENS as usize * width.bytes() / BLOCK_BYTES + 1;
    2 * WINDOW_BLOCKS as usize * touched
}
