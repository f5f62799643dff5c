//! Streams: the rows in order, for any threads and ranks, and then an end.

use std::sync::Arc;
use std::time::Duration;

use tinylm_dataloader::batch::{Filler, Slice};
use tinylm_dataloader::{Masked, Order, Plan, Stream, Windows};

use crate::{Arrays, EOS, Folder, dataset, from_row, next_arrays, next_batch};

#[test]
fn streams_are_rows_in_order_for_any_threads_and_ranks() {
    let folder = Folder::new("streams");
    let (tokens, _) = dataset(&folder.0, 300, 100, 2000);
    for order in [Order::Shuffle, Order::Sequential, Order::Random] {
        let rows = Windows::new(order, 3, tokens.n_tokens(), 32, 32).unwrap();
        let mut filler = Filler::new(vec![Arc::clone(&tokens)], rows.clone(), Masked::After(EOS));
        for (threads, prefetch, rank, world_size) in [(1, 1, 0, 1), (3, 2, 1, 3), (2, 5, 4, 5)] {
            let slice = Slice {
                rank,
                world_size,
                ..from_row(100, 14)
            };
            let stream = Stream::start(&filler, slice, threads, prefetch).unwrap();
            for number in 0..60 {
                let mut expected = Arrays::default();
                for place in (rank..14).step_by(world_size as usize) {
                    let row = 100 + number * 14 + place;
                    let row = filler.row(row / rows.n_rows(), row % rows.n_rows());
                    expected.extend(&(&row.unwrap()).into());
                }
                assert_eq!(next_arrays(&stream), expected);
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
        let filler = Filler::new(vec![Arc::clone(&tokens)], rows, Masked::Nothing);
        let stream = Stream::start(&filler, slice, 2, 3).unwrap();
        let mut targets = Vec::new();
        while let Some(batch) = next_batch(&stream).unwrap() {
            targets.extend(
                batch
                    .targets()
                    .iter()
                    .filter(|&&id| id != -100)
                    .map(|&id| id as u32),
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
        let filler = Filler::new(vec![Arc::clone(&tokens)], rows.clone(), Masked::Nothing);
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
    let filler = Filler::new(vec![Arc::clone(&tokens)], rows, Masked::Nothing);
    let slice = Slice {
        end_row: Some(7),
        ..from_row(7, 4)
    };
    let stream: Stream<i64> = Stream::start(&filler, slice.clone(), 4, 2).unwrap();
    // The test, the filler and the consumer have one each: there is no thread.
    assert_eq!(Arc::strong_count(&tokens), 3);
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
