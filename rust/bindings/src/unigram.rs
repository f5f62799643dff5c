//! Learning a Unigram vocabulary, as Python sees it.

use std::collections::HashSet;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tinylm_tokenizer as core;

use crate::arguments::{Progress, detached};
use crate::training::WordCounts;

/// Tokens, the required ones first, and their scores.
type Learned<'py> = (Vec<Bound<'py, PyBytes>>, Vec<f64>);

/// Adds the functions of this file to `tinylm._rust`.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(train_unigram, module)?)
}

/// The tokens and scores learned from what was counted.
///
/// `required` are the tokens that there must be, one for every character, or None for the 256
/// bytes. With `scripts` a token holds characters of one script alone, as sentencepiece has it.
/// `blocked` are strings that are no token.
#[pyfunction]
#[pyo3(signature = (counts, vocab_size, min_frequency, required, scripts, progress, blocked=None))]
#[expect(
    clippy::too_many_arguments,
    clippy::needless_pass_by_value,
    reason = "pyo3 hands arguments over by value"
)]
fn train_unigram<'py>(
    py: Python<'py>,
    counts: &WordCounts,
    vocab_size: usize,
    min_frequency: u64,
    required: Option<Vec<Vec<u8>>>,
    scripts: bool,
    progress: Option<Py<PyAny>>,
    blocked: Option<HashSet<Vec<u8>>>,
) -> PyResult<Learned<'py>> {
    let mut told = Progress::new(progress.as_ref().map(|callback| callback.clone_ref(py)));
    let trained = detached(py, |stop| {
        let bytes = || (0..=255u8).map(|byte| vec![byte]).collect();
        let (words, size) = {
            // Released before the training.
            let mut counts = counts.lock();
            let size = match required {
                None => counts.room(vocab_size)?,
                Some(_) => vocab_size,
            };
            (counts.words()?, size)
        };
        // Every place of a word needs a token; with all bytes each has one.
        let words = match &required {
            None => words,
            Some(characters) => Arc::new(core::within(&words, characters)),
        };
        if words.is_empty() {
            return Err(core::Error::EmptyCorpus);
        }
        let required: Vec<Vec<u8>> = required.unwrap_or_else(bytes);
        let valid = |token: &[u8]| {
            (!scripts || core::is_one_script(token))
                && !blocked
                    .as_ref()
                    .is_some_and(|blocked| blocked.contains(token))
        };
        let training = core::UnigramTraining {
            size,
            min_frequency,
            required: &required,
            valid: &valid,
        };
        core::train_unigram(words.iter(), &training, &mut |done, target| {
            stop()?;
            told.tell(done, target, false)
        })
    });
    // The last number too, so that a line of progress ends.
    let trained = told.end(trained)?;
    if let Some(progress) = progress {
        progress.call1(py, (vocab_size, vocab_size))?;
    }
    let tokens = trained.tokens.iter();
    let tokens = tokens.map(|token| PyBytes::new(py, token)).collect();
    Ok((tokens, trained.scores))
}
