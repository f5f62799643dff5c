//! The patterns as scanners: each function takes the start of a piece to its end.
//!
//! They are written by hand, with a branch for each alternative of the regular expression. Two
//! branches may stand in another order than their alternatives if these cannot match at the same
//! place: a letter, for example, begins no contraction.
//!
//! No scanner looks back further than the run of characters that it has just read, so each takes
//! time linear in the text. A regular expression engine that backtracks does not promise that, and
//! the splitter sees every byte of a corpus.
//!
//! Defined by `PATTERNS` in `python/tinylm/reference/patterns.py`, held to them by the rungs whose
//! names begin with `split`. [`crate::split`] chooses the scanner.

use crate::unicode::{Classes, LETTER, LOWER, MARK, NEWLINE, NUMBER, SPACE, UNCASED, UPPER};

/// Bytes of the contraction at `at`: `'s 't 'd 'm 'll 've 're`, 0 if there is none.
///
/// `folded` ignores case, under which U+017F (long s) is an s too.
#[inline]
pub(crate) fn contraction(text: &[u8], at: usize, folded: bool) -> usize {
    if text.get(at) != Some(&b'\'') {
        return 0;
    }
    // 0 past the end: no contraction has it.
    let letter = |at: usize| match text.get(at) {
        Some(byte) if folded => byte.to_ascii_lowercase(),
        Some(byte) => *byte,
        None => 0,
    };
    // The longest form is three bytes; `'ve` and `'re` share their second letter.
    match (letter(at + 1), letter(at + 2)) {
        (b's' | b't' | b'd' | b'm', _) => 2,
        (b'l', b'l') | (b'v' | b'r', b'e') => 3,
        // U+017F in UTF-8.
        (0xC5, 0xBF) if folded => 3,
        _ => 0,
    }
}

/// End of the piece of white space at `at`, as all patterns have it but for `lines`.
///
/// Up to and with the last line end if `lines`; else all but the last character, which
/// belongs to the word that follows; all of it at the end of the text, where `tail` decides
/// whether even line ends do not divide it.
#[inline]
fn white_space(c: &Classes, text: &[u8], at: usize, lines: bool, tail: bool) -> usize {
    let end = c.run(text, at, SPACE);
    if tail && end == text.len() {
        return end;
    }
    if lines {
        let run = &text[at..end];
        if let Some(last) = run.iter().rposition(|&byte| byte == b'\n' || byte == b'\r') {
            return at + last + 1;
        }
    }
    if end == text.len() {
        return end;
    }
    // The look-ahead (?!\S) of the expressions gives one character back to the word.
    let (_, last) = c.before(text, end);
    if last > at { last } else { end }
}

/// GPT-2: the branches in the order of its expression.
#[inline]
pub(crate) fn gpt2(c: &Classes, text: &[u8], at: usize) -> usize {
    let contracted = contraction(text, at, false);
    if contracted > 0 {
        return at + contracted;
    }
    // One space may belong to the word, whatever kind of word follows.
    let from = at + usize::from(text[at] == b' ');
    let (class, width) = c.at(text, from);
    // A width of 0 is a single space at the end of the text.
    if width == 0 || class & SPACE != 0 {
        return white_space(c, text, at, false, true);
    }
    if class & LETTER != 0 {
        return c.run(text, from + width, LETTER);
    }
    if class & NUMBER != 0 {
        return c.run(text, from + width, NUMBER);
    }
    c.run_without(text, from + width, SPACE | LETTER | NUMBER)
}

/// GPT-4 with `tail`, Llama 3 and Qwen 2 without: GPT-4 takes the white space that ends a text
/// whole. Up to `group` numbers are a piece: three, with Qwen 2 one.
#[inline]
pub(crate) fn gpt4(c: &Classes, text: &[u8], at: usize, tail: bool, group: usize) -> usize {
    let (class, width) = c.at(text, at);
    // A letter begins no contraction and no number, so this test may come before theirs.
    if class & LETTER != 0 {
        return c.run(text, at + width, LETTER);
    }
    if class & NUMBER != 0 {
        return numbers(c, text, at, group);
    }
    // Before words with a symbol in front: of `'so` the contraction `'s` is cut off.
    let contracted = contraction(text, at, true);
    if contracted > 0 {
        return at + contracted;
    }
    // One symbol or space may stand before a word, but no line end.
    let (next, next_width) = c.at(text, at + width);
    if class & NEWLINE == 0 && next & LETTER != 0 {
        return c.run(text, at + width + next_width, LETTER);
    }
    symbols(c, text, at, (class, width), next, NEWLINE, false)
        .unwrap_or_else(|| white_space(c, text, at, true, tail))
}

/// End of one to `group` numbers at `at`: `\p{N}{1,3}` with a group of three.
fn numbers(c: &Classes, text: &[u8], mut at: usize, group: usize) -> usize {
    for _ in 0..group {
        let (class, width) = c.at(text, at);
        if class & NUMBER == 0 {
            break;
        }
        at += width;
    }
    at
}

