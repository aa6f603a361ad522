//! A matrix on the I16 lattice, in the layout every kernel reads.
//!
//! **Invariant:** columns from `cols` up to `stride` are zero.

use bytemuck::{Pod, Zeroable};

/// Columns in one [`Lane`].
pub const LANES: usize = 32;

/// 32 consecutive columns of one row, aligned to a cache line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct Lane(pub [i16; LANES]);

/// A `rows × cols` (output × input) matrix of integers `N` with one step `u_i` per row:
/// `W_ij = N_ij · u_i`. Rows are padded with zeros to a multiple of [`LANES`] columns, so 64-byte
/// aligned.
#[derive(Clone, Debug, PartialEq)]
pub struct LatticeMatrix {
    rows: usize,
    cols: usize,
    lanes: Vec<Lane>,
    steps: Vec<f32>,
}

impl LatticeMatrix {
    /// A matrix of zeros with every step 1.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        let lanes = vec![Lane::zeroed(); rows * cols.div_ceil(LANES)];
        Self { rows, cols, lanes, steps: vec![1.0; rows] }
    }

    /// Rows (outputs).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns (inputs).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Columns with their padding: a multiple of [`LANES`].
    pub fn stride(&self) -> usize {
        self.cols.div_ceil(LANES) * LANES
    }

    /// Steps, one per row.
    pub fn steps(&self) -> &[f32] {
        &self.steps
    }

    /// Row `i` without its padding.
    pub fn row(&self, i: usize) -> &[i16] {
        &self.integers()[i * self.stride()..][..self.cols]
    }

    /// All integers, `rows × stride`, row-major.
    pub fn integers(&self) -> &[i16] {
        bytemuck::cast_slice(&self.lanes)
    }

    /// All integers in lanes.
    pub fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// The integers alone, `rows × stride`.
    pub fn into_lanes(self) -> Vec<Lane> {
        self.lanes
    }

    /// Integers in lanes and steps, to be written together; padding columns must stay zero.
    pub fn parts_mut(&mut self) -> (&mut [Lane], &mut [f32]) {
        (&mut self.lanes, &mut self.steps)
    }

    /// All integers, to be written; padding columns must stay zero.
    pub fn integers_mut(&mut self) -> &mut [i16] {
        bytemuck::cast_slice_mut(&mut self.lanes)
    }
}
