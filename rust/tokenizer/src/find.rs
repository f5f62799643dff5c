//! What a step looks for in a text, and what becomes of the places where it is found.
//!
//! A `tokenizer.json` splits at characters of a kind, at a string, or at the matches of a regular
//! expression, and names what happens to a match by one of five [`Behaviour`]s.
//!
//! Defined by `split` in `python/tinylm/reference/stages.py`.

use crate::expression::Expression;
use crate::property::Property;
use crate::{Error, Interrupt, Pattern};

/// Bytes between two calls of the interrupt: 1 to 10 ms.
const TICK: usize = 1 << 18;

/// A stretch of a text, and whether it was found.
pub(crate) type Found = (usize, usize, bool);

/// Something to look for.
#[derive(Debug, Clone)]
pub struct Find(Kind);

#[derive(Debug, Clone)]
enum Kind {
    /// A pattern with a scanner: every piece is a match.
    Scanner(Pattern),
    Regex(Box<Expression>),
    Text(String),
}

/// What becomes of a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// A piece of its own.
    Isolated,
    /// It is dropped.
    Removed,
    /// A piece together with the matches that touch it.
    Contiguous,
    /// It ends the piece before it.
    MergedWithPrevious,
    /// It begins the piece after it.
    MergedWithNext,
}

impl Find {
    /// A string as it stands.
    ///
    /// # Errors
    ///
    /// [`Error::Pattern`] for the empty string.
    pub fn text(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            let reason = "an empty string is found nowhere".into();
            let pattern = text.into();
            return Err(Error::Pattern { pattern, reason });
        }
        Ok(Self(Kind::Text(text.into())))
    }

    /// A character.
    pub fn character(char: char) -> Self {
        Self(Kind::Text(char.into()))
    }

    /// A regular expression in the dialect of `fancy-regex`, or the name of a [`Pattern`].
    ///
    /// An empty match cuts and takes nothing: `(?=x)` cuts before each x.
    ///
    /// # Errors
    ///
    /// [`Error::Pattern`] for one that does not compile.
    pub fn regex(regex: &str) -> Result<Self, Error> {
        // Callers put an expression into a group, so that a word alone is not taken for a name.
        let inner = regex
            .strip_prefix("(?:")
            .and_then(|rest| rest.strip_suffix(')'));
        let known = inner
            .and_then(Pattern::known)
            .filter(|k| inner != Some(k.name()));
        Ok(Self(match known.or_else(|| Pattern::known(regex)) {
            Some(pattern) => Kind::Scanner(pattern),
            None => Kind::Regex(Box::new(Expression::new(regex)?)),
        }))
    }

    /// Appends the stretches of `text`, found and not found; only found ones are ever empty.
    ///
    /// # Errors
    ///
    /// [`Error::PatternGaveUp`] from a regular expression, and what `interrupt` returns.
    pub(crate) fn stretches(
        &self,
        text: &str,
        out: &mut Vec<Found>,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<(), Error> {
        let (mut done, mut tick) = (0, TICK);
        let mut is_due = |at: usize| {
            let due = at >= tick;
            tick = if due { at + TICK } else { tick };
            due
        };
        let mut add = |from: usize, to: usize, found: bool| {
            if done < from {
                out.push((done, from, false));
            }
            if found {
                out.push((from, to, true));
            }
            done = to;
        };
        match &self.0 {
            Kind::Scanner(pattern) => {
                pattern.pieces(text.as_bytes(), 0, |from, to| {
                    add(from, to, true);
                    if is_due(to) { interrupt() } else { Ok(()) }
                })?;
            }
            Kind::Regex(expression) => {
                expression.matches(text, |from, to| {
                    add(from, to, true);
                    if is_due(to) { interrupt() } else { Ok(()) }
                })?;
            }
            Kind::Text(wanted) => {
                for (at, _) in text.match_indices(wanted.as_str()) {
                    add(at, at + wanted.len(), true);
                    if is_due(at) {
                        interrupt()?;
                    }
                }
            }
        }
        add(text.len(), text.len(), false);
        Ok(())
    }
}

/// Appends the stretches of `text` between and at the characters of a set.
///
/// # Errors
///
/// What `interrupt` returns.
pub(crate) fn characters(
    text: &str,
    wanted: &Property,
    out: &mut Vec<Found>,
    interrupt: &mut Interrupt<'_>,
) -> Result<(), Error> {
    let (bytes, ascii) = (text.as_bytes(), wanted.ascii());
    let (mut at, mut done, mut tick) = (0, 0, TICK);
    while let Some(&byte) = bytes.get(at) {
        let (found, width) = if byte < 128 {
            (ascii >> byte & 1 == 1, 1)
        } else {
            let char = text[at..].chars().next().unwrap_or_default();
            (wanted.has(char), char.len_utf8())
        };
        if found {
            if done < at {
                out.push((done, at, false));
            }
            done = at + width;
            out.push((at, done, true));
        }
        at += width;
        if at >= tick {
            interrupt()?;
            tick = at + TICK;
        }
    }
    if done < text.len() {
        out.push((done, text.len(), false));
    }
    Ok(())
}

impl Behaviour {
    /// Appends the pieces of the stretches `found`, which begin at `base`.
    pub(crate) fn pieces(self, found: &[Found], base: usize, out: &mut Vec<(usize, usize)>) {
        let first = out.len();
        // What was before the first stretch counts as not found, and so does what is after the
        // last for `MergedWithNext`, which goes from the end.
        let mut before = false;
        for &(start, end, now) in found {
            let touches = out.len() > first;
            match self {
                Self::Removed if now => {}
                Self::Contiguous if touches && now == before => {
                    out.last_mut().expect("a piece before").1 = base + end;
                }
                Self::MergedWithPrevious if touches && now && !before => {
                    out.last_mut().expect("a piece before").1 = base + end;
                }
                // Of several matches in a row, the last one begins the stretch after it.
                Self::MergedWithNext if touches && !now && before => {
                    out.last_mut().expect("a piece before").1 = base + end;
                }
                _ => out.push((base + start, base + end)),
            }
            before = now;
        }
        // What was found may be empty.
        if out[first..].iter().any(|piece| piece.0 == piece.1) {
            let last = out.split_off(first);
            out.extend(last.into_iter().filter(|piece| piece.0 < piece.1));
        }
    }
}
