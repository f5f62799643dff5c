//! The memory of batches: nobody ever writes what somebody has.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tinylm_dataloader::batch::Filler;
use tinylm_dataloader::slots::{Block, Owned, Pool};
use tinylm_dataloader::{Batch, Masked, Order, Stream, Windows};

use crate::{Arrays, EOS, Folder, Random, dataset, from_row, next_arrays, next_batch};

const SIZE: usize = 16;

/// What the pool should be: the blocks that are out, what was written to each, and how many more
/// lie free.
#[derive(Default)]
struct Model {
    out: HashMap<usize, i64>,
    free: usize,
}

#[test]
fn a_block_is_given_to_one_owner_and_back_only_by_him() {
    for seed in 0..200 {
        let mut random = Random(1000 * seed);
        let (given, most) = (random.below(4) as usize, random.below(6) as usize);
        let memory = (0..given).map(|_| Box::new(vec![-1_i64; SIZE]) as Owned<i64>);
        let mut pool: Option<Arc<Pool<i64>>> = Some(Pool::new(SIZE, most, memory.collect()));
        let keeps = most.max(given);
        let mut model = Model {
            free: given,
            ..Model::default()
        };
        let mut held: Vec<Block<i64>> = Vec::new();
        let mut known: HashSet<usize> = HashSet::new();
        for stamp in 0..200 {
            match random.below(5) {
                0 | 1 => {
                    let Some(pool) = &pool else { continue };
                    let mut block = pool.take();
                    let place = block.as_ptr().addr();
                    assert!(!model.out.contains_key(&place), "it was still in use");
                    assert_eq!(block.len(), SIZE);
                    if model.free > 0 {
                        model.free -= 1;
                    } else {
                        // Fresh, though it may lie where one lay that was given to the system.
                        assert!(block.iter().all(|&x| x == 0));
                    }
                    known.insert(place);
                    block.fill(stamp);
                    model.out.insert(place, stamp);
                    held.push(block);
                }
                2 | 3 if !held.is_empty() => {
                    let block = held.swap_remove(random.below(held.len() as u64) as usize);
                    model.out.remove(&block.as_ptr().addr());
                    model.free = (model.free + 1).min(keeps);
                    drop(block);
                }
                // Now and then the stream ends before its batches do.
                4 if random.below(100) == 0 => pool = None,
                _ => {}
            }
            for block in &held {
                let stamp = model.out[&block.as_ptr().addr()];
                assert!(block.iter().all(|&x| x == stamp), "it was overwritten");
            }
        }
    }
}

#[test]
fn memory_of_another_size_is_not_used() {
    let memory: Vec<Owned<i64>> = vec![Box::new(vec![5; SIZE + 1]), Box::new(vec![5; SIZE])];
    let pool = Pool::new(SIZE, 0, memory);
    let blocks = [pool.take(), pool.take()];
    assert_eq!(blocks[0][0], 5);
    assert_eq!((blocks[1].len(), blocks[1][0]), (SIZE, 0));
}

#[test]
fn batches_that_are_kept_stay_what_they_were() {
    let folder = Folder::new("kept");
    let (tokens, _) = dataset(&folder.0, 300, 100, 2000);
    let rows = Windows::new(Order::Shuffle, 3, tokens.n_tokens(), 32, 32).unwrap();
    let filler = Filler::new(vec![Arc::clone(&tokens)], rows, Masked::After(EOS));
    let mut random = Random(5);
    for (threads, prefetch) in [(1, 1), (1, 3), (3, 2), (4, 8)] {
        let stream: Stream<i64> =
            Stream::start(&filler, from_row(0, 8), threads, prefetch).unwrap();
        let mut kept: Vec<(Batch<i64>, Arrays)> = Vec::new();
        for _ in 0..300 {
            let batch = next_batch(&stream).unwrap().unwrap();
            let copy = Arrays::from(&batch);
            kept.push((batch, copy));
            while random.below(3) > 0 && !kept.is_empty() {
                let (batch, copy) = kept.swap_remove(random.below(kept.len() as u64) as usize);
                assert_eq!(Arrays::from(&batch), copy);
            }
        }
        drop(stream);
        assert!(
            kept.iter()
                .all(|(batch, copy)| Arrays::from(batch) == *copy)
        );
    }
}

#[test]
fn a_consumer_that_drops_its_batches_gets_the_same_memory_again() {
    let folder = Folder::new("again");
    let (tokens, _) = dataset(&folder.0, 300, 100, 2000);
    let rows = Windows::new(Order::Shuffle, 3, tokens.n_tokens(), 32, 32).unwrap();
    let filler = Filler::new(vec![tokens], rows, Masked::Nothing);
    let lent: Vec<Vec<i64>> = vec![vec![7; filler.shape(8).size()]; 5];
    let places: HashSet<usize> = lent.iter().map(|block| block.as_ptr().addr()).collect();
    let lent = lent.into_iter().map(|block| Box::new(block) as Owned<i64>);
    let stream = Stream::start_in(&filler, from_row(0, 8), 1, 3, lent.collect()).unwrap();
    for _ in 0..200 {
        // Three wait, one is in work, and this one is read.
        let block = next_batch(&stream).unwrap().unwrap().into_block();
        assert!(places.contains(&block.as_ptr().addr()));
    }
}

#[test]
fn two_consumers_get_each_batch_once() {
    let folder = Folder::new("two");
    let (tokens, _) = dataset(&folder.0, 300, 100, 2000);
    let rows = Windows::new(Order::Sequential, 0, tokens.n_tokens(), 8, 8).unwrap();
    let slice = tinylm_dataloader::Slice {
        end_row: Some(1000),
        ..from_row(0, 2)
    };
    let filler = Filler::new(vec![tokens], rows, Masked::Nothing);
    let one: Stream<i64> = Stream::start(&filler, slice.clone(), 1, 1).unwrap();
    let expected: Vec<Arrays> = (0..500).map(|_| next_arrays(&one)).collect();
    let both: Stream<i64> = Stream::start(&filler, slice, 2, 3).unwrap();
    let take = || {
        let mut found = Vec::new();
        while let Some(batch) = next_batch(&both).unwrap() {
            found.push(Arrays::from(&batch));
        }
        found
    };
    let mut found = std::thread::scope(|scope| {
        let other = scope.spawn(take);
        let mut found = take();
        found.extend(other.join().unwrap());
        found
    });
    assert_eq!(found.len(), 500);
    for batch in expected {
        let at = found.iter().position(|other| *other == batch).unwrap();
        found.swap_remove(at);
    }
    assert!(both.next(Duration::ZERO).is_ok());
}
