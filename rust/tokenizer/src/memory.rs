//! Two hints to the machine about memory, which change the time and nothing else.

/// Memory below this size is left as it is: two huge pages.
const LARGE: usize = 4 << 20;

/// Asks the processor to load an element before it is needed.
///
/// The look-ups of a batch then wait for memory together. Nothing is loaded past the end.
#[inline(always)]
pub(crate) fn prefetch<T>(slice: &[T], at: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let place = slice.as_ptr().wrapping_add(at);
        // SAFETY: a prefetch reads nothing that the program can see and never faults, whatever the
        // address.
        #[expect(unsafe_code, reason = "there is no safe way to prefetch")]
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(place.cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (slice, at);
}

/// An empty vector with room for `capacity` elements, on huge pages if it is large.
///
/// Linux clears memory when it is first touched, page by page. With pages of 2 MiB a large array
/// is touched 512 times less often, and look-ups all over it need fewer translations of addresses.
pub(crate) fn vec_of<T>(capacity: usize) -> Vec<T> {
    let vec: Vec<T> = Vec::with_capacity(capacity);
    #[cfg(target_os = "linux")]
    if size_of::<T>() * capacity >= LARGE {
        let page = 4096;
        let first = vec.as_ptr().addr().next_multiple_of(page);
        let end = vec.as_ptr().addr() + size_of::<T>() * vec.capacity();
        // SAFETY: advice changes no content of memory, and these pages lie inside the allocation of
        // `vec`. A refusal is no error: the pages stay small.
        #[expect(unsafe_code, reason = "the standard library gives no advice")]
        unsafe {
            libc::madvise(
                vec.as_ptr().with_addr(first).cast_mut().cast(),
                (end - first) & !(page - 1),
                libc::MADV_HUGEPAGE,
            );
        }
    }
    vec
}
