//! How often each piece stands in a corpus: all that training needs to know of it.

use rustc_hash::FxHashMap;

use crate::cache::{self, Key};
use crate::special::SpecialTokens;
use crate::train::Word;
use crate::{Error, Interrupt, Pattern, Policy, parallel};

/// Texts are handed to threads in portions of about this many bytes.
const PORTION: usize = 1 << 19;
/// Bytes of text between two calls of the interrupt.
const TICK: usize = 1 << 18;

/// A portion of a batch of texts for one thread.
pub(crate) enum Job {
    /// The whole texts `first..last`.
    Texts { first: usize, last: usize },
    /// `start..end` of one text and the special token that comes right after, if one does.
    Part {
        text: usize,
        start: usize,
        end: usize,
        special: Option<u32>,
    },
}

impl Job {
    pub(crate) fn first_text(&self) -> usize {
        match *self {
            Self::Texts { first, .. } => first,
            Self::Part { text, .. } => text,
        }
    }
}

/// Portions of `texts`: small ones in groups, large ones cut where no token can cross.
pub(crate) fn jobs(
    texts: &[&[u8]],
    pattern: &Pattern,
    special: &SpecialTokens,
    policy: &Policy,
) -> Result<Vec<Job>, Error> {
    let mut jobs = Vec::new();
    let (mut first, mut bytes) = (0, 0);
    for (at, text) in texts.iter().enumerate() {
        if text.len() < 2 * PORTION {
            bytes += text.len();
            if bytes >= PORTION {
                jobs.push(Job::Texts {
                    first,
                    last: at + 1,
                });
                (first, bytes) = (at + 1, 0);
            }
            continue;
        }
        if first < at {
            jobs.push(Job::Texts { first, last: at });
        }
        special.segments(text, policy, |segment| {
            let (mut start, end) = (segment.start, segment.end);
            while end - start > 2 * PORTION {
                let Some(cut) = pattern.cut(&text[..end], start, start + PORTION) else {
                    break;
                };
                jobs.push(Job::Part {
                    text: at,
                    start,
                    end: cut,
                    special: None,
                });
                start = cut;
            }
            let special = segment.special.map(|(id, _)| id);
            jobs.push(Job::Part {
                text: at,
                start,
                end,
                special,
            });
            Ok(())
        })?;
        (first, bytes) = (at + 1, 0);
    }
    if first < texts.len() {
        jobs.push(Job::Texts {
            first,
            last: texts.len(),
        });
    }
    Ok(jobs)
}

/// The pieces of a corpus and how often each occurs.
///
/// Each thread counts into a table of its own, so the sums do not depend on the threads.
pub struct WordCounts {
    pattern: Pattern,
    special: SpecialTokens,
    tables: Vec<Table>,
}

impl WordCounts {
    /// Counts for a pattern; special tokens in the corpus are left out, and end a piece.
    /// 0 threads means all cores.
    pub fn new(pattern: &str, special_tokens: &[String], threads: usize) -> Result<Self, Error> {
        let special = special_tokens.iter().cloned().zip(0..).collect();
        Ok(Self {
            pattern: Pattern::new(pattern)?,
            special: SpecialTokens::new(special)?,
            tables: (0..parallel::resolve(threads))
                .map(|_| Table::new())
                .collect(),
        })
    }

    /// Adds the pieces of `texts`, each a document of its own.
    pub fn add(&mut self, texts: &[&[u8]], interrupt: &mut Interrupt<'_>) -> Result<(), Error> {
        let Self {
            pattern,
            special,
            tables,
        } = self;
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
                Job::Part {
                    text, start, end, ..
                } => table.add(pattern, &texts[text][..end], start, interrupt),
            },
        )?;
        Ok(())
    }

    /// A place at which a text may be cut so that its parts count like the whole.
    pub fn cut(&self, text: &[u8]) -> Result<Option<usize>, Error> {
        self.special.cut(text, &self.pattern, &Policy::Allow)
    }

    pub(crate) fn special_tokens(&self) -> usize {
        self.special.len()
    }

    /// The distinct pieces, most frequent first, in the order of their bytes where equal.
    pub(crate) fn words(&self) -> Vec<Word> {
        let mut total: FxHashMap<Box<[u8]>, u64> = FxHashMap::default();
        for table in &self.tables {
            table.pour_into(&mut total);
        }
        let mut words: Vec<_> = total.into_iter().collect();
        words.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        words
    }
}

#[derive(Clone, Copy, Default)]
struct Count {
    key: Key,
    count: u64,
}

/// An open-addressed table for pieces that fit a key, a map for the others.
struct Table {
    short: Vec<Count>,
    used: usize,
    long: FxHashMap<Box<[u8]>, u64>,
}

impl Table {
    fn new() -> Self {
        Self {
            short: vec![Count::default(); 1 << 12],
            used: 0,
            long: FxHashMap::default(),
        }
    }

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
            } else if let Some(count) = self.long.get_mut(&text[from..to]) {
                *count += 1;
            } else {
                self.long.insert(text[from..to].into(), 1);
            }
            Ok(())
        })
    }

    #[inline]
    fn add_short(&mut self, key: Key, count: u64) {
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
        if self.used * 2 > self.short.len() {
            let larger = vec![Count::default(); self.short.len() * 2];
            self.used = 0;
            for old in std::mem::replace(&mut self.short, larger) {
                if old.key != 0 {
                    self.add_short(old.key, old.count);
                }
            }
        }
    }

    fn pour_into(&self, total: &mut FxHashMap<Box<[u8]>, u64>) {
        for slot in self.short.iter().filter(|slot| slot.key != 0) {
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
