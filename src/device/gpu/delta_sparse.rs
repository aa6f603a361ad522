//! Sparse deltas on the GPU, a dispatch for each part of a matrix. Twin:
//! `device/cpu/delta_apply/delta_sparse.rs`.

use super::context::{Context, Slice};
use super::deltas::{GpuDeltas, Kind};
use super::matrix::GpuMatrix;
use super::params::DeltaSparseParams;
use super::pipeline::Kernel;
use super::recording::Recording;
use super::word;
use crate::lattice::{Sign, SignedDelta};

/// Appends the dispatches of a node's sparse deltas.
pub(super) fn dispatch(
    context: &Context,
    recording: &mut Recording,
    matrices: &[GpuMatrix],
    node: &SignedDelta<&GpuDeltas>,
) {
    let kernel = Kernel::flat("delta_sparse");
    let subtract = u32::from(node.sign == Sign::Subtract);
    for (id, entry) in &node.delta.entries {
        let (matrix, Kind::Sparse(pieces)) = (&matrices[id.0], &entry.kind) else { continue };
        for piece in pieces {
            let integers = &matrix.parts[piece.part].integers;
            let buffers = [integers, &node.delta.stores[piece.store].buffer].map(Slice::whole);
            let params = DeltaSparseParams { entries: word(piece.entries), subtract };
            recording.dispatch(context, &kernel, buffers, &params, context.flat(piece.entries));
        }
    }
}
