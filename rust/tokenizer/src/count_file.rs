//! Counts in a file: parts of a corpus are counted apart, joined, and trained on.
//!
//! ```text
//! "tlmcount" | length of the note, u32 | note | xxh3, u64
//! entries | 0 0 | pieces, u64 | sum, u64 | xxh3, u64
//! entry: bytes shared with the piece before | other bytes: number, then bytes | count
//! ```
//!
//! Pieces are in the order of their bytes, each once, so files are joined in one pass with the
//! memory of one piece for each. Numbers are LEB128, those of fixed width little-endian; xxh3 (64
//! bits) is that of all bytes before it. It finds damage, not forgery. The note is the caller's.
//!
//! Held to the counts in memory by the rung `count in files` and by `tests/naive.rs`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3Default;

use crate::words::Words;
use crate::{Error, Interrupt};

const MAGIC: &[u8; 8] = b"tlmcount";
/// Bytes that a file is read and written in.
const BUFFER: usize = 1 << 16;
/// Entries between two calls of the interrupt.
const TICK: usize = 1 << 14;

/// What a file holds in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Distinct pieces.
    pub pieces: u64,
    /// Pieces, each as often as it occurs.
    pub sum: u64,
}

/// Writes entries in the order of their pieces.
struct Writer<'a> {
    path: &'a Path,
    file: BufWriter<File>,
    hash: Xxh3Default,
    /// The last piece.
    last: Vec<u8>,
    entry: Vec<u8>,
    counted: Counted,
}

impl<'a> Writer<'a> {
    fn create(path: &'a Path, note: &str) -> Result<Self, Error> {
        let file = File::create(path).map_err(|error| failed(path, &error))?;
        let mut writer = Self {
            path,
            file: BufWriter::with_capacity(BUFFER, file),
            hash: Xxh3Default::new(),
            last: Vec::new(),
            entry: Vec::new(),
            counted: Counted { pieces: 0, sum: 0 },
        };
        writer.entry.extend_from_slice(MAGIC);
        writer
            .entry
            .extend_from_slice(&(note.len() as u32).to_le_bytes());
        writer.entry.extend_from_slice(note.as_bytes());
        writer.flush_hash()?;
        Ok(writer)
    }

    fn push(&mut self, piece: &[u8], count: u64) -> Result<(), Error> {
        let both = self.last.iter().zip(piece);
        let shared = both.take_while(|(a, b)| a == b).count();
        number(shared as u64, &mut self.entry);
        number((piece.len() - shared) as u64, &mut self.entry);
        self.entry.extend_from_slice(&piece[shared..]);
        number(count, &mut self.entry);
        self.last.truncate(shared);
        self.last.extend_from_slice(&piece[shared..]);
        self.counted.pieces += 1;
        self.counted.sum += count;
        if self.entry.len() >= BUFFER {
            self.flush()?;
        }
        Ok(())
    }

    /// Hands the entries that wait to the file.
    fn flush(&mut self) -> Result<(), Error> {
        self.hash.update(&self.entry);
        let written = self.file.write_all(&self.entry);
        self.entry.clear();
        written.map_err(|error| failed(self.path, &error))
    }

    /// Hands over what waits and the hash of all so far.
    fn flush_hash(&mut self) -> Result<(), Error> {
        self.flush()?;
        let hash = self.hash.digest().to_le_bytes();
        self.entry.extend_from_slice(&hash);
        self.flush()
    }

    fn finish(mut self) -> Result<Counted, Error> {
        self.entry.extend_from_slice(&[0, 0]);
        let Counted { pieces, sum } = self.counted;
        self.entry.extend_from_slice(&pieces.to_le_bytes());
        self.entry.extend_from_slice(&sum.to_le_bytes());
        self.flush_hash()?;
        let synced = self
            .file
            .into_inner()
            .map_err(io::IntoInnerError::into_error);
        synced
            .and_then(|file| file.sync_all())
            .map_err(|error| failed(self.path, &error))?;
        Ok(self.counted)
    }
}

