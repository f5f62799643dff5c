//! Places in a piece at which no merge can cross from one character to the next.
//!
//! Without blanks between words a piece is a whole clause: in Chinese or Japanese text 40 bytes and
//! hardly ever the same twice. But few of its characters begin or end inside a token of several. A
//! merge that crosses a border has a left token that ends before it and a right one that begins
//! after it; if no merge of the vocabulary has tokens with these bytes, what is left of the
//! border and what is right of it become the tokens that they are by themselves. Such parts are
//! one or two characters, known pieces nearly always, so a clause is some look-ups and no merging.
//!
//! Looked at are three bytes on each side, which is a character of these scripts, in a filter of
//! 64 Ki bits: what it does not hold is no merge. Tokens that are shorter are kept by the one byte
//! beside the border.
//!
//! Held to merging without cuts by a test below.

/// The bytes on each side of a border by which merges are told apart.
const SIDE: usize = 3;

/// The merges of a vocabulary whose right token begins with a character above ASCII.
#[derive(Debug)]
pub(crate) struct Borders {
    /// Those of tokens of at least [`SIDE`] bytes, by a hash of the bytes beside the border.
    long: Vec<u64>,
    /// The others, by the byte before the border and the one after it.
    short: Vec<u64>,
}

/// Whether a byte begins a character above ASCII.
fn is_lead(byte: u8) -> bool {
    byte >= 0xC0
}

/// A place of the filter for the bytes beside a border.
fn place(left: [u8; SIDE], right: [u8; SIDE]) -> usize {
    let [a, b, c] = left;
    let [d, e, f] = right;
    let bytes = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
    (bytes.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48) as usize
}

impl Borders {
    /// No merges.
    pub(crate) fn new() -> Self {
        Self {
            long: vec![0; (1 << 16) / 64],
            short: vec![0; (1 << 16) / 64],
        }
    }

    /// Adds the merge of two tokens, by their bytes.
    pub(crate) fn add(&mut self, left: &[u8], right: &[u8]) {
        let (Some(&before), Some(&after)) = (left.last(), right.first()) else {
            return;
        };
        if !is_lead(after) {
            return;
        }
        let (bits, at) = match (left.last_chunk(), right.first_chunk()) {
            (Some(left), Some(right)) => (&mut self.long, place(*left, *right)),
            _ => (
                &mut self.short,
                usize::from(before) << 8 | usize::from(after),
            ),
        };
        bits[at / 64] |= 1 << (at % 64);
    }

    /// The first border after `from` that no merge crosses; the end of the piece if there is none.
    pub(crate) fn next(&self, piece: &[u8], from: usize) -> usize {
        (from + 1..piece.len())
            .find(|&at| is_lead(piece[at]) && !self.crossed(piece, at))
            .unwrap_or(piece.len())
    }

    /// Whether some merge may cross the border at `at`, inside the piece.
    fn crossed(&self, piece: &[u8], at: usize) -> bool {
        let has = |bits: &[u64], at: usize| bits[at / 64] >> (at % 64) & 1 == 1;
        if has(
            &self.short,
            usize::from(piece[at - 1]) << 8 | usize::from(piece[at]),
        ) {
            return true;
        }
        let (left, right) = piece.split_at(at);
        match (left.last_chunk(), right.first_chunk()) {
            (Some(left), Some(right)) => has(&self.long, place(*left, *right)),
            // No token of this length fits there.
            _ => false,
        }
    }
}
