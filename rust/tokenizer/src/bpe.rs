//! Byte-level BPE: the merges of a vocabulary, and pieces of any length.
//!
//! A piece is usually a word with the space before it, which [`crate::merge`] merges as a whole.
//! A long piece goes through [`crate::long`].
//!
//! By tiktoken's rule any two neighbours merge whose bytes are a token, but of all the ways to
//! cut a token in two only one is ever taken: the last merge of the token's own bytes, because until
//! then nothing around them takes part. So one pair for each token is kept, not three or four.
//!
//! Defined by `encode` and `encode_ranks` in `python/tinylm/reference/byte_bpe.py`, held to them
//! by the rungs `encode`, `encode whole pieces` and `encode ranks`.

use rustc_hash::{FxBuildHasher, FxHashMap};

use crate::borders::Borders;
use crate::cache::Cache;
use crate::error::numbered;
use crate::long::merge_windows;
use crate::merge::{RANKS, Scratch};
use crate::pairs::{Merges, NEVER, Pairs};
use crate::{Error, Interrupt};

/// Pieces up to this length are merged at once.
const SHORT: usize = 96;

/// The merges of a vocabulary.
#[derive(Debug)]
pub(crate) struct Bpe {
    merges: Merges,
    /// None if a token may be a piece that merges do not make: a part of a piece is then not always
    /// what it is as a piece.
    borders: Option<Borders>,
    /// The pieces that stay whole, if the vocabulary has that rule: all its tokens.
    seed: Cache,
    /// Those of them that the cache does not take.
    whole: FxHashMap<Box<[u8]>, u32>,
}

impl Bpe {
    /// From tokens and either their merges in order, or None for tiktoken's rule: any two
    /// neighbours whose bytes are a token merge, the lowest id first.
    ///
    /// # Errors
    ///
    /// [`Error::Vocabulary`] if a token is empty or repeated, if a byte has no token, or if a merge
    /// is repeated, or names or makes a token that does not exist.
    pub(crate) fn new(
        tokens: &[(Vec<u8>, u32)],
        merges: Option<&[(u32, u32)]>,
        whole_pieces: bool,
        missing: &[u8],
    ) -> Result<Self, Error> {
        // Borrowed from `tokens`: nothing is copied for what is needed only while building.
        let mut id_of = FxHashMap::with_capacity_and_hasher(tokens.len(), FxBuildHasher);
        let mut lengths = Vec::with_capacity(tokens.len());
        for (token, id) in tokens {
            if token.is_empty() {
                return Err(Error::Vocabulary(format!("token {id} is empty")));
            }
            if let Some(other) = id_of.insert(token.as_slice(), *id) {
                let message = format!("tokens {other} and {id} have the same bytes");
                return Err(Error::Vocabulary(message));
            }
            let at = *id as usize;
            // Larger ids are refused with the vocabulary.
            if at < RANKS {
                lengths.resize(lengths.len().max(at + 1), 0);
                lengths[at] = token.len() as u32;
            }
        }
        // Ids that no token has, for bytes that no piece has.
        let mut unused = tokens.iter().map(|(_, id)| id + 1).max().unwrap_or(0)..;
        let mut byte_ids = [0; 256];
        for (byte, slot) in (0..=255u8).zip(&mut byte_ids) {
            let id = id_of.get([byte].as_slice()).copied();
            let id = id.or_else(|| unused.next().filter(|_| missing.contains(&byte)));
            *slot = id.ok_or_else(|| {
                Error::Vocabulary(format!(
                    "byte 0x{byte:02x} is not a token; all 256 bytes must be, or some text \
                     could not be encoded"
                ))
            })?;
        }
        let mut bpe = Self {
            merges: Merges {
                byte_ids,
                byte_pairs: vec![NEVER; 1 << 16],
                pairs: Pairs::new(merges.map_or(tokens.len(), <[_]>::len)),
                lengths,
            },
            borders: None,
            seed: Cache::for_pieces(if whole_pieces { tokens.len() } else { 0 }),
            whole: FxHashMap::default(),
        };
        if whole_pieces {
            for (token, id) in tokens {
                if !bpe.seed.plant(token, *id) {
                    bpe.whole.insert(token.as_slice().into(), *id);
                }
            }
        }
        let all_merged = match merges {
            Some(merges) => {
                bpe.listed(tokens, merges, &id_of)?;
                !whole_pieces
            }
            None => bpe.ranked(tokens, &id_of),
        };
        if all_merged {
            bpe.borders = Some(bpe.borders_of(tokens));
        }
        Ok(bpe)
    }

    /// The borders that its merges cross.
    fn borders_of(&self, tokens: &[(Vec<u8>, u32)]) -> Borders {
        let mut bytes_of = vec![[].as_slice(); self.merges.lengths.len()];
        for (token, id) in tokens {
            if let Some(bytes) = bytes_of.get_mut(*id as usize) {
                *bytes = token;
            }
        }
        // Ids that are no token's are bytes that no piece has.
        let bytes = |id: u32| bytes_of.get(id as usize).copied().unwrap_or_default();
        let mut borders = Borders::new();
        for (left, right) in self.merges.pairs.iter() {
            borders.add(bytes(left), bytes(right));
        }
        borders
    }

