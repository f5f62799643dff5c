//! Shards as Python sees them: written, read as one array, hashed.
//!
//! The manifest is Python's part: it gives its entries as tuples and gets records back as tuples.
//! Held to `python/tinylm/reference/shards.py` by the rungs `shards written`, `shards read`,
//! `tokens` and `damage`.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use numpy::{IntoPyArray, PyArray1, PyArrayMethods, PyReadonlyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use tinylm_dataloader::format::{BLOCK_BYTES, HEADER_BYTES, Width, hash};
use tinylm_dataloader::plan::cached_blocks;
use tinylm_dataloader::read::Reading;
use tinylm_dataloader::write::Layout;
use tinylm_dataloader::{self as core, Element, ShardEntry};

use crate::error::dataloader_error;
use crate::slots;

/// Tokens read between two looks for Ctrl-C: 8 or 16 MiB.
const READ_CHUNK: usize = 1 << 22;

/// (name, tokens, documents, header hash, block hashes, hashes of the lengths)
type Record = (String, u64, u64, u64, Vec<u64>, Vec<u64>);
/// (path, tokens, byte of the first token, header hash, block hashes)
type Entry = (PathBuf, u64, u64, Option<u64>, Option<Vec<u64>>);

/// Documents to shards.
///
/// The mutex makes it safe for threads of Python; None inside means that it is finished.
#[pyclass(frozen, module = "tinylm._rust")]
struct ShardWriter(Mutex<Option<core::ShardWriter>>);

impl ShardWriter {
    /// Runs `work` without the GIL.
    fn run(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut core::ShardWriter) -> core::Result<()> + Send,
    ) -> PyResult<()> {
        py.detach(|| match &mut *lock(&self.0) {
            Some(writer) => work(writer),
            None => Err(core::Error::Invalid("the writer is closed".to_owned())),
        })
        .map_err(dataloader_error)
    }
}

#[pymethods]
impl ShardWriter {
    /// A writer into `folder`, which must exist. No file is made before the first document.
    ///
    /// Raises `ValueError` for a number out of its range.
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
    ///
    /// Raises `ValueError` for an id that is not below the size of the vocabulary, and `OSError` if
    /// writing fails. Documents before the refused one stay.
    fn add(
        &self,
        py: Python<'_>,
        ids: &Bound<'_, PyArray1<u32>>,
        offsets: &Bound<'_, PyArray1<i64>>,
    ) -> PyResult<()> {
        // Borrowed and not copied: a batch is a few million ids.
        let (ids, offsets) = (ids.try_readonly()?, offsets.try_readonly()?);
        let (ids, offsets) = (ids.as_slice()?, offsets.as_slice()?);
        // Checked pair by pair: offsets that go back or past the end are an error, never a panic.
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
            // For each document: the disk may be slow, and other threads should run meanwhile.
            self.run(py, |writer| writer.add(document))?;
        }
        Ok(())
    }

    /// Append ids to the document in work, or begin one; raises as `add`.
    fn add_part(&self, py: Python<'_>, ids: &Bound<'_, PyArray1<u32>>) -> PyResult<()> {
        let ids = ids.try_readonly()?;
        let ids = ids.as_slice()?;
        self.run(py, |writer| writer.add_part(ids))
    }

    /// End the document in work with eos; without a part it is empty.
    fn end_document(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, core::ShardWriter::end_document)
    }

    /// Finish the last shard; one record per shard.
    ///
    /// A second call returns no records.
    fn finish(&self, py: Python<'_>) -> PyResult<Vec<Record>> {
        let records = py
            .detach(|| {
                lock(&self.0)
                    // The writer is consumed: `add` after this finds none and says so.
                    .take()
                    .map_or_else(|| Ok(Vec::new()), core::ShardWriter::finish)
            })
            .map_err(dataloader_error)?;
        // A tuple, because a class with six fields would be one more type to keep in two places.
        let record = |r: core::write::ShardRecord| {
            (r.name, r.tokens, r.documents, r.header, r.blocks, r.lengths)
        };
        Ok(records.into_iter().map(record).collect())
    }
}

/// Shards as one array.
///
/// Frozen and shared with [`crate::batches`]: both use one cache of blocks.
#[pyclass(frozen, module = "tinylm._rust")]
pub(crate) struct Tokens(pub(crate) Arc<core::Tokens>);

