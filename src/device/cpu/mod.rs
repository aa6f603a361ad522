//! The CPU: integer and float kernels with SIMD, chosen at run time, and the thread pool they run on.
//!
//! **Invariant:** a result does not depend on the number of threads.

mod attention;
mod buffer;
pub mod ceiling;
mod compute;
mod delta_apply;
mod elementwise;
mod fingerprint;
mod matmul;
mod parallel;
pub mod simd;
#[cfg(test)]
mod tests;

pub use attention::CpuKvLayer;
pub use buffer::FloatBuffer;
pub use delta_apply::{delta_apply, tighten};
pub use simd::SimdLevel;

use rayon::prelude::*;

use crate::device::{Device, MatrixWork};
use crate::lattice::{CompiledDelta, LatticeMatrix, Segment};
use crate::{Error, Result};

/// The CPU and its thread pool.
pub struct Cpu {
    pool: rayon::ThreadPool,
    simd: SimdLevel,
}

impl Cpu {
    /// The CPU with `threads` threads (all cores when `None`) and the widest instruction set it has.
    ///
    /// # Errors
    /// When the threads cannot be started.
    pub fn new(threads: Option<usize>) -> Result<Self> {
        Self::with_simd(threads, SimdLevel::detect())
    }

    /// The same, with a chosen instruction set.
    ///
    /// # Errors
    /// When the machine lacks `simd`, or the threads cannot be started.
    pub fn with_simd(threads: Option<usize>, simd: SimdLevel) -> Result<Self> {
        let widest = SimdLevel::detect();
        if simd > widest {
            return Err(Error::SimdUnavailable { requested: simd, widest });
        }
        let threads = threads.unwrap_or(0);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("pleach-{i}"))
            .build()
            .map_err(|source| Error::ThreadPool { threads, source })?;
        Ok(Self { pool, simd })
    }

    /// Threads in the pool.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// The instruction set in use.
    pub fn simd(&self) -> SimdLevel {
        self.simd
    }

    /// Runs `work` on a thread of the pool, this one if it is one.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        if self.pool.current_thread_index().is_some() { work() } else { self.pool.install(work) }
    }
}

impl Device for Cpu {
    type Matrix = LatticeMatrix;
    type Delta = CompiledDelta;
    type Buffer = FloatBuffer;

    fn describe(&self) -> String {
        format!("CPU, {} threads, {:?}", self.threads(), self.simd)
    }

    fn upload_matrix(&self, matrix: LatticeMatrix) -> Result<LatticeMatrix> {
        Ok(matrix)
    }

    fn upload_buffer(&self, values: Vec<f32>) -> Result<FloatBuffer> {
        Ok(FloatBuffer::from(&values[..]))
    }

    fn upload_delta(&self, delta: CompiledDelta) -> Result<CompiledDelta> {
        Ok(delta)
    }

    fn read_matrix(&self, matrix: &LatticeMatrix) -> Result<LatticeMatrix> {
        Ok(matrix.clone())
    }

    fn reach(&self, matrix: &LatticeMatrix, segments: &[Segment], rows: &[usize]) -> Result<Vec<u32>> {
        Ok(self.install(|| rows.par_iter().map(|&row| delta_apply::reach(matrix, segments, row)).collect()))
    }

    fn delta_apply(&self, work: Vec<MatrixWork<'_, Self>>) -> Result<()> {
        self.install(|| delta_apply(self.simd, work));
        Ok(())
    }

    fn fingerprint(&self, matrices: &[&LatticeMatrix]) -> Result<Vec<blake3::Hash>> {
        Ok(self.install(|| fingerprint::fingerprint(matrices)))
    }
}
