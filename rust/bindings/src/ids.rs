//! Token ids as Python gives them, and their way to bytes.
//!
//! An array of uint32, int32 or int64 in one stretch is read where it lies, without the GIL. So is
//! a list where the interpreter's layout is known (`layout`), with the GIL, which others may have
//! after each [`BLOCK`]. Anything else goes through Python's own functions. No id is copied before
//! it is decoded, and no byte after it (`objects`): either costs as much as to decode, mostly in
//! page faults.

use std::ops::Range;

use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString};
use tinylm_tokenizer as core;
use tinylm_tokenizer::Opening;

use crate::arguments::{detached, id_of, import_numpy, unknown};
use crate::error::tokenizer_error;
use crate::layout::Layout;
use crate::lists;
use crate::objects::{Bytes, Sink, Stop, Text};

/// Ids between two looks for signals: about 2 ms.
const BLOCK: usize = 1 << 20;
/// Ids of an array that are asked for at once.
const PART: usize = 1 << 16;

/// Ids that can be decoded.
pub(crate) enum Ids<'py> {
    List(Bound<'py, PyList>, &'static Layout),
    Own(Vec<u32>),
    U32(Lent<u32>),
    I32(Lent<i32>),
    I64(Lent<i64>),
}

/// The memory of an array in one stretch, which is kept alive.
pub(crate) struct Lent<T> {
    start: *const T,
    len: usize,
    _array: Py<PyAny>,
}

// SAFETY: the memory may be read from any thread as long as the array lives, and `_array` holds it.
#[expect(unsafe_code, reason = "see SAFETY")]
unsafe impl<T: Sync> Send for Lent<T> {}
// SAFETY: as above; nothing is written.
#[expect(unsafe_code, reason = "see SAFETY")]
unsafe impl<T: Sync> Sync for Lent<T> {}

impl<T: Copy + numpy::Element> Lent<T> {
    /// Borrows an array if it is one of these numbers, with one axis and without gaps.
    fn of(array: &Bound<'_, PyAny>) -> Option<Self> {
        let found = array.cast::<PyArray1<T>>().ok()?;
        found.is_c_contiguous().then(|| Self {
            start: found.data(),
            len: found.len(),
            _array: array.clone().unbind(),
        })
    }

    /// The numbers of `range`.
    fn read(&self, range: Range<usize>) -> impl Iterator<Item = T> {
        let range = range.start..range.end.min(self.len);
        range.map(move |at| {
            // SAFETY: below `len`, in memory that lives. Another thread may write to the array
            // meanwhile, as it may while NumPy reads one: so each number is read exactly once, and
            // whatever it is then is checked.
            #[expect(unsafe_code, reason = "see SAFETY")]
            unsafe {
                self.start.add(at).read_volatile()
            }
        })
    }
}

impl<'py> Ids<'py> {
    /// From a list, an array, a tensor, or anything that iterates over integers.
    ///
    /// # Errors
    ///
    /// `TypeError` for what is no integer, `KeyError` for an integer that is no id.
    pub(crate) fn of(ids: &Bound<'py, PyAny>) -> PyResult<Self> {
        // Before the arrays: asking for those imports numpy.
        if let Ok(list) = ids.cast_exact::<PyList>() {
            return match Layout::of(ids.py()) {
                Some(layout) => Ok(Self::List(list.clone(), layout)),
                None => each(ids).map(Self::Own),
            };
        }
        import_numpy(ids.py())?;
        if let Some(found) = Self::of_array(ids)? {
            return Ok(found);
        }
        // Element by element, an int64 tensor takes a thousand times as long as its array.
        if ids.hasattr("__array__")?
            && let Ok(array) = ids.call_method0("__array__")
            && let Some(found) = Self::of_array(&array)?
        {
            return Ok(found);
        }
        each(ids).map(Self::Own)
    }

