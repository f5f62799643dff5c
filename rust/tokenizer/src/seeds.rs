//! The first vocabulary of Unigram training: all that occurs twice inside words, and where.
//!
//! The suffixes of the words are sorted. What neighbours share is an inner node of the suffix tree:
//! a string that goes on in different ways, which no longer one can stand for. Its occurrences are
//! the stretch of sorted suffixes that begin with it, so the places of all tokens in all words come
//! for free, and training never searches a dictionary.
//!
//! A token has [`LONGEST`] characters at most, so suffixes are compared that far alone: a sort by
//! comparison is as good as linear suffix sorting then. Most comparisons are of two numbers.
//!
//! Kasai et al. 2001 for the stack over common prefixes.

use crate::fallback::width;
use crate::{Error, Interrupt};

/// Characters of a token at most; sentencepiece's default.
pub(crate) const LONGEST: usize = 16;
/// Bytes of a word at most; what is longer is learned in parts.
const WORD: usize = 4096;
/// Suffixes between two calls of the interrupt.
const TICK: usize = 1 << 15;

/// A word, or a part of a very long one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    /// Its bytes in the text.
    pub(crate) start: u32,
    pub(crate) end: u32,
    pub(crate) count: u64,
    /// Its edges begin here, and end where those of the next word begin.
    pub(crate) edges: u32,
}

/// A token somewhere in a word; offsets are those of the word.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Edge {
    pub(crate) token: u32,
    pub(crate) start: u16,
    pub(crate) end: u16,
}

/// A string of the vocabulary.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seed {
    /// Its bytes in the text.
    pub(crate) start: u32,
    pub(crate) length: u16,
    /// How often it occurs; 0 if it is there because all texts must have a token.
    pub(crate) count: u64,
}

/// Words and all tokens in them.
#[derive(Debug)]
pub(crate) struct Lattice {
    /// The words, one after the other, and then the required tokens.
    pub(crate) text: Vec<u8>,
    pub(crate) words: Vec<Span>,
    /// By word, start and end.
    pub(crate) edges: Vec<Edge>,
    /// The required tokens first.
    pub(crate) seeds: Vec<Seed>,
}

/// A suffix of a word.
#[derive(Clone, Copy)]
struct Suffix {
    /// Its first 16 bytes, zeros after its end.
    key: u128,
    at: u32,
    word: u32,
}

/// Some suffixes that begin alike, and how far.
struct Node {
    length: u16,
    first: u32,
    end: u32,
    characters: u8,
    count: u64,
}

/// What the seeds are made of beside the words.
pub(crate) struct Rules<'a> {
    /// Tokens that must be: one of them stands at every place of every word.
    pub(crate) required: &'a [Vec<u8>],
    /// Whether they are the 256 bytes, or else characters.
    pub(crate) over_bytes: bool,
    /// Whether a string may be a token.
    pub(crate) valid: &'a dyn Fn(&[u8]) -> bool,
    /// How often a token must occur, 2 at least.
    pub(crate) least: u64,
    /// Seeds at most.
    pub(crate) most: usize,
}

/// The words with the most covering strings in them as tokens.
///
/// # Errors
///
/// [`Error::TooLong`] for words of 4 GiB together, and what `interrupt` returns.
pub(crate) fn lattice<'a>(
    words: impl Iterator<Item = (&'a [u8], u64)>,
    rules: &Rules<'_>,
    interrupt: &mut Interrupt<'_>,
) -> Result<Lattice, Error> {
    let (mut text, mut spans) = (Vec::new(), Vec::new());
    for (word, count) in words {
        let mut rest = word;
        while !rest.is_empty() {
            let (part, after) = rest.split_at(cut(rest));
            let start = text.len() as u32;
            text.extend_from_slice(part);
            spans.push(Span {
                start,
                end: text.len() as u32,
                count,
                edges: 0,
            });
            rest = after;
        }
        if text.len() >= (u32::MAX / 2) as usize {
            return Err(Error::TooLong {
                what: "the distinct text",
                length: text.len(),
            });
        }
    }
    let suffixes = sorted(&text, &spans, interrupt)?;
    let nodes = nodes(&text, &spans, &suffixes, rules, interrupt)?;
    Ok(built(text, spans, &suffixes, nodes, rules))
}

