//! Shards as one long array of tokens, read by position and checked by block.
//!
//! A block of 1 MiB is read whole and hashed the first time. Hashing it takes 34 us, reading it
//! 67 us from the page cache and far longer from a disk. How it is read after that depends on what
//! is wanted next, which only the caller knows: [`Reading`]. What a block is, and when it counts
//! as checked, is the matter of [`crate::shard`].
//!
//! Positions count through all shards: token 0 is the first of the first shard. Finding a position
//! costs a bisection of the shards. Held to `python/tinylm/reference/shards.py` by the rungs
//! `tokens`, `tokens of other files` and `damage`.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::blocks::Blocks;
use crate::format::{BLOCK_BYTES, Element, Width};
use crate::shard::{Shard, ShardEntry};
use crate::slots::Block;
use crate::{Error, Result};

/// At most so many bytes are read alone, though their neighbours may be wanted soon. The last
/// target of a row is often the first token of a block that nothing else needs now, and reading
/// that block whole would put a block that is needed out of the cache.
const SPILL_BYTES: usize = 64;

/// The tokens of a dataset.
///
/// It never changes but for its cache, and any number of threads may read from it at once.
pub struct Tokens {
    /// The shards, each with the position of its first token in the dataset.
    /// Ascending, so that a position is found by bisection.
    shards: Vec<(u64, Shard)>,
    width: Width,
    total: u64,
    blocks: Blocks,
    /// In place of shards.
    memory: Option<Lent>,
    /// The process that may lock the cache: a forked child might find it locked for ever.
    process: u32,
}

/// Bytes that somebody else keeps, unchanged while they are lent.
pub type Lent = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// What to do with a block that is not in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Read it whole and keep it: its other tokens are wanted soon.
    Near,
    /// Read only the tokens asked for, once the block is known to be right.
    Far,
    /// As `Far`, without a look at the cache.
    Uncached,
}

/// Tokens that follow each other in a block, as they lie on disk.
///
/// A value and not a slice, so that a reader may have the next run before it is through with one.
pub enum Run {
    /// A part of a block that the cache has, or had.
    Kept(Arc<Block<u8>>, Range<usize>),
    /// A part of what was read for this caller alone.
    Alone(Vec<u8>, Range<usize>),
    /// A part of an array in memory.
    Lent(Lent, Range<usize>),
}

impl Run {
    /// Its bytes: whole tokens.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Kept(block, part) => block.get(part.clone()).unwrap_or_default(),
            Self::Alone(bytes, part) => bytes.get(part.clone()).unwrap_or_default(),
            Self::Lent(bytes, part) => (**bytes).as_ref().get(part.clone()).unwrap_or_default(),
        }
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a run of {} bytes", self.bytes().len())
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens in {} shards", self.total, self.shards.len())
    }
}

impl Tokens {
    /// Tokens of `width` in memory, little-endian as on disk. Nothing is copied, cached or hashed.
    pub fn in_memory(bytes: Lent, width: Width) -> Self {
        Self {
            shards: Vec::new(),
            width,
            total: ((*bytes).as_ref().len() / width.bytes()) as u64,
            blocks: Blocks::new(0, 1),
            memory: Some(bytes),
            process: std::process::id(),
        }
    }

    /// Opens the shards and checks their sizes and headers; the tokens are checked when read.
    ///
    /// At most `cached` blocks of 1 MiB are kept in memory. How many are worth it depends on the
    /// order in which the tokens are wanted: see [`crate::plan::cached_blocks`].
    ///
    /// # Errors
    ///
    /// [`Error::Io`] or [`Error::Corrupt`] for the first file that cannot be opened or differs.
    pub fn open(entries: Vec<ShardEntry>, width: Width, cached: usize) -> Result<Self> {
        // All are opened now: a missing file must fail at the start, not in the middle of an epoch.
        let mut shards = Vec::with_capacity(entries.len());
        let mut total = 0_u64;
        for entry in entries {
            let shard = Shard::open(entry, width)?;
            let first = total;
            total += shard.tokens();
            shards.push((first, shard));
        }
        // Many small shards have short blocks, of which a window of the shuffle has many.
        let largest = shards.iter().map(|(_, shard)| shard.size(0)).max();
        Ok(Self {
            shards,
            width,
            total,
            blocks: Blocks::new(cached, largest.unwrap_or(0).max(1)),
            memory: None,
            process: std::process::id(),
        })
    }

    /// Tokens in all shards.
    pub fn n_tokens(&self) -> u64 {
        self.total
    }

    /// Bytes of a token on disk.
    pub fn width(&self) -> Width {
        self.width
    }

    /// `reading`, or what must take its place in a child of the process that opened the shards.
    pub fn allowed(&self, reading: Reading) -> Reading {
        // A system call, but one per stream; per read it would be felt.
        if self.process == std::process::id() {
            reading
        } else {
            Reading::Uncached
        }
    }

    /// The end of the `n` tokens from `start` on, or an error if they are not all there.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`], with the number of tokens that there are.
    pub fn end(&self, start: u64, n: usize) -> Result<u64> {
        let end = start.checked_add(n as u64).filter(|&end| end <= self.total);
        end.ok_or_else(|| {
            Error::Invalid(format!(
                "tokens {start} to {start} + {n} of a dataset of {} tokens",
                self.total
            ))
        })
    }

