//! Batches made ahead of the training loop by a few threads, handed out in order.
//!
//! At most `prefetch` batches are made and not yet taken. A thread claims the next number, makes
//! that batch without a lock, and puts it on the shelf; the consumer takes batches from the shelf
//! by number, so how many threads there are cannot be seen in what comes out.
//!
//! ```text
//! claimed = 7                        taken = 4
//!     thread 1 makes 6     shelf: 4, 5     consumer takes 4, then 5, and makes 7 while 6 is in work
//!     thread 2 waits for room (7 - 4 = prefetch)
//! ```
//!
//! A consumer that finds no batch does not wait for a thread that may be asleep: it makes a batch
//! itself, if batches do not take long. If all that there is room for are in work, it looks for the
//! next one for as long as the last batch took, and then makes it a second time: its thread is not
//! running, as happens beside a busy core. A batch is a pure function of its number, so whoever
//! finishes first is right, and the other copy is dropped. Beside a process that keeps one of two
//! cores busy, this is 1.2 to 1.6 times a loop in `NumPy`, where it was 0.75 of a gather.
//!
//! The ring knows no shards and no order: it gives each thread a clone of a [`Filler`]. An error
//! takes the place of its batch, so it reaches the consumer where the batch would have, after the
//! batches before it. Batches are made in memory that is used again: [`crate::slots`].
//!
//! One lock guards the shelf. It is held to claim a number and to put or take a batch, never while
//! one is made, so threads seldom wait for each other. The rungs `batches` and
//! `batches resumed` compare what comes out with `python/tinylm/reference/order.py`.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::batch::{Batch, Filler, Slice};
use crate::format::Element;
use crate::plan::Plan;
use crate::slots::{Owned, Pool};
use crate::{Error, Result, within};

/// Far more than help on any machine, and few enough to start.
const MAX_THREADS: u64 = 1024;
/// Batches made ahead.
///
/// Each of them is a batch in memory.
const MAX_PREFETCH: u64 = 1024;
/// A consumer does not sleep for a batch that takes less: beside busy processes it would be woken
/// milliseconds later.
const SHORT: Duration = Duration::from_millis(1);
/// A consumer makes no batch that takes longer: it must be free to answer Ctrl-C.
const LONG: Duration = Duration::from_millis(20);

/// What [`Stream::next`] found.
///
/// An enum and not an `Option`, because the caller must look for Ctrl-C while it waits.
#[derive(Debug)]
pub enum Next<E: Element> {
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
struct Shelf<E: Element> {
    /// By number, because threads finish in any order.
    ready: BTreeMap<u64, Result<Batch<E>>>,
    /// Batches that threads have begun: at most `taken + prefetch`.
    claimed: u64,
    /// Batches handed out, errors included.
    taken: u64,
    closed: bool,
}

impl<E: Element> Shelf<E> {
    /// The number of the batch to make next, if there is room for it and the stream goes on.
    fn claim(&mut self, slice: &Slice, prefetch: u64) -> Option<u64> {
        let over = slice.n_batches().is_some_and(|n| self.claimed >= n);
        if self.closed || over || self.claimed - self.taken >= prefetch {
            return None;
        }
        self.claimed += 1;
        Some(self.claimed - 1)
    }

    /// Keeps a batch until it is taken, unless another made it before.
    fn put(&mut self, number: u64, batch: Result<Batch<E>>) {
        if number >= self.taken {
            self.ready.entry(number).or_insert(batch);
        }
    }
}

/// Makes the batch of a number.
type Maker<E> = Box<dyn FnMut(u64) -> Result<Batch<E>> + Send>;

/// What the consumer and the threads have in common.
#[derive(Debug)]
struct Shared<E: Element> {
    shelf: Mutex<Shelf<E>>,
    // Two conditions, so that a finished batch wakes the consumer and not the other threads.
    made: Condvar,
    // Signalled when a batch is taken, and for all threads at the end.
    room: Condvar,
    slice: Slice,
    prefetch: u64,
    /// Nanoseconds that the last batch took to make.
    took: AtomicU64,
}

/// A running stream of batches.
///
/// Dropping it ends its threads.
pub struct Stream<E: Element> {
    shared: Arc<Shared<E>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// For the consumer, when it makes a batch itself.
    own: Mutex<Maker<E>>,
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
        Self::start_in(filler, slice, threads, prefetch, Vec::new())
    }

