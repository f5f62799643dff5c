//! How a batch of texts is portioned for the threads of [`crate::parallel`].

use crate::added::AddedTokens;
use crate::{Error, Pattern, Policy};

/// Texts are handed to threads in portions of about this many bytes: 7 to 13 ms of work at 39 to
/// 78 MB/s (docs/log.md), long beside taking a job from the counter, and short enough that threads
/// end at nearly the same time.
const PORTION: usize = 1 << 19;

/// A portion of a batch of texts for one thread.
pub(crate) enum Job {
    /// The whole texts `first..last`.
    Texts { first: usize, last: usize },
    /// `start..end` of one text and the added token that comes right after, if one does.
    Part {
        text: usize,
        start: usize,
        end: usize,
        token: Option<u32>,
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
pub(crate) fn jobs<T: AsRef<[u8]>>(
    texts: &[T],
    pattern: &Pattern,
    added: &AddedTokens,
    policy: &Policy,
) -> Result<Vec<Job>, Error> {
    let mut jobs = Vec::new();
    let (mut first, mut bytes) = (0, 0);
    for (at, text) in texts.iter().map(AsRef::as_ref).enumerate() {
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
        added.segments(text, policy, |segment| {
            let (mut start, end) = (segment.start, segment.end);
            while end - start > 2 * PORTION {
                let Some(cut) = pattern.cut(&text[..end], start, start + PORTION) else {
                    break;
                };
                jobs.push(Job::Part {
                    text: at,
                    start,
                    end: cut,
                    token: None,
                });
                start = cut;
            }
            let token = segment.token.map(|(id, _)| id);
            jobs.push(Job::Part {
                text: at,
                start,
                end,
                token,
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
