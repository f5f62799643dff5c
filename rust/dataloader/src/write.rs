//! Documents to shards, on disk in full or not at all.
//!
//! A shard is written under a temporary name, synced, renamed, and its folder synced; what the
//! caller writes last, the manifest, is what makes the folder a dataset. So a crash at any point
//! leaves files that nothing refers to.
//!
//! Tokens are hashed on the way to the disk, block by block, so nothing is read back. Memory: one
//! block for each of the two open files, however long a document is: it may come in parts. Its length
//! is known at its end only, so the shard in which it began is finished then.
//!
//! Defined by `cut` in `python/tinylm/reference/shards.py`, held to it by the rung
//! `shards written`.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::format::{self, HEADER_BYTES, Header, MAX_SHARD_TOKENS, Width};
use crate::hashed::Hashed;
use crate::{Error, Result, within};

/// One finished shard: a line of the manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardRecord {
    /// File name of the tokens; the lengths of documents are in the `.doc` beside it.
    pub name: String,
    /// Tokens in it.
    pub tokens: u64,
    /// Documents that begin in it.
    pub documents: u64,
    /// xxh3 of the header.
    pub header: u64,
    /// xxh3 of each block of tokens.
    pub blocks: Vec<u64>,
    /// xxh3 of each block of the `.doc` file.
    pub lengths: Vec<u64>,
}

/// What all shards of a writer have in common.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The folder that receives the files.
    pub folder: PathBuf,
    /// First part of the file names.
    pub split: String,
    /// Ids are below this.
    pub vocab_size: u64,
    /// Appended to every document.
    pub eos_id: u32,
    /// The most tokens of a shard.
    pub shard_tokens: u64,
    /// Hash of the tokenizer that made the ids.
    pub tokenizer_sha256: [u8; 32],
}

/// Writes documents one after another into `{split}-00000.bin`, `{split}-00001.bin`, ...
///
/// A writer that is dropped without [`ShardWriter::finish`] leaves its last shard under temporary
/// names. [The example of the crate](crate#example) writes and reads a dataset.
#[derive(Debug)]
pub struct ShardWriter {
    layout: Layout,
    width: Width,
    shard: Option<Open>,
    done: Vec<ShardRecord>,
    /// The tokens so far of a document that has not ended.
    begun: Option<u64>,
    /// The full shard in which that document began, with its number.
    waiting: Option<(usize, Open)>,
}

/// The shard that is being written: its two files, and what its header will say.
#[derive(Debug)]
struct Open {
    bin: Hashed,
    doc: Hashed,
    tokens: u64,
    documents: u64,
    /// Leading tokens of a document that began in an earlier shard.
    carried: u64,
}

impl ShardWriter {
    /// A writer into `layout.folder`, which must exist.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a number of the layout that is out of its range. No file is made yet.
    pub fn new(layout: Layout) -> Result<Self> {
        within("vocab_size", layout.vocab_size, 1, MAX_SHARD_TOKENS)?;
        within("eos_id", layout.eos_id.into(), 0, layout.vocab_size - 1)?;
        within("shard_tokens", layout.shard_tokens, 1, MAX_SHARD_TOKENS)?;
        // By the vocabulary and not by the ids that occur: a reader must know the width beforehand.
        let width = Width::of_vocabulary(layout.vocab_size);
        Ok(Self {
            layout,
            width,
            shard: None,
            done: Vec::new(),
            begun: None,
            waiting: None,
        })
    }

    /// Appends one document and the id that ends it. Refuses the whole document for one bad id.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for an id that is not below `vocab_size` and for a document of 2^32 - 1
    /// ids and more; [`Error::Io`] if writing fails, after which the writer is of no use.
    pub fn add(&mut self, ids: &[u32]) -> Result<()> {
        if self.begun.is_some() {
            return Err(Error::Invalid(
                "the document before it has not ended".into(),
            ));
        }
        // Before the first byte is written: what a refused document left would be half of one.
        self.check(ids)?;
        self.append_part(ids)?;
        self.end_document()
    }

    /// Appends ids to the document in work, or begins one with them.
    ///
    /// # Errors
    ///
    /// As [`ShardWriter::add`], after which the document is of no use.
    pub fn add_part(&mut self, ids: &[u32]) -> Result<()> {
        self.check(ids)?;
        self.append_part(ids)
    }

    /// Appends the id that ends a document, and notes its length; one that has no part is empty.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if writing fails.
    pub fn end_document(&mut self) -> Result<()> {
        self.begin()?;
        self.append(&[self.layout.eos_id])?;
        // The length counts eos, as in the reference; `check` has seen that it fits.
        let length = (self.begun.take().unwrap_or(0) as u32).to_le_bytes();
        if let Some((number, mut open)) = self.waiting.take() {
            open.doc.write(&length)?;
            let record = self.close(open, number)?;
            self.done.insert(number, record);
        } else if let Some(open) = &mut self.shard {
            // Not by `room`: the document may have filled it.
            open.doc.write(&length)?;
        }
        Ok(())
    }

    /// Refuses ids that no document in work may have.
    fn check(&self, ids: &[u32]) -> Result<()> {
        let vocab_size = self.layout.vocab_size;
        if let Some(at) = ids.iter().position(|&id| u64::from(id) >= vocab_size) {
            return Err(Error::Invalid(format!(
                "id {} at position {at} of a document; ids must be below vocab_size = {vocab_size}",
                ids[at]
            )));
        }
        let length = self.begun.unwrap_or(0) + ids.len() as u64;
        if length >= u64::from(u32::MAX) {
            return Err(Error::Invalid(format!(
                "a document of {length} tokens; the limit is 4294967294"
            )));
        }
        Ok(())
    }

