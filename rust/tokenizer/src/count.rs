//! How often each piece stands in a corpus: all that training needs to know of it.
//!
//! A corpus has far fewer distinct pieces than pieces, so training on counts costs much less than
//! training on the text. Pieces are cut here as encoding cuts them. Counting takes time linear in
//! the text, and memory for the distinct pieces in each thread's table.
//!
//! Defined by `train` in `python/tinylm/reference/byte_bpe.py`, which counts equal pieces first;
//! held to it by the rung `train many words` and those of the trainer.

use rustc_hash::FxHashMap;

use crate::added::{AddedToken, AddedTokens};
use crate::cache::{self, Key};
use crate::jobs::{Job, jobs};
use crate::{Error, Interrupt, Pattern, Policy, parallel};

/// Bytes of text between two calls of the interrupt, as in encoding.
const TICK: usize = 1 << 18;

/// A piece of the corpus and how often it occurs.
pub type Word = (Box<[u8]>, u64);

/// The pieces of a corpus and how often each occurs: what training takes.
///
/// Each thread counts into a table of its own, so the sums do not depend on the threads.
///
/// ```
/// use tinylm_tokenizer::{WordCounts, no_interrupt};
///
/// let mut counts = WordCounts::new("word", &[], 1)?;
/// counts.add(&[b"to be or not to be"], &mut no_interrupt)?;
/// let words = counts.words()?;
/// assert_eq!(words[0], ((*b" be").into(), 2));
/// assert_eq!(words.len(), 5);
/// # Ok::<(), tinylm_tokenizer::Error>(())
/// ```
pub struct WordCounts {
    /// The same as in encoding, so that training counts what encoding will see.
    special: AddedTokens,
    pattern: Pattern,
    /// One for each thread, kept between calls.
    tables: Vec<Table>,
}

impl WordCounts {
    /// Counts for a pattern; special tokens in the corpus are left out, and end a piece.
    /// 0 threads means all cores.
    ///
    /// # Errors
    ///
    /// [`Error::Pattern`] for the pattern, [`Error::Vocabulary`] for a special token that is empty
    /// or repeated.
    pub fn new(pattern: &str, special_tokens: &[String], threads: usize) -> Result<Self, Error> {
        let special = |(id, content): (u32, &String)| AddedToken {
            content: content.clone(),
            id,
            special: true,
            late: false,
        };
        Ok(Self {
            // Their ids do not matter here, only where they stand.
            special: AddedTokens::new((0..).zip(special_tokens).map(special).collect())?,
            pattern: Pattern::new(pattern)?,
            tables: (0..parallel::resolve(threads))
                .map(|_| Table::new())
                .collect(),
        })
    }

    /// Adds the pieces of `texts`, each a document of its own.
    ///
    /// # Errors
    ///
    /// [`Error::PatternGaveUp`], or what `interrupt` returns. A part of the texts may then have
    /// been counted, so the counts are of no use any more.
    pub fn add(&mut self, texts: &[&[u8]], interrupt: &mut Interrupt<'_>) -> Result<(), Error> {
        let Self {
            special,
            pattern,
            tables,
        } = self;
        // Special tokens divide the text whoever wrote them: nothing is learned across one.
        let jobs = jobs(texts, pattern, special, &Policy::Allow)?;
        parallel::map(
            &jobs,
            tables,
            interrupt,
            |job, table, interrupt| match *job {
                Job::Texts { first, last } => texts[first..last].iter().try_for_each(|text| {
                    special.segments(text, &Policy::Allow, |segment| {
                        table.add(pattern, &text[..segment.end], segment.start, interrupt)
                    })
                }),
                Job::Parts { text, ref parts } => parts.iter().try_for_each(|part| {
                    table.add(pattern, &texts[text][..part.end], part.start, interrupt)
                }),
            },
        )?;
        Ok(())
    }

    /// A place at which a text may be cut so that its parts count like the whole.
    ///
    /// None if there is no such place.
    pub fn cut(&self, text: &[u8]) -> Result<Option<usize>, Error> {
        self.special.cut(text, &self.pattern, &Policy::Allow)
    }

