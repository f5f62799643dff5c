//! What Python hands over, and how work goes on without the GIL.
//!
//! Texts are borrowed from Python's strings. Python keeps the UTF-8 of one that is not ASCII beside
//! it, once it was asked for; a long one is converted for the call alone. Ids are in `ids`.

use std::time::{Duration, Instant};

use numpy::PyArray1;
use pyo3::exceptions::{PyKeyError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyString};
use tinylm_tokenizer as core;
use tinylm_tokenizer::Interrupt;

use crate::error::tokenizer_error;
use crate::layout::Layout;

/// Signals are looked at this often, and a progress callback called a fifth as often.
///
/// A Ctrl-C should be answered within 100 ms. A look needs the GIL, which another thread may hold.
const SIGNALS: Duration = Duration::from_millis(20);

/// Characters from which on a string that is not ASCII keeps no UTF-8 beside it: Python would make
/// it in one place and copy it to another, which costs 5 ms of 8 MB and the memory for good.
const LONG: usize = 1 << 16;

/// Runs `work` without the GIL; the interrupt it gets raises what a signal handler raises.
///
/// # Errors
///
/// What a signal handler or callback raised, or else the exception for the core's error.
#[expect(
    clippy::redundant_closure_for_method_calls,
    reason = "the method fits one lifetime only"
)]
pub(crate) fn detached<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(&mut Interrupt<'_>) -> Result<T, core::Error> + Send,
) -> PyResult<T> {
    let mut raised = None;
    let done = py.detach(|| {
        // The clock first: it costs far less than to ask for the GIL.
        let mut last = Instant::now();
        work(&mut || {
            if last.elapsed() < SIGNALS {
                return Ok(());
            }
            last = Instant::now();
            // The core cannot carry a Python exception, so it waits here until the work has ended.
            Python::attach(|py| py.check_signals()).map_err(|error| {
                raised = Some(error);
                core::Error::Interrupted
            })
        })
    });
    done.map_err(|error| raised.unwrap_or_else(|| tokenizer_error(error)))
}

/// A callback of Python that long work calls with how far it is, one call each 100 ms.
#[derive(Default)]
pub(crate) struct Progress {
    callback: Option<Py<PyAny>>,
    last: Option<Instant>,
    raised: Option<PyErr>,
}

impl Progress {
    pub(crate) fn new(callback: Option<Py<PyAny>>) -> Self {
        Self {
            callback,
            ..Self::default()
        }
    }

    /// Calls the callback if it is due, or `always`. What it raises waits for `end`.
    pub(crate) fn tell(
        &mut self,
        done: usize,
        all: usize,
        always: bool,
    ) -> Result<(), core::Error> {
        let due = always || self.last.is_none_or(|at| at.elapsed() > 5 * SIGNALS);
        let Some(callback) = self.callback.as_ref().filter(|_| due) else {
            return Ok(());
        };
        self.last = Some(Instant::now());
        Python::attach(|py| callback.call1(py, (done, all))).map_err(|error| {
            self.raised = Some(error);
            core::Error::Interrupted
        })?;
        Ok(())
    }

    /// The callback's own exception, which the core knows only as an interrupt; else `result`.
    pub(crate) fn end<T>(self, result: PyResult<T>) -> PyResult<T> {
        self.raised.map_or(result, Err)
    }
}

/// Imports numpy, or raises what stops that. The numpy crate imports it on first use and
/// panics where it cannot, which a Ctrl-C in the middle of the import is enough for.
pub(crate) fn import_numpy(py: Python<'_>) -> PyResult<()> {
    // Remembered only if it succeeds, so a later call tries again.
    static IMPORTED: PyOnceLock<()> = PyOnceLock::new();
    let import = || {
        py.import("numpy._core.multiarray")?;
        // The first array runs a little more of numpy: no signal may be waiting for that.
        py.check_signals()?;
        drop(PyArray1::<u32>::zeros(py, 0, false));
        Ok(())
    };
    IMPORTED.get_or_try_init(py, import).copied()
}

/// A text as Python gives it, borrowed.
pub(crate) enum Text {
    /// The UTF-8 that Python keeps beside a string.
    Str(PyBackedStr),
    /// Any bytes, not only UTF-8; and, where its layout is not known, the UTF-8 of a long string.
    Bytes(PyBackedBytes),
    /// The UTF-8 of a long string.
    Own(Vec<u8>),
}

impl Text {
    /// The text as the core takes it.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Str(text) => text.as_bytes(),
            Self::Bytes(text) => text,
            Self::Own(text) => text,
        }
    }
}

impl<'py> FromPyObject<'_, 'py> for Text {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(text) = object.cast::<PyString>() {
            let long = text.len()? >= LONG && !text.call_method0("isascii")?.is_truthy()?;
            if long
                && let Some(layout) = Layout::of(object.py())
                && let Some(own) = layout.utf8(&text)?
            {
                return Ok(Self::Own(own));
            }
            let taken = if long {
                text.encode_utf8().map(|bytes| Self::Bytes(bytes.into()))
            } else {
                PyBackedStr::try_from(text.to_owned()).map(Self::Str)
            };
            return taken.map_err(|error| {
                let value = error.value(object.py());
                // Python's error names codec and position; ours also says what helps.
                match value
                    .getattr("start")
                    .and_then(|start| start.extract::<usize>())
                {
                    Ok(at) => PyValueError::new_err(format!(
                        "the text holds a lone surrogate at character {at}, which UTF-8 cannot \
                         express; clean it with text.encode('utf-8', 'replace').decode()"
                    )),
                    Err(_) => error,
                }
            });
        }
        if let Ok(text) = object.cast::<PyBytes>() {
            return Ok(Self::Bytes(text.to_owned().into()));
        }
        // A bytearray is refused too: it may change while the GIL is released.
        let given = object.get_type().name()?;
        Err(PyTypeError::new_err(format!(
            "text must be str or bytes, not {given}"
        )))
    }
}

/// The error for an id that is negative or too large for any vocabulary.
pub(crate) fn unknown(id: impl std::fmt::Display) -> PyErr {
    PyKeyError::new_err(format!("token id {id} is not in the vocabulary"))
}

/// One token id.
///
/// # Errors
///
/// `TypeError` for what is no integer, `KeyError` for an integer that is no id.
pub(crate) fn id_of(id: &Bound<'_, PyAny>) -> PyResult<u32> {
    id.extract::<u32>().map_err(|error| {
        if error.is_instance_of::<PyTypeError>(id.py()) {
            return error;
        }
        unknown(id)
    })
}
