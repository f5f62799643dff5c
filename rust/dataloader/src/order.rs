//! In which order the rows of an epoch come. What a row is made of is the matter of
//! [`crate::plan`].
//!
//! A shuffled epoch is two permutations that are computed, not stored. Rows are cut into blocks of
//! [`BLOCK_TOKENS`] tokens; the blocks are permuted; then the rows inside each window of
//! [`WINDOW_BLOCKS`] blocks are permuted. Rows that are trained on together come from 32 places of
//! the corpus, and yet the disk sees whole blocks, which it serves 17 to 80 times as fast as
//! single rows. A corpus of one window (16 M tokens) is shuffled perfectly.
//!
//! ```text
//! place in the epoch    0 1 2 3 4 5 6 7 8 9      window 0: places 0..6, window 1: places 6..10
//! inside the window     4 0 5 2 1 3|8 7 9 6      every place stays in its window
//! slot of the block     2 0 2 1 0 1|4 3 4 3      two rows per block, three blocks per window
//! block in that slot    1 3 1 0 3 0|4 2 4 2      a permutation of all blocks of the corpus
//! ```
//!
//! Everything here is a pure function of (seed, epoch, index); a 64-bit mixer is the only source
//! of randomness. Defined by `python/tinylm/reference/order.py`, held to it by the rung `order`.
//!
//! A stored order would take 4 to 12 bytes per row and would have to be saved to resume. This one
//! takes constant memory, any place of it costs `O(1)`, and resuming takes one integer.

/// Tokens of one block of rows: 1 MiB at two bytes per token, one block of a shard.
pub const BLOCK_TOKENS: u64 = 1 << 19;
/// Blocks of rows that are shuffled together.
///
/// More blocks mix the corpus better and need more memory: two windows of blocks are cached, see
/// [`crate::plan::cached_blocks`].
pub const WINDOW_BLOCKS: u64 = 32;
/// Below this a Feistel network is visibly uneven (chi2/df of 2 at n = 16) and a table is small.
/// Making one takes 1.5 us, once per window of rows.
const TABLE_BELOW: u64 = 1024;
// Part of the order that saved runs resume to: neither constant below may change.
/// Rounds of the network. With eight, its permutations look random to chi-squared tests for n of
/// 100 and more; it is only used for n of 1024 and more.
const ROUNDS: usize = 8;
/// 2^64 divided by the golden ratio, and odd: the increment of splitmix64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finalizer of splitmix64: a bijection of 64 bits whose output looks random.
///
/// Steele, Lea and Flood, 2014. `mix(0)` is 0, so `draw` adds a constant first.
#[inline]
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The `counter`-th random number of the stream `key`.
///
/// Any number of a stream costs the same, because none depends on those before it.
#[inline]
fn draw(key: u64, counter: u64) -> u64 {
    mix(key.wrapping_add(counter.wrapping_add(1).wrapping_mul(GOLDEN)))
}

/// One key out of several numbers; each change of one gives an unrelated key.
///
/// The order of the numbers counts: (1, 2) and (2, 1) give different keys.
pub fn key(parts: &[u64]) -> u64 {
    parts
        .iter()
        .fold(GOLDEN, |key, &part| draw(key ^ mix(part), 0))
}

/// `word` scaled from 64 bits to below `n`.
#[inline]
fn below(word: u64, n: u64) -> u64 {
    // The high half of a product: as even as a remainder, without a division.
    ((u128::from(word) * u128::from(n)) >> 64) as u64
}

/// A permutation of `0..n` chosen by a key, in constant memory (2 KiB for a small `n`).
///
/// ```
/// use tinylm_dataloader::order::Permutation;
///
/// let permutation = Permutation::new(5000, 7);
/// let mut places: Vec<u64> = (0..5000).map(|i| permutation.at(i)).collect();
/// assert_ne!(places[..3], [0, 1, 2]);
/// places.sort_unstable();
/// assert!(places.into_iter().eq(0..5000));
/// ```
#[derive(Clone, Debug)]
pub enum Permutation {
    /// Fisher and Yates's shuffle, written out.
    Table(Vec<u16>),
    /// A network over the smallest `2^bits >= n`; results outside `0..n` are mapped again.
    Feistel {
        /// Size of the domain.
        n: u64,
        /// Bits of the low half; the high half has the same number or one fewer.
        low_bits: u32,
        /// Bits of the high half.
        high_bits: u32,
        /// One key per round.
        keys: [u64; ROUNDS],
    },
}

impl Permutation {
    /// The permutation of `0..n` that belongs to `key`.
    ///
    /// The casts to 16 bits lose nothing: a table has fewer than 1024 entries.
    pub fn new(n: u64, key: u64) -> Self {
        if n < TABLE_BELOW {
            let mut table: Vec<u16> = (0..n as u16).collect();
            // Each swap draws its own numbered word, so the table is the same in any language.
            for last in (1..table.len()).rev() {
                table.swap(
                    last,
                    below(draw(key, last as u64), last as u64 + 1) as usize,
                );
            }
            return Self::Table(table);
        }
        // At most half of the domain lies outside `0..n`: a walk takes two steps at the most, on
        // average.
        let bits = 64 - (n - 1).leading_zeros();
        let high_bits = bits / 2;
        let keys = std::array::from_fn(|round| draw(key, round as u64));
        Self::Feistel {
            n,
            low_bits: bits - high_bits,
            high_bits,
            keys,
        }
    }

