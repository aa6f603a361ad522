//! The tile with AVX-512: 8 rows × 1 panel of 32 columns; `vpdpwssd` multiplies and adds two ranks
//! at once.
#![allow(unsafe_code, reason = "vector loads and stores take pointers")]
#![allow(clippy::needless_range_loop, reason = "several register arrays go by the same row")]

use std::arch::x86_64::*;

use super::{RowBlock, Terms};
use crate::lattice::{Factors, Lane, Sign};

/// A chunk of factors as one group of rows sees it.
struct Term<const R: usize> {
    a: *const Lane,
    b: [*const i32; R],
    half: [i32; R],
    shift: [i32; R],
    full_shift: bool,
    pairs: usize,
    subtract: bool,
}

/// Applies the factored and dense terms to a block.
///
/// # Safety
/// The processor must have AVX-512 F, BW and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn apply(block: &mut RowBlock, terms: &Terms) {
    let (rows, panels, width) = (block.rows(), block.lanes_per_row, terms.panels_at_a_time());
    let (mut prepared, mut rest) = (Vec::with_capacity(terms.factors.len()), Vec::new());
    for first in (0..panels).step_by(width) {
        let range = (first, (first + width).min(panels));
        for i in (0..rows / 8 * 8).step_by(8) {
            group::<8>(block, terms, &mut prepared, i, range);
        }
        for i in rows / 8 * 8..rows {
            group::<1>(block, terms, &mut rest, i, range);
        }
    }
}

/// Rows `i .. i + R` of the block, panels `from .. to`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn group<const R: usize>(
    block: &mut RowBlock,
    terms: &Terms,
    prepared: &mut Vec<Term<R>>,
    i: usize,
    (from, to): (usize, usize),
) {
    let row = block.first_row + i;
    prepared.clear();
    let panels = block.lanes_per_row;
    prepared
        .extend(terms.factors.iter().map(|&(factors, sign)| prepare(factors, sign, row, panels)));
    for panel in from..to {
        tile::<R>(block, prepared, terms, i, panel);
    }
}

fn prepare<const R: usize>(factors: &Factors, sign: Sign, row: usize, panels: usize) -> Term<R> {
    assert!(factors.a.len() >= panels * factors.pairs * 2, "A' is shorter than its matrix");
    let shift: [i32; R] = std::array::from_fn(|r| i32::from(factors.shift[row + r]));
    Term {
        a: factors.a.as_ptr(),
        b: std::array::from_fn(|r| factors.b_row(row + r).as_ptr().cast()),
        half: shift.map(|s| (1 << s) >> 1),
        shift,
        full_shift: shift == [16; R],
        pairs: factors.pairs,
        subtract: sign == Sign::Subtract,
    }
}

/// `R` rows × one panel: weights stay in registers while every term is added.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn tile<const R: usize>(
    block: &mut RowBlock,
    prepared: &[Term<R>],
    terms: &Terms,
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
    for term in prepared {
        let mut sums: [[__m512i; 2]; R] =
            std::array::from_fn(|r| [_mm512_set1_epi32(term.half[r]); 2]);
        let pairs = term.pairs;
        for pair in 0..pairs {
            let a: [__m512i; 2] = std::array::from_fn(|parity| {
                // SAFETY: `prepare` asserted that `A'` holds `pairs` × 2 lanes for every panel of
                // the matrix.
                unsafe { _mm512_load_si512(term.a.add((panel * pairs + pair) * 2 + parity).cast()) }
            });
            for r in 0..R {
                // SAFETY: a row of `B'` holds `pairs` pairs of i16.
                let b = _mm512_set1_epi32(unsafe { term.b[r].add(pair).read_unaligned() });
                for parity in 0..2 {
                    sums[r][parity] = _mm512_dpwssd_epi32(sums[r][parity], a[parity], b);
                }
            }
        }
        if !term.full_shift {
            // Brings `Q` to the upper half, where a shift of 16 leaves it.
            for r in 0..R {
                let shift = _mm512_set1_epi32(term.shift[r]);
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
                if term.subtract { _mm512_sub_epi16(n[r], q) } else { _mm512_add_epi16(n[r], q) };
        }
    }
    for &(dense, sign) in &terms.dense {
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
