//! Token shards to training batches.
//!
//! [`write`] puts documents of token ids into shards that llm.c can read, [`Tokens`] reads them
//! back as one long array whose every block is checked, [`Rows`] says which window of that array
//! is row `i` of epoch `e`, and [`Stream`] fills batches of rows ahead of the training loop.
//!
//! One idea carries the crate: the stream of rows is a pure function of (dataset, seed, epoch,
//! index). Threads, prefetching and ranks only decide who computes which piece of it, so none of
//! them can change it, and a position in it is one integer.
//!
//! It knows neither Python nor the tokenizer; parsing the manifest is the caller's part. Defined
//! by `python/tinylm/reference/shards.py` and `order.py`.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

pub mod batch;
pub mod format;
pub mod order;
pub mod read;
pub mod ring;
pub mod write;

pub use batch::{Batch, Element, Slice};
pub use order::{Order, Rows};
pub use read::Tokens;
pub use ring::Stream;
pub use write::ShardWriter;

/// What can go wrong between a shard and a batch.
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
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }

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