    /// As [`Stream::start`], with batches in `memory` as long as some of it is free. Each part has
    /// [`Shape::size`](crate::arrays::Shape::size) elements.
    ///
    /// # Errors
    ///
    /// As [`Stream::start`].
    pub fn start_in<P: Plan>(
        filler: &Filler<P>,
        slice: Slice,
        threads: usize,
        prefetch: usize,
        memory: Vec<Owned<E>>,
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
            took: AtomicU64::new(0),
        });
        // Those that wait, and one each that is made and that the consumer reads.
        let most = prefetch + 2;
        let size = filler.shape(shared.slice.rows()).size();
        // What the system cannot give ends the process when it is wanted: ask for it here.
        if Vec::<E>::new().try_reserve_exact(size).is_err() {
            let (rows, bytes) = (shared.slice.rows(), size.saturating_mul(size_of::<E>()));
            return Err(Error::Invalid(format!(
                "batch_size={} is {rows} rows of {bytes} bytes together, more than there is memory: \
                 make it smaller",
                shared.slice.batch_size
            )));
        }
        let lent = (!memory.is_empty()).then(|| Pool::new(size, most, memory));
        let maker = || {
            // A pool for each thread: memory that another core wrote last comes from its cache,
            // which made two threads together no faster than one (1.1 G tokens/s in place of 1.7).
            let own = || Pool::new(size, most, Vec::new());
            maker(
                filler.clone(),
                shared.slice.clone(),
                lent.clone().unwrap_or_else(own),
            )
        };
        // Made before its threads: if one cannot start, dropping the stream ends those before it.
        let stream = Self {
            shared: Arc::clone(&shared),
            threads: Mutex::new(Vec::new()),
            own: Mutex::new(maker()),
            process: std::process::id(),
        };
        for _ in 0..threads {
            let (shared, mut maker) = (Arc::clone(&shared), maker());
            let thread = thread::Builder::new()
                .name("tinylm-loader".to_owned())
                .spawn(move || shared.work(&mut maker))
                .map_err(|error| {
                    Error::Invalid(format!("cannot start a loader thread: {error}"))
                })?;
            lock(&stream.threads).push(thread);
        }
        Ok(stream)
    }

    /// The next batch, after at most `patience` and the making of one batch.
    ///
    /// # Errors
    ///
    /// The error that stands in the place of this batch. The call after it gives the next batch.
    pub fn next(&self, patience: Duration) -> Result<Next<E>> {
        // The threads of a stream live in the process that started it.
        if self.process != std::process::id() {
            return Ok(Next::End);
        }
        let deadline = Instant::now() + patience;
        let shared = &*self.shared;
        let mut waited = false;
        let mut shelf = lock(&shared.shelf);
        loop {
            let number = shelf.taken;
            let over = shared.slice.n_batches().is_some_and(|n| number >= n);
            if shelf.closed || over {
                return Ok(Next::End);
            }
            if let Some(batch) = shelf.ready.remove(&number) {
                shelf.taken += 1;
                drop(shelf);
                // One place has become free, so one thread is enough.
                shared.room.notify_one();
                return batch.map(Next::Batch);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Next::Pending);
            }
            let took = Duration::from_nanos(shared.took.load(Ordering::Relaxed));
            // Held by another consumer, if there are two.
            let own = (took > Duration::ZERO && took < LONG).then(|| self.own.try_lock().ok());
            if let Some(mut own) = own.flatten() {
                let free = shelf.claim(&shared.slice, shared.prefetch);
                if let Some(mine) = free.or(waited.then_some(number)) {
                    drop(shelf);
                    let batch = shared.make(&mut own, mine);
                    shelf = lock(&shared.shelf);
                    shelf.put(mine, batch);
                    waited = false;
                    continue;
                }
                if took < SHORT {
                    drop(shelf);
                    waited = true;
                    shelf = shared.look_for(number, took);
                    continue;
                }
            }
            let until = if took.is_zero() {
                left
            } else {
                left.min(2 * took)
            };
            let (guard, result) = shared
                .made
                .wait_timeout(shelf, until)
                .unwrap_or_else(PoisonError::into_inner);
            shelf = guard;
            waited = result.timed_out();
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

impl<E: Element> fmt::Debug for Stream<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

/// What makes the batches of `slice`, in memory of `pool`.
fn maker<P: Plan, E: Element>(mut filler: Filler<P>, slice: Slice, pool: Arc<Pool<E>>) -> Maker<E> {
    Box::new(move |number| filler.batch(&slice, number, pool.take()))
}

impl<E: Element> Shared<E> {
    /// What each thread does: makes batches until there are none left to claim.
    fn work(&self, maker: &mut Maker<E>) {
        while let Some(number) = self.claim() {
            let batch = self.make(maker, number);
            // By number: the consumer waits for this one or for one before it.
            lock(&self.shelf).put(number, batch);
            self.made.notify_all();
        }
    }

    /// Makes a batch, and remembers how long it took.
    fn make(&self, maker: &mut Maker<E>, number: u64) -> Result<Batch<E>> {
        let begin = Instant::now();
        // Without this, a panic would leave the consumer waiting for a batch that never comes.
        let batch = catch_unwind(AssertUnwindSafe(|| maker(number)));
        let took = begin.elapsed().as_nanos() as u64;
        self.took.store(took, Ordering::Relaxed);
        batch.unwrap_or_else(|_| {
            Err(Error::Invalid(format!(
                "a loader thread failed at batch {number}: a bug in tinylm"
            )))
        })
    }

    /// The shelf, once batch `number` is on it or `patience` is over.
    fn look_for(&self, number: u64, patience: Duration) -> MutexGuard<'_, Shelf<E>> {
        let begin = Instant::now();
        loop {
            let shelf = lock(&self.shelf);
            if shelf.ready.contains_key(&number) || shelf.closed || begin.elapsed() > patience {
                return shelf;
            }
            drop(shelf);
            for _ in 0..100 {
                std::hint::spin_loop();
            }
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
            if let Some(number) = shelf.claim(&self.slice, self.prefetch) {
                return Some(number);
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
