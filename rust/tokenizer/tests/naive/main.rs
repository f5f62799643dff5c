//! The fast paths against a naive twin that fits on a page, on thousands of random inputs.

use std::collections::HashMap;

mod fuzz;

use tinylm_tokenizer::{
    AddedToken, DecodeStream, Error, Goal, ModelSpec, Policy, Spec, Ties, Tokenizer, Trained,
    WordCounts, no_interrupt, train_bpe,
};

/// A generator of random numbers: xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound
    }

    fn text(&mut self, fragments: &[&str], longest: usize) -> String {
        (0..self.below(longest))
            .map(|_| fragments[self.below(fragments.len())])
            .collect()
    }

    fn bytes(&mut self, longest: usize) -> Vec<u8> {
        (0..self.below(longest))
            .map(|_| self.below(256) as u8)
            .collect()
    }
}

const FRAGMENTS: [&str; 24] = [
    "a", "b", "ab", "aa", "abc", " ", "  ", "\n", "\r\n", "'s", "'LL", "1", "234", ".", "!/", "é",
    "\u{301}", "中", "文字", "Ab", "ABc", "\u{3000}", "😀", "<|end|>",
];
const PATTERNS: [&str; 8] = [
    "gpt2",
    "gpt4",
    "o200k",
    "llama3",
    "qwen2",
    "character",
    "word",
    "whole",
];

/// Merge the earliest listed pair, the leftmost first, until none is left.
fn naive_encode(bytes: &[u8], trained: &Trained) -> Vec<u32> {
    let id_of: HashMap<&[u8], u32> = trained
        .tokens
        .iter()
        .map(Vec::as_slice)
        .zip(0u32..)
        .collect();
    let mut word: Vec<u32> = bytes.iter().map(|&b| u32::from(b)).collect();
    loop {
        let rank = |at: usize| {
            trained
                .merges
                .iter()
                .position(|m| *m == (word[at], word[at + 1]))
        };
        let best = (0..word.len().saturating_sub(1))
            .filter_map(|at| Some((rank(at)?, at)))
            .min();
        let Some((_, at)) = best else { return word };
        let (left, right) = (word[at] as usize, word[at + 1] as usize);
        let joined = [trained.tokens[left].as_slice(), &trained.tokens[right]].concat();
        word.splice(at..at + 2, [id_of[joined.as_slice()]]);
    }
}

/// Count all pairs anew for each merge.
fn naive_train(words: &[(Vec<u8>, u64)], goal: &Goal) -> Trained {
    let mut trained = Trained {
        tokens: (0..=255u8).map(|b| vec![b]).collect(),
        merges: Vec::new(),
    };
    let mut words: Vec<(Vec<u32>, u64)> = words
        .iter()
        .map(|(w, n)| (w.iter().map(|&b| u32::from(b)).collect(), *n))
        .collect();
    while trained.tokens.len() < goal.target {
        let mut counts: HashMap<(u32, u32), u64> = HashMap::new();
        for (word, n) in &words {
            for pair in word.windows(2) {
                *counts.entry((pair[0], pair[1])).or_default() += n;
            }
        }
        let bytes = |id: u32| trained.tokens[id as usize].clone();
        counts.retain(|p, _| bytes(p.0).len() + bytes(p.1).len() <= goal.max_token_length);
        // A byte's place in GPT-2's alphabet: characters that are printable stand for themselves.
        let place = |id: u32| match id {
            0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => (0, id),
            _ => (1, id),
        };
        let best = counts.into_iter().max_by(|(p, m), (q, n)| {
            m.cmp(n).then_with(|| match goal.ties {
                Ties::Ids => q.cmp(p),
                Ties::HuggingFace => (place(q.0), place(q.1)).cmp(&(place(p.0), place(p.1))),
                Ties::Bytes => (bytes(p.0), bytes(p.1)).cmp(&(bytes(q.0), bytes(q.1))),
            })
        });
        let Some(((left, right), count)) = best else {
            break;
        };
        if count < goal.min_frequency {
            break;
        }
        let joined = [bytes(left), bytes(right)].concat();
        let known = trained.tokens.iter().position(|t| *t == joined);
        let id = known.unwrap_or(trained.tokens.len()) as u32;
        if known.is_none() {
            trained.tokens.push(joined);
        }
        if !trained.merges.contains(&(left, right)) {
            trained.merges.push((left, right));
        }
        for (word, _) in &mut words {
            let mut at = 0;
            while at + 1 < word.len() {
                if (word[at], word[at + 1]) == (left, right) {
                    word.splice(at..at + 2, [id]);
                }
                at += 1;
            }
        }
    }
    trained
}

