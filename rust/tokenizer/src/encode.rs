//! The tokenizer: normalise, cut at added tokens, split, and encode each piece with the model.
//!
//! A piece is looked up in the cache of its thread first, and goes to the model only if it is not
//! there. The time is linear in the text but for long pieces, see [`crate::model`].
//!
//! Defined by `encode` in `python/tinylm/reference/byte_bpe.py`, held to it by the rungs `encode`,
//! `encode array`, `encode batch`, `count` and `cut`.

use std::sync::Mutex;

use crate::added::AddedTokens;
use crate::jobs::{Job, jobs};
use crate::memory::vec_of;
use crate::model::Model;
use crate::stages::{Part, Staged};
use crate::surfaces::Surfaces;
use crate::vocab::Vocab;
use crate::worker::Worker;
use crate::{Error, Interrupt, Pattern, Policy, parallel};

/// Bytes of text between two calls of the interrupt: 2 to 5 ms at 50 to 126 MB/s (docs/log.md).
const TICK: usize = 1 << 18;

/// A tokenizer; it never changes, and any number of threads may use it.
pub struct Tokenizer {
    /// The stages of a text in their order, and the vocabulary to decode with.
    pub(crate) added: AddedTokens,
    /// What a `tokenizer.json` asks for between added tokens and the model beside the pattern.
    pub(crate) staged: Option<Staged>,
    pub(crate) pattern: Pattern,
    pub(crate) model: Model,
    pub(crate) vocab: Vocab,
    /// If tokens look otherwise in a text than they are written.
    pub(crate) surfaces: Option<Surfaces>,
    /// The tokens as they are written, if they look otherwise in a text.
    pub(crate) written: Option<Vocab>,
    /// Those that no call uses at the moment; at most as many as calls and threads at once.
    pub(crate) workers: Mutex<Vec<Worker>>,
}

/// A number that ids are handed out as.
pub trait Id: Sized {
    /// Appends `ids`, each of which fits.
    fn append(to: &mut Vec<Self>, ids: &[u32]);
}

impl Id for u32 {
    fn append(to: &mut Vec<Self>, ids: &[u32]) {
        to.extend_from_slice(ids);
    }
}

impl Id for u16 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the caller has looked at the largest"
    )]
    fn append(to: &mut Vec<Self>, ids: &[u32]) {
        to.extend(ids.iter().map(|&id| id as Self));
    }
}

impl Tokenizer {
    /// How tokens look in a text, if not as they are written.
    pub fn surfaces(&self) -> Option<&Surfaces> {
        self.surfaces.as_ref()
    }

