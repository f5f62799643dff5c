//! Hostile texts without end: encoding against its definition, and back again.
//!
//! The definition is a regular expression engine that backtracks, and merges one at a time. A few
//! texts are tried with every `cargo test`; more, from another seed:
//!
//! ```text
//! FUZZ=1000000 FUZZ_SEED=7 cargo test --release -p tinylm-tokenizer --test naive fuzz -- --nocapture
//! ```
//!
//! A failure is printed with its seed and in the shortest form that still fails. Add that line to
//! `tests/golden/fuzzed.txt`, which is tried first, here and in Python.

use std::panic::{AssertUnwindSafe, catch_unwind};

use fancy_regex::Regex;
use tinylm_tokenizer::{DecodeStream, Goal, Policy, Tokenizer, Trained, no_interrupt};

use super::{Random, naive_encode, tokenizer, train};

/// The patterns with scanners, as they were published, and one that has none.
const PUBLISHED: [(&str, &str); 6] = [
    (
        "gpt2",
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    ),
    (
        "gpt4",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    ),
    (
        "o200k",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        "llama3",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        "qwen2",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        r"\p{Lu}?[\p{Ll}']+|\p{N}{2}(?=\p{N})|\s(?=\s|$)|\b.",
        r"\p{Lu}?[\p{Ll}']+|\p{N}{2}(?=\p{N})|\s(?=\s|$)|\b.",
    ),
];
/// Fragments that stand for the rules of a pattern, and what looks like a special token.
const FRAGMENTS: &str = " ¦  ¦\n¦\r¦\t¦\r\n¦\n\n¦a¦b¦B¦Zz¦the¦ the¦ing¦'s¦'S¦'ll¦'LL¦'Re¦'ve¦''¦'ſ¦1¦23¦456789¦½¦²¦٣¦Ⅷ¦é¦É¦ǅ¦ʰ¦ß¦İ¦ﬅ¦中文¦あ¦ー¦ァ¦가¦\u{301}¦\u{93f}¦!¦.¦/¦//¦\n/¦-¦_¦#¦—¦\u{a0}¦\u{2028}¦\u{3000}¦\u{85}¦\u{b}¦\u{1c}¦😀¦\u{200d}¦\u{ad}¦\0¦\u{fffd}¦\u{2581}¦<|end|>¦<|end|¦<|end|>>¦＜|end|>¦internationalization¦1\u{301}B1";

/// One kind of tokenizer with the definition of its ids.
struct Case {
    name: &'static str,
    regex: Regex,
    trained: Trained,
    /// With a scanner, and with an automaton for the same expression.
    tokenizers: [Tokenizer; 2],
}

fn cases() -> Vec<Case> {
    let corpus =
        FRAGMENTS.replace('¦', "").repeat(2) + &FRAGMENTS.replace('¦', " ") + "lower lowest";
    let made = PUBLISHED.map(|(name, expression)| {
        let trained = train(&[corpus.as_bytes()], name, Goal::new(400));
        let tokenizers = [name.to_owned(), format!("(?:{expression})")]
            .map(|pattern| tokenizer(&trained, &pattern, false));
        let regex = Regex::new(expression).unwrap();
        Case {
            name,
            regex,
            trained,
            tokenizers,
        }
    });
    made.into()
}

impl Case {
    /// The ids by the definition, special tokens taken for text.
    fn defined(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut add = |piece: &str| ids.extend(naive_encode(piece.as_bytes(), &self.trained));
        let mut done = 0;
        for found in self.regex.find_iter(text) {
            let found = found.unwrap();
            add(&text[done..found.start()]);
            add(found.as_str());
            done = found.end();
        }
        add(&text[done..]);
        ids
    }

    /// What is wrong with the ids of a text, or None.
    fn problem(&self, text: &[u8], defined: bool) -> Option<String> {
        let [scanned, by_automaton] = &self.tokenizers;
        let encode = |tokenizer: &Tokenizer, policy| {
            tokenizer.encode(text, &policy, &mut no_interrupt).unwrap()
        };
        let ids = encode(scanned, Policy::Text);
        // Of bytes that are no text, only that they come back is defined.
        let valid = std::str::from_utf8(text).ok();
        if valid.is_some() && encode(by_automaton, Policy::Text) != ids {
            return Some(format!("{}: the automaton cuts in another way", self.name));
        }
        for ids in [&ids, &encode(scanned, Policy::Allow)] {
            if scanned.decode(ids).unwrap() != text {
                return Some(format!("{}: other bytes come back", self.name));
            }
            let mut stream = DecodeStream::default();
            let mut told: String = ids
                .iter()
                .map(|&id| stream.push(scanned.token(id).unwrap()))
                .collect();
            told.push_str(&stream.finish());
            if told != String::from_utf8_lossy(text) {
                return Some(format!("{}: the stream tells another text", self.name));
            }
        }
        let valid = valid.filter(|_| defined);
        let differs = valid.is_some_and(|text| self.defined(text) != ids);
        differs.then(|| format!("{}: other ids", self.name))
    }
}

