//! Random numbers from a seed, for sampling: the same on every machine and for any number of
//! threads.
//!
//! Numbers of splitmix64 (Steele, Lea and Flood, 2014). Defined by `draw` in
//! `python/tinylm/reference/order.py`.

/// 2^64 divided by the golden ratio, and odd.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A stream of numbers.
#[derive(Debug, Clone)]
pub(crate) struct Draws {
    state: u64,
}

impl Draws {
    /// The stream of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next number, at least 0 and below 1.
    pub(crate) fn next(&mut self) -> f64 {
        self.state = self.state.wrapping_add(GOLDEN);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        // The upper 53 bits: as many as float64 holds.
        (z >> 11) as f64 / (1u64 << 53) as f64
    }
}