    /// How text is split.
    pub fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.vocab.len()
    }

    /// The bytes of a token.
    pub fn token(&self, id: u32) -> Option<&[u8]> {
        self.vocab.get(id)
    }

    /// The policy that allows just these special tokens.
    pub fn only(&self, tokens: &[String]) -> Result<Policy, Error> {
        let id = |t: &String| {
            let late = || self.staged.as_ref().and_then(|staged| staged.special_id(t));
            self.added
                .special_id(t)
                .or_else(late)
                .ok_or_else(|| Error::UnknownSpecial(t.clone()))
        };
        Ok(Policy::Only(
            tokens.iter().map(id).collect::<Result<_, _>>()?,
        ))
    }

    /// The tokens of `text`, any bytes.
    ///
    /// # Errors
    ///
    /// [`Error::SpecialToken`] by the policy, [`Error::TooLong`] or [`Error::PatternGaveUp`] for a
    /// text that the model or the pattern cannot take, and what `interrupt` returns.
    pub fn encode(
        &self,
        text: &[u8],
        policy: &Policy,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<Vec<u32>, Error> {
        // About four bytes for a token of English or code.
        let mut out = vec_of(text.len() / 4 + 1);
        let mut worker = self.worker();
        // The worker is given back after an error too: its cache holds whole entries only.
        let done = self.encode_into(text, policy, &mut worker, &mut out, interrupt);
        self.give_back(worker);
        done.map(|()| out)
    }

    /// A place at which `text`, the beginning of a longer one, may be cut: what is before it
    /// is encoded by itself as in the whole. None if there is no such place.
    pub fn cut(&self, text: &[u8], policy: &Policy) -> Result<Option<usize>, Error> {
        if self.staged.is_some() {
            // What a character becomes may depend on those after it.
            return Ok(None);
        }
        self.added.cut(text, &self.pattern, policy)
    }

    /// The number of tokens of `text`, which are never all in memory: a few MB for a text without
    /// stages, however long it is.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::encode`].
    pub fn count(
        &self,
        text: &[u8],
        policy: &Policy,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<usize, Error> {
        if text.len() <= TICK {
            // One portion, without the cost of a batch: 0.2 us.
            return Ok(self.encode(text, policy, interrupt)?.len());
        }
        let offsets = self.portions(&[text], policy, 1, interrupt, |_| ())?;
        Ok(offsets[1] as usize)
    }

    /// The tokens of many texts, one after the other, and where each text's tokens begin,
    /// with the number of all at the end.
    ///
    /// `threads` of 0 means one for each core. Neither the result nor the error depends
    /// on the number. Errors are those of [`Tokenizer::encode`]. Each id must fit into an `I`: the
    /// largest is below [`Tokenizer::vocab_size`].
    pub fn encode_batch<I: Id>(
        &self,
        texts: &[&[u8]],
        policy: &Policy,
        threads: usize,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<(Vec<I>, Vec<i64>), Error> {
        let bytes: usize = texts.iter().map(|text| text.len()).sum();
        let mut ids = vec_of(bytes / 4 + 1);
        // Joined by copying, as they come: nobody knows where a job's ids will begin.
        let join = |part: &[u32]| I::append(&mut ids, part);
        let offsets = self.portions(texts, policy, threads, interrupt, join)?;
        Ok((ids, offsets))
    }

    /// Calls `give` with the tokens of many texts, a portion at a time and in order; where each
    /// text's tokens begin, with the number of all at the end.
    fn portions(
        &self,
        texts: &[&[u8]],
        policy: &Policy,
        threads: usize,
        interrupt: &mut Interrupt<'_>,
        mut give: impl FnMut(&[u32]),
    ) -> Result<Vec<i64>, Error> {
        // A text with stages is cut at added tokens alone.
        let pattern = if self.staged.is_some() {
            &Pattern::Whole
        } else {
            &self.pattern
        };
        let jobs = jobs(texts, pattern, &self.added, policy, interrupt)?;
        // No more workers than jobs: each has memory of its own.
        let threads = parallel::resolve(threads).min(jobs.len());
        let mut workers: Vec<Worker> = (0..threads).map(|_| self.worker()).collect();
        // Lengths first, one place further on; their sums are the offsets.
        let mut offsets = vec![0i64; texts.len() + 1];
        let done = parallel::each(
            &jobs,
            &mut workers,
            interrupt,
            |job, worker, interrupt| self.encode_job(job, texts, policy, worker, interrupt),
            |job, (part, lengths)| {
                for (offset, length) in offsets[job.first_text() + 1..].iter_mut().zip(lengths) {
                    // Added, because several jobs may hold parts of one text.
                    *offset += length as i64;
                }
                give(&part);
            },
        );
        for worker in workers {
            self.give_back(worker);
        }
        done?;
        for at in 1..offsets.len() {
            offsets[at] += offsets[at - 1];
        }
        Ok(offsets)
    }

    /// The ids of a job, and how many belong to each of its texts.
    fn encode_job(
        &self,
        job: &Job,
        texts: &[&[u8]],
        policy: &Policy,
        worker: &mut Worker,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<(Vec<u32>, Vec<usize>), Error> {
        let mut out = Vec::new();
        let mut lengths = Vec::new();
        match *job {
            Job::Texts { first, last } => {
                for text in &texts[first..last] {
                    let before = out.len();
                    self.encode_into(text, policy, worker, &mut out, interrupt)?;
                    lengths.push(out.len() - before);
                }
            }
            Job::Parts { text, ref parts } => {
                for part in parts {
                    // From the start of the text, so that offsets are those of the text.
                    let view = &texts[text][..part.end];
                    self.encode_stretch(view, part.start, policy, worker, &mut out, interrupt)?;
                    out.extend(part.token.map(|(id, _)| id));
                }
                lengths.push(out.len());
            }
        }
        Ok((out, lengths))
    }

    /// Appends the ids of a whole text.
    fn encode_into(
        &self,
        text: &[u8],
        policy: &Policy,
        worker: &mut Worker,
        out: &mut Vec<u32>,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<(), Error> {
        let mut tick = TICK;
        self.added
            .segments(text, policy, interrupt, |segment, interrupt| {
                // Short stretches, each below a tick, may be a long text together.
                if segment.start >= tick {
                    interrupt()?;
                    tick = segment.start + TICK;
                }
                let view = &text[..segment.end];
                self.encode_stretch(view, segment.start, policy, worker, out, interrupt)?;
                out.extend(segment.token.map(|(id, _)| id));
                Ok(())
            })
    }

    /// Appends the ids of a stretch without added tokens, `text[start..]`, through all stages.
    fn encode_stretch(
        &self,
        text: &[u8],
        start: usize,
        policy: &Policy,
        worker: &mut Worker,
        out: &mut Vec<u32>,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<(), Error> {
        let Some(staged) = &self.staged else {
            return self.encode_pieces(text, start, worker, out, interrupt);
        };
        let (stretch, first) = (&text[start..], start == 0);
        staged.run(
            stretch,
            first,
            None,
            policy,
            interrupt,
            &mut |part, interrupt| {
                match part {
                    Part::Pieces(text, spans, _) => {
                        return worker.spans(&self.model, text, spans, out, interrupt);
                    }
                    Part::Text(text, _) => {
                        return self.encode_pieces(text, 0, worker, out, interrupt);
                    }
                    Part::Token(id, _) => out.push(id),
                }
                Ok(())
            },
        )
    }

    /// Appends the ids of a stretch that the pattern splits, `text[start..]`.
    fn encode_pieces(
        &self,
        text: &[u8],
        start: usize,
        worker: &mut Worker,
        out: &mut Vec<u32>,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<(), Error> {
        worker.encode(&self.pattern, &self.model, text, start, out, interrupt)
    }

    /// A worker for one thread of a call: one of those kept, or a new one.
    pub(crate) fn worker(&self) -> Worker {
        // Never waits: in a process that was forked while another thread held the lock,
        // nobody would ever open it.
        let kept = self
            .workers
            .try_lock()
            .ok()
            .and_then(|mut workers| workers.pop());
        kept.unwrap_or_else(|| Worker::new(&self.model))
    }

    /// Keeps a worker for the next call; drops it if somebody else holds the lock.
    pub(crate) fn give_back(&self, worker: Worker) {
        if let Ok(mut workers) = self.workers.try_lock() {
            workers.push(worker);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AddedToken;
    use crate::model::tests::Longest;
    use crate::{Tokens, no_interrupt};

    fn added(content: &str, id: u32, special: bool, late: bool) -> AddedToken {
        let content = content.into();
        AddedToken {
            content,
            id,
            special,
            late,
        }
    }

    #[test]
    fn another_model_goes_the_whole_way() {
        let words = ["?", "low", "lower", "e", "st", " ", " low"];
        let tokens: Tokens = words.iter().zip(0..).collect();
        let longest = Longest {
            ids: tokens.iter().map(|(t, id)| (t.into(), id)).collect(),
            unknown: 0,
        };
        let special = vec![added("<|end|>", 7, true, false)];
        let tokenizer =
            Tokenizer::with_model(&tokens, Model::Longest(longest), "gpt4", special).unwrap();
        let encode = |text: &str| {
            tokenizer
                .encode(text.as_bytes(), &Policy::Allow, &mut no_interrupt)
                .unwrap()
        };
        // " lowest" is one piece of 7 bytes; the second time it comes from the cache.
        let ids = encode("lower lowest<|end|> lowest lox");
        assert_eq!(ids, [2, 6, 3, 4, 7, 6, 3, 4, 5, 0, 0, 0]);
        let text = tokenizer.decode(&ids).unwrap();
        assert_eq!(text, b"lower lowest<|end|> lowest ???");
        assert_eq!(
            tokenizer.cut(b"lower lowest lower", &Policy::Raise),
            Ok(Some(5))
        );
        // Large enough for several portions and threads.
        let large = "lower lowest<|end|>".repeat(150_000);
        let texts = [large.as_bytes(), b"low", b""];
        let (ids, offsets) = tokenizer
            .encode_batch::<u32>(&texts, &Policy::Allow, 2, &mut no_interrupt)
            .unwrap();
        assert_eq!(offsets, [0, 750_000, 750_001, 750_001]);
        assert_eq!(ids[..750_000], encode(&large));
        let (short, _) = tokenizer
            .encode_batch::<u16>(&texts, &Policy::Allow, 2, &mut no_interrupt)
            .unwrap();
        assert!(short.iter().map(|&id| u32::from(id)).eq(ids));
        let count = tokenizer.count(texts[0], &Policy::Allow, &mut no_interrupt);
        assert_eq!(count, Ok(750_000));
    }
}