    /// Where `i < n` goes: in 22 ns by the network, in 2 ns by the table.
    #[inline]
    pub fn at(&self, i: u64) -> u64 {
        match self {
            Self::Table(table) => table.get(i as usize).map_or(i, |&to| u64::from(to)),
            Self::Feistel {
                n,
                low_bits,
                high_bits,
                keys,
            } => {
                // A bijection maps some number to every number, so the walk must come back inside.
                // Walking a cycle ends only if it starts inside the domain.
                let mut x = i % n;
                loop {
                    x = network(x, *low_bits, *high_bits, keys);
                    if x < *n {
                        return x;
                    }
                }
            }
        }
    }
}

#[inline]
/// One pass through the Feistel network: a bijection of `low_bits + high_bits` bits.
fn network(x: u64, low_bits: u32, high_bits: u32, keys: &[u64; ROUNDS]) -> u64 {
    let low_mask = (1 << low_bits) - 1;
    let high_mask = (1 << high_bits) - 1;
    let (mut high, mut low) = (x >> low_bits, x & low_mask);
    // Halves of unequal width cannot be swapped, so each round mixes into a fixed half.
    for pair in keys.chunks_exact(2) {
        high ^= mix(low ^ pair[0]) & high_mask;
        low ^= mix(high ^ pair[1]) & low_mask;
    }
    high << low_bits | low
}

/// In what order the rows of an epoch come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Each row once per epoch, in an order that changes with the epoch.
    Shuffle,
    /// Each row once per epoch, from the first token to the last.
    Sequential,
    /// Rows that begin anywhere, with replacement, as nanoGPT takes them.
    Random,
}

/// The `i`-th random number below `n` of an epoch, for [`Order::Random`].
///
/// The 2 in its key keeps it apart from the keys of blocks (0) and of rows in a window (1).
pub fn anywhere(seed: u64, epoch: u64, i: u64, n: u64) -> u64 {
    below(draw(key(&[seed, 2, epoch]), i), n)
}

/// The rows of an epoch in the order of [`Order::Shuffle`].
///
/// It keeps the permutations of the place it is at, so neighbouring rows are cheap and a jump
/// costs a new permutation. Each thread has its own.
#[derive(Clone, Debug)]
pub struct Shuffle {
    seed: u64,
    n_rows: u64,
    block_rows: u64,
    /// (epoch, order of its blocks)
    blocks: Option<(u64, Permutation)>,
    /// (epoch, window, order of the rows in it)
    window: Option<(u64, u64, Permutation)>,
}

impl Shuffle {
    /// A shuffle of epochs of `n_rows` rows, each of which takes `stride` tokens of the dataset.
    ///
    /// A stride above [`BLOCK_TOKENS`] makes blocks of one row.
    pub fn new(seed: u64, n_rows: u64, stride: u64) -> Self {
        Self {
            seed,
            n_rows,
            // By tokens and not by rows: what the disk reads at once must not depend on the stride.
            block_rows: (BLOCK_TOKENS / stride.max(1)).max(1),
            blocks: None,
            window: None,
        }
    }

    /// Rows of one block.
    pub fn block_rows(&self) -> u64 {
        self.block_rows
    }

    /// The row in place `i < n_rows` of `epoch`.
    ///
    /// Rows of the same window cost one look-up in each of two permutations. A new window or epoch
    /// costs a new permutation.
    pub fn row(&mut self, epoch: u64, i: u64) -> u64 {
        let window_rows = self.block_rows * WINDOW_BLOCKS;
        let (number, place) = (i / window_rows, i % window_rows);
        if !matches!(&self.window, Some((e, w, _)) if (*e, *w) == (epoch, number)) {
            // The last window may be smaller; its own permutation keeps every row in it.
            let size = window_rows.min(self.n_rows - number * window_rows);
            let key = key(&[self.seed, 1, epoch, number]);
            self.window = Some((epoch, number, Permutation::new(size, key)));
        }
        let inside = self
            .window
            .as_ref()
            .map_or(place, |(_, _, inside)| inside.at(place));
        let position = number * window_rows + inside;
        self.block(epoch, position / self.block_rows) * self.block_rows + position % self.block_rows
    }

    /// The block at `slot` of the epoch; the incomplete block at the end, if any, stays there.
    fn block(&mut self, epoch: u64, slot: u64) -> u64 {
        // Permuting the short block too would move every row behind it by a few places.
        let whole = self.n_rows / self.block_rows;
        if slot >= whole {
            return slot;
        }
        if !matches!(&self.blocks, Some((e, _)) if *e == epoch) {
            let key = key(&[self.seed, 0, epoch]);
            self.blocks = Some((epoch, Permutation::new(whole, key)));
        }
        self.blocks
            .as_ref()
            .map_or(slot, |(_, blocks)| blocks.at(slot))
    }

    /// The blocks to read ahead while rows `i..i + n` of `epoch` are served: the first row of each.
    ///
    /// A new window would otherwise need all its blocks at once: its blocks are spread evenly over
    /// the rows of the window before it.
    pub fn ahead(&mut self, epoch: u64, i: u64, n: u64) -> Vec<u64> {
        let (block_rows, n_rows) = (self.block_rows, self.n_rows);
        let window_rows = block_rows * WINDOW_BLOCKS;
        // In slots of blocks; blocks of the next window are spread over the rows of this one.
        let next = (i / window_rows + 1) * WINDOW_BLOCKS;
        let place = i % window_rows;
        let from = place.div_ceil(block_rows);
        let to = (place + n).min(window_rows).div_ceil(block_rows);
        (next + from..next + to)
            .take_while(|slot| slot * block_rows < n_rows)
            .map(|slot| self.block(epoch, slot) * block_rows)
            .collect()
    }
}
