//! The gated activation of the feed-forward layer. Twin: `device/cpu/silu_mul.rs`.

use super::params::SiluMulParams;
use super::pipeline::Kernel;
use super::{Gpu, GpuBuffer, word};

/// [`crate::device::Compute::silu_mul`].
pub(super) fn silu_mul(gpu: &Gpu, gate: &GpuBuffer, up: &GpuBuffer, len: usize) {
    let params = SiluMulParams { len: word(len) };
    let buffers = [gate.slice(), up.slice()];
    let kernel = Kernel::flat("silu_mul");
    gpu.pending().dispatch(&gpu.context, &kernel, buffers, &params, gpu.context.flat(len));
}
