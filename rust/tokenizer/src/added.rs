//! Added tokens: strings with an id of their own, found in a text before it is split.
//!
//! Special ones are control tokens, which only trusted text should hold: a [`Policy`] guards them.
//! The others always match, as the runs of blanks do that some vocabularies add for code. All are
//! found from the left, the longest first where several begin at one place. Late ones are looked
//! for in what the others leave.
//!
//! One pass of an Aho-Corasick automaton finds all tokens of a search, so the time is linear in the
//! text however many tokens there are. The places are found before the text is split, so an added
//! token ends the piece before it.
//!
//! Defined by `cut_special` in `python/tinylm/reference/byte_bpe.py`, held to it by the rungs
//! `special tokens` and `special tokens, some`, and by those in `tests/rungs/added.py`.

use aho_corasick::{AhoCorasick, Input, MatchKind};

use crate::edges::{Edges, begins_with_word, blanks_at_end, blanks_at_start, ends_in_word};
use crate::{Error, Interrupt, Pattern, Tokens, alphabet, no_interrupt};

/// Bytes that are searched between two calls of the interrupt: a few milliseconds where tokens are
/// many, since their automaton does not fit a cache.
const TICK: usize = 1 << 19;

/// A string that becomes one id wherever it stands in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedToken {
    /// The string.
    pub content: String,
    /// Its id, which no other token has.
    pub id: u32,
    /// Whether a [`Policy`] guards it.
    pub special: bool,
    /// Whether it is looked for only where no token that is not late was found.
    pub late: bool,
}

/// What to do with special tokens that stand in a text.
///
/// ```
/// use tinylm_tokenizer::{AddedToken, ModelSpec, Policy, Spec, Tokenizer, no_interrupt};
///
/// let end = AddedToken { content: "<|end|>".into(), id: 256, special: true, late: false };
/// let tokenizer = Tokenizer::new(Spec {
///     tokens: (0..=255u8).map(|byte| (vec![byte], byte.into())).collect(),
///     model: ModelSpec::Bpe { merges: Some(vec![]), whole_pieces: false },
///     pattern: "gpt4".into(),
///     added: vec![end],
/// })?;
/// let encode = |policy| tokenizer.encode(b"a<|end|>", &policy, &mut no_interrupt);
/// assert!(encode(Policy::Raise).is_err());
/// assert_eq!(encode(Policy::Allow)?, [97, 256]);
/// assert_eq!(encode(Policy::Text)?.len(), 8);
/// # Ok::<(), tinylm_tokenizer::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Policy {
    /// Fail: the text may come from someone who should not write control tokens.
    Raise,
    /// Encode each as its id.
    Allow,
    /// Take them for ordinary text, in which the tokens that are not special still match.
    Text,
    /// Encode those with these ids as their ids, fail on the others.
    Only(Vec<u32>),
}

/// The added tokens of a tokenizer.
#[derive(Debug)]
pub(crate) struct AddedTokens {
    /// Sorted by id.
    tokens: Vec<AddedToken>,
    /// Searches for all tokens, those for the late ones last; none without tokens.
    all: Vec<Search>,
    /// Searches for the tokens that are not special.
    plain: Vec<Search>,
    /// Bytes of the longest token: how far one may reach over the end of a text's beginning.
    longest: usize,
    /// By the index of the token; empty if none has any.
    edges: Vec<Edges>,
}

/// Finds some of the tokens in one pass over a text.
#[derive(Debug)]
struct Search {
    finder: AhoCorasick,
    /// The token that each pattern of the finder is.
    tokens: Vec<usize>,
}

impl Search {
    /// A search for the tokens that are `wanted`; None if no token is.
    fn new(
        tokens: &[AddedToken],
        wanted: impl Fn(&AddedToken) -> bool,
    ) -> Result<Option<Self>, Error> {
        let chosen: Vec<usize> = (0..tokens.len())
            .filter(|&at| wanted(&tokens[at]))
            .collect();
        if chosen.is_empty() {
            return Ok(None);
        }
        let finder = AhoCorasick::builder()
            // Of tokens that begin at the same place, the longest.
            .match_kind(MatchKind::LeftmostLongest)
            .build(chosen.iter().map(|&at| &tokens[at].content))
            .map_err(|e| Error::Vocabulary(format!("added tokens: {e}")))?;
        Ok(Some(Self {
            finder,
            tokens: chosen,
        }))
    }
}

