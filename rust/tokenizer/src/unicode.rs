//! What kind of character starts here: the Unicode classes that the split patterns ask about.
//!
//! A class is one byte with a bit for each property, so a scanner asks for several classes with
//! one `&`. A character above ASCII costs a decode and two table lookups.
//!
//!
//! The tables are those of `regex-syntax` (Unicode 16.0, 141,028 letters), which tiktoken
//! compiles in and Hugging Face's Oniguruma agrees with; a test pins the counts, so that an
//! update of the crate cannot move a token boundary unseen.

use std::sync::LazyLock;

use regex_syntax::hir::{Class, HirKind};

/// `\p{Lu}` or `\p{Lt}`.
pub(crate) const UPPER: u8 = 1;
/// `\p{Ll}`.
pub(crate) const LOWER: u8 = 2;
/// `\p{Lm}` or `\p{Lo}`: letters without case.
pub(crate) const UNCASED: u8 = 4;
/// `\p{L}`.
pub(crate) const LETTER: u8 = UPPER | LOWER | UNCASED;
/// `\p{M}`.
pub(crate) const MARK: u8 = 8;
/// `\p{N}`.
pub(crate) const NUMBER: u8 = 16;
/// `\s`, line ends included.
pub(crate) const SPACE: u8 = 32;
/// `\r` or `\n`; always together with [`SPACE`].
pub(crate) const NEWLINE: u8 = 64;
/// No character: the end of the text.
pub(crate) const END: u8 = 128;
/// Everything else has no bit set: punctuation, symbols, controls, and bytes that are not UTF-8.
pub(crate) const SYMBOL: u8 = 0;

/// The class of each character, in two levels: equal blocks of 256 characters are stored once.
///
/// A flat table would be 1.1 MB. ASCII has a table of its own, of 128 bytes.
pub(crate) struct Classes {
    /// By the byte: most text needs no other table.
    ascii: [u8; 128],
    /// The block of each 256 characters.
    block_of: Vec<u8>,
    blocks: Vec<[u8; 256]>,
}

// Built once per process: the tables never change and every tokenizer shares them.
static CLASSES: LazyLock<Classes> = LazyLock::new(Classes::build);

impl Classes {
    /// The tables, built on first use (about a millisecond).
    pub(crate) fn get() -> &'static Self {
        &CLASSES
    }

    /// From the tables of `regex-syntax`, so that scanners and regular expressions agree on every
    /// character.
    fn build() -> Self {
        // Flat first, because a class covers ranges of any length; it is dropped at the end.
        let mut flat = vec![SYMBOL; 0x11_0000];
        for (class, bit) in [
            (r"[\p{Lu}\p{Lt}]", UPPER),
            (r"\p{Ll}", LOWER),
            (r"[\p{Lm}\p{Lo}]", UNCASED),
            (r"\p{M}", MARK),
            (r"\p{N}", NUMBER),
            (r"\s", SPACE),
            (r"[\r\n]", NEWLINE),
        ] {
            for (first, last) in ranges(class) {
                for slot in &mut flat[first..=last] {
                    *slot |= bit;
                }
            }
        }
        let mut ascii = [SYMBOL; 128];
        ascii.copy_from_slice(&flat[..128]);
        // Most blocks of one script are equal, so fewer than 256 differ and a byte numbers them.
        let mut blocks: Vec<[u8; 256]> = Vec::new();
        let mut block_of = Vec::new();
        for block in flat
            .chunks_exact(256)
            .filter_map(|b| b.first_chunk::<256>())
        {
            // Quadratic in the number of distinct blocks, but only once per process.
            let known = blocks.iter().position(|b| b == block);
            block_of.push(known.unwrap_or(blocks.len()) as u8);
            if known.is_none() {
                blocks.push(*block);
            }
        }
        assert!(
            blocks.len() <= 256,
            "more distinct blocks than a byte can number"
        );
        Self {
            ascii,
            block_of,
            blocks,
        }
    }

    /// The class of a character.
    fn of(&self, scalar: u32) -> u8 {
        let block = self.block_of[(scalar >> 8) as usize];
        self.blocks[usize::from(block)][(scalar & 255) as usize]
    }

    /// Class and width in bytes of the character at `at`; ([`END`], 0) at the end of the text.
    #[inline]
    pub(crate) fn at(&self, text: &[u8], at: usize) -> (u8, usize) {
        match text.get(at) {
            None => (END, 0),
            Some(&byte) if byte < 128 => (self.ascii[usize::from(byte)], 1),
            Some(_) => self.beyond_ascii(&text[at..]),
        }
    }

    /// Class and width of a character above ASCII; a byte that is not UTF-8 is a symbol.
    ///
    /// Not inlined: the loops over ASCII around it stay small.
    #[inline(never)]
    fn beyond_ascii(&self, text: &[u8]) -> (u8, usize) {
        match decode(text) {
            Some((scalar, width)) => (self.of(scalar), width),
            None => (SYMBOL, 1),
        }
    }

    /// End of the run of characters from `at` on that have a bit of `mask`.
    #[inline]
    pub(crate) fn run(&self, text: &[u8], mut at: usize, mask: u8) -> usize {
        loop {
            // The loop for ASCII is apart, without a decoder in it.
            while let Some(&byte) = text.get(at)
                && byte < 128
                && self.ascii[usize::from(byte)] & mask != 0
            {
                at += 1;
            }
            match text.get(at) {
                Some(&byte) if byte >= 128 => {
                    let (class, width) = self.beyond_ascii(&text[at..]);
                    if class & mask == 0 {
                        return at;
                    }
                    at += width;
                }
                _ => return at,
            }
        }
    }

    /// End of the run of characters from `at` on that have no bit of `mask`.
    #[inline]
    pub(crate) fn run_without(&self, text: &[u8], mut at: usize, mask: u8) -> usize {
        loop {
            let (class, width) = self.at(text, at);
            // An end has no bit of a usual mask, so its width of 0 must be looked at too.
            if width == 0 || class & mask != 0 {
                return at;
            }
            at += width;
        }
    }

    /// Class and start of the character that ends at `end`, which must be above 0.
    ///
    /// Looks back four bytes at most, the longest that a character can be.
    pub(crate) fn before(&self, text: &[u8], end: usize) -> (u8, usize) {
        let lowest = end.saturating_sub(4);
        for start in (lowest..end).rev() {
            let (class, width) = self.at(text, start);
            // A byte above ASCII with a width of 1 is not UTF-8 from here: look further back first.
            if width == end - start && (width > 1 || text[start] < 128) {
                return (class, start);
            }
        }
        (SYMBOL, end - 1)
    }
}

