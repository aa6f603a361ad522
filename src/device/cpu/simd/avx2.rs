//! The vector operations in AVX2 and FMA.
//!
//! **Invariant:** a value of [`Avx2`] proves that the machine has both.

#![allow(unsafe_code, reason = "vector intrinsics")]

use std::arch::x86_64::*;

use super::{CHUNK, Kernel, Simd};

/// Proof of the features, and their operations.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    /// The proof, if this machine has AVX2 and FMA.
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
    }

    /// Runs `kernel` in a function that may use the features.
    pub(super) fn run<K: Kernel>(self, kernel: K) {
        #[target_feature(enable = "avx2,fma")]
        fn inner<K: Kernel>(simd: Avx2, kernel: K) {
            kernel.run(simd);
        }
        // SAFETY: `self` proves the features.
        unsafe { inner(self, kernel) }
    }
}

impl Simd for Avx2 {
    type V = __m256;
    const PARTS: usize = 2;
    const TOKENS: usize = 3;

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        // SAFETY: `self` proves the features.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, chunk: &[f32; CHUNK], part: usize) -> __m256 {
        let half = &chunk[part * 8..][..8];
        // SAFETY: `self` proves the features; the half is 8 values.
        unsafe { _mm256_loadu_ps(half.as_ptr()) }
    }

    #[inline(always)]
    fn load_i16(self, chunk: &[i16; CHUNK], part: usize) -> __m256 {
        let half = &chunk[part * 8..][..8];
        // SAFETY: `self` proves the features; the half is 8 values, 16 bytes.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128(half.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn store(self, value: __m256, chunk: &mut [f32; CHUNK], part: usize) {
        let half = &mut chunk[part * 8..][..8];
        // SAFETY: `self` proves the features; the half is 8 values.
        unsafe { _mm256_storeu_ps(half.as_mut_ptr(), value) }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves the features.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: `self` proves the features.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn sum4(self, [a, b, c, d]: [__m256; 4]) -> [f32; 4] {
        // SAFETY: `self` proves the features; the array is four values.
        unsafe {
            let all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
            let mut sums = [0.0; 4];
            let halves = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps::<1>(all));
            _mm_storeu_ps(sums.as_mut_ptr(), halves);
            sums
        }
    }

    #[inline(always)]
    fn prefetch(self, chunk: &[i16; CHUNK], ahead: usize) {
        // SAFETY: a prefetch may name any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(chunk.as_ptr().wrapping_add(ahead).cast()) }
    }

    #[inline(always)]
    fn fma1(self, a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}
