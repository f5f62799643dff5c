//! How a batch of texts is portioned for the threads of [`crate::parallel`].
//!
//! Texts differ in length by factors of a million, so a thread for each text would leave most
//! threads waiting for the longest. Small texts are grouped and large ones are cut, at places where
//! the pieces are those of the whole text ([`Pattern::cut`]). The portions depend on the texts
//! alone and not on the number of threads, so neither do the tokens.
//!
//! The cost is a search for added tokens in the large texts, on the calling thread.

use crate::added::{AddedTokens, Segment};
use crate::{Error, Interrupt, Pattern, Policy};

/// Texts are handed to threads in portions of about this many bytes: 4 to 10 ms of work at 50 to
/// 126 MB/s (docs/log.md), long beside taking a job from the counter, and short enough that threads
/// end at nearly the same time.
const PORTION: usize = 1 << 19;

/// A portion of a batch of texts for one thread.
pub(crate) enum Job {
    /// The whole texts `first..last`.
    Texts { first: usize, last: usize },
    /// Stretches of one text that follow each other, each with the added token right after it.
    ///
    /// Many, because a file of documents may have a special token every few hundred bytes: a job
    /// for each would cost more than its text.
    Parts { text: usize, parts: Vec<Segment> },
}

impl Job {
    /// The number of the text that the job begins with.
    pub(crate) fn first_text(&self) -> usize {
        match *self {
            Self::Texts { first, .. } => first,
            Self::Parts { text, .. } => text,
        }
    }
}

/// Portions of `texts`: small ones in groups, large ones cut where no token can cross.
///
/// In the order of the texts, and each byte of them in one portion.
///
/// # Errors
///
/// [`crate::Error::SpecialToken`] if `policy` forbids a token that stands in a large text. In
/// small ones it is found by the thread that encodes them. And what `interrupt` returns.
pub(crate) fn jobs<T: AsRef<[u8]>>(
    texts: &[T],
    pattern: &Pattern,
    added: &AddedTokens,
    policy: &Policy,
    interrupt: &mut Interrupt<'_>,
) -> Result<Vec<Job>, Error> {
    let mut jobs = Vec::new();
    let (mut first, mut bytes) = (0, 0);
    for (at, text) in texts.iter().map(AsRef::as_ref).enumerate() {
        // Below two portions, cutting would leave parts too small to be worth it.
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
        // The small texts before this one: portions keep the order of the texts.
        if first < at {
            jobs.push(Job::Texts { first, last: at });
        }
        // Parts of a large text share no portion with other texts, so a portion has one kind.
        let (mut parts, mut size) = (Vec::new(), 0);
        let mut add = |part: Segment, last: bool| {
            // A token alone is work too.
            size += part.end - part.start + 1;
            parts.push(part);
            if last || size >= PORTION {
                let parts = std::mem::take(&mut parts);
                jobs.push(Job::Parts { text: at, parts });
                size = 0;
            }
        };
        added.segments(text, policy, interrupt, |segment, _| {
            let mut rest = segment;
            while rest.end - rest.start > 2 * PORTION {
                let to = rest.start + PORTION;
                // Without a place to cut, the rest is one part however long it is.
                let Some(cut) = pattern.cut(&text[..rest.end], rest.start, to) else {
                    break;
                };
                add(
                    Segment {
                        end: cut,
                        token: None,
                        ..rest
                    },
                    false,
                );
                rest.start = cut;
            }
            // Only the last stretch of a text is not ended by a token.
            add(rest, rest.token.is_none());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AddedToken, no_interrupt};

    #[test]
    fn many_added_tokens_make_few_jobs_that_cover_the_text() {
        let end = AddedToken {
            content: "<|end|>".into(),
            id: 0,
            special: true,
            late: false,
        };
        let added = AddedTokens::new(vec![end]).unwrap();
        let long = "word ".repeat(PORTION);
        for text in [
            "a story.<|end|>".repeat(200_000),
            "<|end|>".repeat(400_000),
            format!("{long}<|end|><|end|>{long}"),
        ] {
            let jobs = jobs(
                &[&text],
                &Pattern::Gpt4,
                &added,
                &Policy::Allow,
                &mut no_interrupt,
            )
            .unwrap();
            assert!(jobs.len() <= 2 * text.len() / PORTION + 2);
            let mut at = 0;
            for job in jobs {
                let Job::Parts { parts, .. } = job else {
                    panic!("a large text is no group of texts")
                };
                for part in parts {
                    assert_eq!(part.start, at);
                    at = part.token.map_or(part.end, |(_, end)| end);
                }
            }
            assert_eq!(at, text.len());
        }
    }
}
