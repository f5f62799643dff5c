//! Shards as one long array of tokens, read by position and checked by block.
//!
//! Reads are `pread`, never a mapping: a file that shrinks under a mapping kills the process, and
//! fresh pages of a mapping cost more than copies. A block of 1 MiB is read whole and hashed the
//! first time, which costs 5% of reading it, and stays in a cache that holds two shuffle windows.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::batch::Element;
use crate::format::{self, BLOCK_BYTES, HEADER_BYTES, Header, Width};
use crate::order::{BLOCK_TOKENS, WINDOW_BLOCKS};
use crate::{Error, Result};

/// What the manifest says of one shard.
#[derive(Clone, Debug)]
pub struct ShardEntry {
    /// The file.
    pub path: PathBuf,
    /// Tokens in it.
    pub tokens: u64,
    /// xxh3 of its header.
    pub header: u64,
    /// xxh3 of each block of its tokens.
    pub blocks: Vec<u64>,
}

#[derive(Debug)]
struct Shard {
    entry: ShardEntry,
    file: File,
    /// Position of its first token in the dataset.
    first: u64,
    /// Blocks that were hashed and found right.
    checked: Vec<AtomicBool>,
}

/// The tokens of a dataset.
#[derive(Debug)]
pub struct Tokens {
    shards: Vec<Shard>,
    width: Width,
    total: u64,
    cache: Mutex<Cache>,
    /// The process that may lock the cache: a forked child might find it locked for ever.
    process: u32,
}

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

