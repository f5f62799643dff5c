//! A batch as it lies in memory: its arrays one after the other in one block.
//!
//! One block, so that a batch goes to a device in one copy. Who fills it is the matter of
//! [`crate::batch`], where the memory comes from that of [`crate::slots`].
//!
//! ```text
//! | tokens [rows, length] | targets | positions | documents | ends [rows, ends] |
//!                                    `---- only if rows are packed ----------'
//! ```

use crate::format::Element;
use crate::slots::Block;

/// The target that a loss leaves out.
///
/// torch's `cross_entropy` has this number as its default, so no caller has to pass it on.
pub const IGNORED: i64 = -100;
/// The document of padding.
///
/// Real documents count from 0, so a mask of equal documents joins no token with padding.
pub const PADDING: i64 = -1;
/// How large the arrays of a batch are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows of the batch.
    pub rows: usize,
    /// Inputs of a row.
    pub length: usize,
    /// Numbers of `ends` per row: [`Plan::most_pieces`](crate::Plan::most_pieces) and one more; 0 if every row is one piece.
    pub ends: usize,
}

impl Shape {
    /// Arrays of `rows` x `length`.
    pub fn arrays(&self) -> usize {
        if self.ends > 0 { 4 } else { 2 }
    }

    /// Elements of the whole block.
    pub fn size(&self) -> usize {
        self.rows * (self.arrays() * self.length + self.ends)
    }
}

/// The arrays of some rows, in one block of memory.
#[derive(Debug)]
pub struct Batch<E: Element> {
    pub(crate) shape: Shape,
    /// Of [`Shape::size`] elements.
    pub(crate) block: Block<E>,
}

impl<E: Element> Batch<E> {
    /// What the model reads.
    pub fn tokens(&self) -> &[E] {
        self.array(0)
    }

    /// What it should say, [`IGNORED`] where it does not matter.
    pub fn targets(&self) -> &[E] {
        self.array(1)
    }

    /// Places of the tokens in their pieces; empty if every row is one piece.
    pub fn positions(&self) -> &[E] {
        self.array(2)
    }

    /// Numbers of the tokens' documents, -1 for padding; empty if every row is one piece.
    pub fn documents(&self) -> &[E] {
        self.array(3)
    }

    /// Where the pieces of each row end in it, the length of the row for pieces that it does not
    /// have, and once more; empty if every row is one piece.
    pub fn ends(&self) -> &[E] {
        let first = self.shape.size() - self.shape.rows * self.shape.ends;
        self.block.get(first..).unwrap_or_default()
    }

    /// The memory with all of them.
    pub fn into_block(self) -> Block<E> {
        self.block
    }

    fn array(&self, number: usize) -> &[E] {
        let n = self.shape.rows * self.shape.length;
        // Asked of windows, the third array begins where the block ends.
        let end = (number + 1) * n;
        self.block.get(number * n..end).unwrap_or_default()
    }

    /// The arrays of row `k`, to be filled.
    pub(crate) fn row(&mut self, k: usize) -> Row<'_, E> {
        let Shape { rows, length, ends } = self.shape;
        let n = if ends > 0 { length } else { 0 };
        let mut rest = &mut *self.block;
        let mut next = |size: usize| {
            let array = rest.split_off_mut(..rows * size).unwrap_or_default();
            array.get_mut(k * size..(k + 1) * size).unwrap_or_default()
        };
        Row {
            tokens: next(length),
            targets: next(length),
            positions: next(n),
            documents: next(n),
            ends: next(ends),
        }
    }
}

/// One row of each array of a batch; the last three are empty if every row is one piece.
pub(crate) struct Row<'a, E> {
    pub(crate) tokens: &'a mut [E],
    pub(crate) targets: &'a mut [E],
    pub(crate) positions: &'a mut [E],
    pub(crate) documents: &'a mut [E],
    pub(crate) ends: &'a mut [E],
}

impl<E: Element> Row<'_, E> {
    /// Makes padding of the row from place `at` on, whose first `pieces` pieces are filled.
    pub(crate) fn pad(&mut self, at: usize, pieces: usize) {
        let length = E::from_id(self.tokens.len() as i64);
        from(self.ends, pieces).fill(length);
        // As most rows are.
        if at == self.tokens.len() {
            return;
        }
        // Any id would do: no target is behind it. 0 is in every vocabulary.
        from(self.tokens, at).fill(E::from_id(0));
        from(self.targets, at).fill(E::from_id(IGNORED));
        from(self.positions, at).fill(E::from_id(0));
        from(self.documents, at).fill(E::from_id(PADDING));
    }
}

/// The part of an array from place `at` on.
#[inline]
pub(crate) fn from<E>(array: &mut [E], at: usize) -> &mut [E] {
    array.get_mut(at..).unwrap_or_default()
}
