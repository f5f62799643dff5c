//! How `CPython` lays out lists, integers and strings, where that is known and has been seen.
//!
//! Through the stable interface, which this module is built for, an integer of a list costs 15 ns
//! to read or to make, several times what encoding or decoding a token takes; at its place in
//! memory, about 1 ns. `CPython` 3.11 to 3.14 keeps a list's items behind a pointer at byte 24, and
//! an integer below 2^30 as one number of 32 bits at byte 24, with its references at byte 0, its
//! type at byte 8 and its sign and size at byte 16. The version decides whether this is tried; then
//! a list with known integers and four strings are looked at, and if anything in them is not as
//! expected, nothing of this is used in this process.
//!
//! Two functions that are not of the stable interface either are asked for by name: one makes a
//! string without its characters, the other gives bytes another length.

use std::ffi::{CStr, c_int, c_void};
use std::slice;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyInt, PyList, PyString};
use tinylm_tokenizer::{Width, narrow};

/// Where fields lie, in bytes from the start of an object.
const REFERENCES: usize = 0;
const TYPE: usize = 8;
const SIZE: usize = 16;
const VALUE: usize = 24;
/// The bits that say how a string is kept.
const STATE: usize = 32;
/// References that an integer has at first which is never freed, where none lives for ever by
/// itself: 2^62, of which a list takes one for each place that it has the integer at.
const MANY: u64 = 1 << 62;

/// Makes a string of a length and a largest character, whose characters are not set.
type NewString = unsafe extern "C" fn(isize, u32) -> *mut ffi::PyObject;
/// Gives bytes that nobody else has another length.
type ResizeBytes = unsafe extern "C" fn(*mut *mut ffi::PyObject, isize) -> c_int;

/// An integer of Python below 2^30: memory that an interpreter with a [`Layout`] takes for one.
#[repr(C)]
pub(crate) struct Integer {
    references: u64,
    kind: usize,
    size: u64,
    value: u32,
    unused: u32,
}

/// What this interpreter has been seen to do.
pub(crate) struct Layout {
    /// The address of the type `int`.
    integer: usize,
    /// What stands at [`SIZE`] in 0, and in other integers that are below 2^30 and not negative: a
    /// small one, which the interpreter keeps, and any.
    zero: u64,
    others: [u64; 2],
    /// References of an object that is never freed.
    references: u64,
    /// Where the characters of a string begin, by its width.
    characters: [usize; 4],
    /// How far the bytes of a character are shifted in the bits of a string; the bit above these
    /// three says that the characters follow the object.
    kind: u32,
    pub(crate) new_string: NewString,
    pub(crate) resize_bytes: ResizeBytes,
}

