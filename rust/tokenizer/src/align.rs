//! Where each byte of a normalised text comes from.
//!
//! Offsets are those of the text as given, also after steps that change it. So each byte of a text
//! has the bytes that it comes of, and every step carries them on by one rule: what a stretch
//! becomes comes of all of the stretch, a stretch that stays as it is keeps its own, and what is
//! put in between comes of nothing. A stretch is the smallest that a step changes by itself.
//!
//! Eight bytes for each byte of text and a pass over each of its characters: for those who ask for
//! offsets, and never on the way of the others.
//!
//! Defined by `normalise` in `python/tinylm/reference/offsets.py`, held to it by the rung
//! `offsets of stages`.

use unicode_normalization::{
    IsNormalized, UnicodeNormalization, char::canonical_combining_class, is_nfc_quick,
};

use crate::normalizer::{self, Normalizer};
use crate::property::NEWER;
use crate::{Error, Interrupt};

/// The bytes `from..to` of the text as given; empty for what is put in between.
pub(crate) type Origin = (u32, u32);

/// Characters of a stretch that are tried one by one: a text of marks alone must stay linear.
const TRIED: usize = 64;
/// Bytes between two calls of the interrupt: 1 to 10 ms.
const TICK: usize = 1 << 16;

/// A text and the origin of each of its bytes.
#[derive(Debug)]
pub(crate) struct Aligned {
    pub(crate) text: String,
    pub(crate) origin: Vec<Origin>,
}

/// The origin of the bytes `from..to`.
pub(crate) fn span(origin: &[Origin], from: usize, to: usize) -> Origin {
    match (origin.get(from), origin.last()) {
        (Some(first), _) if from < to => (first.0, origin[to - 1].1),
        (Some(next), _) => (next.0, next.0),
        (None, last) => last.map_or((0, 0), |last| (last.1, last.1)),
    }
}

/// Appends the origin of `made`, which the bytes `from..to` of a text have become.
pub(crate) fn put(
    text: &str,
    origin: &[Origin],
    (from, to): (usize, usize),
    made: &str,
    out: &mut Vec<Origin>,
) {
    if &text[from..to] == made {
        out.extend_from_slice(&origin[from..to]);
    } else {
        let whole = span(origin, from, to);
        out.extend(made.bytes().map(|_| whole));
    }
}

/// Appends the origin of a piece written anew: something in front, perhaps, and then what each
/// character of it, or with `bytes` each byte, has become.
pub(crate) fn follow(
    piece: &str,
    origin: &[Origin],
    made: &str,
    bytes: bool,
    out: &mut Vec<Origin>,
) {
    let ends = (1..=piece.len()).filter(|&at| bytes || piece.is_char_boundary(at));
    let units = ends.clone().count();
    let mut made = made
        .char_indices()
        .map(|(at, c)| &made[at..at + c.len_utf8()]);
    let extra = made.clone().count().saturating_sub(units);
    for char in made.by_ref().take(extra) {
        let nothing = span(origin, 0, 0);
        out.extend(char.bytes().map(|_| nothing));
    }
    let mut from = 0;
    for (end, char) in ends.zip(made) {
        if char.as_bytes() == &piece.as_bytes()[from..end] {
            out.extend_from_slice(&origin[from..end]);
        } else {
            let whole = span(origin, from, end);
            out.extend(char.bytes().map(|_| whole));
        }
        from = end;
    }
}

impl Aligned {
    /// A stretch that begins at byte `base` of the text as given. Bytes that are not UTF-8 become
    /// U+FFFD, as they do without offsets.
    pub(crate) fn new(stretch: &[u8], base: usize) -> Self {
        let mut made = Self {
            text: String::with_capacity(stretch.len()),
            origin: Vec::with_capacity(stretch.len()),
        };
        let mut at = base as u32;
        for chunk in stretch.utf8_chunks() {
            made.text.push_str(chunk.valid());
            made.origin
                .extend(chunk.valid().bytes().zip(at..).map(|(_, at)| (at, at + 1)));
            at += chunk.valid().len() as u32;
            if !chunk.invalid().is_empty() {
                let end = at + chunk.invalid().len() as u32;
                made.text.push(char::REPLACEMENT_CHARACTER);
                made.origin.extend([(at, end); 3]);
                at = end;
            }
        }
        made
    }

    /// After all steps.
    ///
    /// # Errors
    ///
    /// As [`Normalizer::apply`].
    pub(crate) fn normalised(
        mut self,
        steps: &[Normalizer],
        interrupt: &mut Interrupt<'_>,
    ) -> Result<Self, Error> {
        for step in steps {
            self = self.step(step, interrupt)?;
        }
        Ok(self)
    }

