//! Every kernel as one would first write it, for benches to compare with.

use super::delta_apply::Pass;
use super::matmul::{self, Tiling};
use super::pipeline::{FLAT_THREADS, Kernel};
use super::{Gpu, GpuBuffer, GpuDeltas, GpuMatrix, word};
use crate::Result;
use crate::device::{PassTimes, Product};
use crate::lattice::SignedDelta;

/// [`crate::device::Device::delta_apply`], with one read and one write of the matrix for every
/// chunk of every low-rank delta, and every factor read from memory.
///
/// # Errors
/// When the device fails.
pub fn delta_apply(
    gpu: &Gpu,
    matrices: &mut [GpuMatrix],
    deltas: &[SignedDelta<&GpuDeltas>],
) -> Result<PassTimes> {
    let recording = gpu.take_pending();
    let times = gpu
        .context
        .submit(super::delta_apply::prepare(
            &gpu.context,
            recording,
            matrices,
            deltas,
            Pass::Naive,
        )?)?
        .times;
    deltas.iter().for_each(|node| node.delta.arrived());
    Ok(times)
}

/// [`crate::device::Compute::matmul`] with one thread for each output of each token.
pub fn matvec(gpu: &Gpu, x: &GpuBuffer, rows: usize, product: Product<'_, Gpu>) {
    let kernel = Kernel::flat("naive/matvec");
    let tiling = Tiling { kernel, outputs: FLAT_THREADS, tokens: 1 };
    matmul::matmul(gpu, &tiling, x, rows, &[product]);
}

/// Outputs, and tokens, of a workgroup of [`matmul`].
const SIDE: usize = 16;

/// The same with 16 × 16 of them in a workgroup.
pub fn matmul(gpu: &Gpu, x: &GpuBuffer, rows: usize, product: Product<'_, Gpu>) {
    let kernel = Kernel::new("naive/matmul").constant("SIDE", word(SIDE));
    let tiling = Tiling { kernel, outputs: SIDE, tokens: SIDE };
    matmul::matmul(gpu, &tiling, x, rows, &[product]);
}
