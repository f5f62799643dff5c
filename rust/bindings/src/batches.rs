//! Rows and batches as Python sees them.
//!
//! The classes hold a core object and convert at the border. The array that Python gets of a batch
//! is the memory that the core filled: see [`crate::slots`].
//!
//! Held to `python/tinylm/reference/order.py` by the rungs `row`, `batches`, `batches resumed` and
//! `epoch`.

use std::sync::Arc;
use std::time::Duration;

use numpy::{IntoPyArray, PyArray1, PyArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use tinylm_dataloader::batch::{Filler, Shape};
use tinylm_dataloader::pack::Limits;
use tinylm_dataloader::ring::Next;
use tinylm_dataloader::{
    self as core, Batch, Element, Masked, Mixture, Order, Packed, Packing, Plan, Slice, Stage,
    Windows, mix,
};

use crate::error::dataloader_error;
use crate::plans::Kind;
use crate::shards::Tokens;
use crate::slots;

/// How long a wait without the GIL may be before Ctrl-C is looked for.
const PATIENCE: Duration = Duration::from_millis(50);

/// Tokens and targets of one row [T]; and of packed rows positions and documents of the same shape,
/// and where their pieces end.
type Arrays<'py> = (Array<'py>, Array<'py>, Option<Places<'py>>);
type Places<'py> = (Array<'py>, Array<'py>, Array<'py>);
type Array<'py> = Bound<'py, PyAny>;

/// The rows of a dataset, or of several, in their order.
///
/// Frozen: it never changes, so threads of Python may share it without a lock.
#[pyclass(frozen, module = "tinylm._rust")]
struct Rows {
    /// Those of each source.
    tokens: Vec<Arc<core::Tokens>>,
    plan: Kind,
    /// Inputs of one epoch that are no padding.
    filled: u64,
    masked: Masked,
}

/// The order of this name.
fn order_of(name: &str) -> PyResult<Order> {
    // The words of the setting are known here alone; the core has an enum.
    match name {
        "shuffle" => Ok(Order::Shuffle),
        "sequential" => Ok(Order::Sequential),
        "random" => Ok(Order::Random),
        _ => Err(PyValueError::new_err(format!(
            "order={name} must be shuffle, sequential or random"
        ))),
    }
}

/// What is left out; `mask_after` goes first.
fn masked(mask_after: Option<u32>, mask_at: Option<u32>) -> Masked {
    let at = mask_at.map_or(Masked::Nothing, Masked::At);
    mask_after.map_or(at, Masked::After)
}

#[pymethods]
impl Rows {
    /// Rows of `context_length` inputs, one each `stride` tokens. `order` is "shuffle",
    /// "sequential" or "random". Targets after the first id `mask_after` of a row are left out, or
    /// those that are `mask_at`.
    ///
    /// Raises `ValueError` for a number out of its range and a dataset too short for a row.
    #[new]
    #[pyo3(signature = (tokens, *, order, seed, context_length, stride, mask_after, mask_at=None))]
    fn new(
        tokens: &Tokens,
        order: &str,
        seed: u64,
        context_length: u64,
        stride: u64,
        mask_after: Option<u32>,
        mask_at: Option<u32>,
    ) -> PyResult<Self> {
        // Shared with `Tokens`, so that both use one cache and one set of hashed blocks.
        let tokens = Arc::clone(&tokens.0);
        let order = order_of(order)?;
        let plan = Windows::new(order, seed, tokens.n_tokens(), context_length, stride)
            .map_err(dataloader_error)?;
        Ok(Self {
            tokens: vec![tokens],
            filled: plan.n_rows() * plan.row_length() as u64,
            plan: Kind::Windows(plan),
            masked: masked(mask_after, mask_at),
        })
    }

