//! The native step against a forward pass in plain loops over float64.

use std::sync::Arc;

use tinylm_inference::{
    Builder, Cache, Chance, Ids, Kind, Level, Network, Reading, Run, Shape, Table, Want,
};

mod model;

use model::{Naive, network, parts, shape};

/// Pages of three texts of up to 208 tokens each, not in order.
const PAGES: [i32; 39] = {
    let mut pages = [0; 39];
    let mut i = 0;
    while i < 39 {
        pages[i] = (i as i32 * 16 + 5) % 39;
        i += 1;
    }
    pages
};
const TABLE: Table<'static> = Table {
    pages: &PAGES,
    width: 13,
};

fn cache(network: Arc<Network>) -> Cache {
    Cache::new(network, PAGES.len()).unwrap()
}

/// The logits after every token of some runs.
fn read(
    cache: &mut Cache,
    shape: &Shape,
    runs: &[Run],
    tokens: &[u32],
    threads: usize,
) -> Vec<f32> {
    let wanted: Vec<usize> = (0..tokens.len()).collect();
    let mut logits = vec![0.0; tokens.len() * shape.vocab_size];
    let reading = Reading {
        table: TABLE,
        runs,
        tokens,
        wanted: &wanted,
        ids: Ids {
            vocab_size: shape.vocab_size,
            missing: &[],
        },
        layers: shape.n_layers,
        threads,
    };
    cache
        .read(&reading, &mut Want::Logits(&mut logits), &mut || Ok(()))
        .unwrap();
    logits
}

fn run(text: usize, start: usize, count: usize) -> Run {
    Run { text, start, count }
}

fn tokens(shape: &Shape, count: usize) -> Vec<u32> {
    (0..count)
        .map(|i| (i * i * 7 + 3 * i) as u32 % shape.vocab_size as u32)
        .collect()
}

#[test]
fn all_levels_and_kinds_give_the_logits_of_plain_loops() {
    for architecture in ["llama3", "qwen3", "gpt2"] {
        let shape = shape(architecture, true);
        let (parts, ids) = (parts(&shape), tokens(&shape, 40));
        let naive = Naive {
            shape: &shape,
            parts: &parts,
        };
        let wanted: Vec<f64> = naive.logits(&ids).concat();
        let scale = wanted.iter().fold(0.0f64, |top, x| top.max(x.abs()));
        for level in Level::all() {
            for (kind, most) in [
                (Kind::Float32, 1e-5),
                (Kind::Bfloat16, 0.03),
                (Kind::Int8, 0.05),
            ] {
                let network = network(&shape, &parts, kind, level);
                let mut cache = cache(network);
                let found = read(&mut cache, &shape, &[run(0, 0, ids.len())], &ids, 1);
                let pairs = found.iter().zip(&wanted);
                let worst = pairs.fold(0.0f64, |top, (a, b)| top.max((f64::from(*a) - b).abs()));
                assert!(
                    worst <= most * scale,
                    "{architecture} {level} {kind:?}: {worst} of {scale}"
                );
            }
        }
    }
}

/// A text alone, one token per call; then beside others, in pieces and by two threads.
#[test]
fn company_chunks_and_threads_change_no_bit() {
    for (architecture, kind) in [
        ("qwen3", Kind::Float32),
        ("llama3", Kind::Int8),
        ("gpt2", Kind::Bfloat16),
    ] {
        let shape = shape(architecture, false);
        let parts = parts(&shape);
        for level in Level::all() {
            let network = network(&shape, &parts, kind, level);
            let ids = tokens(&shape, 150);
            let mut alone = cache(Arc::clone(&network));
            let each = ids
                .iter()
                .enumerate()
                .map(|(i, id)| read(&mut alone, &shape, &[run(0, i, 1)], &[*id], 1));
            let wanted: Vec<f32> = each.collect::<Vec<_>>().concat();
            // Three texts that begin alike, of which the second goes on in the second call.
            let mut cache = cache(network);
            let first = [&ids[..150], &ids[..70], &ids[..33]].concat();
            let runs = [run(0, 0, 150), run(1, 0, 70), run(2, 0, 33)];
            let found = read(&mut cache, &shape, &runs, &first, 2);
            let width = shape.vocab_size;
            assert!(found[..150 * width] == wanted[..], "{level}: with others");
            assert!(
                found[150 * width..220 * width] == wanted[..70 * width],
                "{level}: second"
            );
            let runs = [run(2, 20, 5), run(1, 70, 80)];
            let second = [&ids[20..25], &ids[70..150]].concat();
            let found = read(&mut cache, &shape, &runs, &second, 2);
            assert!(
                found[..5 * width] == wanted[20 * width..25 * width],
                "{level}: taken back"
            );
            assert!(
                found[5 * width..] == wanted[70 * width..],
                "{level}: in pieces"
            );
        }
    }
}

