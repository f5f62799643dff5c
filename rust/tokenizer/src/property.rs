//! Sets of characters by their Unicode property, for stages that ask for one character at a time.
//!
//! [`crate::unicode`] has the classes of the split patterns, a byte for each character; these sets
//! are other properties, asked for by normalisers and pre-tokenizers of a `tokenizer.json`.

use std::sync::LazyLock;

use regex_syntax::hir::{Class, HirKind};

/// A set of characters: a bit for each, 136 KiB.
pub(crate) struct Property(LazyLock<Vec<u64>>);

macro_rules! property {
    ($class:expr) => {
        Property(LazyLock::new(|| bits($class)))
    };
}

/// `\p{M}`: what `StripAccents` removes.
pub(crate) static MARK: Property =
    property!(r"[[[\p{M}&&\p{age:9.0}]--\x{111C9}]\x{1CF2}\x{1CF3}]");
/// `\p{Mn}`: what `BertNormalizer` removes as an accent.
pub(crate) static NONSPACING: Property =
    property!(r"[[[\p{Mn}&&\p{age:8.0}]--[\x{1885}\x{1886}\x{A9BD}\x{111C9}]]\x{1734}\x{1171E}]");
/// What the normal forms of `tokenizers` leave alone: characters of Unicode 10 and later.
pub(crate) static NEWER: Property = property!(r"[^\p{age:9.0}]");
/// `\p{P}` and the symbols of ASCII: what `Punctuation` and `BertPreTokenizer` split at.
pub(crate) static PUNCTUATION: Property =
    property!(r"[[\p{P}&&\p{age:8.0}]\x{166D}\x{111C9}!-/:-@\[-`{-~]");
/// What `BertNormalizer` removes as a control character.
pub(crate) static CONTROL: Property = property!(r"[[\p{Cc}\p{Cf}\p{Co}]&&\p{age:8.0}]");
/// `\s`: white space.
pub(crate) static SPACE: Property = property!(r"\s");
/// What `Digits` splits at: `\p{N}` of the Unicode that the standard library has, which is newer.
pub(crate) static NUMBER: Property = Property(LazyLock::new(numeric));
/// `\w`: a token that is a `single_word` has none of these beside it.
pub(crate) static WORD: Property = property!(r"\w");

impl Property {
    /// Whether the set has this character.
    pub(crate) fn has(&self, char: char) -> bool {
        let code = char as usize;
        self.0[code / 64] >> (code % 64) & 1 == 1
    }

    /// The characters of ASCII that the set has, a bit for each.
    pub(crate) fn ascii(&self) -> u128 {
        u128::from(self.0[1]) << 64 | u128::from(self.0[0])
    }
}

/// The set of numbers.
fn numeric() -> Vec<u64> {
    let mut bits = vec![0u64; 0x11_0000 / 64];
    for char in ('\0'..=char::MAX).filter(|char| char.is_numeric()) {
        bits[char as usize / 64] |= 1 << (char as usize % 64);
    }
    bits
}

/// The set of a class as `regex-syntax` knows it; empty for what is no class.
fn bits(class: &str) -> Vec<u64> {
    let mut bits = vec![0u64; 0x11_0000 / 64];
    let parsed = regex_syntax::Parser::new().parse(class);
    if let Ok(hir) = &parsed
        && let HirKind::Class(Class::Unicode(class)) = hir.kind()
    {
        for range in class.iter() {
            for code in range.start() as usize..=range.end() as usize {
                bits[code / 64] |= 1 << (code % 64);
            }
        }
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_property_is_a_class_that_parses() {
        for (property, inside, outside) in [
            (&MARK, '\u{301}', 'a'),
            (&NONSPACING, '\u{301}', '\u{903}'),
            (&PUNCTUATION, '$', 'a'),
            (&CONTROL, '\u{200d}', '\u{890}'),
            (&WORD, '_', '-'),
        ] {
            assert!(property.has(inside));
            assert!(!property.has(outside));
        }
    }
}