/// What is wrong, a panic too.
fn problem(cases: &[Case], text: &[u8], defined: bool) -> Option<String> {
    let all = || cases.iter().find_map(|case| case.problem(text, defined));
    let silent = AssertUnwindSafe(all);
    catch_unwind(silent).unwrap_or_else(|_| Some("it panics".into()))
}

/// The shortest text that still fails which is found by leaving stretches out.
fn shrunk(mut text: Vec<u8>, fails: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut length = text.len() / 2;
    while length > 0 {
        let mut at = 0;
        while at + length <= text.len() {
            let shorter = [&text[..at], &text[at + length..]].concat();
            if fails(&shorter) {
                text = shorter;
            } else {
                at += length;
            }
        }
        length /= 2;
    }
    text
}

/// A text of one of seven families.
fn drawn(random: &mut Random, fragments: &[&str], tokens: &[Vec<u8>]) -> Vec<u8> {
    let most = [4, 60][random.below(2)];
    let kinds = 1 + random.below(most);
    let kinds: Vec<&str> = (0..kinds)
        .map(|_| fragments[random.below(fragments.len())])
        .collect();
    let mut text = match random.below(7) {
        0 => random.bytes(24),
        1 => random
            .text(&kinds, 3)
            .repeat(random.below(200))
            .into_bytes(),
        2 => (0..random.below(16))
            .flat_map(|_| tokens[random.below(tokens.len())].clone())
            .collect(),
        3 => (0..random.below(12))
            .filter_map(|_| char::from_u32(random.below(0x3_0000) as u32))
            .collect::<String>()
            .into_bytes(),
        _ => random.text(&kinds, 20).into_bytes(),
    };
    // Cut inside a character, or with another byte somewhere.
    if !text.is_empty() && random.below(4) == 0 {
        let (at, place) = (random.below(text.len()), random.below(text.len()));
        match random.below(3) {
            0 => text.truncate(at),
            1 => drop(text.drain(..at)),
            _ => text[place] = random.below(256) as u8,
        }
    }
    text
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// A line of `tests/golden/fuzzed.txt` as bytes: `escape_ascii` read back.
fn unescaped(line: &str) -> Vec<u8> {
    let (mut out, mut chars) = (Vec::new(), line.bytes());
    while let Some(byte) = chars.next() {
        let escaped = if byte == b'\\' { chars.next() } else { None };
        out.push(match escaped {
            None => byte,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'x') => {
                let mut digit = || char::from(chars.next().unwrap()).to_digit(16).unwrap() as u8;
                digit() * 16 + digit()
            }
            Some(other) => other,
        });
    }
    out
}

#[test]
fn texts_that_failed_once_do_not_fail_again() {
    let cases = cases();
    let lines = include_str!("../../../../tests/golden/fuzzed.txt").lines();
    for line in lines.filter(|line| !line.starts_with('#')) {
        assert_eq!(problem(&cases, &unescaped(line), true), None, "{line}");
    }
}

#[test]
fn hostile_texts_have_the_ids_of_the_definition() {
    let (count, seed) = (setting("FUZZ", 600), setting("FUZZ_SEED", 1));
    // A short text takes a microsecond, its definition several.
    let every = setting("FUZZ_DEFINED", 1);
    let (cases, mut random) = (
        cases(),
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
    );
    let fragments: Vec<&str> = FRAGMENTS.split('¦').collect();
    for number in 0..count {
        let case = &cases[random.below(cases.len())..][..1];
        let text = drawn(&mut random, &fragments, &case[0].trained.tokens);
        // The definition is quadratic.
        let defined = number % every == 0 && text.len() < 400;
        if let Some(problem_found) = problem(case, &text, defined) {
            let text = shrunk(text, |text| problem(case, text, true).is_some());
            let shown = text.escape_ascii();
            panic!("{problem_found}, FUZZ_SEED={seed}, text {number}, shortest: {shown}");
        }
    }
}
