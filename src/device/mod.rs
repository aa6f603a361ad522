//! What every device can do: hold weights, move them by integer deltas, and compute with them.

pub mod compute;
pub mod cpu;
#[cfg(feature = "gpu")]
pub mod gpu;

use std::sync::Arc;

pub use compute::{
    Attention, Choice, Compute, Heads, NodeRows, PAGE, Piece, Product, RotateAppend, Span,
};

use crate::Result;
use crate::lattice::{LatticeMatrix, NodeDeltas, SignedDelta};

/// Times of one switch by the device's own clock, in milliseconds, where it has one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PassTimes {
    /// Copying deltas that were not on the device yet.
    pub upload_ms: Option<f64>,
    /// The passes over the matrices.
    pub pass_ms: Option<f64>,
}

/// A place where weights live.
pub trait Device: Send + Sync {
    /// A resident weight matrix on the I16 lattice.
    type Matrix: Send + Sync;
    /// The compiled deltas of one node, resident.
    type Deltas: Send + Sync;
    /// A switch that is prepared, so that nothing but the device's failure can break it off.
    type Pass: Send;
    /// A resident array of f32: activations, norms, biases.
    type Buffer: Send + Sync;

    /// Whether deltas on the device are those in the host's memory and take no memory beside them.
    const HOST_MEMORY: bool;

    /// What the device is, for people.
    fn describe(&self) -> String;

    /// Whether the device still works; it may have been lost since the last call.
    ///
    /// # Errors
    /// [`DeviceFailed`](crate::Error::DeviceFailed) if it does not: what is on it is lost.
    fn check(&self) -> Result<()>;

    /// Connects to the device again after it failed; nothing that was on it is there any more.
    ///
    /// # Errors
    /// When the device does not come back.
    fn reopen(&mut self) -> Result<()>;

    /// Moves a quantised matrix to the device.
    ///
    /// # Errors
    /// When the device has no memory left.
    fn upload_matrix(&self, matrix: LatticeMatrix) -> Result<Self::Matrix>;

    /// Moves f32 values to the device.
    ///
    /// # Errors
    /// When the device has no memory left.
    fn upload_buffer(&self, values: Vec<f32>) -> Result<Self::Buffer>;

    /// Allocates memory for a node's deltas and starts to move them. They may arrive with the pass that
    /// first uses them.
    ///
    /// # Errors
    /// When the device has no memory left.
    fn upload_deltas(&self, deltas: &Arc<NodeDeltas>) -> Result<Self::Deltas>;

    /// Bytes a node's deltas take on the device.
    fn deltas_bytes(&self, deltas: &Self::Deltas) -> usize;

    /// Moves what is still on its way now, so that a later pass need not.
    ///
    /// # Errors
    /// When the device fails.
    fn finish_uploads(&self, deltas: &[&Self::Deltas]) -> Result<()>;

    /// Makes a second matrix of the same bits.
    ///
    /// # Errors
    /// When the device has no memory left.
    fn copy_matrix(&self, matrix: &Self::Matrix) -> Result<Self::Matrix>;

    /// Copies a matrix, as it now is, to the host.
    ///
    /// # Errors
    /// When the device fails.
    fn read_matrix(&self, matrix: &Self::Matrix) -> Result<LatticeMatrix>;

    /// Copies some rows of several matrices as they now are: for each matrix its rows one after
    /// another, without padding.
    ///
    /// # Errors
    /// When the device fails.
    fn read_rows(&self, wanted: &[(&Self::Matrix, &[usize])]) -> Result<Vec<Vec<i16>>>;

    /// Makes ready what [`Self::delta_apply`] needs for these deltas.
    ///
    /// # Errors
    /// When the device has no memory left; the matrices are as before.
    fn prepare_pass(
        &self,
        matrices: &[Self::Matrix],
        deltas: &[SignedDelta<&Self::Deltas>],
    ) -> Result<Self::Pass>;

    /// Adds and subtracts every delta of every node in one read and write of each matrix it
    /// touches; a [`MatrixId`](crate::lattice::MatrixId) counts in `matrices`. Returns when the
    /// pass is over. `pass` was prepared for the same matrices and deltas.
    ///
    /// # Errors
    /// When the device fails; the matrices are then in no known state.
    fn delta_apply(
        &self,
        matrices: &mut [Self::Matrix],
        deltas: &[SignedDelta<&Self::Deltas>],
        pass: Self::Pass,
    ) -> Result<PassTimes>;

    /// [`Self::prepare_pass`] and [`Self::delta_apply`] at once.
    ///
    /// # Errors
    /// As these; the matrices are then in no known state.
    fn prepare_and_apply(
        &self,
        matrices: &mut [Self::Matrix],
        deltas: &[SignedDelta<&Self::Deltas>],
    ) -> Result<PassTimes> {
        let pass = self.prepare_pass(matrices, deltas)?;
        self.delta_apply(matrices, deltas, pass)
    }

    /// BLAKE3 of each matrix: rows, columns (u64), integers row by row without padding (i16), steps
    /// (f32), all little-endian.
    ///
    /// # Errors
    /// When the device fails.
    fn fingerprint(&self, matrices: &[&Self::Matrix]) -> Result<Vec<blake3::Hash>>;
}

/// What a device could do at best, measured beside what it does.
#[cfg(feature = "measure")]
pub trait Ceilings: Compute {
    /// Milliseconds to read, change and write every integer; they are as before in the end.
    ///
    /// # Errors
    /// When the device fails.
    fn read_modify_write_ms(&self, matrices: &mut [&mut Self::Matrix]) -> Result<f64>;

    /// Milliseconds to read every integer.
    ///
    /// # Errors
    /// When the device fails.
    fn read_ms(&self, matrices: &[&Self::Matrix]) -> Result<f64>;

    /// Milliseconds for so many integer multiply-adds from registers.
    ///
    /// # Errors
    /// When the device fails.
    fn integer_products_ms(&self, products: u64) -> Result<f64>;

    /// Milliseconds for so many f32 multiply-adds from registers.
    ///
    /// # Errors
    /// When the device fails.
    fn float_products_ms(&self, products: u64) -> Result<f64>;
}
