//! The CPU: integer and float kernels with SIMD, chosen at run time, and the thread pool they run
//! on.
//!
//! **The switch** is `delta_apply/`; blocks of rows over all matrices together go to the threads,
//! and a small pass stays on the thread that calls. A tile of 8 rows of 32 columns (AVX-512; 2
//! rows with AVX2) stays in registers while the factors pass.
//!
//! **The forward pass.** A product streams i16 rows and converts them in registers (`product.rs`);
//! tokens pass over the rows in blocks of up to 6. One call takes several matrices of one input: q,
//! k and v together; gate and up together (`matmul.rs`).
//!
//! A call is one parallel region with one barrier and no allocation (`parallel.rs`): each worker
//! walks its own stretch of tiles, then helps the others. Below 2^15 multiply-adds it stays on one
//! thread. So a decoded token costs 4 regions a layer (q k v; o; gate up; down), a fifth for
//! attention after some 30 positions, and one for the activation in wide models; norms and
//! rotations stay on one thread.
//!
//! **Instruction sets.** A kernel is written once over the trait `Simd` and compiled for each
//! level by `SimdLevel::run`, the only way to instructions found at run time; the switch's tile,
//! whose registers are an instruction set's own, is a method of that trait, with one in plain Rust
//! for the others. An instruction set is one file of `simd/`.
//!
//! **Invariant:** a result does not depend on the number of threads.

mod argmax;
mod attention;
mod buffer;
#[cfg(feature = "measure")]
pub mod ceiling;
mod compute;
mod delta_apply;
mod embed;
mod exp;
mod expand;
mod fingerprint;
mod gelu_mul;
mod matmul;
mod parallel;
mod product;
mod rms_norm;
mod rotate_append;
mod sampling;
mod shrink;
mod silu_mul;
pub mod simd;
mod tanh;
#[cfg(test)]
mod tests;
mod unmerged;

pub use argmax::argmax;
pub use attention::CpuKvLayer;
pub use buffer::FloatBuffer;
pub use delta_apply::{delta_apply, tighten, tighten_and_count};
pub use sampling::{sample, top_k_tokens};
pub use simd::SimdLevel;
pub use unmerged::Unmerged;

use std::sync::Arc;
#[cfg(feature = "measure")]
use std::time::Instant;

#[cfg(feature = "measure")]
use crate::device::Ceilings;
use crate::device::{Device, PassTimes};
use crate::lattice::{LatticeMatrix, MatrixId, NodeDeltas, SignedDelta};
use crate::{Error, Result};

/// The CPU and its thread pool, which copies share.
#[derive(Clone)]
pub struct Cpu {
    pool: Arc<rayon::ThreadPool>,
    simd: SimdLevel,
}

impl Cpu {
    /// The CPU with `threads` threads (all cores when `None`) and the widest instruction set it
    /// has.
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
        Ok(Self { pool: Arc::new(pool), simd })
    }

    /// Threads in the pool.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// The instruction set in use.
    pub fn simd(&self) -> SimdLevel {
        self.simd
    }

    #[cfg(feature = "measure")]
    fn timed(&self, work: impl FnOnce() + Send) -> f64 {
        self.install(|| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64() * 1e3
        })
    }

    /// Runs `work` on a thread of the pool, this one if it is one.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        if self.pool.current_thread_index().is_some() { work() } else { self.pool.install(work) }
    }
}

impl Device for Cpu {
    type Matrix = LatticeMatrix;
    type Deltas = Arc<NodeDeltas>;
    type Pass = ();
    type Buffer = FloatBuffer;

    const HOST_MEMORY: bool = true;

    fn describe(&self) -> String {
        let threads = self.threads();
        let plural = if threads == 1 { "" } else { "s" };
        format!("CPU, {threads} thread{plural}, {:?}", self.simd)
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn reopen(&mut self) -> Result<()> {
        Ok(())
    }

    fn upload_matrix(&self, matrix: LatticeMatrix) -> Result<LatticeMatrix> {
        Ok(matrix)
    }

    fn upload_buffer(&self, values: Vec<f32>) -> Result<FloatBuffer> {
        Ok(FloatBuffer::from(&values[..]))
    }

    fn upload_deltas(&self, deltas: &Arc<NodeDeltas>) -> Result<Arc<NodeDeltas>> {
        Ok(deltas.clone())
    }

    fn deltas_bytes(&self, deltas: &Arc<NodeDeltas>) -> usize {
        deltas.bytes()
    }

    fn finish_uploads(&self, _: &[&Arc<NodeDeltas>]) -> Result<()> {
        Ok(())
    }

    fn copy_matrix(&self, matrix: &LatticeMatrix) -> Result<LatticeMatrix> {
        Ok(matrix.clone())
    }

    fn read_matrix(&self, matrix: &LatticeMatrix) -> Result<LatticeMatrix> {
        Ok(matrix.clone())
    }

    fn read_rows(&self, wanted: &[(&LatticeMatrix, &[usize])]) -> Result<Vec<Vec<i16>>> {
        let rows = |(matrix, rows): &(&LatticeMatrix, &[usize])| {
            rows.iter().flat_map(|&row| matrix.row(row)).copied().collect::<Vec<_>>()
        };
        Ok(wanted.iter().map(rows).collect())
    }

    fn prepare_pass(&self, _: &[LatticeMatrix], _: &[SignedDelta<&Arc<NodeDeltas>>]) -> Result<()> {
        Ok(())
    }

    fn delta_apply(
        &self,
        matrices: &mut [LatticeMatrix],
        deltas: &[SignedDelta<&Arc<NodeDeltas>>],
        (): (),
    ) -> Result<PassTimes> {
        let nodes: Vec<_> = deltas.iter().map(|node| node.with(&**node.delta)).collect();
        let on = |id| nodes.iter().filter_map(|node| node.on(id)).collect();
        let work = matrices.iter_mut().enumerate().map(|(k, matrix)| (matrix, on(MatrixId(k))));
        delta_apply(self, work.collect());
        Ok(PassTimes::default())
    }

    fn fingerprint(&self, matrices: &[&LatticeMatrix]) -> Result<Vec<blake3::Hash>> {
        Ok(self.install(|| fingerprint::fingerprint(matrices)))
    }
}

#[cfg(feature = "measure")]
impl Ceilings for Cpu {
    fn read_modify_write_ms(&self, matrices: &mut [&mut LatticeMatrix]) -> Result<f64> {
        let mut lanes: Vec<_> = matrices.iter_mut().map(|matrix| matrix.parts_mut().0).collect();
        // Twice restores every bit; the second time is measured.
        self.install(|| ceiling::read_modify_write(self.simd, &mut lanes));
        Ok(self.timed(|| ceiling::read_modify_write(self.simd, &mut lanes)))
    }

    fn read_ms(&self, matrices: &[&LatticeMatrix]) -> Result<f64> {
        let lanes: Vec<_> = matrices.iter().map(|matrix| matrix.lanes()).collect();
        Ok(self.timed(|| {
            std::hint::black_box(ceiling::read(self.simd, &lanes));
        }))
    }

    fn integer_products_ms(&self, products: u64) -> Result<f64> {
        Ok(self.timed(|| ceiling::integer_multiply_add(self.simd, products)))
    }

    fn float_products_ms(&self, products: u64) -> Result<f64> {
        Ok(self.timed(|| ceiling::float_multiply_add(self.simd, products)))
    }
}
