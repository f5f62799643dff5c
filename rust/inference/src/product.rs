//! Products of a few rows with a packed matrix.
//!
//! Numbers lie in panels: unit p of a buffer holds the numbers 16 p to 16 p + 16 of every row. The
//! rows of a product are packed in groups of up to 16, so that a tile of panels x rows stays in
//! registers. Each output is one sum in the order of the inputs, whatever the tile: so what a row
//! gives does not depend on the rows beside it.

use std::ops::Range;

use crate::panels::{Kind, Matrix, Panels};
use crate::simd::{Floats, LANES, Simd, Task, ZEROS, pair, to_bf16};
use crate::team::View;
use crate::tile::{BLOCK, Bytes, GROUP, Halves, Singles, Tile, Weights, tiles};

/// The rows of a group as a tile has them: `rows` of them, the rest zeros.
pub(crate) fn width(rows: usize) -> usize {
    rows.next_power_of_two()
}

/// The group of that number, of `rows` rows in all.
pub(crate) fn group(number: usize, rows: usize) -> Range<usize> {
    number * GROUP..((number + 1) * GROUP).min(rows)
}

/// A norm over the numbers of a row.
#[derive(Debug)]
pub(crate) struct Norm {
    pub(crate) weight: Vec<Floats>,
    /// Empty if it has none.
    pub(crate) bias: Vec<Floats>,
    /// Whether the mean is taken off first, as `LayerNorm` does.
    pub(crate) centred: bool,
    pub(crate) eps: f32,
    /// Numbers of a row, without those that fill the last panel.
    pub(crate) size: usize,
}

impl Norm {
    /// Norms a row in place.
    #[inline(always)]
    pub(crate) fn apply<S: Simd>(&self, simd: S, row: &mut [Floats]) {
        let size = self.size as f32;
        if self.centred {
            let mut sum = simd.splat(0.0);
            for line in &*row {
                sum = simd.add(sum, simd.load(line));
            }
            let mean = simd.splat(simd.total(sum) / size);
            for line in &mut *row {
                simd.store(simd.sub(simd.load(line), mean), line);
            }
            // What fills the last panel stays zero: it must not count below.
            if let Some(last) = row.last_mut() {
                last.0[(self.size - 1) % LANES + 1..].fill(0.0);
            }
        }
        let mut sum = simd.splat(0.0);
        for line in &*row {
            let x = simd.load(line);
            sum = simd.mul_add(x, x, sum);
        }
        let scale = simd.splat(1.0 / (simd.total(sum) / size + self.eps).sqrt());
        for (i, line) in row.iter_mut().enumerate() {
            let mut y = simd.mul(simd.mul(simd.load(line), scale), simd.load(&self.weight[i]));
            if let Some(bias) = self.bias.get(i) {
                y = simd.add(y, simd.load(bias));
            }
            simd.store(y, line);
        }
    }
}

/// Packs the rows of a group for a product; `gather` writes a row's inputs, which `norm` norms.
pub(crate) struct Pack<'a, G> {
    pub(crate) kind: Kind,
    pub(crate) rows: Range<usize>,
    pub(crate) gather: G,
    pub(crate) norm: Option<&'a Norm>,
    pub(crate) row: &'a mut [Floats],
    pub(crate) words: &'a mut [u32],
    pub(crate) scales: &'a mut [f32],
}

impl<G: Fn(usize, &mut [Floats])> Task for Pack<'_, G> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let wide = width(self.rows.len());
        for n in 0..wide {
            if let Some(row) = self.rows.clone().nth(n) {
                (self.gather)(row, self.row);
                if let Some(norm) = self.norm {
                    norm.apply(simd, self.row);
                }
            } else {
                self.row.fill(ZEROS);
            }
            put(
                simd,
                self.kind,
                self.row,
                n,
                wide,
                self.words,
                &mut self.scales[n],
            );
        }
    }
}

/// Writes one row as number `n` of `wide`, word by word side by side.
#[inline(always)]
fn put<S: Simd>(
    simd: S,
    kind: Kind,
    row: &[Floats],
    n: usize,
    wide: usize,
    words: &mut [u32],
    scale: &mut f32,
) {
    match kind {
        Kind::Float32 => {
            for (line, words) in row.iter().zip(words.chunks_exact_mut(LANES * wide)) {
                for (i, x) in line.0.iter().enumerate() {
                    words[i * wide + n] = x.to_bits();
                }
            }
        }
        Kind::Bfloat16 => pairs(row, n, wide, words, to_bf16),
        Kind::Int8 => {
            // The largest number or its negative; 0 x is NaN for what is not finite.
            let zero = simd.splat(0.0);
            let (mut top, mut rest) = (zero, zero);
            for line in row {
                let x = simd.load(line);
                top = simd.max(top, simd.max(x, simd.sub(zero, x)));
                rest = simd.mul_add(x, zero, rest);
            }
            let (top, finite) = (simd.largest(top), simd.total(rest) == 0.0);
            // Integers of up to 15 bits, and so few that sums of products with 127 fit 32 bits.
            let inputs = (row.len() * LANES) as f32;
            let limit = 32767.0f32.min(i32::MAX as f32 / (127.0 * inputs)).floor();
            // What is not finite has no integers: it goes on in the scale.
            *scale = if finite {
                (top / limit).max(f32::MIN_POSITIVE)
            } else {
                f32::NAN
            };
            let inverse = 1.0 / *scale;
            // Added to 1.5 x 2^23, a number of up to 15 bits is rounded to an integer, ties to even,
            // whose bits are the last of the sum.
            pairs(row, n, wide, words, |x| {
                (x * inverse + 12_582_912.0).to_bits() as u16
            });
        }
    }
}

