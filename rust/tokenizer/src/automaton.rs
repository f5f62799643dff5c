//! A deterministic automaton for regular expressions that look at most one character around.
//!
//! A state decides whether a match ends *before* a character when it sees that character, so a
//! look-ahead at one character is a matter of the table ([`crate::states`]), and each character
//! costs two look-ups. On 1 MB of English the tokenizer with the most expressions, that of `DeepSeek`,
//! went from 31 to 85 MB/s with it, its model included.
//!
//! Matches of a whole text take time linear in it for every expression. An attempt may read far
//! beyond its match, and the next one all of it again; once that adds up to the length of the text,
//! the pairs of state and place that lead nowhere are remembered (Reps 1998, "Maximal-munch
//! tokenization in linear time").

use rustc_hash::FxHashMap;

use crate::states::{DEAD, MATCH, table};
use crate::symbols::Symbols;
use crate::syntax::Reader;

/// The table of an expression.
#[derive(Debug, Clone)]
pub(crate) struct Automaton {
    symbols: Symbols,
    /// By state and symbol: the next state, and [`MATCH`]. A state is the place of its row.
    table: Vec<u16>,
    /// By the symbol before the place where a match is tried; one for all without look-behind.
    starts: Vec<u16>,
    /// The symbols with which no match begins, whatever is before them: those are passed over.
    idle: u64,
}

impl Automaton {
    /// The automaton of an expression; None if there is none, or none of a reasonable size.
    pub(crate) fn new(expression: &str) -> Option<Self> {
        let mut reader = Reader::default();
        let node = reader.read(expression)?;
        let (symbols, masks) = Symbols::new(&reader.sets)?;
        let (table, starts) = table(&node, &masks, symbols.count)?;
        let is_idle = |symbol: &u8| {
            let from = |start: &u16| table[usize::from(start | u16::from(*symbol))];
            starts.iter().all(|start| from(start) == DEAD)
        };
        // The end of a text is none of them, so they end there.
        let idle = (0..symbols.count).filter(is_idle);
        Some(Self {
            idle: idle.map(|symbol| 1 << symbol).sum(),
            symbols,
            table,
            starts,
        })
    }

    /// Calls `each(start, end)` for the matches of `text`, in order and without overlap.
    ///
    /// An empty match is one if none ends there.
    pub(crate) fn matches<E>(
        &self,
        text: &[u8],
        mut each: impl FnMut(usize, usize) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut at, mut ended, mut beyond) = (0, usize::MAX, 0);
        let mut barren = Barren::default();
        while at <= text.len() {
            if self.idle != 0 {
                at = self.symbols.skip(text, at, self.idle);
            }
            let (end, read) = if beyond <= text.len() {
                self.longest(text, at)
            } else {
                self.remembering(text, at, &mut barren)
            };
            let next = match end {
                Some(end) if end > at => {
                    each(at, end)?;
                    ended = end;
                    end
                }
                found => {
                    if found.is_some() && at != ended {
                        each(at, at)?;
                    }
                    at + self.symbols.at(text, at).1.max(1)
                }
            };
            beyond += read.saturating_sub(next);
            at = next;
        }
        Ok(())
    }

    /// Whether the empty text is a match.
    pub(crate) fn matches_empty(&self) -> bool {
        self.longest(b"", 0).0.is_some()
    }

    #[inline]
    fn start(&self, text: &[u8], at: usize) -> u16 {
        if self.starts.len() == 1 {
            return self.starts[0];
        }
        self.starts[usize::from(self.symbols.before(text, at))]
    }

    /// The end of the match at `at`, and how far it was read.
    #[inline]
    fn longest(&self, text: &[u8], at: usize) -> (Option<usize>, usize) {
        let (mut state, mut at, mut end) = (self.start(text, at), at, None);
        loop {
            let (symbol, width) = self.symbols.at(text, at);
            let entry = self.table[usize::from(state | u16::from(symbol))];
            if entry & MATCH != 0 {
                end = Some(at);
            }
            state = entry & !MATCH;
            if state == DEAD {
                return (end, at);
            }
            at += width;
        }
    }

    /// As [`Automaton::longest`], without a step that was taken in vain before.
    fn remembering(&self, text: &[u8], at: usize, barren: &mut Barren) -> (Option<usize>, usize) {
        let (mut state, mut at, mut end) = (self.start(text, at), at, None);
        let mut since = Vec::new();
        while state != DEAD && !barren.has(state, at) {
            since.push((state, at));
            let (symbol, width) = self.symbols.at(text, at);
            let entry = self.table[usize::from(state | u16::from(symbol))];
            if entry & MATCH != 0 {
                end = Some(at);
                since.clear();
            }
            state = entry & !MATCH;
            at += width;
        }
        for (state, at) in since {
            barren.add(state, at, text.len());
        }
        (end, at)
    }
}

/// Pairs of a state and a place from which no match ends any more: a bit for each place.
#[derive(Default)]
struct Barren(FxHashMap<u16, Vec<u64>>);