/// End of ` ?[^\s\p{L}\p{N}]+[\r\n]*` at `at` (with `slash`: `[\r\n/]*`), if it matches.
///
/// `class` and `width` are those of the character at `at`, `next` is the class of the one after
/// it: the callers know them already. `tail` is the class of what may follow the symbols.
#[inline]
fn symbols(
    c: &Classes,
    text: &[u8],
    at: usize,
    (class, width): (u8, usize),
    next: u8,
    tail: u8,
    slash: bool,
) -> Option<usize> {
    const NOT: u8 = SPACE | LETTER | NUMBER | crate::unicode::END;
    // Either the symbols begin here, or one space stands before them.
    if class & NOT != 0 && !(text[at] == b' ' && next & NOT == 0) {
        return None;
    }
    let mut end = c.run_without(text, at + width, SPACE | LETTER | NUMBER);
    loop {
        // A class has no bit for the slash alone, so runs of line ends and slashes alternate.
        end = c.run(text, end, tail);
        if !(slash && text.get(end) == Some(&b'/')) {
            return Some(end);
        }
        end += 1;
    }
}

/// GPT-4o: a word of lower case with what may stand before it, then one of upper case.
#[inline]
pub(crate) fn o200k(c: &Classes, text: &[u8], at: usize) -> usize {
    let (class, width) = c.at(text, at);
    if class & NUMBER != 0 {
        return numbers(c, text, at, 3);
    }
    let (next, _) = c.at(text, at + width);
    // A mark is both: what may stand before a word, and a letter of it.
    let inside = class & (LETTER | MARK) != 0;
    let before = class & (NEWLINE | LETTER) == 0 && next & (LETTER | MARK) != 0;
    if inside || before {
        let try_at =
            |from: usize, allowed: bool, word: fn(&Classes, &[u8], usize) -> Option<usize>| {
                if allowed { word(c, text, from) } else { None }
            };
        // The order of the expression: both forms of a word of lower case, then of upper case, and
        // of each the one with a character before it first.
        let found = try_at(at + width, before, lower_word)
            .or_else(|| try_at(at, inside, lower_word))
            .or_else(|| try_at(at + width, before, upper_word))
            .or_else(|| try_at(at, inside, upper_word));
        if let Some(end) = found {
            return end + contraction(text, end, true);
        }
    }
    symbols(c, text, at, (class, width), next, NEWLINE, true)
        .unwrap_or_else(|| white_space(c, text, at, true, false))
}

/// End of `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+` at `at`.
///
/// The two classes share the letters without case and the marks, so the first part may have to
/// give some back. None if nothing is left for the second part.
#[inline]
fn lower_word(c: &Classes, text: &[u8], at: usize) -> Option<usize> {
    let upper_end = c.run(text, at, UPPER | UNCASED | MARK);
    let end = c.run(text, upper_end, LOWER | UNCASED | MARK);
    if end > upper_end {
        return Some(end);
    }
    // Still linear: what is given back after a match holds no character without case, so it is
    // searched in vain once more and then taken whole by `upper_word`.
    // Give back characters until one without case can stand for the lower-case part.
    let mut end = upper_end;
    while end > at {
        let (class, start) = c.before(text, end);
        if class & (UNCASED | MARK) != 0 {
            return Some(end);
        }
        end = start;
    }
    None
}

/// End of `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*` at `at`.
///
/// Tried after [`lower_word`], so nothing has to be given back here.
#[inline]
fn upper_word(c: &Classes, text: &[u8], at: usize) -> Option<usize> {
    let upper_end = c.run(text, at, UPPER | UNCASED | MARK);
    (upper_end > at).then(|| c.run(text, upper_end, LOWER | UNCASED | MARK))
}

/// Each run of non-space with one space before it; other white space by itself.
#[inline]
pub(crate) fn word(c: &Classes, text: &[u8], at: usize) -> usize {
    let from = at + usize::from(text[at] == b' ');
    let (class, width) = c.at(text, from);
    if width > 0 && class & SPACE == 0 {
        return c.run_without(text, from + width, SPACE);
    }
    // At least one byte, or the scan would never end.
    at + c.at(text, at).1.max(1)
}

/// U+2581 in UTF-8.
pub(crate) const BLANK: &[u8; 3] = b"\xE2\x96\x81";

/// The words of `SentencePiece`: up to the first mark that follows another character.
pub(crate) fn marks(text: &[u8], at: usize) -> usize {
    let mut end = at;
    while text[end..].starts_with(BLANK) {
        end += BLANK.len();
    }
    while let Some(next) = text[end..].iter().position(|&byte| byte == BLANK[0]) {
        end += next;
        if text[end..].starts_with(BLANK) {
            return end;
        }
        end += 1;
    }
    text.len()
}