/// Writes a row in pairs of 16 bits.
#[inline(always)]
fn pairs(row: &[Floats], n: usize, wide: usize, words: &mut [u32], half: impl Fn(f32) -> u16) {
    for (line, words) in row.iter().zip(words.chunks_exact_mut(LANES / 2 * wide)) {
        for (i, x) in line.0.as_chunks::<2>().0.iter().enumerate() {
            words[i * wide + n] = pair(half(x[0]), half(x[1]));
        }
    }
}

/// What becomes of the outputs of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// They are the result.
    Store,
    /// They are added to what is there.
    Add,
    /// The result is GELU of them, with the approximation by tanh.
    Gelu,
    /// Panels come in pairs (gate, up), and the result of both is silu(gate) up.
    Gate,
}

/// The products of all rows with some panels of a matrix.
pub(crate) struct Product<'a> {
    pub(crate) matrix: &'a Matrix,
    pub(crate) rows: usize,
    pub(crate) x: &'a View<'a, u32>,
    pub(crate) scales: &'a View<'a, f32>,
    /// Units of the result; with `Then::Gate` each is of two panels.
    pub(crate) share: Range<usize>,
    pub(crate) y: &'a mut [Floats],
    pub(crate) then: Then,
}

impl Task for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        match &self.matrix.panels {
            Panels::Float32(lines) => self.blocks::<S, Singles>(simd, lines),
            Panels::Bfloat16(lines) => self.blocks::<S, Halves>(simd, lines),
            Panels::Int8(lines) => self.blocks::<S, Bytes>(simd, lines),
        }
    }
}

impl Product<'_> {
    #[inline(always)]
    fn blocks<S: Simd, W: Weights<S>>(&mut self, simd: S, lines: &[W::Line]) {
        let per = if self.then == Then::Gate { 2 } else { 1 };
        let panels = self.share.start * per..self.share.end * per;
        let steps = self.matrix.inputs / W::INPUTS;
        let mut out = [[ZEROS; GROUP]; BLOCK];
        for first in panels.clone().step_by(BLOCK) {
            let count = BLOCK.min(panels.end - first);
            let lines = &lines[first * steps..][..count * steps];
            for number in 0..self.rows.div_ceil(GROUP) {
                let rows = group(number, self.rows);
                let x = self.x.unit(number);
                match width(rows.len()) {
                    1 => tiles::<S, W, 4, 1>(simd, lines, steps, x, &mut out),
                    2 => tiles::<S, W, 4, 2>(simd, lines, steps, x, &mut out),
                    4 => tiles::<S, W, 4, 4>(simd, lines, steps, x, &mut out),
                    8 => tiles::<S, W, 2, 8>(simd, lines, steps, x, &mut out),
                    _ => tiles::<S, W, 1, 16>(simd, lines, steps, x, &mut out),
                }
                self.finish(simd, first, count, number, &mut out);
            }
        }
    }

    /// Scales, adds the bias and writes the outputs of `count` panels from `first` on.
    #[inline(always)]
    fn finish<S: Simd>(
        &mut self,
        simd: S,
        first: usize,
        count: usize,
        number: usize,
        out: &mut Tile,
    ) {
        let rows = group(number, self.rows);
        for (i, panel) in out[..count].iter_mut().enumerate() {
            if let Some(scale) = self.matrix.scales.get(first + i) {
                let scale = simd.load(scale);
                for (y, x) in panel.iter_mut().zip(self.scales.unit(number)) {
                    let scale = simd.mul(scale, simd.splat(*x));
                    simd.store(simd.mul(simd.load(y), scale), y);
                }
            }
            if let Some(bias) = self.matrix.biases.get(first + i) {
                for y in &mut panel[..rows.len()] {
                    simd.store(simd.add(simd.load(y), simd.load(bias)), y);
                }
            }
        }
        let per = if self.then == Then::Gate { 2 } else { 1 };
        for (i, panels) in out[..count].chunks_exact(per).enumerate() {
            let unit = first / per + i - self.share.start;
            let y = &mut self.y[unit * self.rows..][rows.clone()];
            for (n, y) in y.iter_mut().enumerate() {
                let x = simd.load(&panels[0][n]);
                let x = match self.then {
                    Then::Store => x,
                    Then::Add => simd.add(simd.load(y), x),
                    Then::Gelu => gelu(simd, x),
                    Then::Gate => simd.mul(sigmoid_times(simd, x, x), simd.load(&panels[1][n])),
                };
                simd.store(x, y);
            }
        }
    }
}

/// x / (1 + e^-g).
#[inline(always)]
fn sigmoid_times<S: Simd>(simd: S, x: S::F, g: S::F) -> S::F {
    let e = simd.exp(simd.sub(simd.splat(0.0), g));
    simd.div(x, simd.add(simd.splat(1.0), e))
}

/// x sigmoid(a x + b x^3), which is GELU's approximation by tanh.
#[inline(always)]
fn gelu<S: Simd>(simd: S, x: S::F) -> S::F {
    // a = 2 sqrt(2 / pi), b = 0.044715 a.
    let inner = simd.mul_add(
        simd.mul(x, x),
        simd.splat(0.071_354_814),
        simd.splat(1.595_769),
    );
    sigmoid_times(simd, x, simd.mul(x, inner))
}
