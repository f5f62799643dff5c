//! UTF-8 to characters of one width, as Python keeps a string.
//!
//! A string of Python has 1, 2 or 4 bytes for each of its characters, as its largest one needs. The
//! largest byte of a text says how many, since the first byte of a character grows with it. Sixteen
//! bytes are widened at once, and as many are kept as are ASCII before the first that is not: texts
//! of one script change between the two all the time. Python's own decoder takes a character at a
//! time as soon as one is not ASCII (`python benches/bench_vocabulary.py decode`).
//!
//! Held to `decode` in `python/tinylm/reference/byte_bpe.py` by the rung `decode`.

use std::mem::MaybeUninit;

/// The highest bit of each of sixteen bytes: those that are not ASCII.
const HIGH: u128 = 0x8080_8080_8080_8080_8080_8080_8080_8080;

/// What a string keeps for each character.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Width {
    /// A byte below 0x80.
    Ascii,
    /// A byte.
    One,
    /// Two bytes.
    Two,
    /// Four bytes.
    Four,
}

impl Width {
    /// What the characters of a text need, if it is UTF-8.
    pub fn of(text: &[u8]) -> Self {
        match text.iter().copied().max().unwrap_or(0) {
            ..=0x7F => Self::Ascii,
            0x80..=0xC3 => Self::One,
            0xC4..=0xEF => Self::Two,
            _ => Self::Four,
        }
    }

    /// The largest character, as Python is asked for a string.
    pub fn largest(self) -> u32 {
        match self {
            Self::Ascii => 0x7F,
            Self::One => 0xFF,
            Self::Two => 0xFFFF,
            Self::Four => 0x10_FFFF,
        }
    }
}

/// A character of a string.
pub trait Character: Copy {
    /// The character of this number, which is not too large.
    fn of(code: u32) -> Self;
}

macro_rules! characters {
    ($($kind:ty)*) => { $(
        impl Character for $kind {
            #[inline]
            fn of(code: u32) -> Self {
                code as Self
            }
        }
    )* };
}
characters!(u8 u16 u32);

/// How many bytes at the end of `text` begin a character that is not complete: 0 to 3.
pub fn unfinished(text: &[u8]) -> usize {
    let last = text.iter().rev().take(3).position(|&byte| byte >= 0xC0);
    last.map_or(0, |after| {
        let needed = match text[text.len() - 1 - after] {
            ..=0xDF => 2,
            0xE0..=0xEF => 3,
            _ => 4,
        };
        if after + 1 < needed { after + 1 } else { 0 }
    })
}

/// Writes the characters of `text` to `out`, which is at least as long; how many they are, or None
/// if the text is not UTF-8.
///
/// What follows them in `out` may be overwritten too.
pub fn widen<T: Character>(text: &[u8], out: &mut [MaybeUninit<T>]) -> Option<usize> {
    let (mut from, mut to) = (0, 0);
    while let (Some(bytes), Some(room)) = (
        text[from..].first_chunk::<16>(),
        out[to..].first_chunk_mut::<16>(),
    ) {
        for (place, &byte) in room.iter_mut().zip(bytes) {
            place.write(T::of(u32::from(byte)));
        }
        let high = u128::from_le_bytes(*bytes) & HIGH;
        // A branch that is foreseen: the next sixteen need not wait for the count.
        if high == 0 {
            from += 16;
            to += 16;
            continue;
        }
        let ascii = high.trailing_zeros() as usize / 8;
        from += ascii;
        to += ascii;
        // There are four bytes from each that is looked at, or the end is near.
        while let Some(&bytes) = text[from..].first_chunk::<4>() {
            if bytes[0] < 0x80 {
                break;
            }
            let (code, length) = character(bytes)?;
            out[to].write(T::of(code));
            from += length;
            to += 1;
        }
    }
    while from < text.len() {
        let mut bytes = [0; 4];
        let rest = &text[from..text.len().min(from + 4)];
        bytes[..rest.len()].copy_from_slice(rest);
        let (code, length) = character(bytes)?;
        out[to].write(T::of(code));
        from += length;
        to += 1;
    }
    Some(to)
}

/// The first character of these bytes, and its length.
#[inline]
fn character(bytes: [u8; 4]) -> Option<(u32, usize)> {
    // Compared together: which bits are fixed in a character of so many bytes.
    let word = u32::from_le_bytes(bytes);
    let [first, second, third, fourth] = bytes.map(|byte| u32::from(byte & 0x3F));
    if word & 0x80 == 0 {
        Some((word & 0x7F, 1))
    } else if word & 0xC0_C0_F0 == 0x80_80_E0 {
        let code = (first & 0x0F) << 12 | second << 6 | third;
        // Neither written longer than it need be nor half a character of UTF-16.
        (code >= 0x800 && code & 0xF800 != 0xD800).then_some((code, 3))
    } else if word & 0xC0_E0 == 0x80_C0 {
        let code = (first & 0x1F) << 6 | second;
        (code >= 0x80).then_some((code, 2))
    } else if word & 0xC0C0_C0F8 == 0x8080_80F0 {
        let code = (first & 0x07) << 18 | second << 12 | third << 6 | fourth;
        (0x1_0000..0x11_0000).contains(&code).then_some((code, 4))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The characters of `text` through `widen`.
    fn widened(text: &[u8]) -> Option<Vec<char>> {
        let mut out = vec![MaybeUninit::new(0u32); text.len()];
        let number = widen(text, &mut out)?;
        let mut codes = vec![MaybeUninit::new(0u16); text.len()];
        if Width::of(text) <= Width::Two {
            assert_eq!(widen(text, &mut codes), Some(number));
        }
        // The standard library's conversion, to read what was written without unsafe code.
        let decoded: Vec<char> = std::str::from_utf8(text).ok()?.chars().collect();
        assert_eq!(number, decoded.len());
        Some(decoded)
    }

    #[test]
    fn all_short_sequences_are_utf8_as_the_standard_library_says() {
        let bytes = [
            0, b'a', 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xC3, 0xDF, 0xE0,
            0xE1, 0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF4, 0xF5, 0xFF,
        ];
        let number = bytes.len();
        for code in 0..number.pow(4) {
            let text: [u8; 4] =
                std::array::from_fn(|at| bytes[code / number.pow(at as u32) % number]);
            assert_eq!(
                widened(&text).is_some(),
                std::str::from_utf8(&text).is_ok(),
                "{text:x?}"
            );
        }
    }

    #[test]
    fn a_text_cut_anywhere_is_whole_without_its_unfinished_bytes() {
        let text = "plain ascii of some length, \u{e9}\u{4e2d}\u{1f600}\u{10ffff}x\u{7ff}\u{800}";
        for end in 0..=text.len() {
            let cut = &text.as_bytes()[..end];
            let whole = &cut[..end - unfinished(cut)];
            assert!(text.is_char_boundary(whole.len()) && unfinished(cut) < 4);
            assert!(widened(whole).is_some());
        }
        assert_eq!(Width::of("\u{ff}".as_bytes()), Width::One);
        assert_eq!(Width::of("\u{100}".as_bytes()), Width::Two);
        assert_eq!(Width::of("\u{ffff}".as_bytes()), Width::Two);
        assert_eq!(Width::of("\u{10000}".as_bytes()), Width::Four);
    }
}
