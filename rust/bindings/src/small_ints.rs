//! Small integers out of a list, straight from memory.
//!
//! Through the stable interface an integer of a list costs 15 ns, three times what all the rest of
//! decoding a token takes; read from where it lies, 2 ns (`python benches/bench_vocabulary.py
//! decode`). `CPython` 3.11 to 3.14 keeps a list's items behind a pointer at byte 24, and an integer
//! below 2^30 as one number of 32 bits at byte 24, with its type at byte 8 and its sign and size at
//! byte 16. The version decides whether this is tried; then a list with known integers is read, and
//! if anything in it is not as expected, the quick way is never taken in this process.

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyInt, PyList};

/// Integers between two looks for signals.
const BLOCK: usize = 1 << 20;
/// Where fields lie, in bytes from the start of an object.
const TYPE: usize = 8;
const SIZE: usize = 16;
const VALUE: usize = 24;

/// What stands at [`SIZE`] in integers that are below 2^30 and not negative.
struct Sizes {
    /// Of 0.
    zero: u64,
    /// Of a small one, which the interpreter keeps, and of others.
    others: [u64; 2],
}

/// Appends the ids at the start of `list` up to the first element that is no `int` from 0 to
/// 2^30 - 1; all of them, nearly always.
///
/// # Errors
///
/// What a signal handler raises.
pub(crate) fn read(list: &Bound<'_, PyList>, ids: &mut Vec<u32>) -> PyResult<()> {
    static SIZES: PyOnceLock<Option<Sizes>> = PyOnceLock::new();
    let py = list.py();
    let Some(sizes) = SIZES.get_or_init(py, || sizes(py).unwrap_or(None)) else {
        return Ok(());
    };
    let integer = py.get_type::<PyInt>().as_ptr() as u64;
    while ids.len() < list.len() {
        let range = ids.len()..list.len().min(ids.len() + BLOCK);
        let end = range.end;
        // SAFETY: `sizes` has seen this layout, the index is below the length, and no code of
        // Python runs in this block, so the list keeps its items and they live.
        #[expect(unsafe_code, reason = "see SAFETY")]
        unsafe {
            let items = field::<*const *mut ffi::PyObject>(list.as_ptr(), VALUE);
            ids.extend(range.map_while(|at| value(*items.add(at), integer, sizes)));
        }
        if ids.len() < end {
            break;
        }
        // A short list is not worth a look.
        if end >= BLOCK {
            py.check_signals()?;
        }
    }
    Ok(())
}

/// The value of a small integer; None for any other object.
///
/// # Safety
///
/// `item` must be an object of an interpreter that [`sizes`] has accepted.
#[inline]
#[expect(unsafe_code, reason = "see Safety")]
unsafe fn value(item: *mut ffi::PyObject, integer: u64, sizes: &Sizes) -> Option<u32> {
    // SAFETY: the type is a field of every object, the other two of every `int`.
    unsafe {
        if field::<u64>(item, TYPE) != integer {
            return None;
        }
        let size = field::<u64>(item, SIZE);
        if sizes.others.contains(&size) {
            return Some(field::<u32>(item, VALUE));
        }
        (size == sizes.zero).then_some(0)
    }
}

/// A field of an object.
///
/// # Safety
///
/// The object must have such a field `at` this offset.
#[inline]
#[expect(unsafe_code, reason = "see Safety")]
unsafe fn field<T: Copy>(object: *mut ffi::PyObject, at: usize) -> T {
    // SAFETY: as the caller says; fields of objects are aligned.
    unsafe { *object.cast::<u8>().add(at).cast::<T>() }
}

/// The sizes of integers, if this interpreter has the known layout.
fn sizes(py: Python<'_>) -> PyResult<Option<Sizes>> {
    let sys = py.import("sys")?;
    let version = py.version_info();
    let known = size_of::<usize>() == 8
        && cfg!(target_endian = "little")
        && sys.getattr("implementation")?.getattr("name")?.eq("cpython")?
        && (version.major, (11..=14).contains(&version.minor)) == (3, true)
        // A debug build may put more fields in front.
        && !sys.hasattr("gettotalrefcount")?;
    if !known {
        return Ok(None);
    }
    let values: [i64; 8] = [0, 7, 70_000, (1 << 30) - 1, 1 << 30, -7, -70_000, 1 << 40];
    let list = PyList::new(py, values)?;
    // SAFETY: a list and integers of CPython 3.11 to 3.14 on 64 bits have these fields; the items
    // are compared with those that the stable interface gives before they are read.
    #[expect(unsafe_code, reason = "see SAFETY")]
    unsafe {
        if field::<usize>(list.as_ptr(), SIZE) != values.len() {
            return Ok(None);
        }
        let items = field::<*const *mut ffi::PyObject>(list.as_ptr(), VALUE);
        for at in 0..values.len() {
            if *items.add(at) != list.get_item(at)?.as_ptr() {
                return Ok(None);
            }
        }
        let integer = py.get_type::<PyInt>().as_ptr() as u64;
        let size = |at: usize| field::<u64>(*items.add(at), SIZE);
        let sizes = Sizes {
            zero: size(0),
            others: [size(1), size(2)],
        };
        for (at, &expected) in values.iter().enumerate() {
            let small = u32::try_from(expected).ok().filter(|&id| id < 1 << 30);
            if value(*items.add(at), integer, &sizes) != small {
                return Ok(None);
            }
        }
        Ok(Some(sizes))
    }
}
