//! Text to tokens and back: byte-level BPE, trained, encoded and decoded.
//!
//! A text is cut at its special tokens, the stretches between them are split into pieces
//! by a pattern ([`Pattern`]), and the bytes of each piece are merged into tokens. Every step
//! costs time linear in the text, or `n log n` for a single piece of n bytes, whatever the input.
//!
//! ```
//! use tinylm_tokenizer::{Policy, Spec, Ties, Tokenizer, WordCounts, no_interrupt};
//!
//! let mut counts = WordCounts::new("gpt4", &["<|end|>".into()], 1)?;
//! counts.add(&[b"low lower lowest".as_slice()], &mut no_interrupt)?;
//! let trained = counts.train_bpe(260, 1, Ties::Ids, &mut |_, _| Ok(()))?;
//! let spec = Spec {
//!     tokens: trained.tokens.into_iter().zip(0..).collect(),
//!     merges: Some(trained.merges),
//!     whole_pieces: false,
//!     pattern: "gpt4".into(),
//!     special_tokens: vec![("<|end|>".into(), 259)],
//! };
//! let tokenizer = Tokenizer::new(spec)?;
//! let ids = tokenizer.encode(b"lowest", &Policy::Raise, &mut no_interrupt)?;
//! assert_eq!(tokenizer.decode(&ids)?, b"lowest");
//! # Ok::<(), tinylm_tokenizer::Error>(())
//! ```
//!
//! The crate knows nothing of Python. What may take long has an [`Interrupt`] argument, called
//! at least every few milliseconds; an error from it ends the work and is handed on.
#![forbid(unsafe_code)]

mod bpe;
mod cache;
mod count;
mod encode;
mod error;
mod heap;
mod parallel;
mod scan;
mod special;
mod split;
mod stream;
mod train;
mod unicode;
mod vocab;

pub use count::WordCounts;
pub use encode::{Spec, Tokenizer};
pub use error::Error;
pub use special::Policy;
pub use split::Pattern;
pub use stream::DecodeStream;
pub use train::{Ties, Trained};

/// Called now and then during long work; an error ends the work.
pub type Interrupt<'a> = dyn FnMut() -> Result<(), Error> + 'a;

/// The [`Interrupt`] that never interrupts.
pub fn no_interrupt() -> Result<(), Error> {
    Ok(())
}
