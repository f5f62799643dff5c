//! Splitting text into pieces, the units that no token crosses.
//!
//! A pattern keeps the vocabulary from learning `dog.` and `dog!` as words of their own. It also
//! bounds the work: pieces are short, many are equal, and they can be encoded in any order.
//!
//! The patterns of the field (GPT-2, GPT-4, GPT-4o, Llama 3, Qwen 2) are written by hand, once from
//! piece to piece in [`crate::scan`] and once for 64 bytes at a time in [`crate::window`], as are
//! three simple ones. Each is linear on any input. Other patterns are
//! regular expressions, see [`crate::expression`]. Pieces always cover the text without gaps. Bytes that are not UTF-8 count
//! as symbols, one each.
//!
//! Defined by `split` in `python/tinylm/reference/patterns.py`, held to it by the rungs whose names
//! begin with `split`, one for each pattern.

use crate::Error;
use crate::expression::Expression;
use crate::scan::{BLANK, gpt2, gpt4, marks, o200k, word};
use crate::unicode::{Classes, LETTER, MARK, NUMBER, SPACE};
use crate::window::{self, ENDS, Ends};

/// How text is split into pieces.
///
/// ```
/// use tinylm_tokenizer::Pattern;
///
/// assert!(matches!(Pattern::new("gpt2")?, Pattern::Gpt2));
/// // A published expression gets its scanner and the scanner's name.
/// assert_eq!(Pattern::new(r" ?\S+|\s")?.name(), "word");
/// assert_eq!(Pattern::new(r"\d+|\D+")?.name(), r"\d+|\D+");
/// // Words alone are names, and this is none.
/// assert!(Pattern::new("gtp2").is_err());
/// # Ok::<(), tinylm_tokenizer::Error>(())
/// ```
#[derive(Debug, Clone)]
pub enum Pattern {
    /// GPT-2: contractions, then letters, digits or symbols with the space before them.
    Gpt2,
    /// GPT-4 (`cl100k_base`): any symbol before letters, three digits at most.
    Gpt4,
    /// GPT-4o (`o200k_base`): words end where lower case turns to upper case.
    O200k,
    /// Llama 3: GPT-4 as first published, other at white space that ends a text.
    Llama3,
    /// Qwen 2 and 3: Llama 3 with each digit by itself.
    Qwen2,
    /// Each character by itself.
    Character,
    /// Each run of non-space with the space before it; other white space by itself.
    Word,
    /// Cut before each U+2581 that follows another character: the words of `SentencePiece`.
    Marks,
    /// The whole text as one piece.
    Whole,
    /// What a regular expression matches, and what it leaves between matches.
    ///
    /// Boxed: the other variants are names without data.
    Custom(Box<Expression>),
}

/// The scanners: the name of each, the regular expression it stands for, and itself.
///
/// The expressions are compared as text and never run. They are the forms in which the patterns
/// were published, so that a tokenizer file from elsewhere gets the scanner too.
const KNOWN: [(&str, &str, Pattern); 10] = [
    (
        "gpt2",
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
        Pattern::Gpt2,
    ),
    // As GPT-2 itself had it, and most files have.
    (
        "gpt2",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        Pattern::Gpt2,
    ),
    (
        "gpt4",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
        Pattern::Gpt4,
    ),
    (
        "o200k",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        Pattern::O200k,
    ),
    (
        "llama3",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        Pattern::Llama3,
    ),
    (
        "qwen2",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        Pattern::Qwen2,
    ),
    ("character", r"(?s:.)", Pattern::Character),
    ("word", r" ?\S+|\s", Pattern::Word),
    ("marks", r"\x{2581}*[^\x{2581}]+|\x{2581}+", Pattern::Marks),
    ("whole", r"(?s:.+)", Pattern::Whole),
];

