//! What one thread needs to encode stretches of text: cut into pieces, look up, merge the rest.
//!
//! In batches of [`BATCH`] pieces and two passes over each. The first cuts the text, makes a
//! key of each piece and begins to load its slot of the cache; the second takes the ids from the
//! slots, which have come in meanwhile. So the second waits neither for the branches of the
//! scanner nor for memory.

use std::ops::Range;

use crate::cache::{Cache, LIMIT, Place};
use crate::model::{Model, Scratch};
use crate::{Error, Interrupt, Pattern};

/// Bytes of text between two calls of the interrupt, a few milliseconds of work.
const TICK: usize = 1 << 19;
/// Pieces cut before they are looked up: 6 KiB of places.
const BATCH: usize = 128;
/// Ids that are written for each piece, whether it has them or not.
const LANES: usize = 4;

/// The memory of one thread; kept between calls because a warm cache is fast.
pub(crate) struct Worker {
    /// The pieces that this thread has seen, with their ids.
    cache: Cache,
    scratch: Scratch,
    /// The pieces that are cut and not yet looked up.
    places: Box<[Place; BATCH]>,
    /// The ids of a piece that was not found.
    merged: Vec<u32>,
}

impl Worker {
    /// A thread that knows the pieces that `model` begins with.
    pub(crate) fn new(model: &Model) -> Self {
        Self {
            cache: model.seed().cloned().unwrap_or_default(),
            scratch: Scratch::default(),
            places: Box::new([Place::default(); BATCH]),
            merged: Vec::new(),
        }
    }

    /// Appends the ids of `text[start..]`, a stretch without added tokens.
    pub(crate) fn encode(
        &mut self,
        pattern: &Pattern,
        model: &Model,
        text: &[u8],
        start: usize,
        out: &mut Vec<u32>,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<(), Error> {
        let mut tick = start + TICK;
        let mut number = 0;
        pattern.pieces(text, start, |from, to| {
            // `number` is below BATCH; the remainder saves the bounds check.
            self.places[number % BATCH] = self.cache.place(text, from, to);
            number += 1;
            if number == BATCH {
                number = 0;
                self.batch(model, text, BATCH, out, interrupt)?;
                if to >= tick {
                    interrupt()?;
                    tick = to + TICK;
                }
            }
            Ok(())
        })?;
        self.batch(model, text, number, out, interrupt)
    }

    /// Appends the ids of the pieces `spans` of `text`.
    pub(crate) fn spans(
        &mut self,
        model: &Model,
        text: &[u8],
        spans: &[(usize, usize)],
        out: &mut Vec<u32>,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<(), Error> {
        for spans in spans.chunks(BATCH) {
            for (place, &(from, to)) in self.places.iter_mut().zip(spans) {
                *place = self.cache.place(text, from, to);
            }
            self.batch(model, text, spans.len(), out, interrupt)?;
        }
        Ok(())
    }

    /// Appends the ids of the first `number` places.
    fn batch(
        &mut self,
        model: &Model,
        text: &[u8],
        number: usize,
        out: &mut Vec<u32>,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<(), Error> {
        let (mut end, mut ahead) = (out.len(), false);
        // Room for all lanes of all pieces; what is not used is cut off at the end.
        out.resize(end + LANES * number, 0);
        for at in 0..number {
            let place = self.places[at];
            let mut found = self.cache.find(&place);
            if found.is_none() && !ahead {
                // With the first piece that is not known, those of the rest are merged.
                ahead = true;
                self.look_ahead(model, text, at..number);
                found = self.cache.find(&place);
            }
            if let Some(slot) = found
                && slot.lanes[LANES - 1] < LANES as u32
                && let Some(room) = out.get_mut(end..end + LANES)
            {
                // All lanes at once: no loop for one or two ids.
                room.copy_from_slice(&slot.lanes);
                end += slot.lanes[LANES - 1] as usize;
                continue;
            }
            let left = LANES * (number - at - 1);
            end = self.other(model, text, &place, (end, left), out, interrupt)?;
        }
        out.truncate(end);
        Ok(())
    }

    /// Merges the pieces of these places that are not known, if the model can merge several at once.
    #[inline(never)]
    fn look_ahead(&mut self, model: &Model, text: &[u8], places: Range<usize>) {
        let Self { cache, scratch, .. } = self;
        let new: Vec<&Place> = self.places[places]
            .iter()
            .filter(|place| place.to - place.from <= LIMIT && cache.find(place).is_none())
            .collect();
        let pieces: Vec<&[u8]> = new
            .iter()
            .map(|place| &text[place.from..place.to])
            .collect();
        model.encode_short(&pieces, scratch, |number, ids| {
            // If it is full, nothing is lost: each piece is looked up again.
            cache.put(new[number], pieces[number], ids);
        });
    }

    /// Writes the ids of a piece that fits no slot or is not known to `out[end..]`; gives their
    /// end, with room for `left` ids behind it.
    #[inline(never)]
    fn other(
        &mut self,
        model: &Model,
        text: &[u8],
        place: &Place,
        (end, left): (usize, usize),
        out: &mut Vec<u32>,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<usize, Error> {
        let piece = &text[place.from..place.to];
        if piece.len() > LIMIT {
            // May be megabytes long: straight to the output.
            out.truncate(end);
            model.encode(piece, &mut self.scratch, out, interrupt)?;
            let end = out.len();
            out.resize(end + left, 0);
            return Ok(end);
        }
        let found = self.cache.find(place);
        let known = found.and_then(|slot| self.cache.spilled(slot, piece));
        let ids = if let Some(ids) = known {
            ids
        } else {
            self.merged.clear();
            model.encode(piece, &mut self.scratch, &mut self.merged, interrupt)?;
            if !self.cache.put(place, piece, &self.merged) {
                // Full: most of what is in it was needed once.
                self.cache = model.seed().cloned().unwrap_or_default();
            }
            &self.merged
        };
        let next = end + ids.len();
        if out.len() < next + left {
            out.resize(next + left, 0);
        }
        out[end..next].copy_from_slice(ids);
        Ok(next)
    }
}