fn train(texts: &[&[u8]], pattern: &str, goal: Goal) -> Trained {
    let mut counts = WordCounts::new(pattern, &[], 1).unwrap();
    counts.add(texts, &mut no_interrupt).unwrap();
    let target = counts.room(goal.target).unwrap();
    let words = counts.words().unwrap();
    train_bpe(&words, Goal { target, ..goal }, &mut |_, _| Ok(())).unwrap()
}

fn added(content: &str, id: u32, special: bool, late: bool) -> AddedToken {
    let content = content.into();
    AddedToken {
        content,
        id,
        special,
        late,
    }
}

fn tokenizer(trained: &Trained, pattern: &str, whole_pieces: bool) -> Tokenizer {
    let end = trained.tokens.len() as u32;
    Tokenizer::new(Spec {
        tokens: trained.tokens.iter().cloned().zip(0..).collect(),
        model: ModelSpec::Bpe {
            merges: Some(trained.merges.clone()),
            whole_pieces,
        },
        pattern: pattern.into(),
        added: vec![
            added("<|end|>", end, true, false),
            added("<|end|>>", end + 1, true, false),
        ],
    })
    .unwrap()
}

#[test]
fn training_equals_the_naive_one() {
    let mut random = Random(1);
    for round in 0..400 {
        let goal = Goal {
            target: 300,
            min_frequency: 1 + random.below(3) as u64,
            max_token_length: [usize::MAX, 1, 2, 5][random.below(4)],
            ties: [Ties::Ids, Ties::Bytes, Ties::HuggingFace][random.below(3)],
            ..Goal::new(300)
        };
        let texts: Vec<Vec<u8>> = (0..=random.below(6))
            .map(|_| match round % 3 {
                0 => random.text(&["a", "b"], 40).into_bytes(),
                1 => random.text(&FRAGMENTS, 30).into_bytes(),
                _ => random.bytes(30),
            })
            .filter(|text| !text.is_empty())
            .collect();
        if texts.is_empty() {
            continue;
        }
        let slices: Vec<&[u8]> = texts.iter().map(Vec::as_slice).collect();
        let words: Vec<(Vec<u8>, u64)> = texts.iter().map(|text| (text.clone(), 1)).collect();
        let naive = naive_train(&words, &goal);
        assert_eq!(
            train(&slices, "whole", goal.clone()),
            naive,
            "{texts:?} {goal:?}"
        );
    }
}

#[test]
fn encoding_equals_the_naive_one_on_short_and_long_pieces() {
    let mut random = Random(2);
    for _ in 0..60 {
        let corpus = random.text(&FRAGMENTS, 400) + "ab";
        let trained = train(&[corpus.as_bytes()], "whole", Goal::new(330));
        let tokenizer = tokenizer(&trained, "whole", false);
        for longest in [4, 20, 90, 110, 300] {
            let text = random.text(&FRAGMENTS, longest);
            let ids = tokenizer
                .encode(text.as_bytes(), &Policy::Text, &mut no_interrupt)
                .unwrap();
            assert_eq!(ids, naive_encode(text.as_bytes(), &trained), "{text:?}");
        }
    }
}

