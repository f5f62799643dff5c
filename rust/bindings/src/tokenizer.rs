//! The tokenizer as Python sees it.
//!
//! Held to `python/tinylm/reference/byte_bpe.py` by the rungs of `tests/rungs/text.py` and
//! `tests/rungs/vocabulary.py`: each public method has one.

use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayDescr, PyArrayDescrMethods, PyArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString};
use tinylm_tokenizer as core;
use tinylm_tokenizer::{AddedToken, Id, Policy, Sampling};

use crate::arguments::{Text, detached, import_numpy};
use crate::error::tokenizer_error;
use crate::files::Given;
use crate::ids::{Ids, check_errors};
use crate::lists::list_of;
use crate::models::Model;
use crate::stages;

/// Ids of the type that was asked for.
type Array<'py> = Bound<'py, PyAny>;
/// The ids of many texts and where those of each begin.
type Batch<'py> = (Array<'py>, Bound<'py, PyArray1<i64>>);
/// The ids of a text, and the stretch that each comes of.
type Placed<'py> = (Bound<'py, PyArray1<u32>>, Bound<'py, PyArray2<i64>>);

/// Adds the classes and functions of this file to `tinylm._rust`.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Tokenizer>()?;
    Ok(())
}

/// A vocabulary with its merges, pattern and added tokens; immutable.
///
/// Frozen: any number of Python threads may use it at once.
#[pyclass(frozen, module = "tinylm._rust")]
pub(crate) struct Tokenizer {
    pub(crate) core: core::Tokenizer,
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
        let wrong = |found: &Bound<'_, PyAny>| {
            let kind = found.get_type();
            PyTypeError::new_err(format!(
                "special must be \"raise\", \"allow\", \"text\" or a set of special tokens, found \
                 {kind}"
            ))
        };
        let tokens = special.try_iter().map_err(|_| wrong(special))?.map(|t| {
            let token = t?;
            token.extract().map_err(|_| wrong(&token))
        });
        let tokens: Vec<String> = tokens.collect::<PyResult<_>>()?;
        self.core.only(&tokens).map_err(tokenizer_error)
    }

    /// A Python list of ids.
    ///
    /// Every id is below `vocab_size`, since the core made it, so the index is never out of range.
    fn list<'py>(&self, py: Python<'py>, ids: &[u32]) -> PyResult<Bound<'py, PyList>> {
        list_of(py, ids, self.core.vocab_size())
    }

    /// Whether `dtype` is uint16 and not uint32; both may be a name, a type of `NumPy` or a dtype.
    fn is_short(&self, dtype: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = dtype.py();
        // The default, without a dtype made of it.
        if dtype.cast::<PyString>().is_ok_and(|name| name == "uint32") {
            return Ok(false);
        }
        let found = PyArrayDescr::new(py, dtype).ok();
        let is = |wanted| {
            found
                .as_ref()
                .is_some_and(|found| found.is_equiv_to(&wanted))
        };
        if is(numpy::dtype::<u32>(py)) {
            return Ok(false);
        }
        if !is(numpy::dtype::<u16>(py)) {
            let message = format!("dtype={dtype}: ids are handed out as uint32 or uint16");
            return Err(PyValueError::new_err(message));
        }
        let largest = self.core.vocab_size().saturating_sub(1);
        if largest > usize::from(u16::MAX) {
            return Err(PyValueError::new_err(format!(
                "dtype=uint16: the largest id of the vocabulary is {largest}, and uint16 ends at \
                 {}; use uint32",
                u16::MAX
            )));
        }
        Ok(true)
    }

    /// The ids of all texts over all cores, and where those of each begin.
    fn batch<'py, I: Id + numpy::Element>(
        &self,
        py: Python<'py>,
        texts: &[Text],
        policy: &Policy,
    ) -> PyResult<Batch<'py>> {
        let texts: Vec<&[u8]> = texts.iter().map(Text::bytes).collect();
        // 0 threads: one for each core.
        let (ids, offsets) = detached(py, |stop| {
            self.core.encode_batch::<I>(&texts, policy, 0, stop)
        })?;
        Ok((ids.into_pyarray(py).into_any(), offsets.into_pyarray(py)))
    }
}

