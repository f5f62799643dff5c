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
    /// How many are dropped when there are too many.
    at_once: usize,
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
            at_once: whole,
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
            // Times of use differ, so the oldest are the same in any order of the map. Of thousands
            // of small blocks as many go at once as make a whole one: 128 or so are looked at for
            // each block, which is nothing beside its reading.
            let mut times: Vec<u64> = latest.blocks.values().map(|(used, _)| *used).collect();
            let last = self.at_once.min(times.len()) - 1;
            let last = *times.select_nth_unstable(last).1;
            latest.blocks.retain(|_, (used, _)| *used > last);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_last_stays_also_when_many_small_blocks_are_dropped_at_once() {
        // 128 blocks of 64 KiB take the room of 8 whole ones; 16 are dropped together.
        for (whole, size, least) in [(8, BLOCK_BYTES / 16, 113), (5, BLOCK_BYTES, 5)] {
            let blocks = Blocks::new(whole, size);
            for i in 0..500 {
                blocks.put((0, i), Arc::new(blocks.memory()));
                assert!(blocks.get((0, 0)).is_some());
                let kept = blocks.lock().blocks.len();
                assert!((least.min(i + 1)..=whole * BLOCK_BYTES / size).contains(&kept));
                // The first one takes a place too.
                for j in (i + 2).saturating_sub(least)..=i {
                    assert!(blocks.lock().blocks.contains_key(&(0, j)));
                }
            }
        }
        let nothing = Blocks::new(0, 1);
        nothing.put((0, 0), Arc::new(nothing.memory()));
        assert!(nothing.get((0, 0)).is_none());
    }
}