    /// How many of `vocab_size` tokens are not special; an error if the 256 bytes do not fit.
    pub fn room(&self, vocab_size: usize) -> Result<usize, Error> {
        let special_tokens = self.special.len();
        // All 256 bytes are always tokens, or some text could not be encoded.
        let needed = 256 + special_tokens;
        if vocab_size < needed {
            return Err(Error::VocabularyTooSmall {
                vocab_size,
                special_tokens,
                needed,
            });
        }
        Ok(vocab_size - special_tokens)
    }

    /// The distinct pieces, most frequent first, in the order of their bytes where equal; an
    /// error if there are none.
    pub fn words(&self) -> Result<Vec<Word>, Error> {
        let mut total: FxHashMap<Box<[u8]>, u64> = FxHashMap::default();
        // Sums do not depend on which thread counted what.
        for table in &self.tables {
            table.pour_into(&mut total);
        }
        let mut words: Vec<_> = total.into_iter().collect();
        if words.is_empty() {
            return Err(Error::EmptyCorpus);
        }
        // A total order, so the merges depend neither on the threads nor on the hash.
        words.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        Ok(words)
    }
}

/// A slot of a [`Table`]: 32 bytes, two in a line of the processor's cache.
#[derive(Clone, Copy, Default)]
struct Count {
    key: Key,
    count: u64,
}

/// An open-addressed table for pieces that fit a key, a map for the others.
struct Table {
    /// A power of two of slots, at most half of them used; a key of 0 is free.
    short: Vec<Count>,
    used: usize,
    /// Pieces above [`cache::LONGEST`] bytes.
    long: FxHashMap<Box<[u8]>, u64>,
}

impl Table {
    /// An empty table, which grows as pieces come.
    fn new() -> Self {
        Self {
            // 128 KiB: small texts must not pay for a large table.
            short: vec![Count::default(); 1 << 12],
            used: 0,
            long: FxHashMap::default(),
        }
    }

    /// Counts the pieces of `text[start..]`.
    fn add(
        &mut self,
        pattern: &Pattern,
        text: &[u8],
        start: usize,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<(), Error> {
        let mut tick = start + TICK;
        pattern.pieces(text, start, |from, to| {
            if to >= tick {
                interrupt()?;
                tick = to + TICK;
            }
            if to - from <= cache::LONGEST {
                self.add_short(cache::key(text, from, to), 1);
            // Two look-ups for a new piece, but no copy for one that is known.
            } else if let Some(count) = self.long.get_mut(&text[from..to]) {
                *count += 1;
            } else {
                self.long.insert(text[from..to].into(), 1);
            }
            Ok(())
        })
    }

    /// Counts a piece by its key, with linear probing.
    #[inline]
    fn add_short(&mut self, key: Key, count: u64) {
        // The number of slots is a power of two.
        let mask = self.short.len() - 1;
        let mut at = cache::hash(key) as usize & mask;
        loop {
            let slot = &mut self.short[at];
            if slot.key == key {
                slot.count += count;
                return;
            }
            if slot.key == 0 {
                *slot = Count { key, count };
                break;
            }
            at = (at + 1) & mask;
        }
        self.used += 1;
        // Half empty, so that probes stay short.
        if self.used * 2 > self.short.len() {
            let larger = vec![Count::default(); self.short.len() * 2];
            self.used = 0;
            for old in std::mem::replace(&mut self.short, larger) {
                if old.key != 0 {
                    // Never deeper than one call: the larger table is at most a quarter full here.
                    self.add_short(old.key, old.count);
                }
            }
        }
    }

    /// Adds these counts to `total`.
    fn pour_into(&self, total: &mut FxHashMap<Box<[u8]>, u64>) {
        for slot in self.short.iter().filter(|slot| slot.key != 0) {
            // The last byte of a key is the length of its piece.
            let bytes = slot.key.to_le_bytes();
            *total
                .entry(bytes[..usize::from(bytes[15])].into())
                .or_default() += slot.count;
        }
        #[expect(
            clippy::iter_over_hash_type,
            reason = "sums do not depend on the order"
        )]
        for (word, count) in &self.long {
            *total.entry(word.clone()).or_default() += count;
        }
    }
}
