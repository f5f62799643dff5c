//! The tokens of a vocabulary and their ids, in the order of its file.
//!
//! Their bytes lie in a row: a vector for each of 100,000 tokens takes 3 ms to make, as much to
//! free, and eight times the memory, all over which loading would look.

/// Tokens, each with its id.
///
/// ```
/// use tinylm_tokenizer::Tokens;
///
/// let mut tokens = Tokens::from_iter([("lo", 256)]);
/// tokens.push(b"low", 257);
/// assert_eq!(tokens.get(1), (b"low".as_slice(), 257));
/// ```
#[derive(Debug, Clone, Default)]
pub struct Tokens {
    /// Those of all tokens.
    bytes: Vec<u8>,
    /// Where the bytes of each token end.
    ends: Vec<usize>,
    ids: Vec<u32>,
}

impl Tokens {
    /// Appends a token.
    pub fn push(&mut self, token: &[u8], id: u32) {
        self.bytes.extend_from_slice(token);
        self.ends.push(self.bytes.len());
        self.ids.push(id);
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The token of a number, which counts from 0 in their order, and its id.
    ///
    /// # Panics
    ///
    /// If there are not so many.
    pub fn get(&self, number: usize) -> (&[u8], u32) {
        (self.bytes(number), self.ids[number])
    }

    /// The bytes of the token of a number.
    #[inline]
    pub(crate) fn bytes(&self, number: usize) -> &[u8] {
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[number]]
    }

    /// The ids, in the order of the tokens.
    pub(crate) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The tokens in their order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&[u8], u32)> {
        (0..self.len()).map(|number| self.get(number))
    }
}

impl<T: AsRef<[u8]>> FromIterator<(T, u32)> for Tokens {
    fn from_iter<I: IntoIterator<Item = (T, u32)>>(tokens: I) -> Self {
        let mut made = Self::default();
        for (token, id) in tokens {
            made.push(token.as_ref(), id);
        }
        made
    }
}