/// Reads entries in their order.
struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    hash: Xxh3Default,
    /// What was read and is not hashed yet.
    raw: Vec<u8>,
    note: String,
    piece: Vec<u8>,
    count: u64,
    counted: Counted,
}

impl Reader {
    fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|error| failed(path, &error))?;
        let mut reader = Self {
            path: path.into(),
            file: BufReader::with_capacity(BUFFER, file),
            hash: Xxh3Default::new(),
            raw: Vec::new(),
            note: String::new(),
            piece: Vec::new(),
            count: 0,
            counted: Counted { pieces: 0, sum: 0 },
        };
        let head = reader.bytes(8).map(<[u8]>::to_vec);
        match head {
            Ok(head) if head == *MAGIC => {}
            Err(error @ Error::File { .. }) => return Err(error),
            // What is shorter is none of these files either.
            _ => return Err(reader.damaged("it is no file of counts")),
        }
        let length = fixed(reader.bytes(4)?);
        let Ok(note) = String::from_utf8(reader.bytes(length)?.into()) else {
            return Err(reader.damaged("its note is no text"));
        };
        reader.check_hash()?;
        reader.note = note;
        Ok(reader)
    }

    /// The next `length` bytes. They are read in parts: a damaged length must not ask for memory
    /// that the file cannot fill.
    fn bytes(&mut self, length: u64) -> Result<&[u8], Error> {
        if self.raw.len() >= BUFFER {
            self.hash.update(&self.raw);
            self.raw.clear();
        }
        let start = self.raw.len();
        let read = (&mut self.file).take(length).read_to_end(&mut self.raw);
        read.map_err(|error| failed(&self.path, &error))?;
        if ((self.raw.len() - start) as u64) < length {
            return Err(self.damaged("it is cut short"));
        }
        Ok(&self.raw[start..])
    }

    fn byte(&mut self) -> Result<u8, Error> {
        // Nearly every number is in the buffer; `bytes` knows what to do at its end.
        if let Some(&byte) = self.file.buffer().first() {
            self.file.consume(1);
            self.raw.push(byte);
            return Ok(byte);
        }
        self.bytes(1).map(|bytes| bytes[0])
    }

    fn number(&mut self) -> Result<u64, Error> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.damaged("a number in it is too long"))
    }

    /// Reads the next entry; false at the end, where the sums and the hash must be right.
    fn advance(&mut self) -> Result<bool, Error> {
        let (shared, length) = (self.number()?, self.number()?);
        if length == 0 {
            self.check_end()?;
            return Ok(false);
        }
        let before = self.piece.get(shared as usize).copied();
        let end = self.piece.len() as u64;
        let other = self.bytes(length)?;
        // Pieces rise strictly; the one before may be a beginning of this one.
        if !before.map_or(shared == end, |before| other[0] > before) {
            return Err(self.damaged("its pieces are not in order"));
        }
        self.piece.truncate(shared as usize);
        let from = self.raw.len() - length as usize;
        self.piece.extend_from_slice(&self.raw[from..]);
        self.count = self.number()?;
        self.counted.pieces += 1;
        match self.counted.sum.checked_add(self.count) {
            Some(sum) if self.count > 0 => self.counted.sum = sum,
            _ => return Err(self.damaged("a count in it is out of range")),
        }
        Ok(true)
    }

    fn check_end(&mut self) -> Result<(), Error> {
        let counted = Counted {
            pieces: fixed(self.bytes(8)?),
            sum: fixed(self.bytes(8)?),
        };
        self.check_hash()?;
        if counted != self.counted {
            return Err(self.damaged("its sums are wrong"));
        }
        let mut more = [0];
        match self.file.read(&mut more) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.damaged("something follows its end")),
            Err(error) => Err(failed(&self.path, &error)),
        }
    }

    /// The next eight bytes must be the hash of all before them.
    fn check_hash(&mut self) -> Result<(), Error> {
        self.hash.update(&self.raw);
        self.raw.clear();
        let expected = self.hash.digest();
        if fixed(self.bytes(8)?) == expected {
            return Ok(());
        }
        Err(self.damaged("its content does not fit its hash"))
    }

    fn damaged(&self, reason: &str) -> Error {
        Error::CountFile(format!(
            "{}: {reason}; count that part of the corpus again",
            self.path.display()
        ))
    }
}

