//! The tokens of a vocabulary by their bytes, and how each is made of two others.
//!
//! To find the two halves of a token, all its cuts are tried. A hash that is a polynomial in the
//! bytes gives those of all beginnings in one pass, and those of all ends from them, so a cut costs
//! two look-ups in a table of 8 bytes for each slot. The table takes two hashes of 40 bits for one;
//! where that would matter, the bytes are compared: once for each token, not for each cut.
//!
//! A vocabulary of 100,000 takes 10 ms, a third of what it takes to merge the bytes of each token
//! (`python benches/bench_vocabulary.py load`).

use crate::memory::prefetch;

/// The base of the polynomial.
const BASE: u64 = 0x9E37_79B9_7F4A_7C15;
/// A free slot.
const FREE: u64 = u64::MAX;
/// The bits of a slot that are the number of a token, and of those above from the hash.
const NUMBER: u64 = (1 << 24) - 1;

/// Tokens by their bytes.
pub(crate) struct Known<'a> {
    tokens: &'a [(Vec<u8>, u32)],
    /// Their ids once more, for what needs no bytes: a sixth of the memory.
    ids: Vec<u32>,
    /// Open-addressed and less than half full: a part of the hash and the number of the token.
    slots: Vec<u64>,
    /// `BASE` to the power of each length up to the longest.
    powers: Vec<u64>,
}

/// The number of a slot, and its bits above the number.
fn home(hash: u64, slots: usize) -> (usize, u64) {
    // The low bits of a polynomial are poor: all go into the high ones.
    let mixed = (hash ^ hash >> 32).wrapping_mul(BASE);
    ((mixed >> 32) as usize & (slots - 1), mixed & !NUMBER)
}

/// The polynomial, one byte further.
fn next(hash: u64, byte: u8) -> u64 {
    // No byte is 0, so that no two lengths are alike.
    hash.wrapping_mul(BASE).wrapping_add(u64::from(byte) + 1)
}

fn hash_of(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |hash, &byte| next(hash, byte))
}

impl<'a> Known<'a> {
    /// Most tokens that there may be.
    pub(crate) const MOST: usize = NUMBER as usize;

    /// All of `tokens`, at most [`Known::MOST`]; the numbers of two with the same bytes, if there are.
    pub(crate) fn new(tokens: &'a [(Vec<u8>, u32)]) -> Result<Self, (usize, usize)> {
        let longest = tokens.iter().map(|(token, _)| token.len()).max();
        let mut powers = vec![1u64];
        for at in 0..longest.unwrap_or(0) {
            powers.push(powers[at].wrapping_mul(BASE));
        }
        let size = (tokens.len() * 2 + 2).next_power_of_two();
        let mut known = Self {
            tokens,
            ids: tokens.iter().map(|(_, id)| *id).collect(),
            slots: vec![FREE; size],
            powers,
        };
        for (number, (token, _)) in tokens.iter().enumerate() {
            let (mut at, tag) = home(hash_of(token), size);
            while known.slots[at] != FREE {
                if known.slots[at] & !NUMBER == tag {
                    let other = (known.slots[at] & NUMBER) as usize;
                    if tokens[other].0 == *token {
                        return Err((other, number));
                    }
                }
                at = (at + 1) & (size - 1);
            }
            known.slots[at] = tag | number as u64;
        }
        Ok(known)
    }

    /// The number of a token that has this hash, nearly always.
    fn likely(&self, hash: u64) -> Option<usize> {
        let (mut at, tag) = home(hash, self.slots.len());
        loop {
            let slot = self.slots[at];
            if slot == FREE {
                return None;
            }
            if slot & !NUMBER == tag {
                return Some((slot & NUMBER) as usize);
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }

    /// The id of the token with these bytes.
    pub(crate) fn id(&self, bytes: &[u8]) -> Option<u32> {
        let (mut at, tag) = home(hash_of(bytes), self.slots.len());
        loop {
            let slot = self.slots[at];
            if slot == FREE {
                return None;
            }
            if slot & !NUMBER == tag {
                let (token, id) = &self.tokens[(slot & NUMBER) as usize];
                if token == bytes {
                    return Some(*id);
                }
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }
}

/// The cuts of some tokens, which are hashed before the first is looked at: so all that is looked
/// at has been loaded.
#[derive(Default)]
pub(crate) struct Cuts {
    /// For each cut the hashes of the beginning and of the end, token after token.
    hashes: Vec<(u64, u64)>,
}

impl Cuts {
    /// Tokens to hash at once.
    pub(crate) const GROUP: usize = 16;

    /// Begins anew with these tokens, none of which is empty.
    pub(crate) fn hash<'a>(&mut self, known: &Known<'_>, tokens: impl Iterator<Item = &'a [u8]>) {
        self.hashes.clear();
        for token in tokens {
            let first = self.hashes.len();
            let mut hash = 0;
            for &byte in &token[..token.len() - 1] {
                hash = next(hash, byte);
                self.hashes.push((hash, 0));
            }
            let whole = next(hash, token[token.len() - 1]);
            for (at, (begin, end)) in (1..).zip(&mut self.hashes[first..]) {
                *end = whole.wrapping_sub(begin.wrapping_mul(known.powers[token.len() - at]));
                prefetch(&known.slots, home(*begin, known.slots.len()).0);
                prefetch(&known.slots, home(*end, known.slots.len()).0);
            }
        }
        // The last first, to be taken from the end.
        self.hashes.reverse();
    }

    /// Gives `each` the ids of the two tokens that a cut of `token`, the next one, makes, for all
    /// cuts that make tokens, until it gives true. What it took is compared byte by byte; None if
    /// it took none, or if that was not what the hashes said.
    pub(crate) fn next(
        &mut self,
        known: &Known<'_>,
        token: &[u8],
        mut each: impl FnMut(u32, u32) -> bool,
    ) -> Option<(u32, u32)> {
        let first = self.hashes.len() - (token.len() - 1);
        let mut found = None;
        for (at, &(begin, end)) in (1..token.len()).rev().zip(&self.hashes[first..]) {
            if let Some(left) = known.likely(begin)
                && let Some(right) = known.likely(end)
                && each(known.ids[left], known.ids[right])
            {
                let same =
                    token[..at] == known.tokens[left].0 && token[at..] == known.tokens[right].0;
                found = same.then_some((known.ids[left], known.ids[right]));
                break;
            }
        }
        self.hashes.truncate(first);
        found
    }
}

/// All pairs of tokens that make a token, in the order of its id, then theirs: ranks written as
/// merges. None if two tokens have the same bytes, one is empty, or they are 2^24 and more.
pub fn every_split(tokens: &[(Vec<u8>, u32)]) -> Option<Vec<(u32, u32)>> {
    if tokens.len() > Known::MOST || tokens.iter().any(|(token, _)| token.is_empty()) {
        return None;
    }
    let known = Known::new(tokens).ok()?;
    let mut cuts = Cuts::default();
    let mut splits = Vec::with_capacity(tokens.len() * 3);
    for group in tokens.chunks(Cuts::GROUP) {
        cuts.hash(&known, group.iter().map(|(token, _)| token.as_slice()));
        for (token, id) in group {
            cuts.next(&known, token, |left, right| {
                splits.push((*id, left, right));
                false
            });
        }
    }
    splits.sort_unstable();
    Some(splits.into_iter().map(|(_, l, r)| (l, r)).collect())
}
