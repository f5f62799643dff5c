//! Where the tokens of a text stand in it.
//!
//! Tokens of byte-level BPE are the bytes of the text one after the other, so their lengths say
//! where each stands, and encoding itself stays as it is. The other models say for each token which
//! bytes of its piece it covers; a piece of a text that was changed knows where its bytes come from
//! ([`crate::align`]).
//!
//! Defined by `python/tinylm/reference/offsets.py`, held to it by the rungs whose names begin with
//! `offsets`.

use crate::align::{Origin, span};
use crate::encode::Tokenizer;
use crate::error::numbered;
use crate::model::{Model, Scratch};
use crate::stages::Part;
use crate::worker::Worker;
use crate::{Error, Interrupt, Policy};

/// The ids of a text and the bytes that each covers.
pub type Placed = (Vec<u32>, Vec<(u32, u32)>);

/// Ids and places in the making.
struct Out {
    ids: Vec<u32>,
    places: Vec<Origin>,
}

impl Tokenizer {
    /// The tokens of `text`, and for each the bytes `from..to` of the text that it comes of.
    ///
    /// Of one that comes of nothing, as a mark that a normaliser puts before a text, both are the
    /// place. Added tokens have all that belongs to them.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::encode`], and [`Error::TooLong`] for a text of 4 GiB.
    pub fn encode_offsets(
        &self,
        text: &[u8],
        policy: &Policy,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<Placed, Error> {
        numbered(text)?;
        let mut out = Out {
            ids: Vec::with_capacity(text.len() / 4 + 1),
            places: Vec::with_capacity(text.len() / 4 + 1),
        };
        let mut worker = self.worker();
        let done = self
            .added
            .segments(text, policy, interrupt, |segment, interrupt| {
                let (start, end) = (segment.start, segment.end);
                let view = &text[..end];
                match &self.staged {
                    None => self.place_text(view, start, &[], &mut worker, &mut out, interrupt)?,
                    Some(staged) => staged.run(
                        &view[start..],
                        start == 0,
                        Some(start),
                        policy,
                        interrupt,
                        &mut |part, interrupt| {
                            match part {
                                Part::Pieces(text, spans, origin) => self.place_pieces(
                                    text,
                                    spans,
                                    origin,
                                    &mut worker,
                                    &mut out,
                                    interrupt,
                                )?,
                                Part::Text(text, origin) => {
                                    self.place_text(
                                        text,
                                        0,
                                        origin,
                                        &mut worker,
                                        &mut out,
                                        interrupt,
                                    )?;
                                }
                                Part::Token(id, place) => out.push(id, place),
                            }
                            Ok(())
                        },
                    )?,
                }
                if let Some((id, to)) = segment.token {
                    out.push(id, (end as u32, to as u32));
                }
                Ok(())
            });
        self.give_back(worker);
        done.map(|()| (out.ids, out.places))
    }

    /// Places the tokens of `text[start..]`, which the pattern splits.
    fn place_text(
        &self,
        text: &[u8],
        start: usize,
        origin: &[Origin],
        worker: &mut Worker,
        out: &mut Out,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<(), Error> {
        if matches!(self.model, Model::Bpe(_)) {
            let before = out.ids.len();
            worker.encode(
                &self.pattern,
                &self.model,
                text,
                start,
                &mut out.ids,
                interrupt,
            )?;
            self.by_length(before, &[(start, text.len())], origin, out);
            return Ok(());
        }
        let mut spans = Vec::new();
        self.pattern.pieces(text, start, |from, to| {
            spans.push((from, to));
            Ok(())
        })?;
        self.place_pieces(text, &spans, origin, worker, out, interrupt)
    }

    /// Places the tokens of some pieces of a text.
    fn place_pieces(
        &self,
        text: &[u8],
        pieces: &[(usize, usize)],
        origin: &[Origin],
        worker: &mut Worker,
        out: &mut Out,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<(), Error> {
        if matches!(self.model, Model::Bpe(_)) {
            let before = out.ids.len();
            worker.spans(&self.model, text, pieces, &mut out.ids, interrupt)?;
            self.by_length(before, pieces, origin, out);
            return Ok(());
        }
        let (mut scratch, mut found) = (Scratch::default(), Vec::new());
        for &(from, to) in pieces {
            interrupt()?;
            found.clear();
            self.model
                .places(text, (from, to), &mut scratch, &mut found, interrupt)?;
            for &(id, (start, end)) in &found {
                out.push(id, of(origin, from + start, from + end));
            }
        }
        Ok(())
    }

    /// Places the tokens from number `before` on, which are the bytes of the pieces.
    fn by_length(
        &self,
        before: usize,
        pieces: &[(usize, usize)],
        origin: &[Origin],
        out: &mut Out,
    ) {
        let written = self.written.as_ref().unwrap_or(&self.vocab);
        let mut pieces = pieces.iter();
        let (mut at, mut end) = (0, 0);
        for &id in &out.ids[before..] {
            while at == end
                && let Some(piece) = pieces.next()
            {
                (at, end) = *piece;
            }
            let length = written.get(id).map_or(0, <[u8]>::len);
            out.places.push(of(origin, at, at + length));
            at += length;
        }
    }
}

/// The origin of bytes; without one they are bytes of the text as given.
fn of(origin: &[Origin], from: usize, to: usize) -> Origin {
    if origin.is_empty() {
        return (from as u32, to as u32);
    }
    span(origin, from, to)
}

impl Out {
    fn push(&mut self, id: u32, place: Origin) {
        self.ids.push(id);
        self.places.push(place);
    }
}
