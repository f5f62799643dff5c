//! The classes of 64 bytes of text as sets of bits, one bit for each byte.
//!
//! With them a pattern is a few operations on whole sets, see [`crate::window`]. ASCII is
//! classified by comparisons of 16 bytes at a time (SSE2, which every x86-64 has, so nothing is
//! detected at run time; a table elsewhere), and each character above it by the tables of
//! [`crate::unicode`].

use crate::unicode::{Classes, LETTER, NUMBER, SPACE};

/// Bytes of a window.
pub(crate) const WIDTH: usize = 64;

/// Sets of the bytes of a window. A byte of a character above ASCII is of its character's class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Masks {
    pub(crate) letter: u64,
    /// Of ASCII, those of lower case.
    pub(crate) lower: u64,
    pub(crate) number: u64,
    /// `\s`, with line ends.
    pub(crate) space: u64,
    /// `\r` and `\n`.
    pub(crate) newline: u64,
    /// The space itself.
    pub(crate) blank: u64,
    /// Apostrophes, which may begin a contraction.
    pub(crate) quote: u64,
    /// The first byte of each character that is neither letter, number nor space.
    pub(crate) first: u64,
    /// Bytes above ASCII.
    pub(crate) high: u64,
    /// How many bytes of the window are classified.
    pub(crate) known: usize,
}

impl Masks {
    /// The masks of the window at `at`, up to the first character above ASCII that is a number or
    /// white space, or to the first one at all if `ascii`.
    #[inline]
    pub(crate) fn at(classes: &Classes, text: &[u8], at: usize, ascii: bool) -> Self {
        let mut masks = if let Some(bytes) = text[at..].first_chunk() {
            Self::of(bytes)
        } else {
            let rest = &text[at..];
            let mut bytes = [0; WIDTH];
            bytes[..rest.len()].copy_from_slice(rest);
            Self {
                known: rest.len(),
                ..Self::of(&bytes)
            }
        };
        if masks.high != 0 {
            if ascii {
                masks.known = masks.known.min(masks.high.trailing_zeros() as usize);
            } else {
                masks.beyond_ascii(classes, text, at);
            }
        }
        masks
    }

    /// The classes of the characters above ASCII.
    #[inline(never)]
    fn beyond_ascii(&mut self, classes: &Classes, text: &[u8], at: usize) {
        let mut rest = self.high;
        while rest != 0 {
            let place = rest.trailing_zeros();
            let (class, width) = classes.at(text, at + place as usize);
            let bytes = ((1 << width) - 1) << place;
            rest &= !bytes;
            if class & LETTER != 0 {
                self.letter |= bytes;
            } else if class & (NUMBER | SPACE) == 0 {
                self.first |= 1 << place;
            } else {
                // These are counted one by one, and bytes are no characters here.
                self.known = self.known.min(place as usize);
                return;
            }
        }
    }

