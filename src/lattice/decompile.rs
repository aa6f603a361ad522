//! A compiled delta back to floats, so that it can leave as an ordinary adapter.
//!
//! `Q_ij ≈ Σ_r B'_ir · A'_rj · 2^(−s_i)`, so `lora_a = A'` and `lora_b_ir = B'_ir · 2^(−s_i) · u_i`
//! with a scaling of 1. Each component is then balanced by a power of two, which changes nothing in
//! f32 and keeps both factors in the range of 16-bit floats. Components that are zero, as the
//! padding of an odd rank is, are left out.
//!
//! **Invariant:** `|Σ_r lora_b_ir · lora_a_rj − Q_ij · u_i| ≤ u_i · (c/2 + 2⁻²⁴ · m_i)` for `c`
//! chunks, of which `m_i` is the summed bound `‖B'_i‖ · max_j ‖A'_j‖ · 2^(−s_i)`: half a step a
//! chunk, and f32's rounding of `lora_b`, which is below 0.002 of a step a chunk where that bound
//! stays on the lattice. Dense and sparse deltas are exact to f32's rounding.

use super::compile::{exponent, power_of_two};
use super::{CompiledDelta, DeltaKind, Factors, Grid, LANES};
use crate::adapter::FloatDelta;

/// The float delta that `delta` stands for on the base matrix that `grid` describes:
/// [`compile`](super::compile) backwards.
///
/// A low-rank delta comes back with a scaling of 1, and with rank 0 if it is all zeros. Its product
/// differs from `Q_ij · u_i` by at most half a step a chunk (and f32's rounding), so from the delta
/// that was compiled by that and what compiling cost.
///
/// # Panics
/// If `grid` has another shape than `delta`.
pub fn decompile(delta: &CompiledDelta, grid: &Grid) -> FloatDelta {
    assert_eq!(
        (delta.rows, delta.cols),
        (grid.rows(), grid.cols),
        "the delta was compiled on another grid"
    );
    let value = |i: usize, q: i16| to_f32(f64::from(q) * f64::from(grid.steps[i]));
    match &delta.kind {
        DeltaKind::LowRank(chunks) => low_rank(chunks, grid),
        DeltaKind::Dense(lanes) => {
            let rows = bytemuck::cast_slice::<_, i16>(lanes)
                .chunks_exact(delta.cols.div_ceil(LANES) * LANES);
            let values = rows
                .enumerate()
                .flat_map(|(i, row)| row[..delta.cols].iter().map(move |&q| value(i, q)));
            FloatDelta::Dense { values: values.collect() }
        }
        DeltaKind::Sparse(sparse) => {
            let mut entries = Vec::with_capacity(sparse.values.len());
            for (i, row) in (0_u32..).zip(sparse.row_start.windows(2)) {
                let range = row[0] as usize..row[1] as usize;
                let row = sparse.cols[range.clone()].iter().zip(&sparse.values[range]);
                entries.extend(row.map(|(&j, &q)| (i, j, value(i as usize, q))));
            }
            FloatDelta::Sparse { entries }
        }
    }
}

fn low_rank(chunks: &[Factors], grid: &Grid) -> FloatDelta {
    let (rows, cols) = (grid.rows(), grid.cols);
    let mut lora_a = Vec::new();
    let mut columns: Vec<Vec<f32>> = Vec::new();
    for factors in chunks {
        for r in 0..factors.pairs * 2 {
            let a = |j: usize| f64::from(factors.a(r, j));
            let b = |i: usize| {
                let b = f64::from(factors.b(i, r)) * power_of_two(-i32::from(factors.shift[i]));
                b * f64::from(grid.steps[i])
            };
            let largest_a = (0..cols).fold(0_f64, |m, j| m.max(a(j).abs()));
            let largest_b = (0..rows).fold(0_f64, |m, i| m.max(b(i).abs()));
            if largest_a == 0.0 || largest_b == 0.0 {
                continue;
            }
            let balance = (exponent(largest_b) - exponent(largest_a)) / 2;
            lora_a.extend((0..cols).map(|j| to_f32(a(j) * power_of_two(balance))));
            columns.push((0..rows).map(|i| to_f32(b(i) * power_of_two(-balance))).collect());
        }
    }
    let lora_b = (0..rows).flat_map(|i| columns.iter().map(move |column| column[i])).collect();
    FloatDelta::LowRank { rank: columns.len(), lora_a, lora_b, scaling: 1.0 }
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "rounding to f32 is what an adapter's file asks for"
)]
fn to_f32(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
#[path = "decompile_tests.rs"]
mod tests;
