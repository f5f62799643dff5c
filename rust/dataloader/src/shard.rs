//! One file of tokens: its size, its header, and its blocks, each checked against a hash.
//!
//! A [`ShardEntry`] says where the tokens lie and what they should hash to. A shard that
//! [`crate::write`] made begins with 1024 bytes of header and has a hash for the header and for
//! every block of 1 MiB:
//!
//! ```text
//! byte 0          1024 = payload       1024 + 1 MiB         1024 + 2 MiB      end
//! | header        | block 0            | block 1            | block 2 (short) |
//! | header: Some  | blocks: Some([xxh3 of block 0, xxh3 of block 1, ...])     |
//! ```
//!
//! A file that another program wrote has neither: its tokens begin at any byte `payload`, which
//! may be 0, nothing before them is looked at, and there may be more after them. Such an entry has
//! `header: None` and `blocks: None`, and its blocks count as checked from the start.
//!
//! Files are read with `pread`, never mapped: a file that shrinks under a mapping kills the
//! process, and fresh pages of a mapping cost more than copies.
//!
//! Defined by `python/tinylm/reference/shards.py`, held to it by the rungs `shards read`,
//! `tokens of other files` and `damage`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::format::{self, BLOCK_BYTES, HEADER_BYTES, Header, Width};
use crate::{Error, Result};

/// What is known of one file before it is opened.
///
/// For a shard of ours this comes from the manifest.
#[derive(Clone, Debug)]
pub struct ShardEntry {
    /// The file.
    pub path: PathBuf,
    /// Tokens in it.
    pub tokens: u64,
    /// The byte at which the first token lies: [`HEADER_BYTES`] in a shard of ours.
    pub payload: u64,
    /// xxh3 of the header, which is then checked, and with it the exact size of the file.
    pub header: Option<u64>,
    /// xxh3 of each [`BLOCK_BYTES`] of tokens, counted from `payload`.
    pub blocks: Option<Vec<u64>>,
}

/// An open file of tokens.
#[derive(Debug)]
pub(crate) struct Shard {
    entry: ShardEntry,
    // From the manifest, like the entry: every file of a dataset has the same.
    width: Width,
    file: File,
    /// The byte after the last token.
    end: u64,
    /// Blocks that need no hashing any more.
    ///
    /// A flag for each block; it is set once and never taken back.
    checked: Vec<AtomicBool>,
}

impl Shard {
    /// Opens the file and checks its size and header.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Invalid`] for a count that no file can have, and [`Error::Corrupt`]
    /// for a wrong size or header, or another number of hashes than blocks.
    pub(crate) fn open(entry: ShardEntry, width: Width) -> Result<Self> {
        let file = File::open(&entry.path).map_err(|error| Error::io(&entry.path, error))?;
        // A manifest may hold any number: a product that wraps would pass as a small file.
        let size = entry.tokens.checked_mul(width.bytes() as u64);
        let end = size.and_then(|size| size.checked_add(entry.payload));
        let (Some(size), Some(end)) = (size, end) else {
            return Err(Error::Invalid(format!(
                "{}: no file holds {} tokens from byte {} on",
                entry.path.display(),
                entry.tokens,
                entry.payload
            )));
        };
        let shard = Self {
            width,
            file,
            end,
            checked: Vec::new(),
            entry,
        };
        shard.check()?;
        // The file is as large as the entry says, so the flags are few.
        let n_blocks = size.div_ceil(BLOCK_BYTES as u64);
        let hashes = shard.entry.blocks.as_ref();
        if let Some(hashes) = hashes.filter(|hashes| hashes.len() as u64 != n_blocks) {
            let problem = format!("the manifest has {} hashes for it", hashes.len());
            return Err(shard.corrupt(shard.entry.payload, problem));
        }
        // A file without hashes has nothing to be checked against.
        let unhashed = hashes.is_none();
        let checked = (0..n_blocks).map(|_| AtomicBool::new(unhashed)).collect();
        Ok(Self { checked, ..shard })
    }

    /// Tokens in the file.
    pub(crate) fn tokens(&self) -> u64 {
        self.entry.tokens
    }

