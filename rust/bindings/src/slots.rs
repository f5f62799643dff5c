//! The memory of batches at the border: blocks that `NumPy` arrays hold, and arrays that blocks are.
//!
//! A copy in place of what is `unsafe` here takes as long as filling the batch: 1 MiB for 64 x 1,024
//! tokens and targets in `int64`.

use std::any::Any;
use std::sync::Arc;

use numpy::ndarray::ArrayView1;
use numpy::{PyArray1, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::prelude::*;
use tinylm_dataloader::Element;
use tinylm_dataloader::read::Lent;
use tinylm_dataloader::slots::{Block, Owned};

/// What keeps a block for as long as an array of it lives: its base.
///
/// When the last array, tensor or view is gone, so is this, and the block is free.
#[pyclass(frozen, module = "tinylm._rust")]
struct Slot(Box<dyn Any + Send + Sync>);

/// The block's own memory as an array [n]: nothing is copied.
pub(crate) fn array<E: Element + numpy::Element>(
    py: Python<'_>,
    block: Block<E>,
) -> PyResult<Bound<'_, PyAny>> {
    let slot = Bound::new(py, Slot(Box::new(block)))?;
    let block = slot.get().0.downcast_ref::<Block<E>>();
    let view = ArrayView1::from(block.map_or(&[][..], |block| block));
    // SAFETY: the block lives as long as the slot, which is the array's base, and it never moves
    // its memory. Rust does not look at it before the slot is dropped.
    #[expect(unsafe_code, reason = "an array of memory that is not NumPy's")]
    let array = unsafe { PyArray1::borrow_from_array(&view, slot.clone().into_any()) };
    Ok(array.into_any())
}

/// Memory that an array of Python has.
struct Given<E> {
    place: *mut E,
    size: usize,
    /// Keeps the memory.
    _array: Py<PyArray1<E>>,
}

/// The arrays as memory for blocks.
///
/// They must be given away: who made them must neither read nor write them any more.
pub(crate) fn given<E: Element + numpy::Element>(
    arrays: Vec<Bound<'_, PyAny>>,
) -> PyResult<Vec<Owned<E>>> {
    let lend = |array: Bound<'_, PyAny>| {
        let array: Bound<'_, PyArray1<E>> = array.cast_into()?;
        // Refuses an array that is not contiguous or cannot be written.
        array.try_readwrite()?.as_slice_mut()?;
        let given = Given {
            place: array.data(),
            size: array.len(),
            _array: array.unbind(),
        };
        Ok(Box::new(given) as Owned<E>)
    };
    arrays.into_iter().map(lend).collect()
}

/// Bytes of an array that Python goes on using: they are only read.
struct Shown<E> {
    place: *const u8,
    size: usize,
    /// Keeps the memory.
    _array: Py<PyArray1<E>>,
}

/// The bytes of an array [n], which must not change while they are read; nothing is copied.
pub(crate) fn shown<E: numpy::Element + 'static>(array: Bound<'_, PyArray1<E>>) -> PyResult<Lent> {
    // Refuses an array that is not contiguous.
    let size = std::mem::size_of_val(array.try_readonly()?.as_slice()?);
    Ok(Arc::new(Shown {
        place: array.data().cast_const().cast(),
        size,
        _array: array.unbind(),
    }))
}

// SAFETY: the bytes are only read, and the array may be dropped by any thread.
#[expect(unsafe_code, reason = "a pointer says nothing of threads")]
unsafe impl<E: Send> Send for Shown<E> {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "a pointer says nothing of threads")]
unsafe impl<E: Sync> Sync for Shown<E> {}

impl<E> AsRef<[u8]> for Shown<E> {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `size` bytes from `place` on belong to the array, which is kept. Who changes
        // them meanwhile breaks the promise of `Tokens.of_array`.
        #[expect(unsafe_code, reason = "memory that is not Rust's")]
        unsafe {
            std::slice::from_raw_parts(self.place, self.size)
        }
    }
}

// SAFETY: it owns what it points to, as a `Vec` does, and the array may be dropped by any thread.
#[expect(unsafe_code, reason = "a pointer says nothing of threads")]
unsafe impl<E: Send> Send for Given<E> {}
// SAFETY: through a shared reference it is only read.
#[expect(unsafe_code, reason = "a pointer says nothing of threads")]
unsafe impl<E: Sync> Sync for Given<E> {}

impl<E> AsRef<[E]> for Given<E> {
    fn as_ref(&self) -> &[E] {
        // SAFETY: `size` elements from `place` on belong to the array, which is kept.
        #[expect(unsafe_code, reason = "memory that is not Rust's")]
        unsafe {
            std::slice::from_raw_parts(self.place, self.size)
        }
    }
}

impl<E> AsMut<[E]> for Given<E> {
    fn as_mut(&mut self) -> &mut [E] {
        // SAFETY: as above, and nobody else has it: the caller gave it away.
        #[expect(unsafe_code, reason = "memory that is not Rust's")]
        unsafe {
            std::slice::from_raw_parts_mut(self.place, self.size)
        }
    }
}