    /// Adds the listed merges.
    fn listed(
        &mut self,
        tokens: &[(Vec<u8>, u32)],
        merges: &[(u32, u32)],
        id_of: &FxHashMap<&[u8], u32>,
    ) -> Result<(), Error> {
        if merges.len() > RANKS {
            let message = format!("{} merges are above the limit {RANKS}", merges.len());
            return Err(Error::Vocabulary(message));
        }
        let bytes_of: FxHashMap<u32, &[u8]> = tokens
            .iter()
            .map(|(token, id)| (*id, token.as_slice()))
            .collect();
        // One buffer for all: a vocabulary has hundreds of thousands of merges.
        let mut joined = Vec::new();
        for (rank, &(left, right)) in (0u32..).zip(merges) {
            let missing = |what: String| {
                Error::Vocabulary(format!("merge {rank} of tokens {left} and {right}: {what}"))
            };
            joined.clear();
            for id in [left, right] {
                let part = bytes_of
                    .get(&id)
                    .ok_or_else(|| missing(format!("no token {id}")))?;
                joined.extend_from_slice(part);
            }
            let id = *id_of
                .get(joined.as_slice())
                .ok_or_else(|| missing("its result is not a token".into()))?;
            if !self.merges.pairs.push(left, right, id) {
                let message = format!("the merge of tokens {left} and {right} is listed twice");
                return Err(Error::Vocabulary(message));
            }
        }
        self.fill_byte_pairs();
        Ok(())
    }

    /// Adds the merges of tiktoken's rule.
    ///
    /// Token by token in the order of their ids: what the merges so far make of its bytes are two
    /// tokens, and these are its merge. If they are more, merges of a higher rank come before it,
    /// as no published vocabulary has it, and the rule itself is asked; the result is then false.
    fn ranked(&mut self, tokens: &[(Vec<u8>, u32)], id_of: &FxHashMap<&[u8], u32>) -> bool {
        let mut order: Vec<&(Vec<u8>, u32)> = tokens.iter().filter(|t| t.0.len() > 1).collect();
        order.sort_by_key(|(_, id)| *id);
        let mut scratch = Scratch::default();
        let (mut parts, mut late) = (Vec::new(), false);
        for (token, id) in order.iter().copied() {
            parts.clear();
            scratch.merge(&self.merges, token, &mut parts);
            let &[left, right] = parts.as_slice() else {
                late = true;
                continue;
            };
            if let &[first, second] = token.as_slice() {
                let rank = self.merges.pairs.len();
                self.merges.set_rank_of_bytes(first, second, rank);
            }
            self.merges.pairs.push(left, right, *id);
        }
        if late {
            self.merges.pairs = Pairs::new(order.len());
            for (token, id) in order {
                if let Some((left, right)) = last_merge(token, id_of) {
                    self.merges.pairs.push(left, right, *id);
                }
            }
            self.fill_byte_pairs();
        }
        !late
    }

    /// The merges of two bytes into their own table, which needs no hash.
    fn fill_byte_pairs(&mut self) {
        for left in 0..=255u8 {
            for right in 0..=255u8 {
                let merges = &mut self.merges;
                let rank = merges
                    .pairs
                    .rank(merges.byte_id(left), merges.byte_id(right));
                merges.set_rank_of_bytes(left, right, rank);
            }
        }
    }

    /// The pieces that [`Bpe::encode`] need not know, because every cache begins with them.
    pub(crate) fn seed(&self) -> &Cache {
        &self.seed
    }

    /// Appends the tokens of `piece`, which must not be one of the seed's.
    ///
    /// # Errors
    ///
    /// Any error that `interrupt` returns.
    pub(crate) fn encode(
        &self,
        piece: &[u8],
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<(), Error> {
        if !self.whole.is_empty()
            && let Some(&id) = self.whole.get(piece)
        {
            out.push(id);
            return Ok(());
        }
        if piece.len() <= SHORT {
            scratch.merge(&self.merges, piece, out);
            return Ok(());
        }
        // The kinds byte, char and whitespace have no merges; what is no whole piece is bytes.
        if self.merges.pairs.is_empty() {
            out.extend(piece.iter().map(|&byte| self.merges.byte_id(byte)));
            return Ok(());
        }
        merge_windows(&self.merges, piece, scratch, out, interrupt)
    }

    /// Whether anything merges.
    pub(crate) fn has_merges(&self) -> bool {
        !self.merges.pairs.is_empty()
    }

    /// Appends the tokens of the bytes of `piece`, before anything merges.
    ///
    /// # Errors
    ///
    /// [`Error::TooLong`] for a piece of 4 GiB or more.
    pub(crate) fn symbols(&self, piece: &[u8], out: &mut Vec<u32>) -> Result<(), Error> {
        numbered(piece)?;
        out.extend(piece.iter().map(|&byte| self.merges.byte_id(byte)));
        Ok(())
    }

    /// When two tokens merge, and into which.
    pub(crate) fn merge_of(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        let rank = self.merges.pairs.rank(left, right);
        (rank != NEVER).then(|| (rank, self.merges.pairs.made(rank)))
    }

    /// The end of the part of `piece` at `from` that is encoded alone as in the piece.
    pub(crate) fn part(&self, piece: &[u8], from: usize) -> usize {
        let borders = self.borders.as_ref();
        borders.map_or(piece.len(), |borders| borders.next(piece, from))
    }
}

/// The two tokens that tiktoken's rule merges into `token` in the end; None if it never gets there.
///
/// The rule as it is written, with nothing prepared: any two neighbours whose bytes are a token,
/// the lowest id first, and the leftmost of equal ones.
fn last_merge(token: &[u8], id_of: &FxHashMap<&[u8], u32>) -> Option<(u32, u32)> {
    let mut ends: Vec<usize> = (0..=token.len()).collect();
    while ends.len() > 3 {
        let id = |at: usize| id_of.get(&token[ends[at - 1]..ends[at + 1]]);
        let lowest = (1..ends.len() - 1).filter_map(|at| Some((id(at)?, at)));
        let (_, at) = lowest.min()?;
        ends.remove(at);
    }
    let part = |at: usize| id_of.get(&token[ends[at]..ends[at + 1]]).copied();
    Some((part(0)?, part(1)?))
}
