//! The tile with AVX2: 2 rows × 1 panel of 32 columns; `vpmaddwd` multiplies two ranks at once.
#![allow(unsafe_code, reason = "vector loads and stores take pointers")]

use std::arch::x86_64::*;

use super::{RowBlock, Terms};
use crate::lattice::{Lane, Sign};

/// Applies the factored and dense terms to a block.
///
/// # Safety
/// The processor must have AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn apply(block: &mut RowBlock, terms: &Terms) {
    let (rows, panels, width) = (block.rows(), block.lanes_per_row, terms.panels_at_a_time());
    for first in (0..panels).step_by(width) {
        for i in (0..rows).step_by(2) {
            for panel in first..(first + width).min(panels) {
                if i + 2 <= rows {
                    tile::<2>(block, terms, i, panel)
                } else {
                    tile::<1>(block, terms, i, panel)
                }
            }
        }
    }
}

/// Both halves of a lane.
#[target_feature(enable = "avx2")]
fn load(lane: &Lane) -> [__m256i; 2] {
    let at: *const __m256i = std::ptr::from_ref(lane).cast();
    // SAFETY: a lane is two vectors of 32 bytes.
    unsafe { [_mm256_load_si256(at), _mm256_load_si256(at.add(1))] }
}

#[target_feature(enable = "avx2")]
fn add(n: &mut [__m256i; 2], q: [__m256i; 2], sign: Sign) {
    for (n, q) in n.iter_mut().zip(q) {
        *n = match sign {
            Sign::Add => _mm256_add_epi16(*n, q),
            Sign::Subtract => _mm256_sub_epi16(*n, q),
        };
    }
}

/// `R` rows × one panel: weights stay in registers while every term is added.
#[target_feature(enable = "avx2")]
fn tile<const R: usize>(block: &mut RowBlock, terms: &Terms, i: usize, panel: usize) {
    let (stride, row) = (block.lanes_per_row, block.first_row + i);
    let mut n: [[__m256i; 2]; R] =
        std::array::from_fn(|r| load(&block.lanes[(i + r) * stride + panel]));
    for &(factors, sign) in &terms.factors {
        let a = &factors.a[panel * factors.pairs * 2..][..factors.pairs * 2];
        let b: [&[i16]; R] = std::array::from_fn(|r| factors.b_row(row + r));
        let shift: [i32; R] = std::array::from_fn(|r| i32::from(factors.shift[row + r]));
        // Even and odd columns, each in two halves.
        let mut sums: [[[__m256i; 2]; 2]; R] =
            std::array::from_fn(|r| [[_mm256_set1_epi32((1 << shift[r]) >> 1); 2]; 2]);
        for (pair, lanes) in a.chunks_exact(2).enumerate() {
            let a = [load(&lanes[0]), load(&lanes[1])];
            for r in 0..R {
                let pair = [b[r][pair * 2], b[r][pair * 2 + 1]];
                let b = _mm256_set1_epi32(bytemuck::cast(pair));
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
            add(&mut n[r], q, sign);
        }
    }
    for r in 0..R {
        for &(dense, sign) in &terms.dense {
            add(&mut n[r], load(&dense[(row + r) * stride + panel]), sign);
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