    /// Rows of whole documents, whose `lengths` have eos in them. `order` is "shuffle" or
    /// "sequential". Targets that are `mask_at` are left out. `limits` are those of tests (short
    /// pieces, rows and inputs of a block, inputs of a window).
    ///
    /// Raises `ValueError` for a number out of its range, and lengths that are not those of the
    /// dataset.
    #[staticmethod]
    #[pyo3(signature = (tokens, lengths, *, order, seed, context_length, mask_at, limits=None))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    #[expect(clippy::redundant_closure_for_method_calls, reason = "lifetimes")]
    fn packed(
        py: Python<'_>,
        tokens: &Tokens,
        lengths: &Bound<'_, PyArray1<u32>>,
        order: &str,
        seed: u64,
        context_length: u64,
        mask_at: Option<u32>,
        limits: Option<(u64, u64, u64, u64)>,
    ) -> PyResult<Self> {
        let order = order_of(order)?;
        let tokens = Arc::clone(&tokens.0);
        let lengths = lengths.try_readonly()?.as_slice()?.to_vec();
        let n: u64 = lengths.iter().copied().map(u64::from).sum();
        if n != tokens.n_tokens() {
            return Err(PyValueError::new_err(format!(
                "the documents have {n} tokens together, and the dataset has {}",
                tokens.n_tokens()
            )));
        }
        let limits = limits.map_or_else(Limits::default, |(short, rows, block, window)| Limits {
            short_pieces: short,
            block_rows: rows,
            block_inputs: block,
            window_inputs: window,
        });
        let mut failed = None;
        let plan = py.detach(|| {
            // Millions of documents take seconds, and Ctrl-C must end them.
            let mut interrupt = || {
                Python::attach(|py| py.check_signals()).map_err(|error| {
                    failed = Some(error);
                    core::Error::Invalid("interrupted".to_owned())
                })
            };
            let packing = Packing::new(lengths, context_length, limits, &mut interrupt)?;
            Packed::new(Arc::new(packing), order, seed, limits)
        });
        if let Some(error) = failed {
            return Err(error);
        }
        Ok(Self {
            filled: n - 1,
            tokens: vec![tokens],
            plan: Kind::Packed(plan.map_err(dataloader_error)?),
            masked: masked(None, mask_at),
        })
    }

    /// Rows of several sources, each of which has its own in `sources`. A stage is the row that it
    /// begins with and the share of each source, 2^32 together.
    ///
    /// Raises `ValueError` for shares that are too small or do not add up, and for rows of several
    /// lengths.
    #[staticmethod]
    #[pyo3(signature = (sources, stages, *, seed))]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "PyO3 makes the vectors for this call"
    )]
    fn mixed(
        sources: Vec<PyRef<'_, Self>>,
        stages: Vec<(u64, Vec<u64>)>,
        seed: u64,
    ) -> PyResult<Self> {
        let stages: Vec<Stage> = stages
            .into_iter()
            .map(|(first_row, shares)| Stage { first_row, shares })
            .collect();
        if sources.iter().any(|rows| rows.tokens.len() > 1) {
            let problem = "a source of a mixture is a mixture: name its sources";
            return Err(PyValueError::new_err(problem));
        }
        let plans = sources.iter().map(|rows| rows.plan.clone()).collect();
        let plan = Mixture::new(plans, &stages, seed).map_err(dataloader_error)?;
        Ok(Self {
            // A mixture has one source at least, and all leave out the same targets.
            masked: sources.first().map_or(Masked::Nothing, |rows| rows.masked),
            tokens: sources
                .iter()
                .flat_map(|rows| rows.tokens.clone())
                .collect(),
            filled: sources.iter().map(|rows| rows.filled).sum(),
            plan: Kind::Mixed(plan),
        })
    }

    /// The rows that each source gives before row `i` of the run, epochs counted through.
    fn counts(&self, i: u64) -> Vec<u64> {
        match &self.plan {
            Kind::Mixed(plan) => plan.clone().counts(i),
            _ => vec![i],
        }
    }

    /// Rows of one epoch.
    #[getter]
    fn n_rows(&self) -> u64 {
        self.plan.n_rows()
    }

    /// The pieces of row `i` of `epoch`: (source, the first input's place in it, inputs).
    ///
    /// Raises `ValueError` if an epoch has no row `i`.
    fn pieces(&self, epoch: u64, i: u64) -> PyResult<Vec<(usize, u64, usize)>> {
        self.plan.check_row(i).map_err(dataloader_error)?;
        let mut pieces = Vec::new();
        // A clone, because a plan keeps the permutation it is at and `self` is frozen.
        self.plan.clone().row(epoch, i, &mut pieces);
        Ok(pieces
            .iter()
            .map(|piece| (piece.source, piece.start, piece.length))
            .collect())
    }

    /// Inputs of one epoch that are no padding, and the most pieces of a row; of a mixture those of
    /// one epoch of each source together.
    #[getter]
    fn filled(&self) -> (u64, usize) {
        (self.filled, self.plan.most_pieces())
    }

    /// Row `i` of `epoch`, as int64.
    ///
    /// For looking at single rows: each call computes the permutation again.
    fn row<'py>(&self, py: Python<'py>, epoch: u64, i: u64) -> PyResult<Arrays<'py>> {
        self.plan.check_row(i).map_err(dataloader_error)?;
        // int64, because that is what torch's losses take without a cast.
        let batch: Batch<i64> = py
            .detach(|| self.filler().row(epoch, i))
            .map_err(dataloader_error)?;
        let array = |values: &[i64]| values.to_vec().into_pyarray(py).into_any();
        let places = self.plan.packed().then(|| {
            let (positions, documents) = (array(batch.positions()), array(batch.documents()));
            (positions, documents, array(batch.ends()))
        });
        Ok((array(batch.tokens()), array(batch.targets()), places))
    }

    /// Start the threads that make the batches from row `first_row` on.
    ///
    /// Batch k has rows `first_row + k * every * batch_size` and so on; this rank gets each
    /// `world_size`-th of them from `rank` on. `dtype` is "int64", "int32" or "uint16". `memory` are
    /// arrays [n] of the size of a batch to make batches in, which the caller gives away.
    #[pyo3(signature = (*, batch_size, rank, world_size, first_row, end_row, threads, prefetch, dtype, every=1, memory=None))]
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
        every: u64,
        memory: Option<Vec<Bound<'_, PyAny>>>,
    ) -> PyResult<Stream> {
        // Checked by the core: the limits and their messages are the same for every caller.
        let slice = Slice {
            batch_size,
            rank,
            world_size,
            first_row,
            end_row,
            every,
        };
        let memory = memory.unwrap_or_default();
        let filler = self.filler();
        let shape = filler.shape(slice.check().map_or(0, |()| slice.rows()));
        // The type is chosen once, so that no loop asks for it.
        let running = match dtype {
            "int64" => Running::Int64(start(&filler, slice, threads, prefetch, memory)?),
            "int32" => Running::Int32(start(&filler, slice, threads, prefetch, memory)?),
            "uint16" => Running::UInt16(start(&filler, slice, threads, prefetch, memory)?),
            _ => {
                return Err(PyValueError::new_err(format!(
                    "dtype={dtype} must be int64, int32 or uint16"
                )));
            }
        };
        Ok(Stream { running, shape })
    }
}

