//! The texts that are decoded: their keys and values, and how many tokens they have.

use std::sync::Arc;
use std::time::Instant;

use crate::attend::{Block, Slot, TOGETHER};
use crate::choose::{Ids, Logits, Want};
use crate::network::Network;
use crate::step::{Chunk, Scratch};
use crate::team::{read, together};
use crate::{Error, Result};

/// Tokens that go through the network at once; a call of more reads them in chunks.
const CHUNK: usize = 128;

/// Multiplications for which a second thread is worth its start.
const WORTH: usize = 1 << 24;

/// New tokens of one text.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Number of the text.
    pub text: usize,
    /// How many of its tokens stay: the new ones follow those.
    pub start: usize,
    /// How many there are.
    pub count: usize,
}

/// What a call of [`Cache::read`] reads and what of it is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// The texts that go on.
    pub runs: &'a [Run],
    /// The tokens of all runs, one run after the other.
    pub tokens: &'a [u32],
    /// The places in `tokens`, in order, after which logits are wanted.
    pub wanted: &'a [usize],
    /// The ids that the logits are of.
    pub ids: Ids<'a>,
    /// How many blocks the tokens go through, at most all.
    pub layers: usize,
    /// How many threads may share the work.
    pub threads: usize,
}

/// Whether a step is faster by one thread or by all: where another process has a core, the others
/// wait for the thread that shares it. The results are the same.
#[derive(Debug, Default)]
struct Pace {
    /// Tokens of the steps that were timed, and how many there were.
    tokens: usize,
    steps: usize,
    /// Recent seconds of a step by one thread, and by all.
    seconds: [f64; 2],
}

impl Pace {
    /// How many threads the next step takes, at most `most`.
    fn workers(&mut self, most: usize, tokens: usize) -> usize {
        if tokens != self.tokens {
            *self = Self {
                tokens,
                ..Self::default()
            };
        }
        self.steps += 1;
        let [alone, all] = self.seconds;
        // The first two steps try both, and later every 64th what is not chosen.
        let one = match self.steps {
            1 => false,
            2 => true,
            n => (alone < all) != n.is_multiple_of(64),
        };
        if one { 1 } else { most }
    }

    /// Notes the seconds of the step.
    fn took(&mut self, workers: usize, seconds: f64) {
        let recent = &mut self.seconds[usize::from(workers > 1)];
        *recent = if *recent == 0.0 {
            seconds
        } else {
            0.75 * *recent + 0.25 * seconds
        };
    }
}

/// The keys and values of several texts.
pub struct Cache {
    network: Arc<Network>,
    slots: Vec<Slot>,
    max_length: usize,
    scratch: Scratch,
    pace: Pace,
}

