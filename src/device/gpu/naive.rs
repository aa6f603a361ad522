//! Every kernel as one would first write it, for benches to compare with.

use super::delta_apply::Pass;
use super::matmul::{self, Tiling};
use super::pipeline::Kernel;
use super::{Gpu, GpuBuffer, GpuDeltas, GpuMatrix};
use crate::Result;
use crate::device::{PassTimes, Product};
use crate::lattice::Sign;

/// [`crate::device::Device::delta_apply`], with one read and one write of the matrix for every
/// chunk of every low-rank segment, and every factor read from memory.
///
/// # Errors
/// When the device fails.
pub fn delta_apply(
    gpu: &Gpu,
    matrices: &mut [GpuMatrix],
    terms: &[(&GpuDeltas, Sign)],
) -> Result<PassTimes> {
    let steps = gpu.take_pending();
    let times = gpu
        .context
        .submit(super::delta_apply::prepare(&gpu.context, steps, matrices, terms, Pass::Naive)?)?
        .times;
    terms.iter().for_each(|(deltas, _)| deltas.arrived());
    Ok(times)
}

/// [`crate::device::Compute::matmul`] with one thread for each output of each token.
pub fn matvec(gpu: &Gpu, x: &GpuBuffer, rows: usize, product: Product<'_, Gpu>) {
    let tiling = Tiling { kernel: Kernel::new("naive/matvec"), outputs: 64, tokens: 1 };
    matmul::matmul(gpu, &tiling, x, rows, &[product]);
}

/// The same with 16 × 16 of them in a workgroup.
pub fn matmul(gpu: &Gpu, x: &GpuBuffer, rows: usize, product: Product<'_, Gpu>) {
    let tiling = Tiling { kernel: Kernel::new("naive/matmul"), outputs: 16, tokens: 16 };
    matmul::matmul(gpu, &tiling, x, rows, &[product]);
}
