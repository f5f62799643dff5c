//! The merges of a vocabulary, by the two tokens that merge.
//!
//! Where a text is new, most of the time goes here, and most of that is waiting for memory. Three
//! layers keep that short. Most pairs that are looked up do not merge: a filter of about ten bits
//! for each merge (128 KiB for 100,000) says so for nine of ten of them. The table has four bytes
//! for each merge, its rank and some bits of the pair's hash. The pairs themselves lie in a list in
//! the order of their ranks, and as most merges are of low rank, its hot part is small.

/// The rank of a pair that does not merge: above every rank.
pub(crate) const NEVER: u32 = u32::MAX;
/// A free entry of the table.
const FREE: u32 = u32::MAX;

/// Merges by their two tokens, each with its rank.
#[derive(Debug)]
pub(crate) struct Pairs {
    /// A bit for the hash of each pair that merges, and of some that do not.
    filter: Vec<u64>,
    /// Open-addressed and less than half full: the rank in the low bits, a part of the hash above.
    table: Vec<u32>,
    /// By rank: the pair and the id of what it makes.
    list: Vec<(u64, u32)>,
    /// Of the ranks in the table.
    bits: u32,
}

/// Two ids in one number.
fn pair_of(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

impl Pairs {
    /// Empty, with room for so many.
    pub(crate) fn new(pairs: usize) -> Self {
        let size = (pairs * 2 + 32).next_power_of_two();
        Self {
            filter: vec![0; size / 16],
            table: vec![FREE; size],
            list: Vec::with_capacity(pairs),
            bits: size.trailing_zeros(),
        }
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many: the rank of the next one.
    pub(crate) fn len(&self) -> u32 {
        self.list.len() as u32
    }

    /// The two tokens of each merge, by rank.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        self.list
            .iter()
            .map(|(pair, _)| ((pair >> 32) as u32, *pair as u32))
    }

    /// What the merge of this rank makes.
    #[inline]
    pub(crate) fn made(&self, rank: u32) -> u32 {
        self.list[rank as usize].1
    }

    /// Where a pair would be, the bits that its entry has above the rank, and its bit of the filter
    /// with the number of its word.
    #[inline]
    fn home(&self, pair: u64) -> (usize, u32, usize, u64) {
        // The high bits of a product depend on all bits of the pair.
        let hash = pair.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let high = (hash >> 32) as u32;
        // As many bits for the place as for the rank: the size of the table. The filter has four
        // times as many bits, so its places have two more.
        let at = (high >> (32 - self.bits)) as usize;
        let bit = hash >> (62 - self.bits) & 63;
        (at, high << self.bits, at >> 4, 1 << bit)
    }

    /// The rank of a pair, or [`NEVER`].
    #[inline]
    pub(crate) fn rank(&self, left: u32, right: u32) -> u32 {
        let pair = pair_of(left, right);
        let (mut at, tag, word, bit) = self.home(pair);
        if self.filter[word] & bit == 0 {
            return NEVER;
        }
        loop {
            let entry = self.table[at];
            if entry == FREE {
                return NEVER;
            }
            if (entry ^ tag) >> self.bits == 0 {
                let rank = entry & ((1 << self.bits) - 1);
                if self.list[rank as usize].0 == pair {
                    return rank;
                }
            }
            at = (at + 1) & (self.table.len() - 1);
        }
    }

    /// Adds the merge of the highest rank so far; false if the pair has one.
    pub(crate) fn push(&mut self, left: u32, right: u32, id: u32) -> bool {
        if self.rank(left, right) != NEVER {
            return false;
        }
        self.push_new(left, right, id);
        true
    }

    /// Adds the merge of the highest rank so far, of a pair that has none.
    pub(crate) fn push_new(&mut self, left: u32, right: u32, id: u32) {
        self.list.push((pair_of(left, right), id));
        if self.list.len() * 2 >= self.table.len() {
            let list = std::mem::take(&mut self.list);
            *self = Self::new(list.len() * 2);
            for (rank, &(pair, _)) in (0..).zip(&list) {
                self.enter(rank, pair);
            }
            self.list = list;
        } else {
            self.enter(self.list.len() as u32 - 1, pair_of(left, right));
        }
    }

    /// Notes where in the list a pair is.
    fn enter(&mut self, rank: u32, pair: u64) {
        let (mut at, tag, word, bit) = self.home(pair);
        self.filter[word] |= bit;
        while self.table[at] != FREE {
            at = (at + 1) & (self.table.len() - 1);
        }
        self.table[at] = tag | rank;
    }
}

/// The merges of a vocabulary and what they start from: all that merging asks for.
#[derive(Debug)]
pub(crate) struct Merges {
    /// The id of each byte; ids need not be in the order of the bytes.
    pub(crate) byte_ids: [u32; 256],
    /// The ranks of two single bytes: the first look-up of every piece.
    pub(crate) byte_pairs: Vec<u32>,
    pub(crate) pairs: Pairs,
    /// The bytes of each token, by id.
    pub(crate) lengths: Vec<u32>,
}

impl Merges {
    /// The id of a byte.
    #[inline]
    pub(crate) fn byte_id(&self, byte: u8) -> u32 {
        self.byte_ids[usize::from(byte)]
    }

    /// The rank of two bytes, or [`NEVER`].
    #[inline]
    pub(crate) fn rank_of_bytes(&self, left: u8, right: u8) -> u32 {
        self.byte_pairs[usize::from(left) << 8 | usize::from(right)]
    }

    /// Gives two bytes a rank in their own table, which needs no hash.
    pub(crate) fn set_rank_of_bytes(&mut self, left: u8, right: u8, rank: u32) {
        self.byte_pairs[usize::from(left) << 8 | usize::from(right)] = rank;
    }

    /// The bytes of a token.
    pub(crate) fn length(&self, id: u32) -> usize {
        // An id that is no token stands for a byte that no piece has.
        self.lengths
            .get(id as usize)
            .map_or(1, |&length| length as usize)
    }
}