    fn append_part(&mut self, ids: &[u32]) -> Result<()> {
        self.begin()?;
        self.append(ids)
    }

    /// Begins a document, unless one is in work.
    fn begin(&mut self) -> Result<()> {
        if self.begun.is_none() {
            // A document begins where its first token goes, so a full shard is closed first.
            self.room()?.documents += 1;
            self.begun = Some(0);
        }
        Ok(())
    }

    /// Appends ids of the document in work over as many shards as they need.
    fn append(&mut self, mut ids: &[u32]) -> Result<()> {
        let width = self.width;
        let limit = self.layout.shard_tokens;
        // A document may have billions of tokens; it is converted in parts.
        let mut bytes = Vec::with_capacity(ids.len().min(1 << 16) * width.bytes());
        while !ids.is_empty() {
            // Whether the first of them continues a document.
            let middle = self.begun.is_some_and(|length| length > 0);
            let open = self.room()?;
            let take = ids.len().min((limit - open.tokens) as usize).min(1 << 16);
            let (now, later) = ids.split_at(take);
            bytes.clear();
            match width {
                // The cast loses nothing: the width holds every id below vocab_size.
                Width::Two => bytes.extend(now.iter().flat_map(|&id| (id as u16).to_le_bytes())),
                Width::Four => bytes.extend(now.iter().flat_map(|&id| id.to_le_bytes())),
            }
            open.bin.write(&bytes)?;
            // While all tokens of this shard are carried, the document before is still going on.
            if middle && open.tokens == open.carried {
                open.carried += take as u64;
            }
            open.tokens += take as u64;
            *self.begun.get_or_insert(0) += take as u64;
            ids = later;
        }
        Ok(())
    }

    /// The shard that takes the next token.
    ///
    /// Finishes a full shard and begins a new one.
    fn room(&mut self) -> Result<&mut Open> {
        if self
            .shard
            .as_ref()
            // A full shard is closed by the next token and not by its last: a dataset that ends
            // just there has no empty shard.
            .is_some_and(|open| open.tokens == self.layout.shard_tokens)
        {
            self.finish_shard()?;
        }
        if self.shard.is_none() {
            let number = self.number();
            let mut bin = Hashed::create(self.path(number, "bin.part"))?;
            let doc = Hashed::create(self.path(number, "doc.part"))?;
            // The real header comes last; blocks are counted from the first token.
            bin.leave_room(HEADER_BYTES)?;
            self.shard = Some(Open {
                bin,
                doc,
                tokens: 0,
                documents: 0,
                carried: 0,
            });
        }
        let missing = || Error::Invalid("the writer has no open shard".to_owned());
        self.shard.as_mut().ok_or_else(missing)
    }

    /// The number of the shard in work, or of the next.
    fn number(&self) -> usize {
        self.done.len() + usize::from(self.waiting.is_some())
    }

    /// The name of a shard, with this extension.
    fn path(&self, number: usize, extension: &str) -> PathBuf {
        let name = format!("{}-{number:05}.{extension}", self.layout.split);
        self.layout.folder.join(name)
    }

    /// Closes the shard in work, if there is one, and records it.
    fn finish_shard(&mut self) -> Result<()> {
        let Some(open) = self.shard.take() else {
            return Ok(());
        };
        let number = self.number();
        if self.begun.is_some() && self.waiting.is_none() {
            // The document in work began in it, and its length is not known yet.
            self.waiting = Some((number, open));
            return Ok(());
        }
        let record = self.close(open, number)?;
        self.done.push(record);
        Ok(())
    }

    /// Finishes the files of a shard.
    fn close(&self, open: Open, number: usize) -> Result<ShardRecord> {
        let header = Header {
            width: self.width,
            tokens: open.tokens,
            documents: open.documents,
            carried: open.carried,
            vocab_size: self.layout.vocab_size,
            eos_id: self.layout.eos_id,
            tokenizer_sha256: self.layout.tokenizer_sha256,
        }
        .to_bytes();
        // The sidecar first: a `.bin` under its real name always has its lengths beside it.
        let lengths = open.doc.finish(None, &self.path(number, "doc"))?;
        let blocks = open.bin.finish(Some(&header), &self.path(number, "bin"))?;
        // A rename survives a crash only once the folder is synced.
        sync_folder(&self.layout.folder)?;
        Ok(ShardRecord {
            name: format!("{}-{number:05}.bin", self.layout.split),
            tokens: open.tokens,
            documents: open.documents,
            header: format::hash(&header),
            blocks,
            lengths,
        })
    }

    /// Finishes the last shard and returns all of them.
    ///
    /// No documents give no shards. The caller writes the records into the manifest.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if a document has not ended, [`Error::Io`] if writing fails.
    pub fn finish(mut self) -> Result<Vec<ShardRecord>> {
        if self.begun.is_some() {
            return Err(Error::Invalid("the last document has not ended".into()));
        }
        self.finish_shard()?;
        Ok(self.done)
    }
}

/// Brings the new names in the folder to the disk.
fn sync_folder(folder: &Path) -> Result<()> {
    let sync = || File::open(folder)?.sync_all();
    sync().map_err(|error| Error::io(folder, error))
}
