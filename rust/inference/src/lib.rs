//! Decoding on a CPU: one call takes a token of every text to the next.
//!
//! A [`Network`] holds the weights of a dense transformer of the shape of Llama 3, Qwen 3 or GPT-2,
//! packed once in the order in which they are read. A [`Cache`] holds the keys and values of its
//! texts, and [`Cache::read`] reads more tokens of some of them: prompts in chunks, drafts, or one
//! token each, all in one call. The results are logits, or the next tokens.
//!
//! The definition is the model of `python/tinylm/model.py`, in torch. Two promises go further: what
//! a text gives is the same, bit for bit, whatever other texts are read with it, in whatever chunks,
//! and by however many threads; and no token is drawn from logits that are not finite.
//!
//! Not for training, and not for mixes of other parts: those run in torch.
#![deny(unsafe_code)]
#![expect(
    clippy::inline_always,
    reason = "only what is inlined into a task is compiled for its instruction set"
)]
#![expect(
    clippy::needless_range_loop,
    reason = "loops over registers, by the numbers of their rows and panels"
)]

use std::fmt;

mod attend;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod cache;
mod choose;
mod level;
mod memory;
mod network;
mod pace;
mod panels;
mod product;
mod simd;
mod step;
mod team;
mod tile;

pub use attend::Table;
pub use cache::{Cache, Reading, Run};
pub use choose::{Chance, Ids, Want};
pub use level::Level;
pub use network::{Builder, Network, Shape};
pub use panels::{Kind, Source};

/// What can go wrong.
#[derive(Debug)]
pub enum Error {
    /// An argument is out of its range.
    Invalid(String),
    /// The system has no memory for it.
    Memory(String),
    /// The caller asked to stop.
    Interrupted,
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(message.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(message) | Self::Memory(message) => f.write_str(message),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl std::error::Error for Error {}