/// Many texts that go on by a token each are shared out over the threads.
#[test]
fn texts_that_are_shared_out_over_threads_give_what_they_give_together() {
    for (architecture, kind) in [("qwen3", Kind::Float32), ("llama3", Kind::Int8)] {
        let shape = shape(architecture, false);
        let network = network(&shape, &parts(&shape), kind, Level::best());
        let ids = tokens(&shape, 127);
        let wanted: Vec<usize> = (0..127).filter(|place| place % 3 != 1).collect();
        let pages: Vec<i32> = (0..127).rev().collect();
        let found = [1, 2].map(|threads| {
            let mut cache = Cache::new(Arc::clone(&network), 127).unwrap();
            let mut logits = vec![0.0; wanted.len() * shape.vocab_size];
            for start in 0..2 {
                let runs: Vec<Run> = (0..127)
                    .map(|i| (i * 5) % 127)
                    .map(|text| run(text, start, 1))
                    .collect();
                let reading = Reading {
                    table: Table {
                        pages: &pages,
                        width: 1,
                    },
                    runs: &runs,
                    tokens: &ids,
                    wanted: &wanted,
                    ids: Ids {
                        vocab_size: shape.vocab_size,
                        missing: &[],
                    },
                    layers: shape.n_layers,
                    threads,
                };
                let want = &mut Want::Logits(&mut logits);
                cache.read(&reading, want, &mut || Ok(())).unwrap();
            }
            logits
        });
        assert!(found[0] == found[1], "{architecture}");
        assert!(found[0].chunks(shape.vocab_size).all(|row| row[0] != 0.0));
    }
}

#[test]
fn pages_are_shared_and_copied_and_tokens_are_drawn() {
    let shape = shape("qwen3", true);
    let network = network(&shape, &parts(&shape), Kind::Float32, Level::best());
    let ids = tokens(&shape, 41);
    let mut cache = cache(network);
    let wanted = read(&mut cache, &shape, &[run(0, 0, 41)], &ids, 1);
    let wanted = &wanted[40 * 37..];
    // The second text goes on from two pages of the first, and from a copy of the third.
    let page = |number: usize| PAGES[number] as usize;
    cache.copy(page(2), page(15)).unwrap();
    let shared = [&PAGES[..2], &[PAGES[15]]].concat();
    let shared = Table {
        pages: &shared,
        width: 3,
    };
    let mut logits = vec![0.0; 37];
    let mut reading = Reading {
        table: shared,
        runs: &[run(0, 40, 1)],
        tokens: &ids[40..],
        wanted: &[0],
        ids: Ids {
            vocab_size: 37,
            missing: &[],
        },
        layers: 2,
        threads: 1,
    };
    let want = &mut Want::Logits(&mut logits);
    cache.read(&reading, want, &mut || Ok(())).unwrap();
    assert!(logits == wanted);
    let used = cache.bytes();
    cache.grow(2).unwrap();
    assert_eq!(cache.bytes(), used);
    assert!(cache.copy(0, 40).is_ok());
    // Greedy takes the largest that may be drawn.
    let best = (0..37)
        .max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
        .unwrap() as u32;
    let mut drawn = [None];
    let mut draw = |missing: &'static [u32], drawn: &mut [Option<u32>]| {
        reading.ids.missing = missing;
        let chance = [Chance {
            temperature: 0.0,
            number: 0.0,
        }];
        cache
            .read(&reading, &mut Want::Tokens(&chance, drawn), &mut || Ok(()))
            .unwrap();
    };
    draw(&[], &mut drawn);
    assert_eq!(drawn, [Some(best)]);
    draw(vec![best].leak(), &mut drawn);
    assert!(drawn[0].is_some() && drawn[0] != Some(best));
    let all_but_one: Vec<u32> = (0..40).filter(|id| *id != 3).collect();
    draw(all_but_one.leak(), &mut drawn);
    assert_eq!(drawn, [Some(3)]);
}