    /// Checks the size of the file, and the header if there is one.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] at the first byte that is missing, too much or different.
    pub(crate) fn check(&self) -> Result<()> {
        let size = self.file.metadata();
        let size = size
            .map_err(|error| Error::io(&self.entry.path, error))?
            .len();
        // llm.c insists on the exact size; other formats may end with something else.
        let exact = self.entry.header.is_some();
        if size < self.end || exact && size > self.end {
            let at_least = if exact { "" } else { "at least " };
            let problem = format!(
                "expected a file of {at_least}{} bytes, found {size}",
                self.end
            );
            return Err(self.corrupt(size.min(self.end), problem));
        }
        self.entry
            .header
            .map_or(Ok(()), |hash| self.check_header(hash))
    }

    /// Reads the header and checks it against what the entry says.
    fn check_header(&self, expected: u64) -> Result<()> {
        let mut bytes = [0; HEADER_BYTES];
        self.pread(0, &mut bytes)?;
        // Before the hash: a file of another format is better told by its magic number than by a
        // hash that differs.
        let (width, tokens) = Header::parse(&self.entry.path, &bytes)?;
        if width != self.width || tokens != self.entry.tokens {
            let problem = format!(
                "expected {} tokens of {} bytes, found {tokens} of {}",
                self.entry.tokens,
                self.width.bytes(),
                width.bytes()
            );
            return Err(self.corrupt(0, problem));
        }
        let found = format::hash(&bytes);
        if found != expected {
            let problem = format!("header: expected xxh3 {expected:016x}, found {found:016x}");
            return Err(self.corrupt(0, problem));
        }
        Ok(())
    }

    /// Whether parts of `block` may be read without reading and hashing the whole.
    pub(crate) fn is_checked(&self, block: usize) -> bool {
        let flag = self.checked.get(block);
        // Relaxed is enough: the flag guards no memory, and at worst a block is hashed twice.
        flag.is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    /// Reads bytes of `block`, from its byte `from` on.
    ///
    /// Nothing is hashed: callers ask [`Shard::is_checked`] first.
    pub(crate) fn read(&self, block: usize, from: usize, bytes: &mut [u8]) -> Result<()> {
        self.pread(self.offset(block) + from as u64, bytes)
    }

    /// Bytes of a block: the last may be short.
    pub(crate) fn size(&self, block: usize) -> usize {
        // It ends with the tokens, and not with the file.
        let left = self.end.saturating_sub(self.offset(block));
        left.min(BLOCK_BYTES as u64) as usize
    }

    /// Reads a whole block into `bytes`, of its size, and checks its hash, if it has one.
    ///
    /// The hash is checked every time, because the file may have changed since the last.
    pub(crate) fn load(&self, block: usize, bytes: &mut [u8]) -> Result<()> {
        let offset = self.offset(block);
        self.pread(offset, bytes)?;
        let hash = self
            .entry
            .blocks
            .as_ref()
            .and_then(|hashes| hashes.get(block));
        if let Some(&expected) = hash {
            let found = format::hash(bytes);
            if found != expected {
                let problem =
                    format!("block {block}: expected xxh3 {expected:016x}, found {found:016x}");
                return Err(self.corrupt(offset, problem));
            }
        }
        if let Some(flag) = self.checked.get(block) {
            flag.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether there is a block of this number.
    pub(crate) fn has(&self, block: usize) -> bool {
        block < self.checked.len()
    }

    /// The byte of the file at which a block begins.
    fn offset(&self, block: usize) -> u64 {
        self.entry.payload + block as u64 * BLOCK_BYTES as u64
    }

    /// Fills `bytes` from byte `offset` of the file on.
    fn pread(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        // `pread` moves no shared position, so threads need no lock around the file.
        self.file.read_exact_at(bytes, offset).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                let problem = format!("the file was cut: expected {} bytes here", bytes.len());
                self.corrupt(offset, problem)
            } else {
                Error::io(&self.entry.path, error)
            }
        })
    }

    /// An error that names this file and the byte at which it is wrong.
    fn corrupt(&self, offset: u64, problem: String) -> Error {
        Error::corrupt(&self.entry.path, offset, problem)
    }
}
