//! Puts a base matrix on the lattice: each row gets a step, each weight the nearest integer.
//!
//! ```text
//! u_i = max_j |W_ij| · headroom / 32767      N_ij = round(W_ij / u_i)      in f64, on f32 steps
//! ```
//!
//! A row whose step would be below a sixteenth of its matrix's median step (an unused token, say)
//! takes that instead, so that a delta of ordinary size fits there too. The median: one row far
//! above the others leaves theirs as fine as they are. A matrix of zeros takes steps of `2⁻¹⁵ ·
//! headroom`.
//!
//! **Invariant:** `|W_ij − N_ij · u_i| ≤ u_i / 2`: the only rounding a base ever sees on this
//! lattice.

use std::ops::Range;

use rayon::prelude::*;

use super::{LANES, LIMIT, Lane, LatticeMatrix};
use crate::error::MAX_HEADROOM;
use crate::{Error, Result, WeightName};

/// Space above a row's largest weight, as a factor: deltas of up to a quarter of it fit.
pub const DEFAULT_HEADROOM: f32 = 1.25;

/// Weights converted at a time by one thread: small enough for its cache.
const CHUNK_WEIGHTS: usize = 1 << 16;

/// The step of a matrix that is all zeros, at a headroom of 1: weights up to 1 fit.
const ZERO_MATRIX_STEP: f32 = 1.0 / 32768.0;

/// What compiling and bound checks need to know of a base matrix, wherever its integers live.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// Columns (inputs).
    pub cols: usize,
    /// `u_i`, one step per row.
    pub steps: Vec<f32>,
    /// `max_j |N_ij|` of the base, one per row: what the bound check starts from.
    pub row_max: Vec<u16>,
    /// The headroom the steps were made with.
    pub headroom: f32,
}

impl Grid {
    /// Rows (outputs).
    pub fn rows(&self) -> usize {
        self.steps.len()
    }
}

/// Quantises a `rows × cols` matrix that `read` delivers by rows in f32, several row ranges at
/// once.
///
/// # Errors
/// [`Error::Headroom`] for one outside 1 to 1024; when `read` fails; and [`Error::NonFinite`] when
/// a weight is NaN or infinite.
pub fn quantise(
    name: &WeightName,
    rows: usize,
    cols: usize,
    headroom: f32,
    read: impl Fn(Range<usize>, &mut [f32]) -> Result<()> + Sync,
) -> Result<(LatticeMatrix, Grid)> {
    if !(1.0..=MAX_HEADROOM).contains(&headroom) {
        return Err(Error::Headroom { headroom });
    }
    let mut matrix = LatticeMatrix::zeros(rows, cols);
    let mut row_max = vec![0_u16; rows];
    let lanes_per_row = matrix.stride() / LANES;
    let chunk_rows = (CHUNK_WEIGHTS / cols.max(1)).max(1);
    let (lanes, steps) = matrix.parts_mut();

    lanes
        .par_chunks_mut(chunk_rows * lanes_per_row)
        .zip(steps.par_chunks_mut(chunk_rows))
        .zip(row_max.par_chunks_mut(chunk_rows))
        .enumerate()
        .try_for_each(|(chunk, ((lanes, steps), row_max))| {
            let first = chunk * chunk_rows;
            let mut values = vec![0_f32; steps.len() * cols];
            read(first..first + steps.len(), &mut values)?;
            for (i, row) in values.chunks_exact(cols).enumerate() {
                if let Some(j) = row.iter().position(|w| !w.is_finite()) {
                    return Err(Error::NonFinite {
                        tensor: name.to_string(),
                        index: (first + i) * cols + j,
                        value: row[j],
                    });
                }
                let largest = row.iter().fold(0_f32, |m, w| m.max(w.abs()));
                steps[i] = step_for(largest, headroom);
                row_max[i] =
                    round_row(row, steps[i], &mut lanes[i * lanes_per_row..][..lanes_per_row]);
            }
            Ok(())
        })?;

    raise_small_steps(&mut matrix, &mut row_max, headroom, &read)?;
    let grid = Grid { cols, steps: matrix.steps().to_vec(), row_max, headroom };
    Ok((matrix, grid))
}

/// The step of a row whose largest magnitude is `largest`; 0 for a row of zeros (raised
/// afterwards).
fn step_for(largest: f32, headroom: f32) -> f32 {
    let step = f64::from(largest) * f64::from(headroom) / f64::from(LIMIT);
    #[allow(
        clippy::cast_possible_truncation,
        reason = "rounding the step to f32 is its definition"
    )]
    let step = step as f32;
    step
}

