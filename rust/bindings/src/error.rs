//! From the errors of the two cores to Python's exceptions, each in one exhaustive `match`.

use pyo3::PyErr;
use pyo3::exceptions::{PyKeyError, PyKeyboardInterrupt, PyValueError};

/// The exception for an error of the tokenizer.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that map_err takes"
)]
pub(crate) fn tokenizer_error(error: tinylm_tokenizer::Error) -> PyErr {
    use tinylm_tokenizer::Error;
    let message = error.to_string();
    match error {
        Error::UnknownId { .. } | Error::UnknownSpecial(_) => PyKeyError::new_err(message),
        Error::SpecialToken { .. }
        | Error::Vocabulary(_)
        | Error::Pattern { .. }
        | Error::PatternGaveUp { .. }
        | Error::VocabularyTooSmall { .. }
        | Error::EmptyCorpus
        | Error::TooLong { .. } => PyValueError::new_err(message),
        Error::Interrupted => PyKeyboardInterrupt::new_err(()),
    }
}