/// The characters of a class, as ranges of first and last.
///
/// An expression that does not parse has none; the test of the counts would notice.
fn ranges(class: &str) -> Vec<(usize, usize)> {
    match regex_syntax::parse(class).map(regex_syntax::hir::Hir::into_kind) {
        Ok(HirKind::Class(Class::Unicode(class))) => class
            .iter()
            .map(|r| (r.start() as usize, r.end() as usize))
            .collect(),
        _ => Vec::new(),
    }
}

/// The first character of `text` and its width, or None where the bytes are not UTF-8.
///
/// The standard library decodes whole strings only. Overlong forms, surrogates and numbers above
/// U+10FFFF are not UTF-8, and the lead bytes C0, C1 and F5 to FF never are.
#[inline]
pub(crate) fn decode(text: &[u8]) -> Option<(u32, usize)> {
    let tail = |at: usize| match text.get(at) {
        // A byte that continues a character: 10xxxxxx.
        Some(&byte) if byte & 0xC0 == 0x80 => Some(u32::from(byte & 0x3F)),
        _ => None,
    };
    let lead = u32::from(*text.first()?);
    match lead {
        0x00..=0x7F => Some((lead, 1)),
        0xC2..=0xDF => Some(((lead & 0x1F) << 6 | tail(1)?, 2)),
        0xE0..=0xEF => {
            let scalar = (lead & 0x0F) << 12 | tail(1)? << 6 | tail(2)?;
            (scalar >= 0x800 && !(0xD800..0xE000).contains(&scalar)).then_some((scalar, 3))
        }
        0xF0..=0xF4 => {
            let scalar = (lead & 0x07) << 18 | tail(1)? << 12 | tail(2)? << 6 | tail(3)?;
            (0x1_0000..0x11_0000)
                .contains(&scalar)
                .then_some((scalar, 4))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_those_of_unicode_16() {
        let classes = Classes::get();
        let count = |mask: u8| {
            ('\0'..=char::MAX)
                .filter(|&c| classes.of(u32::from(c)) & mask != 0)
                .count()
        };
        assert_eq!(count(LETTER), 141_028);
        assert_eq!(count(UPPER), 1_858 + 31);
        assert_eq!(count(LOWER), 2_258);
        assert_eq!(count(MARK), 2_501);
        assert_eq!(count(NUMBER), 1_911);
        assert_eq!(count(SPACE), 25);
        assert_eq!(count(NEWLINE), 2);
    }

    #[test]
    fn decoding_agrees_with_the_standard_library() {
        for c in '\0'..=char::MAX {
            let mut buffer = [0; 4];
            let text = c.encode_utf8(&mut buffer).as_bytes();
            assert_eq!(decode(text), Some((u32::from(c), text.len())));
            assert_eq!(decode(&text[..text.len() - 1]), None);
        }
        for a in 0..=255u8 {
            for b in 0..=255u8 {
                let pair = [a, b, 0x80, 0x80];
                let valid = pair
                    .utf8_chunks()
                    .next()
                    .and_then(|c| c.valid().chars().next());
                assert_eq!(decode(&pair).map(|(s, _)| s), valid.map(u32::from));
            }
        }
    }
}
