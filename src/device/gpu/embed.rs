//! Rows of the embedding by token. Twin: `device/cpu/embed.rs`.

use super::params::EmbedParams;
use super::pipeline::Kernel;
use super::{Gpu, GpuBuffer, GpuMatrix, Slice, word};

/// [`crate::device::Compute::embed`]: a dispatch for each part of the table, which writes the
/// tokens it holds.
pub(super) fn embed(gpu: &Gpu, table: &GpuMatrix, tokens: &[u32], out: &GpuBuffer) {
    let len = tokens.len() * table.cols;
    assert!(len <= out.len, "more tokens than the buffer holds");
    assert!(
        tokens.iter().all(|&token| (token as usize) < table.rows),
        "a token that the table does not have"
    );
    let kernel = Kernel::flat("embed");
    let mut pending = gpu.pending();
    let at = pending.words(tokens);
    for part in &table.parts {
        let params = EmbedParams {
            len: word(len),
            width: word(table.cols),
            tokens: at,
            first_row: word(part.first_row),
            part_rows: word(part.rows),
        };
        let buffers = [Slice::whole(&part.integers), Slice::whole(&table.steps), out.slice()];
        pending.dispatch(&gpu.context, &kernel, buffers, &params, gpu.context.flat(len));
    }
}
