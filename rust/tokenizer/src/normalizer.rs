//! The first stage: the text that the other stages see, by the normalisers of a `tokenizer.json`.
//!
//! A tokenizer without normalisers never comes here. Each step takes a text and gives another one,
//! in time linear in it, and hands on what it does not change without a copy.
//!
//! Defined by the functions of `python/tinylm/reference/normalizers.py`, held to them by the rungs
//! whose names begin with `normalise`.

use std::borrow::Cow;
use std::sync::Arc;

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick, is_nfd_quick};
use unicode_segmentation::UnicodeSegmentation;

use crate::charsmap::Charsmap;
use crate::find::Find;
use crate::property::{CONTROL, MARK, NEWER, NONSPACING, Property};
use crate::sentencepiece::{Normalise, SentencePiece};
use crate::{Error, Interrupt, alphabet};

/// Characters between two calls of the interrupt: 1 to 5 ms.
const TICK: usize = 1 << 16;

/// One step of normalising.
#[derive(Debug, Clone)]
pub enum Normalizer {
    /// Unicode's composed form.
    Nfc,
    /// Unicode's decomposed form.
    Nfd,
    /// Composed, with compatible characters replaced.
    Nfkc,
    /// Decomposed, with compatible characters replaced.
    Nfkd,
    /// Each character by itself in lower case.
    Lowercase,
    /// Without the white space at an end.
    Strip {
        /// At the beginning.
        left: bool,
        /// At the end.
        right: bool,
    },
    /// Without combining marks.
    StripAccents,
    /// BERT's third step: without nonspacing marks, in a decomposed text.
    StripNonspacing,
    /// Something else in the place of what is found.
    Replace {
        /// What is looked for.
        find: Find,
        /// What stands there instead.
        content: String,
    },
    /// A string before a text that is not empty.
    Prepend(String),
    /// BERT's first step: no control characters, and a blank for each white space.
    Clean,
    /// BERT's second step: a blank before and after each Chinese character.
    SpaceChinese,
    /// The rules of Google's neural machine translation for control characters and blanks.
    Nmt,
    /// A precompiled map, as Hugging Face's tokenizers apply it.
    Precompiled(Charsmap),
    /// A character of GPT-2's alphabet for each byte.
    ByteLevel,
    /// All that a model of `SentencePiece` does.
    SentencePiece(Arc<Normalise>),
}

impl Normalizer {
    /// The text after this step.
    ///
    /// # Errors
    ///
    /// [`Error::PatternGaveUp`] from a regular expression, and what `interrupt` returns.
    pub(crate) fn apply<'a>(
        &self,
        text: Cow<'a, str>,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<Cow<'a, str>, Error> {
        if self.is_idle(&text) {
            return Ok(text);
        }
        Ok(match self {
            Self::Nfc => form(&text, <&str>::nfc, interrupt)?.into(),
            Self::Nfd => form(&text, <&str>::nfd, interrupt)?.into(),
            Self::Nfkc => form(&text, <&str>::nfkc, interrupt)?.into(),
            Self::Nfkd => form(&text, <&str>::nfkd, interrupt)?.into(),
            Self::Lowercase => lowercase(text, interrupt)?,
            Self::Strip { left, right } => strip(text, *left, *right),
            Self::StripAccents => without(&text, &MARK, interrupt)?.into(),
            Self::StripNonspacing => without(&text, &NONSPACING, interrupt)?.into(),
            Self::Replace { find, content } => replace(text, find, content, interrupt)?,
            Self::Prepend(start) => format!("{start}{text}").into(),
            Self::Clean => {
                let kept = text.chars().filter_map(clean);
                collect(kept, text.len(), interrupt)?.into()
            }
            Self::SpaceChinese => {
                let spaced = text.chars().flat_map(|char| {
                    let around = is_chinese(char).then_some(' ');
                    around.into_iter().chain([char]).chain(around)
                });
                collect(spaced, text.len(), interrupt)?.into()
            }
            Self::SentencePiece(step) => step.apply(&text).into(),
            Self::Precompiled(map) => precompiled(&text, map, interrupt)?.into(),
            Self::ByteLevel => {
                let mut out = String::with_capacity(text.len());
                alphabet::write(text.as_bytes(), &mut out);
                out.into()
            }
            Self::Nmt => {
                let chars = text.chars().filter_map(nmt);
                collect(chars, text.len(), interrupt)?.into()
            }
        })
    }
}

impl From<SentencePiece> for Normalizer {
    fn from(spec: SentencePiece) -> Self {
        Self::SentencePiece(Arc::new(spec.ready()))
    }
}

