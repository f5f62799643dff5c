//! The tokenizer as Python sees it.
//!
//! Held to `python/tinylm/reference/byte_bpe.py` by the rungs of `tests/rungs/text.py` and
//! `tests/rungs/vocabulary.py`: each public method has one.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use numpy::{IntoPyArray, PyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict, PyList, PyString};
use tinylm_tokenizer as core;
use tinylm_tokenizer::{AddedToken, Policy, Ties};

use crate::arguments::{SIGNALS, Text, detached, id_of, ids_of, import_numpy};
use crate::error::tokenizer_error;
use crate::lists::Integers;
use crate::models::Model;
use crate::stages;

/// The ids of many texts and where those of each begin.
type Batch<'py> = (Bound<'py, PyArray1<u32>>, Bound<'py, PyArray1<i64>>);
/// Tokens by id and pairs of ids that merge.
type Vocabulary<'py> = (Vec<Bound<'py, PyBytes>>, Vec<(u32, u32)>);

/// Adds the classes and functions of this file to `tinylm._rust`.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Tokenizer>()?;
    module.add_class::<WordCounts>()?;
    module.add_class::<DecodeStream>()
}

/// A vocabulary with its merges, pattern and added tokens; immutable.
///
/// Frozen: any number of Python threads may use it at once.
#[pyclass(frozen, module = "tinylm._rust")]
struct Tokenizer {
    core: core::Tokenizer,
    /// A Python integer for each id, made for the first long list.
    integers: Integers,
}

impl Tokenizer {
    /// The core's policy for `special`: a name, or a set of special tokens to allow.
    fn policy(&self, special: &Bound<'_, PyAny>) -> PyResult<Policy> {
        // First: a string iterates too, and must not be taken for a set of characters.
        if let Ok(name) = special.cast::<PyString>() {
            return match name.to_str()? {
                "raise" => Ok(Policy::Raise),
                "allow" => Ok(Policy::Allow),
                "text" => Ok(Policy::Text),
                other => Err(PyValueError::new_err(format!(
                    "special={other:?}: expected \"raise\", \"allow\", \"text\" or a set of \
                     special tokens"
                ))),
            };
        }
        let tokens: Vec<String> = special
            .try_iter()?
            .map(|t| t?.extract())
            .collect::<PyResult<_>>()?;
        self.core.only(&tokens).map_err(tokenizer_error)
    }

    /// A Python list of ids.
    ///
    /// Every id is below `vocab_size`, since the core made it, so the index is never out of range.
    fn list<'py>(&self, py: Python<'py>, ids: &[u32]) -> PyResult<Bound<'py, PyList>> {
        self.integers.list(py, ids, self.core.vocab_size())
    }
}

#[pymethods]
#[expect(
    clippy::needless_pass_by_value,
    reason = "pyo3 hands arguments over by value"
)]
impl Tokenizer {
    /// From ordinary tokens and their ids, a model, and added tokens as (content, id, special,
    /// late).
    ///
    /// `stages` are what a tokenizer.json asks for beside the pattern, `surfaces` how its tokens
    /// look in a text; see `stages.rs`. Raises `ValueError` if the parts contradict each other.
    #[new]
    #[pyo3(signature = (tokens, model, pattern, added_tokens, stages=None, surfaces=None))]
    fn new(
        tokens: &Bound<'_, PyDict>,
        model: &Model,
        pattern: String,
        added_tokens: Vec<(String, u32, bool, bool)>,
        stages: Option<stages::Given<'_>>,
        surfaces: Option<stages::GivenSurfaces>,
    ) -> PyResult<Self> {
        // Copied: the core keeps no objects of Python.
        let mut ordinary = Vec::with_capacity(tokens.len());
        for (token, id) in tokens {
            ordinary.push((token.extract::<PyBackedBytes>()?.to_vec(), id.extract()?));
        }
        let added = |(content, id, special, late)| AddedToken {
            content,
            id,
            special,
            late,
        };
        let spec = core::Spec {
            tokens: ordinary,
            model: model.spec(),
            pattern,
            added: added_tokens.into_iter().map(added).collect(),
        };
        let core = stages::build(spec, stages, surfaces)?;
        Ok(Self {
            core,
            integers: Integers::default(),
        })
    }

