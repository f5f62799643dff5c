//! Memory that is used again: blocks that are filled, given away, and free once nobody has them.
//!
//! ```text
//! pool --take--> a thread fills it --> shelf --> the consumer reads it --drop--> pool
//! ```
//!
//! A [`Block`] has one owner at a time, because it is moved and never shared. Whoever has it may
//! read it for as long as they like; it goes back when its owner drops it and not before. So no
//! batch that somebody still looks at is ever written, and nobody has to say that they are done.
//! A consumer that keeps its batches makes the pool allocate: it is never waited for.
//!
//! Batches are made in such blocks, and the cache of [`crate::blocks`] reads files into others.
//! Fresh memory costs a page fault per 4 KiB, which took as long as filling it (batches of 64 x
//! 1,024 in `int64`: 1 MiB). The block that came back last is used first: it is the one that is
//! still in a cache of the processor.
//!
//! Held to a model of who has which block by `tests/naive/slots.rs`.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Memory of `E` that a batch can be made in: a vector, or what a caller lends.
pub trait Memory<E>: AsRef<[E]> + AsMut<[E]> + Send + Sync {}

impl<E, M: AsRef<[E]> + AsMut<[E]> + Send + Sync> Memory<E> for M {}

/// Memory that is owned wherever it comes from.
pub type Owned<E> = Box<dyn Memory<E>>;

/// Makes more memory: at least one of the size of a block.
type Fresh<E> = Box<dyn Fn() -> Vec<Owned<E>> + Send + Sync>;

/// Blocks of one size that are free.
pub struct Pool<E> {
    free: Mutex<Vec<Owned<E>>>,
    fresh: Fresh<E>,
    size: usize,
    /// More free blocks than this are given back to the system.
    most: usize,
    /// A forked child must not take the lock: it might have been held when it was forked.
    process: u32,
}

impl<E: Default + Clone + Send + Sync + 'static> Pool<E> {
    /// A pool of blocks of `size` that keeps up to `most` free ones, and more if it is `given`
    /// more. Those of another size than `size` are not used.
    pub fn new(size: usize, most: usize, given: Vec<Owned<E>>) -> Arc<Self> {
        let fits = |memory: &Owned<E>| (**memory).as_ref().len() == size;
        let free: Vec<_> = given.into_iter().filter(fits).collect();
        let fresh = move || vec![Box::new(vec![E::default(); size]) as _];
        Self::with(size, most.max(free.len()), free, Box::new(fresh))
    }

    /// As `new`, with memory of `fresh` when there is no other.
    pub(crate) fn with(
        size: usize,
        most: usize,
        free: Vec<Owned<E>>,
        fresh: Fresh<E>,
    ) -> Arc<Self> {
        Arc::new(Self {
            free: Mutex::new(free),
            fresh,
            size,
            most,
            process: std::process::id(),
        })
    }

    /// A block that nobody has, with anything in it.
    pub fn take(self: &Arc<Self>) -> Block<E> {
        let free = self.lock().pop();
        let memory = free.or_else(|| {
            // Without the lock: it may take long.
            let mut fresh = (self.fresh)();
            let one = fresh.pop();
            self.lock().extend(fresh);
            one
        });
        Block {
            memory,
            home: Arc::downgrade(self),
        }
    }
}

impl<E> Pool<E> {
    fn put(&self, memory: Owned<E>) {
        if self.process != std::process::id() {
            return;
        }
        let mut free = self.lock();
        if free.len() < self.most {
            free.push(memory);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Owned<E>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E> fmt::Debug for Pool<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a pool of blocks of {} elements", self.size)
    }
}

/// Memory for one batch; dropping it gives it back.
pub struct Block<E> {
    /// Set until it is dropped.
    memory: Option<Owned<E>>,
    /// Weak: a block that outlives its stream is freed.
    home: Weak<Pool<E>>,
}

impl<E: Default + Clone + Send + Sync + 'static> Block<E> {
    /// A block of `size` that belongs to no pool.
    pub fn alone(size: usize) -> Self {
        Self {
            memory: Some(Box::new(vec![E::default(); size])),
            home: Weak::new(),
        }
    }
}

impl<E> Deref for Block<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        // Two levels: the box is an owner too.
        self.memory
            .as_ref()
            .map_or(&[], |memory| (**memory).as_ref())
    }
}

impl<E> DerefMut for Block<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        let memory = self.memory.as_mut();
        memory.map_or(&mut [], |memory| (**memory).as_mut())
    }
}

impl<E> Drop for Block<E> {
    fn drop(&mut self) {
        if let (Some(memory), Some(home)) = (self.memory.take(), self.home.upgrade()) {
            home.put(memory);
        }
    }
}

impl<E> fmt::Debug for Block<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a block of {} elements", self.len())
    }
}