/// Starts a stream of batches of `E` in memory that Python gives away.
fn start<E: Element + numpy::Element>(
    filler: &Filler<Kind>,
    slice: Slice,
    threads: usize,
    prefetch: usize,
    memory: Vec<Bound<'_, PyAny>>,
) -> PyResult<core::Stream<E>> {
    let memory = slots::given(memory)?;
    core::Stream::start_in(filler, slice, threads, prefetch, memory).map_err(dataloader_error)
}

impl Rows {
    /// What makes rows, for one thread or for many to clone.
    fn filler(&self) -> Filler<Kind> {
        Filler::new(self.tokens.clone(), self.plan.clone(), self.masked)
    }
}

/// A stream of one of the types that a batch may have.
enum Running {
    Int64(core::Stream<i64>),
    Int32(core::Stream<i32>),
    UInt16(core::Stream<u16>),
}

/// Batches made ahead by threads.
#[pyclass(frozen, module = "tinylm._rust")]
struct Stream {
    running: Running,
    shape: Shape,
}

#[pymethods]
impl Stream {
    /// (rows, row length, numbers of `ends` per row), the last 0 if rows are not packed.
    #[getter]
    fn shape(&self) -> (usize, usize, usize) {
        (self.shape.rows, self.shape.length, self.shape.ends)
    }

    /// The next batch, or None at the end: its arrays one after the other.
    ///
    /// Raises the error of the batch that would be next, and what a signal handler raises.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Option<Array<'py>>> {
        // A branch for each batch, not for each token.
        match &self.running {
            Running::Int64(stream) => wait(py, stream),
            Running::Int32(stream) => wait(py, stream),
            Running::UInt16(stream) => wait(py, stream),
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
            Running::UInt16(stream) => stream.close(),
        });
    }
}

/// Waits for the next batch in short turns, with a look at the signals between them.
fn wait<'py, E: Element + numpy::Element>(
    py: Python<'py>,
    stream: &core::Stream<E>,
) -> PyResult<Option<Array<'py>>> {
    loop {
        match py
            .detach(|| stream.next(PATIENCE))
            .map_err(dataloader_error)?
        {
            Next::Batch(batch) => return slots::array(py, batch.into_block()).map(Some),
            Next::End => return Ok(None),
            // Only here: a batch that is ready is handed out without a look at the signals.
            Next::Pending => py.check_signals()?,
        }
    }
}

/// The seed of the order of one source of a mixture.
#[pyfunction]
fn source_seed(seed: u64, source: usize) -> u64 {
    mix::seed_of(seed, source)
}

/// Adds the classes and the function of this file to `tinylm._rust`.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(source_seed, module)?)?;
    module.add_class::<Rows>()?;
    module.add_class::<Stream>()
}
