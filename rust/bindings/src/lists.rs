//! Lists of ids from integers that are made once.
//!
//! A new integer is an allocation; a ready one only gets one more reference. And as a list is filled
//! through Python's functions, each item is a call with checks. So the items are stored directly,
//! after a test of where they lie: the layout of a list is no part of the stable interface that this
//! module is built for.

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyInt, PyList, PyType};

/// Lists of this many ids and more are made of ready integers, which are made on first use.
const READY: usize = 4096;

/// Words of a list before the pointer to its items (references, type, length), and all its words.
const ITEMS: usize = 3;
const WORDS: usize = 5;

/// A Python integer for each id.
#[derive(Default)]
pub(crate) struct Integers(PyOnceLock<Vec<Py<PyInt>>>);

impl Integers {
    /// A list of `ids`, each below `number`.
    pub(crate) fn list<'py>(
        &self,
        py: Python<'py>,
        ids: &[u32],
        number: usize,
    ) -> PyResult<Bound<'py, PyList>> {
        if ids.len() < READY && self.0.get(py).is_none() {
            return PyList::new(py, ids);
        }
        let integers = self.0.get_or_try_init(py, || {
            (0..number)
                .map(|id| Ok(id.into_pyobject(py)?.unbind()))
                .collect::<PyResult<Vec<_>>>()
        })?;
        let ready = |&id: &u32| integers[id as usize].bind(py);
        if ids.is_empty() || !plain(py)? {
            return PyList::new(py, ids.iter().map(ready));
        }
        // SAFETY: a new list has room for all items and holds none, so each is stored once, with a
        // reference of its own. If `ready` panicked, the rest would be null, which a list may hold
        // until it is shown to anyone. `plain` has found the items at this word of a list.
        #[expect(unsafe_code, reason = "measured in the header")]
        unsafe {
            let list = ffi::PyList_New(ids.len() as ffi::Py_ssize_t);
            let list = Bound::from_owned_ptr_or_err(py, list)?.cast_into_unchecked::<PyList>();
            let items = list
                .as_ptr()
                .cast::<*mut *mut ffi::PyObject>()
                .add(ITEMS)
                .read();
            for (at, id) in ids.iter().enumerate() {
                items.add(at).write(ready(id).clone().into_ptr());
            }
            Ok(list)
        }
    }
}

/// Whether a list is laid out as this file takes it to be: found once, by a list of two.
fn plain(py: Python<'_>) -> PyResult<bool> {
    static PLAIN: PyOnceLock<bool> = PyOnceLock::new();
    let test = || {
        let size: usize = py
            .get_type::<PyList>()
            .cast_into::<PyType>()?
            .getattr("__basicsize__")?
            .extract()?;
        if size != WORDS * size_of::<usize>() {
            return Ok(false);
        }
        let known = PyList::new(py, [70_000, 70_001])?;
        let (first, second) = (known.get_item(0)?, known.get_item(1)?);
        // SAFETY: a list is as large as its type says, so these words can be read. The fourth is
        // followed only where length and capacity around it are those of a list of two.
        #[expect(unsafe_code, reason = "a test of the layout")]
        unsafe {
            let words = known.as_ptr().cast::<usize>();
            if words.add(ITEMS - 1).read() != 2 || words.add(ITEMS + 1).read() < 2 {
                return Ok(false);
            }
            let items = words.add(ITEMS).cast::<*mut *mut ffi::PyObject>().read();
            Ok(items.read() == first.as_ptr() && items.add(1).read() == second.as_ptr())
        }
    };
    PLAIN.get_or_try_init(py, test).copied()
}
