//! The crate against the obvious way of doing the same: vectors in memory, no cache, no threads.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tinylm_dataloader::batch::Filler;
use tinylm_dataloader::format::{Header, Width};
use tinylm_dataloader::order::{Permutation, mix};
use tinylm_dataloader::read::{Reading, ShardEntry};
use tinylm_dataloader::ring::Next;
use tinylm_dataloader::write::{Layout, ShardRecord};
use tinylm_dataloader::{Error, Order, Result, Rows, ShardWriter, Slice, Stream, Tokens};

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
        header: record.header,
        blocks: record.blocks.clone(),
    }
}

/// Random documents of ids below 99, written; the tokens as they should read back.
fn dataset(
    folder: &Path,
    documents: u64,
    vocab_size: u64,
    shard_tokens: u64,
) -> (Tokens, Vec<u32>) {
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
    (
        Tokens::open(entries, Width::of_vocabulary(vocab_size)).unwrap(),
        expected,
    )
}

fn next_batch(stream: &Stream<i64>) -> Result<Option<(Vec<i64>, Vec<i64>)>> {
    loop {
        match stream.next(Duration::from_millis(20))? {
            Next::Batch(batch) => return Ok(Some((batch.tokens, batch.targets))),
            Next::End => return Ok(None),
            Next::Pending => {}
        }
    }
}

#[test]
fn permutations_are_bijections_at_every_size() {
    for n in (1..1500).chain([4095, 4096, 4097, 1_000_003]) {
        let permutation = Permutation::new(n, n * 31);
        let mut seen = vec![false; n as usize];
        for i in 0..n {
            let to = &mut seen[permutation.at(i) as usize];
            assert!(!*to, "n = {n}, i = {i}");
            *to = true;
        }
    }
    let huge = Permutation::new(10_000_000_019, 5);
    let images: BTreeSet<u64> = (0..10_000).map(|i| huge.at(i * 1_000_001)).collect();
    assert!(images.len() == 10_000 && images.iter().all(|&to| to < 10_000_000_019));
}

#[test]
fn permutations_look_random() {
    // chi2 / df over the keys, of where 0 goes and of how far 1 lands from 0; expected 1 +- 0.1.
    for n in [16_u64, 100, 1024, 1500] {
        let keys = 200 * n;
        let mut place = vec![0.0; n as usize];
        let mut distance = vec![0.0; n as usize];
        for key in 0..keys {
            let permutation = Permutation::new(n, mix(key));
            let (zero, one) = (permutation.at(0), permutation.at(1));
            place[zero as usize] += 1.0;
            distance[((one + n - zero) % n) as usize] += 1.0;
        }
        let chi2 = |counts: &[f64]| {
            let expected = keys as f64 / counts.len() as f64;
            let squares: f64 = counts.iter().map(|count| (count - expected).powi(2)).sum();
            squares / expected / (counts.len() - 1) as f64
        };
        assert!(distance[0] < 0.5);
        // The spread of chi2 / df is sqrt(2 / df): three of them, and no less than 0.2.
        let bound = 1.0 + (4.0 * (2.0 / (n - 2) as f64).sqrt()).max(0.2);
        assert!(
            chi2(&place) < bound && chi2(&distance[1..]) < bound,
            "n = {n}"
        );
    }
}

#[test]
fn what_is_written_is_read_whatever_the_shards_and_the_width() {
    let folder = Folder::new("roundtrip");
    for (vocab_size, shard_tokens) in [(100, 7), (100, 1000), (70_000, 13), (70_000, 100_000)] {
        let (tokens, expected) = dataset(&folder.0, 200, vocab_size, shard_tokens);
        assert_eq!(tokens.n_tokens(), expected.len() as u64);
        let mut random = Random(9);
        for _ in 0..100 {
            let start = random.below(expected.len() as u64 + 1) as usize;
            let n = random.below((expected.len() - start) as u64 + 1) as usize;
            for reading in [Reading::Near, Reading::Far] {
                let mut out: Vec<u32> = Vec::new();
                tokens.read(start as u64, n, reading, &mut out).unwrap();
                assert_eq!(out, &expected[start..start + n]);
            }
        }
        let outside = tokens.read(1, expected.len(), Reading::Far, &mut Vec::<u32>::new());
        assert!(matches!(outside, Err(Error::Invalid(_))));
    }
}

