//! Rows and batches as Python sees them.
//!
//! The classes hold a core object and convert at the border. The arrays that Python gets are the
//! memory that the core filled, so a batch is not copied.
//!
//! Held to `python/tinylm/reference/order.py` by the rungs `row`, `batches`, `batches resumed` and
//! `epoch`.

use std::sync::Arc;
use std::time::Duration;

use numpy::ndarray::Array2;
use numpy::{IntoPyArray, PyArray2};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use tinylm_dataloader::batch::Filler;
use tinylm_dataloader::ring::Next;
use tinylm_dataloader::{self as core, Batch, Element, Order, Plan, Slice, Windows};

use crate::error::dataloader_error;
use crate::shards::Tokens;

/// How long a wait without the GIL may be before Ctrl-C is looked for.
const PATIENCE: Duration = Duration::from_millis(50);

/// Tokens and targets: [B, T], or [T] for one row. The only plan is [`Windows`], whose batches have
/// neither positions nor documents.
type Arrays<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>);

/// The rows of a dataset in their order.
///
/// Frozen: it never changes, so threads of Python may share it without a lock.
#[pyclass(frozen, module = "tinylm._rust")]
struct Rows {
    tokens: Arc<core::Tokens>,
    plan: Windows,
    mask_after: Option<u32>,
}

#[pymethods]
impl Rows {
    /// Rows of `context_length` inputs, one each `stride` tokens. `order` is "shuffle",
    /// "sequential" or "random". Targets after the first id `mask_after` of a row are left out.
    ///
    /// Raises `ValueError` for a number out of its range and a dataset too short for a row.
    #[new]
    #[pyo3(signature = (tokens, *, order, seed, context_length, stride, mask_after))]
    fn new(
        tokens: &Tokens,
        order: &str,
        seed: u64,
        context_length: u64,
        stride: u64,
        mask_after: Option<u32>,
    ) -> PyResult<Self> {
        // The words of the setting are known here alone; the core has an enum.
        let order = match order {
            "shuffle" => Order::Shuffle,
            "sequential" => Order::Sequential,
            "random" => Order::Random,
            _ => {
                return Err(PyValueError::new_err(format!(
                    "order={order} must be shuffle, sequential or random"
                )));
            }
        };
        // Shared with `Tokens`, so that both use one cache and one set of hashed blocks.
        let tokens = Arc::clone(&tokens.0);
        let plan = Windows::new(order, seed, tokens.n_tokens(), context_length, stride)
            .map_err(dataloader_error)?;
        Ok(Self {
            tokens,
            plan,
            mask_after,
        })
    }

    /// Rows of one epoch.
    #[getter]
    fn n_rows(&self) -> u64 {
        self.plan.n_rows()
    }

    /// The token at which row `i` of `epoch` begins.
    ///
    /// Raises `ValueError` if an epoch has no row `i`.
    fn start(&self, epoch: u64, i: u64) -> PyResult<u64> {
        self.plan.check_row(i).map_err(dataloader_error)?;
        // A clone, because a plan keeps the permutation it is at and `self` is frozen.
        Ok(self.plan.clone().start(epoch, i))
    }

