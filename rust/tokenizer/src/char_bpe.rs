//! BPE over characters: the merges of Llama, Mistral, Gemma (sentencepiece) and CLIP.
//!
//! A piece starts as one token per character. One without a token becomes bytes or unknown
//! ([`crate::fallback`]). The first token of the order merges first, the leftmost of equal rank.
//! A character inside a piece may have a prefix, the last one a suffix, such as CLIP's `</w>`.
//!
//! Pieces may be whole texts, so the merges to come are in a heap: `O(n log n)`. Pieces of words
//! are found in the cache before they come here.
//!
//! Defined by `encode` in `python/tinylm/reference/char_bpe.py`, held to it by the rung
//! `char bpe`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

use crate::char_merges::{Merge, NEVER, NO_MERGE, by_score, in_order, pair};
use crate::error::numbered;
use crate::fallback::{Fallback, ids_of, width};
use crate::trie::Trie;
use crate::{Error, Interrupt, Tokens};

/// Merges between two calls of the interrupt: about 5 ms.
const TICK: usize = 1 << 15;
/// No neighbour.
const NONE: u32 = u32::MAX;

/// What makes this model beside the tokens.
#[derive(Debug, Clone, Default)]
pub struct CharBpeSpec {
    /// Pairs of ids in the order in which they merge. None: sentencepiece's rule, by which any two
    /// neighbours merge whose text is a token, the one with the highest score first.
    pub merges: Option<Vec<(u32, u32)>>,
    /// The scores in the order of the tokens; only without `merges`.
    pub scores: Vec<f32>,
    /// The token of unknown characters; without one they are left out.
    pub unknown: Option<u32>,
    /// Whether unknown neighbours are one token.
    pub fuse_unknown: bool,
    /// Whether unknown characters are the tokens of their bytes, `<0x00>` to `<0xFF>`.
    pub byte_fallback: bool,
    /// Whether a piece that is a token stays whole even if no merges lead there.
    pub whole_pieces: bool,
    /// What stands in a token before a character that is not the first of its piece.
    pub prefix: Vec<u8>,
    /// What stands in a token after the last character of its piece.
    pub suffix: Vec<u8>,
    /// Tokens that are found before anything merges, the longest first, and never merge: those
    /// that users of sentencepiece define.
    pub frozen: Vec<u32>,
}

/// The merges of a vocabulary of characters.
#[derive(Debug)]
pub(crate) struct CharBpe {
    /// By the character with its prefix and suffix.
    characters: FxHashMap<Box<[u8]>, u32>,
    pairs: FxHashMap<u64, Merge>,
    fallback: Fallback,
    prefix: Vec<u8>,
    suffix: Vec<u8>,
    whole: FxHashMap<Box<[u8]>, u32>,
    /// The ids of frozen tokens by their text; None without any.
    frozen: Option<Trie>,
}

/// Memory that is reused from piece to piece.
#[derive(Default)]
pub(crate) struct Scratch {
    nodes: Vec<Node>,
    heap: Vec<Reverse<u64>>,
    character: Vec<u8>,
    /// The bytes of the piece that each node begins with; only where they are asked for.
    places: Vec<(usize, usize)>,
}

/// A token in a doubly linked list, and its merge with the next.
#[derive(Clone, Copy)]
struct Node {
    id: u32,
    merge: Merge,
    previous: u32,
    next: u32,
}

