//! The tokens of a vocabulary by their bytes, and how each is made of two others.
//!
//! To find the two halves of a token, all its cuts are tried. A hash that is a polynomial in the
//! bytes gives those of all beginnings in one pass, and those of all ends from them. A filter of
//! 20 bits for each token passes over most cuts, and what it keeps costs two look-ups in a table of
//! 8 bytes for each slot. The table takes two hashes of 40 bits for one; where that would matter,
//! the bytes are compared: once for each token, not for each cut.
//!
//! All cuts of 100,000 tokens take 6 ms, a third of that where each cut had branches of its own
//! (`python benches/bench_vocabulary.py load`).

use crate::Tokens;
use crate::memory::prefetch;

/// The base of the polynomial.
const BASE: u64 = 0x9E37_79B9_7F4A_7C15;
/// A free slot.
const FREE: u64 = u64::MAX;
/// The bits of a slot that are the number of a token, and of those above from the hash.
const NUMBER: u64 = (1 << 24) - 1;

/// Tokens by their bytes.
pub(crate) struct Known<'a> {
    tokens: &'a Tokens,
    /// Open-addressed and less than half full: a part of the hash and the number of the token.
    slots: Vec<u64>,
    /// A bit for the hash of each token, and for some that are no token's.
    filter: Vec<u64>,
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
    pub(crate) fn new(tokens: &'a Tokens) -> Result<Self, (usize, usize)> {
        let longest = tokens.iter().map(|(token, _)| token.len()).max();
        let mut powers = vec![1u64];
        for at in 0..longest.unwrap_or(0) {
            powers.push(powers[at].wrapping_mul(BASE));
        }
        let size = (tokens.len() * 2 + 2).next_power_of_two();
        let mut known = Self {
            tokens,
            slots: vec![FREE; size],
            filter: vec![0; (size / 8).max(2)],
            powers,
        };
        for (number, (token, _)) in tokens.iter().enumerate() {
            let hash = hash_of(token);
            let (word, bit) = known.bit(hash);
            known.filter[word] |= bit;
            let (mut at, tag) = home(hash, size);
            while known.slots[at] != FREE {
                if known.slots[at] & !NUMBER == tag {
                    let other = (known.slots[at] & NUMBER) as usize;
                    if tokens.bytes(other) == token {
                        return Err((other, number));
                    }
                }
                at = (at + 1) & (size - 1);
            }
            known.slots[at] = tag | number as u64;
        }
        Ok(known)
    }

    /// The bit of the filter for a hash, and the number of its word.
    fn bit(&self, hash: u64) -> (usize, u64) {
        let mixed = (hash ^ hash >> 32).wrapping_mul(BASE);
        let bits = self.filter.len().trailing_zeros();
        (
            (mixed >> (64 - bits)) as usize,
            1 << (mixed >> (58 - bits) & 63),
        )
    }

    /// Whether a token may have this hash.
    fn may_be(&self, hash: u64) -> bool {
        let (word, bit) = self.bit(hash);
        self.filter[word] & bit != 0
    }

    /// Begins to load what [`Known::likely`] will look at.
    fn expect(&self, hash: u64) {
        prefetch(&self.slots, home(hash, self.slots.len()).0);
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

    /// Whether a cut of `token` makes the tokens that the hashes say.
    pub(crate) fn is_cut(&self, token: &[u8], cut: &Cut) -> bool {
        let (left, right) = token.split_at(cut.at as usize);
        left == self.tokens.bytes(cut.left as usize)
            && right == self.tokens.bytes(cut.right as usize)
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
                let (token, id) = self.tokens.get((slot & NUMBER) as usize);
                if token == bytes {
                    return Some(id);
                }
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }
}

/// The cuts of some tokens that make two tokens each.
///
/// In three passes over several tokens, so that all that is looked at has been loaded: hashes of
/// all cuts, then those whose halves both pass the filter, without a branch, then their numbers.
#[derive(Default)]
pub(crate) struct Cuts {
    hashed: Vec<Hashed>,
    found: Vec<Cut>,
}

/// A cut by the hashes of what it makes.
#[derive(Clone, Copy, Default)]
struct Hashed {
    place: u32,
    at: u32,
    left: u64,
    right: u64,
}

/// A cut of a token that makes two.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    /// Which of the tokens that were asked for it cuts.
    pub(crate) place: u32,
    /// The bytes on the left.
    at: u32,
    /// The numbers of the two tokens.
    pub(crate) left: u32,
    pub(crate) right: u32,
}

impl Cuts {
    /// Tokens to cut at once.
    pub(crate) const GROUP: usize = 16;

    /// All cuts that make two tokens of the tokens with these numbers, in their order and each's
    /// from the left. None of them is empty.
    pub(crate) fn of(&mut self, known: &Known<'_>, numbers: &[u32]) -> &mut [Cut] {
        let mut end = 0;
        for (place, &number) in (0u32..).zip(numbers) {
            let token = known.tokens.bytes(number as usize);
            let room = self.hashed.len().max(end + token.len());
            self.hashed.resize(room, Hashed::default());
            let (whole, mut left) = (hash_of(token), 0);
            for (at, &byte) in (1u32..).zip(&token[..token.len() - 1]) {
                left = next(left, byte);
                let power = known.powers[token.len() - at as usize];
                let right = whole.wrapping_sub(left.wrapping_mul(power));
                // Written in any case: a branch would be mistaken each third time.
                self.hashed[end] = Hashed {
                    place,
                    at,
                    left,
                    right,
                };
                end += usize::from(known.may_be(left) & known.may_be(right));
            }
        }
        let cuts = &self.hashed[..end];
        for cut in cuts {
            known.expect(cut.left);
            known.expect(cut.right);
        }
        self.found.clear();
        for cut in cuts {
            if let Some(left) = known.likely(cut.left)
                && let Some(right) = known.likely(cut.right)
            {
                self.found.push(Cut {
                    place: cut.place,
                    at: cut.at,
                    left: left as u32,
                    right: right as u32,
                });
            }
        }
        &mut self.found
    }
}

/// All pairs of tokens that make a token, in the order of its id, then theirs: ranks written as
/// merges. None if two tokens have the same bytes, one is empty, or they are 2^24 and more.
pub fn every_split(tokens: &Tokens) -> Option<Vec<(u32, u32)>> {
    if tokens.len() > Known::MOST || tokens.iter().any(|(token, _)| token.is_empty()) {
        return None;
    }
    let known = Known::new(tokens).ok()?;
    let mut cuts = Cuts::default();
    let mut splits = Vec::with_capacity(tokens.len() * 3);
    let numbers: Vec<u32> = (0..tokens.len() as u32).collect();
    let id = |number: u32| tokens.ids()[number as usize];
    for group in numbers.chunks(Cuts::GROUP) {
        for cut in cuts.of(&known, group) {
            let whole = id(group[cut.place as usize]);
            splits.push((whole, id(cut.left), id(cut.right)));
        }
    }
    splits.sort_unstable();
    Some(splits.into_iter().map(|(_, l, r)| (l, r)).collect())
}
