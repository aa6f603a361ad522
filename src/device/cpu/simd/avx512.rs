//! The vector operations in AVX-512, and the switch's tile.
//!
//! **Invariant:** a value of [`Avx512`] proves that the machine has every feature named in
//! [`Avx512::detect`].

#![allow(unsafe_code, reason = "vector intrinsics")]
#![allow(clippy::needless_range_loop, reason = "several register arrays go by the same row")]

use std::arch::x86_64::*;

use super::{CHUNK, Kernel, Simd};
use crate::device::cpu::delta_apply::{ByKind, RowBlock};
use crate::lattice::{Factors, Lane, PANEL_ROWS, Sign, SignedDelta};

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
    type I = __m512i;
    const PARTS: usize = 1;
    const PAIRS: usize = 16;
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
    fn load_pairs(self, pairs: &[i16; 2 * CHUNK], _part: usize) -> [__m512; 2] {
        // SAFETY: `self` proves the features; 16 pairs are 64 bytes.
        unsafe {
            let both = _mm512_loadu_si512(pairs.as_ptr().cast());
            let low = _mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(both));
            [_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(_mm512_srai_epi32::<16>(both))]
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
    fn prefetch<T>(self, chunk: &[T; CHUNK], ahead: usize) {
        // SAFETY: a prefetch may name any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(chunk.as_ptr().wrapping_add(ahead).cast()) }
    }

    #[inline(always)]
    fn fma1(self, a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    fn splat_pair(self, pair: [i16; 2]) -> __m512i {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_set1_epi32(bytemuck::cast(pair)) }
    }

    #[inline(always)]
    fn dot_pairs(self, sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` proves the features.
        unsafe { _mm512_dpwssd_epi32(sum, a, b) }
    }

    #[inline(always)]
    fn delta_tiles(self, block: &mut RowBlock, deltas: &ByKind) {
        // SAFETY: `self` proves the features.
        unsafe { delta_tiles(block, deltas) }
    }
}

/// A chunk of factors as one group of rows sees it: pointers, since a check of bounds in the
/// innermost loop would cost as much as a product.
struct Chunk<const R: usize> {
    a: *const Lane,
    /// The first pair of the first row; rows follow one another, pairs every [`PANEL_ROWS`].
    b: *const i32,
    half: [i32; R],
    shift: [i32; R],
    full_shift: bool,
    pairs: usize,
    subtract: bool,
}

/// Applies the factored and dense deltas to a block, 8 rows × 1 panel of 32 columns at a time: 16
/// vectors of sums and 8 of weights, beside those of the factors, in 32 registers.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn delta_tiles(block: &mut RowBlock, deltas: &ByKind) {
    let (rows, panels, width) = (block.rows(), block.lanes_per_row, deltas.panels_at_a_time());
    let (mut prepared, mut rest) = (Vec::with_capacity(deltas.factors.len()), Vec::new());
    for first in (0..panels).step_by(width) {
        let range = (first, (first + width).min(panels));
        for i in (0..rows / 8 * 8).step_by(8) {
            delta_rows::<8>(block, deltas, &mut prepared, i, range);
        }
        for i in rows / 8 * 8..rows {
            delta_rows::<1>(block, deltas, &mut rest, i, range);
        }
    }
}

/// Rows `i .. i + R` of the block, panels `from .. to`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn delta_rows<const R: usize>(
    block: &mut RowBlock,
    deltas: &ByKind,
    prepared: &mut Vec<Chunk<R>>,
    i: usize,
    (from, to): (usize, usize),
) {
    let row = block.first_row + i;
    prepared.clear();
    let panels = block.lanes_per_row;
    prepared.extend(deltas.factors.iter().map(|term| prepare(term, row, panels)));
    for panel in from..to {
        delta_tile::<R>(block, prepared, deltas, i, panel);
    }
}

fn prepare<const R: usize>(term: &SignedDelta<&Factors>, row: usize, panels: usize) -> Chunk<R> {
    let SignedDelta { delta: factors, sign } = *term;
    assert!(factors.a.len() >= panels * factors.pairs * 2, "A' is shorter than its matrix");
    let (b, at) = factors.b_lanes(row);
    assert!(at[0] / 2 + R <= PANEL_ROWS, "a group of rows is in two panels");
    let shift: [i32; R] = std::array::from_fn(|r| i32::from(factors.shift[row + r]));
    Chunk {
        a: factors.a.as_ptr(),
        b: b.as_ptr().cast::<i32>().wrapping_add(at[0] / 2),
        half: shift.map(|s| (1 << s) >> 1),
        shift,
        full_shift: shift == [16; R],
        pairs: factors.pairs,
        subtract: sign == Sign::Subtract,
    }
}

/// `R` rows × one panel: weights stay in registers while every delta is added. `vpdpwssd` multiplies
/// and adds two ranks at once.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn delta_tile<const R: usize>(
    block: &mut RowBlock,
    prepared: &[Chunk<R>],
    deltas: &ByKind,
    i: usize,
    panel: usize,
) {
    let stride = block.lanes_per_row;
    let first = i * stride + panel;
    assert!(first + (R - 1) * stride < block.lanes.len());
    let base = block.lanes.as_mut_ptr();
    // SAFETY: the assertion above bounds every `first + r * stride`.
    let at = |r: usize| unsafe { base.add(first + r * stride) };
    // SAFETY: as above; a lane is 64 bytes.
    let mut n: [__m512i; R] = std::array::from_fn(|r| unsafe { _mm512_load_si512(at(r).cast()) });
    for r in 0..R {
        // The next group's same columns; a prefetch may point anywhere.
        _mm_prefetch::<_MM_HINT_T0>(base.wrapping_add(first + (R + r) * stride).cast());
    }
    for chunk in prepared {
        let mut sums: [[__m512i; 2]; R] =
            std::array::from_fn(|r| [_mm512_set1_epi32(chunk.half[r]); 2]);
        let pairs = chunk.pairs;
        for pair in 0..pairs {
            let a: [__m512i; 2] = std::array::from_fn(|parity| {
                // SAFETY: `prepare` asserted that `A'` holds `pairs` × 2 lanes for every panel of
                // the matrix.
                unsafe {
                    _mm512_load_si512(chunk.a.add((panel * pairs + pair) * 2 + parity).cast())
                }
            });
            for r in 0..R {
                // SAFETY: `prepare` took the panel's `pairs` lanes and asserted that they hold `R`
                // rows from the first one on.
                let b = _mm512_set1_epi32(unsafe { *chunk.b.add(pair * PANEL_ROWS + r) });
                for parity in 0..2 {
                    sums[r][parity] = _mm512_dpwssd_epi32(sums[r][parity], a[parity], b);
                }
            }
        }
        if !chunk.full_shift {
            // Brings `Q` to the upper half, where a shift of 16 leaves it.
            for r in 0..R {
                let shift = _mm512_set1_epi32(chunk.shift[r]);
                for parity in 0..2 {
                    sums[r][parity] =
                        _mm512_slli_epi32::<16>(_mm512_srav_epi32(sums[r][parity], shift));
                }
            }
        }
        for r in 0..R {
            let even = _mm512_srli_epi32::<16>(sums[r][0]);
            let q = _mm512_mask_blend_epi16(0xAAAA_AAAA, even, sums[r][1]);
            n[r] =
                if chunk.subtract { _mm512_sub_epi16(n[r], q) } else { _mm512_add_epi16(n[r], q) };
        }
    }
    for &SignedDelta { delta: dense, sign } in &deltas.dense {
        for r in 0..R {
            let lane = &dense[(block.first_row + i + r) * stride + panel];
            // SAFETY: a lane is 64 bytes.
            let q = unsafe { _mm512_load_si512(std::ptr::from_ref(lane).cast()) };
            n[r] = match sign {
                Sign::Add => _mm512_add_epi16(n[r], q),
                Sign::Subtract => _mm512_sub_epi16(n[r], q),
            };
        }
    }
    for r in 0..R {
        // SAFETY: as at the load.
        unsafe { _mm512_store_si512(at(r).cast(), n[r]) };
    }
}
