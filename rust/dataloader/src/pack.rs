//! Which documents share a row: best fit decreasing, a block of documents at a time.
//!
//! The inputs of a document are the eos before it and all its tokens but its own eos, its last
//! target. So documents tile the inputs of a dataset: every token but the very first is a target
//! exactly once. A document longer than a row becomes whole rows and a rest. Nothing else is cut.
//!
//! ```text
//! lengths of documents   -> pieces (start, length) of at most a row
//! 4,096 of them or more  -> a block
//! a block                -> rows: the longest piece first, into the least room that holds it
//! ```
//!
//! Best fit decreasing (Johnson, 1974) needs all its pieces at once; a block bounds what that
//! takes. A [`Packing`] holds four bytes for each document and a few words for each block. The rows
//! of a block are made when they are wanted, and again when they are wanted again.
//!
//! Defined by `python/tinylm/reference/packing.py`, held to it by the rung `packed rows`.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::plan::{MAX_CONTEXT_LENGTH, Piece};
use crate::{Error, Result, within};

/// When a block of pieces and a window of blocks are full.
///
/// Part of the order that saved runs resume to: the defaults may not change. They may be smaller
/// in tests alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Pieces shorter than a row that a block needs: with 4,096 of them nearly every row is full.
    pub short_pieces: u64,
    /// Rows that it needs: the last one, half empty on average, then is 0.05% of them.
    pub block_rows: u64,
    /// Inputs of which it needs no more: 8 MiB of `uint16`, so a few blocks fit into the cache of
    /// the reader.
    pub block_inputs: u64,
    /// Inputs of the blocks whose rows are shuffled together, padding counted: as many as the
    /// windows of [`crate::order`].
    pub window_inputs: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            short_pieces: 4096,
            block_rows: 1024,
            block_inputs: 1 << 22,
            window_inputs: 1 << 24,
        }
    }
}

/// A block: the inputs that its rows are made of, which follow each other in the source.
#[derive(Clone, Copy, Debug)]
struct Block {
    /// The document that its first piece belongs to, and where the inputs of that end.
    document: usize,
    document_end: u64,
    /// The first input, and the one after the last.
    start: u64,
    end: u64,
    rows: u64,
}

/// The documents of a source, and how they are cut into blocks and rows.
#[derive(Clone, Debug)]
pub struct Packing {
    /// Tokens of each document, eos included.
    lengths: Vec<u32>,
    context_length: u64,
    blocks: Vec<Block>,
    /// The most pieces that any row has.
    most_pieces: usize,
}

/// The rows of a block.
#[derive(Debug, PartialEq, Eq)]
pub struct Rows {
    /// Row after row; `document` counts from 0 in each.
    pieces: Vec<Piece>,
    /// Where each row's pieces end.
    ends: Vec<u32>,
}

impl Rows {
    /// How many rows.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none, which no block of a [`Packing`] has.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The pieces of row `i`; none if there is no such row.
    pub fn row(&self, i: usize) -> &[Piece] {
        let from = i.checked_sub(1).and_then(|before| self.ends.get(before));
        let from = from.map_or(0, |&end| end as usize);
        self.ends
            .get(i)
            .and_then(|&to| self.pieces.get(from..to as usize))
            .unwrap_or_default()
    }
}

