//! The dataloader as Python sees it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use numpy::ndarray::Array2;
use numpy::{IntoPyArray, PyArray1, PyArray2, PyArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use tinylm_dataloader::batch::Filler;
use tinylm_dataloader::format::{Width, hash};
use tinylm_dataloader::read::{Reading, ShardEntry};
use tinylm_dataloader::ring::Next;
use tinylm_dataloader::write::Layout;
use tinylm_dataloader::{self as core, Batch, Element, Order, Slice};

use crate::error::dataloader_error;

/// How long a wait without the GIL may be before Ctrl-C is looked for.
const PATIENCE: Duration = Duration::from_millis(50);
/// Tokens read between two looks for Ctrl-C.
const READ_CHUNK: usize = 1 << 22;
/// Row numbers stay below this, far from any overflow.
const MAX_ROW: u64 = 1 << 62;

/// (name, tokens, documents, header hash, block hashes, hashes of the lengths)
type Record = (String, u64, u64, u64, Vec<u64>, Vec<u64>);
/// tokens and targets: [B, T], or [T] of one row
type Arrays<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>);

/// Documents to shards.
#[pyclass(frozen, module = "tinylm._rust")]
struct ShardWriter(Mutex<Option<core::ShardWriter>>);

#[pymethods]
impl ShardWriter {
    #[new]
    #[pyo3(signature = (folder, *, split, vocab_size, eos_id, shard_tokens, tokenizer_sha256))]
    fn new(
        folder: PathBuf,
        split: String,
        vocab_size: u64,
        eos_id: u32,
        shard_tokens: u64,
        tokenizer_sha256: [u8; 32],
    ) -> PyResult<Self> {
        let layout = Layout {
            folder,
            split,
            vocab_size,
            eos_id,
            shard_tokens,
            tokenizer_sha256,
        };
        let writer = core::ShardWriter::new(layout).map_err(dataloader_error)?;
        Ok(Self(Mutex::new(Some(writer))))
    }

    /// Append the documents `ids[offsets[k]:offsets[k + 1]]`, each ended by eos.
    fn add(
        &self,
        py: Python<'_>,
        ids: &Bound<'_, PyArray1<u32>>,
        offsets: &Bound<'_, PyArray1<i64>>,
    ) -> PyResult<()> {
        let (ids, offsets) = (ids.try_readonly()?, offsets.try_readonly()?);
        let (ids, offsets) = (ids.as_slice()?, offsets.as_slice()?);
        for pair in offsets.windows(2) {
            let document = usize::try_from(pair[0])
                .ok()
                .zip(usize::try_from(pair[1]).ok())
                .and_then(|(from, to)| ids.get(from..to))
                .ok_or_else(|| {
                    let (from, to) = (pair[0], pair[1]);
                    PyValueError::new_err(format!(
                        "offsets {from} to {to} do not cut an array of {} ids",
                        ids.len()
                    ))
                })?;
            py.detach(|| match &mut *lock(&self.0) {
                Some(writer) => writer.add(document),
                None => Err(core::Error::Invalid("the writer is closed".to_owned())),
            })
            .map_err(dataloader_error)?;
        }
        Ok(())
    }

    /// Finish the last shard; one record per shard.
    fn finish(&self, py: Python<'_>) -> PyResult<Vec<Record>> {
        let records = py
            .detach(|| {
                lock(&self.0)
                    .take()
                    .map_or_else(|| Ok(Vec::new()), core::ShardWriter::finish)
            })
            .map_err(dataloader_error)?;
        let record = |r: core::write::ShardRecord| {
            (r.name, r.tokens, r.documents, r.header, r.blocks, r.lengths)
        };
        Ok(records.into_iter().map(record).collect())
    }
}

/// Shards as one array.
#[pyclass(frozen, module = "tinylm._rust")]
struct Tokens(Arc<core::Tokens>);