/// Writes `words`, in the order of their bytes, with a note.
///
/// # Errors
///
/// [`Error::File`].
pub(crate) fn save(words: &mut Words, note: &str, path: &Path) -> Result<Counted, Error> {
    words.sort_by_bytes();
    let mut writer = Writer::create(path, note)?;
    for (piece, count) in words.iter() {
        writer.push(piece, count)?;
    }
    writer.finish()
}

/// The note of a file. The rest is not read.
///
/// # Errors
///
/// [`Error::File`], or [`Error::CountFile`] for another kind of file.
pub fn note_of(path: &Path) -> Result<String, Error> {
    Reader::open(path).map(|reader| reader.note)
}

/// Gives `each` the pieces of a file with their counts.
///
/// # Errors
///
/// [`Error::File`], or [`Error::CountFile`] for a damaged one, some of whose pieces may have been
/// given by then, and what `interrupt` returns.
pub(crate) fn load(
    path: &Path,
    interrupt: &mut Interrupt<'_>,
    mut each: impl FnMut(&[u8], u64),
) -> Result<(), Error> {
    let mut reader = Reader::open(path)?;
    let mut entries = 0usize;
    while reader.advance()? {
        entries += 1;
        if entries.is_multiple_of(TICK) {
            interrupt()?;
        }
        each(&reader.piece, reader.count);
    }
    Ok(())
}

/// Joins files of counts into one, which has the sums and a note; files are read side by side.
///
/// # Errors
///
/// [`Error::File`], [`Error::CountFile`], and what `interrupt` returns. The file is of no use then.
pub fn join_counts(
    paths: &[PathBuf],
    note: &str,
    out: &Path,
    interrupt: &mut Interrupt<'_>,
) -> Result<Counted, Error> {
    let mut readers = Vec::new();
    let mut heap = BinaryHeap::new();
    for path in paths {
        let mut reader = Reader::open(path)?;
        if reader.advance()? {
            heap.push(Reverse((reader.piece.clone(), readers.len())));
        }
        readers.push(reader);
    }
    let mut writer = Writer::create(out, note)?;
    let (mut piece, mut count, mut entries) = (Vec::new(), 0u64, 0usize);
    while let Some(mut top) = heap.peek_mut() {
        entries += 1;
        if entries.is_multiple_of(TICK) {
            interrupt()?;
        }
        let Reverse((least, number)) = &mut *top;
        let reader = &mut readers[*number];
        if piece != *least {
            if count > 0 {
                writer.push(&piece, count)?;
            }
            piece.clone_from(least);
            count = 0;
        }
        let Some(sum) = count.checked_add(reader.count) else {
            return Err(reader.damaged("the sum of its counts with others is too large"));
        };
        count = sum;
        if reader.advance()? {
            least.clone_from(&reader.piece);
        } else {
            std::collections::binary_heap::PeekMut::pop(top);
        }
    }
    if count > 0 {
        writer.push(&piece, count)?;
    }
    writer.finish()
}

/// A number of fixed width.
fn fixed(bytes: &[u8]) -> u64 {
    let bytes = bytes.iter().rev();
    bytes.fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn number(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn failed(path: &Path, error: &io::Error) -> Error {
    Error::File {
        path: path.into(),
        number: error.raw_os_error(),
        reason: error.to_string(),
    }
}
