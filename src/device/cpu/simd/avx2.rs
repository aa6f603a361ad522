//! The vector operations in AVX2 and FMA, and the switch's tile.
//!
//! **Invariant:** a value of [`Avx2`] proves that the machine has both.

#![allow(unsafe_code, reason = "vector intrinsics")]

use std::arch::x86_64::*;

use super::{CHUNK, Kernel, Simd};
use crate::device::cpu::delta_apply::{ByKind, RowBlock};
use crate::lattice::{Lane, Sign, SignedDelta};

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
    type I = __m256i;
    const PARTS: usize = 2;
    const PAIRS: usize = 8;
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
    fn load_pairs(self, pairs: &[i16; 2 * CHUNK], part: usize) -> [__m256; 2] {
        let half = &pairs[part * CHUNK..][..CHUNK];
        // SAFETY: `self` proves the features; the half is 8 pairs, 32 bytes.
        unsafe {
            let both = _mm256_loadu_si256(half.as_ptr().cast());
            let low = _mm256_srai_epi32::<16>(_mm256_slli_epi32::<16>(both));
            [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(_mm256_srai_epi32::<16>(both))]
        }
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
    fn prefetch<T>(self, chunk: &[T; CHUNK], ahead: usize) {
        // SAFETY: a prefetch may name any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(chunk.as_ptr().wrapping_add(ahead).cast()) }
    }

    #[inline(always)]
    fn fma1(self, a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    fn splat_pair(self, pair: [i16; 2]) -> __m256i {
        // SAFETY: `self` proves the features.
        unsafe { _mm256_set1_epi32(bytemuck::cast(pair)) }
    }

    #[inline(always)]
    fn dot_pairs(self, sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: `self` proves the features.
        unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)) }
    }

    #[inline(always)]
    fn delta_tiles(self, block: &mut RowBlock, deltas: &ByKind) {
        // SAFETY: `self` proves the features.
        unsafe { delta_tiles(block, deltas) }
    }
}

/// Applies the factored and dense deltas to a block, 2 rows × 1 panel of 32 columns at a time: 8
/// vectors of sums and 4 of weights, beside those of the factors, in 16 registers.
#[target_feature(enable = "avx2")]
fn delta_tiles(block: &mut RowBlock, deltas: &ByKind) {
    let (rows, panels, width) = (block.rows(), block.lanes_per_row, deltas.panels_at_a_time());
    for first in (0..panels).step_by(width) {
        for i in (0..rows).step_by(2) {
            for panel in first..(first + width).min(panels) {
                if i + 2 <= rows {
                    delta_tile::<2>(block, deltas, i, panel)
                } else {
                    delta_tile::<1>(block, deltas, i, panel)
                }
            }
        }
    }
}

/// Both halves of a lane.
#[target_feature(enable = "avx2")]
fn load_lane(lane: &Lane) -> [__m256i; 2] {
    let at: *const __m256i = std::ptr::from_ref(lane).cast();
    // SAFETY: a lane is two vectors of 32 bytes.
    unsafe { [_mm256_load_si256(at), _mm256_load_si256(at.add(1))] }
}

#[target_feature(enable = "avx2")]
fn add_lane(n: &mut [__m256i; 2], q: [__m256i; 2], sign: Sign) {
    for (n, q) in n.iter_mut().zip(q) {
        *n = match sign {
            Sign::Add => _mm256_add_epi16(*n, q),
            Sign::Subtract => _mm256_sub_epi16(*n, q),
        };
    }
}

/// `R` rows × one panel: weights stay in registers while every delta is added. `vpmaddwd` multiplies
/// two ranks at once.
#[target_feature(enable = "avx2")]
fn delta_tile<const R: usize>(block: &mut RowBlock, deltas: &ByKind, i: usize, panel: usize) {
    let (stride, row) = (block.lanes_per_row, block.first_row + i);
    let mut n: [[__m256i; 2]; R] =
        std::array::from_fn(|r| load_lane(&block.lanes[(i + r) * stride + panel]));
    for &SignedDelta { delta: factors, sign } in &deltas.factors {
        let a = &factors.a[panel * factors.pairs * 2..][..factors.pairs * 2];
        let b: [(&[Lane], _); R] = std::array::from_fn(|r| factors.b_lanes(row + r));
        let shift: [i32; R] = std::array::from_fn(|r| i32::from(factors.shift[row + r]));
        // Even and odd columns, each in two halves.
        let mut sums: [[[__m256i; 2]; 2]; R] =
            std::array::from_fn(|r| [[_mm256_set1_epi32((1 << shift[r]) >> 1); 2]; 2]);
        for (pair, lanes) in a.chunks_exact(2).enumerate() {
            let a = [load_lane(&lanes[0]), load_lane(&lanes[1])];
            for r in 0..R {
                let (b, at) = b[r];
                let b = _mm256_set1_epi32(bytemuck::cast(at.map(|at| b[pair].0[at])));
                for (sums, a) in sums[r].iter_mut().zip(&a) {
                    for (sum, &a) in sums.iter_mut().zip(a) {
                        *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(a, b));
                    }
                }
            }
        }
        for r in 0..R {
            let shift = _mm256_set1_epi32(shift[r]);
            let q = std::array::from_fn(|half| {
                let even = _mm256_srav_epi32(sums[r][0][half], shift);
                let odd = _mm256_slli_epi32::<16>(_mm256_srav_epi32(sums[r][1][half], shift));
                _mm256_blend_epi16::<0xAA>(even, odd)
            });
            add_lane(&mut n[r], q, sign);
        }
    }
    for r in 0..R {
        for &SignedDelta { delta: dense, sign } in &deltas.dense {
            add_lane(&mut n[r], load_lane(&dense[(row + r) * stride + panel]), sign);
        }
        let at: *mut __m256i =
            std::ptr::from_mut(&mut block.lanes[(i + r) * stride + panel]).cast();
        // SAFETY: a lane is two vectors of 32 bytes.
        unsafe {
            _mm256_store_si256(at, n[r][0]);
            _mm256_store_si256(at.add(1), n[r][1]);
        }
    }
}
