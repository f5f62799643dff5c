//! What added tokens ask of the characters beside them.

use crate::property::WORD;

/// What an added token asks of the characters around it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Edges {
    /// It is one only if no word character stands beside it.
    pub single_word: bool,
    /// The white space before it belongs to it.
    pub lstrip: bool,
    /// The white space after it belongs to it.
    pub rstrip: bool,
}

/// The valid end of a text that may be cut anywhere, at most as long as one character needs.
fn last_char(text: &[u8]) -> Option<char> {
    let tail = &text[text.len().saturating_sub(4)..];
    let start = tail.iter().rposition(|&byte| byte & 0xC0 != 0x80)?;
    std::str::from_utf8(&tail[start..]).ok()?.chars().next()
}

fn first_char(text: &[u8]) -> Option<char> {
    let head = &text[..text.len().min(4)];
    head.utf8_chunks().next()?.valid().chars().next()
}

/// Whether the last character is one of words.
pub(crate) fn ends_in_word(text: &[u8]) -> bool {
    last_char(text).is_some_and(|char| WORD.has(char))
}

/// Whether the first character is one of words.
pub(crate) fn begins_with_word(text: &[u8]) -> bool {
    first_char(text).is_some_and(|char| WORD.has(char))
}

/// Bytes of the white space that ends a text.
pub(crate) fn blanks_at_end(text: &[u8]) -> usize {
    let mut length = 0;
    while let Some(char) = last_char(&text[..text.len() - length])
        && char.is_whitespace()
    {
        length += char.len_utf8();
    }
    length
}

/// Bytes of the white space that begins a text.
pub(crate) fn blanks_at_start(text: &[u8]) -> usize {
    let mut length = 0;
    while let Some(char) = first_char(&text[length..])
        && char.is_whitespace()
    {
        length += char.len_utf8();
    }
    length
}
