//! Learning a Unigram vocabulary, as Python sees it.

use std::time::Instant;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tinylm_tokenizer as core;

use crate::arguments::{SIGNALS, detached};
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
#[pyfunction]
#[pyo3(signature = (counts, vocab_size, min_frequency, required, scripts, progress))]
fn train_unigram<'py>(
    py: Python<'py>,
    counts: &WordCounts,
    vocab_size: usize,
    min_frequency: u64,
    required: Option<Vec<Vec<u8>>>,
    scripts: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<Learned<'py>> {
    let mut raised = None;
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
        let required: Vec<Vec<u8>> = required.unwrap_or_else(bytes);
        let one_script = |token: &[u8]| core::is_one_script(token);
        let training = core::UnigramTraining {
            size,
            min_frequency,
            required: &required,
            valid: if scripts {
                &one_script
            } else {
                &|_: &[u8]| true
            },
        };
        let mut last: Option<Instant> = None;
        core::train_unigram(words.iter(), &training, &mut |done, target| {
            stop()?;
            let due = last.is_none_or(|at| at.elapsed() > 5 * SIGNALS);
            if let Some(progress) = progress.as_ref().filter(|_| due) {
                last = Some(Instant::now());
                Python::attach(|py| progress.call1(py, (done, target))).map_err(|error| {
                    raised = Some(error);
                    core::Error::Interrupted
                })?;
            }
            Ok(())
        })
    });
    // The callback's own exception, which the core knows only as an interrupt.
    if let Some(error) = raised {
        return Err(error);
    }
    let trained = trained?;
    if let Some(progress) = progress {
        // The last number, so that a line of progress ends.
        progress.call1(py, (vocab_size, vocab_size))?;
    }
    let tokens = trained.tokens.iter();
    let tokens = tokens.map(|token| PyBytes::new(py, token)).collect();
    Ok((tokens, trained.scores))
}
