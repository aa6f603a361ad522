//! Puts a base matrix on the lattice: each row gets a step, each weight the nearest integer.
//!
//! `u_i = max_j |W_ij| · headroom / 32767`. A row far below the matrix's others (an unused token, say) takes a sixteenth
//! of the mean step instead, so that a delta of ordinary size fits there too.
//!
//! **Invariant:** `|W_ij − N_ij · u_i| ≤ u_i / 2`: the only rounding a base ever sees on this lattice.

use std::ops::Range;

use rayon::prelude::*;

use super::{LANES, LIMIT, Lane, LatticeMatrix};
use crate::{Error, Result, WeightName};

/// Room above a row's largest weight, as a factor: deltas of up to a quarter of it fit.
pub const DEFAULT_HEADROOM: f32 = 1.25;

/// Most headroom: beyond it a row has too few steps left for its own weights.
pub const MAX_HEADROOM: f32 = 1024.0;

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

/// Quantises a `rows × cols` matrix that `read` delivers by rows in f32, several row ranges at once.
///
/// # Errors
/// When `read` fails, and [`Error::NonFinite`] when a weight is NaN or infinite.
pub fn quantise(
    name: &WeightName,
    rows: usize,
    cols: usize,
    headroom: f32,
    read: impl Fn(Range<usize>, &mut [f32]) -> Result<()> + Sync,
) -> Result<(LatticeMatrix, Grid)> {
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
                row_max[i] = round_row(row, steps[i], &mut lanes[i * lanes_per_row..][..lanes_per_row]);
            }
            Ok(())
        })?;

    raise_small_steps(&mut matrix, &mut row_max, headroom, &read)?;
    let grid = Grid { cols, steps: matrix.steps().to_vec(), row_max, headroom };
    Ok((matrix, grid))
}

/// The step of a row whose largest magnitude is `largest`; 0 for a row of zeros (raised afterwards).
fn step_for(largest: f32, headroom: f32) -> f32 {
    let step = f64::from(largest) * f64::from(headroom) / f64::from(LIMIT);
    #[allow(clippy::cast_possible_truncation, reason = "rounding the step to f32 is its definition")]
    let step = step as f32;
    step
}

/// Rounds one row to the lattice of `step` and returns its largest magnitude.
fn round_row(row: &[f32], step: f32, lanes: &mut [Lane]) -> u16 {
    if step == 0.0 {
        return 0;
    }
    let integers: &mut [i16] = bytemuck::cast_slice_mut(lanes);
    let mut largest = 0;
    let step = f64::from(step);
    for (n, &w) in integers.iter_mut().zip(row) {
        #[allow(clippy::cast_possible_truncation, reason = "at most 32767 in magnitude, since headroom is at least 1")]
        let rounded = (f64::from(w) / step).round() as i16;
        *n = rounded;
        largest = largest.max(rounded.unsigned_abs());
    }
    largest
}

/// Raises every step below a sixteenth of the mean to that, and rounds those rows anew from the source.
fn raise_small_steps(
    matrix: &mut LatticeMatrix,
    row_max: &mut [u16],
    headroom: f32,
    read: &(impl Fn(Range<usize>, &mut [f32]) -> Result<()> + Sync),
) -> Result<()> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let lanes_per_row = matrix.stride() / LANES;
    let mean = matrix.steps().iter().map(|&u| f64::from(u)).sum::<f64>() / rows.max(1) as f64;
    #[allow(clippy::cast_possible_truncation, reason = "rounding the step to f32 is its definition")]
    let floor = if mean == 0.0 { ZERO_MATRIX_STEP * headroom } else { ((mean / 16.0) as f32).max(f32::MIN_POSITIVE) };
    let (lanes, steps) = matrix.parts_mut();
    let mut values = vec![0_f32; cols];
    for i in 0..rows {
        if steps[i] < floor {
            read(i..i + 1, &mut values)?;
            steps[i] = floor;
            row_max[i] = round_row(&values, floor, &mut lanes[i * lanes_per_row..][..lanes_per_row]);
        }
    }
    Ok(())
}
