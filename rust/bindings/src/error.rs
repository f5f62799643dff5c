//! From the errors of the three cores to Python's exceptions, each in one exhaustive `match`.
//!
//! Without a wildcard, a new kind of error does not compile until its exception is chosen here. The
//! messages are the cores' own, and no caller rewrites them.

use pyo3::exceptions::{PyKeyError, PyKeyboardInterrupt, PyMemoryError, PyOSError, PyValueError};
use pyo3::prelude::*;
use tinylm_dataloader as dataloader;
use tinylm_inference as inference;

/// The exception for an error of the tokenizer. One with a remedy has the attributes `problem`,
/// the message without the advice, and `remedy`, its name: a command phrases its own advice.
pub(crate) fn tokenizer_error(error: tinylm_tokenizer::Error) -> PyErr {
    use tinylm_tokenizer::Error;
    let message = error.to_string();
    let remedy = error.remedy();
    let exception = match error {
        // What Python itself raises for a key that is not in a dict.
        Error::UnknownId { .. } | Error::UnknownSpecial(_) => PyKeyError::new_err(message),
        Error::SpecialToken { .. }
        | Error::Vocabulary(_)
        | Error::Pattern { .. }
        | Error::PatternGaveUp { .. }
        | Error::VocabularyTooSmall { .. }
        | Error::Sampling(_)
        | Error::CountFile(_)
        | Error::EmptyCorpus
        | Error::TooLong { .. } => PyValueError::new_err(message),
        // With the number, Python makes it a FileNotFoundError, a PermissionError and so on.
        Error::File {
            path,
            number: Some(number),
            reason,
        } => {
            let reason = reason.trim_end_matches(&format!(" (os error {number})"));
            PyOSError::new_err((number, reason.to_owned(), path.into_os_string()))
        }
        Error::File { .. } => PyOSError::new_err(message),
        // Seldom seen: where a signal handler raised something, `detached` raises that instead.
        Error::Interrupted => PyKeyboardInterrupt::new_err(()),
    };
    let Some((problem, remedy)) = remedy else {
        return exception;
    };
    // Attributes and not a class of our own: callers catch ValueError, as for any bad value.
    let named = Python::attach(|py| {
        let value = exception.value(py);
        value.setattr("problem", problem)?;
        value.setattr("remedy", remedy)
    });
    // If setting them fails, that error is the better one to see.
    named.err().unwrap_or(exception)
}

/// `OSError` with its file name (its subclass is chosen by the number), else `ValueError`.
pub(crate) fn dataloader_error(error: dataloader::Error) -> PyErr {
    match error {
        dataloader::Error::Io { path, source } => match source.raw_os_error() {
            // With the number, Python makes it a FileNotFoundError, a PermissionError and so on.
            Some(number) => {
                PyOSError::new_err((number, message(number, &source), path.into_os_string()))
            }
            None => PyOSError::new_err(format!("{}: {source}", path.display())),
        },
        error @ (dataloader::Error::Corrupt { .. } | dataloader::Error::Invalid(_)) => {
            PyValueError::new_err(error.to_string())
        }
    }
}

/// `ValueError`, `MemoryError`, or `KeyboardInterrupt` for a call that was stopped.
pub(crate) fn inference_error(error: inference::Error) -> PyErr {
    match error {
        inference::Error::Invalid(message) => PyValueError::new_err(message),
        inference::Error::Memory(message) => PyMemoryError::new_err(message),
        // Seldom seen: where a signal handler raised something, the caller raises that instead.
        inference::Error::Interrupted => PyKeyboardInterrupt::new_err(()),
    }
}

/// What the system says, without the number that Rust appends: Python puts it in front.
fn message(number: i32, source: &std::io::Error) -> String {
    let said = source.to_string();
    said.trim_end_matches(&format!(" (os error {number})"))
        .to_owned()
}
