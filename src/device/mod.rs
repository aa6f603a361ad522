//! What every device can do: hold weights, move them by integer deltas, and compute with them.

pub mod compute;
pub mod cpu;

pub use compute::{Attention, Compute, Heads, Product, Span};

use crate::Result;
use crate::lattice::LatticeMatrix;

/// A place where weights live.
pub trait Device: Send + Sync {
    /// A resident weight matrix on the I16 lattice.
    type Matrix: Send + Sync;
    /// A resident array of f32: activations, norms, biases.
    type Buffer: Send + Sync;

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
}
