//! The tile with AVX-512: 4 rows × 2 panels of 32 columns; `vpdpwssd` multiplies and adds two ranks at once.
#![allow(unsafe_code, reason = "vector loads and stores take pointers")]

use std::arch::x86_64::*;

use super::{RowBlock, Terms};
use crate::lattice::{Factors, Lane, Sign};

/// A chunk of factors as one group of rows sees it.
struct Term<'a, const R: usize> {
    a: *const Lane,
    b: [*const i32; R],
    half: [i32; R],
    shift: [i32; R],
    full_shift: bool,
    factors: &'a Factors,
    subtract: bool,
}

/// Applies the factored and dense terms to a block.
///
/// # Safety
/// The processor must have AVX-512 F, BW and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn apply<'a>(block: &mut RowBlock, terms: &Terms<'a>) {
    let (rows, panels, width) = (block.rows(), block.lanes_per_row, terms.panels_at_a_time());
    let (mut prepared, mut rest) = (Vec::with_capacity(terms.factors.len()), Vec::new());
    for first in (0..panels).step_by(width) {
        let range = (first, (first + width).min(panels));
        for i in (0..rows / 4 * 4).step_by(4) {
            group::<4>(block, terms, &mut prepared, i, range);
        }
        for i in rows / 4 * 4..rows {
            group::<1>(block, terms, &mut rest, i, range);
        }
    }
}

/// Rows `i .. i + R` of the block, panels `from .. to`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn group<'a, const R: usize>(
    block: &mut RowBlock,
    terms: &Terms<'a>,
    prepared: &mut Vec<Term<'a, R>>,
    i: usize,
    (from, to): (usize, usize),
) {
    let row = block.first_row + i;
    prepared.clear();
    prepared.extend(terms.factors.iter().map(|&(factors, sign)| prepare(factors, sign, row)));
    let mut panel = from;
    while panel + 2 <= to {
        tile::<R, 2>(block, prepared, terms, i, panel);
        panel += 2;
    }
    if panel < to {
        tile::<R, 1>(block, prepared, terms, i, panel);
    }
}

fn prepare<const R: usize>(factors: &Factors, sign: Sign, row: usize) -> Term<'_, R> {
    let shift: [i32; R] = std::array::from_fn(|r| i32::from(factors.shift[row + r]));
    Term {
        a: factors.a.as_ptr(),
        b: std::array::from_fn(|r| factors.b_row(row + r).as_ptr().cast()),
        half: shift.map(|s| (1 << s) >> 1),
        shift,
        full_shift: shift == [16; R],
        factors,
        subtract: sign == Sign::Subtract,
    }
}

/// `R` rows × `P` panels: weights stay in registers while every term is added.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn tile<const R: usize, const P: usize>(
    block: &mut RowBlock,
    prepared: &[Term<R>],
    terms: &Terms,
    i: usize,
    panel: usize,
) {
    let stride = block.lanes_per_row;
    let first = i * stride + panel;
    assert!(first + (R - 1) * stride + P <= block.lanes.len());
    let base = block.lanes.as_mut_ptr();
    // SAFETY: the assertion above bounds every `first + r * stride + p`.
    let at = |r: usize, p: usize| unsafe { base.add(first + r * stride + p) };
    let mut n: [[__m512i; P]; R] =
        // SAFETY: as above; a lane is 64 bytes.
        std::array::from_fn(|r| std::array::from_fn(|p| unsafe { _mm512_load_si512(at(r, p).cast()) }));
    for r in 0..R {
        // The next group's same columns; a prefetch may point anywhere.
        _mm_prefetch::<_MM_HINT_T0>(base.wrapping_add(first + (R + r) * stride).cast());
        _mm_prefetch::<_MM_HINT_T0>(base.wrapping_add(first + (R + r) * stride + P - 1).cast());
    }
    for term in prepared {
        let mut sums: [[[__m512i; 2]; P]; R] = std::array::from_fn(|r| [[_mm512_set1_epi32(term.half[r]); 2]; P]);
        let pairs = term.factors.pairs;
        for pair in 0..pairs {
            // SAFETY: `Factors` holds `pairs` × 2 lanes for every panel of the matrix.
            let a: [[__m512i; 2]; P] = std::array::from_fn(|p| {
                std::array::from_fn(|parity| unsafe {
                    _mm512_load_si512(term.a.add(((panel + p) * pairs + pair) * 2 + parity).cast())
                })
            });
            for r in 0..R {
                // SAFETY: a row of `B'` holds `pairs` pairs of i16.
                let b = _mm512_set1_epi32(unsafe { term.b[r].add(pair).read_unaligned() });
                for p in 0..P {
                    for parity in 0..2 {
                        sums[r][p][parity] = _mm512_dpwssd_epi32(sums[r][p][parity], a[p][parity], b);
                    }
                }
            }
        }
        if !term.full_shift {
            // Brings `Q` to the upper half, where a shift of 16 leaves it.
            for r in 0..R {
                let shift = _mm512_set1_epi32(term.shift[r]);
                for p in 0..P {
                    for parity in 0..2 {
                        sums[r][p][parity] = _mm512_slli_epi32::<16>(_mm512_srav_epi32(sums[r][p][parity], shift));
                    }
                }
            }
        }
        for r in 0..R {
            for p in 0..P {
                let even = _mm512_srli_epi32::<16>(sums[r][p][0]);
                let q = _mm512_mask_blend_epi16(0xAAAA_AAAA, even, sums[r][p][1]);
                n[r][p] = if term.subtract { _mm512_sub_epi16(n[r][p], q) } else { _mm512_add_epi16(n[r][p], q) };
            }
        }
    }
    for &(dense, sign) in &terms.dense {
        for r in 0..R {
            for p in 0..P {
                let lane = &dense[(block.first_row + i + r) * stride + panel + p];
                // SAFETY: a lane is 64 bytes.
                let q = unsafe { _mm512_load_si512(std::ptr::from_ref(lane).cast()) };
                n[r][p] = match sign {
                    Sign::Add => _mm512_add_epi16(n[r][p], q),
                    Sign::Subtract => _mm512_sub_epi16(n[r][p], q),
                };
            }
        }
    }
    for r in 0..R {
        for p in 0..P {
            // SAFETY: as at the load.
            unsafe { _mm512_store_si512(at(r, p).cast(), n[r][p]) };
        }
    }
}