#[test]
fn clauses_without_blanks_equal_the_naive_encoding() {
    // Characters of two, three and four bytes that share some of them, and bytes that are none.
    let letters = ["中", "丮", "文", "字", "éa", "ü", "😀", "😁", "a", "ʹ"];
    let mut random = Random(5);
    let merges = |trained: &Trained| Some(trained.merges.clone());
    for round in 0..12 {
        let kinds = 2 + random.below(letters.len() - 1);
        let mut text = |longest| random.text(&letters[..kinds], longest).into_bytes();
        let corpus: Vec<Vec<u8>> = (0..20).map(|_| text(40)).collect();
        let corpus: Vec<&[u8]> = corpus.iter().map(Vec::as_slice).collect();
        let clauses: Vec<Vec<u8>> = (0..60).map(|_| text(30)).collect();
        let trained = train(&corpus, "whole", Goal::new(256 + 8 * round));
        // By its list, by it with whole pieces, and by the ranks of tiktoken's rule.
        for (merges, whole_pieces) in [
            (merges(&trained), false),
            (merges(&trained), true),
            (None, true),
        ] {
            let tokenizer = Tokenizer::new(Spec {
                tokens: trained.tokens.iter().cloned().zip(0..).collect(),
                model: ModelSpec::Bpe {
                    merges,
                    whole_pieces,
                },
                pattern: "whole".into(),
                added: vec![],
            })
            .unwrap();
            for clause in &clauses {
                let cut = random.below(clause.len() + 1);
                for piece in [clause, &clause[..cut], &clause[cut..]] {
                    let ids = tokenizer.encode(piece, &Policy::Raise, &mut no_interrupt);
                    assert_eq!(ids, Ok(naive_encode(piece, &trained)), "{piece:?}");
                }
            }
        }
    }
}

#[test]
fn every_text_and_every_row_of_bytes_survives_the_round_trip() {
    let mut random = Random(3);
    for pattern in PATTERNS {
        let trained = train(
            &[FRAGMENTS.concat().repeat(9).as_bytes()],
            pattern,
            Goal::new(300),
        );
        for whole in [false, true] {
            let tokenizer = tokenizer(&trained, pattern, whole);
            for _ in 0..2000 {
                let text = random.text(&FRAGMENTS, 20).into_bytes();
                for bytes in [text, random.bytes(20)] {
                    for policy in [Policy::Allow, Policy::Text] {
                        let ids = tokenizer
                            .encode(&bytes, &policy, &mut no_interrupt)
                            .unwrap();
                        assert_eq!(tokenizer.decode(&ids).unwrap(), bytes);
                    }
                }
            }
        }
    }
}

#[test]
fn a_text_may_be_cut_where_the_tokenizer_says() {
    let mut random = Random(4);
    for pattern in PATTERNS {
        let trained = train(
            &[FRAGMENTS.concat().repeat(9).as_bytes()],
            pattern,
            Goal::new(300),
        );
        let tokenizer = tokenizer(&trained, pattern, false);
        let encode = |text: &[u8]| {
            tokenizer
                .encode(text, &Policy::Allow, &mut no_interrupt)
                .unwrap()
        };
        let mut cuts = 0;
        for _ in 0..3000 {
            let text = random.text(&FRAGMENTS, 24).into_bytes();
            let shown = &text[..random.below(text.len() + 1)];
            if let Some(cut) = tokenizer.cut(shown, &Policy::Allow).unwrap() {
                cuts += 1;
                let parts = [encode(&text[..cut]), encode(&text[cut..])].concat();
                assert_eq!(parts, encode(&text), "{pattern} {text:?} at {cut}");
            }
        }
        assert!(cuts > 500 || pattern == "whole", "{pattern}: {cuts} cuts");
    }
}

#[test]
fn batches_and_counts_do_not_depend_on_threads() {
    let mut random = Random(5);
    let texts: Vec<Vec<u8>> = (0..30)
        .map(|i| {
            random
                .text(&FRAGMENTS, 60)
                .repeat(if i % 7 == 0 { 40_000 } else { 9 })
                .into()
        })
        .collect();
    let texts: Vec<&[u8]> = texts.iter().map(Vec::as_slice).collect();
    let special = ["<|end|>".to_string()];
    let learn = |threads: usize| {
        let mut counts = WordCounts::new("gpt4", &special, threads).unwrap();
        counts.add(&texts, &mut no_interrupt).unwrap();
        let goal = Goal::new(counts.room(320).unwrap());
        train_bpe(&counts.words().unwrap(), goal, &mut |_, _| Ok(())).unwrap()
    };
    let trained = learn(1);
    assert_eq!(trained, learn(3));
    let tokenizer = tokenizer(&trained, "gpt4", false);
    let batch = |threads| {
        tokenizer
            .encode_batch::<u32>(&texts, &Policy::Allow, threads, &mut no_interrupt)
            .unwrap()
    };
    let (ids, offsets) = batch(1);
    assert_eq!((ids.clone(), offsets.clone()), batch(3));
    for (text, ends) in texts.iter().zip(offsets.windows(2)) {
        let alone = tokenizer
            .encode(text, &Policy::Allow, &mut no_interrupt)
            .unwrap();
        assert_eq!(ids[ends[0] as usize..ends[1] as usize], alone);
    }
}

