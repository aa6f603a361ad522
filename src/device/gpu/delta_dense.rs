//! Dense deltas on the GPU, a dispatch for each part of a matrix. Twin:
//! `device/cpu/delta_apply/delta_dense.rs`.

use super::context::{Context, Slice};
use super::deltas::{GpuDeltas, Kind};
use super::matrix::GpuMatrix;
use super::params::DeltaDenseParams;
use super::pipeline::Kernel;
use super::recording::Recording;
use super::word;
use crate::lattice::{Sign, SignedDelta};

/// Appends the dispatches of a node's dense deltas.
pub(super) fn dispatch(
    context: &Context,
    recording: &mut Recording,
    matrices: &[GpuMatrix],
    node: &SignedDelta<&GpuDeltas>,
) {
    let kernel = Kernel::flat("delta_dense");
    let subtract = u32::from(node.sign == Sign::Subtract);
    for (id, entry) in &node.delta.entries {
        let (matrix, Kind::Dense(stores)) = (&matrices[id.0], &entry.kind) else { continue };
        for (part, &store) in matrix.parts.iter().zip(stores) {
            let vecs = part.rows * matrix.row_words() / 4;
            let buffers = [&part.integers, &node.delta.stores[store].buffer].map(Slice::whole);
            let params = DeltaDenseParams { vecs: word(vecs), subtract };
            recording.dispatch(context, &kernel, buffers, &params, context.flat(vecs));
        }
    }
}
