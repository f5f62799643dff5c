//! A precompiled map of characters: how `SentencePiece` stores its normalisation.
//!
//! The file has the length of a double array (4 bytes, little-endian), the array, and then the
//! replacements, each ended by a zero byte. The array is a trie over bytes in the layout of Darts:
//! a cell has a label, the distance to its children, and whether a key ends at it; the value of a
//! key is the place of its replacement.

use crate::Error;

/// The trie and the replacements.
#[derive(Debug, Clone)]
pub struct Charsmap {
    cells: Vec<u32>,
    replacements: Vec<u8>,
    /// See [`Charsmap::is_plain`].
    plain: [bool; 128],
}

impl Charsmap {
    /// From the bytes of a file.
    ///
    /// # Errors
    ///
    /// [`Error::Vocabulary`] if the length of the array does not fit the bytes.
    pub fn new(bytes: &[u8]) -> Result<Self, Error> {
        let fail = || Error::Vocabulary("precompiled_charsmap is cut short".into());
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(fail)?;
        let length = u32::from_le_bytes(*length) as usize;
        if length == 0 || !length.is_multiple_of(4) || length > rest.len() {
            return Err(fail());
        }
        let (cells, replacements) = rest.split_at(length);
        let cells = cells.chunks_exact(4);
        let mut map = Self {
            cells: cells
                .map(|cell| u32::from_le_bytes([cell[0], cell[1], cell[2], cell[3]]))
                .collect(),
            replacements: replacements.to_vec(),
            plain: [false; 128],
        };
        map.plain = map.plain_bytes();
        Ok(map)
    }

    /// Whether a byte is one of ASCII that stays as it is before another one: no key is that byte
    /// alone, or begins with two.
    pub(crate) fn is_plain(&self, byte: u8) -> bool {
        self.plain.get(usize::from(byte)) == Some(&true)
    }

    /// The keys that `text` begins with, the shortest first: their lengths and replacements.
    fn prefixes<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = (usize, &'a [u8])> {
        let cell = |at: usize| self.cells.get(at).copied();
        let distance = |cell: u32| ((cell >> 10) << ((cell & 1 << 9) >> 6)) as usize;
        let mut at = cell(0).map_or(0, distance);
        let found = text.iter().zip(1..).map_while(move |(&byte, length)| {
            at ^= usize::from(byte);
            // A zero byte ends the replacements, so it is in no key.
            let here = cell(at).filter(|here| byte != 0 && here & 0x8000_00FF == byte.into())?;
            at ^= distance(here);
            let value = (here >> 8 & 1 == 1).then(|| cell(at)).flatten();
            Some((length, value.map(|value| (value & 0x7FFF_FFFF) as usize)))
        });
        found.filter_map(|(length, place)| {
            let rest = self.replacements.get(place?..)?;
            let end = rest.iter().position(|&byte| byte == 0)?;
            Some((length, &rest[..end]))
        })
    }

    /// The longest key that `text` begins with: its length and what stands for it.
    pub fn longest<'a>(&'a self, text: &'a [u8]) -> Option<(usize, &'a [u8])> {
        self.prefixes(text).last()
    }

    /// The table behind [`Charsmap::is_plain`].
    fn plain_bytes(&self) -> [bool; 128] {
        let mut plain = [true; 128];
        for (first, plain) in (0u8..).zip(&mut plain) {
            *plain = self.longest(&[first]).is_none()
                && (0..128u8).all(|next| self.reaches(&[first, next]).is_none());
        }
        plain
    }

    /// Something if a key begins with `text`.
    fn reaches(&self, text: &[u8]) -> Option<()> {
        let mut at = Self::children(*self.cells.first()?);
        for &byte in text {
            at ^= usize::from(byte);
            let here = *self.cells.get(at)?;
            (byte != 0 && here & 0x8000_00FF == byte.into()).then_some(())?;
            at ^= Self::children(here);
        }
        Some(())
    }

    /// How far the children of a cell are from it.
    fn children(cell: u32) -> usize {
        ((cell >> 10) << ((cell & 1 << 9) >> 6)) as usize
    }

    /// What stands for the shortest key that `text` begins with.
    pub(crate) fn shortest<'a>(&'a self, text: &'a [u8]) -> Option<&'a [u8]> {
        self.prefixes(text)
            .next()
            .map(|(_, replacement)| replacement)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A map with the keys "a" for "x" and "ab" for "yz".
    fn small() -> Vec<u8> {
        let mut cells = vec![0u32; 256];
        let distance = |distance: u32| distance << 10;
        cells[0] = distance(1);
        // 1 ^ 'a' = 96: a key ends there, and its children are at 96 ^ 4 = 100.
        cells[96] = u32::from(b'a') | 1 << 8 | distance(4);
        cells[100] = 1 << 31;
        // 100 ^ 'b' = 6, with its value at 6 ^ 8 = 14.
        cells[6] = u32::from(b'b') | 1 << 8 | distance(8);
        cells[14] = 1 << 31 | 2;
        let mut bytes = 1024u32.to_le_bytes().to_vec();
        bytes.extend(cells.iter().flat_map(|cell| cell.to_le_bytes()));
        bytes.extend(b"x\0yz\0");
        bytes
    }

    #[test]
    fn keys_are_found_by_their_length() {
        let map = Charsmap::new(&small()).unwrap();
        assert_eq!(map.longest(b"abc"), Some((2, b"yz".as_slice())));
        assert_eq!(map.longest(b"ac"), Some((1, b"x".as_slice())));
        assert_eq!(map.shortest(b"abc"), Some(b"x".as_slice()));
        assert_eq!(map.longest(b"b"), None);
        assert_eq!(map.longest(b""), None);
    }

    #[test]
    fn damaged_maps_are_refused_or_find_nothing() {
        let bytes = small();
        for length in 0..1028 {
            assert!(Charsmap::new(&bytes[..length]).is_err());
        }
        let cut = Charsmap::new(&bytes[..1029]).unwrap();
        assert_eq!(cut.longest(b"abc"), None);
    }
}