    /// The ids in an array of integers with one axis; None for anything else.
    fn of_array(array: &Bound<'_, PyAny>) -> PyResult<Option<Self>> {
        // The types that people have first: int64 is what torch and NumPy give.
        let lent = Lent::of(array)
            .map(Self::U32)
            .or_else(|| Lent::of(array).map(Self::I64))
            .or_else(|| Lent::of(array).map(Self::I32));
        if lent.is_some() {
            return Ok(lent);
        }
        macro_rules! checked {
            ($($kind:ty)*) => { $(
                if let Ok(array) = array.extract::<PyReadonlyArray1<'_, $kind>>() {
                    // As an array of any stride: a slice with a step is an array too.
                    let ids = array.as_array();
                    let ids = ids.iter().map(|&id| u32::try_from(id).map_err(|_| unknown(id)));
                    return ids.collect::<PyResult<_>>().map(Self::Own).map(Some);
                }
            )* };
        }
        checked!(u32 i64 i32 u16 u64 i16 u8 i8);
        Ok(None)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::List(list, _) => list.len(),
            Self::Own(ids) => ids.len(),
            Self::U32(ids) => ids.len,
            Self::I32(ids) => ids.len,
            Self::I64(ids) => ids.len,
        }
    }

    /// Decodes these ids into `sink`.
    ///
    /// # Errors
    ///
    /// `KeyError` for an id without a token, what a signal handler raises, and those of the sink.
    pub(crate) fn decode(
        &self,
        py: Python<'py>,
        core: &core::Tokenizer,
        sink: &mut impl Sink,
    ) -> Result<(), Stop> {
        match self {
            Self::List(list, layout) => decode_list(list, layout, core, sink),
            Self::Own(own) => decode(py, core, own.len(), sink, |range| {
                own[range].iter().map(|&id| i64::from(id))
            }),
            Self::U32(ids) => {
                let at = |range| ids.read(range).map(i64::from);
                decode(py, core, ids.len, sink, at)
            }
            Self::I32(ids) => {
                let at = |range| ids.read(range).map(i64::from);
                decode(py, core, ids.len, sink, at)
            }
            Self::I64(ids) => decode(py, core, ids.len, sink, |range| ids.read(range)),
        }
    }

    /// The bytes of these ids.
    ///
    /// # Errors
    ///
    /// As [`Ids::decode`].
    pub(crate) fn to_bytes(
        &self,
        py: Python<'py>,
        core: &core::Tokenizer,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let expected = 5 * self.len() + core.longest();
        let Some(layout) = Layout::of(py) else {
            let mut bytes = Vec::with_capacity(expected);
            self.decode(py, core, &mut bytes)?;
            return Ok(PyBytes::new(py, &bytes));
        };
        let mut bytes = Bytes::new(py, layout, expected)?;
        self.decode(py, core, &mut bytes)?;
        bytes.finish(py)
    }

    /// The text of these ids.
    ///
    /// # Errors
    ///
    /// As [`Ids::decode`]; `ValueError` for other words than "replace" and "strict", and with the
    /// latter for bytes that are not UTF-8.
    pub(crate) fn to_text(
        &self,
        py: Python<'py>,
        core: &core::Tokenizer,
        errors: &str,
    ) -> PyResult<Bound<'py, PyString>> {
        check_errors(errors)?;
        if let Some(layout) = Layout::of(py) {
            let mut text = Text::new(layout, 5 * self.len());
            match self.decode(py, core, &mut text) {
                Ok(()) => {
                    if let Some(text) = text.finish(py)? {
                        return Ok(text);
                    }
                }
                Err(Stop::NotUtf8) => {}
                Err(stop) => return Err(stop.into()),
            }
        }
        let mut bytes = Vec::new();
        self.decode(py, core, &mut bytes)?;
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

/// Raises `ValueError` for a word that is no way to handle errors: it must fail for every text, not
/// only for invalid ones.
pub(crate) fn check_errors(errors: &str) -> PyResult<()> {
    if matches!(errors, "replace" | "strict") {
        return Ok(());
    }
    let message = format!("errors={errors:?}: expected \"replace\" or \"strict\"");
    Err(PyValueError::new_err(message))
}

/// The ids of anything that iterates over integers.
fn each(ids: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    let wrong = |found: &Bound<'_, PyAny>| {
        let kind = found.get_type();
        PyTypeError::new_err(format!(
            "ids must be a list, an array or another iterable of integers, found {kind}; for many \
             rows use decode_batch"
        ))
    };
    // A string iterates too, over strings.
    let all = ids.try_iter().map_err(|_| wrong(ids))?;
    all.map(|id| {
        let id = id?;
        id_of(&id).map_err(|error| {
            let py = ids.py();
            if error.is_instance_of::<PyTypeError>(py) {
                wrong(&id)
            } else {
                error
            }
        })
    })
    .collect()
}

/// Decodes as many of `ids` as fit at once; how many those were, at least one if there is any.
fn decode_part(
    core: &core::Tokenizer,
    opening: &mut Option<Opening>,
    ids: impl Iterator<Item = i64>,
    sink: &mut impl Sink,
) -> Result<usize, Stop> {
    let (taken, bytes) = core.decode_some(opening, ids, sink.room(core.longest())?)?;
    // SAFETY: the core has set them.
    #[expect(unsafe_code, reason = "see SAFETY")]
    unsafe {
        sink.filled(bytes)?;
    }
    Ok(taken)
}

/// Decodes `n` ids, of which `at(range)` gives a range, without the GIL.
fn decode<I: Iterator<Item = i64>>(
    py: Python<'_>,
    core: &core::Tokenizer,
    n: usize,
    sink: &mut impl Sink,
    at: impl Fn(Range<usize>) -> I + Sync,
) -> Result<(), Stop> {
    let at = &at;
    detached(py, move |stop| {
        let (mut opening, mut from) = (core.opening(), 0);
        while from < n {
            stop()?;
            let ids = at(from..n.min(from + PART));
            match decode_part(core, &mut opening, ids, sink) {
                Ok(taken) => from += taken,
                Err(Stop::Core(error)) => return Err(error),
                Err(other) => return Ok(Err(other)),
            }
        }
        Ok(Ok(()))
    })?
}

/// Decodes the ids of a list.
fn decode_list(
    list: &Bound<'_, PyList>,
    layout: &Layout,
    core: &core::Tokenizer,
    sink: &mut impl Sink,
) -> Result<(), Stop> {
    let py = list.py();
    let (mut opening, mut from, mut look) = (core.opening(), 0, BLOCK);
    // Other code may make the list shorter or longer where it runs in between.
    while from < list.len() {
        // SAFETY: the core runs no code of Python; a sink may, but is asked before and after.
        #[expect(unsafe_code, reason = "see SAFETY")]
        let ids = unsafe { lists::ids_of(list, layout, from, look) };
        let mut taken = decode_part(core, &mut opening, ids, sink)?;
        if taken == 0 {
            // An integer of another kind, or an error.
            let id = i64::from(id_of(&list.get_item(from)?)?);
            taken = decode_part(core, &mut opening, std::iter::once(id), sink)?;
        }
        from += taken;
        if from >= look {
            look = from + BLOCK;
            py.check_signals()?;
            py.detach(|| ());
        }
    }
    Ok(())
}

impl From<Stop> for PyErr {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Core(error) => tokenizer_error(error),
            Stop::Python(error) => error,
            Stop::NotUtf8 => PyValueError::new_err("the tokens are not UTF-8"),
        }
    }
}
