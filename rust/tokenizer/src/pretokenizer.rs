//! The pre-tokenizers of a `tokenizer.json`: a text in pieces, by one step after the other.
//!
//! Most steps only cut; some change the text too (a blank in front, U+2581 for blanks, a character
//! for each byte). A step sees each piece of the step before by itself, and takes time linear in
//! the text.
//!
//! Defined by the functions of `python/tinylm/reference/stages.py`, held to them by the rungs whose
//! names begin with `pre-tokenize`.

use crate::align::{self, Origin};
use crate::alphabet;
use crate::find::{Behaviour, Find, Found, characters};
use crate::property::{NUMBER, PUNCTUATION, Property, SPACE, WORD};
use crate::{Error, Interrupt, script_runs};

/// Bytes between two calls of the interrupt: 1 to 5 ms.
const TICK: usize = 1 << 17;

/// One step of cutting a text into pieces.
#[derive(Debug, Clone)]
pub enum PreTokenizer {
    /// A character for each byte, perhaps after a blank in front and GPT-2's pattern.
    ByteLevel {
        /// Whether each piece that does not begin with a blank gets one.
        prefix_space: bool,
        /// GPT-2's pattern, if it is to split.
        pattern: Option<Find>,
    },
    /// Pieces at what is found, or with `invert` at what is between.
    Split {
        /// What is looked for.
        find: Find,
        /// What becomes of it.
        behaviour: Behaviour,
        /// Whether what is between the matches counts as the match.
        invert: bool,
    },
    /// Numbers apart from the rest, with `individual` each digit.
    Digits {
        /// Whether digits are apart from each other too.
        individual: bool,
    },
    /// Punctuation apart from the rest.
    Punctuation(Behaviour),
    /// Runs of word characters, and runs of others that are no white space.
    Whitespace,
    /// What is between white space.
    WhitespaceSplit,
    /// What is between white space, and each punctuation mark by itself.
    Bert,
    /// A mark for each blank, perhaps one in front, and pieces that begin at the marks.
    Metaspace {
        /// The mark.
        mark: char,
        /// Where one is put in front.
        prepend: Prepend,
        /// Whether the marks begin pieces.
        split: bool,
    },
    /// What is between the occurrences of a character.
    Delimiter(char),
    /// Runs of one script.
    Scripts,
    /// Pieces of this many characters.
    FixedLength(usize),
}

/// Which pieces get a mark in front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prepend {
    /// The one at the beginning of the text.
    First,
    /// All.
    Always,
    /// None.
    Never,
}

/// A text, and the pieces of it in order; what lies between them is gone.
pub(crate) struct Pieces<'a, 'b> {
    pub(crate) interrupt: &'a mut Interrupt<'b>,
    pub(crate) text: String,
    pub(crate) spans: Vec<(usize, usize)>,
    /// Where each byte of the text comes from; empty if nobody asks.
    pub(crate) origin: Vec<Origin>,
    /// Whether the first piece begins where the text did: nothing before it has gone.
    begins: bool,
}

impl<'a, 'b> Pieces<'a, 'b> {
    /// A text in one piece, or none if it is empty.
    pub(crate) fn whole(
        text: String,
        origin: Vec<Origin>,
        interrupt: &'a mut Interrupt<'b>,
    ) -> Self {
        let spans = if text.is_empty() {
            Vec::new()
        } else {
            vec![(0, text.len())]
        };
        Self {
            interrupt,
            text,
            spans,
            origin,
            begins: true,
        }
    }

    /// The pieces `from..to` of these by themselves.
    pub(crate) fn block(&mut self, from: usize, to: usize) -> Pieces<'_, 'b> {
        let spans = &self.spans[from..to];
        let start = spans.first().map_or(0, |span| span.0);
        let end = spans.last().map_or(start, |span| span.1);
        Pieces {
            text: self.text[start..end].to_owned(),
            spans: spans.iter().map(|s| (s.0 - start, s.1 - start)).collect(),
            origin: self.origin.get(start..end).unwrap_or_default().to_vec(),
            begins: self.begins && from == 0,
            interrupt: &mut *self.interrupt,
        }
    }

