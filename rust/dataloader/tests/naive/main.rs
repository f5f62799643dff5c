//! The crate against the obvious way of doing the same: vectors in memory, no cache, no threads.

mod batches;
mod mix;
mod order;
mod plan;
mod shards;
mod slots;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tinylm_dataloader::format::{HEADER_BYTES, Width};
use tinylm_dataloader::order::mix;
use tinylm_dataloader::ring::Next;
use tinylm_dataloader::write::{Layout, ShardRecord};
use tinylm_dataloader::{
    Batch, Result, ShardEntry, ShardWriter, Slice, Stream, Tokens, plan::cached_blocks,
};

const EOS: u32 = 99;

/// A folder that is removed when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tinylm-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Random numbers for the tests, the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 += 1;
        mix(self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)) % n
    }
}

fn layout(folder: &Path, vocab_size: u64, shard_tokens: u64) -> Layout {
    Layout {
        folder: folder.to_owned(),
        split: "train".to_owned(),
        vocab_size,
        eos_id: EOS,
        shard_tokens,
        tokenizer_sha256: [7; 32],
    }
}

fn entry(folder: &Path, record: &ShardRecord) -> ShardEntry {
    ShardEntry {
        path: folder.join(&record.name),
        tokens: record.tokens,
        payload: HEADER_BYTES as u64,
        header: Some(record.header),
        blocks: Some(record.blocks.clone()),
    }
}

/// Random documents of ids below 99, written; the tokens as they should read back.
fn dataset(
    folder: &Path,
    documents: u64,
    vocab_size: u64,
    shard_tokens: u64,
) -> (Arc<Tokens>, Vec<u32>) {
    let mut random = Random(documents);
    let mut writer = ShardWriter::new(layout(folder, vocab_size, shard_tokens)).unwrap();
    let mut expected = Vec::new();
    for _ in 0..documents {
        let ids: Vec<u32> = (0..random.below(60))
            .map(|_| random.below(99) as u32)
            .collect();
        writer.add(&ids).unwrap();
        expected.extend(ids);
        expected.push(EOS);
    }
    let entries = writer
        .finish()
        .unwrap()
        .iter()
        .map(|record| entry(folder, record))
        .collect();
    let width = Width::of_vocabulary(vocab_size);
    let tokens = Tokens::open(entries, width, cached_blocks(width)).unwrap();
    (Arc::new(tokens), expected)
}

/// Batches of `batch_size` rows from row `first_row` on, for one rank and without an end.
fn from_row(first_row: u64, batch_size: u64) -> Slice {
    Slice {
        batch_size,
        rank: 0,
        world_size: 1,
        first_row,
        end_row: None,
        every: 1,
    }
}

/// The arrays of a batch, or of several one after the other.
#[derive(Clone, Debug, Default, PartialEq)]
struct Arrays {
    tokens: Vec<i64>,
    targets: Vec<i64>,
    positions: Vec<i64>,
    documents: Vec<i64>,
    ends: Vec<i64>,
}

impl Arrays {
    fn extend(&mut self, other: &Self) {
        self.tokens.extend(&other.tokens);
        self.targets.extend(&other.targets);
        self.positions.extend(&other.positions);
        self.documents.extend(&other.documents);
        self.ends.extend(&other.ends);
    }
}

impl From<&Batch<i64>> for Arrays {
    fn from(batch: &Batch<i64>) -> Self {
        Self {
            tokens: batch.tokens().to_vec(),
            targets: batch.targets().to_vec(),
            positions: batch.positions().to_vec(),
            documents: batch.documents().to_vec(),
            ends: batch.ends().to_vec(),
        }
    }
}

fn next_arrays(stream: &Stream<i64>) -> Arrays {
    (&next_batch(stream).unwrap().unwrap()).into()
}

fn next_batch(stream: &Stream<i64>) -> Result<Option<Batch<i64>>> {
    loop {
        match stream.next(Duration::from_millis(20))? {
            Next::Batch(batch) => return Ok(Some(batch)),
            Next::End => return Ok(None),
            Next::Pending => {}
        }
    }
}
