//! Keys and values of texts, in pages that the caller hands out.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::attend::{Block, Head, PAGE, TOGETHER, Table};
use crate::choose::{Chance, Ids, Logits, Want};
use crate::level::Level;
use crate::network::Network;
use crate::pace::Pace;
use crate::step::{Chunk, Scratch};
use crate::team::together;
use crate::{Error, Result};

/// Tokens that go through the network at once; a call of more reads them in chunks.
const CHUNK: usize = 128;

/// Bytes of weights up to which threads share out the texts of a step: each then reads all weights,
/// from the cache that cores have in common, and waits for nobody. Of larger ones each reads a part.
const SMALL: usize = 1 << 24;

/// Multiplications for which a second thread is worth its start.
const WORTH: usize = 1 << 24;

/// Pages of a cache: their numbers are `i32` in a table.
const MOST: usize = i32::MAX as usize;

/// New tokens of one text.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// The text's row in the table.
    pub text: usize,
    /// How many of its tokens there are: the new ones follow those.
    pub start: usize,
    /// How many new ones.
    pub count: usize,
}

/// What a call of [`Cache::read`] reads and what of it is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// Where the texts are.
    pub table: Table<'a>,
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

/// Pages of 16 tokens' keys and values. Which text has which page, the caller decides and says at
/// each call; texts may share pages that none of them writes to.
pub struct Cache {
    network: Arc<Network>,
    /// By layer and head of keys. They have the pages up to the last that was used, of `pages`.
    heads: Vec<Head>,
    pages: usize,
    /// One for each chunk that is read at the same time.
    scratch: Vec<Scratch>,
    pace: Pace,
}

impl Cache {
    /// So many pages, which take memory when they are used: for the tokens, and 40 bytes per layer
    /// and head of keys for each page up to the last.
    ///
    /// # Errors
    ///
    /// For more pages than a table can name.
    pub fn new(network: Arc<Network>, pages: usize) -> Result<Self> {
        let heads = network.shape().n_layers * network.shape().n_kv_heads;
        let mut made = Self {
            network,
            heads: (0..heads).map(|_| Head::default()).collect(),
            pages: 0,
            scratch: Vec::new(),
            pace: Pace::default(),
        };
        made.grow(pages)?;
        Ok(made)
    }

    /// Adds pages.
    ///
    /// # Errors
    ///
    /// For more pages than a table can name.
    pub fn grow(&mut self, more: usize) -> Result<()> {
        let pages = self.pages.saturating_add(more);
        if pages > MOST {
            let (tokens, most) = (pages.saturating_mul(PAGE), MOST * PAGE);
            return Err(Error::invalid(format!(
                "a cache of {tokens} tokens: must be at most {most}"
            )));
        }
        self.pages = pages;
        Ok(())
    }

    /// Lets every head have so many pages.
    fn hold(&mut self, pages: usize) -> Result<()> {
        for head in &mut self.heads {
            head.hold(pages).map_err(|_| {
                Error::Memory(format!("no memory for the tables of {pages} pages of keys"))
            })?;
        }
        Ok(())
    }

    /// Room for the logits after so many tokens.
    ///
    /// # Errors
    ///
    /// For ids that there are not, and for more than there is memory for.
    pub fn room(&self, wanted: usize, vocab_size: usize) -> Result<Vec<f32>> {
        self.check_ids(vocab_size)?;
        let (count, mut logits) = (wanted.saturating_mul(vocab_size), Vec::new());
        logits.try_reserve_exact(count).map_err(|_| {
            Error::Memory(format!(
                "no memory for the logits of {wanted} x {vocab_size} ids: want those of fewer tokens"
            ))
        })?;
        logits.resize(count, 0.0);
        Ok(logits)
    }

    /// Bytes of the pages that have had a token.
    pub fn bytes(&self) -> usize {
        self.heads.iter().map(Head::bytes).sum()
    }

