//! Special tokens: strings with an id of their own, found in text before it is split.

use aho_corasick::{AhoCorasick, MatchKind};

use crate::{Error, Pattern};

/// What to do with special tokens that stand in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Policy {
    /// Fail: the text may come from someone who should not write control tokens.
    Raise,
    /// Encode each as its id.
    Allow,
    /// Take them for ordinary text.
    Text,
    /// Encode those with these ids as their ids, fail on the others.
    Only(Vec<u32>),
}

/// The special tokens of a tokenizer, by id.
#[derive(Debug)]
pub(crate) struct SpecialTokens {
    tokens: Vec<(String, u32)>,
    finder: Option<AhoCorasick>,
    pub(crate) longest: usize,
}

/// A stretch of text between special tokens, and the id of the token that ends it.
pub(crate) struct Segment {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) special: Option<(u32, usize)>,
}

impl SpecialTokens {
    pub(crate) fn new(mut tokens: Vec<(String, u32)>) -> Result<Self, Error> {
        tokens.sort_by_key(|(_, id)| *id);
        if tokens.iter().any(|(token, _)| token.is_empty()) {
            return Err(Error::Vocabulary(
                "a special token is the empty string".into(),
            ));
        }
        let longest = tokens
            .iter()
            .map(|(token, _)| token.len())
            .max()
            .unwrap_or(0);
        let finder = AhoCorasick::builder()
            // Of tokens that begin at the same place, the longest.
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|(token, _)| token))
            .map_err(|e| Error::Vocabulary(format!("special tokens: {e}")))?;
        Ok(Self {
            finder: (!tokens.is_empty()).then_some(finder),
            tokens,
            longest,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.tokens
            .iter()
            .find(|(t, _)| t == token)
            .map(|(_, id)| *id)
    }

    /// A place at which `text`, the beginning of a longer one, may be cut: what is before it
    /// is encoded by itself as in the whole. None if there is no such place.
    pub(crate) fn cut(
        &self,
        text: &[u8],
        pattern: &Pattern,
        policy: &Policy,
    ) -> Result<Option<usize>, Error> {
        // A special token may begin in the last bytes and end after them.
        let to = text.len().saturating_sub(self.longest.max(1));
        let mut cut = pattern.cut(text, 0, to);
        self.segments(text, policy, |segment| {
            if let (Some(at), Some((_, end))) = (cut, segment.special)
                && segment.end < at
                && at < end
            {
                cut = Some(segment.end).filter(|&start| start > 0);
            }
            Ok(())
        })?;
        Ok(cut)
    }

    /// Calls `each` with the stretches of `text` in order; the last one has no special token.
    pub(crate) fn segments(
        &self,
        text: &[u8],
        policy: &Policy,
        mut each: impl FnMut(Segment) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut start = 0;
        if let (Some(finder), false) = (&self.finder, *policy == Policy::Text) {
            for found in finder.find_iter(text) {
                let (token, id) = &self.tokens[found.pattern().as_usize()];
                let allowed = match policy {
                    Policy::Allow | Policy::Text => true,
                    Policy::Raise => false,
                    Policy::Only(ids) => ids.contains(id),
                };
                if !allowed {
                    let position = found.start();
                    return Err(Error::SpecialToken {
                        token: token.clone(),
                        position,
                    });
                }
                each(Segment {
                    start,
                    end: found.start(),
                    special: Some((*id, found.end())),
                })?;
                start = found.end();
            }
        }
        each(Segment {
            start,
            end: text.len(),
            special: None,
        })
    }
}