    /// Cuts each piece: `cut` appends the stretches that it finds in one.
    fn cut(
        &mut self,
        behaviour: Behaviour,
        invert: bool,
        mut cut: impl FnMut(&str, &mut Vec<Found>, &mut Interrupt<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut spans = Vec::with_capacity(self.spans.len());
        let mut found = Vec::new();
        let mut tick = 0;
        for &(start, end) in &self.spans {
            // Each piece may be too short to ask by itself.
            if start >= tick {
                (self.interrupt)()?;
                tick = start + TICK;
            }
            found.clear();
            cut(&self.text[start..end], &mut found, self.interrupt)?;
            // Nothing was found, as in most pieces.
            if let [(_, _, false)] = found[..]
                && !invert
            {
                spans.push((start, end));
                continue;
            }
            if invert {
                for stretch in &mut found {
                    stretch.2 = !stretch.2;
                }
            }
            behaviour.pieces(&found, start, &mut spans);
        }
        let start = |spans: &[(usize, usize)]| spans.first().map(|span| span.0);
        self.begins &= start(&spans) == start(&self.spans);
        self.spans = spans;
        Ok(())
    }

    /// Cuts each piece at the characters of a set.
    fn cut_at(&mut self, behaviour: Behaviour, wanted: &Property) -> Result<(), Error> {
        self.cut(behaviour, false, |piece, found, interrupt| {
            characters(piece, wanted, found, interrupt)
        })
    }

    /// Cuts each piece at a character.
    fn cut_at_char(&mut self, behaviour: Behaviour, wanted: char) -> Result<(), Error> {
        let find = Find::character(wanted);
        self.cut(behaviour, false, |piece, found, interrupt| {
            find.stretches(piece, found, interrupt)
        })
    }

    /// Writes each piece anew: `write` appends what the piece of a number becomes. That is one
    /// character for each of its characters, or with `bytes` for each byte, and perhaps one more in
    /// front.
    fn rewrite(&mut self, bytes: bool, mut write: impl FnMut(usize, &str, &mut String)) {
        let mut text = String::with_capacity(self.text.len());
        let mut origin = Vec::new();
        for (number, span) in self.spans.iter_mut().enumerate() {
            let start = text.len();
            let piece = &self.text[span.0..span.1];
            write(number, piece, &mut text);
            if !self.origin.is_empty() {
                let of = &self.origin[span.0..span.1];
                align::follow(piece, of, &text[start..], bytes, &mut origin);
            }
            *span = (start, text.len());
        }
        self.text = text;
        self.origin = origin;
    }
}

impl PreTokenizer {
    /// Cuts the pieces further. `first`: they begin where the whole text does.
    ///
    /// Without `chars`, [`PreTokenizer::ByteLevel`] leaves the bytes as they are.
    ///
    /// # Errors
    ///
    /// [`Error::PatternGaveUp`] from a regular expression.
    pub(crate) fn apply(
        &self,
        pieces: &mut Pieces<'_, '_>,
        first: bool,
        chars: bool,
    ) -> Result<(), Error> {
        match self {
            Self::ByteLevel {
                prefix_space,
                pattern,
            } => {
                if *prefix_space
                    && pieces
                        .spans
                        .iter()
                        .any(|p| !pieces.text[p.0..].starts_with(' '))
                {
                    pieces.rewrite(false, |_, piece, out| {
                        if !piece.starts_with(' ') {
                            out.push(' ');
                        }
                        out.push_str(piece);
                    });
                }
                if let Some(find) = pattern {
                    pieces.cut(Behaviour::Isolated, false, |piece, found, interrupt| {
                        find.stretches(piece, found, interrupt)
                    })?;
                }
                if chars {
                    pieces.rewrite(true, |_, piece, out| alphabet::write(piece.as_bytes(), out));
                }
                Ok(())
            }
            Self::Split {
                find,
                behaviour,
                invert,
            } => pieces.cut(*behaviour, *invert, |piece, found, interrupt| {
                find.stretches(piece, found, interrupt)
            }),
            Self::Digits { individual: true } => pieces.cut_at(Behaviour::Isolated, &NUMBER),
            Self::Digits { individual: false } => pieces.cut_at(Behaviour::Contiguous, &NUMBER),
            Self::Punctuation(behaviour) => pieces.cut_at(*behaviour, &PUNCTUATION),
            Self::Whitespace => {
                pieces.cut_at(Behaviour::Removed, &SPACE)?;
                // What is left is words and the rest, each in runs.
                pieces.cut_at(Behaviour::Contiguous, &WORD)
            }
            Self::WhitespaceSplit => pieces.cut_at(Behaviour::Removed, &SPACE),
            Self::Bert => {
                pieces.cut_at(Behaviour::Removed, &SPACE)?;
                pieces.cut_at(Behaviour::Isolated, &PUNCTUATION)
            }
            Self::Metaspace {
                mark,
                prepend,
                split,
            } => {
                let first = first && pieces.begins;
                pieces.rewrite(false, |number, piece, out| {
                    let wanted = match prepend {
                        Prepend::Always => true,
                        Prepend::First => first && number == 0,
                        Prepend::Never => false,
                    };
                    if wanted && !piece.starts_with([' ', *mark]) {
                        out.push(*mark);
                    }
                    for (number, part) in piece.split(' ').enumerate() {
                        if number > 0 {
                            out.push(*mark);
                        }
                        out.push_str(part);
                    }
                });
                if *split {
                    return pieces.cut_at_char(Behaviour::MergedWithNext, *mark);
                }
                Ok(())
            }
            Self::Delimiter(delimiter) => pieces.cut_at_char(Behaviour::Removed, *delimiter),
            Self::Scripts => pieces.cut(Behaviour::Removed, false, |piece, found, _| {
                script_runs::runs(piece, found);
                Ok(())
            }),
            Self::FixedLength(length) => {
                let mut spans = Vec::new();
                for &(start, end) in &pieces.spans {
                    let places = pieces.text[start..end].char_indices().step_by(*length);
                    let first = spans.len();
                    spans.extend(places.map(|(at, _)| (start + at, end)));
                    for at in first + 1..spans.len() {
                        spans[at - 1].1 = spans[at].0;
                    }
                }
                pieces.spans = spans;
                Ok(())
            }
        }
    }
}
