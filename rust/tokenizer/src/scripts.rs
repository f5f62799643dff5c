//! Which script a character belongs to, and whether a token keeps to one.
//!
//! sentencepiece learns no token that joins a letter with a comma, or Latin with Greek letters:
//! punctuation and digits are a script of their own (Common) there. Han, Hiragana and Katakana count
//! as one. The mark of a space and marks over letters (Inherited) go with any.

use std::sync::OnceLock;

use regex_syntax::hir::{Class, HirKind};

/// The scripts that are told apart; all others are one.
const SCRIPTS: [&str; 39] = [
    "Common",
    "Latin",
    "Greek",
    "Cyrillic",
    "Armenian",
    "Hebrew",
    "Arabic",
    "Syriac",
    "Thaana",
    "Devanagari",
    "Bengali",
    "Gurmukhi",
    "Gujarati",
    "Oriya",
    "Tamil",
    "Telugu",
    "Kannada",
    "Malayalam",
    "Sinhala",
    "Thai",
    "Lao",
    "Tibetan",
    "Myanmar",
    "Georgian",
    "Hangul",
    "Ethiopic",
    "Cherokee",
    "Khmer",
    "Mongolian",
    "Bopomofo",
    "Yi",
    "Coptic",
    "Tifinagh",
    "Runic",
    "Ogham",
    "Gothic",
    "Han",
    "Hiragana",
    "Katakana",
];
/// Places of Han and what counts as Han.
const HAN: u8 = 36;
/// No script: goes with any.
const ANY: u8 = u8::MAX;
/// A script that is not in the list.
const OTHER: u8 = u8::MAX - 1;

/// Ranges of characters and the place of their script, in order.
fn ranges() -> &'static [(u32, u32, u8)] {
    static RANGES: OnceLock<Vec<(u32, u32, u8)>> = OnceLock::new();
    RANGES.get_or_init(|| {
        let mut found = Vec::new();
        for (place, name) in (0u8..).zip(SCRIPTS) {
            // The names are those of the table, so that this never fails.
            let Ok(parsed) = regex_syntax::parse(&format!(r"\p{{Script={name}}}")) else {
                continue;
            };
            if let HirKind::Class(Class::Unicode(class)) = parsed.kind() {
                let ranges = class.ranges().iter();
                found.extend(ranges.map(|r| (r.start() as u32, r.end() as u32, place.min(HAN))));
            }
        }
        if let Ok(parsed) = regex_syntax::parse(r"\p{Script=Inherited}")
            && let HirKind::Class(Class::Unicode(class)) = parsed.kind()
        {
            let ranges = class.ranges().iter();
            found.extend(ranges.map(|r| (r.start() as u32, r.end() as u32, ANY)));
        }
        found.sort_unstable();
        found
    })
}

/// The script of a character, or [`ANY`].
fn script(character: char) -> u8 {
    if character == '\u{2581}' {
        return ANY;
    }
    // The long vowel mark of Japanese, which is Common in Unicode.
    if character == '\u{30FC}' {
        return HAN;
    }
    let (ranges, code) = (ranges(), character as u32);
    let at = ranges.partition_point(|range| range.1 < code);
    match ranges.get(at) {
        Some(range) if range.0 <= code => range.2,
        _ => OTHER,
    }
}

/// Whether all characters of a token, which have a script, have the same; false for no UTF-8.
pub fn is_one_script(token: &[u8]) -> bool {
    let Ok(token) = std::str::from_utf8(token) else {
        return false;
    };
    let mut scripts = token.chars().map(script).filter(|&script| script != ANY);
    scripts
        .next()
        .is_none_or(|first| scripts.all(|script| script == first))
}

#[cfg(test)]
mod tests {
    use super::is_one_script;

    #[test]
    fn punctuation_and_scripts_are_told_apart() {
        for token in [
            "don",
            "\u{2581}the",
            "...",
            "\u{2581}(",
            "\u{6f22}\u{3042}\u{30a2}",
            "\u{3b1}\u{3b2}",
        ] {
            assert!(is_one_script(token.as_bytes()), "{token}");
        }
        for token in ["don't", "a,", "a\u{3b1}", "\u{6f22}a"] {
            assert!(!is_one_script(token.as_bytes()), "{token}");
        }
        assert!(!is_one_script(b"\xff"));
    }
}