#[test]
fn no_token_is_drawn_from_what_is_no_number() {
    for kind in [Kind::Float32, Kind::Bfloat16, Kind::Int8] {
        for level in Level::all() {
            let shape = shape("llama3", true);
            let mut parts = parts(&shape);
            let down = parts.iter_mut().find(|part| part.0 == "1.down").unwrap();
            down.1[5] = f32::NAN;
            let network = network(&shape, &parts, kind, level);
            let mut cache = cache(network);
            let reading = Reading {
                table: TABLE,
                runs: &[run(0, 0, 2)],
                tokens: &[1, 2],
                wanted: &[1],
                ids: Ids {
                    vocab_size: 37,
                    missing: &[],
                },
                layers: 2,
                threads: 1,
            };
            let (chance, mut drawn) = (
                [Chance {
                    temperature: 1.0,
                    number: 0.5,
                }],
                [Some(0)],
            );
            let want = &mut Want::Tokens(&chance, &mut drawn);
            cache.read(&reading, want, &mut || Ok(())).unwrap();
            assert_eq!(drawn, [None], "{kind:?} {level}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_read() {
    let shape = shape("qwen3", true);
    let network = network(&shape, &parts(&shape), Kind::Float32, Level::best());
    let mut cache = Cache::new(network, 3).unwrap();
    let mut logits = [0.0; 37];
    let mut fails = |runs: &[Run], tokens: &[u32], wanted: &[usize], what: &str| {
        let reading = Reading {
            table: Table {
                pages: &[0, 1, 1, 3, -1, 2],
                width: 1,
            },
            runs,
            tokens,
            wanted,
            ids: Ids {
                vocab_size: 37,
                missing: &[],
            },
            layers: 2,
            threads: 1,
        };
        let error = cache.read(&reading, &mut Want::Logits(&mut logits), &mut || Ok(()));
        let message = error.unwrap_err().to_string();
        assert!(message.contains(what), "{message}");
    };
    fails(
        &[run(0, 0, 1)],
        &[37],
        &[0],
        "id 37: the vocabulary is 0 to 36",
    );
    fails(&[run(6, 0, 1)], &[1], &[0], "text 6: there are 6");
    fails(&[run(3, 0, 1)], &[1], &[0], "page 3: there are 3");
    fails(&[run(4, 0, 1)], &[1], &[0], "page -1: there are 3");
    fails(
        &[run(0, 16, 1)],
        &[1],
        &[0],
        "17 tokens do not fit a cache of 16",
    );
    fails(
        &[run(0, usize::MAX, 1)],
        &[1],
        &[0],
        "tokens do not fit a cache of 16",
    );
    for text in [1, 2] {
        fails(
            &[run(1, 0, 1), run(text, 0, 1)],
            &[1; 2],
            &[0],
            "two texts write to page 1",
        );
    }
    fails(&[run(0, 0, 2)], &[1], &[0], "1 tokens: the runs have 2");
    fails(&[run(0, 0, 1)], &[1], &[1], "wanted must be places");
    let all: Vec<u32> = (0..37).rev().chain([0, 40]).collect();
    let reading = Reading {
        table: TABLE,
        runs: &[run(0, 0, 1)],
        tokens: &[1],
        wanted: &[0],
        ids: Ids {
            vocab_size: 37,
            missing: &all,
        },
        layers: 2,
        threads: 1,
    };
    let error = cache.read(&reading, &mut Want::Logits(&mut logits), &mut || Ok(()));
    let message = error.unwrap_err().to_string();
    assert!(
        message.contains("missing has all ids from 0 to 36"),
        "{message}"
    );
    let message = cache.room(1 << 60, 37).unwrap_err().to_string();
    assert!(message.contains("no memory for the logits"), "{message}");
    let message = cache.room(1, 1 << 40).unwrap_err().to_string();
    assert!(message.contains("must be 1 to 37"), "{message}");
    for more in [i32::MAX as usize - 2, usize::MAX] {
        let message = cache.grow(more).unwrap_err().to_string();
        assert!(message.contains("must be at most 34359738352"), "{message}");
    }
    // Pages that no token came to cost nothing.
    cache.grow(i32::MAX as usize - 3).unwrap();
    assert_eq!(cache.bytes(), 0);
    let mut other = shape;
    other.n_kv_heads = 3;
    assert!(Builder::new(other, Kind::Float32, Level::best()).is_err());
}
