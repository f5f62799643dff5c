//! Everything that can go wrong, said in one line each.
//!
//! A message names the value, the limit and the remedy. It uses the names of the Python arguments
//! (`special`, `vocab_size`), because nearly everyone who reads it has called from Python.

/// An error of this crate.
///
/// ```
/// use tinylm_tokenizer::{Error, WordCounts};
///
/// let counts = WordCounts::new("gpt4", &["<|end|>".into()], 1)?;
/// let error = counts.room(256).unwrap_err();
/// assert!(matches!(error, Error::VocabularyTooSmall { needed: 257, .. }));
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A special token stands in a text that was not allowed to hold it.
    #[error(
        "{}; pass special=\"allow\" to encode it as one id, special=\"text\" to encode it as \
         ordinary text",
        found(.token, *.position)
    )]
    SpecialToken {
        /// The token found.
        token: String,
        /// Its offset in the UTF-8 text.
        position: usize,
    },
    /// An id outside the vocabulary, or in one of its holes.
    #[error("token id {id} is not in the vocabulary (vocab_size {vocab_size})")]
    UnknownId {
        /// The id asked for.
        id: i64,
        /// One more than the largest id.
        vocab_size: usize,
    },
    /// A name that is no special token.
    #[error("{0:?} is not a special token of this tokenizer")]
    UnknownSpecial(String),
    /// Tokens, merges or special tokens that do not make a vocabulary.
    #[error("{0}")]
    Vocabulary(String),
    /// A pattern that is neither a known name nor a usable regular expression.
    #[error("pattern {pattern:?}: {reason}")]
    Pattern {
        /// As the user gave it.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A user's regular expression ran out of its backtracking budget on some text.
    #[error(
        "pattern {pattern:?} gave up on this text: {reason}; a pattern without look-around or \
         backreferences runs in linear time"
    )]
    PatternGaveUp {
        /// As the user gave it.
        pattern: String,
        /// What the engine said.
        reason: String,
    },
    /// `vocab_size` leaves no room for the bytes and the special tokens.
    #[error(
        "vocab_size {vocab_size} is too small: 256 bytes and {special_tokens} special tokens need \
         at least {needed}"
    )]
    VocabularyTooSmall {
        /// What was asked for.
        vocab_size: usize,
        /// How many special tokens there are.
        special_tokens: usize,
        /// The smallest size possible.
        needed: usize,
    },
    /// A way of drawing segmentations that is out of range or not the model's.
    #[error("{0}")]
    Sampling(String),
    /// Nothing to train on.
    #[error("the corpus is empty: training needs at least one character of text")]
    EmptyCorpus,
    /// More distinct text than 32-bit positions can address.
    #[error("{what} is {length} bytes long; the limit is 4294967295")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// Its length in bytes.
        length: usize,
    },
    /// A file that cannot be read or written.
    #[error("{}: {reason}", .path.display())]
    File {
        /// Which one.
        path: std::path::PathBuf,
        /// The system's number for the error.
        number: Option<i32>,
        /// What the system says.
        reason: String,
    },
    /// A file of counts that is damaged, or none.
    #[error("{0}")]
    CountFile(String),
    /// The caller's [`crate::Interrupt`] asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// What is wrong and a name for the remedy, where callers offer it under a name of their own.
    ///
    /// "special": choose another [`crate::Policy`] or another text.
    pub fn remedy(&self) -> Option<(String, &'static str)> {
        match self {
            Self::SpecialToken { token, position } => Some((found(token, *position), "special")),
            // Written out: a new kind of error must be decided here too.
            Self::UnknownId { .. }
            | Self::UnknownSpecial(_)
            | Self::Vocabulary(_)
            | Self::Pattern { .. }
            | Self::PatternGaveUp { .. }
            | Self::VocabularyTooSmall { .. }
            | Self::Sampling(_)
            | Self::EmptyCorpus
            | Self::TooLong { .. }
            | Self::File { .. }
            | Self::CountFile(_)
            | Self::Interrupted => None,
        }
    }
}

/// The same words in the message and in the remedy's problem. The position counts bytes.
fn found(token: &str, position: usize) -> String {
    format!("the text holds the special token {token:?} at byte {position}")
}

/// Refuses a piece whose bytes 32 bits cannot number, for the models that number them.
///
/// # Errors
///
/// [`Error::TooLong`].
pub(crate) fn numbered(piece: &[u8]) -> Result<(), Error> {
    if piece.len() < u32::MAX as usize {
        return Ok(());
    }
    Err(Error::TooLong {
        what: "a piece of the text",
        length: piece.len(),
    })
}
