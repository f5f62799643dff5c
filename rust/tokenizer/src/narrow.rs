//! Characters of one width, as Python keeps a string, to UTF-8: what a long text is encoded from.
//!
//! Python's own encoder takes a character at a time and copies its result, 13 ms for 8 MB of English
//! with a few typographic quotes, a quarter of what its tokens cost; here sixteen characters are
//! narrowed at once while they are ASCII (`python benches/bench_encode.py english`).
//!
//! Held to Python's encoder by the rung `encode` and `tests/test_tokenizer_lists.py`.

use crate::memory::vec_of;

/// Characters that are looked at together.
const GROUP: usize = 16;

/// The UTF-8 of characters of 1, 2 or 4 bytes; None if one is half of a surrogate pair, or none.
pub fn narrow<T: Copy + Into<u32>>(characters: &[T]) -> Option<Vec<u8>> {
    // Without a branch, so sixteen at a time as well.
    let size: usize = characters
        .iter()
        .map(|&character| {
            let code: u32 = character.into();
            1 + usize::from(code >= 0x80)
                + usize::from(code >= 0x800)
                + usize::from(code >= 0x1_0000)
        })
        .sum();
    // Four bytes are written for a character, whatever it needs.
    let mut out = vec_of(size + GROUP);
    out.resize(size + GROUP, 0);
    let mut at = 0;
    let (groups, rest) = characters.as_chunks::<GROUP>();
    for group in groups {
        let all = group
            .iter()
            .fold(0, |all, &character| all | character.into());
        if let (true, Some(room)) = (all < 0x80, out[at..].first_chunk_mut::<GROUP>()) {
            for (byte, &character) in room.iter_mut().zip(group) {
                *byte = character.into() as u8;
            }
            at += GROUP;
        } else {
            at = each(group, &mut out, at)?;
        }
    }
    at = each(rest, &mut out, at)?;
    out.truncate(at);
    Some(out)
}

/// Writes characters one by one from `out[at]` on; the place after them.
fn each<T: Copy + Into<u32>>(characters: &[T], out: &mut [u8], mut at: usize) -> Option<usize> {
    for &character in characters {
        let code = character.into();
        // The bytes after the first from the low end: 10xxxxxx each.
        let low = |shift: u32| 0x80 | (code >> shift & 0x3F) as u8;
        let (bytes, length) = match code {
            ..0x80 => ([code as u8, 0, 0, 0], 1),
            0x80..0x800 => ([0xC0 | (code >> 6) as u8, low(0), 0, 0], 2),
            0xD800..0xE000 => return None,
            0x800..0x1_0000 => ([0xE0 | (code >> 12) as u8, low(6), low(0), 0], 3),
            0x1_0000..0x11_0000 => {
                let first = 0xF0 | (code >> 18) as u8;
                ([first, low(12), low(6), low(0)], 4)
            }
            _ => return None,
        };
        *out[at..].first_chunk_mut::<4>()? = bytes;
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