    /// Makes page `to` a copy of page `from`.
    ///
    /// # Errors
    ///
    /// For a page that there is not, and where there is no memory for it.
    pub fn copy(&mut self, from: usize, to: usize) -> Result<()> {
        let last = from.max(to);
        if last >= self.pages {
            return Err(self.unknown(last));
        }
        self.hold(last + 1)?;
        for head in &self.heads {
            head.copy(from, to);
        }
        Ok(())
    }

    fn unknown(&self, page: impl std::fmt::Display) -> Error {
        Error::invalid(format!("page {page}: there are {}", self.pages))
    }

    /// Reads tokens, and makes what follows the wanted ones into `want`.
    ///
    /// `interrupt` is asked between chunks of the tokens. After an error the tokens before each
    /// `start` are as they were.
    ///
    /// # Errors
    ///
    /// For a token, text or page that does not exist, a text that passes its row of the table or
    /// the context length, pages that two texts write to, a temperature or number out of range, too
    /// little memory for the tables, and what `interrupt` returns.
    pub fn read(
        &mut self,
        reading: &Reading<'_>,
        want: &mut Want<'_>,
        interrupt: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let pages = self.check(reading, want)?;
        self.hold(pages)?;
        let (tokens, wanted) = (reading.tokens, reading.wanted);
        let runs = reading.runs.iter();
        let places =
            runs.flat_map(|run| (run.start..run.start + run.count).map(|at| (run.text, at)));
        let places: Vec<(usize, usize)> = places.collect();
        let mut done = 0;
        for start in (0..tokens.len()).step_by(CHUNK) {
            if start > 0 {
                interrupt()?;
            }
            let end = (start + CHUNK).min(tokens.len());
            let most = self.most(end - start, reading.threads);
            let apart = self.fit_apart(&places[start..end], most);
            let (parts, workers) = if apart {
                (most, 1)
            } else {
                (1, self.pace.workers(most, end - start))
            };
            let (part, begin) = ((end - start).div_ceil(parts), Instant::now());
            let mut chunks = Vec::new();
            let first = done;
            for from in (start..end).step_by(part) {
                let within = from..(from + part).min(end);
                let next = done + wanted[done..].partition_point(|place| *place < within.end);
                let some = wanted[done..next].iter().map(|place| place - from);
                let blocks = blocks(&places[within.clone()]);
                let (tokens, some) = (&tokens[within], some.collect());
                chunks.push(Chunk::new(
                    tokens,
                    reading.table,
                    blocks,
                    some,
                    reading.layers,
                ));
                done = next;
            }
            let (_, rest) = want.lent().split(first, reading.ids.vocab_size);
            self.pass(&chunks, workers, rest, reading.ids);
            if !apart {
                self.pace.took(workers, begin.elapsed().as_secs_f64());
            }
        }
        Ok(())
    }

    fn check_ids(&self, vocab_size: usize) -> Result<()> {
        let most = self.network.shape().vocab_size;
        if !(1..=most).contains(&vocab_size) {
            return Err(Error::invalid(format!(
                "vocab_size={vocab_size}: must be 1 to {most}"
            )));
        }
        Ok(())
    }

