//! Decoding as Python sees it: a network that is packed once, and caches of its texts.
//!
//! Held to the model in torch by the rung `native step`.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};

use numpy::{IntoPyArray, PyArray2, PyArrayMethods, PyReadonlyArray2, PyReadonlyArrayDyn};
use pyo3::exceptions::{PyKeyError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyAnyMethods, PyDict, PyIterator};
use tinylm_inference::{
    Builder, Cache, Chance, Error, Ids, Kind, Level, Network as Core, Reading, Run, Shape, Source,
    Table, Want,
};

use crate::arguments::import_numpy;
use crate::error::inference_error;

/// An array of a part: numbers, or integers and the scale of each row.
enum Part<'py> {
    Float(PyReadonlyArrayDyn<'py, f32>),
    Int8(PyReadonlyArrayDyn<'py, i8>, PyReadonlyArrayDyn<'py, f32>),
}

impl<'py> Part<'py> {
    fn of(name: &str, array: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(part) = array.extract() {
            return Ok(Self::Float(part));
        }
        if let Ok((integers, scales)) = array.extract() {
            return Ok(Self::Int8(integers, scales));
        }
        Err(PyTypeError::new_err(format!(
            "{name}: must be arrays of float32, or pairs of int8 and float32"
        )))
    }

    fn source(&self) -> PyResult<Source<'_>> {
        Ok(match self {
            Self::Float(array) => Source::Float(array.as_slice()?),
            Self::Int8(integers, scales) => Source::Int8(integers.as_slice()?, scales.as_slice()?),
        })
    }
}

/// A model whose weights are packed for decoding on the CPU.
#[pyclass(frozen, module = "tinylm._rust")]
struct Network(Arc<Core>);

#[pymethods]
impl Network {
    /// Packs the `parts`, each (name, arrays, bias or None), into `weights`.
    ///
    /// Raises `ValueError` for sizes that make no model, and for a part that does not fit them.
    #[new]
    #[pyo3(signature = (shape, parts, *, weights, simd))]
    fn new(
        shape: &Bound<'_, PyDict>,
        parts: &Bound<'_, PyAny>,
        weights: &str,
        simd: &str,
    ) -> PyResult<Self> {
        let py = shape.py();
        import_numpy(py)?;
        let kind = Kind::from_name(weights).map_err(inference_error)?;
        let level: Level = simd.parse().map_err(inference_error)?;
        let mut builder = Builder::new(shape_of(shape)?, kind, level).map_err(inference_error)?;
        // One by one: a caller that converts its weights holds one of them twice, not all.
        for part in PyIterator::from_object(parts)? {
            let (name, arrays, bias): (String, Vec<Bound<'_, PyAny>>, Option<Bound<'_, PyAny>>) =
                part?.extract()?;
            let arrays = arrays.iter().map(|array| Part::of(&name, array));
            let arrays: Vec<Part<'_>> = arrays.collect::<PyResult<_>>()?;
            let sources: Vec<Source<'_>> =
                arrays.iter().map(Part::source).collect::<PyResult<_>>()?;
            let bias: Option<PyReadonlyArrayDyn<'_, f32>> =
                bias.as_ref().map(PyAnyMethods::extract).transpose()?;
            let bias = bias.as_ref().map(|bias| bias.as_slice()).transpose()?;
            builder
                .add(&name, &sources, bias)
                .map_err(inference_error)?;
            py.check_signals()?;
        }
        Ok(Self(Arc::new(builder.finish().map_err(inference_error)?)))
    }

    /// Bytes of weights that a step reads.
    #[getter]
    fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// The instruction set that it runs on.
    #[getter]
    fn simd(&self) -> String {
        self.0.level().to_string()
    }
}

/// The shape in a dict with a key for each of its fields.
fn shape_of(dict: &Bound<'_, PyDict>) -> PyResult<Shape> {
    fn get<'py, T: FromPyObjectOwned<'py, Error = PyErr>>(
        dict: &Bound<'py, PyDict>,
        key: &str,
    ) -> PyResult<T> {
        let missing = || PyKeyError::new_err(key.to_owned());
        dict.get_item(key)?.ok_or_else(missing)?.extract()
    }
    Ok(Shape {
        vocab_size: get(dict, "vocab_size")?,
        d_model: get(dict, "d_model")?,
        n_layers: get(dict, "n_layers")?,
        n_heads: get(dict, "n_heads")?,
        n_kv_heads: get(dict, "n_kv_heads")?,
        head_size: get(dict, "head_size")?,
        d_ff: get(dict, "d_ff")?,
        context_length: get(dict, "context_length")?,
        norm_eps: get(dict, "norm_eps")?,
        layer_norm: get(dict, "layer_norm")?,
        gated: get(dict, "gated")?,
        qk_norm: get(dict, "qk_norm")?,
        rotary: get(dict, "rotary")?,
    })
}

/// Pages of 16 tokens' keys and values.
///
/// The mutex makes it safe for threads of Python: nobody waits for it with the GIL, which a pass
/// takes now and then. A signal handler that a pass runs cannot use the cache of that pass.
#[pyclass(frozen, module = "tinylm._rust")]
struct KeyValues {
    cache: Mutex<Cache>,
    /// Who has the cache.
    user: Mutex<Option<ThreadId>>,
}

#[pymethods]
impl KeyValues {
    /// So many pages.
    #[new]
    fn new(network: &Network, pages: usize) -> PyResult<Self> {
        let cache = Cache::new(Arc::clone(&network.0), pages).map_err(inference_error)?;
        Ok(Self {
            cache: Mutex::new(cache),
            user: Mutex::new(None),
        })
    }

