//! Memory that every step reads from end to end: Linux is asked for pages of 2 MB.
//!
//! A core does not remember where all pages of 4 KB of a large model are, and looks them up again
//! at every step: with 110M parameters that is a quarter of its time. What the system does not give
//! stays as it is; the values are the same.
#![cfg_attr(
    target_os = "linux",
    expect(unsafe_code, reason = "advice to the system about memory")
)]

#[cfg(target_os = "linux")]
const HUGE: usize = 1 << 21;

/// An empty vector with room for `count` values, to be filled at once.
pub(crate) fn reserve<T>(count: usize) -> Vec<T> {
    let memory = Vec::with_capacity(count);
    #[cfg(target_os = "linux")]
    advise(memory.as_ptr(), count, libc::MADV_HUGEPAGE);
    memory
}

/// Moves what is left of `memory` to large pages: at its ends those that it shares with others.
#[cfg_attr(
    not(target_os = "linux"),
    expect(unused_variables, reason = "no advice")
)]
pub(crate) fn gather<T>(memory: &[T]) {
    #[cfg(target_os = "linux")]
    advise(memory.as_ptr(), memory.len(), libc::MADV_COLLAPSE);
}

/// Advice about all large pages that have a part of `count` values.
#[cfg(target_os = "linux")]
fn advise<T>(first: *const T, count: usize, advice: libc::c_int) {
    let start = first.addr() / HUGE * HUGE;
    let end = (first.addr() + count * size_of::<T>()).next_multiple_of(HUGE);
    // One by one: after one that cannot be had, the system leaves the rest.
    for at in (start..end).step_by(HUGE) {
        // SAFETY: such advice changes nothing that can be read, in whatever memory; and where there
        // is none, or the system does not know it, it returns an error that means nothing here.
        unsafe {
            libc::madvise(first.with_addr(at).cast_mut().cast(), HUGE, advice);
        }
    }
}
