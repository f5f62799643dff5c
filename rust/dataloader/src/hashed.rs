//! A file that is hashed block by block on the way to the disk, and is there whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread::{Builder, JoinHandle};

use crate::format::{self, BLOCK_BYTES};
use crate::{Error, Result};

/// A file that hashes each of its blocks on the way to the disk.
#[derive(Debug)]
pub(crate) struct Hashed {
    /// The temporary name, ending in `.part`.
    path: PathBuf,
    file: BufWriter<File>,
    /// The bytes of the block that is not full yet.
    block: Vec<u8>,
    /// xxh3 of each finished block.
    hashes: Vec<u64>,
    /// The thread that brings the blocks so far to the disk.
    syncing: Option<JoinHandle<io::Result<()>>>,
}

/// Blocks after which a thread begins to bring a file to the disk, 16 MiB: otherwise the end of a
/// shard waits for the disk to take all of it, in which time nothing is encoded. On a virtual disk
/// a shard of 34 MB waited 50 to 200 ms, as long as 15 to 60 MB of text take to encode.
const SYNC_BLOCKS: usize = 16;

impl Hashed {
    /// Creates the file, or empties the one that is there.
    pub(crate) fn create(path: PathBuf) -> Result<Self> {
        let file = File::create(&path).map_err(|error| Error::io(&path, error))?;
        Ok(Self {
            path,
            file: BufWriter::new(file),
            block: Vec::new(),
            hashes: Vec::new(),
            syncing: None,
        })
    }

    /// Begins the file with zeros, over which `finish` writes a header; they are in no block.
    pub(crate) fn leave_room(&mut self, bytes: usize) -> Result<()> {
        self.file
            .write_all(&vec![0; bytes])
            .map_err(|error| Error::io(&self.path, error))
    }

    /// Appends bytes.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            // Blocks are counted from the first token of the file, whatever the sizes of writes.
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.block.len()));
            self.block.extend_from_slice(now);
            if self.block.len() == BLOCK_BYTES {
                self.flush_block()?;
            }
            bytes = later;
        }
        Ok(())
    }

    /// Hashes and writes the bytes that wait, a whole block or the last one.
    fn flush_block(&mut self) -> Result<()> {
        if !self.block.is_empty() {
            self.hashes.push(format::hash(&self.block));
            self.file
                .write_all(&self.block)
                .map_err(|error| Error::io(&self.path, error))?;
            self.block.clear();
            if self.hashes.len().is_multiple_of(SYNC_BLOCKS) {
                self.begin_sync()?;
            }
        }
        Ok(())
    }

    /// Lets a thread sync what is written, unless one is still at it.
    fn begin_sync(&mut self) -> Result<()> {
        if self
            .syncing
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
        {
            return Ok(());
        }
        self.end_sync()?;
        let file = self.file.get_ref().try_clone();
        let file = file.map_err(|error| Error::io(&self.path, error))?;
        // Without a thread, the sync at the end does it all.
        self.syncing = Builder::new().spawn(move || file.sync_data()).ok();
        Ok(())
    }

    /// Waits for the thread. A disk reports an error to one sync only, so it must not be lost.
    fn end_sync(&mut self) -> Result<()> {
        let done = self.syncing.take().map(JoinHandle::join);
        let failed = || io::Error::other("the thread that syncs it has panicked");
        done.map_or(Ok(()), |done| done.unwrap_or_else(|_| Err(failed())))
            .map_err(|error| Error::io(&self.path, error))
    }

    /// Writes `header` over the first bytes, syncs, and gives the file its real name.
    ///
    /// The header is not part of a block: it has a hash of its own.
    pub(crate) fn finish(mut self, header: Option<&[u8]>, name: &Path) -> Result<Vec<u64>> {
        self.flush_block()?;
        self.end_sync()?;
        let mut end = || {
            if let Some(header) = header {
                self.file.seek(SeekFrom::Start(0))?;
                self.file.write_all(header)?;
            }
            self.file.flush()?;
            // Before the rename: after a loss of power, the name must not stand for half a file.
            self.file.get_ref().sync_all()?;
            fs::rename(&self.path, name)
        };
        end().map_err(|error| Error::io(&self.path, error))?;
        Ok(self.hashes)
    }
}