    /// Bytes of the pages that have had a token.
    #[getter]
    fn bytes(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |cache| cache.bytes())
    }

    /// Add pages.
    fn grow(&self, py: Python<'_>, more: usize) -> PyResult<()> {
        self.with(py, |cache| cache.grow(more))?
            .map_err(inference_error)
    }

    /// Make page `to` a copy of page `source`.
    fn copy(&self, py: Python<'_>, source: usize, to: usize) -> PyResult<()> {
        self.with(py, |cache| cache.copy(source, to))?
            .map_err(inference_error)
    }

    /// Read the `tokens` of all `runs`, each (row of the `table` of pages, tokens that stay, new
    /// ones); the logits after the `wanted` of them.
    #[pyo3(signature = (table, runs, tokens, wanted, *, vocab_size, layers, threads))]
    #[expect(clippy::needless_pass_by_value, reason = "as Python gives it")]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn read<'py>(
        &self,
        py: Python<'py>,
        table: PyReadonlyArray2<'py, i32>,
        runs: Vec<(usize, usize, usize)>,
        tokens: Vec<u32>,
        wanted: Vec<usize>,
        vocab_size: usize,
        layers: usize,
        threads: usize,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        import_numpy(py)?;
        let room = self.with(py, |cache| cache.room(wanted.len(), vocab_size))?;
        let mut logits = room.map_err(inference_error)?;
        let reading = Reading {
            table: Table {
                pages: &copied(&table)?,
                width: table.as_array().ncols(),
            },
            runs: &each(&runs),
            tokens: &tokens,
            wanted: &wanted,
            ids: Ids {
                vocab_size,
                missing: &[],
            },
            layers,
            threads,
        };
        self.pass(py, &reading, &mut Want::Logits(&mut logits))?;
        logits.into_pyarray(py).reshape([wanted.len(), vocab_size])
    }

    /// As `read`, but a token drawn after each; None where its logits are not finite.
    #[pyo3(signature = (
        table, runs, tokens, wanted, *, temperatures, numbers, vocab_size, missing, layers, threads
    ))]
    #[expect(clippy::needless_pass_by_value, reason = "as Python gives it")]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn draw(
        &self,
        py: Python<'_>,
        table: PyReadonlyArray2<'_, i32>,
        runs: Vec<(usize, usize, usize)>,
        tokens: Vec<u32>,
        wanted: Vec<usize>,
        temperatures: Vec<f32>,
        numbers: Vec<f64>,
        vocab_size: usize,
        missing: Vec<u32>,
        layers: usize,
        threads: usize,
    ) -> PyResult<Vec<Option<u32>>> {
        let given = (temperatures.len(), numbers.len());
        if given != (wanted.len(), wanted.len()) {
            let ((temperatures, numbers), wanted) = (given, wanted.len());
            return Err(PyValueError::new_err(format!(
                "{temperatures} temperatures and {numbers} numbers: must be {wanted} of each, one \
                 per token to draw"
            )));
        }
        let pairs = temperatures.into_iter().zip(numbers);
        let chances = pairs.map(|(temperature, number)| Chance {
            temperature,
            number,
        });
        let chances: Vec<Chance> = chances.collect();
        let mut drawn = vec![None; wanted.len()];
        let reading = Reading {
            table: Table {
                pages: &copied(&table)?,
                width: table.as_array().ncols(),
            },
            runs: &each(&runs),
            tokens: &tokens,
            wanted: &wanted,
            ids: Ids {
                vocab_size,
                missing: &missing,
            },
            layers,
            threads,
        };
        self.pass(py, &reading, &mut Want::Tokens(&chances, &mut drawn))?;
        Ok(drawn)
    }
}

/// Copied: another thread of Python may write to it while the pass runs.
fn copied(table: &PyReadonlyArray2<'_, i32>) -> PyResult<Vec<i32>> {
    Ok(table.as_slice()?.to_vec())
}

fn each(runs: &[(usize, usize, usize)]) -> Vec<Run> {
    let runs = runs.iter();
    runs.map(|&(text, start, count)| Run { text, start, count })
        .collect()
}

/// Says at its end that nobody has the cache, also after a panic.
struct Left<'a>(&'a Mutex<Option<ThreadId>>);

impl Drop for Left<'_> {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl KeyValues {
    /// Works with the cache, without the GIL.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Cache) -> T + Send,
    ) -> PyResult<T> {
        let me = thread::current().id();
        let user = || self.user.lock().unwrap_or_else(PoisonError::into_inner);
        if *user() == Some(me) {
            return Err(PyRuntimeError::new_err(
                "this cache reads tokens now: a signal handler cannot use it",
            ));
        }
        Ok(py.detach(|| {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            *user() = Some(me);
            let _left = Left(&self.user);
            work(&mut cache)
        }))
    }

    /// A pass without the GIL, which looks for Ctrl-C between the chunks of a prompt.
    #[expect(
        clippy::redundant_closure_for_method_calls,
        reason = "the method fits one lifetime only"
    )]
    fn pass(&self, py: Python<'_>, reading: &Reading<'_>, want: &mut Want<'_>) -> PyResult<()> {
        let mut raised = None;
        let mut interrupt = || {
            Python::attach(|py| py.check_signals()).map_err(|error| {
                raised = Some(error);
                Error::Interrupted
            })
        };
        let done = self.with(py, |cache| cache.read(reading, want, &mut interrupt))?;
        done.map_err(|error| raised.unwrap_or_else(|| inference_error(error)))
    }
}

/// Adds the classes of this file to `tinylm._rust`.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Network>()?;
    module.add_class::<KeyValues>()
}
