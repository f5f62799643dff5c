//! The stages of a `tokenizer.json` that are not simply a pattern: normalisers, pre-tokenizers,
//! bytes without a token.
//!
//! Most tokenizers of byte-level BPE need none of this, and [`crate::encode`] then runs none of it.
//! With stages, added tokens that are not late are found in the text as given. Each stretch between
//! them is normalised, the late ones are found in what it became, and what is left is cut into
//! pieces.
//!
//! Defined by `encode` in `python/tinylm/reference/stages.py`, held to it by the rung `stages`.

use std::borrow::Cow;

use crate::added::{AddedToken, AddedTokens};
use crate::align::{Aligned, Origin, span};
use crate::normalizer::Normalizer;
use crate::pretokenizer::{Pieces, PreTokenizer};
use crate::{Error, Interrupt, Policy, alphabet};

/// Pieces that are cut further together: 20 KB of English.
const BLOCK: usize = 1 << 12;
/// Pieces handed on between two calls of the interrupt.
const TICK: usize = 1 << 14;

/// What happens to a text before a model sees its pieces.
#[derive(Debug, Clone, Default)]
pub struct Stages {
    /// The steps that change a text.
    pub normalizers: Vec<Normalizer>,
    /// The steps that cut it; with none the tokenizer's pattern does.
    pub pre_tokenizers: Vec<PreTokenizer>,
    /// Whether the model takes the characters of GPT-2's alphabet, or the bytes that they stand
    /// for.
    pub chars: bool,
    /// Bytes that no token has. They split a text like the others and are dropped then.
    pub missing: Vec<u8>,
}

/// Stages made ready, with the added tokens that are looked for in normalised text.
#[derive(Debug)]
pub(crate) struct Staged {
    stages: Stages,
    late: AddedTokens,
    /// By byte.
    missing: [bool; 256],
    /// Whether a step before the last one writes bytes as characters.
    written: bool,
}

/// What a stretch of text gives, in order; and, for those who ask, where each byte of the text
/// comes from.
pub(crate) enum Part<'a> {
    /// Pieces of a text.
    Pieces(&'a [u8], &'a [(usize, usize)], &'a [Origin]),
    /// A text that the tokenizer's pattern splits.
    Text(&'a [u8], &'a [Origin]),
    /// The id of an added token.
    Token(u32, Origin),
}

/// Takes the parts of a stretch.
pub(crate) type Sink<'a> = dyn FnMut(Part<'_>, &mut Interrupt<'_>) -> Result<(), Error> + 'a;

impl Stages {
    /// What the normalisers make of a text.
    ///
    /// # Errors
    ///
    /// [`Error::PatternGaveUp`] from a regular expression, and what `interrupt` returns.
    pub fn normalise(&self, text: &str, interrupt: &mut Interrupt<'_>) -> Result<String, Error> {
        normalise(&self.normalizers, text.into(), interrupt).map(Cow::into_owned)
    }

    /// Whether they change nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.normalizers.is_empty() && self.pre_tokenizers.is_empty() && self.missing.is_empty()
    }
}

impl Staged {
    /// From the stages and the late tokens.
    ///
    /// # Errors
    ///
    /// [`Error::Vocabulary`] if two late tokens are one after normalising, or one is nothing.
    pub(crate) fn new(stages: Stages, mut late: Vec<AddedToken>) -> Result<Self, Error> {
        for token in &mut late {
            let content = std::mem::take(&mut token.content);
            token.content =
                normalise(&stages.normalizers, Cow::Owned(content), &mut || Ok(()))?.into_owned();
        }
        let mut missing = [false; 256];
        for &byte in &stages.missing {
            missing[usize::from(byte)] = true;
        }
        let byte_level = |step: &PreTokenizer| matches!(step, PreTokenizer::ByteLevel { .. });
        let steps = &stages.pre_tokenizers;
        let before_last = &steps[..steps.len().saturating_sub(1)];
        Ok(Self {
            written: stages.chars || before_last.iter().any(byte_level),
            late: AddedTokens::new(late)?,
            missing,
            stages,
        })
    }

