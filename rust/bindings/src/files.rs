//! What the files of vocabularies say, read without a loop in Python.
//!
//! Only what is right is read here: whoever gets None reads the file slowly and says what is wrong.
//! Held to the loops of `python/tinylm/tokenizer` by the rungs `read ranks`, `byte tokens`,
//! `merge ids` and `every split`.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::{PyBytes, PyDict, PyList, PyString};
use tinylm_tokenizer as core;

/// Adds the functions of this file to `tinylm._rust`.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Merges>()?;
    module.add_class::<TokenIds>()?;
    module.add_function(wrap_pyfunction!(read_merges, module)?)?;
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

/// The merges of a `tokenizer.json`, read without an object for each.
#[pyclass(frozen, module = "tinylm._rust")]
pub(crate) struct Merges {
    merges: core::JsonMerges,
}

#[pymethods]
impl Merges {
    /// Whether each is one string with a space between its tokens.
    #[getter]
    fn joined(&self) -> bool {
        self.merges.joined
    }

    /// The list in the file.
    fn to_list<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for (left, right) in self.merges.iter() {
            if self.merges.joined {
                list.append(format!("{left} {right}"))?;
            } else {
                list.append(PyList::new(py, [left, right])?)?;
            }
        }
        Ok(list)
    }

    /// Which of `texts` a merge takes or makes.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "pyo3 hands arguments over by value"
    )]
    fn using(&self, texts: Vec<PyBackedStr>) -> Vec<String> {
        let texts: Vec<&str> = texts.iter().map(|text| &**text).collect();
        let used = self.merges.using(&texts);
        used.into_iter().map(Into::into).collect()
    }

    fn __len__(&self) -> usize {
        self.merges.len()
    }
}

/// The merges of a document, and the bytes from and to which they stand; None if they are not
/// there, or not plain.
#[pyfunction]
fn read_merges(document: &[u8]) -> Option<(Merges, usize, usize)> {
    let (merges, place) = core::read_json_merges(document)?;
    Some((Merges { merges }, place.start, place.end))
}

/// Merges, as Python hands them over.
#[derive(FromPyObject)]
enum GivenMerges<'py> {
    Read(Bound<'py, Merges>),
    List(Bound<'py, PyList>),
}

/// The ids of the two tokens of each merge; None if one is no merge of two tokens of `vocab`.
#[pyfunction]
fn merge_ids(
    merges: GivenMerges<'_>,
    vocab: &Bound<'_, PyDict>,
) -> PyResult<Option<Vec<(u32, u32)>>> {
    let merges = match merges {
        GivenMerges::Read(read) => return ids_of_read(&read.get().merges, vocab),
        GivenMerges::List(list) => list,
    };
    let mut pairs = Vec::with_capacity(merges.len());
    for merge in merges {
        let Some(pair) = ids_of_merge(&merge, vocab)? else {
            return Ok(None);
        };
        pairs.push(pair);
    }
    Ok(Some(pairs))
}

/// As `merge_ids`.
fn ids_of_read(
    merges: &core::JsonMerges,
    vocab: &Bound<'_, PyDict>,
) -> PyResult<Option<Vec<(u32, u32)>>> {
    let mut tokens: Vec<(PyBackedStr, u32)> = Vec::with_capacity(vocab.len());
    for (token, id) in vocab {
        tokens.push((token.extract()?, id.extract()?));
    }
    let ids = tokens.iter().map(|(token, id)| (&**token, *id)).collect();
    Ok(merges.ids(&ids))
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
    merges: GivenMerges<'_>,
    vocab: &Bound<'_, PyDict>,
    tokens: Given<'_>,
) -> PyResult<bool> {
    let splits = every_split(tokens)?;
    let merges = match merges {
        GivenMerges::Read(read) => {
            let merges = &read.get().merges;
            return Ok(splits.len() == merges.len() && ids_of_read(merges, vocab)? == Some(splits));
        }
        GivenMerges::List(list) => list,
    };
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
