//! Token ids as Python gives them, and their way to bytes.
//!
//! An array of uint32, int32 or int64 in one stretch is read where it lies, and the bytes are
//! written where Python will have them: a copy of 4 million ids or of their bytes costs as much as
//! to decode them, mostly in page faults. A list is read in one pass under the GIL, from the memory
//! of its integers where the interpreter's layout is one that is known (`small_ints`). Anything else
//! goes through Python's own functions.

use std::mem::MaybeUninit;
use std::ops::Range;

use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1, PyUntypedArrayMethods};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use tinylm_tokenizer as core;

use crate::arguments::{detached, id_of, import_numpy, unknown};
use crate::small_ints;

/// Ids between two looks for signals: about 2 ms.
const BLOCK: usize = 1 << 20;

/// Ids that can be decoded.
pub(crate) enum Ids {
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

impl Ids {
    /// From a list, an array, a tensor, or anything that iterates over integers.
    ///
    /// # Errors
    ///
    /// `TypeError` for what is no integer, `KeyError` for an integer that is no id.
    pub(crate) fn of(ids: &Bound<'_, PyAny>) -> PyResult<Self> {
        // Before the arrays: asking for those imports numpy.
        if let Ok(list) = ids.cast_exact::<PyList>() {
            return of_list(list).map(Self::Own);
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
        let ids = ids.try_iter()?.map(|id| id_of(&id?));
        ids.collect::<PyResult<_>>().map(Self::Own)
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

    /// The ids in memory of their own.
    fn copied(&self) -> PyResult<Vec<u32>> {
        match self {
            Self::Own(own) => Ok(own.clone()),
            Self::U32(ids) => Ok(ids.read(0..ids.len).collect()),
            Self::I32(ids) => copied(ids.read(0..ids.len)),
            Self::I64(ids) => copied(ids.read(0..ids.len)),
        }
    }

    /// The bytes of these ids, decoded.
    ///
    /// # Errors
    ///
    /// `KeyError` for an id without a token, and what a signal handler raises.
    pub(crate) fn decoded<'py>(
        &self,
        py: Python<'py>,
        core: &core::Tokenizer,
    ) -> PyResult<Bound<'py, PyBytes>> {
        if !core.joins_tokens() {
            let ids = self.copied()?;
            let bytes = detached(py, |_| core.decode(&ids))?;
            return Ok(PyBytes::new(py, &bytes));
        }
        match self {
            Self::Own(own) => decode(py, core, own.len(), |range| {
                own[range].iter().map(|&id| i64::from(id))
            }),
            Self::U32(ids) => decode(py, core, ids.len, |range| ids.read(range).map(i64::from)),
            Self::I32(ids) => decode(py, core, ids.len, |range| ids.read(range).map(i64::from)),
            Self::I64(ids) => decode(py, core, ids.len, |range| ids.read(range)),
        }
    }
}

/// Numbers as ids.
fn copied<T: Copy + TryInto<u32> + std::fmt::Display>(
    numbers: impl Iterator<Item = T>,
) -> PyResult<Vec<u32>> {
    numbers
        .map(|id| id.try_into().map_err(|_| unknown(id)))
        .collect()
}

/// The ids in a list.
fn of_list(list: &Bound<'_, PyList>) -> PyResult<Vec<u32>> {
    let mut ids = Vec::with_capacity(list.len());
    small_ints::read(list, &mut ids)?;
    // What the quick way has left, if anything: integers of other kinds, and errors. The list may
    // get shorter while an element is asked for its number.
    while ids.len() < list.len() {
        ids.push(id_of(&list.get_item(ids.len())?)?);
    }
    Ok(ids)
}

/// The bytes of `n` ids, of which `at(range)` gives a range.
fn decode<'py, I: Iterator<Item = i64>>(
    py: Python<'py>,
    core: &core::Tokenizer,
    n: usize,
    at: impl Fn(Range<usize>) -> I + Sync,
) -> PyResult<Bound<'py, PyBytes>> {
    let block = |from: usize| from..n.min(from + BLOCK);
    let at = &at;
    // The length first, because an object of bytes cannot grow.
    let length = detached(py, |stop| {
        (0..n).step_by(BLOCK).try_fold(0, |length, from| {
            stop()?;
            Ok(length + core.decoded_length(at(block(from)))?)
        })
    })?;
    // SAFETY: a null pointer asks for an object whose bytes are not set; the conversion looks at
    // errors. Below 2 bytes it would be one that Python shares.
    #[expect(unsafe_code, reason = "see SAFETY")]
    let object: Bound<'py, PyBytes> = unsafe {
        let made = ffi::PyBytes_FromStringAndSize(std::ptr::null(), length.max(2) as isize);
        Bound::from_owned_ptr_or_err(py, made)?.cast_into_unchecked()
    };
    // SAFETY: no other code has the object yet, so its bytes may be set, as CPython's own code
    // does.
    #[expect(unsafe_code, reason = "see SAFETY")]
    let mut out = unsafe {
        let start = ffi::PyBytes_AsString(object.as_ptr()).cast::<MaybeUninit<u8>>();
        std::slice::from_raw_parts_mut(start, length)
    };
    detached(py, move |stop| {
        for from in (0..n).step_by(BLOCK) {
            stop()?;
            let (taken, bytes) = core.decode_some(at(block(from)), out)?;
            if taken < block(from).len() {
                break;
            }
            out = &mut out[bytes..];
        }
        if out.is_empty() {
            Ok(())
        } else {
            let message = "the ids changed while they were decoded";
            Err(core::Error::Vocabulary(message.into()))
        }
    })?;
    if length < 2 {
        // The object has two bytes, and one of them was never set: that is not looked at.
        let byte = length == 1;
        return Ok(PyBytes::new(
            py,
            if byte { &object.as_bytes()[..1] } else { b"" },
        ));
    }
    Ok(object)
}
