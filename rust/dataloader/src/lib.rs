//! Token shards to training batches.
//!
//! ```text
//! documents -> write -> shards -> read --\
//!                                        batch -> ring -> the training loop
//!                       order -> plan --/      (a plan per source, and a mixture of them)
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | `memory` | instructions that the compiler does not use by itself |
//! | [`mod@format`] | the bytes of a shard, and from bytes to the integers of a batch |
//! | [`mod@write`] | documents of token ids into shards that llm.c can read |
//! | [`shard`] | one file: its size, header and blocks, checked |
//! | `blocks` | the blocks read last, kept in memory |
//! | [`read`] | shards as one long array of tokens, [`Tokens`] |
//! | [`order`] | which row comes when |
//! | [`plan`] | what a row is made of: pieces of sources; [`Windows`] cuts them anywhere |
//! | [`pack`] | which documents share a row |
//! | [`packed`] | the plan of rows that hold whole documents, [`Packed`] |
//! | [`mix`] | the plan of rows from several sources in exact shares, [`Mixture`] |
//! | [`slots`] | the memory of batches, used again |
//! | [`arrays`] | how a batch lies in a block |
//! | [`batch`] | pieces to arrays: tokens, targets, positions, documents |
//! | [`ring`] | batches made ahead by threads: [`Stream`] |
//!
//! A module uses those above it. Two ideas carry the crate. The stream of rows is a pure function
//! of (dataset, seed, epoch, index): threads, prefetching and ranks only decide who computes which
//! part of it, so none of them can change it, and a position in it is one integer. And no byte is
//! trusted: every block is hashed before its first token is used.
//!
//! The crate knows neither Python nor the tokenizer; parsing the manifest is the caller's part.
//! Defined by `python/tinylm/reference/shards.py` and `order.py`.
//!
//! # Example
//!
//! ```
//! use std::sync::Arc;
//! use tinylm_dataloader::batch::Filler;
//! use tinylm_dataloader::format::{HEADER_BYTES, Width};
//! use tinylm_dataloader::write::Layout;
//! use tinylm_dataloader::{Batch, Masked, Order, ShardEntry, ShardWriter, Tokens, Windows, plan};
//!
//! # fn main() -> tinylm_dataloader::Result<()> {
//! let folder = std::env::temp_dir().join(format!("tinylm-example-{}", std::process::id()));
//! std::fs::create_dir_all(&folder).unwrap();
//! let mut writer = ShardWriter::new(Layout {
//!     folder: folder.clone(),
//!     split: "train".to_owned(),
//!     vocab_size: 100,
//!     eos_id: 99,
//!     shard_tokens: 1000,
//!     tokenizer_sha256: [0; 32],
//! })?;
//! writer.add(&[1, 2, 3])?;
//! writer.add(&[4, 5])?;
//! let shards = writer.finish()?.into_iter().map(|record| ShardEntry {
//!     path: folder.join(record.name),
//!     tokens: record.tokens,
//!     payload: HEADER_BYTES as u64,
//!     header: Some(record.header),
//!     blocks: Some(record.blocks),
//! });
//! let tokens = Tokens::open(shards.collect(), Width::Two, plan::cached_blocks(Width::Two))?;
//! let rows = Windows::new(Order::Sequential, 0, tokens.n_tokens(), 4, 4)?;
//! let mut filler = Filler::new(vec![Arc::new(tokens)], rows, Masked::Nothing);
//! let batch: Batch<i64> = filler.row(0, 0)?;
//! assert_eq!(batch.tokens(), [1, 2, 3, 99]);
//! assert_eq!(batch.targets(), [2, 3, 99, 4]);
//! # std::fs::remove_dir_all(&folder).unwrap();
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

pub mod arrays;
pub mod batch;
mod blocks;
pub mod format;
mod hashed;
mod memory;
pub mod mix;
pub mod order;
pub mod pack;
pub mod packed;
pub mod plan;
pub mod read;
pub mod ring;
pub mod shard;
pub mod slots;
pub mod write;

pub use batch::{Batch, Masked, Slice};
pub use format::Element;
pub use mix::{Mixture, Stage};
pub use order::Order;
pub use pack::Packing;
pub use packed::Packed;
pub use plan::{Piece, Plan, Windows};
pub use read::Tokens;
pub use ring::Stream;
pub use shard::ShardEntry;
pub use write::ShardWriter;

/// What can go wrong between a shard and a batch.
///
/// Each is one line that names the file or the argument. In Python the first is an `OSError`, the
/// others are a `ValueError`.
#[derive(Debug)]
pub enum Error {
    /// The operating system refused an operation on this file.
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not what its manifest says.
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The byte at which it departs.
        offset: u64,
        /// What was expected there and what was found.
        problem: String,
    },
    /// An argument is out of its range.
    Invalid(String),
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The error of an operation on the file `path`.
    // An `io::Error` does not know its file, and an error must name it.
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    /// The error of a file that differs from its manifest at byte `offset`.
    pub(crate) fn corrupt(path: &Path, offset: u64, problem: impl Into<String>) -> Self {
        Self::Corrupt {
            path: path.to_owned(),
            offset,
            problem: problem.into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { path, source } => write!(f, "{}: {source}", path.display()),
            Self::Corrupt {
                path,
                offset,
                problem,
            } => {
                write!(f, "{}: corrupt at byte {offset}: {problem}", path.display())
            }
            Self::Invalid(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Error {}

/// Returns an error that names an argument whose value is outside `least..=most`.
// One place for the words, so that all limits are told alike, in Python too.
fn within(name: &str, value: u64, least: u64, most: u64) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "{name}={value} must be between {least} and {most}"
    )))
}
