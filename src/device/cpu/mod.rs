//! The CPU: integers with SIMD, one file per instruction set, chosen at run time.

pub mod ceiling;
mod delta_apply;
mod fingerprint;
mod simd;

pub use delta_apply::delta_apply;
pub use simd::SimdLevel;

use crate::Result;
use crate::device::{Device, MatrixWork};
use crate::lattice::{CompiledDelta, LatticeMatrix};

/// The CPU: a pool of threads and the widest instructions this machine has.
pub struct Cpu {
    pool: rayon::ThreadPool,
    simd: SimdLevel,
}

impl Cpu {
    /// A pool of `threads` threads, or of one for every core.
    ///
    /// # Errors
    /// [`Error::Threads`](crate::Error::Threads) when the operating system gives no threads.
    pub fn new(threads: Option<usize>) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).build();
        Ok(Self { pool: pool.map_err(|source| crate::Error::Threads { source })?, simd: SimdLevel::detect() })
    }

    /// The same with narrower instructions, to compare; never wider than the machine's.
    pub fn with_simd(mut self, simd: SimdLevel) -> Self {
        self.simd = simd.min(SimdLevel::detect());
        self
    }

    /// The instructions in use.
    pub fn simd(&self) -> SimdLevel {
        self.simd
    }

    /// Threads in the pool.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `work` inside the pool.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }
}

impl Device for Cpu {
    type Matrix = LatticeMatrix;
    type Delta = CompiledDelta;
    type Buffer = Vec<f32>;

    fn describe(&self) -> String {
        format!("CPU, {} threads, {:?}", self.threads(), self.simd)
    }

    fn upload_matrix(&self, matrix: LatticeMatrix) -> Result<LatticeMatrix> {
        Ok(matrix)
    }

    fn upload_buffer(&self, values: Vec<f32>) -> Result<Vec<f32>> {
        Ok(values)
    }

    fn upload_delta(&self, delta: CompiledDelta) -> Result<CompiledDelta> {
        Ok(delta)
    }

    fn read_matrix(&self, matrix: &LatticeMatrix) -> Result<LatticeMatrix> {
        Ok(matrix.clone())
    }

    fn delta_apply(&self, work: Vec<MatrixWork<'_, Self>>) -> Result<()> {
        self.install(|| delta_apply(self.simd, work));
        Ok(())
    }

    fn fingerprint(&self, matrices: &[&LatticeMatrix]) -> Result<Vec<blake3::Hash>> {
        Ok(self.install(|| fingerprint::fingerprint(matrices)))
    }
}