    /// The masks of 64 bytes but for the characters above ASCII, which are in `high` alone.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    fn of(bytes: &[u8; WIDTH]) -> Self {
        // SAFETY: every x86-64 processor has SSE2.
        #[expect(unsafe_code, reason = "a function with its own features is called so")]
        unsafe {
            Self::sse2(bytes)
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "sse2")]
    #[inline]
    fn sse2(bytes: &[u8; WIDTH]) -> Self {
        use std::arch::x86_64::{
            __m128i, _mm_cmpeq_epi8, _mm_min_epu8, _mm_movemask_epi8, _mm_or_si128, _mm_set_epi64x,
            _mm_set1_epi8, _mm_sub_epi8,
        };
        let all = |byte: u8| _mm_set1_epi8(byte as i8);
        let is = |v: __m128i, byte: u8| _mm_cmpeq_epi8(v, all(byte));
        // Those from `first` on, `count` of them.
        let range = |v: __m128i, first: u8, count: u8| {
            let from = _mm_sub_epi8(v, all(first));
            _mm_cmpeq_epi8(_mm_min_epu8(from, all(count - 1)), from)
        };
        let bits = |v: __m128i| u64::from(_mm_movemask_epi8(v) as u16);
        let mut masks = Self {
            known: WIDTH,
            ..Self::default()
        };
        let (halves, _) = bytes.as_chunks::<8>();
        for (part, pair) in halves.as_chunks::<2>().0.iter().enumerate() {
            let [low, high] = pair.map(i64::from_le_bytes);
            let v = _mm_set_epi64x(high, low);
            let shift = 16 * part;
            let blank = is(v, b' ');
            masks.letter |= bits(range(_mm_or_si128(v, all(0x20)), b'a', 26)) << shift;
            masks.lower |= bits(range(v, b'a', 26)) << shift;
            masks.number |= bits(range(v, b'0', 10)) << shift;
            masks.space |= bits(_mm_or_si128(blank, range(v, b'\t', 5))) << shift;
            masks.newline |= bits(_mm_or_si128(is(v, b'\n'), is(v, b'\r'))) << shift;
            masks.blank |= bits(blank) << shift;
            masks.quote |= bits(is(v, b'\'')) << shift;
            masks.high |= bits(v) << shift;
        }
        masks.first = !(masks.letter | masks.number | masks.space | masks.high);
        masks
    }

    /// The same without instructions of one processor.
    #[cfg(any(test, not(target_arch = "x86_64")))]
    fn portable(bytes: &[u8; WIDTH]) -> Self {
        let mut masks = Self {
            known: WIDTH,
            ..Self::default()
        };
        let set = |is: bool, at: usize| u64::from(is) << at;
        for (at, &byte) in bytes.iter().enumerate() {
            masks.letter |= set(byte.is_ascii_alphabetic(), at);
            masks.lower |= set(byte.is_ascii_lowercase(), at);
            masks.number |= set(byte.is_ascii_digit(), at);
            masks.space |= set(byte == b' ' || byte.wrapping_sub(b'\t') < 5, at);
            masks.newline |= set(byte == b'\n' || byte == b'\r', at);
            masks.blank |= set(byte == b' ', at);
            masks.quote |= set(byte == b'\'', at);
            masks.high |= set(byte >= 128, at);
        }
        masks.first = !(masks.letter | masks.number | masks.space | masks.high);
        masks
    }

    #[cfg(not(target_arch = "x86_64"))]
    #[inline]
    fn of(bytes: &[u8; WIDTH]) -> Self {
        Self::portable(bytes)
    }
}

/// The places of a byte among 64, eight at a time in numbers of 64 bits.
#[inline]
pub(crate) fn places(bytes: &[u8; WIDTH], byte: u8) -> u64 {
    const LOW: u64 = u64::from_le_bytes([0x7F; 8]);
    let (eights, _) = bytes.as_chunks::<8>();
    eights.iter().rev().fold(0, |places, eight| {
        let other = u64::from_le_bytes(*eight) ^ u64::from_le_bytes([byte; 8]);
        // The highest bit of each byte that is 0; the product puts them side by side.
        let equal = !(((other & LOW) + LOW) | other | LOW) >> 7;
        places << 8 | equal.wrapping_mul(0x0102_0408_1020_4080) >> 56
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_classify_agree_on_every_byte_at_every_place() {
        for byte in 0..=255u8 {
            for place in 0..WIDTH {
                let mut bytes = [b'a'; WIDTH];
                bytes[place] = byte;
                bytes[(place * 7 + 3) % WIDTH] = byte.wrapping_mul(31);
                assert_eq!(Masks::of(&bytes), Masks::portable(&bytes));
                let equal = (0..WIDTH).filter(|&at| bytes[at] == byte);
                assert_eq!(places(&bytes, byte), equal.map(|at| 1 << at).sum());
            }
        }
    }
}
