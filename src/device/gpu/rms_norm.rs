//! Root-mean-square norms of rows. Twin: `device/cpu/rms_norm.rs`.

use super::params::RmsNormParams;
use super::pipeline::Kernel;
use super::{Gpu, GpuBuffer, word};

/// [`crate::device::Compute::rms_norm`]: a workgroup a row.
pub(super) fn rms_norm(
    gpu: &Gpu,
    x: &GpuBuffer,
    weight: &GpuBuffer,
    eps: f32,
    rows: usize,
    out: &GpuBuffer,
) {
    let params = RmsNormParams { rows: word(rows), width: word(weight.len), eps };
    let buffers = [x.slice(), weight.slice(), out.slice()];
    let kernel = Kernel::new("rms_norm");
    gpu.pending().dispatch(&gpu.context, &kernel, buffers, &params, gpu.context.workgroups(rows));
}