impl Normalizer {
    /// Whether this step is quickly seen to leave a text as it is.
    fn is_idle(&self, text: &str) -> bool {
        match self {
            // All characters below U+0300 are composed, and their first bytes are below 0xCC.
            Self::Nfc => {
                text.bytes().all(|byte| byte < 0xCC)
                    || is_nfc_quick(text.chars()) == IsNormalized::Yes
            }
            Self::Nfd => is_nfd_quick(text.chars()) == IsNormalized::Yes,
            Self::Nfkc
            | Self::Nfkd
            | Self::SpaceChinese
            | Self::StripAccents
            | Self::StripNonspacing => text.is_ascii(),
            _ => text.is_empty(),
        }
    }
}

/// The text with each stretch of characters that `tokenizers` knows in a normal form.
///
/// Its tables are of Unicode 9: what is newer is a character like any other, and separates.
fn form<'a, I: Iterator<Item = char>>(
    text: &'a str,
    of: impl Fn(&'a str) -> I,
    interrupt: &mut Interrupt<'_>,
) -> Result<String, Error> {
    beyond_ascii(text, interrupt, |part, out, interrupt| {
        let mut start = 0;
        for (at, newer) in part.match_indices(|char| NEWER.has(char)) {
            append(of(&part[start..at]), out, interrupt)?;
            out.push_str(newer);
            start = at + newer.len();
        }
        append(of(&part[start..]), out, interrupt)
    })
}

/// The text with its ASCII as it is, but for what `write` makes of the other stretches.
///
/// Each has the character of ASCII before it, on which a mark may stand, and the one after it, which
/// may belong to a sign before it; no rule reaches over two of ASCII.
fn beyond_ascii<'a>(
    text: &'a str,
    interrupt: &mut Interrupt<'_>,
    mut write: impl FnMut(&'a str, &mut String, &mut Interrupt<'_>) -> Result<(), Error>,
) -> Result<String, Error> {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let (mut at, mut tick) = (0, TICK);
    while at < bytes.len() {
        if at >= tick {
            interrupt()?;
            tick = at + TICK;
        }
        let run = bytes[at..].iter().position(|byte| !byte.is_ascii());
        let start = run.map_or(bytes.len(), |run| at + run.saturating_sub(1));
        out.push_str(&text[at..start]);
        let end = stretch_end(bytes, start, |byte| byte.is_ascii());
        write(&text[start..end], &mut out, interrupt)?;
        at = end;
    }
    Ok(out)
}

/// The end of the stretch at `start`: between the first two `plain` bytes in a row after its first
/// character, or at the end of the text.
fn stretch_end(bytes: &[u8], start: usize, plain: impl Fn(u8) -> bool) -> usize {
    let rest = &bytes[start..];
    let pair = rest
        .windows(2)
        .skip(1)
        .position(|two| plain(two[0]) && plain(two[1]));
    pair.map_or(bytes.len(), |pair| start + pair + 2)
}

/// The characters as a string.
fn collect(
    chars: impl Iterator<Item = char>,
    expected: usize,
    interrupt: &mut Interrupt<'_>,
) -> Result<String, Error> {
    let mut out = String::with_capacity(expected);
    append(chars, &mut out, interrupt)?;
    Ok(out)
}

/// Appends characters; looks for interrupts now and then.
fn append(
    chars: impl Iterator<Item = char>,
    out: &mut String,
    interrupt: &mut Interrupt<'_>,
) -> Result<(), Error> {
    for (number, char) in chars.enumerate() {
        if number % TICK == TICK - 1 {
            interrupt()?;
        }
        out.push(char);
    }
    Ok(())
}

/// The text with the replacements of a map.
///
/// `SentencePiece` replaces the longest key at each place. Hugging Face looks at each grapheme
/// cluster of less than 6 bytes: if it begins with a key, what stands for the shortest such key
/// stands for all of it. The characters of other clusters are replaced one by one.
fn precompiled(text: &str, map: &Charsmap, interrupt: &mut Interrupt<'_>) -> Result<String, Error> {
    let mut out = Vec::with_capacity(text.len());
    replacements(text, map, interrupt, |_, _, made| {
        out.extend_from_slice(made);
    })?;
    // A damaged map may hold other bytes than UTF-8.
    Ok(String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into()))
}

/// Calls `each(from, to, what these bytes become)` from the left, by the rule of [`precompiled`].
pub(crate) fn replacements(
    text: &str,
    map: &Charsmap,
    interrupt: &mut Interrupt<'_>,
    mut each: impl FnMut(usize, usize, &[u8]),
) -> Result<(), Error> {
    let bytes = text.as_bytes();
    let (mut at, mut tick) = (0, TICK);
    while at < bytes.len() {
        if at >= tick {
            interrupt()?;
            tick = at + TICK;
        }
        // Characters of ASCII that stay as they are, but for the last one: a mark may follow.
        let run = bytes[at..].iter().position(|&byte| !map.is_plain(byte));
        let start = run.map_or(bytes.len(), |run| at + run.saturating_sub(1));
        each(at, start, &bytes[at..start]);
        let end = stretch_end(bytes, start, |byte| map.is_plain(byte));
        for (number, (place, cluster)) in text[start..end].grapheme_indices(true).enumerate() {
            if number % TICK == TICK - 1 {
                interrupt()?;
            }
            by_map(start + place, cluster, map, &mut each);
        }
        at = end;
    }
    Ok(())
}

