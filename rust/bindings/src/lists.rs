//! Lists of ids, made and read in place.
//!
//! All lists share one table of integers, which lie side by side and are never freed: the place of
//! an id in memory follows from the id. So a list is filled without reading anything, and without
//! counting references, 1 ns for each id with the page faults of the list, where a new integer
//! takes 15 (`python benches/bench_encode.py --to list`). A list that is decoded mostly was made
//! here, and its ids are read from the addresses alone.
//!
//! The table takes 32 bytes for each id of the largest vocabulary that has made long lists, and as
//! much again for smaller ones before it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyList;
use tinylm_tokenizer::{large_pages, prefetch_at};

use crate::layout::{Integer, Layout, items};

/// The table is made as soon as lists had this many ids together: to make it takes as long as to
/// make so many integers.
const READY: usize = 1 << 16;
/// Ids from here on are made one by one: 32 MiB for all that are below.
const MOST: usize = 1 << 20;

/// An integer of a list is loaded this many before it is read.
const AHEAD: usize = 32;

/// The integers 0, 1, 2 ..., as many as were needed so far.
static TABLE: Mutex<&'static [Integer]> = Mutex::new(&[]);

/// A list of `ids`, each below `number`.
pub(crate) fn list_of<'py>(
    py: Python<'py>,
    ids: &[u32],
    number: usize,
) -> PyResult<Bound<'py, PyList>> {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let ready = MADE.fetch_add(ids.len(), Ordering::Relaxed) + ids.len() >= READY;
    let layout = Layout::of(py).filter(|_| ready && number <= MOST && !ids.is_empty());
    let Some(layout) = layout else {
        return PyList::new(py, ids);
    };
    let table = integers(layout, number);
    // SAFETY: a new list has room for all items and holds none, so each is set once. An integer of
    // the table can give away a reference for each. Were an id too large, the rest would stay null,
    // which a list may hold until it is shown to anyone.
    #[expect(unsafe_code, reason = "measured in the header")]
    unsafe {
        let list = ffi::PyList_New(ids.len() as ffi::Py_ssize_t);
        let list = Bound::from_owned_ptr_or_err(py, list)?.cast_into_unchecked::<PyList>();
        let start = items(&list, layout).cast::<std::mem::MaybeUninit<*const Integer>>();
        let places = std::slice::from_raw_parts_mut(start, ids.len());
        large_pages(places);
        for (place, &id) in places.iter_mut().zip(ids) {
            place.write(&raw const table[id as usize]);
        }
        Ok(list)
    }
}

/// The table, with at least `number` integers.
fn integers(layout: &Layout, number: usize) -> &'static [Integer] {
    let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    if table.len() < number {
        let size = number.next_power_of_two();
        let mut made: Vec<Integer> = Vec::with_capacity(size);
        large_pages(made.spare_capacity_mut());
        made.extend((0..size as u32).map(|value| layout.immortal(value)));
        // Lists have the former ones, so those stay too.
        *table = made.leak();
    }
    *table
}

/// The ids of `list[from..to]`, up to the first element that is no `int` from 0 to 2^30 - 1.
///
/// # Safety
///
/// No code of Python may run before the last is taken.
#[expect(unsafe_code, reason = "see Safety")]
pub(crate) unsafe fn ids_of<'a>(
    list: &'a Bound<'_, PyList>,
    layout: &'a Layout,
    from: usize,
    to: usize,
) -> impl Iterator<Item = i64> + 'a {
    let table = *TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    let (start, size) = (table.as_ptr().addr(), size_of_val(table));
    let items = items(list, layout);
    let to = to.min(list.len());
    (from..to).map_while(move |at| {
        // SAFETY: the indices are below the length, and the list keeps its items, which live.
        unsafe {
            let item = *items.add(at);
            // An integer of the table is known by its place.
            let place = item.addr().wrapping_sub(start);
            if place < size {
                return Some((place / size_of::<Integer>()) as i64);
            }
            // Other integers lie anywhere.
            prefetch_at(*items.add((at + AHEAD).min(to - 1)));
            layout.value(item).map(i64::from)
        }
    })
}