    /// Checks all of a call; returns how many pages there must be for the last that it uses.
    fn check(&self, reading: &Reading<'_>, want: &Want<'_>) -> Result<usize> {
        let shape = self.network.shape();
        let (vocab_size, layers) = (shape.vocab_size, shape.n_layers);
        let Reading {
            table,
            runs,
            tokens,
            wanted,
            ids,
            ..
        } = *reading;
        let counts = runs.iter().map(|run| run.count);
        let given = counts.fold(0, usize::saturating_add);
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
        self.check_ids(ids.vocab_size)?;
        if ids.all_missing() {
            let last = ids.vocab_size - 1;
            return Err(Error::invalid(format!(
                "missing has all ids from 0 to {last}: leave one that may be drawn"
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
        if let Want::Tokens(chances, _) = want {
            chances.iter().try_for_each(Chance::check)?;
        }
        let (texts, limit) = (table.pages.len() / table.width.max(1), shape.context_length);
        let (mut written, mut last) = (HashSet::new(), 0);
        for run in runs {
            let (text, end) = (run.text, run.start.saturating_add(run.count));
            if text >= texts {
                return Err(Error::invalid(format!("text {text}: there are {texts}")));
            }
            let most = limit.min(table.width * PAGE);
            if end > most {
                return Err(Error::invalid(format!(
                    "{end} tokens do not fit a cache of {most}: build a longer one or clear it"
                )));
            }
            for (number, page) in table.of(text)[..end.div_ceil(PAGE)].iter().enumerate() {
                let known = usize::try_from(*page)
                    .ok()
                    .filter(|page| *page < self.pages);
                last = last.max(known.ok_or_else(|| self.unknown(page))?);
                if number >= run.start / PAGE && !written.insert(*page) {
                    return Err(Error::invalid(format!("two texts write to page {page}")));
                }
            }
        }
        Ok(last + 1)
    }

    /// How many threads are worth their start for so many tokens.
    fn most(&self, tokens: usize, threads: usize) -> usize {
        threads.min(self.network.work() * tokens / WORTH).max(1)
    }

    /// Whether so many threads share out the texts of some tokens: one of each, and enough of them.
    fn fit_apart(&self, places: &[(usize, usize)], threads: usize) -> bool {
        let single = places.windows(2).all(|pair| pair[0].0 != pair[1].0);
        let many = threads > 1 && places.len() >= 2 * threads;
        many && single && self.network.bytes() <= SMALL
    }

    /// Takes chunks of different texts through the network at the same time, each by `workers`, and
    /// makes of their logits what the caller wants.
    fn pass(&mut self, chunks: &[Chunk<'_>], workers: usize, want: Want<'_>, ids: Ids<'_>) {
        let most = self.scratch.len().max(chunks.len());
        self.scratch.resize_with(most, Scratch::default);
        for (chunk, scratch) in chunks.iter().zip(&mut self.scratch) {
            scratch.shape(&self.network, chunk, workers);
        }
        let mut rest = want;
        let mut wants = Vec::new();
        for chunk in chunks {
            let (first, others) = rest.split(chunk.wanted.len(), ids.vocab_size);
            wants.push(Mutex::new(first));
            rest = others;
        }
        let (network, heads) = (&self.network, &self.heads);
        together(chunks.len(), |part| {
            let (chunk, scratch) = (&chunks[part.number], &self.scratch[part.number]);
            together(workers, |worker| {
                network.step(worker, chunk, heads, scratch);
            });
            let mut want = wants[part.number]
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            hand_out(network.level(), scratch, &mut want, ids);
        });
    }
}

/// Makes of the logits what the caller wants.
fn hand_out(level: Level, scratch: &Scratch, want: &mut Want<'_>, ids: Ids<'_>) {
    let view = &scratch.logits.all();
    match want {
        Want::Logits(into) => {
            for (row, into) in into.chunks_exact_mut(ids.vocab_size).enumerate() {
                Logits { view, row }.copy(into);
            }
        }
        Want::Tokens(chances, into) => {
            let mut line = Vec::new();
            for (row, (chance, into)) in chances.iter().zip(&mut **into).enumerate() {
                *into = Logits { view, row }.draw(level, ids, *chance, &mut line);
            }
        }
    }
}

/// The tokens of a chunk, each by its text and position, in blocks of one text each.
fn blocks(places: &[(usize, usize)]) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    for (row, (text, position)) in places.iter().enumerate() {
        match found.last_mut() {
            Some(last)
                if (last.text, last.position + last.rows) == (*text, *position)
                    && last.rows < TOGETHER =>
            {
                last.rows += 1;
            }
            _ => found.push(Block {
                text: *text,
                row,
                rows: 1,
                position: *position,
            }),
        }
    }
    found
}
