//! The characters of Unicode in as few kinds as an expression can tell apart.
//!
//! An expression asks of a character only whether it is in one of its sets, such as `\p{L}` or
//! `[\r\n]`. Characters that are in the same ones are one symbol, and a table of symbols is small:
//! GPT-4o's expression has 20 where Unicode has 1,112,064.

use regex_syntax::hir::ClassUnicode;
use rustc_hash::FxHashMap;

use crate::unicode::decode;

/// Which symbol each character is, in two levels: equal blocks of 256 characters are stored once.
#[derive(Debug, Clone)]
pub(crate) struct Symbols {
    /// By the byte: most text needs no other table.
    ascii: [u8; 128],
    block_of: Vec<u16>,
    blocks: Vec<[u8; 256]>,
    /// How many there are; what stands before and after a text is one more, with this number.
    pub(crate) count: u8,
}

/// Symbols are bits of a `u64`, and the edge of the text is one too.
const MOST: usize = 63;

impl Symbols {
    /// The symbols of some sets, and of each set which symbols it has; None if there are too many.
    pub(crate) fn new(sets: &[ClassUnicode]) -> Option<(Self, Vec<u64>)> {
        // Where a set begins or ends, so that nothing changes in between.
        let mut places = vec![(0, usize::MAX)];
        for (number, set) in sets.iter().enumerate() {
            for range in set.iter() {
                places.push((range.start() as usize, number));
                places.push((range.end() as usize + 1, number));
            }
        }
        places.sort_unstable();
        let mut flat = vec![0u8; 0x11_0000];
        let mut numbers: FxHashMap<Vec<bool>, u8> = FxHashMap::default();
        let mut masks = vec![0u64; sets.len()];
        let mut inside = vec![false; sets.len()];
        for (number, &(place, set)) in places.iter().enumerate() {
            if let Some(inside) = inside.get_mut(set) {
                *inside = !*inside;
            }
            let next = places.get(number + 1).map_or(flat.len(), |next| next.0);
            if next == place {
                continue;
            }
            let new = numbers.len();
            let symbol = *numbers.entry(inside.clone()).or_insert(new as u8);
            if usize::from(symbol) >= MOST {
                return None;
            }
            for (mask, _) in masks.iter_mut().zip(&inside).filter(|(_, inside)| **inside) {
                *mask |= 1 << symbol;
            }
            flat[place..next].fill(symbol);
        }
        let mut ascii = [0; 128];
        ascii.copy_from_slice(&flat[..128]);
        let mut known: FxHashMap<[u8; 256], u16> = FxHashMap::default();
        let (mut blocks, mut block_of) = (Vec::new(), Vec::new());
        for block in flat.as_chunks::<256>().0 {
            let number = *known.entry(*block).or_insert_with(|| {
                blocks.push(*block);
                (blocks.len() - 1) as u16
            });
            block_of.push(number);
        }
        let count = numbers.len() as u8;
        let symbols = Self {
            ascii,
            block_of,
            blocks,
            count,
        };
        Some((symbols, masks))
    }

    /// Symbol and width in bytes of the character at `at`; (`count`, 0) at the end of the text.
    #[inline]
    pub(crate) fn at(&self, text: &[u8], at: usize) -> (u8, usize) {
        match text.get(at) {
            None => (self.count, 0),
            Some(&byte) if byte < 128 => (self.ascii[usize::from(byte)], 1),
            Some(_) => self.beyond_ascii(&text[at..]),
        }
    }

    /// The first place from `at` on without a symbol of a set.
    #[inline]
    pub(crate) fn skip(&self, text: &[u8], mut at: usize, set: u64) -> usize {
        loop {
            let (symbol, width) = self.at(text, at);
            if set >> symbol & 1 == 0 {
                return at;
            }
            at += width;
        }
    }

    #[inline(never)]
    fn beyond_ascii(&self, text: &[u8]) -> (u8, usize) {
        // Texts are UTF-8; whatever else came would be taken byte by byte.
        let (scalar, width) = decode(text).unwrap_or((0xFFFD, 1));
        let block = self.block_of[(scalar >> 8) as usize];
        (
            self.blocks[usize::from(block)][(scalar & 255) as usize],
            width,
        )
    }

    /// The symbol of the character that ends at `at`; `count` at the beginning of the text.
    pub(crate) fn before(&self, text: &[u8], at: usize) -> u8 {
        let back = (1..=at.min(4)).find(|back| text[at - back] & 0xC0 != 0x80);
        back.map_or(self.count, |back| self.at(text, at - back).0)
    }
}
