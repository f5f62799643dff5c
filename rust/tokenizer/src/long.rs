//! BPE of long pieces in windows, in time linear in the piece whatever it holds.
//!
//! Tokens are what BPE makes of their joined bytes if and only if it makes each two neighbours of
//! theirs. (Take the first merge across a border in the whole. Until then the two tokens beside it
//! have merged as they do alone, so that merge comes alone too. The other way round likewise.) So
//! a window is merged by itself, its last quarter is dropped, the next window begins there, and
//! the two tokens at the border are tried alone. If they would not stay apart, some tokens before
//! the border are taken back and the window grows. Nothing here asks how ranks and ids are
//! ordered.
//!
//! Held to `python/tinylm/reference/byte_bpe.py` by the rungs of [`crate::bpe`].

use crate::merge::{SCAN, Scratch};
use crate::pairs::Merges;
use crate::{Error, Interrupt};

/// Bytes of a window at first. The work for a byte grows with the window, the share that is
/// merged in vain with its inverse.
const WINDOW: usize = 64;
/// Bytes merged between two calls of the interrupt, a few milliseconds of work.
const TICK: usize = 1 << 15;
/// Appends the tokens of a long piece.
///
/// # Errors
///
/// Any error that `interrupt` returns.
pub(crate) fn merge_windows(
    merges: &Merges,
    piece: &[u8],
    scratch: &mut Scratch,
    out: &mut Vec<u32>,
    interrupt: &mut Interrupt<'_>,
) -> Result<(), Error> {
    let base = out.len();
    // `out[base..]` is what BPE makes of `piece[..at]`.
    let mut at = 0;
    let (mut window, mut back, mut work) = (WINDOW, 1, 0);
    // Runs of a character have equal windows and borders: what was made last, and of what.
    let mut last = 0..0;
    let mut apart = None;
    loop {
        let end = piece.len().min(at + window);
        work += end - at;
        if work > TICK {
            work = 0;
            interrupt()?;
        }
        if piece[at..end] != piece[last.clone()] {
            let mut tokens = std::mem::take(&mut scratch.window);
            tokens.clear();
            scratch.merge(merges, &piece[at..end], &mut tokens);
            scratch.window = tokens;
            last = at..end;
        }
        if let (Some(&left), Some(&right)) = (out[base..].last(), scratch.window.first())
            && apart != Some((left, right))
        {
            let border = at - merges.length(left)..at + merges.length(right);
            if !stay_apart(merges, &piece[border], (left, right), scratch) {
                // Twice as many as the last time, so that this ends soon.
                for _ in 0..back.min(out.len() - base) {
                    at -= out.pop().map_or(0, |id| merges.length(id));
                }
                back *= 2;
                window = (end - at) * 2;
                continue;
            }
            apart = Some((left, right));
        }
        let first = out.len();
        out.extend_from_slice(&scratch.window);
        if end == piece.len() {
            return Ok(());
        }
        // What stands near the end of the window may be other tokens in the whole.
        let (sure, mut reach) = (end - window / 4, end);
        while reach > sure && out.len() > first {
            reach -= out.pop().map_or(0, |id| merges.length(id));
        }
        if out.len() == first {
            // A token as long as the window.
            window *= 2;
            continue;
        }
        (at, back) = (reach, 1);
        // Not below: equal windows of a run are merged once.
        if window > 4 * SCAN {
            window /= 2;
        }
    }
}

/// Whether BPE makes these two tokens of their joined bytes.
fn stay_apart(
    merges: &Merges,
    bytes: &[u8],
    (left, right): (u32, u32),
    scratch: &mut Scratch,
) -> bool {
    let mut tokens = std::mem::take(&mut scratch.border);
    tokens.clear();
    scratch.merge(merges, bytes, &mut tokens);
    let apart = tokens == [left, right];
    scratch.border = tokens;
    apart
}
