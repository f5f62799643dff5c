//! Batches made ahead of the training loop by a few threads, handed out in order.
//!
//! At most `prefetch` batches are made and not yet taken. A thread claims the next number, makes
//! that batch without a lock, and puts it on the shelf; the consumer takes batches from the shelf
//! by number, so how many threads there are cannot be seen in what comes out.
//!
//! ```text
//! claimed = 7                        taken = 4
//!     thread 1 makes 6     shelf: 4, 5     consumer waits for 4, then 5, then 6
//!     thread 2 waits for room (7 - 4 = prefetch)
//! ```
//!
//! The ring knows no shards and no order: it gives each thread a clone of a [`Filler`]. An error
//! takes the place of its batch, so it reaches the consumer where the batch would have, after the
//! batches before it.
//!
//! One lock guards the shelf. It is held to claim a number and to put or take a batch, never while
//! one is made, so threads seldom wait for each other. The rungs `batches` and
//! `batches resumed` compare what comes out with `python/tinylm/reference/order.py`.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::batch::{Batch, Filler, Slice};
use crate::format::Element;
use crate::plan::Plan;
use crate::{Error, Result, within};

/// Far more than help on any machine, and few enough to start.
const MAX_THREADS: u64 = 1024;
/// Batches made ahead.
///
/// Each of them is a batch in memory.
const MAX_PREFETCH: u64 = 1024;

/// What [`Stream::next`] found.
///
/// An enum and not an `Option`, because the caller must look for Ctrl-C while it waits.
#[derive(Debug)]
pub enum Next<E> {
    /// The next batch.
    Batch(Batch<E>),
    /// The stream is over, or was closed.
    End,
    /// Nothing yet: ask again.
    Pending,
}

/// The batches that are made and not yet taken, and the numbers that decide who makes which.
///
/// `taken <= claimed <= taken + prefetch` at all times.
#[derive(Debug)]
struct Shelf<E> {
    /// By number, because threads finish in any order.
    ready: BTreeMap<u64, Result<Batch<E>>>,
    /// Batches that threads have begun: at most `taken + prefetch`.
    claimed: u64,
    /// Batches handed out, errors included.
    taken: u64,
    closed: bool,
}

/// What the consumer and the threads have in common.
#[derive(Debug)]
struct Shared<E> {
    shelf: Mutex<Shelf<E>>,
    // Two conditions, so that a finished batch wakes the consumer and not the other threads.
    made: Condvar,
    // Signalled when a batch is taken, and for all threads at the end.
    room: Condvar,
    slice: Slice,
    prefetch: u64,
}

/// A running stream of batches.
///
/// Dropping it ends its threads.
#[derive(Debug)]
pub struct Stream<E: Element> {
    shared: Arc<Shared<E>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    // A forked child has none of the threads: waiting for them would never end.
    process: u32,
}

impl<E: Element> Stream<E> {
    /// Starts `threads` threads that keep `prefetch` batches ready.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a number out of its range, or if the system starts no more threads.
    pub fn start<P: Plan>(
        filler: &Filler<P>,
        slice: Slice,
        threads: usize,
        prefetch: usize,
    ) -> Result<Self> {
        slice.check()?;
        within("threads", threads as u64, 1, MAX_THREADS)?;
        within("prefetch", prefetch as u64, 1, MAX_PREFETCH)?;
        // A thread works on one of the `prefetch` batches that may be made and not yet taken, so
        // more threads than those, or than there are batches at all, would only wait.
        let n_batches = slice.n_batches().unwrap_or(u64::MAX);
        let threads = (threads as u64).min(prefetch as u64).min(n_batches);
        let shelf = Shelf {
            ready: BTreeMap::new(),
            claimed: 0,
            taken: 0,
            closed: false,
        };
        let shared = Arc::new(Shared {
            shelf: Mutex::new(shelf),
            made: Condvar::new(),
            room: Condvar::new(),
            slice,
            prefetch: prefetch as u64,
        });
        // Made before its threads: if one cannot start, dropping the stream ends those before it.
        let stream = Self {
            shared: Arc::clone(&shared),
            threads: Mutex::new(Vec::new()),
            process: std::process::id(),
        };
        for _ in 0..threads {
            let (shared, filler) = (Arc::clone(&shared), filler.clone());
            let thread = thread::Builder::new()
                .name("tinylm-loader".to_owned())
                .spawn(move || shared.work(filler))
                .map_err(|error| {
                    Error::Invalid(format!("cannot start a loader thread: {error}"))
                })?;
            lock(&stream.threads).push(thread);
        }
        Ok(stream)
    }

    /// The next batch, waiting at most `patience` for it.
    ///
    /// # Errors
    ///
    /// The error that stands in the place of this batch. The call after it gives the next batch.
    pub fn next(&self, patience: Duration) -> Result<Next<E>> {
        // The threads of a stream live in the process that started it.
        if self.process != std::process::id() {
            return Ok(Next::End);
        }
        // A deadline, because a wait may end early or for a batch that is not the next one.
        let deadline = Instant::now() + patience;
        let shared = &*self.shared;
        let mut shelf = lock(&shared.shelf);
        loop {
            let number = shelf.taken;
            let over = shared.slice.n_batches().is_some_and(|n| number >= n);
            if shelf.closed || over {
                return Ok(Next::End);
            }
            if let Some(batch) = shelf.ready.remove(&number) {
                shelf.taken += 1;
                // One place has become free, so one thread is enough.
                shared.room.notify_one();
                return batch.map(Next::Batch);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Next::Pending);
            }
            let waited = shared.made.wait_timeout(shelf, left);
            shelf = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends the threads and waits for them: no longer than one batch takes.
    ///
    /// Batches that are ready are lost. A second call does nothing.
    pub fn close(&self) {
        if self.process != std::process::id() {
            return;
        }
        // Under the lock: a thread between its look at the flag and its wait would miss the call.
        lock(&self.shared.shelf).closed = true;
        self.shared.room.notify_all();
        self.shared.made.notify_all();
        for thread in lock(&self.threads).drain(..) {
            // A thread catches its own panics, so there is no result to look at.
            let _ = thread.join();
        }
    }
}

impl<E: Element> Drop for Stream<E> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<E: Element> Shared<E> {
    /// What each thread does: makes batches until there are none left to claim.
    fn work<P: Plan>(&self, mut filler: Filler<P>) {
        while let Some(number) = self.claim() {
            // Without this, a panic would leave the consumer waiting for a batch that never comes.
            let make = AssertUnwindSafe(|| filler.batch(&self.slice, number));
            let batch = catch_unwind(make).unwrap_or_else(|_| {
                Err(Error::Invalid(format!(
                    "a loader thread failed at batch {number}: a bug in tinylm"
                )))
            });
            // By number: the consumer waits for this one or for one before it.
            lock(&self.shelf).ready.insert(number, batch);
            self.made.notify_all();
        }
    }

    /// The number of the batch to make next, when there is room for it.
    ///
    /// None when the stream is over or closed.
    fn claim(&self) -> Option<u64> {
        let mut shelf = lock(&self.shelf);
        loop {
            let over = self.slice.n_batches().is_some_and(|n| shelf.claimed >= n);
            if shelf.closed || over {
                return None;
            }
            if shelf.claimed - shelf.taken < self.prefetch {
                shelf.claimed += 1;
                return Some(shelf.claimed - 1);
            }
            shelf = self
                .room
                .wait(shelf)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A lock that a panic elsewhere does not spoil: what it guards is whole between statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
