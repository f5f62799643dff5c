//! Sixteen lanes of float32: what the loops of this crate are written in.
//!
//! A loop is a [`Task`], generic over [`Simd`], and [`crate::Level`] compiles it once for each
//! instruction set: [`Portable`] for any machine (on ARM the compiler makes NEON of it), the same
//! with AVX2 and FMA, and [`Avx512`](crate::avx512::Avx512). The level is found at run time.

/// Numbers in a vector.
pub(crate) const LANES: usize = 16;

/// An array that begins at a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line<T, const N: usize>(pub [T; N]);

/// Sixteen floats.
pub(crate) type Floats = Line<f32, LANES>;

/// Sixteen zeros.
pub(crate) const ZEROS: Floats = Line([0.0; LANES]);

/// A loop that is compiled for each instruction set.
pub(crate) trait Task {
    /// What the loop returns.
    type Output;

    /// Runs the loop. Implementations must be `#[inline(always)]`, and so must all that they call
    /// with `simd`: only what is inlined is compiled for the instruction set.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Vectors of one instruction set.
///
/// A value of the type is the proof that the machine has the instructions.
pub(crate) trait Simd: Copy {
    /// Sixteen float32.
    type F: Copy;
    /// Sixteen int32.
    type I: Copy;
    /// Sixteen pairs of bfloat16.
    type B: Copy;
    /// Sixteen pairs of int16.
    type W: Copy;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, x: &Floats) -> Self::F;
    fn store(self, x: Self::F, into: &mut Floats);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// a b + c.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger of each pair; a NaN in `b` stays.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// e^x to 2 units of the last place; below -87 it may be 0.
    fn exp(self, x: Self::F) -> Self::F;

    fn load_bf16(self, x: &[u16; 32]) -> Self::B;
    /// Adds the products of both numbers of each pair with the two in `x`.
    fn dot_bf16(self, w: Self::B, x: u32, sum: Self::F) -> Self::F;

    fn ints(self) -> Self::I;
    fn load_int8(self, x: &[i8; 32]) -> Self::W;
    /// Adds the products of both numbers of each pair with the two int16 in `x`.
    fn dot_int8(self, w: Self::W, x: u32, sum: Self::I) -> Self::I;
    fn float(self, x: Self::I) -> Self::F;

    /// Sum of the lanes, in halves: an order that no instruction set changes.
    #[inline(always)]
    fn total(self, x: Self::F) -> f32 {
        self.fold(x, |a, b| a + b)
    }

    /// The largest lane; NaN if any is.
    #[inline(always)]
    fn largest(self, x: Self::F) -> f32 {
        self.fold(x, |a, b| if a > b || a.is_nan() { a } else { b })
    }

    #[inline(always)]
    fn fold(self, x: Self::F, with: impl Fn(f32, f32) -> f32) -> f32 {
        let mut lanes = ZEROS;
        self.store(x, &mut lanes);
        let Line(mut lanes) = lanes;
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                lanes[i] = with(lanes[i], lanes[i + half]);
            }
            half /= 2;
        }
        lanes[0]
    }
}

/// Two numbers of 16 bits, the first in the low half.
pub(crate) fn pair(first: u16, second: u16) -> u32 {
    u32::from(first) | u32::from(second) << 16
}

/// The nearest bfloat16, of two equally near ones the even; NaN stays NaN.
pub(crate) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// A bfloat16 as float32.
pub(crate) fn from_bf16(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// Arrays, which the compiler turns into whatever vectors it may use.
///
/// With `FMA`, products are added with one rounding: for instruction sets that have it, because
/// elsewhere it is a call of the system's library.
#[derive(Clone, Copy)]
pub(crate) struct Portable<const FMA: bool>;

#[inline(always)]
fn each<T: Copy, U: Copy>(a: [T; LANES], b: [T; LANES], f: impl Fn(T, T) -> U) -> [U; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl<const FMA: bool> Simd for Portable<FMA> {
    type F = [f32; LANES];
    type I = [i32; LANES];
    type B = [u16; 32];
    type W = [i8; 32];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, x: &Floats) -> Self::F {
        x.0
    }

    #[inline(always)]
    fn store(self, x: Self::F, into: &mut Floats) {
        into.0 = x;
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| {
            if FMA {
                a[i].mul_add(b[i], c[i])
            } else {
                a[i] * b[i] + c[i]
            }
        })
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        each(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn exp(self, x: Self::F) -> Self::F {
        x.map(f32::exp)
    }

    #[inline(always)]
    fn load_bf16(self, x: &[u16; 32]) -> Self::B {
        *x
    }

    #[inline(always)]
    fn dot_bf16(self, w: Self::B, x: u32, sum: Self::F) -> Self::F {
        // The upper number first, as the instruction of AVX-512 does.
        let half = |sum: Self::F, at: usize, x: f32| {
            let w = std::array::from_fn(|i| from_bf16(w[2 * i + at]));
            self.mul_add(w, self.splat(x), sum)
        };
        let upper = half(sum, 1, from_bf16((x >> 16) as u16));
        half(upper, 0, from_bf16(x as u16))
    }

    #[inline(always)]
    fn ints(self) -> Self::I {
        [0; LANES]
    }

    #[inline(always)]
    fn load_int8(self, x: &[i8; 32]) -> Self::W {
        *x
    }

    #[inline(always)]
    fn dot_int8(self, w: Self::W, x: u32, sum: Self::I) -> Self::I {
        let (first, second) = (
            i32::from(x as u16 as i16),
            i32::from((x >> 16) as u16 as i16),
        );
        std::array::from_fn(|i| {
            sum[i] + i32::from(w[2 * i]) * first + i32::from(w[2 * i + 1]) * second
        })
    }

    #[inline(always)]
    fn float(self, x: Self::I) -> Self::F {
        x.map(|x| x as f32)
    }
}
