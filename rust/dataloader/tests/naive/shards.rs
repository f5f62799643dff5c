//! Files: what is written is read, what another program wrote too, and damage is found.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use tinylm_dataloader::batch::Filler;
use tinylm_dataloader::format::{Header, Width, hash};
use tinylm_dataloader::read::Reading;
use tinylm_dataloader::{Error, Masked, Order, ShardEntry, ShardWriter, Stream, Tokens, Windows};

use crate::{Folder, Random, dataset, entry, from_row, layout, next_batch};

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

/// A file of `uint16` that another program wrote, with `before` and `after` around its tokens.
fn foreign(path: &Path, ids: &[u16], before: &[u8], after: &[u8]) -> ShardEntry {
    let payload = ids.iter().flat_map(|id| id.to_le_bytes());
    let bytes: Vec<u8> = before.iter().copied().chain(payload).collect();
    fs::write(path, [&bytes, after].concat()).unwrap();
    ShardEntry {
        path: path.to_owned(),
        tokens: ids.len() as u64,
        payload: before.len() as u64,
        header: None,
        blocks: None,
    }
}

#[test]
fn files_without_header_and_hashes_are_read_from_their_payload_on() {
    let folder = Folder::new("foreign");
    // More than a block each, so that the blocks' borders lie where the payload puts them.
    let ids: Vec<u16> = (0..1_300_000).map(|k| (k % 65_521) as u16).collect();
    let (first, second) = ids.split_at(700_000);
    let entries = vec![
        foreign(&folder.0.join("flat.bin"), first, b"", b""),
        foreign(&folder.0.join("numpy.npy"), second, &[7; 131], b"the end"),
    ];
    let tokens = Tokens::open(entries, Width::Two, 4).unwrap();
    assert_eq!(tokens.n_tokens(), 1_300_000);
    let mut random = Random(3);
    for _ in 0..200 {
        let start = random.below(1_300_000) as usize;
        let n = random.below(1_300_001 - start as u64).min(2000) as usize;
        for reading in [Reading::Far, Reading::Near, Reading::Uncached] {
            let mut out: Vec<u16> = Vec::new();
            tokens.read(start as u64, n, reading, &mut out).unwrap();
            assert_eq!(out, &ids[start..start + n]);
        }
    }
    tokens.verify(1, 1).unwrap();
    assert!(matches!(tokens.verify(1, 2), Err(Error::Invalid(_))));
}

#[test]
fn blocks_of_a_foreign_file_are_hashed_if_their_hashes_are_known() {
    let folder = Folder::new("foreign-hashes");
    let path = folder.0.join("flat.bin");
    let mut shard = foreign(&path, &[1, 2, 3], b"who", b"more");
    shard.blocks = Some(vec![hash(&[1, 0, 2, 0, 3, 0])]);
    let tokens = Tokens::open(vec![shard.clone()], Width::Two, 1).unwrap();
    let mut out: Vec<u16> = Vec::new();
    tokens.read(0, 3, Reading::Far, &mut out).unwrap();
    assert_eq!(out, [1, 2, 3]);
    fs::write(&path, b"who\x01\0\x05\0\x03\0more").unwrap();
    let tokens = Tokens::open(vec![shard.clone()], Width::Two, 1).unwrap();
    let error = tokens.read(0, 1, Reading::Far, &mut out).unwrap_err();
    assert!(matches!(error, Error::Corrupt { offset: 3, .. }), "{error}");
    shard.blocks = Some(vec![0, 0]);
    let error = Tokens::open(vec![shard], Width::Two, 1).unwrap_err();
    assert!(error.to_string().contains("2 hashes"), "{error}");
}

#[test]
fn a_foreign_file_that_is_too_short_is_refused_when_it_is_opened() {
    let folder = Folder::new("foreign-short");
    let path = folder.0.join("flat.bin");
    for (tokens, payload) in [(4, 0), (3, 1), (0, 7), (1, u64::MAX), (u64::MAX / 2, 2)] {
        let mut shard = foreign(&path, &[1, 2, 3], b"", b"");
        (shard.tokens, shard.payload) = (tokens, payload);
        assert!(Tokens::open(vec![shard], Width::Two, 1).is_err());
    }
    // A shard of ours has the exact size that its header says.
    let mut writer = ShardWriter::new(layout(&folder.0, 100, 10)).unwrap();
    writer.add(&[1, 2]).unwrap();
    let shard = entry(&folder.0, &writer.finish().unwrap()[0]);
    let bytes = fs::read(&shard.path).unwrap();
    fs::write(&shard.path, [&bytes[..], b"x"].concat()).unwrap();
    let error = Tokens::open(vec![shard], Width::Two, 1).unwrap_err();
    assert!(
        error.to_string().contains("expected a file of 1030 bytes"),
        "{error}"
    );
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
    let tokens = Tokens::open(vec![entry(&folder.0, &record)], Width::Two, 8).unwrap();
    let rows = Windows::new(Order::Sequential, 0, tokens.n_tokens(), 1000, 1000).unwrap();
    let filler = Filler::new(vec![Arc::new(tokens)], rows, Masked::Nothing);
    let stream = Stream::start(&filler, from_row(0, 100), 2, 4).unwrap();
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
