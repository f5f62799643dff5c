//! What the compiler does not do by itself: two instructions and large pages. They change the time
//! and no result.
//!
//! All `unsafe` of this crate is here. Filling batches of 64 x 1,024 from `uint16` to two arrays
//! of `int64`, in a loop of its own on an AMD EPYC: 1.29 G tokens/s with neither, 1.48 with wider
//! registers, 1.63 with rows asked for ahead, 1.95 with both. Stores past the cache ("streaming")
//! were slower, 1.39, and so were registers of 64 bytes once several blocks take turns, 1.26:
//! blocks that are used again stay in the cache.
//!
//! Large pages under the blocks of [`crate::blocks`]: 1.10 G tokens/s in place of 0.73 for 197 M
//! tokens in the page cache. A row lies anywhere in 64 MiB, and reading a block into memory took
//! 109 us in place of 180.

use std::ptr;
use std::sync::Arc;

use crate::slots::Owned;

/// Bytes of a line of the cache.
const LINE: usize = 64;
/// Bytes of a run that are asked for; after so many, the processor has seen where it goes.
const AHEAD: usize = 4096;

/// Does `task` with registers of 32 bytes where the processor has them.
///
/// The task must be inlined into it, or it is compiled without.
#[inline]
pub(crate) fn with_wide_registers(task: impl FnOnce()) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        #[expect(unsafe_code, reason = "a function with its own features is called so")]
        unsafe {
            wide(task);
        }
        return;
    }
    task();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn wide(task: impl FnOnce()) {
    task();
}

/// Asks the processor to load these bytes before they are needed.
#[inline]
pub(crate) fn ask_for(bytes: &[u8]) {
    for line in bytes.chunks(LINE).take(AHEAD / LINE) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a prefetch changes nothing that the program can see and never faults.
            #[expect(unsafe_code, reason = "there is no safe way to prefetch")]
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    }
}

/// Bytes of a large page.
const LARGE: usize = 2 << 20;

/// Memory of the system, all 0 at first, given back when the last part of it is gone.
struct Region {
    place: *mut libc::c_void,
    size: usize,
}

// SAFETY: the region only owns the memory; what is in it belongs to the parts.
#[expect(unsafe_code, reason = "a pointer says nothing of threads")]
unsafe impl Send for Region {}
// SAFETY: as above; a shared reference gives no access.
#[expect(unsafe_code, reason = "a pointer says nothing of threads")]
unsafe impl Sync for Region {}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped by `parts` with this size, and no part is left.
        #[expect(unsafe_code, reason = "the standard library maps no memory")]
        unsafe {
            libc::munmap(self.place, self.size);
        }
    }
}

/// A part of a region that no other part overlaps.
struct Part {
    place: *mut u8,
    size: usize,
    _region: Arc<Region>,
}

// SAFETY: it owns its bytes as a `Vec` does.
#[expect(unsafe_code, reason = "a pointer says nothing of threads")]
unsafe impl Send for Part {}
// SAFETY: through a shared reference they are only read.
#[expect(unsafe_code, reason = "a pointer says nothing of threads")]
unsafe impl Sync for Part {}

impl AsRef<[u8]> for Part {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        // SAFETY: inside the region, which is kept, and set: to 0 by the system.
        #[expect(unsafe_code, reason = "memory that is not a vector's")]
        unsafe {
            std::slice::from_raw_parts(self.place, self.size)
        }
    }
}

impl AsMut<[u8]> for Part {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and no other part has these bytes.
        #[expect(unsafe_code, reason = "memory that is not a vector's")]
        unsafe {
            std::slice::from_raw_parts_mut(self.place, self.size)
        }
    }
}

/// `n` parts of `size` bytes next to each other, on large pages where the system has them.
///
/// Pages are set aside when they are first written. Vectors if there is no such memory.
pub(crate) fn parts(n: usize, size: usize) -> Vec<Owned<u8>> {
    let whole = n * size + LARGE;
    // SAFETY: new memory, at a place that the system chooses.
    #[expect(unsafe_code, reason = "the standard library maps no memory")]
    let place = unsafe {
        libc::mmap(
            ptr::null_mut(),
            whole,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANON,
            -1,
            0,
        )
    };
    if place == libc::MAP_FAILED {
        return (0..n).map(|_| Box::new(vec![0_u8; size]) as _).collect();
    }
    let region = Arc::new(Region { place, size: whole });
    // The first byte that a large page may begin with.
    let skipped = place.addr().next_multiple_of(LARGE) - place.addr();
    let first: *mut u8 = place.wrapping_byte_add(skipped).cast();
    #[cfg(target_os = "linux")]
    // SAFETY: inside the region; the advice changes no byte of it.
    #[expect(unsafe_code, reason = "the standard library gives no advice")]
    unsafe {
        libc::madvise(first.cast(), n * size, libc::MADV_HUGEPAGE);
    }
    let part = |k: usize| Part {
        place: first.wrapping_add(k * size),
        size,
        _region: Arc::clone(&region),
    };
    (0..n).map(|k| Box::new(part(k)) as _).collect()
}