    /// Row `i` of `epoch`, as int64.
    ///
    /// For looking at single rows: each call computes the permutation again.
    fn row<'py>(&self, py: Python<'py>, epoch: u64, i: u64) -> PyResult<Arrays<'py>> {
        self.plan.check_row(i).map_err(dataloader_error)?;
        // int64, because that is what torch's losses take without a cast.
        let mut batch = Batch::<i64>::default();
        py.detach(|| self.filler().row(epoch, i, &mut batch))
            .map_err(dataloader_error)?;
        let array = |values: Vec<i64>| values.into_pyarray(py).into_any();
        Ok((array(batch.tokens), array(batch.targets)))
    }

    /// Start the threads that make the batches from row `first_row` on.
    ///
    /// Batch k has rows `first_row + k * batch_size` and so on; this rank gets each `world_size`-th
    /// of them from `rank` on. `dtype` is "int64" or "int32".
    #[pyo3(signature = (*, batch_size, rank, world_size, first_row, end_row, threads, prefetch, dtype))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn stream(
        &self,
        batch_size: u64,
        rank: u64,
        world_size: u64,
        first_row: u64,
        end_row: Option<u64>,
        threads: usize,
        prefetch: usize,
        dtype: &str,
    ) -> PyResult<Stream> {
        // Checked by the core: the limits and their messages are the same for every caller.
        let slice = Slice {
            batch_size,
            rank,
            world_size,
            first_row,
            end_row,
        };
        let filler = self.filler();
        // The type is chosen once, so that no loop asks for it.
        let running = match dtype {
            "int64" => core::Stream::start(&filler, slice, threads, prefetch).map(Running::Int64),
            "int32" => core::Stream::start(&filler, slice, threads, prefetch).map(Running::Int32),
            _ => {
                return Err(PyValueError::new_err(format!(
                    "dtype={dtype} must be int64 or int32"
                )));
            }
        };
        Ok(Stream {
            running: running.map_err(dataloader_error)?,
            row_length: self.plan.row_length(),
        })
    }
}

impl Rows {
    /// What makes rows, for one thread or for many to clone.
    fn filler(&self) -> Filler<Windows> {
        Filler::new(
            vec![Arc::clone(&self.tokens)],
            self.plan.clone(),
            self.mask_after,
        )
    }
}

/// A stream of one of the two types that torch takes as indices.
enum Running {
    Int64(core::Stream<i64>),
    Int32(core::Stream<i32>),
}

/// Batches made ahead by threads.
#[pyclass(frozen, module = "tinylm._rust")]
struct Stream {
    running: Running,
    row_length: usize,
}

#[pymethods]
impl Stream {
    /// The next batch, or None at the end.
    ///
    /// Raises the error of the batch that would be next, and what a signal handler raises.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Option<Arrays<'py>>> {
        // A branch for each batch, not for each token.
        match &self.running {
            Running::Int64(stream) => self.wait(py, stream),
            Running::Int32(stream) => self.wait(py, stream),
        }
    }

    /// End the threads.
    ///
    /// Ready batches are lost, and `next` gives None from then on.
    fn close(&self, py: Python<'_>) {
        // Closing waits for the batch in work, and other Python threads must run meanwhile.
        py.detach(|| match &self.running {
            Running::Int64(stream) => stream.close(),
            Running::Int32(stream) => stream.close(),
        });
    }
}

impl Stream {
    /// Waits for the next batch in short turns, with a look at the signals between them.
    fn wait<'py, E: Element + numpy::Element>(
        &self,
        py: Python<'py>,
        stream: &core::Stream<E>,
    ) -> PyResult<Option<Arrays<'py>>> {
        loop {
            match py
                .detach(|| stream.next(PATIENCE))
                .map_err(dataloader_error)?
            {
                Next::Batch(batch) => {
                    let tokens = array(py, batch.tokens, self.row_length)?;
                    let targets = array(py, batch.targets, self.row_length)?;
                    return Ok(Some((tokens, targets)));
                }
                Next::End => return Ok(None),
                // Only here: a batch that is ready is handed out without a look at the signals.
                Next::Pending => py.check_signals()?,
            }
        }
    }
}

/// The vector's own memory as a `NumPy` array: nothing is copied.
fn array<E: numpy::Element>(
    py: Python<'_>,
    values: Vec<E>,
    row_length: usize,
) -> PyResult<Bound<'_, PyAny>> {
    let shape = (values.len() / row_length, row_length);
    // Fails only if a batch is no whole number of rows, which the core rules out.
    let values = Array2::from_shape_vec(shape, values)
        .map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok(PyArray2::from_owned_array(py, values).into_any())
}

/// Adds the classes of this file to `tinylm._rust`.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Rows>()?;
    module.add_class::<Stream>()
}