impl Pattern {
    /// The pattern of this name, or of this regular expression.
    ///
    /// An expression that equals the published form of a named pattern gets its scanner.
    ///
    /// # Errors
    ///
    /// [`Error::Pattern`] for a word that is no known name, for an expression that does not
    /// compile, and for one that matches the empty text.
    pub fn new(pattern: &str) -> Result<Self, Error> {
        if let Some(known) = Self::known(pattern) {
            return Ok(known);
        }
        let fail = |reason: &str| {
            let (pattern, reason) = (pattern.into(), reason.into());
            Error::Pattern { pattern, reason }
        };
        // A word alone is a name with a slip in it, not a pattern for just that word.
        if pattern
            .chars()
            .all(|c| c.is_alphanumeric() || "-_".contains(c))
        {
            return Err(fail("not one of gpt2, gpt4, o200k, llama3, qwen2"));
        }
        let expression = Expression::new(pattern)?;
        // A match must take a character, or the text would be cut where nothing is.
        if expression.matches_empty()? {
            return Err(fail(
                "matches the empty text; each match must take a character",
            ));
        }
        Ok(Self::Custom(Box::new(expression)))
    }

    /// The pattern with a scanner of this name or published expression.
    pub(crate) fn known(pattern: &str) -> Option<Self> {
        let found = KNOWN.iter().find(|k| k.0 == pattern || k.1 == pattern);
        found.map(|(_, _, known)| known.clone())
    }

    /// The name of a scanner, or the regular expression.
    pub fn name(&self) -> &str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Gpt4 => "gpt4",
            Self::O200k => "o200k",
            Self::Llama3 => "llama3",
            Self::Qwen2 => "qwen2",
            Self::Character => "character",
            Self::Word => "word",
            Self::Marks => "marks",
            Self::Whole => "whole",
            Self::Custom(expression) => expression.source(),
        }
    }

    /// Calls `each(start, end)` for the pieces of `text` from `start` on, in order.
    ///
    /// What stands before `start` is not looked at, as if the text began there.
    ///
    /// # Errors
    ///
    /// What `each` returns, and [`Error::PatternGaveUp`] from a regular expression.
    pub(crate) fn pieces(
        &self,
        text: &[u8],
        start: usize,
        mut each: impl FnMut(usize, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if let Self::Custom(expression) = self {
            return custom(expression, text, start, each);
        }
        let (mut ends, mut at) = ([0; ENDS], start);
        while at < text.len() {
            let number = self.ends(text, at, &mut ends);
            for &end in &ends[..number] {
                each(at, end)?;
                at = end;
            }
        }
        Ok(())
    }

    /// Whether [`Pattern::ends`] knows it: a scanner and no regular expression.
    pub(crate) fn is_scanner(&self) -> bool {
        !matches!(self, Self::Custom(_))
    }

    /// Writes the ends of the pieces of `text` from `at` on to `ends`, as many as it takes; gives
    /// their number, at least 1 before the end of the text.
    ///
    /// In such batches because whoever takes the pieces is then no part of the scanner's loop. A
    /// regular expression gives the rest as one piece.
    pub(crate) fn ends(&self, text: &[u8], at: usize, ends: &mut Ends) -> usize {
        // One match for each batch: every scanner is compiled into a loop of its own.
        let (c, limit) = (Classes::get(), text.len());
        match self {
            Self::Gpt2 => {
                let starts = |at| window::gpt2(c, text, at);
                window::ends(text, at, ends, starts, |at| gpt2(c, text, at))
            }
            Self::Gpt4 => {
                let starts = |at| window::gpt4(c, text, at, 3);
                window::ends(text, at, ends, starts, |at| gpt4(c, text, at, true, 3))
            }
            Self::O200k => {
                let starts = |at| window::o200k(c, text, at);
                window::ends(text, at, ends, starts, |at| o200k(c, text, at))
            }
            Self::Llama3 => {
                let starts = |at| window::gpt4(c, text, at, 3);
                window::ends(text, at, ends, starts, |at| gpt4(c, text, at, false, 3))
            }
            Self::Qwen2 => {
                let starts = |at| window::gpt4(c, text, at, 1);
                window::ends(text, at, ends, starts, |at| gpt4(c, text, at, false, 1))
            }
            Self::Character => scan(at, limit, ends, |at| at + c.at(text, at).1.max(1)),
            Self::Word => scan(at, limit, ends, |at| word(c, text, at)),
            Self::Marks => {
                let starts = |at| window::marks(text, at);
                window::ends(text, at, ends, starts, |at| marks(text, at))
            }
            Self::Whole | Self::Custom(_) => scan(at, limit, ends, |_| limit),
        }
    }

    /// The last place in `from + 1 ..= to` at which `text` may be cut, if there is one: the
    /// pieces of the two parts, each split by itself, are those of the whole.
    ///
    /// Needs the whole character at the place, so `text` must go on beyond it.
    ///
    /// A regular expression of the user's has no such place that we know of.
    pub(crate) fn cut(&self, text: &[u8], from: usize, to: usize) -> Option<usize> {
        let c = Classes::get();
        // Judged by the two characters at the place alone, so a search of the text is linear.
        let cuts = |at: usize| {
            // Not inside a character, and not before one that the buffer may cut short.
            if text[at] & 0xC0 == 0x80 || (text[at] >= 128 && at + 4 > text.len()) {
                return false;
            }
            let (next, _) = c.at(text, at);
            let (last, _) = c.before(text, at);
            match self {
                // A word ends before anything that is neither letter, mark nor apostrophe,
                // digits before anything else.
                Self::Gpt2 | Self::Gpt4 | Self::O200k | Self::Llama3 | Self::Qwen2 => {
                    (last & LETTER != 0 && next & (LETTER | MARK) == 0 && text[at] != b'\'')
                        || (last & NUMBER != 0 && next & NUMBER == 0)
                }
                Self::Character => true,
                Self::Word => last & SPACE == 0 && next & SPACE != 0,
                Self::Marks => text[at..].starts_with(BLANK) && !text[..at].ends_with(BLANK),
                Self::Whole | Self::Custom(_) => false,
            }
        };
        // An expression may look any distance ahead or behind.
        if matches!(self, Self::Whole | Self::Custom(_)) {
            return None;
        }
        let to = to.min(text.len().checked_sub(1)?);
        // From the end, so the first part is as long as possible. A text of one word costs `O(n)`.
        (from + 1..=to).rev().find(|&at| cuts(at))
    }
}