    /// The id of a special token among the late ones.
    pub(crate) fn special_id(&self, content: &str) -> Option<u32> {
        self.late.special_id(content)
    }

    /// Tells which late tokens take white space with them or stand only between words.
    pub(crate) fn set_edges(&mut self, edges: &[(u32, crate::edges::Edges)]) {
        self.late.set_edges(edges);
    }

    /// Gives `each` the parts of a stretch between added tokens; `first`: the text begins with it.
    /// With `track`, the place of the stretch in the text, each part knows where it comes from.
    ///
    /// # Errors
    ///
    /// [`Error::SpecialToken`] if `policy` forbids a token that is found, with the place in the
    /// normalised stretch; [`Error::PatternGaveUp`], and what `interrupt` and `each` return.
    pub(crate) fn run(
        &self,
        stretch: &[u8],
        first: bool,
        track: Option<usize>,
        policy: &Policy,
        interrupt: &mut Interrupt<'_>,
        each: &mut Sink<'_>,
    ) -> Result<(), Error> {
        if stretch.is_empty() {
            return Ok(());
        }
        // A model of characters has nothing for other bytes than UTF-8.
        if self.stages.chars || std::str::from_utf8(stretch).is_ok() {
            return self.run_text(stretch, first, track, policy, interrupt, each);
        }
        // As a pattern does: bytes that are not UTF-8 divide the text and stand by themselves.
        let (mut start, mut at) = (first, track.unwrap_or(0));
        for chunk in stretch.utf8_chunks() {
            let valid = chunk.valid().as_bytes();
            if !valid.is_empty() {
                self.run_text(valid, start, track.and(Some(at)), policy, interrupt, each)?;
            }
            (start, at) = (false, at + valid.len());
            for byte in chunk.invalid() {
                if !self.missing[usize::from(*byte)] {
                    let origin = [(at as u32, at as u32 + 1)];
                    each(Part::Pieces(&[*byte], &[(0, 1)], &origin), interrupt)?;
                }
                at += 1;
            }
        }
        Ok(())
    }

    fn run_text(
        &self,
        text: &[u8],
        first: bool,
        track: Option<usize>,
        policy: &Policy,
        interrupt: &mut Interrupt<'_>,
        each: &mut Sink<'_>,
    ) -> Result<(), Error> {
        let steps = &self.stages.normalizers;
        let (text, origin) = if let Some(base) = track {
            let made = Aligned::new(text, base).normalised(steps, interrupt)?;
            (made.text.into(), made.origin)
        } else {
            // Valid as a rule, which is checked far faster than the lossy way goes.
            let valid = std::str::from_utf8(text).map(Cow::Borrowed);
            let text = valid.unwrap_or_else(|_| String::from_utf8_lossy(text));
            (normalise(steps, text, interrupt)?, Vec::new())
        };
        self.late
            .segments(text.as_bytes(), policy, interrupt, |segment, interrupt| {
                let stretch = &text[segment.start..segment.end];
                if !stretch.is_empty() {
                    let origin = origin.get(segment.start..segment.end).unwrap_or_default();
                    self.split(
                        stretch,
                        origin,
                        first && segment.start == 0,
                        interrupt,
                        each,
                    )?;
                }
                match segment.token {
                    Some((id, to)) => {
                        each(Part::Token(id, span(&origin, segment.end, to)), interrupt)
                    }
                    None => Ok(()),
                }
            })
    }

    /// Cuts a normalised stretch without added tokens.
    fn split(
        &self,
        text: &str,
        origin: &[Origin],
        first: bool,
        interrupt: &mut Interrupt<'_>,
        each: &mut Sink<'_>,
    ) -> Result<(), Error> {
        let steps = &self.stages.pre_tokenizers;
        if steps.is_empty() && !self.lacks(text.as_bytes()) {
            return each(Part::Text(text.as_bytes(), origin), interrupt);
        }
        let pieces = Pieces::whole(text.to_owned(), origin.to_vec(), interrupt);
        self.cut(0, pieces, first, each)
    }