impl Cache {
    /// No tokens of `texts` texts, which may have up to `max_length` each.
    ///
    /// # Errors
    ///
    /// If `max_length` passes the context length.
    pub fn new(network: Arc<Network>, texts: usize, max_length: usize) -> Result<Self> {
        let limit = network.shape().context_length;
        if !(1..=limit).contains(&max_length) {
            return Err(Error::invalid(format!(
                "max_length={max_length}: must be 1 to the context length, {limit}"
            )));
        }
        let heads = network.shape().n_layers * network.shape().n_kv_heads;
        let empty = || Slot {
            length: 0,
            heads: (0..heads).map(|_| std::sync::RwLock::default()).collect(),
        };
        Ok(Self {
            network,
            slots: (0..texts).map(|_| empty()).collect(),
            max_length,
            scratch: Scratch::default(),
            pace: Pace::default(),
        })
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> usize {
        let heads = self.slots.iter().flat_map(|slot| &slot.heads);
        heads.map(|head| read(head).bytes()).sum()
    }

    /// A cache of the texts of those numbers, in that order; one may come several times.
    ///
    /// # Errors
    ///
    /// For a number that no text has.
    pub fn select(&self, texts: &[usize]) -> Result<Self> {
        let copy = |text: &usize| self.slot(*text).cloned();
        Ok(Self {
            network: Arc::clone(&self.network),
            slots: texts.iter().map(copy).collect::<Result<_>>()?,
            max_length: self.max_length,
            scratch: Scratch::default(),
            pace: Pace::default(),
        })
    }

    /// Makes text `to` a copy of text `from`.
    ///
    /// # Errors
    ///
    /// For a number that no text has.
    pub fn copy(&mut self, from: usize, to: usize) -> Result<()> {
        let copy = self.slot(from)?.clone();
        self.slot(to)?;
        self.slots[to] = copy;
        Ok(())
    }

    fn slot(&self, text: usize) -> Result<&Slot> {
        let unknown = || Error::invalid(format!("text {text}: there are {}", self.slots.len()));
        self.slots.get(text).ok_or_else(unknown)
    }

    /// Reads tokens, and makes what follows the wanted ones into `want`.
    ///
    /// `interrupt` is asked between chunks of the tokens. After an error the tokens before each
    /// `start` are as they were.
    ///
    /// # Errors
    ///
    /// For a token or text that does not exist, a text that passes its length, a start that it has
    /// not reached, and what `interrupt` returns.
    pub fn read(
        &mut self,
        reading: &Reading<'_>,
        want: &mut Want<'_>,
        interrupt: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        self.check(reading, want)?;
        let (tokens, wanted) = (reading.tokens, reading.wanted);
        let runs = reading.runs.iter();
        let texts = runs.flat_map(|run| std::iter::repeat_n(run.text, run.count));
        let texts: Vec<usize> = texts.collect();
        let mut done = 0;
        for start in (0..tokens.len()).step_by(CHUNK) {
            if start > 0 {
                interrupt()?;
            }
            let end = (start + CHUNK).min(tokens.len());
            let next = done + wanted[done..].partition_point(|place| *place < end);
            let places = wanted[done..next].iter().map(|place| place - start);
            let blocks = self.blocks(&texts[start..end]);
            let chunk = Chunk::new(
                &tokens[start..end],
                blocks,
                places.collect(),
                reading.layers,
            );
            self.chunk(&chunk, reading.threads);
            self.hand_out(done..next, want, reading.ids);
            done = next;
        }
        Ok(())
    }

    /// Checks all of a call, and only then cuts the texts to their starts.
    fn check(&mut self, reading: &Reading<'_>, want: &Want<'_>) -> Result<()> {
        let shape = self.network.shape();
        let (vocab_size, layers) = (shape.vocab_size, shape.n_layers);
        let Reading {
            runs,
            tokens,
            wanted,
            ids,
            ..
        } = *reading;
        let given: usize = runs.iter().map(|run| run.count).sum();
        if given != tokens.len() {
            let tokens = tokens.len();
            return Err(Error::invalid(format!(
                "{tokens} tokens: the runs have {given}"
            )));
        }
        if let Some(token) = tokens.iter().find(|token| **token as usize >= vocab_size) {
            let last = vocab_size - 1;
            return Err(Error::invalid(format!(
                "id {token}: the vocabulary is 0 to {last}"
            )));
        }
        if !(1..=vocab_size).contains(&ids.vocab_size) {
            let given = ids.vocab_size;
            return Err(Error::invalid(format!(
                "vocab_size={given}: must be 1 to {vocab_size}"
            )));
        }
        if !(1..=layers).contains(&reading.layers) {
            let given = reading.layers;
            return Err(Error::invalid(format!(
                "layers={given}: must be 1 to {layers}"
            )));
        }
        let in_order = wanted.is_sorted_by(|a, b| a < b);
        if !in_order || wanted.last().is_some_and(|last| *last >= tokens.len()) {
            return Err(Error::invalid("wanted must be places in tokens, in order"));
        }
        let room = match want {
            Want::Logits(into) => into.len() == wanted.len() * ids.vocab_size,
            Want::Tokens(chances, into) => [chances.len(), into.len()] == [wanted.len(); 2],
        };
        if !room {
            let wanted = wanted.len();
            return Err(Error::invalid(format!(
                "the results must be those of {wanted} tokens"
            )));
        }
        let mut seen = vec![false; self.slots.len()];
        for run in runs {
            let (text, start, end) = (run.text, run.start, run.start + run.count);
            let length = self.slot(text)?.length;
            if std::mem::replace(&mut seen[text], true) {
                return Err(Error::invalid(format!(
                    "text {text} goes on twice in one call"
                )));
            }
            if start > length {
                return Err(Error::invalid(format!(
                    "text {text} has {length} tokens, not {start}"
                )));
            }
            if end > self.max_length {
                let most = self.max_length;
                return Err(Error::invalid(format!(
                    "{end} tokens do not fit a cache of {most}: build a longer one or clear it"
                )));
            }
        }
        for run in runs {
            self.slots[run.text].length = run.start;
        }
        Ok(())
    }

    /// The tokens of a chunk in blocks of one text each, whose lengths they add to.
    fn blocks(&mut self, texts: &[usize]) -> Vec<Block> {
        let mut found: Vec<Block> = Vec::new();
        for (row, slot) in texts.iter().enumerate() {
            let position = self.slots[*slot].length;
            self.slots[*slot].length += 1;
            match found.last_mut() {
                Some(last) if last.slot == *slot && last.rows < TOGETHER => last.rows += 1,
                _ => found.push(Block {
                    slot: *slot,
                    row,
                    rows: 1,
                    position,
                }),
            }
        }
        found
    }

    /// Takes a chunk through the network.
    fn chunk(&mut self, chunk: &Chunk<'_>, threads: usize) {
        let work = self.network.work() * chunk.tokens.len();
        let most = threads.min(work / WORTH).max(1);
        let (workers, start) = (self.pace.workers(most, chunk.tokens.len()), Instant::now());
        self.scratch.shape(&self.network, chunk, workers);
        together(workers, |worker| {
            self.network.step(worker, chunk, &self.slots, &self.scratch);
        });
        self.pace.took(workers, start.elapsed().as_secs_f64());
    }

    /// Makes of the logits what the caller wants.
    fn hand_out(&mut self, rows: std::ops::Range<usize>, want: &mut Want<'_>, ids: Ids<'_>) {
        let level = self.network.level();
        let view = self.scratch.logits.all();
        let mut line = Vec::new();
        for (i, row) in rows.enumerate() {
            let logits = Logits {
                view: &view,
                row: i,
            };
            match want {
                Want::Logits(into) => {
                    logits.copy(&mut into[row * ids.vocab_size..][..ids.vocab_size]);
                }
                Want::Tokens(chances, into) => {
                    into[row] = logits.draw(level, ids, chances[row], &mut line);
                }
            }
        }
    }
}
