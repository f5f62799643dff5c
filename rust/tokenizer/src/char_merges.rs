//! When the pairs of a vocabulary of characters merge: as a list says, or by the scores of tokens.

use rustc_hash::FxHashMap;

use crate::{Error, Tokens};

/// The rank of a pair that does not merge.
pub(crate) const NEVER: u32 = u32::MAX;

/// When a pair merges, and into what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Merge {
    pub(crate) rank: u32,
    pub(crate) id: u32,
}

pub(crate) const NO_MERGE: Merge = Merge { rank: NEVER, id: 0 };

/// Two numbers in one, ordered by the first.
pub(crate) fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// The listed merges; the right token loses its prefix where two are joined.
pub(crate) fn in_order(
    tokens: &Tokens,
    merges: &[(u32, u32)],
    id_of: &FxHashMap<&[u8], u32>,
    prefix: &[u8],
) -> Result<FxHashMap<u64, Merge>, Error> {
    let bytes_of: FxHashMap<u32, &[u8]> = tokens.iter().map(|(t, id)| (id, t)).collect();
    let mut pairs = FxHashMap::default();
    for (rank, &(left, right)) in (0u32..).zip(merges) {
        let fail = |what: String| {
            let place = format!("merge {rank} of tokens {left} and {right}: {what}");
            Error::Vocabulary(place)
        };
        let bytes = |id: u32| {
            bytes_of
                .get(&id)
                .ok_or_else(|| fail(format!("no token {id}")))
        };
        let end = bytes(right)?;
        let joined = [bytes(left)?, end.strip_prefix(prefix).unwrap_or(end)].concat();
        let id = id_of.get(joined.as_slice());
        let id = *id.ok_or_else(|| fail("its result is not a token".into()))?;
        if pairs
            .insert(pair(left, right), Merge { rank, id })
            .is_some()
        {
            return Err(fail("it is listed twice".into()));
        }
    }
    Ok(pairs)
}

/// Any two tokens whose text is a token; the rank is the place of its score, the highest first.
pub(crate) fn by_score(
    tokens: &Tokens,
    scores: &[f32],
    id_of: &FxHashMap<&[u8], u32>,
) -> Result<FxHashMap<u64, Merge>, Error> {
    if scores.len() != tokens.len() {
        return Err(Error::Vocabulary(format!(
            "{} tokens have {} scores; each needs one",
            tokens.len(),
            scores.len()
        )));
    }
    let mut order: Vec<f32> = scores.to_vec();
    order.sort_by(|a, b| b.total_cmp(a));
    order.dedup();
    let rank_of: FxHashMap<u32, u32> = tokens
        .iter()
        .zip(scores)
        // Without a score, as those of bytes, a token is never merged.
        .filter(|(_, score)| score.is_finite())
        .map(|((_, id), score)| {
            let place = order.partition_point(|other| other.total_cmp(score).is_gt());
            (id, place as u32)
        })
        .collect();
    let splits = every_split(tokens, id_of).into_iter();
    let merges = splits.filter_map(|(_, left, right, id)| {
        let rank = *rank_of.get(&id)?;
        Some((pair(left, right), Merge { rank, id }))
    });
    Ok(merges.collect())
}

/// All ways to make a token from two others, as (rank, left, right, id); the rank is the id.
///
/// A token of n bytes has n - 1 ways to be cut in two; each half is looked up by its bytes.
fn every_split(tokens: &Tokens, id_of: &FxHashMap<&[u8], u32>) -> Vec<(u32, u32, u32, u32)> {
    let mut splits = Vec::new();
    for (token, id) in tokens.iter() {
        for middle in 1..token.len() {
            if let (Some(&left), Some(&right)) =
                (id_of.get(&token[..middle]), id_of.get(&token[middle..]))
            {
                splits.push((id, left, right, id));
            }
        }
    }
    splits
}
