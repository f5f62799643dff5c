//! Characters of one width, as Python keeps a string, to UTF-8: what a long text is encoded from.
//!
//! Python's own encoder takes a character at a time and copies its result, 13 ms for 8 MB of English
//! with a few typographic quotes, a quarter of what its tokens cost; here sixteen characters are
//! narrowed at once while they are ASCII (`python benches/bench_encode.py english`).
//!
//! Held to Python's encoder by the rung `encode` and `tests/test_tokenizer_lists.py`.

use std::mem::MaybeUninit;

use crate::memory::{as_uninit, vec_of};

/// Characters that are looked at together.
const GROUP: usize = 16;

/// The UTF-8 of characters of 1, 2 or 4 bytes; None if one is half of a surrogate pair, or none.
pub fn narrow<T: Copy + Into<u32>>(characters: &[T]) -> Option<Vec<u8>> {
    // As much as they can take: what is not written is not touched, so it costs addresses alone.
    let most = [0, 2, 3, 0, 4][size_of::<T>()];
    let mut out: Vec<u8> = vec_of(characters.len() * most + 4 * GROUP);
    let room = out.spare_capacity_mut();
    let mut at = 0;
    let (groups, rest) = characters.as_chunks::<GROUP>();
    for group in groups {
        let all = group
            .iter()
            .fold(0, |all, &character| all | character.into());
        if all < 0x80 {
            let narrowed = group.map(|character| character.into() as u8);
            room[at..][..GROUP].copy_from_slice(as_uninit(&narrowed));
            at += GROUP;
        } else {
            at += each(group, room[at..].first_chunk_mut()?)?;
        }
    }
    at += each(rest, room[at..].first_chunk_mut()?)?;
    // SAFETY: all bytes up to `at` have been written.
    #[expect(unsafe_code, reason = "setting them first takes half as long again")]
    unsafe {
        out.set_len(at);
    }
    Some(out)
}

/// Writes at most [`GROUP`] characters one by one; their bytes.
#[inline]
fn each<T: Copy + Into<u32>>(
    characters: &[T],
    out: &mut [MaybeUninit<u8>; 4 * GROUP],
) -> Option<usize> {
    let mut at = 0;
    for &character in characters {
        let code = character.into();
        // The bytes after the first from the low end: 10xxxxxx each.
        let low = |shift: u32| 0x80 | code >> shift & 0x3F;
        // Four bytes are written for a character, whatever it needs.
        let (bytes, length) = match code {
            ..0x80 => (code, 1),
            0x80..0x800 => (0xC0 | code >> 6 | low(0) << 8, 2),
            0xD800..0xE000 | 0x11_0000.. => return None,
            0x800..0x1_0000 => (0xE0 | code >> 12 | low(6) << 8 | low(0) << 16, 3),
            0x1_0000..0x11_0000 => {
                let rest = low(12) << 8 | low(6) << 16 | low(0) << 24;
                (0xF0 | code >> 18 | rest, 4)
            }
        };
        out[at..]
            .first_chunk_mut::<4>()?
            .copy_from_slice(as_uninit(&bytes.to_le_bytes()));
        at += length;
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_alone_and_among_others_is_its_utf8() {
        let long = "sixteen characters, and then some more";
        for code in 0..0x11_0100u32 {
            let expected = char::from_u32(code).map(|c| c.to_string().into_bytes());
            assert_eq!(narrow(&[code]), expected, "{code:x}");
            if code % 97 == 0
                && let Some(c) = char::from_u32(code)
            {
                let text = format!("{long}{c}{long}{c}{c}");
                let codes: Vec<u32> = text.chars().map(u32::from).collect();
                assert_eq!(narrow(&codes).unwrap(), text.as_bytes());
                if code < 0x1_0000 {
                    let units: Vec<u16> = text.encode_utf16().collect();
                    assert_eq!(narrow(&units).unwrap(), text.as_bytes());
                }
                if code < 0x100 {
                    let bytes: Vec<u8> = codes.iter().map(|&code| code as u8).collect();
                    assert_eq!(narrow(&bytes).unwrap(), text.as_bytes());
                }
            }
        }
        assert_eq!(narrow::<u16>(&[]), Some(Vec::new()));
    }
}