/// The replacements of a grapheme cluster, which begins at `start`.
fn by_map(start: usize, cluster: &str, map: &Charsmap, each: &mut impl FnMut(usize, usize, &[u8])) {
    let whole = if cluster.len() < 6 {
        map.shortest(cluster.as_bytes())
    } else {
        None
    };
    if let Some(replacement) = whole {
        each(start, start + cluster.len(), replacement);
        return;
    }
    for (at, char) in cluster.char_indices() {
        let part = &cluster.as_bytes()[at..at + char.len_utf8()];
        let made = map.shortest(part).unwrap_or(part);
        each(start + at, start + at + part.len(), made);
    }
}

fn lowercase<'a>(text: Cow<'a, str>, interrupt: &mut Interrupt<'_>) -> Result<Cow<'a, str>, Error> {
    if text.is_ascii() {
        let upper = text.bytes().any(|byte| byte.is_ascii_uppercase());
        return Ok(if upper {
            text.to_ascii_lowercase().into()
        } else {
            text
        });
    }
    // Not `str::to_lowercase`, which looks at the letters around a sigma.
    let mut lower = beyond_ascii(&text, interrupt, |part, out, interrupt| {
        append(part.chars().flat_map(char::to_lowercase), out, interrupt)
    })?;
    lower.make_ascii_lowercase();
    Ok(lower.into())
}

/// The text without the characters of a set, which has none of ASCII.
fn without(text: &str, set: &Property, interrupt: &mut Interrupt<'_>) -> Result<String, Error> {
    beyond_ascii(text, interrupt, |part, out, interrupt| {
        append(part.chars().filter(|&char| !set.has(char)), out, interrupt)
    })
}

fn strip(text: Cow<'_, str>, left: bool, right: bool) -> Cow<'_, str> {
    let end = if right {
        text.trim_end().len()
    } else {
        text.len()
    };
    let rest = &text[..end];
    let start = if left {
        end - rest.trim_start().len()
    } else {
        0
    };
    match text {
        Cow::Borrowed(text) => text[start..end].into(),
        Cow::Owned(mut text) => {
            text.truncate(end);
            text.drain(..start);
            text.into()
        }
    }
}

fn replace<'a>(
    text: Cow<'a, str>,
    find: &Find,
    content: &str,
    interrupt: &mut Interrupt<'_>,
) -> Result<Cow<'a, str>, Error> {
    let mut found = Vec::new();
    find.stretches(&text, &mut found, interrupt)?;
    if found.iter().all(|&(_, _, found)| !found) {
        return Ok(text);
    }
    let mut out = String::with_capacity(text.len());
    for (start, end, found) in found {
        out.push_str(if found { content } else { &text[start..end] });
    }
    Ok(out.into())
}

/// What a character becomes by BERT's first step; None if it goes.
fn clean(char: char) -> Option<char> {
    match char {
        '\t' | '\n' | '\r' => Some(' '),
        '\0' | char::REPLACEMENT_CHARACTER => None,
        _ if CONTROL.has(char) => None,
        _ if char.is_whitespace() => Some(' '),
        _ => Some(char),
    }
}

/// The blocks of unified ideographs, as BERT lists them.
fn is_chinese(char: char) -> bool {
    matches!(
        char as u32,
        0x4E00..=0x9FFF
            | 0x3400..=0x4DBF
            | 0x2_0000..=0x2_A6DF
            | 0x2_A700..=0x2_B73F
            | 0x2_B740..=0x2_B81F
            | 0x2_B920..=0x2_CEAF
            | 0xF900..=0xFAFF
            | 0x2_F800..=0x2_FA1F
    )
}

/// What a character becomes by Google's rules; None if it goes.
fn nmt(char: char) -> Option<char> {
    match char as u32 {
        0x01..=0x08 | 0x0B | 0x0E..=0x1F | 0x7F | 0x8F | 0x9F => None,
        0x09
        | 0x0A
        | 0x0C
        | 0x0D
        | 0x1680
        | 0x200B..=0x200F
        | 0x2028
        | 0x2029
        | 0x2581
        | 0xFEFF
        | 0xFFFD => Some(' '),
        _ => Some(char),
    }
}
