//! Plans: a row is its pieces, whatever plan they come from; windows are one of them.

use std::sync::Arc;

use tinylm_dataloader::batch::{Batch, Filler};
use tinylm_dataloader::format::Width;
use tinylm_dataloader::order::{BLOCK_TOKENS, WINDOW_BLOCKS};
use tinylm_dataloader::plan::Span;
use tinylm_dataloader::read::Reading;
use tinylm_dataloader::slots::Block;
use tinylm_dataloader::{Error, Masked, Order, Piece, Plan, ShardWriter, Stream, Tokens, Windows};

use crate::{
    Arrays, EOS, Folder, Random, dataset, entry, from_row, layout, next_arrays, next_batch,
};

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

    fn most_pieces(&self) -> usize {
        2
    }
}

/// The contract of a plan, token by token.
fn fill(sources: &[Vec<u32>], pieces: &[Piece], row_length: usize, masked: Masked) -> Arrays {
    let mut row = Arrays::default();
    for piece in pieces {
        let source = &sources[piece.source];
        let mut ended = false;
        for position in 0..piece.length {
            let at = piece.start as usize + position;
            let mut target = source.get(at + 1).copied().filter(|_| !ended);
            match masked {
                Masked::Nothing => {}
                Masked::After(eos) => ended |= target == Some(eos),
                Masked::At(eos) => target = target.filter(|&id| id != eos),
            }
            row.tokens.push(source[at].into());
            row.targets.push(target.map_or(-100, i64::from));
            row.positions.push(position as i64);
            row.documents.push(piece.document.into());
        }
        row.ends.push(row.tokens.len() as i64);
    }
    while row.tokens.len() < row_length {
        row.tokens.push(0);
        row.targets.push(-100);
        row.positions.push(0);
        row.documents.push(-1);
    }
    // Two pieces at the most, and the padding.
    row.ends.resize(3, row_length as i64);
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
    for masked in [Masked::Nothing, Masked::After(EOS), Masked::At(EOS)] {
        let filler = Filler::new(sources.clone(), plan.clone(), masked);
        let stream: Stream<i64> = Stream::start(&filler, from_row(0, 7), 2, 3).unwrap();
        for first in (0..140).step_by(7) {
            let mut expected = Arrays::default();
            for row in first..first + 7 {
                let pieces = &rows[(row / 50 + row % 50) % 50];
                expected.extend(&fill(&ids, pieces, 61, masked));
            }
            assert_eq!(next_arrays(&stream), expected);
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
    let mut filler = Filler::new(vec![Arc::new(tokens)], plan, Masked::Nothing);
    let batch: Batch<i64> = filler.row(0, 0).unwrap();
    // The worked example of tests/test_loader.py.
    assert_eq!(batch.tokens(), [1, 2, 3, 4, 5, 0, 0]);
    assert_eq!(batch.targets(), [2, 99, 4, 5, 99, -100, -100]);
    assert_eq!(batch.positions(), [0, 1, 0, 1, 2, 0, 0]);
    assert_eq!(batch.documents(), [0, 0, 1, 1, 1, -1, -1]);
    assert_eq!(batch.ends(), [2, 5, 7]);
}

#[test]
fn what_a_window_of_the_shuffle_needs_is_read_ahead_once_during_the_window_before() {
    // Three windows of the shuffle, of which the last is short.
    let (n_tokens, length, batch_size) = (40_000_000, 1000, 512);
    let mut rows = Windows::new(Order::Shuffle, 5, n_tokens, length, length).unwrap();
    let window = BLOCK_TOKENS / length * WINDOW_BLOCKS;
    for number in [0, 1] {
        let first = number * window;
        let mut spans: Vec<Span> = (first..first + window)
            .step_by(batch_size)
            .flat_map(|i| rows.ahead(3, i, batch_size as u64))
            .collect();
        spans.sort_by_key(|span| span.start);
        assert!(spans.is_sorted_by(|a, b| a.start + a.length <= b.start));
        assert!(spans.len() <= WINDOW_BLOCKS as usize);
        for i in first + window..rows.n_rows().min(first + 2 * window) {
            let start = rows.start(3, i);
            let inside = |span: &Span| (span.start..span.start + span.length).contains(&start);
            assert!(spans.iter().any(inside), "row {i} begins at {start}");
        }
    }
    let last = rows.n_rows() / window * window;
    assert!(rows.ahead(3, last, batch_size as u64).is_empty());
}

#[test]
fn a_filler_reads_ahead_in_the_source_that_its_plan_names() {
    /// A plan of rows of source 0 that will soon need source 1.
    #[derive(Clone, Debug)]
    struct Ahead(Given);

    impl Plan for Ahead {
        fn n_rows(&self) -> u64 {
            self.0.n_rows()
        }

        fn row_length(&self) -> usize {
            self.0.row_length()
        }

        fn row(&mut self, epoch: u64, i: u64, pieces: &mut Vec<Piece>) {
            self.0.row(epoch, i, pieces);
        }

        fn packed(&self) -> bool {
            self.0.packed()
        }

        fn most_pieces(&self) -> usize {
            self.0.most_pieces()
        }

        fn ahead(&mut self, _epoch: u64, _i: u64, _n: u64) -> Vec<Span> {
            vec![Span {
                source: 1,
                start: 100,
                length: 10,
            }]
        }
    }

    let folder = Folder::new("ahead");
    let narrow = folder.0.join("narrow");
    let wide = folder.0.join("wide");
    std::fs::create_dir(&narrow).unwrap();
    std::fs::create_dir(&wide).unwrap();
    let (first, _) = dataset(&narrow, 40, 100, 700);
    let (second, expected) = dataset(&wide, 40, 70_000, 150);
    let sources = vec![first, second];
    let plan = Ahead(Given {
        rows: vec![vec![piece(0, 0, 8, 0)]],
        row_length: 8,
    });
    let mut filler = Filler::new(sources.clone(), plan, Masked::Nothing);
    let block = Block::<i64>::alone(filler.shape(2).size());
    filler.batch(&from_row(0, 2), 0, block).unwrap();
    // The file is empty now, so what is read of it comes from memory.
    std::fs::File::create(wide.join("train-00000.bin")).unwrap();
    let mut found: Vec<u32> = Vec::new();
    sources[1].read(100, 10, Reading::Near, &mut found).unwrap();
    assert_eq!(found, expected[100..110]);
}

#[test]
fn windows_carry_neither_positions_nor_documents() {
    let folder = Folder::new("plain");
    let (tokens, _) = dataset(&folder.0, 30, 100, 2000);
    let rows = Windows::new(Order::Shuffle, 3, tokens.n_tokens(), 32, 32).unwrap();
    let filler = Filler::new(vec![tokens], rows, Masked::Nothing);
    let stream: Stream<i64> = Stream::start(&filler, from_row(0, 4), 1, 1).unwrap();
    let batch = next_batch(&stream).unwrap().unwrap();
    assert_eq!((batch.tokens().len(), batch.targets().len()), (128, 128));
    assert!(batch.positions().is_empty() && batch.documents().is_empty());
    assert!(batch.ends().is_empty());
    assert_eq!(batch.into_block().len(), 256);
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
        vec![piece(0, 0, 1, 0), piece(1, 0, 1, 1), piece(0, 0, 1, 2)],
    ] {
        let plan = Given {
            rows: vec![wrong],
            row_length: 8,
        };
        let mut filler = Filler::new(sources.clone(), plan, Masked::Nothing);
        let row: Result<Batch<i64>, _> = filler.row(0, 0);
        assert!(matches!(row, Err(Error::Invalid(_))));
    }
}