    /// One more than the largest id.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.core.vocab_size()
    }

    /// The name of the pattern, or its regular expression.
    #[getter]
    fn pattern(&self) -> &str {
        self.core.pattern().name()
    }

    /// The ids of `text` as a list. `special` is "raise", "allow", "text" or a set of special
    /// tokens.
    ///
    /// Raises `ValueError` for a special token that is not allowed.
    fn encode<'py>(
        &self,
        py: Python<'py>,
        text: Text,
        special: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyList>> {
        let policy = self.policy(special)?;
        let ids = detached(py, |stop| self.core.encode(text.bytes(), &policy, stop))?;
        self.list(py, &ids)
    }

    /// The ids of `text` as an array: quicker than the list, as nothing is made for each id.
    fn encode_array<'py>(
        &self,
        py: Python<'py>,
        text: Text,
        special: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArray1<u32>>> {
        // Before the work, because it may fail or be interrupted.
        import_numpy(py)?;
        let policy = self.policy(special)?;
        let ids = detached(py, |stop| self.core.encode(text.bytes(), &policy, stop))?;
        Ok(ids.into_pyarray(py))
    }

    /// The ids of all texts in one array, and where those of each begin, with the end at last.
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: Vec<Text>,
        special: &Bound<'py, PyAny>,
    ) -> PyResult<Batch<'py>> {
        import_numpy(py)?;
        let policy = self.policy(special)?;
        let texts: Vec<&[u8]> = texts.iter().map(Text::bytes).collect();
        // 0 threads: one for each core.
        let (ids, offsets) = detached(py, |stop| self.core.encode_batch(&texts, &policy, 0, stop))?;
        Ok((ids.into_pyarray(py), offsets.into_pyarray(py)))
    }

    /// A byte offset up to which the ids of `text` do not depend on what may follow it.
    fn cut(&self, text: Text, special: &Bound<'_, PyAny>) -> PyResult<Option<usize>> {
        self.core
            .cut(text.bytes(), &self.policy(special)?)
            .map_err(tokenizer_error)
    }

    /// How many ids `text` has.
    fn count(&self, py: Python<'_>, text: Text, special: &Bound<'_, PyAny>) -> PyResult<usize> {
        let policy = self.policy(special)?;
        // Nothing cheaper than encoding knows the number.
        Ok(detached(py, |stop| self.core.encode(text.bytes(), &policy, stop))?.len())
    }

    /// The bytes of `ids`, joined. Raises `KeyError` for an id that no token has.
    fn decode_bytes<'py>(
        &self,
        py: Python<'py>,
        ids: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let ids = ids_of(ids)?;
        let bytes = detached(py, |_| self.core.decode(&ids))?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// The text of `ids`. Bytes that are not UTF-8 become U+FFFD, or an error with errors="strict".
    fn decode<'py>(
        &self,
        py: Python<'py>,
        ids: &Bound<'py, PyAny>,
        errors: &str,
    ) -> PyResult<Bound<'py, PyString>> {
        // Before the work: a wrong word must fail for every text, not only for invalid ones.
        if !matches!(errors, "replace" | "strict") {
            let message = format!("errors={errors:?}: expected \"replace\" or \"strict\"");
            return Err(PyValueError::new_err(message));
        }
        let ids = ids_of(ids)?;
        let bytes = detached(py, |_| self.core.decode(&ids))?;
        // Valid text, nearly always, is checked once and copied once.
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(PyString::new(py, text)),
            Err(error) if errors == "strict" => Err(PyValueError::new_err(format!(
                "the tokens are not UTF-8 at byte {} of {}; decode with errors=\"replace\" or \
                 decode_bytes",
                error.valid_up_to(),
                bytes.len()
            ))),
            Err(_) => Ok(PyString::new(py, &String::from_utf8_lossy(&bytes))),
        }
    }
}

/// Tokens to text one at a time, never half a character.
#[pyclass(frozen, module = "tinylm._rust")]
struct DecodeStream {
    tokenizer: Py<Tokenizer>,
    core: Mutex<core::DecodeStream>,
    /// Where the text begins, if tokens look otherwise there.
    opening: Mutex<Option<core::Opening>>,
}

#[pymethods]
impl DecodeStream {
    /// A stream for the tokens of `tokenizer`, empty at first.
    #[new]
    fn new(tokenizer: Py<Tokenizer>) -> Self {
        let opening = tokenizer.get().core.surfaces().map(core::Surfaces::opening);
        Self {
            tokenizer,
            core: Mutex::default(),
            opening: Mutex::new(opening),
        }
    }

    /// The text that this id completes: perhaps none, perhaps several characters.
    fn push(&self, id: &Bound<'_, PyAny>) -> PyResult<String> {
        let tokenizer = &self.tokenizer.get().core;
        let id = id_of(id)?;
        // Looked up here: the core's stream takes bytes and knows no ids.
        let mut token = tokenizer.token(id).ok_or_else(|| {
            let vocab_size = tokenizer.vocab_size();
            tokenizer_error(core::Error::UnknownId {
                id: i64::from(id),
                vocab_size,
            })
        })?;
        let mut opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(opening), Some(surfaces)) = (opening.as_mut(), tokenizer.surfaces()) {
            token = surfaces.next(opening, id, token);
        }
        Ok(self
            .core
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(token))
    }

    /// What is left: nothing, or U+FFFD for a character cut short.
    fn finish(&self) -> String {
        self.core
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .finish()
    }
}

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
    #[pyo3(signature = (kind, vocab_size, min_frequency, ties, progress))]
    fn train<'py>(
        &self,
        py: Python<'py>,
        kind: &str,
        vocab_size: usize,
        min_frequency: u64,
        ties: &str,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Vocabulary<'py>> {
        let ties = match ties {
            "ids" => Ties::Ids,
            "bytes" => Ties::Bytes,
            other => {
                let message = format!("ties={other:?}: expected \"ids\" or \"bytes\"");
                return Err(PyValueError::new_err(message));
            }
        };
        let bpe = kind == "bpe";
        let mut raised = None;
        let trained = detached(py, |stop| {
            let (words, target) = self.counted(vocab_size)?;
            if !bpe {
                return Ok(core::most_frequent(words, target, min_frequency, ties));
            }
            // The first and the last number are always told; between them one each 100 ms.
            let mut last: Option<Instant> = None;
            core::train_bpe(words, target, min_frequency, ties, &mut |done, target| {
                stop()?;
                let due = last.is_none_or(|at| at.elapsed() > 5 * SIGNALS) || done == target;
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
    fn counted(&self, vocab_size: usize) -> Result<(Vec<core::Word>, usize), core::Error> {
        let counts = self.lock();
        let target = counts.room(vocab_size)?;
        Ok((counts.words()?, target))
    }

    /// The lock, also after a panic in another thread: otherwise every later call would panic too.
    pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, core::WordCounts> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