impl CharBpe {
    /// From tokens in UTF-8 and the rest of the model.
    ///
    /// # Errors
    ///
    /// [`Error::Vocabulary`] for a token that is empty or listed twice, for a merge that is listed
    /// twice or makes no token, and for another number of scores.
    pub(crate) fn new(tokens: &Tokens, spec: CharBpeSpec) -> Result<Self, Error> {
        let id_of = ids_of(tokens)?;
        let mut pairs = match &spec.merges {
            Some(merges) => in_order(tokens, merges, &id_of, &spec.prefix)?,
            None => by_score(tokens, &spec.scores, &id_of)?,
        };
        let is_frozen = |id: u64| spec.frozen.contains(&(id as u32));
        if !spec.frozen.is_empty() {
            pairs.retain(|&pair, _| !is_frozen(pair >> 32) && !is_frozen(pair));
        }
        let frozen = Trie::new(tokens.iter().filter(|(_, id)| is_frozen(u64::from(*id))));
        let most = spec.prefix.len() + spec.suffix.len() + 4;
        let owned = |(token, id): (&&[u8], &u32)| ((*token).into(), *id);
        let characters = id_of
            .iter()
            .filter(|(token, _)| token.len() <= most)
            .map(owned);
        Ok(Self {
            characters: characters.collect(),
            pairs,
            fallback: Fallback::new(&id_of, spec.byte_fallback, spec.unknown, spec.fuse_unknown),
            whole: if spec.whole_pieces {
                id_of.iter().map(owned).collect()
            } else {
                FxHashMap::default()
            },
            frozen: (!spec.frozen.is_empty()).then_some(frozen),
            prefix: spec.prefix,
            suffix: spec.suffix,
        })
    }