/// A stretch of text between added tokens, and the id and end of the token that ends it.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) token: Option<(u32, usize)>,
}

impl AddedTokens {
    /// From the tokens in any order.
    ///
    /// # Errors
    ///
    /// [`Error::Vocabulary`] for an empty token and for two with the same content. That ids differ
    /// is checked by the vocabulary, which knows all of them.
    pub(crate) fn new(mut tokens: Vec<AddedToken>) -> Result<Self, Error> {
        let fail = |message: String| Err(Error::Vocabulary(message));
        // Equal contents are then neighbours.
        tokens.sort_by(|a, b| a.content.cmp(&b.content));
        if let Some(pair) = tokens.windows(2).find(|p| p[0].content == p[1].content) {
            // The word that the caller used for it.
            let kind = if pair[0].special { "special" } else { "added" };
            return fail(format!(
                "the {kind} token {:?} is listed twice",
                pair[0].content
            ));
        }
        tokens.sort_by_key(|token| token.id);
        if let Some(token) = tokens.iter().find(|token| token.content.is_empty()) {
            let kind = if token.special { "special" } else { "added" };
            return fail(format!("{kind} token {} is the empty string", token.id));
        }
        let lengths = tokens.iter().map(|token| token.content.len());
        let longest = lengths.max().unwrap_or(0);
        let searches = |special: bool| -> Result<Vec<Search>, Error> {
            // Late tokens must not match across an early one, so they have a search of their own.
            let early = Search::new(&tokens, |t| !t.late && (special || !t.special))?;
            let late = Search::new(&tokens, |t| t.late && (special || !t.special))?;
            Ok(early.into_iter().chain(late).collect())
        };
        Ok(Self {
            all: searches(true)?,
            plain: searches(false)?,
            tokens,
            longest,
            edges: Vec::new(),
        })
    }

    /// Tells what tokens ask of the characters around them, by their ids.
    pub(crate) fn set_edges(&mut self, edges: &[(u32, Edges)]) {
        let of = |id: u32| edges.iter().find(|edge| edge.0 == id).map(|edge| edge.1);
        let found: Vec<_> = self.tokens.iter().map(|token| of(token.id)).collect();
        if found.iter().any(Option::is_some) {
            self.edges = found.into_iter().map(Option::unwrap_or_default).collect();
        }
    }

    /// The late tokens, taken out: who normalises a text looks for them after that.
    pub(crate) fn without_late(self) -> Result<(Self, Vec<AddedToken>), Error> {
        let (late, early) = self.tokens.into_iter().partition(|token| token.late);
        Ok((Self::new(early)?, late))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Their bytes and ids.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&[u8], u32)> {
        self.tokens
            .iter()
            .map(|token| (token.content.as_bytes(), token.id))
    }

    /// The ids of those that are ordinary tokens too: the same bytes, or these in GPT-2's alphabet.
    pub(crate) fn among(&self, tokens: &Tokens) -> Vec<u32> {
        let same = |content: &str, bytes: &[u8]| {
            let mut spelled = String::new();
            alphabet::write(bytes, &mut spelled);
            content.as_bytes() == bytes || content == spelled
        };
        let is_same = |(bytes, id): &(&[u8], u32)| {
            let at = self.tokens.binary_search_by_key(id, |token| token.id);
            at.is_ok_and(|at| same(&self.tokens[at].content, bytes))
        };
        tokens.iter().filter(is_same).map(|(_, id)| id).collect()
    }

    /// The id of a special token.
    pub(crate) fn special_id(&self, content: &str) -> Option<u32> {
        self.tokens
            .iter()
            .find(|token| token.special && token.content == content)
            .map(|token| token.id)
    }

