//! Every kernel as one would first write it, for benches to compare with.

use super::matmul::{self, Tiling};
use super::pipeline::Kernel;
use super::{Gpu, GpuBuffer};
use crate::device::Product;

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