    /// Cuts pieces by the steps from `number` on, and hands them on.
    ///
    /// No step looks at two pieces, so many are cut a block at a time, by all steps that are left:
    /// what is between the steps is small, and the first ids come before the last step.
    fn cut(
        &self,
        number: usize,
        mut pieces: Pieces<'_, '_>,
        first: bool,
        each: &mut Sink<'_>,
    ) -> Result<(), Error> {
        let steps = &self.stages.pre_tokenizers;
        let Some(step) = steps.get(number) else {
            return self.give(pieces, each);
        };
        let last = number + 1 == steps.len();
        step.apply(
            &mut pieces,
            first,
            self.written && (self.stages.chars || !last),
        )?;
        let count = pieces.spans.len();
        if last || count <= BLOCK {
            return self.cut(number + 1, pieces, first, each);
        }
        for from in (0..count).step_by(BLOCK) {
            let block = pieces.block(from, count.min(from + BLOCK));
            self.cut(number + 1, block, first, each)?;
        }
        Ok(())
    }

    /// Hands the pieces on, as the bytes that the model takes.
    fn give(&self, pieces: Pieces<'_, '_>, each: &mut Sink<'_>) -> Result<(), Error> {
        let Pieces {
            text,
            mut spans,
            mut origin,
            interrupt,
            ..
        } = pieces;
        let mut bytes = text.into_bytes();
        if self.written && !self.stages.chars {
            (bytes, origin) = read(&bytes, &origin, &mut spans);
        }
        if self.lacks(&bytes) {
            (bytes, origin) = self.without_missing(&bytes, &origin, &mut spans);
        }
        for spans in spans.chunks(TICK) {
            interrupt()?;
            each(Part::Pieces(&bytes, spans, &origin), interrupt)?;
        }
        Ok(())
    }

    /// Whether a text has a byte without a token.
    fn lacks(&self, text: &[u8]) -> bool {
        !self.stages.missing.is_empty() && text.iter().any(|&b| self.missing[usize::from(b)])
    }

    /// The pieces without the bytes that no token has; pieces of nothing else are gone.
    fn without_missing(
        &self,
        text: &[u8],
        origin: &[Origin],
        spans: &mut Vec<(usize, usize)>,
    ) -> (Vec<u8>, Vec<Origin>) {
        let (mut out, mut from) = (Vec::with_capacity(text.len()), Vec::new());
        for span in spans.iter_mut() {
            let start = out.len();
            let kept = |at: &usize| !self.missing[usize::from(text[*at])];
            out.extend((span.0..span.1).filter(kept).map(|at| text[at]));
            if !origin.is_empty() {
                from.extend((span.0..span.1).filter(kept).map(|at| origin[at]));
            }
            *span = (start, out.len());
        }
        spans.retain(|span| span.0 < span.1);
        (out, from)
    }
}

/// The bytes that the characters of the pieces stand for.
fn read(text: &[u8], origin: &[Origin], spans: &mut [(usize, usize)]) -> (Vec<u8>, Vec<Origin>) {
    let (mut out, mut from) = (Vec::with_capacity(text.len()), Vec::new());
    for span in spans {
        let start = out.len();
        if let Ok(piece) = std::str::from_utf8(&text[span.0..span.1]) {
            alphabet::read(piece, &mut out);
            if !origin.is_empty() {
                let stands = |&(_, char): &(usize, char)| alphabet::is_byte(char);
                let places = piece.char_indices().filter(stands);
                from.extend(places.map(|(at, _)| origin[span.0 + at]));
            }
        }
        *span = (start, out.len());
    }
    (out, from)
}

/// The text after all steps.
fn normalise<'a>(
    steps: &[Normalizer],
    mut text: Cow<'a, str>,
    interrupt: &mut Interrupt<'_>,
) -> Result<Cow<'a, str>, Error> {
    for step in steps {
        interrupt()?;
        text = step.apply(text, interrupt)?;
    }
    Ok(text)
}
