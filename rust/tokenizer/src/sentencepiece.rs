//! How `SentencePiece` normalises a text: by the map of its model, and with marks for blanks.
//!
//! From the left, the longest key of the map is replaced. With `collapse`, blanks at both ends go
//! and others become one. With `escape` a blank is written U+2581, and with `prefix` one is put
//! before the text, so that its first word is like all others. User-defined tokens stay as they are.
//!
//! Most characters of most texts are printable ASCII before another one, which no key of the usual
//! map holds: they are copied in runs. Linear in the text times the longest key.
//!
//! Kudo and Richardson 2018, arXiv:1808.06226. Defined by `normalise` in
//! `python/tinylm/reference/sentencepiece.py`, held to it by the rung `sentencepiece normaliser`.

use std::borrow::Cow;

use crate::charsmap::Charsmap;
use crate::trie::Trie;

/// What stands for a blank: U+2581.
const MARK: &str = "\u{2581}";

/// A normaliser as the file of a model describes it.
#[derive(Debug, Clone, Default)]
#[expect(clippy::struct_excessive_bools, reason = "the flags of the file")]
pub struct SentencePiece {
    /// The map of characters, if there is one.
    pub map: Option<Charsmap>,
    /// User-defined tokens.
    pub kept: Vec<String>,
    /// Whether a blank is put before the text (`add_dummy_prefix`).
    pub prefix: bool,
    /// Whether that blank comes after the text instead (`treat_whitespace_as_suffix`).
    pub suffix: bool,
    /// Whether several blanks become one (`remove_extra_whitespaces`).
    pub collapse: bool,
    /// Whether a blank becomes a mark (`escape_whitespaces`).
    pub escape: bool,
}

/// A [`SentencePiece`] made ready.
#[derive(Debug)]
pub struct Normalise {
    spec: SentencePiece,
    kept: Trie,
    /// The bytes that stay as they are before another byte of ASCII.
    plain: [bool; 256],
    /// Whether all of ASCII that is printed is plain, but for the blank.
    plain_printed: bool,
    /// Whether a blank before a byte of ASCII is nothing but a blank.
    plain_blank: bool,
}

impl SentencePiece {
    /// With the tables that make it fast.
    pub(crate) fn ready(mut self) -> Normalise {
        // Nothing stays as it is anyway.
        self.kept.retain(|token| !token.is_empty());
        let mut plain = [false; 256];
        for (byte, plain) in (0..128).zip(&mut plain) {
            *plain = self.map.as_ref().is_none_or(|map| map.is_plain(byte));
        }
        for token in &self.kept {
            plain[usize::from(token.as_bytes()[0])] = false;
        }
        let plain_blank = std::mem::replace(&mut plain[usize::from(b' ')], false);
        let plain_printed = (b'!'..=b'~').all(|byte| plain[usize::from(byte)]);
        Normalise {
            plain_printed,
            kept: Trie::new(self.kept.iter().map(String::as_bytes).zip(0..)),
            plain,
            plain_blank,
            spec: self,
        }
    }
}

impl Normalise {
    /// The normalised text.
    pub(crate) fn apply(&self, text: &str) -> String {
        let spec = &self.spec;
        let blank = if spec.escape { MARK } else { " " };
        let mut rest = text;
        if spec.collapse {
            while !rest.is_empty() {
                let (length, part) = self.first(rest);
                if part != " " {
                    break;
                }
                rest = &rest[length..];
            }
        }
        if rest.is_empty() {
            return String::new();
        }
        // About one blank in six characters, each three bytes as a mark.
        let mut out = String::with_capacity(rest.len() * 3 / 2 + 8);
        if spec.prefix && !spec.suffix {
            out.push_str(blank);
        }
        let mut after_blank = spec.collapse;
        while !rest.is_empty() {
            let run = self.short_run(rest.as_bytes());
            if run > 0 {
                // Eight bytes at once and some of them back: one store in place of a copying loop.
                let end = out.len() + run;
                out.push_str(&rest[..8]);
                out.truncate(end);
                rest = &rest[run..];
                after_blank = false;
                if self.is_blank(rest.as_bytes()) {
                    rest = &rest[1..];
                    out.push_str(blank);
                    after_blank = spec.collapse;
                }
                continue;
            }
            // The usual blank, without a search in the map.
            if self.is_blank(rest.as_bytes()) {
                rest = &rest[1..];
                if !after_blank {
                    out.push_str(blank);
                }
                after_blank = spec.collapse;
                continue;
            }
            let run = self.run(rest.as_bytes());
            if run > 0 {
                out.push_str(&rest[..run]);
                rest = &rest[run..];
                after_blank = false;
                continue;
            }
            let (length, part) = self.first(rest);
            rest = &rest[length..];
            let part = if after_blank {
                part.trim_start_matches(' ')
            } else {
                &part
            };
            if part.is_empty() {
                continue;
            }
            after_blank = spec.collapse && part.ends_with(' ');
            if !spec.escape {
                out.push_str(part);
                continue;
            }
            for (number, word) in part.split(' ').enumerate() {
                if number > 0 {
                    out.push_str(MARK);
                }
                out.push_str(word);
            }
        }
        if spec.collapse {
            out.truncate(out.trim_end_matches(blank).len());
        }
        if spec.prefix && spec.suffix {
            out.push_str(blank);
        }
        out
    }

