//! What a sparse delta that is not in the weights adds to a product. Twin: `device/cpu/expand.rs`.

use std::ops::Range;

use super::deltas::SparsePiece;
use super::params::ExpandSparseParams;
use super::pipeline::Kernel;
use super::recording::Recording;
use super::{Gpu, GpuBuffer, Slice, word};
use crate::device::Product;

/// Appends a dispatch that adds a piece of a delta to these rows.
pub(super) fn expand(
    gpu: &Gpu,
    pending: &mut Recording,
    x: &GpuBuffer,
    rows: &Range<usize>,
    product: &Product<'_, Gpu>,
    piece: &SparsePiece,
    store: &wgpu::Buffer,
) {
    let weight = product.weight;
    let part = &weight.parts[piece.part];
    let len = rows.len() * part.rows;
    let params = ExpandSparseParams {
        first_row: word(rows.start),
        len: word(len),
        inputs: word(weight.cols),
        outputs: word(weight.rows),
        part_outputs: word(part.rows),
        first_output: word(part.first_row),
        entries: word(piece.entries),
    };
    let [entries, steps] = [store, &weight.steps].map(Slice::whole);
    let buffers = [entries, steps, x.slice(), product.out.slice()];
    let kernel = Kernel::flat("expand_sparse");
    pending.dispatch(&gpu.context, &kernel, buffers, &params, gpu.context.flat(len));
}
