//! Objects of bytes and of text that are filled while they grow.
//!
//! How many bytes ids decode to is known only when they are decoded, and to look at every id twice
//! costs a third of the time. So an object is made with room for about as many as are expected,
//! gets more if it must, and in the end gives back what is left: no byte is copied for it, since
//! the system moves large objects by their pages. They take huge pages, because a page fault costs
//! up to 3 us and 4 KiB of text are decoded in 2.
//!
//! Text goes through a few kilobytes of UTF-8, which stay in the processor's first cache, into a
//! string of the width that its characters need so far; with a wider one it begins anew from what
//! it has. Short texts are left to Python.

use std::mem::MaybeUninit;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};
use tinylm_tokenizer as core;
use tinylm_tokenizer::{Width, large_pages, unfinished, widen};

use crate::layout::Layout;

/// Bytes of text that are decoded before they become characters.
const SCRATCH: usize = 1 << 15;

/// Why filling ends early.
pub(crate) enum Stop {
    /// An error of the core.
    Core(core::Error),
    /// An exception of Python.
    Python(PyErr),
    /// The bytes are not UTF-8, so they need the slower way.
    NotUtf8,
}

impl From<core::Error> for Stop {
    fn from(error: core::Error) -> Self {
        Self::Core(error)
    }
}

impl From<PyErr> for Stop {
    fn from(error: PyErr) -> Self {
        Self::Python(error)
    }
}

/// What takes decoded bytes.
pub(crate) trait Sink: Send {
    /// Room for at least `least` bytes.
    fn room(&mut self, least: usize) -> PyResult<&mut [MaybeUninit<u8>]>;

    /// Takes the first `bytes` of the room.
    ///
    /// # Safety
    ///
    /// They must be set.
    #[expect(unsafe_code, reason = "see Safety")]
    unsafe fn filled(&mut self, bytes: usize) -> Result<(), Stop>;
}

impl Sink for Vec<u8> {
    fn room(&mut self, least: usize) -> PyResult<&mut [MaybeUninit<u8>]> {
        self.reserve(least);
        Ok(self.spare_capacity_mut())
    }

    #[expect(unsafe_code, reason = "see Safety of the trait")]
    unsafe fn filled(&mut self, bytes: usize) -> Result<(), Stop> {
        // SAFETY: inside the room, and set as the caller says.
        unsafe { self.set_len(self.len() + bytes) };
        Ok(())
    }
}

/// The memory of an object that no other code has yet.
struct Memory(*mut u8);

// SAFETY: only whoever has the object uses it, from whatever thread.
#[expect(unsafe_code, reason = "see SAFETY")]
unsafe impl Send for Memory {}

impl Memory {
    /// `number` elements from the `first` on, as yet unset.
    ///
    /// # Safety
    ///
    /// The object must live, have as many behind its start, and be nobody else's.
    #[expect(unsafe_code, reason = "see Safety")]
    unsafe fn slice<T>(&mut self, first: usize, number: usize) -> &mut [MaybeUninit<T>] {
        // SAFETY: as the caller says; characters of an object are aligned.
        unsafe {
            std::slice::from_raw_parts_mut(self.0.cast::<MaybeUninit<T>>().add(first), number)
        }
    }
}

/// Bytes that grow.
pub(crate) struct Bytes {
    layout: &'static Layout,
    object: Py<PyAny>,
    memory: Memory,
    length: usize,
    capacity: usize,
}

impl Bytes {
    /// Empty, with room for so many.
    pub(crate) fn new(py: Python<'_>, layout: &'static Layout, capacity: usize) -> PyResult<Self> {
        // Objects of one byte and none are shared.
        let capacity = capacity.max(2);
        // SAFETY: a null pointer asks for an object whose bytes are not set; the conversion looks
        // at errors.
        #[expect(unsafe_code, reason = "see SAFETY")]
        let object: Py<PyAny> = unsafe {
            let made = ffi::PyBytes_FromStringAndSize(std::ptr::null(), capacity as isize);
            Bound::from_owned_ptr_or_err(py, made)?.unbind()
        };
        let mut made = Self {
            layout,
            object,
            memory: Memory(std::ptr::null_mut()),
            length: 0,
            capacity,
        };
        made.find();
        Ok(made)
    }

    /// Where the bytes are.
    fn find(&mut self) {
        // SAFETY: the object is one of bytes and has as many as `capacity` says.
        #[expect(unsafe_code, reason = "see SAFETY")]
        unsafe {
            self.memory = Memory(ffi::PyBytes_AsString(self.object.as_ptr()).cast());
            large_pages(
                self.memory
                    .slice::<u8>(self.length, self.capacity - self.length),
            );
        }
    }