#[pymethods]
impl Tokens {
    #[new]
    fn new(shards: Vec<(PathBuf, u64, u64, Vec<u64>)>, itemsize: usize) -> PyResult<Self> {
        let width = match itemsize {
            2 => Width::Two,
            4 => Width::Four,
            _ => {
                return Err(PyValueError::new_err(format!(
                    "itemsize is {itemsize}; it must be 2 or 4"
                )));
            }
        };
        let entries = shards
            .into_iter()
            .map(|(path, tokens, header, blocks)| ShardEntry {
                path,
                tokens,
                header,
                blocks,
            })
            .collect();
        let tokens = core::Tokens::open(entries, width).map_err(dataloader_error)?;
        Ok(Self(Arc::new(tokens)))
    }

    #[getter]
    fn n_tokens(&self) -> u64 {
        self.0.n_tokens()
    }

    /// Tokens `start..start + n` as they lie on disk: uint16 or uint32.
    fn read<'py>(&self, py: Python<'py>, start: u64, n: usize) -> PyResult<Bound<'py, PyAny>> {
        match self.0.width() {
            Width::Two => Ok(self.read_as::<u16>(py, start, n)?.into_any()),
            Width::Four => Ok(self.read_as::<u32>(py, start, n)?.into_any()),
        }
    }

    /// Read and hash one block.
    fn verify(&self, py: Python<'_>, shard: usize, block: usize) -> PyResult<()> {
        py.detach(|| self.0.verify(shard, block))
            .map_err(dataloader_error)
    }
}

impl Tokens {
    fn read_as<'py, E: Element + numpy::Element>(
        &self,
        py: Python<'py>,
        start: u64,
        n: usize,
    ) -> PyResult<Bound<'py, PyArray1<E>>> {
        // A wrong `n` must fail before memory is set aside for it.
        if start
            .checked_add(n as u64)
            .is_none_or(|end| end > self.0.n_tokens())
        {
            return Err(PyValueError::new_err(format!(
                "tokens {start} to {start} + {n} of a dataset of {} tokens",
                self.0.n_tokens()
            )));
        }
        let reading = self.0.allowed(Reading::Far);
        let mut out = Vec::with_capacity(n);
        while out.len() < n {
            let (from, some) = (start + out.len() as u64, (n - out.len()).min(READ_CHUNK));
            py.detach(|| self.0.read(from, some, reading, &mut out))
                .map_err(dataloader_error)?;
            py.check_signals()?;
        }
        Ok(out.into_pyarray(py))
    }
}

/// The rows of a dataset in their order.
#[pyclass(frozen, module = "tinylm._rust")]
struct Rows {
    tokens: Arc<core::Tokens>,
    order: core::Rows,
    mask_after: Option<u32>,
}