/// The ends of pieces by a scanner, a function from the start of a piece to its end; gives their
/// number.
#[inline]
fn scan(mut at: usize, limit: usize, ends: &mut Ends, end_of: impl Fn(usize) -> usize) -> usize {
    let mut number = 0;
    for end in ends {
        if at >= limit {
            break;
        }
        at = end_of(at);
        *end = at;
        number += 1;
    }
    number
}

/// The pieces of a regular expression: its matches, and what lies between them.
///
/// It sees only UTF-8. Bytes that are not UTF-8 divide the text and are pieces of one byte, as the
/// scanners have them.
fn custom(
    expression: &Expression,
    text: &[u8],
    start: usize,
    mut each: impl FnMut(usize, usize) -> Result<(), Error>,
) -> Result<(), Error> {
    // Each valid stretch is searched by itself, so `^` and `$` match at its ends too.
    let mut base = start;
    for chunk in text[start..].utf8_chunks() {
        let end = base + chunk.valid().len();
        // Where the last match has ended; what lies between matches is a piece too.
        let mut done = base;
        expression.matches(chunk.valid(), |from, to| {
            let (from, to) = (base + from, base + to);
            if done < from {
                each(done, from)?;
            }
            done = to;
            each(from, to)
        })?;
        if done < end {
            each(done, end)?;
        }
        base = end;
        for _ in chunk.invalid() {
            each(base, base + 1)?;
            base += 1;
        }
    }
    Ok(())
}