    /// Calls `each(from, to, what these bytes become)` from the left; joined, that is the
    /// normalised text. A blank that is put in comes of no byte, and one that goes becomes nothing.
    pub(crate) fn edits(&self, text: &str, mut each: impl FnMut(usize, usize, &str)) {
        let spec = &self.spec;
        let blank = if spec.escape { MARK } else { " " };
        let mut parts = Vec::new();
        let (mut at, mut after_blank) = (0, spec.collapse);
        while at < text.len() {
            let (length, part) = self.first(&text[at..]);
            let part = if after_blank {
                part.trim_start_matches(' ')
            } else {
                &part
            };
            if !part.is_empty() {
                after_blank = spec.collapse && part.ends_with(' ');
                parts.push((at, at + length, part.replace(' ', blank)));
            }
            at += length;
        }
        while spec.collapse
            && let Some(last) = parts.last_mut()
        {
            last.2.truncate(last.2.trim_end_matches(blank).len());
            if !last.2.is_empty() {
                break;
            }
            parts.pop();
        }
        let (Some(first), Some(last)) = (parts.first(), parts.last()) else {
            if !text.is_empty() && !self.apply(text).is_empty() {
                each(0, 0, blank);
            }
            return;
        };
        let (start, end) = (first.0, last.1);
        if spec.prefix && !spec.suffix {
            each(start, start, blank);
        }
        for (from, to, made) in &parts {
            each(*from, *to, made);
        }
        if spec.prefix && spec.suffix {
            each(end, end, blank);
        }
    }

    /// Whether the text begins with a blank that no key of the map holds.
    #[inline]
    fn is_blank(&self, text: &[u8]) -> bool {
        self.plain_blank && text.first() == Some(&b' ') && text.get(1).is_none_or(u8::is_ascii)
    }

    /// How many of eight bytes of ASCII at the beginning stay as they are; 0 if there are no eight.
    #[inline]
    fn short_run(&self, text: &[u8]) -> usize {
        let Some(eight) = text.first_chunk() else {
            return 0;
        };
        if !self.plain_printed || !eight.is_ascii() {
            return 0;
        }
        let printed = printed(u64::from_le_bytes(*eight));
        // The last of them may begin a key with the character after it.
        match text.get(printed) {
            Some(0x80..) => printed.saturating_sub(1),
            _ => printed,
        }
    }

    /// How many bytes at the beginning stay as they are.
    fn run(&self, text: &[u8]) -> usize {
        let mut plain = 0;
        while self.plain_printed
            && let Some(eight) = text[plain..].first_chunk()
        {
            let printed = printed(u64::from_le_bytes(*eight));
            plain += printed;
            if printed < 8 {
                break;
            }
        }
        plain += text[plain..]
            .iter()
            .take_while(|&&byte| self.plain[usize::from(byte)])
            .count();
        // The last of them may begin a key with the character after it.
        match text.get(plain) {
            Some(0x80..) => plain.saturating_sub(1),
            _ => plain,
        }
    }

    /// What the text begins with, and what it becomes.
    fn first<'a>(&'a self, text: &'a str) -> (usize, Cow<'a, str>) {
        let bytes = text.as_bytes();
        if let Some((length, _)) = self.kept.longest(bytes) {
            return (length, Cow::Borrowed(&text[..length]));
        }
        if let Some((length, replacement)) = self.spec.map.as_ref().and_then(|m| m.longest(bytes))
            && text.is_char_boundary(length)
        {
            return (length, String::from_utf8_lossy(replacement));
        }
        let length = text.chars().next().map_or(0, char::len_utf8);
        (length, Cow::Borrowed(&text[..length]))
    }
}

/// How many of eight bytes, from the lowest on, are printed ASCII but for the blank.
fn printed(bytes: u64) -> usize {
    let each = |byte: u8| u64::from_le_bytes([byte; 8]);
    let low = bytes & each(0x7F);
    // The highest bit of each byte: above the blank, and the last one of ASCII.
    let (above, last) = (low + each(0x80 - b'!'), low + each(1));
    let other = (!above | last | bytes) & each(0x80);
    other.trailing_zeros() as usize / 8
}
