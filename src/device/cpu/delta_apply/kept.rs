//! What share of a change the lattice keeps, counted over every entry while the rows' largest
//! integers are.
//!
//! Every entry is computed in f32, in units of the row's own power of two, each component of `A`
//! scaled by another: so nothing overflows or vanishes, and an entry is off by at most
//! `rank · 2^−23` of `Σ_r |b_ir · a_rj|`. Squares are summed along a row in f32, over rows in f64.
//! [`row_squares`], the definition, judges it.
#![allow(clippy::needless_range_loop, reason = "several register arrays go by the same row")]

use super::RowBlock;
use crate::adapter::FloatDelta;
use crate::device::cpu::SimdLevel;
use crate::device::cpu::simd::{CHUNK, Kernel, Simd};
use crate::lattice::{
    CompiledDelta, Grid, LANES, LIMIT, Squares, exponent, power_of_two, row_squares,
};

/// Rows whose sums fit the registers.
const ROWS: usize = 8;

/// A change to one matrix, ready to be compared with its integers.
pub(super) struct Change<'a> {
    float: &'a FloatDelta,
    grid: &'a Grid,
    /// `lora_a` in panels of 16 columns, `rank` chunks each, every component below 2 in magnitude.
    panels: Vec<[f32; CHUNK]>,
    /// What each component was scaled down by, as a power of two.
    exponents: Vec<i32>,
}

impl<'a> Change<'a> {
    pub(super) fn new(float: &'a FloatDelta, grid: &'a Grid) -> Self {
        let mut change = Self { float, grid, panels: Vec::new(), exponents: Vec::new() };
        let FloatDelta::LowRank { rank, lora_a, .. } = float else { return change };
        let cols = grid.cols;
        // As many panels as the integers' lanes have halves.
        change.panels = vec![[0.0; CHUNK]; cols.div_ceil(LANES) * (LANES / CHUNK) * rank];
        for (r, a) in lora_a.chunks_exact(cols.max(1)).enumerate() {
            let largest = a.iter().fold(0_f32, |m, a| m.max(a.abs()));
            let exponent = if largest == 0.0 { 0 } else { exponent(largest.into()) };
            let scale = power_of_two(-exponent);
            for (panel, values) in a.chunks(CHUNK).enumerate() {
                for (target, &value) in change.panels[panel * rank + r].iter_mut().zip(values) {
                    *target = to_f32(f64::from(value) * scale);
                }
            }
            change.exponents.push(exponent);
        }
        change
    }

    /// The squares of a block of rows whose integers are `block`'s, where `row_max` says that they
    /// are not wrapped.
    pub(super) fn squares(
        &self,
        simd: SimdLevel,
        block: &RowBlock,
        row_max: &[u32],
        delta: &CompiledDelta,
    ) -> Squares {
        let mut sum = Squares::default();
        for (first, rows) in
            (0..block.rows()).step_by(ROWS).map(|first| (first, ROWS.min(block.rows() - first)))
        {
            let squares = self.eight(simd, block, first, rows);
            for (k, squares) in squares.into_iter().enumerate().take(rows) {
                let row = block.first_row + first + k;
                sum += match squares {
                    Some(squares) if row_max[first + k] <= LIMIT => squares,
                    _ => row_squares(self.float, delta, self.grid, row),
                };
            }
        }
        sum
    }

    /// The squares of up to eight rows of a low-rank change.
    fn eight(
        &self,
        simd: SimdLevel,
        block: &RowBlock,
        first: usize,
        rows: usize,
    ) -> [Option<Squares>; ROWS] {
        let FloatDelta::LowRank { rank, lora_b, scaling, .. } = self.float else {
            return [None; ROWS];
        };
        let stride = block.lanes_per_row * LANES;
        let integers: &[i16] = bytemuck::cast_slice(block.lanes);
        let mut coefficients = vec![[0_f32; ROWS]; *rank];
        let mut units = [0_f64; ROWS];
        let mut work = EightRows {
            coefficients: &[],
            panels: &self.panels,
            integers: std::array::from_fn(|k| {
                &integers[(first + k.min(rows - 1)) * stride..][..stride]
            }),
            per_unit: [0.0; ROWS],
            change: &mut [0.0; ROWS],
            lost: &mut [0.0; ROWS],
        };
        for k in 0..rows {
            let row = block.first_row + first + k;
            let steps = scaling / f64::from(self.grid.steps[row]);
            let b = &lora_b[row * rank..][..*rank];
            let coefficient = |r: usize| f64::from(b[r]) * steps * power_of_two(self.exponents[r]);
            let bound: f64 = (0..*rank).map(|r| coefficient(r).abs() * 2.0).sum();
            // A row of zeros; its integers are, too.
            if bound == 0.0 {
                continue;
            }
            units[k] = power_of_two(exponent(bound));
            work.per_unit[k] = to_f32(1.0 / units[k]);
            for (r, target) in coefficients.iter_mut().enumerate() {
                target[k] = to_f32(-coefficient(r) / units[k]);
            }
        }
        let (mut change, mut lost) = ([0.0; ROWS], [0.0; ROWS]);
        simd.run(EightRows {
            coefficients: &coefficients,
            change: &mut change,
            lost: &mut lost,
            ..work
        });
        std::array::from_fn(|k| {
            let row = block.first_row + first + k;
            let unit =
                if k < rows { (units[k] * f64::from(self.grid.steps[row])).powi(2) } else { 0.0 };
            let squares =
                Squares { change: f64::from(change[k]) * unit, lost: f64::from(lost[k]) * unit };
            (squares.change.is_finite() && squares.lost.is_finite()).then_some(squares)
        })
    }
}

#[allow(clippy::cast_possible_truncation, reason = "rounding to f32, as the head of the file says")]
fn to_f32(value: f64) -> f32 {
    value as f32
}

/// `(D, Q·u − D)` of eight rows, squared and summed, in units of each row.
struct EightRows<'a> {
    /// Minus `b`, one for each row, of every component.
    coefficients: &'a [[f32; ROWS]],
    panels: &'a [[f32; CHUNK]],
    integers: [&'a [i16]; ROWS],
    /// Units in a step.
    per_unit: [f32; ROWS],
    change: &'a mut [f32; ROWS],
    lost: &'a mut [f32; ROWS],
}

impl Kernel for EightRows<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let zero = simd.splat(0.0);
        let (mut change, mut lost) = ([zero; ROWS], [zero; ROWS]);
        let rank = self.coefficients.len();
        for (panel, a) in self.panels.chunks_exact(rank.max(1)).enumerate() {
            for part in 0..S::PARTS {
                let mut minus_d = [zero; ROWS];
                for (a, coefficients) in a.iter().zip(self.coefficients) {
                    let a = simd.load(a, part);
                    for k in 0..ROWS {
                        minus_d[k] = simd.fma(simd.splat(coefficients[k]), a, minus_d[k]);
                    }
                }
                for k in 0..ROWS {
                    let (chunks, _) = self.integers[k].as_chunks::<CHUNK>();
                    let q = simd.load_i16(&chunks[panel], part);
                    let difference = simd.fma(q, simd.splat(self.per_unit[k]), minus_d[k]);
                    change[k] = simd.fma(minus_d[k], minus_d[k], change[k]);
                    lost[k] = simd.fma(difference, difference, lost[k]);
                }
            }
        }
        for k in 0..ROWS {
            self.change[k] = simd.sum(change[k]);
            self.lost[k] = simd.sum(lost[k]);
        }
    }
}