/// How much of a word is one part: all of it, or as many whole characters as a part may have.
fn cut(word: &[u8]) -> usize {
    if word.len() <= WORD {
        return word.len();
    }
    let mut end = WORD;
    while end > WORD - 4 && word[end] & 0xC0 == 0x80 {
        end -= 1;
    }
    end
}

/// The bytes of a suffix that are compared: to the end of its word, 16 characters at most.
fn compared<'a>(text: &'a [u8], spans: &[Span], suffix: &Suffix) -> &'a [u8] {
    let end = spans[suffix.word as usize]
        .end
        .min(suffix.at + 4 * LONGEST as u32);
    &text[suffix.at as usize..end as usize]
}

/// All suffixes that begin at a character, in the order of their bytes.
fn sorted(
    text: &[u8],
    spans: &[Span],
    interrupt: &mut Interrupt<'_>,
) -> Result<Vec<Suffix>, Error> {
    let mut suffixes = Vec::with_capacity(text.len());
    for (word, span) in (0u32..).zip(spans) {
        if (word as usize).is_multiple_of(TICK) {
            interrupt()?;
        }
        let mut at = span.start;
        while at < span.end {
            let rest = &text[at as usize..span.end as usize];
            let mut bytes = [0; 16];
            let length = rest.len().min(16);
            bytes[..length].copy_from_slice(&rest[..length]);
            suffixes.push(Suffix {
                key: u128::from_be_bytes(bytes),
                at,
                word,
            });
            at += width(rest) as u32;
        }
    }
    // By the first bytes into parts, which are sorted one after the other: an interrupt may come
    // between two of them.
    let top = |suffix: &Suffix| (suffix.key >> 112) as usize;
    let mut starts = vec![0usize; (1 << 16) + 1];
    for suffix in &suffixes {
        starts[top(suffix) + 1] += 1;
    }
    for at in 1..starts.len() {
        starts[at] += starts[at - 1];
    }
    let mut next = starts.clone();
    let mut parts = vec![suffixes.first().copied().unwrap_or(EMPTY); suffixes.len()];
    for suffix in suffixes {
        let place = &mut next[top(&suffix)];
        parts[*place] = suffix;
        *place += 1;
    }
    let mut sorted = 0;
    for pair in starts.windows(2) {
        let part = &mut parts[pair[0]..pair[1]];
        part.sort_unstable_by(|a, b| {
            a.key
                .cmp(&b.key)
                .then_with(|| compared(text, spans, a).cmp(compared(text, spans, b)))
                .then(a.at.cmp(&b.at))
        });
        sorted += part.len();
        if sorted > TICK {
            sorted = 0;
            interrupt()?;
        }
    }
    Ok(parts)
}

const EMPTY: Suffix = Suffix {
    key: 0,
    at: 0,
    word: 0,
};

/// How many bytes of `a` are whole characters, [`LONGEST`] at most, within its first `limit`
/// bytes, and how many characters these are.
fn whole(a: &[u8], limit: usize) -> (u16, u8) {
    let (mut length, mut characters) = (0, 0);
    while length < limit && usize::from(characters) < LONGEST {
        let end = length + width(&a[length..]);
        if end > limit {
            break;
        }
        length = end;
        characters += 1;
    }
    (length as u16, characters)
}