#[pymethods]
impl Rows {
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
        let order = match order {
            "shuffle" => Order::Shuffle,
            "sequential" => Order::Sequential,
            "random" => Order::Random,
            _ => {
                return Err(PyValueError::new_err(format!(
                    "order is {order:?}; it must be shuffle, sequential or random"
                )));
            }
        };
        let tokens = Arc::clone(&tokens.0);
        let rows = core::Rows::new(order, seed, tokens.n_tokens(), context_length, stride)
            .map_err(dataloader_error)?;
        Ok(Self {
            tokens,
            order: rows,
            mask_after,
        })
    }

    #[getter]
    fn n_rows(&self) -> u64 {
        self.order.n_rows()
    }

    /// The token at which row `i` of `epoch` begins.
    fn start(&self, epoch: u64, i: u64) -> PyResult<u64> {
        self.check_row(i)?;
        Ok(self.order.walk().start(epoch, i))
    }

    /// Tokens and targets of row `i` of `epoch`, as int64.
    fn row<'py>(&self, py: Python<'py>, epoch: u64, i: u64) -> PyResult<Arrays<'py>> {
        self.check_row(i)?;
        let mut batch = Batch::<i64>::default();
        py.detach(|| {
            Filler::new(&self.tokens, &self.order, self.mask_after).row(epoch, i, &mut batch)
        })
        .map_err(dataloader_error)?;
        Ok((
            batch.tokens.into_pyarray(py).into_any(),
            batch.targets.into_pyarray(py).into_any(),
        ))
    }

    /// Start the threads that make the batches from row `first_row` on.
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
        for (name, value) in [("batch_size", batch_size), ("the first row", first_row)] {
            if value >= MAX_ROW {
                return Err(PyValueError::new_err(format!(
                    "{name} is {value}; the limit is {MAX_ROW}"
                )));
            }
        }
        let slice = Slice {
            batch_size,
            rank,
            world_size,
            first_row,
            end_row,
        };
        let shape = (
            slice.check().map(|()| slice.rows() as usize),
            self.order.context_length(),
        );
        let shape = (shape.0.map_err(dataloader_error)?, shape.1);
        let (tokens, rows, mask) = (
            Arc::clone(&self.tokens),
            self.order.clone(),
            self.mask_after,
        );
        let running = match dtype {
            "int64" => core::Stream::start(tokens, rows, mask, slice, threads, prefetch)
                .map(Running::Int64),
            "int32" => core::Stream::start(tokens, rows, mask, slice, threads, prefetch)
                .map(Running::Int32),
            _ => {
                return Err(PyValueError::new_err(format!(
                    "dtype is {dtype:?}; it must be int64 or int32"
                )));
            }
        };
        Ok(Stream {
            running: running.map_err(dataloader_error)?,
            shape,
        })
    }
}

impl Rows {
    fn check_row(&self, i: u64) -> PyResult<()> {
        let n_rows = self.order.n_rows();
        if i < n_rows {
            return Ok(());
        }
        Err(PyValueError::new_err(format!(
            "row {i} of an epoch of {n_rows} rows"
        )))
    }
}

enum Running {
    Int64(core::Stream<i64>),
    Int32(core::Stream<i32>),
}

/// Batches made ahead by threads.
#[pyclass(frozen, module = "tinylm._rust")]
struct Stream {
    running: Running,
    shape: (usize, usize),
}

#[pymethods]
impl Stream {
    /// The next tokens and targets, or None at the end.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Option<Arrays<'py>>> {
        match &self.running {
            Running::Int64(stream) => self.wait(py, stream),
            Running::Int32(stream) => self.wait(py, stream),
        }
    }

    /// End the threads.
    fn close(&self, py: Python<'_>) {
        py.detach(|| match &self.running {
            Running::Int64(stream) => stream.close(),
            Running::Int32(stream) => stream.close(),
        });
    }
}

impl Stream {
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
                    let tokens = array(py, batch.tokens, self.shape)?;
                    return Ok(Some((tokens, array(py, batch.targets, self.shape)?)));
                }
                Next::End => return Ok(None),
                Next::Pending => py.check_signals()?,
            }
        }
    }
}

/// The vector's own memory as a `NumPy` array: nothing is copied.
fn array<E: numpy::Element>(
    py: Python<'_>,
    values: Vec<E>,
    shape: (usize, usize),
) -> PyResult<Bound<'_, PyAny>> {
    let values = Array2::from_shape_vec(shape, values)
        .map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok(PyArray2::from_owned_array(py, values).into_any())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The xxh3 (64 bits) of some bytes, as the manifest holds it for each block.
#[pyfunction]
fn xxh3_64(data: &[u8]) -> u64 {
    hash(data)
}

/// Adds the classes and functions of this file to `tinylm._rust`.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<ShardWriter>()?;
    module.add_class::<Tokens>()?;
    module.add_class::<Rows>()?;
    module.add_class::<Stream>()?;
    module.add_function(wrap_pyfunction!(xxh3_64, module)?)
}