    /// Appends tokens `start..start + n` to `out`.
    ///
    /// # Errors
    ///
    /// As [`Tokens::visit`]. `out` may then hold anything behind what it held.
    pub fn read<E: Element>(
        &self,
        start: u64,
        n: usize,
        reading: Reading,
        out: &mut Vec<E>,
    ) -> Result<()> {
        // Before memory is set aside for them.
        self.end(start, n)?;
        let mut at = out.len();
        out.resize(at + n, E::from_id(0));
        self.visit(start, n, reading, |run| {
            let bytes = run.bytes();
            E::convert(out.get_mut(at..).unwrap_or_default(), bytes, self.width);
            at += bytes.len() / self.width.bytes();
        })
    }

    /// Calls `use_run` with tokens `start..start + n` as they lie on disk, one run of bytes for
    /// each block that they are in.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for tokens past the end, before anything is read; [`Error::Corrupt`] for
    /// a block that differs from its hash; [`Error::Io`] if reading fails.
    pub fn visit(
        &self,
        start: u64,
        n: usize,
        reading: Reading,
        mut use_run: impl FnMut(Run),
    ) -> Result<()> {
        let end = self.end(start, n)?;
        if let Some(bytes) = &self.memory {
            // Fits: the bytes are in memory.
            let width = self.width.bytes();
            let part = start as usize * width..end as usize * width;
            use_run(Run::Lent(Arc::clone(bytes), part));
            return Ok(());
        }
        self.runs(start, end, |shard, block, from, to| {
            self.with_run(shard, block, from, to, reading, &mut use_run)
        })
    }

    /// Loads the blocks of tokens `start..start + n` into the cache.
    ///
    /// # Errors
    ///
    /// As [`Tokens::visit`], but tokens past the end are none.
    pub fn warm(&self, start: u64, n: u64) -> Result<()> {
        // Reading ahead past the end is no error: the last block of an epoch is often shorter.
        let end = start.saturating_add(n).min(self.total);
        self.runs(start, end, |shard, block, from, to| {
            self.with_run(shard, block, from, to, Reading::Near, |_| ())
        })
    }

    /// Reads and hashes block `block` of shard `shard`, whatever was checked before.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] with the byte, or [`Error::Invalid`] if there is no such block.
    pub fn verify(&self, shard: usize, block: usize) -> Result<()> {
        let missing =
            || Error::Invalid(format!("the dataset has no block {block} in shard {shard}"));
        let found = self.shards.get(shard).filter(|(_, s)| s.has(block));
        let (_, shard) = found.ok_or_else(missing)?;
        // The header has no block of its own, and the size may have changed since it was opened.
        shard.check()?;
        shard.load(block, &mut vec![0; shard.size(block)])
    }

    /// Calls `visit(shard, block, from, to)` for each run of bytes in one block.
    ///
    /// `from` and `to` count bytes from the start of the block. A token never lies in two blocks,
    /// because both widths divide the size of a block.
    fn runs(
        &self,
        start: u64,
        end: u64,
        mut visit: impl FnMut(usize, usize, usize, usize) -> Result<()>,
    ) -> Result<()> {
        let width = self.width.bytes() as u64;
        let mut number = self
            .shards
            // An empty shard begins where the next one does; the last of them has the tokens.
            .partition_point(|(first, _)| *first <= start)
            .saturating_sub(1);
        let mut at = start;
        while at < end {
            let Some((first, shard)) = self.shards.get(number) else {
                break;
            };
            let stop = end.min(first + shard.tokens());
            while at < stop {
                let byte = (at - first) * width;
                let block = byte / BLOCK_BYTES as u64;
                // The end of the tokens or of the block, whichever comes first.
                let last = ((stop - first) * width).min((block + 1) * BLOCK_BYTES as u64);
                let base = block * BLOCK_BYTES as u64;
                visit(
                    number,
                    block as usize,
                    (byte - base) as usize,
                    (last - base) as usize,
                )?;
                at = first + last / width;
            }
            number += 1;
        }
        Ok(())
    }

    /// Calls `use_run` with bytes `from..to` of a block: from the cache, from the file if the
    /// block was hashed before, or from the block read whole and hashed.
    fn with_run(
        &self,
        number: usize,
        block: usize,
        from: usize,
        to: usize,
        reading: Reading,
        use_run: impl FnOnce(Run),
    ) -> Result<()> {
        let cached = match reading {
            Reading::Uncached => None,
            Reading::Near | Reading::Far => self.blocks.get((number, block)),
        };
        if let Some(bytes) = cached {
            use_run(Run::Kept(bytes, from..to));
            return Ok(());
        }
        let Some((_, shard)) = self.shards.get(number) else {
            return Ok(());
        };
        // A block that was never hashed is read whole even for one token: no byte is trusted.
        let few = reading != Reading::Near || to - from <= SPILL_BYTES;
        if few && shard.is_checked(block) {
            // Hashed before, and not kept: these tokens are seldom asked for twice.
            let mut bytes = vec![0; to - from];
            shard.read(block, from, &mut bytes)?;
            use_run(Run::Alone(bytes, 0..to - from));
            return Ok(());
        }
        if reading == Reading::Uncached {
            let mut bytes = vec![0; shard.size(block)];
            shard.load(block, &mut bytes)?;
            use_run(Run::Alone(bytes, from..to));
            return Ok(());
        }
        // Without a lock: two threads may both load it, which costs a read and changes nothing.
        let mut bytes = self.blocks.memory();
        shard.load(
            block,
            bytes.get_mut(..shard.size(block)).unwrap_or_default(),
        )?;
        let bytes = Arc::new(bytes);
        self.blocks.put((number, block), Arc::clone(&bytes));
        use_run(Run::Kept(bytes, from..to));
        Ok(())
    }
}