#[pymethods]
#[expect(
    clippy::needless_pass_by_value,
    reason = "pyo3 hands arguments over by value"
)]
impl Tokenizer {
    /// From ordinary tokens and their ids (a dict or `TokenIds`), a model, and added tokens as
    /// (content, id, special, late).
    ///
    /// `stages` are what a tokenizer.json asks for beside the pattern, `surfaces` how its tokens
    /// look in a text; see `stages.rs`. Raises `ValueError` if the parts contradict each other.
    #[new]
    #[pyo3(signature = (tokens, model, pattern, added_tokens, stages=None, surfaces=None))]
    fn new(
        tokens: Given<'_>,
        model: &Model,
        pattern: String,
        added_tokens: Vec<(String, u32, bool, bool)>,
        stages: Option<stages::Given<'_>>,
        surfaces: Option<stages::GivenSurfaces>,
    ) -> PyResult<Self> {
        let added = |(content, id, special, late)| AddedToken {
            content,
            id,
            special,
            late,
        };
        let spec = core::Spec {
            tokens: tokens.copied()?,
            model: model.spec(),
            pattern,
            added: added_tokens.into_iter().map(added).collect(),
        };
        let core = stages::build(spec, stages, surfaces)?;
        Ok(Self { core })
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
    ///
    /// Raises `ValueError` for a `dtype` but uint32 and uint16, and where that is too small.
    fn encode_array<'py>(
        &self,
        py: Python<'py>,
        text: Text,
        special: &Bound<'py, PyAny>,
        dtype: &Bound<'py, PyAny>,
    ) -> PyResult<Array<'py>> {
        // Before the work, because it may fail or be interrupted.
        import_numpy(py)?;
        let policy = self.policy(special)?;
        if self.is_short(dtype)? {
            // In portions: all ids as u32 first would be twice as much memory again.
            let texts = [text.bytes()];
            let (ids, _) = detached(py, |stop| {
                self.core.encode_batch::<u16>(&texts, &policy, 1, stop)
            })?;
            return Ok(ids.into_pyarray(py).into_any());
        }
        let ids = detached(py, |stop| self.core.encode(text.bytes(), &policy, stop))?;
        Ok(ids.into_pyarray(py).into_any())
    }

    /// The ids of `text`, and for each the stretch of the text that it comes of: characters of a
    /// string, bytes of bytes.
    fn encode_offsets<'py>(
        &self,
        py: Python<'py>,
        text: Text,
        special: &Bound<'py, PyAny>,
    ) -> PyResult<Placed<'py>> {
        import_numpy(py)?;
        let policy = self.policy(special)?;
        let (ids, mut places) = detached(py, |stop| {
            self.core.encode_offsets(text.bytes(), &policy, stop)
        })?;
        if let Text::Str(text) = &text {
            py.detach(|| in_characters(text, &mut places));
        }
        let flat: Vec<i64> = places
            .iter()
            .flat_map(|&(from, to)| [from.into(), to.into()])
            .collect();
        let places = flat.into_pyarray(py).reshape([ids.len(), 2])?;
        Ok((ids.into_pyarray(py), places))
    }

    /// The ids of all texts in one array, and where those of each begin, with the end at last.
    ///
    /// `dtype` is that of `encode_array`.
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: Vec<Text>,
        special: &Bound<'py, PyAny>,
        dtype: &Bound<'py, PyAny>,
    ) -> PyResult<Batch<'py>> {
        import_numpy(py)?;
        let policy = self.policy(special)?;
        if self.is_short(dtype)? {
            return self.batch::<u16>(py, &texts, &policy);
        }
        self.batch::<u32>(py, &texts, &policy)
    }

    /// The ids of `text` in a segmentation drawn with `seed`: `dropout` for a BPE, else `alpha`
    /// and `n_best` for a Unigram.
    ///
    /// Raises `ValueError` for numbers out of range and for another model.
    #[expect(clippy::too_many_arguments, reason = "each is one of Python's")]
    fn sample<'py>(
        &self,
        py: Python<'py>,
        text: Text,
        special: &Bound<'py, PyAny>,
        seed: u64,
        alpha: f64,
        n_best: Option<usize>,
        dropout: Option<f64>,
    ) -> PyResult<Bound<'py, PyList>> {
        let policy = self.policy(special)?;
        let sampling = dropout.map_or(Sampling::Alpha { alpha, n_best }, Sampling::Dropout);
        let ids = detached(py, |stop| {
            self.core
                .sample(text.bytes(), &policy, sampling, seed, stop)
        })?;
        self.list(py, &ids)
    }

    /// The scores and ids of the `n` best segmentations of `text` by a Unigram, the best first.
    fn n_best<'py>(
        &self,
        py: Python<'py>,
        text: Text,
        n: usize,
        special: &Bound<'py, PyAny>,
    ) -> PyResult<Vec<(f64, Bound<'py, PyList>)>> {
        let policy = self.policy(special)?;
        let found = detached(py, |stop| self.core.n_best(text.bytes(), n, &policy, stop))?;
        let listed = |(score, ids): (f64, Vec<u32>)| Ok((score, self.list(py, &ids)?));
        found.into_iter().map(listed).collect()
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
        detached(py, |stop| self.core.count(text.bytes(), &policy, stop))
    }

    /// The bytes of `ids`, joined. Raises `KeyError` for an id that no token has.
    fn decode_bytes<'py>(
        &self,
        py: Python<'py>,
        ids: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        Ids::of(ids)?.to_bytes(py, &self.core)
    }

    /// The text of `ids`. Bytes that are not UTF-8 become U+FFFD, or an error with errors="strict".
    fn decode<'py>(
        &self,
        py: Python<'py>,
        ids: &Bound<'py, PyAny>,
        errors: &str,
    ) -> PyResult<Bound<'py, PyString>> {
        Ids::of(ids)?.to_text(py, &self.core, errors)
    }

    /// The texts of many rows of ids, as `decode` gives each.
    fn decode_batch<'py>(
        &self,
        py: Python<'py>,
        rows: &Bound<'py, PyAny>,
        errors: &str,
    ) -> PyResult<Bound<'py, PyList>> {
        check_errors(errors)?;
        let texts = PyList::empty(py);
        for row in rows.try_iter()? {
            texts.append(Ids::of(&row?)?.to_text(py, &self.core, errors)?)?;
        }
        Ok(texts)
    }
}

/// Stretches of bytes to the characters that they touch, as `tokenizers` has it: a token that cuts a
/// character has all of it.
fn in_characters(text: &str, places: &mut [(u32, u32)]) {
    if text.is_ascii() {
        return;
    }
    // By byte: the number of characters that begin before or at it.
    let mut begun = Vec::with_capacity(text.len() + 1);
    let mut count = 0u32;
    for byte in text.bytes() {
        count += u32::from(byte & 0xC0 != 0x80);
        begun.push(count);
    }
    begun.push(count + 1);
    for (from, to) in places {
        let first = begun[*from as usize] - 1;
        *to = if to > from {
            begun[*to as usize - 1]
        } else {
            first
        };
        *from = first;
    }
}
