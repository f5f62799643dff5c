//! The training of tokenizers as Python sees it.
//!
//! Held to `python/tinylm/reference/byte_bpe.py` by the rungs of `tests/rungs/vocabulary.py`.

use std::path::PathBuf;
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

/// Tokens and pairs of tokens that are never made.
type BlockedGiven = (Vec<Vec<u8>>, Vec<(Vec<u8>, Vec<u8>)>);

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

    /// Bytes of memory of what was counted.
    #[getter]
    fn memory(&self) -> usize {
        self.lock().memory()
    }

    /// Writes what was counted to new files of `folder`, which have a note, and forgets it; returns
    /// their paths, which begin with `name`.
    fn spill(
        &self,
        py: Python<'_>,
        folder: PathBuf,
        name: &str,
        note: &str,
    ) -> PyResult<Vec<PathBuf>> {
        let path = |number: usize| folder.join(format!("{name}-{number}.part"));
        let files = detached(py, |_| self.lock().spill(note, path))?;
        Ok((0..files).map(path).collect())
    }

    /// Adds the counts in a file.
    fn load(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        detached(py, |stop| self.lock().load(&path, stop))
    }

    /// The characters of what was counted that are tokens, each with how often it occurs: the
    /// `initial` ones, and the most frequent ones up to `coverage` of the text, `limit` in all.
    fn alphabet(
        &self,
        py: Python<'_>,
        initial: Vec<char>,
        coverage: f64,
        limit: usize,
    ) -> PyResult<Vec<(char, u64)>> {
        detached(py, |_| {
            // Released before the work.
            let words = self.lock().words()?;
            let characters = core::Characters {
                initial,
                coverage,
                limit,
            };
            Ok(characters.alphabet(&words))
        })
    }

    /// The tokens by id and the pairs of ids that merge, in order.
    ///
    /// `kind` is "bpe" for merges, "whole" for the most frequent pieces as they stand. `blocked`
    /// are tokens and pairs that are never made. With `characters` merges begin with those and not
    /// with bytes; `vocab_size` then counts the 256 bytes and no special tokens.
    #[pyo3(signature = (
        kind, vocab_size, min_frequency, ties, progress, max_token_length=None,
        blocked=(Vec::new(), Vec::new()), characters=None,
    ))]
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
        blocked: BlockedGiven,
        characters: Option<Vec<Vec<u8>>>,
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
            let (mut words, target) = match characters {
                None => self.counted(vocab_size)?,
                Some(_) => (self.lock().words()?, vocab_size),
            };
            if let Some(characters) = &characters {
                words = Arc::new(core::within(&words, characters));
            }
            let several = |character: &Vec<u8>| character.len() > 1;
            let goal = Goal {
                target,
                characters: characters.into_iter().flatten().filter(several).collect(),
                blocked: core::Blocked {
                    tokens: blocked.0.into_iter().collect(),
                    pairs: blocked.1.into_iter().collect(),
                },
                min_frequency,
                max_token_length: max_token_length.unwrap_or(usize::MAX),
                ties,
            };
            if !bpe {
                return Ok(core::most_frequent(&words, &goal));
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

/// Joins files of counts into `out`, with a note; returns the numbers of distinct pieces and of all.
#[pyfunction]
#[expect(
    clippy::needless_pass_by_value,
    reason = "pyo3 hands arguments over by value"
)]
fn join_counts(
    py: Python<'_>,
    paths: Vec<PathBuf>,
    note: &str,
    out: PathBuf,
) -> PyResult<(u64, u64)> {
    let counted = detached(py, |stop| core::join_counts(&paths, note, &out, stop))?;
    Ok((counted.pieces, counted.sum))
}

/// The note of a file of counts.
#[pyfunction]
#[expect(
    clippy::needless_pass_by_value,
    reason = "pyo3 hands arguments over by value"
)]
fn count_note(path: PathBuf) -> PyResult<String> {
    core::note_of(&path).map_err(tokenizer_error)
}

/// Adds what this file has to `tinylm._rust`.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<WordCounts>()?;
    module.add_function(wrap_pyfunction!(join_counts, module)?)?;
    module.add_function(wrap_pyfunction!(count_note, module)?)
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