#[test]
fn streams_are_rows_in_order_for_any_threads_and_ranks() {
    let folder = Folder::new("streams");
    let (tokens, _) = dataset(&folder.0, 300, 100, 2000);
    let tokens = Arc::new(tokens);
    for order in [Order::Shuffle, Order::Sequential, Order::Random] {
        let rows = Rows::new(order, 3, tokens.n_tokens(), 32, 32).unwrap();
        let mut filler = Filler::<i64>::new(&tokens, &rows, Some(EOS));
        for (threads, prefetch, rank, world_size) in [(1, 1, 0, 1), (3, 2, 1, 3), (2, 5, 4, 5)] {
            let slice = Slice {
                batch_size: 14,
                rank,
                world_size,
                first_row: 100,
                end_row: None,
            };
            let stream = Stream::start(
                Arc::clone(&tokens),
                rows.clone(),
                Some(EOS),
                slice.clone(),
                threads,
                prefetch,
            )
            .unwrap();
            for number in 0..60 {
                let mut expected = tinylm_dataloader::Batch::default();
                for place in (rank..14).step_by(world_size as usize) {
                    let row = 100 + number * 14 + place;
                    filler
                        .row(row / rows.n_rows(), row % rows.n_rows(), &mut expected)
                        .unwrap();
                }
                let (tokens, targets) = next_batch(&stream).unwrap().unwrap();
                assert_eq!((tokens, targets), (expected.tokens, expected.targets));
            }
        }
    }
}

#[test]
fn a_sequential_epoch_has_every_target_once_and_then_ends() {
    let folder = Folder::new("epoch");
    let (tokens, expected) = dataset(&folder.0, 40, 100, 500);
    let tokens = Arc::new(tokens);
    for context_length in [1, 7, 64, 5000] {
        let rows = Rows::new(
            Order::Sequential,
            0,
            tokens.n_tokens(),
            context_length,
            context_length,
        );
        let rows = rows.unwrap();
        let end_row = Some(rows.n_rows());
        let slice = Slice {
            batch_size: 5,
            rank: 0,
            world_size: 1,
            first_row: 0,
            end_row,
        };
        let stream = Stream::start(Arc::clone(&tokens), rows, None, slice, 2, 3).unwrap();
        let mut targets = Vec::new();
        while let Some(batch) = next_batch(&stream).unwrap() {
            targets.extend(
                batch
                    .1
                    .into_iter()
                    .filter(|&id| id != -100)
                    .map(|id| id as u32),
            );
        }
        assert_eq!(targets, &expected[1..]);
    }
}

#[test]
fn a_stream_dropped_while_full_or_empty_ends_its_threads() {
    let folder = Folder::new("drop");
    let (tokens, _) = dataset(&folder.0, 300, 100, 2000);
    let tokens = Arc::new(tokens);
    let rows = Rows::new(Order::Shuffle, 3, tokens.n_tokens(), 32, 32).unwrap();
    for wait in [0, 20] {
        let slice = Slice {
            batch_size: 8,
            rank: 0,
            world_size: 1,
            first_row: 0,
            end_row: None,
        };
        let stream: Stream<i64> =
            Stream::start(Arc::clone(&tokens), rows.clone(), None, slice, 4, 2).unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        drop(stream);
        assert_eq!(Arc::strong_count(&tokens), 1);
    }
}

#[test]
fn a_damaged_block_is_an_error_of_the_batch_that_needs_it() {
    let folder = Folder::new("damage");
    let mut writer = ShardWriter::new(layout(&folder.0, 100, 10_000_000)).unwrap();
    writer.add(&vec![1; 1_200_000]).unwrap();
    let record = writer.finish().unwrap().remove(0);
    let path = folder.0.join(&record.name);
    let mut bytes = fs::read(&path).unwrap();
    bytes[1024 + (1 << 20) + 5] ^= 4;
    fs::write(&path, bytes).unwrap();
    let tokens = Arc::new(Tokens::open(vec![entry(&folder.0, &record)], Width::Two).unwrap());
    let rows = Rows::new(Order::Sequential, 0, tokens.n_tokens(), 1000, 1000).unwrap();
    let slice = Slice {
        batch_size: 100,
        rank: 0,
        world_size: 1,
        first_row: 0,
        end_row: None,
    };
    let stream = Stream::start(tokens, rows, None, slice, 2, 4).unwrap();
    for _ in 0..5 {
        assert!(next_batch(&stream).unwrap().is_some());
    }
    let error = next_batch(&stream).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Corrupt {
                offset: 1_049_600,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn hostile_headers_are_errors_and_never_panics() {
    let path = Path::new("shard.bin");
    let mut random = Random(1);
    for _ in 0..20_000 {
        let length = random.below(1100) as usize;
        let mut bytes: Vec<u8> = (0..length).map(|_| random.below(256) as u8).collect();
        if random.below(2) == 0 {
            let magic = 20_240_520_i32.to_le_bytes();
            bytes.splice(..length.min(4), magic);
        }
        if let Ok((_, tokens)) = Header::parse(path, &bytes) {
            assert!(i32::try_from(tokens).is_ok());
        }
    }
}
