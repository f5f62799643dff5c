//! Two hints to the machine about memory, which change the time and nothing else; and memory that
//! need not be set.

use std::mem::MaybeUninit;

/// Memory below this size is left as it is: two huge pages.
const LARGE: usize = 4 << 20;

/// Asks the processor to load an element before it is needed.
///
/// The look-ups of a batch then wait for memory together.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one instruction")]
pub(crate) fn prefetch<T>(slice: &[T], at: usize) {
    prefetch_at(slice.as_ptr().wrapping_add(at));
}

/// Asks the processor to load what lies at an address, whatever it is.
#[inline(always)]
pub fn prefetch_at<T>(place: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing that the program can see and never faults, whatever the
        // address.
        #[expect(unsafe_code, reason = "there is no safe way to prefetch")]
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(place.cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// The same memory as one that need not be set: to copy from it in one move.
pub(crate) fn as_uninit<T: Copy>(slice: &[T]) -> &[MaybeUninit<T>] {
    // SAFETY: of equal layout, and what is set may be taken for what need not be.
    #[expect(unsafe_code, reason = "as bytes, 16 are copied in five parts")]
    unsafe {
        std::slice::from_raw_parts(slice.as_ptr().cast(), slice.len())
    }
}

/// Asks for huge pages for memory that is not touched yet, if it is large.
///
/// Linux clears memory when it is first touched, page by page. With pages of 2 MiB a large array
/// is touched 512 times less often, and look-ups all over it need fewer translations of addresses.
pub fn large_pages<T>(memory: &mut [MaybeUninit<T>]) {
    #[cfg(target_os = "linux")]
    if size_of_val(memory) >= LARGE {
        let page = 4096;
        let start = memory.as_mut_ptr();
        let first = start.addr().next_multiple_of(page);
        let end = start.addr() + size_of_val(memory);
        // SAFETY: advice changes no content of memory, and these pages lie inside `memory`. A
        // refusal is no error: the pages stay small.
        #[expect(unsafe_code, reason = "the standard library gives no advice")]
        unsafe {
            libc::madvise(
                start.with_addr(first).cast(),
                (end - first) & !(page - 1),
                libc::MADV_HUGEPAGE,
            );
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

/// An empty vector with room for `capacity` elements, on huge pages if it is large.
pub(crate) fn vec_of<T>(capacity: usize) -> Vec<T> {
    let mut vec: Vec<T> = Vec::with_capacity(capacity);
    large_pages(vec.spare_capacity_mut());
    vec
}
