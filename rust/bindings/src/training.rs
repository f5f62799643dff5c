//! The training of tokenizers as Python sees it.
//!
//! Held to `python/tinylm/reference/byte_bpe.py` by the rungs of `tests/rungs/vocabulary.py`.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tinylm_tokenizer as core;
use tinylm_tokenizer::{Goal, Ties};

use crate::arguments::{Progress, Text, detached};
use crate::error::tokenizer_error;

/// Tokens by id and pairs of ids that merge.
type Vocabulary<'py> = (Vec<Bound<'py, PyBytes>>, Vec<(u32, u32)>);

/// How often each piece stands in a corpus, and the training on it.
#[pyclass(frozen, module = "tinylm._rust")]
pub(crate) struct WordCounts {
    core: Mutex<core::WordCounts>,
}

#[pymethods]
#[expect(
    clippy::needless_pass_by_value,
    reason = "pyo3 hands arguments over by value"
)]
impl WordCounts {
    /// Counts for a pattern and the special tokens that divide the text; 0 threads for all cores.
    #[new]
    fn new(pattern: &str, special_tokens: Vec<String>, threads: usize) -> PyResult<Self> {
        let core =
            core::WordCounts::new(pattern, &special_tokens, threads).map_err(tokenizer_error)?;
        Ok(Self {
            core: Mutex::new(core),
        })
    }

    /// Adds the pieces of `texts`, each a document of its own.
    fn add(&self, py: Python<'_>, texts: Vec<Text>) -> PyResult<()> {
        let texts: Vec<&[u8]> = texts.iter().map(Text::bytes).collect();
        detached(py, |stop| self.lock().add(&texts, stop))
    }

    /// A byte offset at which `text` may be cut: its parts count like the whole.
    fn cut(&self, py: Python<'_>, text: Text) -> PyResult<Option<usize>> {
        // Without the GIL: whoever holds the lock may need it to look at signals.
        detached(py, |_| self.lock().cut(text.bytes()))
    }

    /// The tokens by id and the pairs of ids that merge, in order.
    ///
    /// `kind` is "bpe" for merges, "whole" for the most frequent pieces as they stand.
    #[pyo3(signature = (kind, vocab_size, min_frequency, ties, progress, max_token_length=None))]
    #[expect(clippy::too_many_arguments, reason = "each is one of Python's")]
    fn train<'py>(
        &self,
        py: Python<'py>,
        kind: &str,
        vocab_size: usize,
        min_frequency: u64,
        ties: &str,
        progress: Option<Py<PyAny>>,
        max_token_length: Option<usize>,
    ) -> PyResult<Vocabulary<'py>> {
        let ties = match ties {
            "ids" => Ties::Ids,
            "bytes" => Ties::Bytes,
            "huggingface" => Ties::HuggingFace,
            other => {
                let message =
                    format!("ties={other:?}: expected \"ids\", \"bytes\" or \"huggingface\"");
                return Err(PyValueError::new_err(message));
            }
        };
        let bpe = kind == "bpe";
        let mut progress = Progress::new(progress);
        let trained = detached(py, |stop| {
            let (words, target) = self.counted(vocab_size)?;
            let goal = Goal {
                target,
                min_frequency,
                max_token_length: max_token_length.unwrap_or(usize::MAX),
                ties,
            };
            if !bpe {
                return Ok(core::most_frequent(&words, goal));
            }
            core::train_bpe(&words, goal, &mut |done, target| {
                stop()?;
                progress.tell(done, target, done == target)
            })
        });
        let trained = progress.end(trained)?;
        let tokens = trained
            .tokens
            .iter()
            .map(|token| PyBytes::new(py, token))
            .collect();
        Ok((tokens, trained.merges))
    }
}

impl WordCounts {
    /// What was counted, and how many tokens may be made of it. Training on it holds no lock.
    fn counted(&self, vocab_size: usize) -> Result<(Arc<core::Words>, usize), core::Error> {
        let mut counts = self.lock();
        let target = counts.room(vocab_size)?;
        Ok((counts.words()?, target))
    }

    /// The lock, also after a panic in another thread: otherwise every later call would panic too.
    pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, core::WordCounts> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
