//! A trie over bytes in two arrays: which tokens begin at a place of a text.
//!
//! Aoe's double array: the child of a node by a byte is at `base(node) ^ byte`, and the unit there
//! names its parent, so that a step is one load and one comparison. A dictionary of 32,000 tokens
//! has about 80,000 nodes, of 12 bytes each.
//!
//! J. Aoe 1989, "An Efficient Digital Search Algorithm by Using a Double-Array Structure".

/// No token, and the parent of a free unit.
const NONE: u32 = u32::MAX;
/// The parent of the root, which is no unit: no step leads to the root.
const OUTSIDE: u32 = u32::MAX - 1;
/// Free units that are tried for a node with several children before it gets a new block: it keeps
/// building linear, and costs a tenth of the memory.
const TRIES: usize = 48;

/// A node, or a free place.
#[derive(Debug, Clone, Copy)]
struct Unit {
    /// Its children are at `base ^ byte`.
    base: u32,
    parent: u32,
    /// The place of the token that ends here, or NONE.
    value: u32,
}

const FREE: Unit = Unit {
    base: 0,
    parent: NONE,
    value: NONE,
};

/// A set of byte strings, each with a number.
#[derive(Debug)]
pub(crate) struct Trie {
    units: Vec<Unit>,
}

/// The nodes that still have to be placed, while building.
struct Builder<'a> {
    keys: Vec<(&'a [u8], u32)>,
    units: Vec<Unit>,
    /// The free units in order, as a ring: unit 0, the root, is never free and closes it.
    next: Vec<u32>,
    previous: Vec<u32>,
}

impl Trie {
    /// From keys with their numbers; of equal keys the one with the lowest number counts.
    pub(crate) fn new<'a>(keys: impl IntoIterator<Item = (&'a [u8], u32)>) -> Self {
        let mut keys: Vec<_> = keys.into_iter().collect();
        keys.sort_unstable();
        keys.dedup_by_key(|key| key.0);
        let mut builder = Builder {
            keys,
            units: Vec::new(),
            next: vec![0],
            previous: vec![0],
        };
        builder.units.push(FREE);
        builder.grow();
        builder.units[0].parent = OUTSIDE;
        // A list and not a recursion: a key may be long.
        let mut open = vec![(0u32, 0usize, 0, builder.keys.len())];
        while let Some((node, depth, from, to)) = open.pop() {
            builder.place(node, depth, from, to, &mut open);
        }
        Self {
            units: builder.units,
        }
    }

    /// Calls `each(length, number)` for every key that `text` begins with, the shortest first.
    #[inline]
    pub(crate) fn prefixes(&self, text: &[u8], mut each: impl FnMut(usize, u32)) {
        let (mut node, mut base) = (0, self.units[0].base);
        for (at, &byte) in text.iter().enumerate() {
            let child = base ^ u32::from(byte);
            let Some(unit) = self.units.get(child as usize) else {
                return;
            };
            if unit.parent != node {
                return;
            }
            if unit.value != NONE {
                each(at + 1, unit.value);
            }
            (node, base) = (child, unit.base);
        }
    }

    /// The longest key that `text` begins with, as (length, number).
    pub(crate) fn longest(&self, text: &[u8]) -> Option<(usize, u32)> {
        let mut found = None;
        self.prefixes(text, |length, value| found = Some((length, value)));
        found
    }
}

impl Builder<'_> {
    /// Another 256 free units at the end: a base and all its bytes lie in one such block.
    fn grow(&mut self) {
        let first = self.units.len() / 256 * 256;
        let end = first + 256;
        for at in self.units.len()..end {
            self.units.push(FREE);
            // Put at the end of the ring.
            let last = self.previous[0];
            self.previous.push(last);
            self.next.push(0);
            self.next[last as usize] = at as u32;
            self.previous[0] = at as u32;
        }
    }

    /// Takes a unit out of the ring of free ones.
    fn take(&mut self, at: u32) {
        let (before, after) = (self.previous[at as usize], self.next[at as usize]);
        self.next[before as usize] = after;
        self.previous[after as usize] = before;
    }

    /// Gives the keys `from..to`, which share the first `depth` bytes and with them `node`, places
    /// for their next byte; the children wait in `open`.
    fn place(
        &mut self,
        node: u32,
        depth: usize,
        mut from: usize,
        to: usize,
        open: &mut Vec<(u32, usize, usize, usize)>,
    ) {
        // Sorted: the key that ends here is the first.
        if from < to && self.keys[from].0.len() == depth {
            self.units[node as usize].value = self.keys[from].1;
            from += 1;
        }
        let mut children: Vec<(u8, usize)> = Vec::new();
        for at in from..to {
            let byte = self.keys[at].0[depth];
            if children.last().is_none_or(|last| last.0 != byte) {
                children.push((byte, at));
            }
        }
        if children.is_empty() {
            return;
        }
        let base = self.base(&children);
        self.units[node as usize].base = base;
        for (i, &(byte, first)) in children.iter().enumerate() {
            let child = base ^ u32::from(byte);
            self.take(child);
            self.units[child as usize].parent = node;
            let end = children.get(i + 1).map_or(to, |next| next.1);
            open.push((child, depth + 1, first, end));
        }
    }

    /// A base at which the places of all children are free.
    fn base(&mut self, children: &[(u8, usize)]) -> u32 {
        let first = u32::from(children[0].0);
        let mut at = self.next[0];
        for _ in 0..TRIES {
            if at == 0 {
                break;
            }
            let base = at ^ first;
            let free = |&(byte, _): &(u8, usize)| {
                let place = base ^ u32::from(byte);
                place != 0 && self.units[place as usize].parent == NONE
            };
            if children.iter().all(free) {
                return base;
            }
            at = self.next[at as usize];
        }
        let base = self.units.len() as u32;
        self.grow();
        base
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_finds_every_key_and_no_other() {
        // Every byte after the empty prefix, and keys that share long beginnings.
        let mut keys: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        for a in 0..40u8 {
            for b in (0..=255u8).step_by(usize::from(a) + 1) {
                keys.push(vec![a, b]);
                keys.push(vec![a, b, 0, b ^ a]);
            }
        }
        keys.push(vec![7; 3000]);
        keys.sort();
        keys.dedup();
        let trie = Trie::new(keys.iter().map(Vec::as_slice).zip(0..));
        for (key, number) in keys.iter().zip(0u32..) {
            assert_eq!(trie.longest(key), Some((key.len(), number)), "{key:?}");
            let mut found = Vec::new();
            trie.prefixes(key, |length, value| found.push((length, value)));
            let expected: Vec<_> = (1..=key.len())
                .filter_map(|length| {
                    let place = keys.binary_search_by(|k| k[..].cmp(&key[..length]));
                    place.ok().map(|place| (length, place as u32))
                })
                .collect();
            assert_eq!(found, expected, "{key:?}");
        }
        assert_eq!(
            trie.longest(&[41, 1, 1]),
            Some((1, keys.binary_search(&vec![41]).unwrap() as u32))
        );
        assert_eq!(trie.longest(b""), None);
        assert_eq!(Trie::new([]).longest(b"a"), None);
    }
}
