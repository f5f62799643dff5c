//! GPT-2's alphabet: a printable character for each byte.
//!
//! A step of a `tokenizer.json` may look at a text that is written so, and the vocabularies of
//! byte-level BPE are. Printable Latin-1 stands for itself, the others follow U+0100 in order.

use std::sync::LazyLock;

/// The character of each byte.
static CHARS: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut others = '\u{100}'..;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        match byte {
            0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
            _ => others.next().expect("characters above U+0100"),
        }
    })
});

/// The byte of each character, 0 for the few below U+0144 that stand for none.
static BYTES: LazyLock<[u8; 0x144]> = LazyLock::new(|| {
    let mut bytes = [0; 0x144];
    for (byte, &char) in (0..=255u8).zip(CHARS.iter()) {
        bytes[char as usize] = byte;
    }
    bytes
});

/// Appends the characters of `bytes`.
pub(crate) fn write(bytes: &[u8], out: &mut String) {
    let chars = &*CHARS;
    out.extend(bytes.iter().map(|&byte| chars[usize::from(byte)]));
}

/// Whether [`read`] gives a byte for a character.
pub(crate) fn is_byte(char: char) -> bool {
    (char as usize) < BYTES.len()
}

/// Appends the bytes that the characters of `text` stand for.
pub(crate) fn read(text: &str, out: &mut Vec<u8>) {
    let bytes = &*BYTES;
    out.extend(text.chars().filter_map(|char| bytes.get(char as usize)));
}

/// The bytes that all of `text` stands for; None if a character of it stands for none.
pub fn bytes_of_chars(text: &str) -> Option<Vec<u8>> {
    let byte = |char: char| {
        let byte = *BYTES.get(char as usize)?;
        (CHARS[usize::from(byte)] == char).then_some(byte)
    };
    text.chars().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_of_its_own() {
        let all: Vec<u8> = (0..=255).collect();
        let (mut text, mut back) = (String::new(), Vec::new());
        write(&all, &mut text);
        read(&text, &mut back);
        assert_eq!(back, all);
        assert_eq!(bytes_of_chars(&text), Some(all));
        for other in [' ', '\0', '\u{7f}', '\u{ad}', '\u{144}', '\u{4e2d}'] {
            assert_eq!(bytes_of_chars(&format!("a{other}")), None);
        }
        assert_eq!(&text[..4], "\u{100}\u{101}");
        assert_eq!(text.chars().max(), Some('\u{143}'));
    }
}
