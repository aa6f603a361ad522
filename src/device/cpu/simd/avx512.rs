//! The vector operations in AVX-512.
//!
//! **Invariant:** a value of [`Avx512`] proves that the machine has every feature named in
//! [`Avx512::detect`].

#![allow(unsafe_code, reason = "vector intrinsics")]

use std::arch::x86_64::*;

use super::{CHUNK, Kernel, Simd};

/// Proof of the features, and their operations.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    /// The proof, if this machine has AVX-512 F, BW, DQ, VL and VNNI.
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma"))
        .then_some(Self(()))
    }

    /// Runs `kernel` in a function that may use the features.
    pub(super) fn run<K: Kernel>(self, kernel: K) {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
        fn inner<K: Kernel>(simd: Avx512, kernel: K) {
            kernel.run(simd);
        }
        // SAFETY: `self` proves the features.
        unsafe { inner(self, kernel) }
    }
}

impl Simd for Avx512 {
    type V = __m512;
    const PARTS: usize = 1;
    const TOKENS: usize = 6;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, chunk: &[f32; CHUNK], _part: usize) -> __m512 {
        // SAFETY: `self` proves the features; the chunk is 16 values.
        unsafe { _mm512_loadu_ps(chunk.as_ptr()) }
    }

    #[inline(always)]
    fn load_i16(self, chunk: &[i16; CHUNK], _part: usize) -> __m512 {
        // SAFETY: `self` proves the features; the chunk is 16 values, 32 bytes.
        unsafe {
            _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256(chunk.as_ptr().cast())))
        }
    }

    #[inline(always)]
    fn store(self, value: __m512, chunk: &mut [f32; CHUNK], _part: usize) {
        // SAFETY: `self` proves the features; the chunk is 16 values.
        unsafe { _mm512_storeu_ps(chunk.as_mut_ptr(), value) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn sum4(self, [a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        // SAFETY: `self` proves the features; the array is four values.
        unsafe {
            // Quarters of two vectors are folded at once, until each quarter holds one vector's
            // sums.
            let ab = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0x44>(a, b),
                _mm512_shuffle_f32x4::<0xEE>(a, b),
            );
            let cd = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0x44>(c, d),
                _mm512_shuffle_f32x4::<0xEE>(c, d),
            );
            let all = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0x88>(ab, cd),
                _mm512_shuffle_f32x4::<0xDD>(ab, cd),
            );
            let all = _mm512_add_ps(all, _mm512_permute_ps::<0b01_00_11_10>(all));
            let all = _mm512_add_ps(all, _mm512_permute_ps::<0b10_11_00_01>(all));
            let picked = _mm512_permutexvar_ps(
                _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0),
                all,
            );
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), _mm512_castps512_ps128(picked));
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
