//! What the files of vocabularies say, read without a loop in Python.
//!
//! Only what is right is read here: whoever gets None reads the file slowly and says what is wrong.
//! Held to the loops of `python/tinylm/tokenizer` by the rungs `read ranks`, `byte tokens`,
//! `merge ids` and `every split`.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict, PyList, PyString};
use tinylm_tokenizer as core;

/// Adds the functions of this file to `tinylm._rust`.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<TokenIds>()?;
    module.add_function(wrap_pyfunction!(read_ranks, module)?)?;
    module.add_function(wrap_pyfunction!(byte_tokens, module)?)?;
    module.add_function(wrap_pyfunction!(merge_ids, module)?)?;
    module.add_function(wrap_pyfunction!(every_split, module)?)?;
    module.add_function(wrap_pyfunction!(is_every_split, module)?)
}

/// Tokens and their ids as a file has them: a tokenizer is made of them without an object for each.
///
/// 100,000 objects and a dict of them take 15 ms, and hardly anybody asks for them.
#[pyclass(frozen, module = "tinylm._rust")]
pub(crate) struct TokenIds {
    tokens: core::Tokens,
}

#[pymethods]
impl TokenIds {
    /// The ids by the bytes of their tokens; of two equal tokens the last.
    fn dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let made = PyDict::new(py);
        for (token, id) in self.tokens.iter() {
            made.set_item(PyBytes::new(py, token), id)?;
        }
        Ok(made)
    }

    fn __len__(&self) -> usize {
        self.tokens.len()
    }
}

/// Tokens and their ids, as Python hands them over.
#[derive(FromPyObject)]
pub(crate) enum Given<'py> {
    Read(Bound<'py, TokenIds>),
    Dict(Bound<'py, PyDict>),
}

impl Given<'_> {
    /// As the core takes them, which keeps no objects of Python.
    pub(crate) fn copied(&self) -> PyResult<core::Tokens> {
        let dict = match self {
            Self::Read(read) => return Ok(read.get().tokens.clone()),
            Self::Dict(dict) => dict,
        };
        let mut tokens = core::Tokens::default();
        for (token, id) in dict {
            tokens.push(&token.extract::<PyBackedBytes>()?, id.extract()?);
        }
        Ok(tokens)
    }
}

/// The tokens and ranks in a file of tiktoken, or None if it is not quite as tiktoken writes them.
#[pyfunction]
fn read_ranks(data: &[u8]) -> Option<TokenIds> {
    core::read_ranks(data).map(|tokens| TokenIds { tokens })
}

/// The bytes of tokens that are written in GPT-2's alphabet, with their ids; None if one is not, or
/// is empty.
#[pyfunction]
fn byte_tokens<'py>(vocab: &Bound<'py, PyDict>) -> PyResult<Option<Bound<'py, PyDict>>> {
    let py = vocab.py();
    let tokens = PyDict::new(py);
    for (token, id) in vocab {
        let Ok(token) = token.cast_into::<PyString>() else {
            return Ok(None);
        };
        // A lone surrogate is no text.
        let Some(bytes) = token.to_str().ok().and_then(core::bytes_of_chars) else {
            return Ok(None);
        };
        if bytes.is_empty() {
            return Ok(None);
        }
        tokens.set_item(PyBytes::new(py, &bytes), id)?;
    }
    Ok(Some(tokens))
}

/// The ids of the two tokens of a merge, which are a list of two or joined by a space; None if it
/// is anything else, or one is not in the vocabulary.
fn ids_of_merge(
    merge: &Bound<'_, PyAny>,
    vocab: &Bound<'_, PyDict>,
) -> PyResult<Option<(u32, u32)>> {
    let (left, right) = if let Ok(two) = merge.cast_exact::<PyList>() {
        if two.len() != 2 {
            return Ok(None);
        }
        (two.get_item(0)?, two.get_item(1)?)
    } else if let Ok(text) = merge.cast::<PyString>()
        && let Some((left, right)) = text.to_str().ok().and_then(|text| text.split_once(' '))
    {
        let part = |part: &str| PyString::new(merge.py(), part).into_any();
        (part(left), part(right))
    } else {
        return Ok(None);
    };
    if !(left.is_instance_of::<PyString>() && right.is_instance_of::<PyString>()) {
        return Ok(None);
    }
    let (Some(left), Some(right)) = (vocab.get_item(left)?, vocab.get_item(right)?) else {
        return Ok(None);
    };
    Ok(left.extract().ok().zip(right.extract().ok()))
}

/// The ids of the two tokens of each merge; None if one is no merge of two tokens of `vocab`.
#[pyfunction]
fn merge_ids(
    merges: &Bound<'_, PyList>,
    vocab: &Bound<'_, PyDict>,
) -> PyResult<Option<Vec<(u32, u32)>>> {
    let mut pairs = Vec::with_capacity(merges.len());
    for merge in merges {
        let Some(pair) = ids_of_merge(&merge, vocab)? else {
            return Ok(None);
        };
        pairs.push(pair);
    }
    Ok(Some(pairs))
}

/// All pairs of tokens that make a token, by its id, then theirs: ranks written as merges.
///
/// Raises `ValueError` for an empty token.
#[pyfunction]
#[expect(
    clippy::needless_pass_by_value,
    reason = "pyo3 hands arguments over by value"
)]
fn every_split(tokens: Given<'_>) -> PyResult<Vec<(u32, u32)>> {
    core::every_split(&tokens.copied()?).ok_or_else(|| PyValueError::new_err("a token is empty"))
}

/// Whether `merge_ids(merges, vocab) == every_split(tokens)`, without the objects of either.
#[pyfunction]
fn is_every_split(
    merges: &Bound<'_, PyList>,
    vocab: &Bound<'_, PyDict>,
    tokens: Given<'_>,
) -> PyResult<bool> {
    let splits = every_split(tokens)?;
    if splits.len() != merges.len() {
        return Ok(false);
    }
    for (merge, split) in merges.iter().zip(splits) {
        if ids_of_merge(&merge, vocab)? != Some(split) {
            return Ok(false);
        }
    }
    Ok(true)
}