impl Tokens {
    /// Opens the shards and checks their sizes and headers; the tokens are checked when read.
    pub fn open(entries: Vec<ShardEntry>, width: Width) -> Result<Self> {
        let mut shards = Vec::with_capacity(entries.len());
        let mut first = 0;
        for entry in entries {
            let file = File::open(&entry.path).map_err(|error| Error::io(&entry.path, error))?;
            check_header(&entry, &file, width)?;
            let checked = entry
                .blocks
                .iter()
                .map(|_| AtomicBool::new(false))
                .collect();
            let tokens = entry.tokens;
            shards.push(Shard {
                entry,
                file,
                first,
                checked,
            });
            first += tokens;
        }
        // A block of rows touches one block of bytes more than it fills.
        let touched = BLOCK_TOKENS as usize * width.bytes() / BLOCK_BYTES + 1;
        let cache = Mutex::new(Cache::new(2 * WINDOW_BLOCKS as usize * touched));
        Ok(Self {
            shards,
            width,
            total: first,
            cache,
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
        if self.process == std::process::id() {
            reading
        } else {
            Reading::Uncached
        }
    }

    /// Appends tokens `start..start + n` to `out`.
    pub fn read<E: Element>(
        &self,
        start: u64,
        n: usize,
        reading: Reading,
        out: &mut Vec<E>,
    ) -> Result<()> {
        let end = start.checked_add(n as u64).filter(|&end| end <= self.total);
        let end = end.ok_or_else(|| {
            Error::Invalid(format!(
                "tokens {start} to {start} + {n} of a dataset of {} tokens",
                self.total
            ))
        })?;
        self.pieces(start, end, |shard, block, from, to| {
            self.with_piece(shard, block, from, to, reading, |bytes| {
                E::extend(out, bytes, self.width);
            })
        })
    }

    /// Loads the blocks of tokens `start..start + n` into the cache.
    pub fn warm(&self, start: u64, n: u64) -> Result<()> {
        let end = start.saturating_add(n).min(self.total);
        self.pieces(start, end, |shard, block, from, to| {
            self.with_piece(shard, block, from, to, Reading::Near, |_| ())
        })
    }

    /// Reads and hashes block `block` of shard `shard`, whatever was checked before.
    pub fn verify(&self, shard: usize, block: usize) -> Result<()> {
        let missing =
            || Error::Invalid(format!("the dataset has no block {block} in shard {shard}"));
        let shard = self.shards.get(shard).ok_or_else(missing)?;
        check_header(&shard.entry, &shard.file, self.width)?;
        self.load(shard, block).map(|_| ())
    }

    /// Calls `visit(shard, block, from, to)` for each run of bytes in one block.
    fn pieces(
        &self,
        start: u64,
        end: u64,
        mut visit: impl FnMut(usize, usize, usize, usize) -> Result<()>,
    ) -> Result<()> {
        let width = self.width.bytes() as u64;
        let mut number = self
            .shards
            .partition_point(|shard| shard.first <= start)
            .saturating_sub(1);
        let mut at = start;
        while at < end {
            let Some(shard) = self.shards.get(number) else {
                break;
            };
            let stop = end.min(shard.first + shard.entry.tokens);
            while at < stop {
                let byte = (at - shard.first) * width;
                let block = byte / BLOCK_BYTES as u64;
                let last = ((stop - shard.first) * width).min((block + 1) * BLOCK_BYTES as u64);
                let base = block * BLOCK_BYTES as u64;
                visit(
                    number,
                    block as usize,
                    (byte - base) as usize,
                    (last - base) as usize,
                )?;
                at = shard.first + last / width;
            }
            number += 1;
        }
        Ok(())
    }

    fn with_piece(
        &self,
        number: usize,
        block: usize,
        from: usize,
        to: usize,
        reading: Reading,
        use_bytes: impl FnOnce(&[u8]),
    ) -> Result<()> {
        let cached = match reading {
            Reading::Uncached => None,
            Reading::Near | Reading::Far => self.cache().get((number, block)),
        };
        if let Some(bytes) = cached {
            use_bytes(bytes.get(from..to).unwrap_or_default());
            return Ok(());
        }
        let Some(shard) = self.shards.get(number) else {
            return Ok(());
        };
        let checked = shard
            .checked
            .get(block)
            .is_some_and(|flag| flag.load(Ordering::Relaxed));
        // A row's last target may be the first token of a block that nothing else needs now.
        if checked && (reading != Reading::Near || to - from <= SPILL_BYTES) {
            let mut bytes = vec![0; to - from];
            pread(
                &shard.entry,
                &shard.file,
                payload_offset(block) + from as u64,
                &mut bytes,
            )?;
            use_bytes(&bytes);
            return Ok(());
        }
        let bytes = Arc::new(self.load(shard, block)?);
        use_bytes(bytes.get(from..to).unwrap_or_default());
        if reading != Reading::Uncached {
            self.cache().put((number, block), bytes);
        }
        Ok(())
    }

    /// One whole block, hashed.
    fn load(&self, shard: &Shard, block: usize) -> Result<Vec<u8>> {
        let entry = &shard.entry;
        let offset = payload_offset(block);
        let end = HEADER_BYTES as u64 + entry.tokens * self.width.bytes() as u64;
        let mut bytes = vec![0; (end.saturating_sub(offset) as usize).min(BLOCK_BYTES)];
        pread(entry, &shard.file, offset, &mut bytes)?;
        let found = format::hash(&bytes);
        let Some(&expected) = entry.blocks.get(block) else {
            return Err(Error::corrupt(
                &entry.path,
                offset,
                "the manifest has no hash of this block",
            ));
        };
        if found != expected {
            let problem =
                format!("block {block}: expected xxh3 {expected:016x}, found {found:016x}");
            return Err(Error::corrupt(&entry.path, offset, problem));
        }
        if let Some(flag) = shard.checked.get(block) {
            flag.store(true, Ordering::Relaxed);
        }
        Ok(bytes)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn payload_offset(block: usize) -> u64 {
    (HEADER_BYTES + block * BLOCK_BYTES) as u64
}

fn check_header(entry: &ShardEntry, file: &File, width: Width) -> Result<()> {
    let path = &entry.path;
    let size = file
        .metadata()
        .map_err(|error| Error::io(path, error))?
        .len();
    let expected = HEADER_BYTES as u64 + entry.tokens * width.bytes() as u64;
    if size != expected {
        let problem = format!("expected a file of {expected} bytes, found {size}");
        return Err(Error::corrupt(path, size.min(expected), problem));
    }
    let mut bytes = [0; HEADER_BYTES];
    pread(entry, file, 0, &mut bytes)?;
    let (found_width, tokens) = Header::parse(path, &bytes)?;
    if found_width != width || tokens != entry.tokens {
        let problem = format!(
            "expected {} tokens of {} bytes, found {tokens} of {}",
            entry.tokens,
            width.bytes(),
            found_width.bytes()
        );
        return Err(Error::corrupt(path, 0, problem));
    }
    let found = format::hash(&bytes);
    if found != entry.header {
        let problem = format!(
            "header: expected xxh3 {:016x}, found {found:016x}",
            entry.header
        );
        return Err(Error::corrupt(path, 0, problem));
    }
    if entry.blocks.len() as u64 != (expected - HEADER_BYTES as u64).div_ceil(BLOCK_BYTES as u64) {
        let problem = format!("the manifest has {} hashes for it", entry.blocks.len());
        return Err(Error::corrupt(path, HEADER_BYTES as u64, problem));
    }
    Ok(())
}

fn pread(entry: &ShardEntry, file: &File, offset: u64, bytes: &mut [u8]) -> Result<()> {
    file.read_exact_at(bytes, offset).map_err(|error| {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            let problem = format!("the file was cut: expected {} bytes here", bytes.len());
            Error::corrupt(&entry.path, offset, problem)
        } else {
            Error::io(&entry.path, error)
        }
    })
}

/// A piece this small does not call for its whole block.
const SPILL_BYTES: usize = 64;

type BlockId = (usize, usize);

/// The blocks used last.
#[derive(Debug)]
struct Cache {
    blocks: HashMap<BlockId, (u64, Arc<Vec<u8>>)>,
    capacity: usize,
    clock: u64,
}

impl Cache {
    fn new(capacity: usize) -> Self {
        Self {
            blocks: HashMap::new(),
            capacity,
            clock: 0,
        }
    }

    fn get(&mut self, id: BlockId) -> Option<Arc<Vec<u8>>> {
        self.clock += 1;
        let (used, bytes) = self.blocks.get_mut(&id)?;
        *used = self.clock;
        Some(Arc::clone(bytes))
    }

    fn put(&mut self, id: BlockId, bytes: Arc<Vec<u8>>) {
        self.clock += 1;
        self.blocks.insert(id, (self.clock, bytes));
        if self.blocks.len() > self.capacity {
            // Clocks differ, so the oldest is one whatever the order of the map.
            let oldest = self.blocks.iter().min_by_key(|(_, (used, _))| *used);
            if let Some(id) = oldest.map(|(&id, _)| id) {
                self.blocks.remove(&id);
            }
        }
    }
}