impl Packing {
    /// Packs documents of these lengths, eos included, into rows of `context_length` inputs.
    ///
    /// Takes one pass over the documents, in which every block is packed once to count its rows.
    /// `interrupt` is asked after each block.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a context length out of its range, for documents that have no input
    /// together, and what `interrupt` returns.
    pub fn new(
        lengths: Vec<u32>,
        context_length: u64,
        limits: Limits,
        interrupt: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Self> {
        within("context_length", context_length, 1, MAX_CONTEXT_LENGTH)?;
        let mut packing = Self {
            lengths,
            context_length,
            blocks: Vec::new(),
            most_pieces: 1,
        };
        packing.cut(limits);
        if packing.blocks.is_empty() {
            return Err(Error::Invalid(
                "the dataset has no two tokens: prepare more text".to_owned(),
            ));
        }
        let mut packer = Packer::default();
        for number in 0..packing.blocks.len() {
            let rows = packing.rows(number, &mut packer);
            let most = (0..rows.len()).map(|i| rows.row(i).len()).max();
            packing.most_pieces = packing.most_pieces.max(most.unwrap_or(0));
            packing.blocks[number].rows = rows.len() as u64;
            interrupt()?;
        }
        Ok(packing)
    }

    /// Finds where blocks begin.
    fn cut(&mut self, limits: Limits) {
        let rows = limits.block_rows.saturating_mul(self.context_length);
        let full = |short, inputs| {
            short >= limits.short_pieces && inputs >= rows || inputs >= limits.block_inputs
        };
        let (mut short, mut inputs) = (0, 0);
        // The first document of all has no eos before it.
        let (mut start, mut end) = (0, 0);
        for (document, &length) in self.lengths.iter().enumerate() {
            end += u64::from(length);
            let document_end = end.saturating_sub(1);
            while start < document_end {
                if full(short, inputs) || self.blocks.is_empty() {
                    self.blocks.push(Block {
                        document,
                        document_end,
                        start,
                        end: start,
                        rows: 0,
                    });
                    (short, inputs) = (0, 0);
                }
                let length = self.context_length.min(document_end - start);
                start += length;
                short += u64::from(length < self.context_length);
                inputs += length;
                if let Some(block) = self.blocks.last_mut() {
                    block.end = start;
                }
            }
        }
        // A small block would waste more of its rows than the others.
        if self.blocks.len() > 1
            && !full(2 * short, 2 * inputs)
            && let Some(rest) = self.blocks.pop()
            && let Some(last) = self.blocks.last_mut()
        {
            last.end = rest.end;
        }
    }

    /// How many blocks; at least one.
    pub fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// How many rows a block has.
    pub fn n_rows(&self, block: usize) -> u64 {
        self.blocks.get(block).map_or(0, |block| block.rows)
    }

    /// Inputs of one row, padding included.
    pub fn context_length(&self) -> u64 {
        self.context_length
    }

    /// The most pieces that any row has.
    pub fn most_pieces(&self) -> usize {
        self.most_pieces
    }

    /// The inputs of a block: where they begin, and how many they are.
    pub fn span(&self, block: usize) -> (u64, u64) {
        self.blocks
            .get(block)
            .map_or((0, 0), |block| (block.start, block.end - block.start))
    }

    /// The rows of a block, from the lengths of its documents.
    pub fn rows(&self, block: usize, packer: &mut Packer) -> Rows {
        packer.pieces.clear();
        if let Some(&Block {
            document,
            mut document_end,
            mut start,
            end,
            ..
        }) = self.blocks.get(block)
        {
            let mut later = self.lengths.get(document + 1..).unwrap_or_default().iter();
            while start < end {
                // A document of one token has no input but the eos before it.
                if start == document_end {
                    document_end += later
                        .next()
                        .map_or(end - start, |&length| u64::from(length));
                    continue;
                }
                let length = self.context_length.min(document_end - start);
                packer.pieces.push((start, length));
                start += length;
            }
        }
        packer.pack(self.context_length)
    }
}

/// Best fit decreasing; keeps its memory from block to block.
#[derive(Debug, Default)]
pub struct Packer {
    /// (start, length) in the order of the source.
    pieces: Vec<(u64, u64)>,
    /// The numbers of the pieces, the longest first.
    order: Vec<u32>,
    /// The row of each piece in that order.
    row_of: Vec<u32>,
    /// Rows with room by (room, the later the smaller): the first from a length on is the best fit.
    room: BTreeMap<(u64, Reverse<u32>), u32>,
}

impl Packer {
    /// Packs `self.pieces`.
    fn pack(&mut self, context_length: u64) -> Rows {
        let Self {
            pieces,
            order,
            row_of,
            room,
        } = self;
        order.clear();
        order.extend(0..pieces.len() as u32);
        // Stable: of equal lengths the first in the source comes first.
        order.sort_by_key(|&at| Reverse(pieces[at as usize].1));
        room.clear();
        row_of.clear();
        // How many pieces each row has; then where they end.
        let mut ends: Vec<u32> = Vec::new();
        for (time, &at) in (0..).zip(order.iter()) {
            let length = pieces[at as usize].1;
            let best = room.range((length, Reverse(u32::MAX))..).next();
            let (left, row) = if let Some((&fit, &row)) = best {
                room.remove(&fit);
                (fit.0, row)
            } else {
                ends.push(0);
                (context_length, ends.len() as u32 - 1)
            };
            ends[row as usize] += 1;
            row_of.push(row);
            if left > length {
                room.insert((left - length, Reverse(time)), row);
            }
        }
        let mut total = 0;
        for end in &mut ends {
            total += *end;
            *end = total - *end;
        }
        // `ends` holds the beginnings now; each piece moves that of its row on.
        let nothing = Piece {
            source: 0,
            start: 0,
            length: 0,
            document: 0,
        };
        let mut packed = vec![nothing; pieces.len()];
        let begins = ends.clone();
        for (&at, &row) in order.iter().zip(row_of.iter()) {
            let (start, length) = pieces[at as usize];
            let place = &mut ends[row as usize];
            packed[*place as usize] = Piece {
                source: 0,
                start,
                length: length as usize,
                document: *place - begins[row as usize],
            };
            *place += 1;
        }
        Rows {
            pieces: packed,
            ends,
        }
    }
}