    fn step(self, step: &Normalizer, interrupt: &mut Interrupt<'_>) -> Result<Self, Error> {
        if self.text.is_empty() {
            return Ok(self);
        }
        let mut edits = Edits::of(&self);
        match step {
            Normalizer::Nfc | Normalizer::Nfd | Normalizer::Nfkc | Normalizer::Nfkd => {
                form(&mut edits, step, interrupt)?;
            }
            Normalizer::Strip { left, right } => {
                let text = self.text.as_str();
                let rest = if *right { text.trim_end() } else { text };
                let gone = rest.len()
                    - if *left {
                        rest.trim_start().len()
                    } else {
                        rest.len()
                    };
                edits.keep(gone, rest.len());
            }
            Normalizer::Replace { find, content } => {
                let mut found = Vec::new();
                find.stretches(&self.text, &mut found, interrupt)?;
                for (from, to, is_match) in found {
                    if is_match {
                        edits.put(from, to, content);
                    } else {
                        edits.keep(from, to);
                    }
                }
            }
            Normalizer::Prepend(start) => {
                edits.put(0, 0, start);
                edits.keep(0, self.text.len());
            }
            Normalizer::Precompiled(map) => {
                normalizer::replacements(&self.text, map, interrupt, |from, to, made| {
                    edits.put(from, to, &String::from_utf8_lossy(made));
                })?;
            }
            Normalizer::SentencePiece(step) => {
                step.edits(&self.text, |from, to, made| edits.put(from, to, made));
            }
            // These look at one character at a time, or at less.
            Normalizer::ByteLevel
            | Normalizer::Lowercase
            | Normalizer::StripAccents
            | Normalizer::StripNonspacing
            | Normalizer::Clean
            | Normalizer::SpaceChinese
            | Normalizer::Nmt => {
                let mut tick = TICK;
                for (at, char) in self.text.char_indices() {
                    if at >= tick {
                        interrupt()?;
                        tick = at + TICK;
                    }
                    let end = at + char.len_utf8();
                    let made = step.apply(self.text[at..end].into(), &mut || Ok(()))?;
                    edits.put(at, end, &made);
                }
            }
        }
        Ok(edits.made)
    }
}

/// A text and what a step makes of its stretches, one after the other.
struct Edits<'a> {
    of: &'a Aligned,
    made: Aligned,
}

impl<'a> Edits<'a> {
    fn of(of: &'a Aligned) -> Self {
        let made = Aligned {
            text: String::with_capacity(of.text.len()),
            origin: Vec::with_capacity(of.text.len()),
        };
        Self { of, made }
    }

    /// The bytes `from..to` stay as they are.
    fn keep(&mut self, from: usize, to: usize) {
        self.made.text.push_str(&self.of.text[from..to]);
        self.made
            .origin
            .extend_from_slice(&self.of.origin[from..to]);
    }

    /// The bytes `from..to` become `made`.
    fn put(&mut self, from: usize, to: usize, made: &str) {
        let Aligned { text, origin } = self.of;
        put(text, origin, (from, to), made, &mut self.made.origin);
        self.made.text.push_str(made);
    }
}

/// A normal form, stretch by stretch.
fn form(
    edits: &mut Edits<'_>,
    step: &Normalizer,
    interrupt: &mut Interrupt<'_>,
) -> Result<(), Error> {
    let text = edits.of.text.as_str();
    let mut cluster = |from: usize, to: usize| -> Result<(), Error> {
        let of = |part: &str| step.apply(part.to_owned().into(), &mut || Ok(()));
        let whole = of(&text[from..to])?;
        let (mut from, mut done) = (from, 0);
        let places = text[from..to].char_indices().skip(1);
        if text[from..to] != *whole && places.clone().nth(TRIED).is_none() {
            let first = from;
            for (at, _) in places {
                let (left, right) = (of(&text[first..first + at])?, of(&text[first + at..to])?);
                // What stands before the place becomes the same without what follows it.
                if whole.strip_prefix(&*left) == Some(&*right) {
                    edits.put(from, first + at, &whole[done..left.len()]);
                    (from, done) = (first + at, left.len());
                }
            }
        }
        edits.put(from, to, &whole[done..]);
        Ok(())
    };
    let (mut start, mut newer, mut tick) = (0, false, TICK);
    for (at, char) in text.char_indices() {
        let is_newer = NEWER.has(char);
        if at > 0 && (newer || is_newer || begins(char)) {
            cluster(start, at)?;
            start = at;
        }
        newer = is_newer;
        if at >= tick {
            interrupt()?;
            tick = at + TICK;
        }
    }
    cluster(start, text.len())
}

/// Whether a character never depends on those before it, in any of the normal forms.
fn begins(char: char) -> bool {
    if (char as u32) < 0x300 {
        return true;
    }
    let first = std::iter::once(char).nfkd().next().unwrap_or(char);
    canonical_combining_class(first) == 0
        && is_nfc_quick(std::iter::once(first)) != IsNormalized::Maybe
}
