//! The gated activation of the feed-forward layer, with GELU. Twin: `device/cpu/gelu_mul.rs`.

use super::params::GeluMulParams;
use super::pipeline::Kernel;
use super::{Gpu, GpuBuffer, word};

/// [`crate::device::Compute::gelu_mul`].
pub(super) fn gelu_mul(gpu: &Gpu, gate: &GpuBuffer, up: &GpuBuffer, len: usize) {
    let params = GeluMulParams { len: word(len) };
    let buffers = [gate.slice(), up.slice()];
    let kernel = Kernel::flat("gelu_mul");
    gpu.pending().dispatch(&gpu.context, &kernel, buffers, &params, gpu.context.flat(len));
}