    /// A place at which `text`, the beginning of a longer one, may be cut: what is before it
    /// is encoded by itself as in the whole. None if there is no such place.
    ///
    /// # Errors
    ///
    /// [`Error::SpecialToken`] if `policy` forbids a token that is found.
    pub(crate) fn cut(
        &self,
        text: &[u8],
        pattern: &Pattern,
        policy: &Policy,
    ) -> Result<Option<usize>, Error> {
        // A token may begin in the last bytes and end after them; one of a later search ends
        // where such a token begins.
        let unsure = self.longest * self.all.len();
        let mut cut = pattern.cut(text, 0, text.len().saturating_sub(unsure.max(1)));
        // The place must not lie inside a token that was found either.
        self.segments(text, policy, &mut no_interrupt, |segment, _| {
            if let (Some(at), Some((_, end))) = (cut, segment.token)
                && segment.end < at
                && at < end
            {
                cut = Some(segment.end).filter(|&start| start > 0);
            }
            Ok(())
        })?;
        Ok(cut)
    }

    /// Calls `each` with the stretches of `text` in order; the last one has no token.
    ///
    /// # Errors
    ///
    /// [`Error::SpecialToken`] if `policy` forbids a token that is found, and what `interrupt` and
    /// `each` return.
    pub(crate) fn segments(
        &self,
        text: &[u8],
        policy: &Policy,
        interrupt: &mut Interrupt<'_>,
        mut each: impl FnMut(Segment, &mut Interrupt<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let searches = match policy {
            Policy::Text => &self.plain,
            Policy::Raise | Policy::Allow | Policy::Only(_) => &self.all,
        };
        // The stretch to begin with; each search divides what the one before it left.
        let whole = Segment {
            start: 0,
            end: text.len(),
            token: None,
        };
        match searches.as_slice() {
            [] => each(whole, interrupt),
            [only] => self.divide(text, whole, only, policy, interrupt, each),
            [early, late, ..] => {
                self.divide(
                    text,
                    whole,
                    early,
                    policy,
                    interrupt,
                    |between, interrupt| {
                        // By reference: one copy of `each` serves the rare file with two searches.
                        let each: &mut dyn FnMut(Segment, &mut Interrupt<'_>) -> Result<(), Error> =
                            &mut each;
                        self.divide(text, between, late, policy, interrupt, each)
                    },
                )
            }
        }
    }

    /// Cuts a stretch at the tokens of a search; its last part ends as the stretch does.
    #[inline]
    fn divide(
        &self,
        text: &[u8],
        stretch: Segment,
        search: &Search,
        policy: &Policy,
        interrupt: &mut Interrupt<'_>,
        mut each: impl FnMut(Segment, &mut Interrupt<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut start = stretch.start;
        // A token that begins before `tick` is found whole before `seen`.
        let (mut at, mut tick) = (start, start + TICK);
        loop {
            let seen = stretch.end.min(tick.saturating_add(self.longest));
            let range = Input::new(text).range(at..seen);
            let found = search.finder.find(range);
            let Some(found) = found.filter(|found| found.start() < tick || seen == stretch.end)
            else {
                if seen == stretch.end {
                    break;
                }
                interrupt()?;
                (at, tick) = (tick, tick + TICK);
                continue;
            };
            at = found.end();
            if at > tick {
                interrupt()?;
                tick = at + TICK;
            }
            let number = search.tokens[found.pattern().as_usize()];
            let token = &self.tokens[number];
            let (mut from, mut to) = (found.start(), found.end());
            if let Some(edges) = self.edges.get(number) {
                let (before, after) = (&text[stretch.start..from], &text[to..stretch.end]);
                if edges.single_word && (ends_in_word(before) || begins_with_word(after)) {
                    continue;
                }
                if edges.lstrip {
                    from = start.max(from - blanks_at_end(before));
                }
                if edges.rstrip {
                    to += blanks_at_start(after);
                }
                // The token before took all of it, as white space around itself.
                if from >= to {
                    continue;
                }
            }
            // In `Text` the search has no special token to find.
            let allowed = match policy {
                Policy::Allow | Policy::Text => true,
                Policy::Raise => !token.special,
                Policy::Only(ids) => !token.special || ids.contains(&token.id),
            };
            if !allowed {
                return Err(Error::SpecialToken {
                    token: token.content.clone(),
                    position: found.start(),
                });
            }
            // Also an empty stretch: the token after it must be handed on.
            each(
                Segment {
                    start,
                    // The token before may have taken the white space already.
                    end: from.max(start),
                    token: Some((token.id, to)),
                },
                interrupt,
            )?;
            start = to;
        }
        each(Segment { start, ..stretch }, interrupt)
    }
}