impl Layout {
    /// That of this interpreter, if it is known.
    pub(crate) fn of(py: Python<'_>) -> Option<&'static Self> {
        static LAYOUT: PyOnceLock<Option<Layout>> = PyOnceLock::new();
        LAYOUT
            .get_or_init(py, || found(py).unwrap_or(None))
            .as_ref()
    }

    /// An integer that is never freed.
    pub(crate) fn immortal(&self, value: u32) -> Integer {
        Integer {
            references: self.references,
            kind: self.integer,
            size: if value == 0 {
                self.zero
            } else {
                self.others[1]
            },
            value,
            unused: 0,
        }
    }

    /// The value of a small integer; None for any other object.
    ///
    /// # Safety
    ///
    /// `item` must be an object of this interpreter that lives.
    #[inline]
    #[expect(unsafe_code, reason = "see Safety")]
    pub(crate) unsafe fn value(&self, item: *mut ffi::PyObject) -> Option<u32> {
        // SAFETY: the type is a field of every object, the other two of every `int`.
        unsafe {
            if field::<usize>(item, TYPE) != self.integer {
                return None;
            }
            let size = field::<u64>(item, SIZE);
            if self.others.contains(&size) {
                return Some(field::<u32>(item, VALUE));
            }
            (size == self.zero).then_some(0)
        }
    }

    /// Where the characters of a string begin, in bytes from its start.
    pub(crate) fn characters(&self, width: Width) -> usize {
        self.characters[width as usize]
    }

    /// The UTF-8 of a string that is not ASCII; None if it is, if its characters lie elsewhere, and
    /// if UTF-8 cannot express it.
    pub(crate) fn utf8(&self, text: &Bound<'_, PyString>) -> PyResult<Option<Vec<u8>>> {
        let length = text.len()?;
        // SAFETY: a string of this layout has these bits. They say that its characters follow it,
        // and of how many bytes each is; the string keeps them while it lives, and never changes.
        #[expect(unsafe_code, reason = "measured in the header of `narrow`")]
        unsafe {
            let state = field::<u32>(text.as_ptr(), STATE) >> self.kind;
            // One, two or four bytes, and characters that follow the object; not ASCII.
            let start = |width: Width| {
                let start = text.as_ptr().cast::<u8>().add(self.characters(width));
                start.cast::<std::ffi::c_void>()
            };
            Ok(match state & 0b1_1111 {
                0b0_1001 => narrow(slice::from_raw_parts(
                    start(Width::One).cast::<u8>(),
                    length,
                )),
                0b0_1010 => narrow(slice::from_raw_parts(
                    start(Width::Two).cast::<u16>(),
                    length,
                )),
                0b0_1100 => narrow(slice::from_raw_parts(
                    start(Width::Four).cast::<u32>(),
                    length,
                )),
                _ => None,
            })
        }
    }
}

/// The items of a list: they may be read while the list is as long as `PyList::len` says, which it
/// is as long as no code of Python runs.
pub(crate) fn items(list: &Bound<'_, PyList>, _: &Layout) -> *mut *mut ffi::PyObject {
    // SAFETY: there is a layout, so a list has this field.
    #[expect(unsafe_code, reason = "see SAFETY")]
    unsafe {
        field(list.as_ptr(), VALUE)
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

/// Looks at the layout of this interpreter.
fn found(py: Python<'_>) -> PyResult<Option<Layout>> {
    let sys = py.import("sys")?;
    let version = py.version_info();
    let known = size_of::<usize>() == 8
        && cfg!(target_endian = "little")
        && sys.getattr("implementation")?.getattr("name")?.eq("cpython")?
        && (version.major, (11..=14).contains(&version.minor)) == (3, true)
        // A debug build may put more fields in front.
        && !sys.hasattr("gettotalrefcount")?;
    let named = symbol(c"PyUnicode_New").zip(symbol(c"_PyBytes_Resize"));
    let Some((new_string, resize_bytes)) = named.filter(|_| known) else {
        return Ok(None);
    };
    let mut layout = Layout {
        integer: py.get_type::<PyInt>().as_ptr().addr(),
        zero: 0,
        others: [0; 2],
        references: MANY,
        characters: [0; 4],
        kind: 0,
        // SAFETY: CPython has declared the two functions like this from 3.3 on.
        #[expect(unsafe_code, reason = "see SAFETY")]
        new_string: unsafe { std::mem::transmute::<*mut c_void, NewString>(new_string) },
        // SAFETY: as above.
        #[expect(unsafe_code, reason = "see SAFETY")]
        resize_bytes: unsafe { std::mem::transmute::<*mut c_void, ResizeBytes>(resize_bytes) },
    };
    if version.minor >= 12 {
        // SAFETY: every object has this field, and None is one that lives for ever.
        #[expect(unsafe_code, reason = "see SAFETY")]
        let references = unsafe { field::<u64>(py.None().as_ptr(), REFERENCES) };
        layout.references = references;
        // What tells the interpreter: the lower half is a negative number.
        if (references as u32).cast_signed() >= 0 {
            return Ok(None);
        }
    }
    Ok((layout.sees_integers(py)? && layout.sees_strings(py)?).then_some(layout))
}

impl Layout {
    /// Whether lists and integers are as expected; notes the sizes of integers.
    fn sees_integers(&mut self, py: Python<'_>) -> PyResult<bool> {
        let values: [i64; 8] = [0, 7, 70_000, (1 << 30) - 1, 1 << 30, -7, -70_000, 1 << 40];
        let list = PyList::new(py, values)?;
        // SAFETY: a list and integers of these versions on 64 bits have these fields; the items
        // are compared with those that the stable interface gives before they are read.
        #[expect(unsafe_code, reason = "see SAFETY")]
        unsafe {
            if field::<usize>(list.as_ptr(), SIZE) != values.len() {
                return Ok(false);
            }
            let items = items(&list, self);
            for at in 0..values.len() {
                if *items.add(at) != list.get_item(at)?.as_ptr() {
                    return Ok(false);
                }
            }
            let size = |at: usize| field::<u64>(*items.add(at), SIZE);
            (self.zero, self.others) = (size(0), [size(1), size(2)]);
            for (at, &expected) in values.iter().enumerate() {
                let small = u32::try_from(expected).ok().filter(|&id| id < 1 << 30);
                if self.value(*items.add(at)) != small {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Whether strings are as expected; notes where their characters begin.
    fn sees_strings(&mut self, py: Python<'_>) -> PyResult<bool> {
        let widths = [Width::Ascii, Width::One, Width::Two, Width::Four];
        let mut states: Vec<(u32, u32)> = Vec::new();
        for (width, last) in widths
            .into_iter()
            .zip(['c', '\u{e9}', '\u{4e2d}', '\u{1f600}'])
        {
            let text = format!("ab{last}");
            let string = PyString::new(py, &text);
            let size: usize = string.call_method0("__sizeof__")?.extract()?;
            let bytes = 1 << (width as usize).saturating_sub(1);
            // The characters and a 0 are at the end.
            let Some(start) = size.checked_sub(4 * bytes) else {
                return Ok(false);
            };
            for (at, expected) in text.chars().chain(['\0']).enumerate() {
                let at = start + at * bytes;
                // SAFETY: the string says that it has these bytes.
                #[expect(unsafe_code, reason = "see SAFETY")]
                let code = unsafe {
                    match bytes {
                        1 => u32::from(field::<u8>(string.as_ptr(), at)),
                        2 => u32::from(field::<u16>(string.as_ptr(), at)),
                        _ => field::<u32>(string.as_ptr(), at),
                    }
                };
                if code != u32::from(expected) {
                    return Ok(false);
                }
            }
            self.characters[width as usize] = start;
            // SAFETY: every string is longer than these bits are far from its start.
            #[expect(unsafe_code, reason = "see SAFETY")]
            let state = unsafe { field::<u32>(string.as_ptr(), STATE) };
            states.push((state, 1 << (width as u32).saturating_sub(1)));
        }
        // The bytes of a character, then a bit for characters that follow, and one for ASCII.
        let shift = (0..28).find(|shift| {
            states.iter().enumerate().all(|(number, &(state, bytes))| {
                let ascii = if number == 0 { 0b1_0000 } else { 0 };
                state >> shift & 0b1_1111 == (ascii | 0b1000 | bytes)
            })
        });
        self.kind = shift.unwrap_or(0);
        Ok(shift.is_some())
    }
}

/// The address of a function of this process.
fn symbol(name: &CStr) -> Option<*mut c_void> {
    #[cfg(unix)]
    {
        // SAFETY: the name ends with a 0, and nothing is loaded.
        #[expect(unsafe_code, reason = "see SAFETY")]
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        Some(found).filter(|address| !address.is_null())
    }
    #[cfg(not(unix))]
    {
        let _ = name;
        None
    }
}
