//! Panels of weights times rows, in registers: the innermost loops of all products.

use crate::simd::{Floats, Line, Simd};

/// Rows of a group.
pub(crate) const GROUP: usize = 16;

/// Panels that are read for all groups before the next ones: they stay in the cache.
pub(crate) const BLOCK: usize = 4;

/// The outputs of a block for one group.
pub(crate) type Tile = [[Floats; GROUP]; BLOCK];

/// The lines of a kind of weights, and how one is multiplied.
pub(crate) trait Weights<S: Simd> {
    /// Inputs of a line.
    const INPUTS: usize;
    /// Words of a row that a line meets.
    const WORDS: usize;
    /// What 64 bytes of the panel are.
    type Line;
    /// Sixteen sums.
    type Sum: Copy;

    /// No sum yet.
    fn zero(simd: S) -> Self::Sum;
    /// Adds the products of a line with N rows.
    fn step<const N: usize>(simd: S, line: &Self::Line, x: &[[u32; N]], sum: &mut [Self::Sum; N]);
    /// The sums as numbers.
    fn floats(simd: S, sum: Self::Sum) -> S::F;
}

/// float32: one input per line.
pub(crate) struct Singles;

impl<S: Simd> Weights<S> for Singles {
    const INPUTS: usize = 1;
    const WORDS: usize = 1;
    type Line = Floats;
    type Sum = S::F;

    #[inline(always)]
    fn zero(simd: S) -> Self::Sum {
        simd.splat(0.0)
    }

    #[inline(always)]
    fn step<const N: usize>(simd: S, line: &Floats, x: &[[u32; N]], sum: &mut [S::F; N]) {
        let w = simd.load(line);
        for n in 0..N {
            sum[n] = simd.mul_add(w, simd.splat(f32::from_bits(x[0][n])), sum[n]);
        }
    }

    #[inline(always)]
    fn floats(_: S, sum: Self::Sum) -> S::F {
        sum
    }
}

/// bfloat16: a pair of inputs a line.
pub(crate) struct Halves;

impl<S: Simd> Weights<S> for Halves {
    const INPUTS: usize = 2;
    const WORDS: usize = 1;
    type Line = Line<u16, 32>;
    type Sum = S::F;

    #[inline(always)]
    fn zero(simd: S) -> Self::Sum {
        simd.splat(0.0)
    }

    #[inline(always)]
    fn step<const N: usize>(simd: S, line: &Self::Line, x: &[[u32; N]], sum: &mut [S::F; N]) {
        let w = simd.load_bf16(&line.0);
        for n in 0..N {
            sum[n] = simd.dot_bf16(w, x[0][n], sum[n]);
        }
    }

    #[inline(always)]
    fn floats(_: S, sum: Self::Sum) -> S::F {
        sum
    }
}

/// int8: two pairs of inputs a line.
pub(crate) struct Bytes;

impl<S: Simd> Weights<S> for Bytes {
    const INPUTS: usize = 4;
    const WORDS: usize = 2;
    type Line = Line<i8, 64>;
    type Sum = S::I;

    #[inline(always)]
    fn zero(simd: S) -> Self::Sum {
        simd.ints()
    }

    #[inline(always)]
    fn step<const N: usize>(simd: S, line: &Self::Line, x: &[[u32; N]], sum: &mut [S::I; N]) {
        let (halves, _) = line.0.as_chunks::<32>();
        for (half, x) in halves.iter().zip(x) {
            let w = simd.load_int8(half);
            for n in 0..N {
                sum[n] = simd.dot_int8(w, x[n], sum[n]);
            }
        }
    }

    #[inline(always)]
    fn floats(simd: S, sum: Self::Sum) -> S::F {
        simd.float(sum)
    }
}

/// Panels x N rows, P panels at a time and the rest one by one.
#[inline(always)]
pub(crate) fn tiles<S: Simd, W: Weights<S>, const P: usize, const N: usize>(
    simd: S,
    lines: &[W::Line],
    steps: usize,
    x: &[u32],
    out: &mut Tile,
) {
    let panel = |number| &lines[number * steps..][..steps];
    scattered::<S, W, P, N>(simd, lines.len() / steps, panel, steps, x, out);
}

/// `tiles` of `count` panels that do not follow one another.
#[inline(always)]
pub(crate) fn scattered<'a, S: Simd, W: Weights<S, Line: 'a>, const P: usize, const N: usize>(
    simd: S,
    count: usize,
    panel: impl Fn(usize) -> &'a [W::Line],
    steps: usize,
    x: &[u32],
    out: &mut Tile,
) {
    let mut at = 0;
    while at + P <= count {
        tile::<S, W, P, N>(simd, |p| panel(at + p), steps, x, &mut out[at..]);
        at += P;
    }
    if P > 1 {
        while at < count {
            tile::<S, W, 1, N>(simd, |_| panel(at), steps, x, &mut out[at..]);
            at += 1;
        }
    }
}

/// P panels of `steps` lines x N rows: `out[p][n]`.
#[inline(always)]
fn tile<'a, S: Simd, W: Weights<S, Line: 'a>, const P: usize, const N: usize>(
    simd: S,
    panel: impl Fn(usize) -> &'a [W::Line],
    steps: usize,
    x: &[u32],
    out: &mut [[Floats; GROUP]],
) {
    let x = &x.as_chunks::<N>().0[..steps * W::WORDS];
    let mut panels = [&panel(0)[..steps]; P];
    for (p, lines) in panels.iter_mut().enumerate() {
        *lines = &panel(p)[..steps];
    }
    let mut sums = [[W::zero(simd); N]; P];
    for k in 0..steps {
        let x = &x[k * W::WORDS..][..W::WORDS];
        for p in 0..P {
            W::step(simd, &panels[p][k], x, &mut sums[p]);
        }
    }
    for p in 0..P {
        for n in 0..N {
            simd.store(W::floats(simd, sums[p][n]), &mut out[p][n]);
        }
    }
}