/// The strings that occur often enough and may be tokens, the most covering ones.
fn nodes(
    text: &[u8],
    spans: &[Span],
    suffixes: &[Suffix],
    rules: &Rules<'_>,
    interrupt: &mut Interrupt<'_>,
) -> Result<Vec<Node>, Error> {
    // Counts of all suffixes before each.
    let mut before = Vec::with_capacity(suffixes.len() + 1);
    before.push(0u64);
    for suffix in suffixes {
        before.push(before[before.len() - 1] + spans[suffix.word as usize].count);
    }
    let mut found = Vec::new();
    // Strings that the suffixes so far begin with: (bytes, characters, first suffix).
    let mut open: Vec<(u16, u8, u32)> = Vec::new();
    let mut last: &[u8] = &[];
    for at in 0..=suffixes.len() {
        if at.is_multiple_of(TICK) {
            interrupt()?;
        }
        let this = suffixes
            .get(at)
            .map_or(&[][..], |s| compared(text, spans, s));
        let common = last.iter().zip(this).take_while(|(a, b)| a == b).count();
        let (length, characters) = whole(last, common);
        let mut first = at as u32;
        while let Some(&(deeper, its, from)) = open.last()
            && deeper > length
        {
            open.pop();
            first = from;
            let count = before[at] - before[from as usize];
            let start = suffixes[from as usize].at as usize;
            let bytes = &text[start..start + usize::from(deeper)];
            // A token of one byte is required, or nothing that a longer text needs.
            let needed = if rules.over_bytes { 1 } else { width(bytes) };
            if count >= rules.least && bytes.len() > needed && (rules.valid)(bytes) {
                found.push(Node {
                    length: deeper,
                    first: from,
                    end: at as u32,
                    characters: its,
                    count,
                });
            }
        }
        if length > open.last().map_or(0, |top| top.0) {
            open.push((length, characters, first));
        }
        let (all, its) = whole(this, this.len());
        if all > length {
            open.push((all, its, at as u32));
        }
        last = this;
    }
    if found.len() > rules.most {
        let worth = |node: &Node| node.count * u64::from(node.characters);
        found.select_nth_unstable_by_key(rules.most, |node| {
            (std::cmp::Reverse(worth(node)), node.first, node.length)
        });
        found.truncate(rules.most);
    }
    // By length: the edges of a place then come in the order of their ends.
    found.sort_unstable_by_key(|node| (node.length, node.first));
    Ok(found)
}

/// The words with their edges.
fn built(
    mut text: Vec<u8>,
    mut words: Vec<Span>,
    suffixes: &[Suffix],
    nodes: Vec<Node>,
    rules: &Rules<'_>,
) -> Lattice {
    let distinct = text.len();
    let mut seeds = Vec::with_capacity(rules.required.len() + nodes.len());
    for token in rules.required {
        seeds.push(Seed {
            start: text.len() as u32,
            length: token.len() as u16,
            count: 0,
        });
        text.extend_from_slice(token);
    }
    // Where the edges of each place begin: first their number, one place further on.
    let mut place = vec![0u32; distinct + 1];
    let required = required_edges(&text, &words, rules);
    for &(at, ..) in &required {
        place[at as usize + 1] += 1;
    }
    for node in &nodes {
        for suffix in &suffixes[node.first as usize..node.end as usize] {
            place[suffix.at as usize + 1] += 1;
        }
    }
    for at in 1..place.len() {
        place[at] += place[at - 1];
    }
    for word in &mut words {
        word.edges = place[word.start as usize];
    }
    let none = Edge {
        token: 0,
        start: 0,
        end: 0,
    };
    let mut edges = vec![none; place[distinct] as usize];
    let mut put = |at: u32, word: u32, length: u16, token: u32| {
        let start = (at - words[word as usize].start) as u16;
        edges[place[at as usize] as usize] = Edge {
            token,
            start,
            end: start + length,
        };
        place[at as usize] += 1;
    };
    for (at, word, length, token) in required {
        put(at, word, length, token);
        seeds[token as usize].count += words[word as usize].count;
    }
    for node in nodes {
        let token = seeds.len() as u32;
        seeds.push(Seed {
            start: suffixes[node.first as usize].at,
            length: node.length,
            count: node.count,
        });
        for suffix in &suffixes[node.first as usize..node.end as usize] {
            put(suffix.at, suffix.word, node.length, token);
        }
    }
    Lattice {
        text,
        words,
        edges,
        seeds,
    }
}

/// The required token at each place, as (place, word, length, token).
fn required_edges(text: &[u8], words: &[Span], rules: &Rules<'_>) -> Vec<(u32, u32, u16, u32)> {
    let ids: rustc_hash::FxHashMap<&[u8], u32> =
        rules.required.iter().map(Vec::as_slice).zip(0..).collect();
    let mut found = Vec::new();
    for (number, word) in (0u32..).zip(words) {
        let mut at = word.start;
        while at < word.end {
            let rest = &text[at as usize..word.end as usize];
            let length = if rules.over_bytes { 1 } else { width(rest) };
            if let Some(&token) = ids.get(&rest[..length]) {
                found.push((at, number, length as u16, token));
            }
            at += length as u32;
        }
    }
    found
}