#[pymethods]
impl Tokens {
    /// Opens shards of `itemsize` bytes per token, 2 or 4, and checks their sizes and headers.
    ///
    /// Raises `OSError` for a file that cannot be read, `ValueError` for one that differs from its
    /// entry.
    #[new]
    fn new(shards: Vec<Entry>, itemsize: usize) -> PyResult<Self> {
        let width = match itemsize {
            2 => Width::Two,
            4 => Width::Four,
            _ => {
                return Err(PyValueError::new_err(format!(
                    "itemsize is {itemsize}; it must be 2 or 4"
                )));
            }
        };
        // Moved, not copied: a large dataset has a hash for each MiB.
        let entries = shards
            .into_iter()
            .map(|(path, tokens, payload, header, blocks)| ShardEntry {
                path,
                tokens,
                payload,
                header,
                blocks,
            })
            .collect();
        let tokens =
            core::Tokens::open(entries, width, cached_blocks(width)).map_err(dataloader_error)?;
        Ok(Self(Arc::new(tokens)))
    }

    /// Tokens of an array [n] of uint16 or uint32, which must not change while they are read.
    ///
    /// Raises `TypeError` for another array, and `ValueError` for one that is not contiguous.
    #[staticmethod]
    fn of_array(array: &Bound<'_, PyAny>) -> PyResult<Self> {
        let tokens = if let Ok(ids) = array.cast::<PyArray1<u16>>() {
            core::Tokens::in_memory(slots::shown(ids.clone())?, Width::Two)
        } else {
            let ids = array.cast::<PyArray1<u32>>()?;
            core::Tokens::in_memory(slots::shown(ids.clone())?, Width::Four)
        };
        Ok(Self(Arc::new(tokens)))
    }

    /// Tokens in all shards.
    #[getter]
    fn n_tokens(&self) -> u64 {
        self.0.n_tokens()
    }

    /// Tokens `start..start + n` as they lie on disk: uint16 or uint32.
    ///
    /// Raises `ValueError` for tokens past the end and for a damaged block.
    fn read<'py>(&self, py: Python<'py>, start: u64, n: usize) -> PyResult<Bound<'py, PyAny>> {
        // The type of the array follows the file: nothing is widened that the caller may not want.
        match self.0.width() {
            Width::Two => Ok(self.read_as::<u16>(py, start, n)?.into_any()),
            Width::Four => Ok(self.read_as::<u32>(py, start, n)?.into_any()),
        }
    }

    /// Read and hash one block.
    ///
    /// Raises `ValueError` with the file and the byte if it is damaged.
    fn verify(&self, py: Python<'_>, shard: usize, block: usize) -> PyResult<()> {
        py.detach(|| self.0.verify(shard, block))
            .map_err(dataloader_error)
    }
}

impl Tokens {
    /// Reads in chunks, with a look at the signals after each.
    fn read_as<'py, E: Element + numpy::Element>(
        &self,
        py: Python<'py>,
        start: u64,
        n: usize,
    ) -> PyResult<Bound<'py, PyArray1<E>>> {
        // A wrong `n` must fail before memory is set aside for it.
        self.0.end(start, n).map_err(dataloader_error)?;
        // A single range says nothing of what is wanted next.
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

/// The lock, also after a panic in another thread: otherwise every later call would panic too.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes, or an array [N] of uint8 whose numbers follow each other in memory.
#[derive(FromPyObject)]
enum Content<'py> {
    Bytes(PyBackedBytes),
    Array(PyReadonlyArray1<'py, u8>),
}

/// The xxh3 (64 bits) of some bytes, as the manifest holds it for each block.
#[pyfunction]
fn xxh3_64(data: Content<'_>) -> PyResult<u64> {
    Ok(match data {
        Content::Bytes(bytes) => hash(&bytes),
        Content::Array(array) => hash(array.as_slice()?),
    })
}

/// Adds the classes and functions of this file to `tinylm._rust`.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("HEADER_BYTES", HEADER_BYTES)?;
    module.add("BLOCK_BYTES", BLOCK_BYTES)?;
    module.add_class::<ShardWriter>()?;
    module.add_class::<Tokens>()?;
    module.add_function(wrap_pyfunction!(xxh3_64, module)?)
}