    /// Gives the object another length, of at least 2.
    fn resize(&mut self, py: Python<'_>, capacity: usize) -> PyResult<()> {
        let mut object = std::mem::replace(&mut self.object, py.None()).into_ptr();
        // SAFETY: nobody else has the object. It comes back under another address, or null with an
        // exception.
        #[expect(unsafe_code, reason = "see SAFETY")]
        unsafe {
            (self.layout.resize_bytes)(&raw mut object, capacity as isize);
            self.object = Bound::from_owned_ptr_or_err(py, object)?.unbind();
        }
        self.capacity = capacity;
        Ok(())
    }

    /// The object, which has all that was taken.
    pub(crate) fn finish(mut self, py: Python<'_>) -> PyResult<Bound<'_, PyBytes>> {
        if self.length < 2 {
            // SAFETY: so many are set.
            #[expect(unsafe_code, reason = "see SAFETY")]
            let bytes: Vec<u8> = unsafe {
                let bytes = self.memory.slice::<u8>(0, self.length).iter();
                bytes.map(|byte| byte.assume_init()).collect()
            };
            return Ok(PyBytes::new(py, &bytes));
        }
        self.resize(py, self.length)?;
        Ok(self.object.into_bound(py).cast_into()?)
    }
}

impl Sink for Bytes {
    fn room(&mut self, least: usize) -> PyResult<&mut [MaybeUninit<u8>]> {
        if self.capacity - self.length < least {
            let capacity = self.capacity + self.capacity / 2 + least;
            Python::attach(|py| self.resize(py, capacity))?;
            self.find();
        }
        // SAFETY: the object is ours and has as many bytes as `capacity` says.
        #[expect(unsafe_code, reason = "see SAFETY")]
        Ok(unsafe { self.memory.slice(self.length, self.capacity - self.length) })
    }

    #[expect(unsafe_code, reason = "see Safety of the trait")]
    unsafe fn filled(&mut self, bytes: usize) -> Result<(), Stop> {
        self.length += bytes;
        Ok(())
    }
}

/// A string that grows.
pub(crate) struct Text {
    layout: &'static Layout,
    /// UTF-8 that is not yet in the string; of a short text all.
    scratch: Vec<u8>,
    string: Option<Characters>,
    /// Characters to expect.
    expected: usize,
}

impl Text {
    /// Empty; about so many characters will come.
    pub(crate) fn new(layout: &'static Layout, expected: usize) -> Self {
        Self {
            layout,
            scratch: Vec::with_capacity((expected * 4 + 64).min(SCRATCH)),
            string: None,
            expected,
        }
    }

    /// The string, which has all that was taken; None if it is not UTF-8.
    pub(crate) fn finish(mut self, py: Python<'_>) -> PyResult<Option<Bound<'_, PyString>>> {
        if self.string.is_none() {
            let text = std::str::from_utf8(&self.scratch).ok();
            return Ok(text.map(|text| PyString::new(py, text)));
        }
        match self.flush() {
            Err(Stop::Python(error)) => return Err(error),
            Ok(()) if self.scratch.is_empty() => {}
            _ => return Ok(None),
        }
        let Some(mut string) = self.string else {
            return Ok(None);
        };
        string.resize(py, string.length)?;
        Ok(Some(string.object.into_bound(py).cast_into()?))
    }

    /// Moves all whole characters from the scratch to the string.
    fn flush(&mut self) -> Result<(), Stop> {
        let whole = self.scratch.len() - unfinished(&self.scratch);
        let text = &self.scratch[..whole];
        let width = Width::of(text);
        let string = match self.string.take() {
            Some(string) if string.width >= width => self.string.insert(string),
            former => {
                let made = Python::attach(|py| {
                    Characters::new(py, self.layout, self.expected, width, former)
                })?;
                self.string.insert(made)
            }
        };
        string.take(text)?;
        self.scratch.drain(..whole);
        Ok(())
    }
}

impl Sink for Text {
    fn room(&mut self, least: usize) -> PyResult<&mut [MaybeUninit<u8>]> {
        self.scratch.reserve(least);
        Ok(self.scratch.spare_capacity_mut())
    }

