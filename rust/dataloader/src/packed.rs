//! The plan of rows that hold whole documents.
//!
//! [`crate::pack`] says which documents share a row. Here is in which order these rows come: an
//! epoch permutes the blocks of documents, and the rows inside windows of about 16 M tokens of
//! blocks. Rows that are trained on together thus come from a few places of the corpus, and the
//! disk sees whole blocks, as in [`crate::order`].
//!
//! Defined by `epoch` in `python/tinylm/reference/packing.py`, held to it by the rung
//! `packed rows`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::order::{Order, Permutation, key};
use crate::pack::{Limits, Packer, Packing, Rows};
use crate::plan::{Piece, Plan, Span};
use crate::{Error, Result};

/// The streams of random numbers of one seed; 0 to 2 are those of [`crate::order`].
const PACKS: u64 = 3;
const ROWS: u64 = 4;

/// The packed rows that some thread has at the moment, so that no block is packed twice.
#[derive(Debug, Default)]
struct Made {
    rows: HashMap<usize, Weak<Rows>>,
    packer: Packer,
}

/// The rows of whole documents, shuffled or in the order of the corpus.
#[derive(Clone, Debug)]
pub struct Packed {
    packing: Arc<Packing>,
    made: Arc<Mutex<Made>>,
    order: Order,
    seed: u64,
    window_inputs: u64,
    n_rows: u64,
    epoch: Epoch,
    /// The window of the row asked for last.
    window: Window,
    /// Slots of the window after it that are packed already.
    next: Vec<(usize, Arc<Rows>)>,
}

/// The blocks of an epoch in their order.
#[derive(Clone, Debug, Default)]
struct Epoch {
    /// None before the first row.
    number: Option<u64>,
    /// The block in each slot, and the rows before it; with the rows of all at the end.
    blocks: Vec<usize>,
    rows_before: Vec<u64>,
    /// The first slot of each window, and the number of slots at the end.
    windows: Vec<usize>,
}

/// The slots of a window and their rows, as far as they were wanted.
#[derive(Clone, Debug, Default)]
struct Window {
    number: usize,
    /// None if the order is sequential.
    inside: Option<Permutation>,
    rows: HashMap<usize, Arc<Rows>>,
}

impl Packed {
    /// The rows of `packing`. `limits` gives the size of a window.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for the order `random`, which draws windows of tokens.
    pub fn new(packing: Arc<Packing>, order: Order, seed: u64, limits: Limits) -> Result<Self> {
        if order == Order::Random {
            return Err(Error::Invalid(
                "order=random draws windows of tokens, and packed rows hold whole documents: use shuffle or sequential".to_owned(),
            ));
        }
        Ok(Self {
            n_rows: (0..packing.n_blocks()).map(|b| packing.n_rows(b)).sum(),
            packing,
            made: Arc::default(),
            order,
            seed,
            window_inputs: limits.window_inputs,
            epoch: Epoch::default(),
            window: Window::default(),
            next: Vec::new(),
        })
    }

    /// Moves to an epoch.
    fn enter(&mut self, number: u64) {
        if self.epoch.number == Some(number) {
            return;
        }
        let n = self.packing.n_blocks();
        let mut epoch = Epoch {
            number: Some(number),
            windows: vec![0],
            ..Epoch::default()
        };
        let permutation = Permutation::new(n as u64, key(&[self.seed, PACKS, number]));
        let (mut rows, mut first) = (0, 0);
        for slot in 0..n {
            let block = match self.order {
                Order::Sequential => slot,
                _ => permutation.at(slot as u64) as usize,
            };
            epoch.blocks.push(block);
            epoch.rows_before.push(rows);
            rows += self.packing.n_rows(block);
            // In the order of the corpus no row leaves its block, so each is a window.
            let full = self.order == Order::Sequential
                || (rows - first) * self.packing.context_length() >= self.window_inputs;
            if full || slot + 1 == n {
                epoch.windows.push(slot + 1);
                first = rows;
            }
        }
        epoch.rows_before.push(rows);
        self.epoch = epoch;
        self.next.clear();
        self.look_at(0);
    }