    /// Appends the tokens of `piece`.
    ///
    /// # Errors
    ///
    /// [`Error::TooLong`] for a piece of 4 GiB or more, and any error that `interrupt` returns.
    pub(crate) fn encode(
        &self,
        piece: &[u8],
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<(), Error> {
        numbered(piece)?;
        if let Some(&id) = self.whole.get(piece) {
            out.push(id);
            return Ok(());
        }
        self.symbols::<false>(piece, scratch);
        self.merge(scratch, interrupt)?;
        let mut at = 0;
        while let Some(node) = scratch.nodes.get(at as usize) {
            out.push(node.id);
            at = node.next;
        }
        Ok(())
    }

    /// Appends the tokens of `piece`, each with the bytes of it that it covers; errors as `encode`.
    pub(crate) fn places(
        &self,
        piece: &[u8],
        scratch: &mut Scratch,
        out: &mut Vec<(u32, (usize, usize))>,
        interrupt: &mut Interrupt<'_>,
    ) -> Result<(), Error> {
        numbered(piece)?;
        if let Some(&id) = self.whole.get(piece) {
            out.push((id, (0, piece.len())));
            return Ok(());
        }
        self.symbols::<true>(piece, scratch);
        self.merge(scratch, interrupt)?;
        let Scratch { nodes, places, .. } = scratch;
        let mut at = 0;
        while let Some(node) = nodes.get(at) {
            let last = nodes.len().min(node.next as usize) - 1;
            out.push((node.id, (places[at].0, places[last].1)));
            at = node.next as usize;
        }
        Ok(())
    }

    /// The tokens of the characters of `piece`, not yet merged; with `PLACED` also their places.
    fn symbols<const PLACED: bool>(&self, piece: &[u8], scratch: &mut Scratch) {
        let Scratch {
            nodes,
            character,
            places,
            ..
        } = scratch;
        nodes.clear();
        places.clear();
        let push = |nodes: &mut Vec<Node>, id: u32| {
            let at = nodes.len() as u32;
            nodes.push(Node {
                id,
                merge: NO_MERGE,
                previous: at.wrapping_sub(1),
                next: at + 1,
            });
        };
        let (mut at, mut after_unknown) = (0, false);
        while at < piece.len() {
            let found = self
                .frozen
                .as_ref()
                .and_then(|trie| trie.longest(&piece[at..]));
            if let Some((length, id)) = found {
                push(nodes, id);
                if PLACED {
                    places.push((at, at + length));
                }
                after_unknown = false;
                at += length;
                continue;
            }
            let end = at + width(&piece[at..]);
            character.clear();
            if at > 0 {
                character.extend_from_slice(&self.prefix);
            }
            character.extend_from_slice(&piece[at..end]);
            if end == piece.len() {
                character.extend_from_slice(&self.suffix);
            }
            if let Some(&id) = self.characters.get(character.as_slice()) {
                push(nodes, id);
                if PLACED {
                    places.push((at, end));
                }
                after_unknown = false;
            } else {
                let (before, mut done) = (nodes.len(), 0);
                let prefix = if at > 0 { self.prefix.len() } else { 0 };
                // `tokenizers` looks for the bytes of the character with its prefix and suffix.
                let each = |id, length| {
                    push(nodes, id);
                    if PLACED {
                        let place = |byte: usize| (at + byte.saturating_sub(prefix)).min(end);
                        places.push((place(done), place(done + length)));
                        done += length;
                    }
                };
                after_unknown = self.fallback.tokens(character, after_unknown, each);
                // The unknown token before it has taken it.
                if PLACED && after_unknown && nodes.len() == before {
                    places[before - 1].1 = end;
                }
            }
            at = end;
        }
        if let Some(last) = nodes.last_mut() {
            last.next = NONE;
        }
    }

    /// The merge of two tokens, or [`NO_MERGE`].
    fn merge_of(&self, left: u32, right: u32) -> Merge {
        let found = self.pairs.get(&pair(left, right));
        found.copied().unwrap_or(NO_MERGE)
    }

    /// Appends the tokens of the characters of `piece`, before anything merges.
    ///
    /// # Errors
    ///
    /// [`Error::TooLong`] for a piece of 4 GiB or more.
    pub(crate) fn unmerged(&self, piece: &[u8], out: &mut Vec<u32>) -> Result<(), Error> {
        numbered(piece)?;
        let mut scratch = Scratch::default();
        self.symbols::<false>(piece, &mut scratch);
        out.extend(scratch.nodes.iter().map(|node| node.id));
        Ok(())
    }

    /// When two tokens merge, and into which.
    pub(crate) fn rank_and_id(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        let Merge { rank, id } = self.merge_of(left, right);
        (rank != NEVER).then_some((rank, id))
    }

    /// Merges until no two neighbours have a rank.
    ///
    /// Entries of the heap are never removed: one that a merge nearby made wrong is told by its
    /// rank when it comes up.
    fn merge(&self, scratch: &mut Scratch, interrupt: &mut Interrupt<'_>) -> Result<(), Error> {
        let nodes = &mut scratch.nodes;
        let mut entries = std::mem::take(&mut scratch.heap);
        entries.clear();
        for at in 1..nodes.len() {
            if at.is_multiple_of(TICK) {
                interrupt()?;
            }
            let merge = self.merge_of(nodes[at - 1].id, nodes[at].id);
            nodes[at - 1].merge = merge;
            entries.extend(entry(merge, at as u32 - 1));
        }
        // All at once: linear, where pushing each would be n log n.
        let mut heap = BinaryHeap::from(entries);
        let mut ticks = 0usize;
        while let Some(Reverse(top)) = heap.pop() {
            ticks += 1;
            if ticks.is_multiple_of(TICK) {
                interrupt()?;
            }
            // Rank above, position below: the leftmost of equal ranks comes first.
            let (rank, at) = ((top >> 32) as u32, top as u32);
            let node = nodes[at as usize];
            if node.merge.rank != rank {
                continue;
            }
            let (id, gone) = (node.merge.id, nodes[node.next as usize]);
            // What is merged away must not be taken for a live pair when its entry comes up.
            nodes[node.next as usize].merge = NO_MERGE;
            let mut merge = NO_MERGE;
            if let Some(after) = nodes.get_mut(gone.next as usize) {
                after.previous = at;
                merge = self.merge_of(id, after.id);
            }
            nodes[at as usize] = Node {
                id,
                merge,
                previous: node.previous,
                next: gone.next,
            };
            heap.extend(entry(merge, at));
            if let Some(before) = nodes.get_mut(node.previous as usize) {
                before.merge = self.merge_of(before.id, id);
                heap.extend(entry(before.merge, node.previous));
            }
        }
        scratch.heap = heap.into_vec();
        Ok(())
    }
}

/// The entry of the heap for a merge at a place: nothing if there is none.
fn entry(merge: Merge, at: u32) -> Option<Reverse<u64>> {
    (merge.rank != NEVER).then(|| Reverse(pair(merge.rank, at)))
}
