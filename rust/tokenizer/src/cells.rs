//! The distinct pieces of a corpus laid out for training: a cell for each byte.

use crate::Error;
use crate::units::Units;
use crate::words::Words;

/// The cell between two words; no id.
pub(crate) const BORDER: u32 = u32::MAX;
/// Cells for each entry of [`Frequencies::first`], as a power of two.
const BLOCK_BITS: u32 = 6;

/// How often the word at each cell occurs.
///
/// Words of equal counts follow each other, so there are few runs of equal counts; the run at the
/// start of each block of cells is known, and the right one at most a block further on. This takes
/// a sixteenth of a byte for each cell where a word's number for each took four, and most of it
/// stays in the processor's cache.
pub(crate) struct Frequencies {
    /// The cell after the last one of each run, and the count there.
    runs: Vec<(u32, i64)>,
    /// The run of the first cell of each block.
    first: Vec<u32>,
}

impl Frequencies {
    #[inline]
    /// The count of the word at this cell.
    pub(crate) fn at(&self, cell: u32) -> i64 {
        let mut run = self.first[(cell >> BLOCK_BITS) as usize] as usize;
        while self.runs[run].0 <= cell {
            run += 1;
        }
        self.runs[run].1
    }
}

/// The cells of `words`, the id of a symbol in each, and their frequencies. A border is before the
/// first word and after each.
///
/// # Errors
///
/// [`Error::TooLong`] for more cells than 32 bits can number.
pub(crate) fn lay_out(words: &Words, symbols: &Units) -> Result<(Vec<u32>, Frequencies), Error> {
    let length = words.bytes() + words.len() + 1;
    if length >= BORDER as usize {
        return Err(Error::TooLong {
            what: "the distinct text of the corpus",
            length,
        });
    }
    let mut cells = Vec::with_capacity(length);
    cells.push(BORDER);
    let mut runs: Vec<(u32, i64)> = Vec::new();
    for (word, count) in words.iter() {
        symbols.write(word, &mut cells);
        cells.push(BORDER);
        let (end, count) = (cells.len() as u32, count as i64);
        match runs.last_mut() {
            Some(run) if run.1 == count => run.0 = end,
            _ => runs.push((end, count)),
        }
    }
    let mut run = 0;
    let blocks = (0..cells.len() as u32).step_by(1 << BLOCK_BITS);
    let first = blocks
        .map(|cell| {
            while runs.get(run).is_some_and(|run| run.0 <= cell) {
                run += 1;
            }
            run as u32
        })
        .collect();
    Ok((cells, Frequencies { runs, first }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_knows_the_count_of_its_word() {
        let pieces: Vec<(Vec<u8>, u64)> = (0..500u64)
            .map(|i| (vec![7; 1 + (i as usize * 37) % 90], 1 + i % 7 / 3))
            .collect();
        let words: Words = pieces.iter().map(|(w, n)| (w.as_slice(), *n)).collect();
        let symbols = Units::new(&crate::Goal::new(256));
        let (cells, frequencies) = lay_out(&words, &symbols).unwrap();
        let mut at = 0;
        for (piece, count) in &pieces {
            assert_eq!(cells[at], BORDER);
            assert_eq!(cells[at + 1..][..piece.len()], vec![7; piece.len()]);
            for cell in at + 1..=at + piece.len() {
                assert_eq!(frequencies.at(cell as u32), *count as i64);
            }
            at += piece.len() + 1;
        }
        assert_eq!(cells.len(), at + 1);
    }
}