impl Barren {
    fn has(&self, state: u16, at: usize) -> bool {
        let bits = self.0.get(&state);
        bits.is_some_and(|bits| bits[at / 64] >> (at % 64) & 1 == 1)
    }

    fn add(&mut self, state: u16, at: usize, length: usize) {
        let bits = self.0.entry(state);
        bits.or_insert_with(|| vec![0; length / 64 + 1])[at / 64] |= 1 << (at % 64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A generator of random numbers: xorshift64*.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound
        }

        fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
            of[self.below(of.len())]
        }

        /// A random expression of the kind that tokenizers split by.
        fn expression(&mut self, depth: usize) -> String {
            let one = [
                r"\s",
                r"\S",
                r"\p{L}",
                r"\p{N}",
                r"[^\s\p{L}\p{N}]",
                r"[\r\n]",
                r"[^\r\n\p{L}]",
                "a",
                "b",
                "'",
                " ",
                "(?i:s)",
                r"\w",
                ".",
                "(?s:.)",
                "[ab]",
                r"\p{Lu}",
                r"[^a]",
            ];
            let times = [
                "", "", "", "?", "*", "+", "{1,3}", "{2}", "+?", "*?", "??", "++", "?+", "*+",
            ];
            let looks = [
                r"(?!\S)",
                r"(?=\s)",
                r"(?!a)",
                r"(?=a|$)",
                r"$",
                r"\z",
                r"(?<=a)",
                r"(?<!\s)",
                r"\b",
                r"(?=\p{L}+)",
                "^",
                r"\B",
                r"(?m:$)",
                r"(?m:^)",
                r"(?=$|\s)",
                r"(?<!\S)",
            ];
            let mut found = String::new();
            for _ in 0..=self.below(3) {
                match self.below(if depth > 0 { 10 } else { 7 }) {
                    0 => found += self.one(&looks),
                    1..7 => found = found + self.one(&one) + self.one(&times),
                    7 => found = format!("{found}(?>{})", self.expression(depth - 1)),
                    _ => {
                        let inner = [(); 2].map(|()| self.expression(depth - 1));
                        found = format!("{found}(?:{}){}", inner.join("|"), self.one(&times));
                    }
                }
            }
            found
        }
    }

    #[test]
    fn random_expressions_match_as_by_backtracking() {
        let parts = [
            "a", "b", "s", "S", "\u{17f}", " ", "  ", "\n", "\r\n", "'", "1", "23", "\u{e9}", "A",
            "\u{3000}", ".", "\u{4e2d}", "_", "\u{301}",
        ];
        let mut random = Random(7);
        let mut runs = 0;
        for _ in 0..300 {
            let alternatives: Vec<String> = (0..=random.below(3))
                .map(|_| random.expression(2))
                .collect();
            let source = alternatives.join("|");
            let Ok(regex) = fancy_regex::Regex::new(&source) else {
                continue;
            };
            let Some(automaton) = Automaton::new(&source) else {
                continue;
            };
            runs += 1;
            for _ in 0..12 {
                let kinds = 1 + random.below(6);
                let kinds: Vec<&str> = (0..kinds).map(|_| random.one(&parts)).collect();
                let text: String = (0..random.below(14)).map(|_| random.one(&kinds)).collect();
                let expected: Result<Vec<_>, _> = regex
                    .find_iter(&text)
                    .map(|m| m.map(|m| (m.start(), m.end())))
                    .collect();
                let Ok(expected) = expected else { continue };
                let mut found = Vec::new();
                let each = |from, to| {
                    found.push((from, to));
                    Ok::<(), ()>(())
                };
                automaton.matches(text.as_bytes(), each).unwrap();
                assert_eq!(found, expected, "{source} in {text:?}");
                // The slow way, from the first character on.
                let mut barren = Barren::default();
                for at in (0..=text.len()).filter(|&at| text.is_char_boundary(at)) {
                    let slow = automaton.remembering(text.as_bytes(), at, &mut barren).0;
                    assert_eq!(slow, automaton.longest(text.as_bytes(), at).0, "{source}");
                }
            }
        }
        assert!(runs > 100, "{runs}");
    }

    #[test]
    fn an_expression_that_reads_ahead_in_vain_is_linear() {
        let text = "a".repeat(200_000);
        for expression in ["a*b|a", "(?:a|aa)*b|a", r"a+(?=b)|a", "a{100}b|a*c|a"] {
            let automaton = Automaton::new(expression).unwrap();
            let mut pieces = 0;
            let each = |_, _| {
                pieces += 1;
                Ok::<(), ()>(())
            };
            automaton.matches(text.as_bytes(), each).unwrap();
            assert_eq!(pieces, text.len());
        }
    }

    #[test]
    fn what_no_automaton_says_has_none() {
        for expression in [
            r"(a)\1",
            "(?=ab)c",
            "(?:a?)*",
            "(?>a|ab)c",
            "a{5000}",
            r"\Ga",
        ] {
            assert!(Automaton::new(expression).is_none(), "{expression}");
        }
    }
}