    /// Moves to a window of the epoch.
    fn look_at(&mut self, number: usize) {
        let (from, to) = (self.epoch.windows[number], self.epoch.windows[number + 1]);
        let n = self.epoch.rows_before[to] - self.epoch.rows_before[from];
        let inside = (self.order != Order::Sequential).then(|| {
            let epoch = self.epoch.number.unwrap_or(0);
            Permutation::new(n, key(&[self.seed, ROWS, epoch, number as u64]))
        });
        let ahead = self.next.drain(..);
        self.window = Window {
            number,
            inside,
            rows: ahead
                .filter(|(slot, _)| (from..to).contains(slot))
                .collect(),
        };
    }

    /// The rows of a block, packed now unless some thread has them.
    fn rows(&self, block: usize) -> Arc<Rows> {
        // Held while a block is packed: another thread most likely wants the same one.
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rows) = made.rows.get(&block).and_then(Weak::upgrade) {
            return rows;
        }
        let rows = Arc::new(self.packing.rows(block, &mut made.packer));
        // What nobody holds any more is forgotten; a window has a few hundred blocks at the most.
        made.rows.retain(|_, rows| rows.strong_count() > 0);
        made.rows.insert(block, Arc::downgrade(&rows));
        rows
    }
}

/// The last of the ascending numbers that is at most `value`; 0 if none is.
fn last_at_most<T: PartialOrd>(ascending: &[T], value: &T) -> usize {
    ascending
        .partition_point(|number| number <= value)
        .saturating_sub(1)
}

impl Plan for Packed {
    fn n_rows(&self) -> u64 {
        self.n_rows
    }

    fn row_length(&self) -> usize {
        self.packing.context_length() as usize
    }

    fn row(&mut self, epoch: u64, i: u64, pieces: &mut Vec<Piece>) {
        self.enter(epoch);
        let slot = last_at_most(&self.epoch.rows_before, &i);
        let number = last_at_most(&self.epoch.windows, &slot);
        if number != self.window.number {
            self.look_at(number);
        }
        let first = self.epoch.rows_before[self.epoch.windows[number]];
        let inside = self.window.inside.as_ref();
        let row = first + inside.map_or(i - first, |inside| inside.at(i - first));
        let slot = last_at_most(&self.epoch.rows_before, &row);
        let place = (row - self.epoch.rows_before[slot]) as usize;
        if !self.window.rows.contains_key(&slot) {
            let rows = self.rows(self.epoch.blocks[slot]);
            self.window.rows.insert(slot, rows);
        }
        if let Some(rows) = self.window.rows.get(&slot) {
            pieces.extend_from_slice(rows.row(place));
        }
    }

    fn packed(&self) -> bool {
        true
    }

    fn most_pieces(&self) -> usize {
        self.packing.most_pieces()
    }

    fn ahead(&mut self, epoch: u64, i: u64, n: u64) -> Vec<Span> {
        self.enter(epoch);
        let slot = last_at_most(&self.epoch.rows_before, &i);
        let number = last_at_most(&self.epoch.windows, &slot);
        let windows = &self.epoch.windows;
        let Some(&end) = windows.get(number + 2) else {
            return Vec::new();
        };
        // Blocks of the next window are spread over the rows of this one.
        let (from, to) = (windows[number], windows[number + 1]);
        let rows = &self.epoch.rows_before;
        let (first, all) = (rows[from], rows[to] - rows[from]);
        let slots = (end - to) as u64;
        let until = |row: u64| (slots * (row - first).min(all)).div_ceil(all);
        (to + until(i) as usize..to + until(i + n) as usize)
            .map(|slot| {
                let block = self.epoch.blocks[slot];
                let rows = self.rows(block);
                self.next.push((slot, rows));
                let (start, length) = self.packing.span(block);
                Span {
                    source: 0,
                    start,
                    length,
                }
            })
            .collect()
    }
}
