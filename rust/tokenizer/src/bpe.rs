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

use rustc_hash::FxHashMap;

use crate::borders::Borders;
use crate::cache::Cache;
use crate::error::numbered;
use crate::long::merge_windows;
use crate::merge::{RANKS, Scratch};
use crate::pairs::{Merges, NEVER, Pairs};
use crate::splits::{Cut, Cuts, Known};
use crate::{Error, Interrupt, Tokens};

/// Pieces up to this length are merged at once.
const SHORT: usize = 96;
/// A token is loaded this many before it goes into the seed.
const AHEAD: usize = 16;

/// The merges of a vocabulary.
#[derive(Debug)]
pub(crate) struct Bpe {
    merges: Merges,
    /// None if a token may be a piece that merges do not make: a part of a piece is then not always
    /// what it is as a piece.
    borders: Option<Borders>,
    /// The pieces that stay whole, if the vocabulary has that rule: all its tokens.
    whole: Tokens,
    /// Those of them that a seed does not always take, and the length of the shortest.
    unplanted: FxHashMap<Box<[u8]>, u32>,
    shortest: usize,
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
        tokens: &Tokens,
        merges: Option<&[(u32, u32)]>,
        whole_pieces: bool,
        missing: &[u8],
    ) -> Result<Self, Error> {
        let refused = |message: String| Err(Error::Vocabulary(message));
        if tokens.len() > Known::MOST {
            return refused(format!("{} tokens are above the limit", tokens.len()));
        }
        let known = match Known::new(tokens) {
            Ok(known) => known,
            Err((one, other)) => {
                let [one, other] = [one, other].map(|number| tokens.ids()[number]);
                return refused(format!("tokens {one} and {other} have the same bytes"));
            }
        };
        let mut lengths = Vec::with_capacity(tokens.len());
        for (token, id) in tokens.iter() {
            if token.is_empty() {
                return refused(format!("token {id} is empty"));
            }
            let at = id as usize;
            // Larger ids are refused with the vocabulary.
            if at < RANKS {
                lengths.resize(lengths.len().max(at + 1), 0);
                lengths[at] = token.len() as u32;
            }
        }
        // Ids that no token has, for bytes that no piece has.
        let mut unused = tokens.ids().iter().map(|id| id + 1).max().unwrap_or(0)..;
        let mut byte_ids = [0; 256];
        for (byte, slot) in (0..=255u8).zip(&mut byte_ids) {
            let id = known.id(&[byte]);
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
            whole: Tokens::default(),
            unplanted: FxHashMap::default(),
            shortest: usize::MAX,
        };
        if whole_pieces {
            bpe.whole = tokens.clone();
            for (token, id) in tokens
                .iter()
                .enumerate()
                .filter_map(|(number, (token, id))| {
                    (!Cache::takes(number, token)).then_some((token, id))
                })
            {
                bpe.shortest = bpe.shortest.min(token.len());
                bpe.unplanted.insert(token.into(), id);
            }
        }
        let all_merged = match merges {
            Some(merges) => {
                bpe.listed(tokens, merges, &known)?;
                !whole_pieces
            }
            None => bpe.ranked(tokens, &known),
        };
        if all_merged {
            bpe.borders = Some(bpe.borders_of(tokens));
        }
        Ok(bpe)
    }

    /// The borders that its merges cross.
    fn borders_of(&self, tokens: &Tokens) -> Borders {
        let mut bytes_of = vec![[].as_slice(); self.merges.lengths.len()];
        for (token, id) in tokens.iter() {
            if let Some(bytes) = bytes_of.get_mut(id as usize) {
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
        tokens: &Tokens,
        merges: &[(u32, u32)],
        known: &Known<'_>,
    ) -> Result<(), Error> {
        if merges.len() > RANKS {
            let message = format!("{} merges are above the limit {RANKS}", merges.len());
            return Err(Error::Vocabulary(message));
        }
        let bytes_of: FxHashMap<u32, &[u8]> =
            tokens.iter().map(|(token, id)| (id, token)).collect();
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
            let id = known
                .id(&joined)
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
    /// Token by token in the order of their ids: of the cuts that make two former tokens, the one
    /// whose halves nothing merges across. If there is none, merges of a higher rank come before
    /// it, as no published vocabulary has it, and the rule itself is asked; the result is then false.
    fn ranked(&mut self, tokens: &Tokens, known: &Known<'_>) -> bool {
        let id = |number: u32| tokens.ids()[number as usize];
        let mut order: Vec<u32> = (0..tokens.len() as u32)
            .filter(|&number| tokens.bytes(number as usize).len() > 1)
            .collect();
        order.sort_unstable_by_key(|&number| id(number));
        // What each token is made of; a byte of itself.
        let mut halves: Vec<(u32, u32)> = (0..self.merges.lengths.len() as u32)
            .map(|id| (id, id))
            .collect();
        let (mut cuts, mut late) = (Cuts::default(), false);
        for group in order.chunks(Cuts::GROUP) {
            let mut found = cuts.of(known, group);
            for (place, &number) in (0u32..).zip(group) {
                let (token, made) = tokens.get(number as usize);
                let own = found.iter().take_while(|cut| cut.place == place).count();
                let (own, others) = found.split_at_mut(own);
                found = others;
                // Nine of ten times it is the cut whose larger id is the lowest.
                let largest = |cut: &Cut| id(cut.left).max(id(cut.right));
                if let Some(best) = (0..own.len()).min_by_key(|&at| largest(&own[at])) {
                    own.swap(0, best);
                }
                let taken = own.iter().find(|cut| {
                    let pairs = &self.merges.pairs;
                    largest(cut) < made && stay_apart(id(cut.left), id(cut.right), pairs, &halves)
                });
                let taken = taken.filter(|cut| known.is_cut(token, cut));
                // Larger ids are refused with the vocabulary.
                let (Some(cut), Some(place)) = (taken, halves.get_mut(made as usize)) else {
                    late = true;
                    continue;
                };
                *place = (id(cut.left), id(cut.right));
                if let &[left, right] = token {
                    let rank = self.merges.pairs.len();
                    self.merges.set_rank_of_bytes(left, right, rank);
                }
                self.merges.pairs.push_new(place.0, place.1, made);
            }
        }
        if late {
            self.merges.pairs = Pairs::new(order.len());
            for number in order {
                let (token, id) = tokens.get(number as usize);
                if let Some((left, right)) = last_merge(token, known) {
                    self.merges.pairs.push(left, right, id);
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

    /// A cache that begins with the pieces that [`Bpe::encode`] need not know.
    pub(crate) fn seed(&self) -> Cache {
        let tokens = &self.whole;
        let mut seed = Cache::for_pieces(tokens.len());
        for (number, (token, id)) in tokens.iter().enumerate() {
            // Only to have its slot loaded by then.
            if number + AHEAD < tokens.len() {
                let token = tokens.bytes(number + AHEAD);
                let _ = seed.place(token, 0, token.len());
            }
            seed.plant(token, id);
        }
        seed
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
        if piece.len() >= self.shortest
            && let Some(&id) = self.unplanted.get(piece)
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

/// Whether two tokens stay as they are side by side, with these merges of former tokens.
///
/// They are no pair of these themselves. The last merge that made either is undone until nothing is
/// left: what was beside each other then must not have merged before it. The idea is that of `is_valid_token_pair` in
/// <https://github.com/github/rust-gems> (crates/bpe).
fn stay_apart(mut left: u32, mut right: u32, pairs: &Pairs, halves: &[(u32, u32)]) -> bool {
    let half = |id: u32| halves.get(id as usize).copied().unwrap_or((id, id));
    loop {
        let (last, first) = (half(left).1, half(right).0);
        let limit;
        // Of equal ranks the left one merges first. A byte is its own half: nothing to undo.
        if first == right || left > right && last != left {
            if last == left {
                return true;
            }
            (limit, left) = (left, last);
        } else {
            (limit, right) = (right + 1, first);
        }
        let rank = pairs.rank(left, right);
        if rank != NEVER && pairs.made(rank) < limit {
            return false;
        }
    }
}

/// The two tokens that tiktoken's rule merges into `token` in the end; None if it never gets there.
///
/// The rule as it is written, with nothing prepared: any two neighbours whose bytes are a token,
/// the lowest id first, and the leftmost of equal ones.
fn last_merge(token: &[u8], known: &Known<'_>) -> Option<(u32, u32)> {
    let mut ends: Vec<usize> = (0..=token.len()).collect();
    while ends.len() > 3 {
        let id = |at: usize| known.id(&token[ends[at - 1]..ends[at + 1]]);
        let lowest = (1..ends.len() - 1).filter_map(|at| Some((id(at)?, at)));
        let (_, at) = lowest.min()?;
        ends.remove(at);
    }
    let part = |at: usize| known.id(&token[ends[at]..ends[at + 1]]);
    Some((part(0)?, part(1)?))
}