    #[expect(unsafe_code, reason = "see Safety of the trait")]
    unsafe fn filled(&mut self, bytes: usize) -> Result<(), Stop> {
        // SAFETY: inside the room, and set as the caller says.
        unsafe { self.scratch.set_len(self.scratch.len() + bytes) };
        if self.scratch.len() < SCRATCH / 2 {
            return Ok(());
        }
        self.flush()
    }
}

/// A string of one width, part of whose characters are set.
struct Characters {
    object: Py<PyAny>,
    layout: &'static Layout,
    memory: Memory,
    width: Width,
    length: usize,
    capacity: usize,
}

impl Characters {
    /// With room for `capacity` characters, beginning with those of a narrower string.
    fn new(
        py: Python<'_>,
        layout: &'static Layout,
        capacity: usize,
        width: Width,
        former: Option<Self>,
    ) -> PyResult<Self> {
        // Strings of one character and none are shared.
        let capacity = former.as_ref().map_or(capacity, |f| f.capacity).max(2);
        // SAFETY: the function makes a string of this length; the conversion looks at errors.
        #[expect(unsafe_code, reason = "see SAFETY")]
        let object = unsafe {
            let made = (layout.new_string)(capacity as isize, width.largest());
            Bound::from_owned_ptr_or_err(py, made)?.unbind()
        };
        let mut made = Self {
            object,
            layout,
            memory: Memory(std::ptr::null_mut()),
            width,
            length: 0,
            capacity,
        };
        made.find();
        if let Some(mut former) = former {
            made.length = former.length;
            former.widen_to(&mut made);
        }
        Ok(made)
    }

    /// Where the characters are.
    fn find(&mut self) {
        let start = self.layout.characters(self.width);
        // SAFETY: the layout says where they begin, and the object has as many as `capacity` says.
        #[expect(unsafe_code, reason = "see SAFETY")]
        unsafe {
            self.memory = Memory(self.object.as_ptr().cast::<u8>().add(start));
            let (length, more) = (self.length, self.capacity - self.length);
            match self.width {
                Width::Ascii | Width::One => large_pages(self.memory.slice::<u8>(length, more)),
                Width::Two => large_pages(self.memory.slice::<u16>(length, more)),
                Width::Four => large_pages(self.memory.slice::<u32>(length, more)),
            }
        }
    }

    /// Gives the string another length, of at least 2.
    fn resize(&mut self, py: Python<'_>, capacity: usize) -> PyResult<()> {
        let mut object = std::mem::replace(&mut self.object, py.None()).into_ptr();
        // SAFETY: nobody else has the object, which may come back under another address. After an
        // error it is still there.
        #[expect(unsafe_code, reason = "see SAFETY")]
        let failed = unsafe {
            let failed = ffi::PyUnicode_Resize(&raw mut object, capacity as isize);
            self.object = Bound::from_owned_ptr(py, object).unbind();
            failed
        };
        if failed != 0 {
            return Err(PyErr::fetch(py));
        }
        self.capacity = capacity;
        Ok(())
    }

    /// Appends `text`, which needs no greater width.
    fn take(&mut self, text: &[u8]) -> Result<(), Stop> {
        if self.capacity - self.length < text.len() {
            let capacity = self.capacity + self.capacity / 2 + text.len();
            Python::attach(|py| self.resize(py, capacity))?;
            self.find();
        }
        let (length, more) = (self.length, self.capacity - self.length);
        // SAFETY: the object is ours and has as many characters as `capacity` says, each of the
        // size of its width.
        #[expect(unsafe_code, reason = "see SAFETY")]
        let taken = unsafe {
            match self.width {
                Width::Ascii | Width::One => widen(text, self.memory.slice::<u8>(length, more)),
                Width::Two => widen(text, self.memory.slice::<u16>(length, more)),
                Width::Four => widen(text, self.memory.slice::<u32>(length, more)),
            }
        };
        self.length += taken.ok_or(Stop::NotUtf8)?;
        Ok(())
    }

    /// Copies all characters to a wider string.
    fn widen_to(&mut self, wider: &mut Self) {
        fn copy<S: Copy, T: From<S>>(from: &[MaybeUninit<S>], to: &mut [MaybeUninit<T>]) {
            for (place, character) in to.iter_mut().zip(from) {
                // SAFETY: the characters of the narrower string are set up to its length.
                #[expect(unsafe_code, reason = "see SAFETY")]
                place.write(unsafe { character.assume_init() }.into());
            }
        }
        let length = self.length;
        // SAFETY: both objects are ours and have so many characters of their widths.
        #[expect(unsafe_code, reason = "see SAFETY")]
        unsafe {
            let (from, to) = (&mut self.memory, &mut wider.memory);
            match (self.width, wider.width) {
                (Width::Ascii | Width::One, Width::Ascii | Width::One) => {
                    copy(from.slice::<u8>(0, length), to.slice::<u8>(0, length));
                }
                (Width::Ascii | Width::One, Width::Two) => {
                    copy(from.slice::<u8>(0, length), to.slice::<u16>(0, length));
                }
                (Width::Ascii | Width::One, Width::Four) => {
                    copy(from.slice::<u8>(0, length), to.slice::<u32>(0, length));
                }
                (Width::Two | Width::Four, _) => {
                    copy(from.slice::<u16>(0, length), to.slice::<u32>(0, length));
                }
            }
        }
    }
}
