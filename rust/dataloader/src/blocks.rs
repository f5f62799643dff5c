//! The blocks that were read last, kept in memory.
//!
//! A shuffled epoch trains on rows from 32 places of the corpus at a time, so each block of 1 MiB
//! is wanted again and again until its window is over. The cache drops the block that was used
//! longest ago. It never looks at the bytes: the caller has checked a block before it puts it in.
//!
//! A cache of the system would not do: it keeps pages, and not the knowledge that a block was
//! hashed; and each row would cost a system call.
//!
//! The memory of a block that was dropped is used for the next one once nobody reads it any more,
//! and lies on large pages, which [`crate::memory`] gives the figures for.
//!
//! The lock is held for a lookup in a hash map, never while a file is read. Two threads may
//! therefore read the same block at the same time; they find the same bytes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::format::BLOCK_BYTES;
use crate::memory::parts;
use crate::slots::{Block, Pool};

/// Blocks whose memory is set aside at once: 16 MiB, of which what is not used takes no room.
const TOGETHER: usize = 16;

/// (shard, block in the shard)
pub(crate) type BlockId = (usize, usize);

/// A cache of at most `capacity` blocks, shared by threads.
#[derive(Debug)]
pub(crate) struct Blocks {
    latest: Mutex<Latest>,
    capacity: usize,
    pool: Arc<Pool<u8>>,
}

/// What the lock guards.
#[derive(Debug, Default)]
struct Latest {
    // A map and not a list: lookups are frequent, and evictions come once per block read.
    /// With each block, the time of its last use.
    blocks: HashMap<BlockId, (u64, Arc<Block<u8>>)>,
    // Counts uses. At a billion uses per second it would overflow after 500 years.
    clock: u64,
}

impl Blocks {
    /// An empty cache for as many blocks of at most `size` bytes as `capacity` whole ones take. A
    /// capacity of 0 keeps nothing.
    pub(crate) fn new(capacity: usize, size: usize) -> Self {
        let whole = BLOCK_BYTES / size.clamp(1, BLOCK_BYTES);
        let together = TOGETHER.min(capacity).max(1) * whole;
        let capacity = capacity * whole;
        Self {
            latest: Mutex::default(),
            capacity,
            // A few more are being read into, or out of while they are no longer kept.
            pool: Pool::with(
                size,
                capacity + together,
                Vec::new(),
                Box::new(move || parts(together, size)),
            ),
        }
    }

    /// The block, if it is here. Counts as a use.
    pub(crate) fn get(&self, id: BlockId) -> Option<Arc<Block<u8>>> {
        let mut latest = self.lock();
        latest.clock += 1;
        let now = latest.clock;
        // A miss has moved the clock too; only the order of its values matters.
        let (used, bytes) = latest.blocks.get_mut(&id)?;
        *used = now;
        Some(Arc::clone(bytes))
    }

    /// Keeps a block, and drops the one used longest ago if there are too many.
    pub(crate) fn put(&self, id: BlockId, bytes: Arc<Block<u8>>) {
        let mut latest = self.lock();
        latest.clock += 1;
        let now = latest.clock;
        // A second thread may have put the same block: equal bytes take its place.
        latest.blocks.insert(id, (now, bytes));
        if latest.blocks.len() > self.capacity {
            // Times of use differ, so the oldest is the same one in any order of the map. Looking
            // at all 128 or so is nothing beside the reading of a block.
            let oldest = latest.blocks.iter().min_by_key(|(_, (used, _))| *used);
            if let Some(id) = oldest.map(|(&id, _)| id) {
                latest.blocks.remove(&id);
            }
        }
    }

    /// Memory for a block that is about to be read, with anything in it.
    pub(crate) fn memory(&self) -> Block<u8> {
        self.pool.take()
    }

    /// The lock, also after a panic elsewhere: between statements the map is always whole.
    fn lock(&self) -> MutexGuard<'_, Latest> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