/// Rounds one row to the lattice of `step` and returns its largest magnitude.
fn round_row(row: &[f32], step: f32, lanes: &mut [Lane]) -> u16 {
    round_values(row, step, bytemuck::cast_slice_mut(lanes))
}

/// The same into plain integers; a row whose step is 0 is left as it is.
pub(super) fn round_values(row: &[f32], step: f32, integers: &mut [i16]) -> u16 {
    if step == 0.0 {
        return 0;
    }
    let mut largest = 0;
    let step = f64::from(step);
    for (n, &w) in integers.iter_mut().zip(row) {
        #[allow(
            clippy::cast_possible_truncation,
            reason = "at most 32767 in magnitude, since headroom is at least 1"
        )]
        let rounded = (f64::from(w) / step).round() as i16;
        *n = rounded;
        largest = largest.max(rounded.unsigned_abs());
    }
    largest
}

/// Raises every step below a sixteenth of the median, rows of zeros left out, to that, and rounds
/// those rows again from the source.
fn raise_small_steps(
    matrix: &mut LatticeMatrix,
    row_max: &mut [u16],
    headroom: f32,
    read: &(impl Fn(Range<usize>, &mut [f32]) -> Result<()> + Sync),
) -> Result<()> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let lanes_per_row = matrix.stride() / LANES;
    let mut sorted: Vec<f32> = matrix.steps().iter().copied().filter(|&u| u > 0.0).collect();
    sorted.sort_unstable_by(f32::total_cmp);
    let floor = match sorted.get(sorted.len() / 2) {
        Some(median) => (median / 16.0).max(f32::MIN_POSITIVE),
        None => ZERO_MATRIX_STEP * headroom,
    };
    let (lanes, steps) = matrix.parts_mut();
    let mut values = vec![0_f32; cols];
    for i in 0..rows {
        if steps[i] < floor {
            read(i..i + 1, &mut values)?;
            steps[i] = floor;
            row_max[i] =
                round_row(&values, floor, &mut lanes[i * lanes_per_row..][..lanes_per_row]);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of 40 weights each up to the row's size, on the lattice at a headroom of 2.
    fn rows(sizes: &[f32]) -> (LatticeMatrix, Grid, Vec<f32>) {
        let cols = 40;
        let values: Vec<f32> = sizes
            .iter()
            .flat_map(|size| (0..cols).map(move |j| size * (1.0 - j as f32 / 20.0)))
            .collect();
        let read = |range: Range<usize>, out: &mut [f32]| {
            out.copy_from_slice(&values[range.start * cols..range.end * cols]);
            Ok(())
        };
        let (matrix, grid) = quantise(&WeightName::new("w"), sizes.len(), cols, 2.0, read).unwrap();
        (matrix, grid, values)
    }

    #[test]
    fn every_weight_lies_within_half_a_step() {
        let sizes = [1.0, 0.5, 0.0, 1e-6, 3e38, 1e-40, 0.3, 0.7];
        let (matrix, grid, values) = rows(&sizes);
        for (i, row) in values.chunks_exact(40).enumerate() {
            let step = f64::from(matrix.steps()[i]);
            for (&n, &w) in matrix.row(i).iter().zip(row) {
                assert!(
                    (f64::from(n) * step - f64::from(w)).abs() <= step * 0.500_001,
                    "row {i}: {n} for {w}"
                );
            }
            assert_eq!(Some(grid.row_max[i]), matrix.row(i).iter().map(|n| n.unsigned_abs()).max());
            assert!(grid.row_max[i] <= 16384, "headroom 2 leaves half of the lattice free");
        }
    }

    #[test]
    fn a_row_far_above_the_others_leaves_them_fine() {
        let (plain, ..) = rows(&[1.0; 9]);
        let (matrix, ..) = rows(&[1.0, 1.0, 1e30, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!((matrix.steps()[0], matrix.row(0)), (plain.steps()[0], plain.row(0)));
    }

    #[test]
    fn rows_of_zeros_take_a_step_from_the_others_and_a_matrix_of_zeros_has_its_own() {
        let (matrix, ..) = rows(&[0.0, 0.0, 0.0, 1.0, 1.0]);
        assert_eq!(matrix.steps()[0], matrix.steps()[4] / 16.0);
        let (zeros, ..) = rows(&[0.0; 5]);
        assert_eq!(zeros.steps(), [2.0 * ZERO_MATRIX_STEP; 5]);
    }
}
