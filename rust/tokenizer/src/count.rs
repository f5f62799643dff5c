//! How often each piece stands in a corpus: all that training needs to know of it.
//!
//! A corpus has far fewer distinct pieces than pieces, so training on counts costs much less than
//! training on the text. Pieces are cut here as encoding cuts them. Counting takes time linear in
//! the text, and memory for the distinct pieces in each thread's table: 48 to 96 bytes for a short
//! piece, and its bytes and about 40 for a long one. The text itself may be handed over in parts of
//! any size.
//!
//! Defined by `train` in `python/tinylm/reference/byte_bpe.py`, which counts equal pieces first;
//! held to it by the rung `train many words` and those of the trainer.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::added::{AddedToken, AddedTokens};
use crate::jobs::{Job, jobs};
use crate::table::Table;
use crate::words::Words;
use crate::{Error, Interrupt, Pattern, Policy, count_file, parallel};

/// Bytes of text between two calls of the interrupt, as in encoding.
const TICK: usize = 1 << 18;

/// Pieces split before they are counted: the look-ups of one batch wait for memory together, and
/// not each for the branches of the splitter.
const SPANS: usize = 128;

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
/// assert_eq!(words.iter().next(), Some((b" be".as_slice(), 2)));
/// assert_eq!(words.len(), 5);
/// # Ok::<(), tinylm_tokenizer::Error>(())
/// ```
pub struct WordCounts {
    /// The same as in encoding, so that training counts what encoding will see.
    special: AddedTokens,
    pattern: Pattern,
    /// One for each thread, kept between calls.
    tables: Vec<Table>,
    /// What was counted before `words` was last called.
    settled: Arc<Words>,
    /// Whether the tables hold something.
    added: bool,
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
            settled: Arc::default(),
            added: false,
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
            added,
            ..
        } = self;
        *added = true;
        // Special tokens divide the text whoever wrote them: nothing is learned across one.
        let jobs = jobs(texts, pattern, special, &Policy::Allow, interrupt)?;
        parallel::map(
            &jobs,
            tables,
            interrupt,
            |job, table, interrupt| match *job {
                Job::Texts { first, last } => texts[first..last].iter().try_for_each(|text| {
                    special.segments(text, &Policy::Allow, interrupt, |segment, interrupt| {
                        count(
                            table,
                            pattern,
                            &text[..segment.end],
                            segment.start,
                            interrupt,
                        )
                    })
                }),
                Job::Parts { text, ref parts } => parts.iter().try_for_each(|part| {
                    count(
                        table,
                        pattern,
                        &texts[text][..part.end],
                        part.start,
                        interrupt,
                    )
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

    /// Bytes of memory of what was counted; writing it away takes as much again for one of the
    /// threads' tables.
    pub fn memory(&self) -> usize {
        let tables = self.tables.iter().map(Table::memory);
        tables.sum::<usize>() + self.settled.memory()
    }

    /// Writes what was counted to files, which have a note, and forgets it: a file for each thread
    /// that has counted anything, `path(0)` and so on. Returns how many there are.
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    pub fn spill(
        &mut self,
        note: &str,
        mut path: impl FnMut(usize) -> PathBuf,
    ) -> Result<usize, Error> {
        self.tables[0].add_words(&self.settled);
        self.settled = Arc::default();
        self.added = false;
        let mut files = 0;
        for table in &mut self.tables {
            let mut words = table.drain();
            if !words.is_empty() {
                count_file::save(&mut words, note, &path(files))?;
                files += 1;
            }
        }
        Ok(files)
    }

    /// Adds the counts in a file; what its note says is the caller's matter.
    ///
    /// # Errors
    ///
    /// [`Error::File`] or [`Error::CountFile`], after which the counts are of no use any more, and
    /// what `interrupt` returns.
    pub fn load(&mut self, path: &Path, interrupt: &mut Interrupt<'_>) -> Result<(), Error> {
        self.added = true;
        let table = &mut self.tables[0];
        count_file::load(path, interrupt, |piece, count| {
            table.add(piece, 0, piece.len(), count);
        })
    }

    /// The distinct pieces, most frequent first, in the order of their bytes where equal.
    ///
    /// The tables are emptied into the result, which is kept as well, so that more may be added.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyCorpus`] if there are none.
    pub fn words(&mut self) -> Result<Arc<Words>, Error> {
        if self.added {
            // Sums do not depend on which thread counted what.
            let (all, others) = self.tables.split_at_mut(1);
            for table in others {
                all[0].take(table);
            }
            all[0].add_words(&self.settled);
            let mut words = all[0].drain();
            // A total order, so the merges depend neither on the threads nor on the hash.
            words.sort();
            self.settled = Arc::new(words);
            self.added = false;
        }
        if self.settled.is_empty() {
            return Err(Error::EmptyCorpus);
        }
        Ok(Arc::clone(&self.settled))
    }
}

/// Counts the pieces of `text[start..]`.
fn count(
    table: &mut Table,
    pattern: &Pattern,
    text: &[u8],
    start: usize,
    interrupt: &mut Interrupt<'_>,
) -> Result<(), Error> {
    let mut tick = start + TICK;
    let mut spans = [(0, 0); SPANS];
    let mut waiting = 0;
    pattern.pieces(text, start, |from, to| {
        spans[waiting] = (from, to);
        waiting += 1;
        if waiting == SPANS {
            for (from, to) in spans {
                table.add(text, from, to, 1);
            }
            waiting = 0;
        }
        if to >= tick {
            interrupt()?;
            tick = to + TICK;
        }
        Ok(())
    })?;
    for &(from, to) in &spans[..waiting] {
        table.add(text, from, to, 1);
    }
    Ok(())
}