#[test]
fn the_first_error_of_a_batch_is_told_whatever_the_threads() {
    let trained = train(&[b"ab"], "gpt2", Goal::new(257));
    let tokenizer = tokenizer(&trained, "gpt2", false);
    let mut texts = vec![vec![b'a'; 1 << 20]; 6];
    texts[3][100..107].copy_from_slice(b"<|end|>");
    texts[4][200..207].copy_from_slice(b"<|end|>");
    let texts: Vec<&[u8]> = texts.iter().map(Vec::as_slice).collect();
    for threads in 1..4 {
        let result =
            tokenizer.encode_batch::<u32>(&texts, &Policy::Raise, threads, &mut no_interrupt);
        let expected = Error::SpecialToken {
            token: "<|end|>".into(),
            position: 100,
        };
        assert_eq!(result, Err(expected));
    }
}

#[test]
fn an_interrupt_ends_long_work() {
    let text = vec![b'a'; 1 << 21];
    let trained = train(&[b"aaaa aaaa"], "gpt2", Goal::new(258));
    let tokenizer = tokenizer(&trained, "gpt2", false);
    let mut stop = || Err(Error::Interrupted);
    assert_eq!(
        tokenizer.encode(&text, &Policy::Text, &mut stop),
        Err(Error::Interrupted)
    );
    let mut counts = WordCounts::new("gpt2", &[], 1).unwrap();
    counts.add(&[&text], &mut no_interrupt).unwrap();
    let words = counts.words().unwrap();
    let trained = train_bpe(&words, Goal::new(300), &mut |_, _| Err(Error::Interrupted));
    assert_eq!(trained, Err(Error::Interrupted));
}

#[test]
fn the_search_for_added_tokens_asks_the_interrupt_and_misses_none() {
    let trained = train(&[b"aaaa"], "whole", Goal::new(256));
    let tokenizer = tokenizer(&trained, "whole", false);
    // It goes on in stretches of 512 KiB: tokens across the ends of two.
    let stretch = 1 << 19;
    for place in stretch - 9..stretch + 2 {
        let mut text = vec![b'a'; 3 * stretch];
        let places = [("<|end|>", place), ("<|end|>>", place + stretch)];
        for (token, at) in places {
            text[at..at + token.len()].copy_from_slice(token.as_bytes());
        }
        let ids = tokenizer.encode(&text, &Policy::Allow, &mut no_interrupt);
        let ids = ids.unwrap().into_iter().enumerate();
        let found: Vec<(usize, u32)> = ids.filter(|(_, id)| *id >= 256).collect();
        assert_eq!(found, [(place, 256), (place + stretch - 6, 257)]);
    }
    // The text before a forbidden token is not encoded: only the search can ask.
    let text = [&vec![b'a'; 2 * stretch], b"<|end|>".as_slice()].concat();
    let mut stop = || Err(Error::Interrupted);
    let stopped = tokenizer.encode(&text, &Policy::Raise, &mut stop);
    assert_eq!(stopped, Err(Error::Interrupted));
}

#[test]
fn a_stream_joins_to_the_text() {
    let mut random = Random(6);
    for _ in 0..5000 {
        let bytes = if random.below(2) == 0 {
            random.text(&FRAGMENTS, 12).into_bytes()
        } else {
            random.bytes(12)
        };
        let mut stream = DecodeStream::default();
        let mut joined = String::new();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(1 + random.below(rest.len()));
            joined += &stream.push(now);
            rest = later;
        }
        joined += &stream.finish();
        assert_eq!(joined, String::from_utf8_lossy(&bytes));
    }
}
