//! What every device can do: hold weights, move them by integer deltas, and compute with them.

pub mod compute;
pub mod cpu;

pub use compute::{Attention, Compute, Heads, Product, Span};

use crate::Result;
use crate::lattice::{CompiledDelta, LatticeMatrix, Segment};

/// The segments of one matrix in a switch.
pub type MatrixWork<'a, D> = (&'a mut <D as Device>::Matrix, Vec<Segment<'a, <D as Device>::Delta>>);

/// A place where weights live.
pub trait Device: Send + Sync {
    /// A resident weight matrix on the I16 lattice.
    type Matrix: Send + Sync;
    /// A resident compiled delta.
    type Delta: Send + Sync;
    /// A resident array of f32: activations, norms, biases.
    type Buffer: Send + Sync;

    /// What the device is, for people.
    fn describe(&self) -> String;

    /// Moves a quantised matrix to the device.
    ///
    /// # Errors
    /// When the device has no room.
    fn upload_matrix(&self, matrix: LatticeMatrix) -> Result<Self::Matrix>;

    /// Moves f32 values to the device.
    ///
    /// # Errors
    /// When the device has no room.
    fn upload_buffer(&self, values: Vec<f32>) -> Result<Self::Buffer>;

    /// Moves a compiled delta to the device.
    ///
    /// # Errors
    /// When the device has no room.
    fn upload_delta(&self, delta: CompiledDelta) -> Result<Self::Delta>;

    /// Copies a matrix as it now is.
    ///
    /// # Errors
    /// When the device fails.
    fn read_matrix(&self, matrix: &Self::Matrix) -> Result<LatticeMatrix>;

    /// The largest `|N ± Q|` in each of `rows` if the segments were applied, exactly, without applying them.
    ///
    /// # Errors
    /// When the device fails.
    fn reach(&self, matrix: &Self::Matrix, segments: &[Segment<'_, Self::Delta>], rows: &[usize]) -> Result<Vec<u32>>;

    /// Adds and subtracts every segment in one read and write of each matrix.
    ///
    /// # Errors
    /// When the device fails; the matrices are then in no known state.
    fn delta_apply(&self, work: Vec<MatrixWork<'_, Self>>) -> Result<()>;

    /// BLAKE3 of each matrix: rows, columns (u64), integers row by row without padding (i16), steps (f32), all
    /// little-endian.
    ///
    /// # Errors
    /// When the device fails.
    fn fingerprint(&self, matrices: &[&Self::Matrix]) -> Result<Vec<blake3::Hash>>;
}
