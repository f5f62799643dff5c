//! Rows and batches: the stream is the rows in order, and a row is its pieces.

use std::sync::Arc;
use std::time::Duration;

use tinylm_dataloader::batch::{Batch, Filler, Slice};
use tinylm_dataloader::format::Width;
use tinylm_dataloader::read::Reading;
use tinylm_dataloader::{Error, Order, Piece, Plan, ShardWriter, Stream, Tokens, Windows};

use crate::{EOS, Folder, Random, dataset, entry, from_row, layout, next_batch};

#[test]
fn streams_are_rows_in_order_for_any_threads_and_ranks() {
    let folder = Folder::new("streams");
    let (tokens, _) = dataset(&folder.0, 300, 100, 2000);
    for order in [Order::Shuffle, Order::Sequential, Order::Random] {
        let rows = Windows::new(order, 3, tokens.n_tokens(), 32, 32).unwrap();
        let mut filler = Filler::new(vec![Arc::clone(&tokens)], rows.clone(), Some(EOS));
        for (threads, prefetch, rank, world_size) in [(1, 1, 0, 1), (3, 2, 1, 3), (2, 5, 4, 5)] {
            let slice = Slice {
                rank,
                world_size,
                ..from_row(100, 14)
            };
            let stream = Stream::start(&filler, slice, threads, prefetch).unwrap();
            for number in 0..60 {
                let mut expected = Batch::default();
                for place in (rank..14).step_by(world_size as usize) {
                    let row = 100 + number * 14 + place;
                    filler
                        .row(row / rows.n_rows(), row % rows.n_rows(), &mut expected)
                        .unwrap();
                }
                assert_eq!(next_batch(&stream).unwrap().unwrap(), expected);
            }
        }
    }
}

