//! The CPU: integers with SIMD, one file per instruction set, chosen at run time.

pub mod simd;

pub use simd::SimdLevel;

use crate::Result;
use crate::device::Device;
use crate::lattice::LatticeMatrix;

/// The CPU and its thread pool.
pub struct Cpu {}

impl Device for Cpu {
    type Matrix = LatticeMatrix;
    type Buffer = Vec<f32>;

    fn upload_matrix(&self, matrix: LatticeMatrix) -> Result<LatticeMatrix> {
        Ok(matrix)
    }

    fn upload_buffer(&self, values: Vec<f32>) -> Result<Vec<f32>> {
        Ok(values)
    }
}
