//! The vectors of x86-64: AVX-512 with its dot products of bfloat16 and int16, and AVX2.
//!
//! All `unsafe` of this crate but one advice about memory (`memory.rs`) is in this file, and all for
//! one reason: the compiler cannot know that the machine has an instruction. A value of [`Avx512`] or [`Avx2`] exists only where `detect` has
//! found them. What it buys is the decoding column of `benches/bench_sample.py`, where
//! `--simd portable` runs the same loops without this file.
#![expect(unsafe_code, reason = "instructions that are detected at run time")]

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm256_loadu_si256, _mm512_add_ps, _mm512_cvtepi8_epi16,
    _mm512_cvtepi32_ps, _mm512_div_ps, _mm512_dpbf16_ps, _mm512_dpwssd_epi32, _mm512_fmadd_ps,
    _mm512_fnmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_max_ps, _mm512_min_ps,
    _mm512_mul_ps, _mm512_roundscale_ps, _mm512_scalef_ps, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_si512, _mm512_storeu_ps, _mm512_sub_ps,
};
use std::mem::transmute;

use crate::simd::{Floats, Portable, Simd, Task};

/// The proof that the machine has AVX-512 with BF16 and VNNI.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

/// The proof that the machine has AVX2 and FMA.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx512 {
    /// The proof, if the machine has the instructions.
    pub(crate) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx512bf16"))
        .then_some(Self(()))
    }

    /// Runs a task, compiled for these instructions.
    pub(crate) fn enter<T: Task>(self, task: T) -> T::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16,avx2,fma")]
        fn inside<T: Task>(simd: Avx512, task: T) -> T::Output {
            task.run(simd)
        }
        // SAFETY: `self` is the proof that the machine has them.
        unsafe { inside(self, task) }
    }
}

impl Avx2 {
    /// The proof, if the machine has the instructions.
    pub(crate) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
    }
}

/// Runs a task, compiled for AVX2 and FMA.
pub(crate) fn run_avx2<T: Task>(_: Avx2, task: T) -> T::Output {
    #[target_feature(enable = "avx2,fma")]
    fn inside<T: Task>(task: T) -> T::Output {
        task.run(Portable::<true>)
    }
    // SAFETY: the first argument is the proof that the machine has them.
    unsafe { inside(task) }
}

/// Calls an intrinsic: the one `unsafe` of all the methods below.
macro_rules! has {
    ($call:expr) => {
        // SAFETY: `self` is the proof that the machine has the instruction. Those with a pointer
        // get that of a reference to as many bytes as they move, and need no alignment.
        unsafe { $call }
    };
}

impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    type W = __m512i;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        has!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn load(self, x: &Floats) -> Self::F {
        has!(_mm512_loadu_ps(x.0.as_ptr()))
    }

    #[inline(always)]
    fn store(self, x: Self::F, into: &mut Floats) {
        has!(_mm512_storeu_ps(into.0.as_mut_ptr(), x));
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        has!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        has!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        has!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        has!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        has!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        // Of a NaN and a number the instruction returns its second operand.
        has!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn exp(self, x: Self::F) -> Self::F {
        // e^x = 2^n e^r with |r| <= ln 2 / 2, where ln 2 is taken in two parts so that r is exact,
        // and e^r is the polynomial of Cephes (expf).
        const POLYNOMIAL: [f32; 6] = [
            1.987_569_1e-4,
            1.398_199_9e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            0.166_666_66,
            0.5,
        ];
        let s = |x: f32| self.splat(x);
        has!({
            // Both keep a NaN, for it is their second operand.
            let x = _mm512_min_ps(s(128.0), _mm512_max_ps(s(-128.0), x));
            let n = _mm512_roundscale_ps::<8>(self.mul(x, s(std::f32::consts::LOG2_E)));
            let r = _mm512_fnmadd_ps(n, s(0.693_359_4), x);
            let r = _mm512_fnmadd_ps(n, s(-2.121_944_4e-4), r);
            let mut y = s(POLYNOMIAL[0]);
            for c in &POLYNOMIAL[1..] {
                y = self.mul_add(y, r, s(*c));
            }
            let y = self.mul_add(self.mul(r, r), y, self.add(r, s(1.0)));
            _mm512_scalef_ps(y, n)
        })
    }

    #[inline(always)]
    fn load_bf16(self, x: &[u16; 32]) -> Self::B {
        has!(_mm512_loadu_si512(x.as_ptr().cast()))
    }

    #[inline(always)]
    fn dot_bf16(self, w: Self::B, x: u32, sum: Self::F) -> Self::F {
        has!({
            let x = _mm512_set1_epi32(x as i32);
            _mm512_dpbf16_ps(
                sum,
                transmute::<__m512i, __m512bh>(w),
                transmute::<__m512i, __m512bh>(x),
            )
        })
    }

    #[inline(always)]
    fn ints(self) -> Self::I {
        has!(_mm512_setzero_si512())
    }

    #[inline(always)]
    fn load_int8(self, x: &[i8; 32]) -> Self::W {
        has!(_mm512_cvtepi8_epi16(_mm256_loadu_si256(x.as_ptr().cast())))
    }

    #[inline(always)]
    fn dot_int8(self, w: Self::W, x: u32, sum: Self::I) -> Self::I {
        has!(_mm512_dpwssd_epi32(sum, w, _mm512_set1_epi32(x as i32)))
    }

    #[inline(always)]
    fn float(self, x: Self::I) -> Self::F {
        has!(_mm512_cvtepi32_ps(x))
    }
}