#[test]
fn a_sequential_epoch_has_every_target_once_and_then_ends() {
    let folder = Folder::new("epoch");
    let (tokens, expected) = dataset(&folder.0, 40, 100, 500);
    for context_length in [1, 7, 64, 5000] {
        let n_tokens = tokens.n_tokens();
        let rows = Windows::new(
            Order::Sequential,
            0,
            n_tokens,
            context_length,
            context_length,
        )
        .unwrap();
        let slice = Slice {
            end_row: Some(rows.n_rows()),
            ..from_row(0, 5)
        };
        let filler = Filler::new(vec![Arc::clone(&tokens)], rows, None);
        let stream = Stream::start(&filler, slice, 2, 3).unwrap();
        let mut targets = Vec::new();
        while let Some(batch) = next_batch(&stream).unwrap() {
            targets.extend(
                batch
                    .targets
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
    let rows = Windows::new(Order::Shuffle, 3, tokens.n_tokens(), 32, 32).unwrap();
    for wait in [0, 20] {
        let filler = Filler::new(vec![Arc::clone(&tokens)], rows.clone(), None);
        let stream: Stream<i64> = Stream::start(&filler, from_row(0, 8), 4, 2).unwrap();
        drop(filler);
        std::thread::sleep(Duration::from_millis(wait));
        drop(stream);
        assert_eq!(Arc::strong_count(&tokens), 1);
    }
}

#[test]
fn an_empty_stream_starts_no_thread_and_ends() {
    let folder = Folder::new("empty");
    let (tokens, _) = dataset(&folder.0, 30, 100, 2000);
    let rows = Windows::new(Order::Shuffle, 3, tokens.n_tokens(), 32, 32).unwrap();
    let filler = Filler::new(vec![Arc::clone(&tokens)], rows, None);
    let slice = Slice {
        end_row: Some(7),
        ..from_row(7, 4)
    };
    let stream: Stream<i64> = Stream::start(&filler, slice.clone(), 4, 2).unwrap();
    // One holder is the test, the other the filler: no thread has a clone of it.
    assert_eq!(Arc::strong_count(&tokens), 2);
    assert!(next_batch(&stream).unwrap().is_none());
    for wrong in [
        Slice {
            batch_size: 0,
            ..slice.clone()
        },
        Slice {
            world_size: 5,
            ..slice.clone()
        },
        Slice {
            rank: 1,
            ..slice.clone()
        },
        Slice {
            first_row: 1 << 62,
            ..slice.clone()
        },
    ] {
        assert!(Stream::<i64>::start(&filler, wrong, 1, 1).is_err());
    }
    for (threads, prefetch) in [(0, 1), (1025, 1), (1, 0), (1, 1025)] {
        assert!(Stream::<i64>::start(&filler, slice.clone(), threads, prefetch).is_err());
    }
}

/// A plan of the pieces that it is given, row by row; what a packed plan or a mixture may be.
#[derive(Clone, Debug)]
struct Given {
    rows: Vec<Vec<Piece>>,
    row_length: usize,
}

impl Plan for Given {
    fn n_rows(&self) -> u64 {
        self.rows.len() as u64
    }

    fn row_length(&self) -> usize {
        self.row_length
    }

    fn row(&mut self, epoch: u64, i: u64, pieces: &mut Vec<Piece>) {
        // Each epoch begins with another row.
        let n = self.rows.len();
        pieces.extend(&self.rows[(epoch as usize + i as usize) % n]);
    }

    fn packed(&self) -> bool {
        true
    }
}

/// The contract of a plan, token by token.
fn fill(
    sources: &[Vec<u32>],
    pieces: &[Piece],
    row_length: usize,
    mask_after: Option<u32>,
) -> Batch<i64> {
    let mut row = Batch::default();
    for piece in pieces {
        let source = &sources[piece.source];
        let mut ended = false;
        for position in 0..piece.length {
            let at = piece.start as usize + position;
            let target = source.get(at + 1).copied().filter(|_| !ended);
            ended |= target.is_some() && target == mask_after;
            row.tokens.push(source[at].into());
            row.targets.push(target.map_or(-100, i64::from));
            row.positions.push(position as i64);
            row.documents.push(piece.document.into());
        }
    }
    while row.tokens.len() < row_length {
        row.tokens.push(0);
        row.targets.push(-100);
        row.positions.push(0);
        row.documents.push(-1);
    }
    row
}

fn piece(source: usize, start: u64, length: usize, document: u32) -> Piece {
    Piece {
        source,
        start,
        length,
        document,
    }
}

/// The whole of `tokens` as ids.
fn ids_of(tokens: &Tokens) -> Vec<u32> {
    let mut ids = Vec::new();
    let n = tokens.n_tokens() as usize;
    tokens.read(0, n, Reading::Far, &mut ids).unwrap();
    ids
}

/// Two sources of different widths, in several shards.
fn two_sources(folder: &Folder) -> Vec<Arc<Tokens>> {
    [("narrow", 100, 700), ("wide", 70_000, 150)]
        .into_iter()
        .map(|(name, vocab_size, shard_tokens)| {
            let path = folder.0.join(name);
            std::fs::create_dir(&path).unwrap();
            dataset(&path, 40, vocab_size, shard_tokens).0
        })
        .collect()
}

#[test]
fn a_row_of_several_pieces_is_its_pieces_and_then_padding() {
    let folder = Folder::new("pieces");
    let sources = two_sources(&folder);
    let ids: Vec<Vec<u32>> = sources.iter().map(|tokens| ids_of(tokens)).collect();
    let mut random = Random(11);
    let rows: Vec<Vec<Piece>> = (0..50)
        .map(|_| {
            let of = |document| {
                let source = random.below(2) as usize;
                let length = random.below(30);
                // Up to the last token, which has no target.
                let start = random.below(ids[source].len() as u64 - length + 1);
                piece(source, start, length as usize, document)
            };
            (0..2).map(of).collect()
        })
        .collect();
    let plan = Given {
        rows: rows.clone(),
        row_length: 61,
    };
    for mask_after in [None, Some(EOS)] {
        let filler = Filler::new(sources.clone(), plan.clone(), mask_after);
        let stream: Stream<i64> = Stream::start(&filler, from_row(0, 7), 2, 3).unwrap();
        for first in (0..140).step_by(7) {
            let mut expected = Batch::default();
            for row in first..first + 7 {
                let pieces = &rows[(row / 50 + row % 50) % 50];
                let row = fill(&ids, pieces, 61, mask_after);
                expected.tokens.extend(row.tokens);
                expected.targets.extend(row.targets);
                expected.positions.extend(row.positions);
                expected.documents.extend(row.documents);
            }
            assert_eq!(next_batch(&stream).unwrap().unwrap(), expected);
        }
    }
}

#[test]
fn whole_documents_packed_into_a_row_end_with_eos_as_the_last_target() {
    let folder = Folder::new("packed");
    let mut writer = ShardWriter::new(layout(&folder.0, 100, 5)).unwrap();
    writer.add(&[1, 2]).unwrap();
    writer.add(&[3, 4, 5]).unwrap();
    let entries = writer.finish().unwrap();
    let entries = entries.iter().map(|record| entry(&folder.0, record));
    let tokens = Tokens::open(entries.collect(), Width::Two, 2).unwrap();
    let plan = Given {
        rows: vec![vec![piece(0, 0, 2, 0), piece(0, 3, 3, 1)]],
        row_length: 7,
    };
    let mut batch = Batch::<i64>::default();
    let mut filler = Filler::new(vec![Arc::new(tokens)], plan, None);
    filler.row(0, 0, &mut batch).unwrap();
    // The worked example of tests/test_loader.py.
    assert_eq!(batch.tokens, [1, 2, 3, 4, 5, 0, 0]);
    assert_eq!(batch.targets, [2, 99, 4, 5, 99, -100, -100]);
    assert_eq!(batch.positions, [0, 1, 0, 1, 2, 0, 0]);
    assert_eq!(batch.documents, [0, 0, 1, 1, 1, -1, -1]);
}

#[test]
fn windows_carry_neither_positions_nor_documents() {
    let folder = Folder::new("plain");
    let (tokens, _) = dataset(&folder.0, 30, 100, 2000);
    let rows = Windows::new(Order::Shuffle, 3, tokens.n_tokens(), 32, 32).unwrap();
    let filler = Filler::new(vec![tokens], rows, None);
    let stream: Stream<i64> = Stream::start(&filler, from_row(0, 4), 1, 1).unwrap();
    let batch = next_batch(&stream).unwrap().unwrap();
    assert_eq!((batch.tokens.len(), batch.targets.len()), (128, 128));
    assert!(batch.positions.is_empty() && batch.documents.is_empty());
}

#[test]
fn pieces_that_do_not_fit_are_an_error_of_their_row() {
    let folder = Folder::new("bugs");
    let sources = two_sources(&folder);
    let n = sources[0].n_tokens();
    for wrong in [
        vec![piece(2, 0, 1, 0)],
        vec![piece(0, n, 1, 0)],
        vec![piece(0, n - 1, 2, 0)],
        vec![piece(0, 0, 4, 0), piece(1, 0, 5, 1)],
    ] {
        let plan = Given {
            rows: vec![wrong],
            row_length: 8,
        };
        let mut filler = Filler::new(sources.clone(), plan, None);
        let row = filler.row(0, 0, &mut Batch::<i64>::default());
        assert!(matches!(row, Err(Error::Invalid(_))));
    }
}
