//! [`Ceilings`] for the GPU, by its own clock where it has one. Twin: `device/cpu/ceiling.rs`.

use std::time::Instant;

use super::context::Slice;
use super::params::CeilingParams;
use super::pipeline::Kernel;
use super::recording::Recording;
use super::{Gpu, GpuMatrix, word};
use crate::Result;
use crate::device::Ceilings;

/// Threads in a workgroup: enough to keep memory busy on every GPU.
const THREADS: usize = 256;
/// Bytes in a vector of four words.
const VECTOR: u64 = 16;
/// Vectors that an invocation reads.
const READS: usize = 8;
/// Invocations that multiply, enough to keep any device busy.
const MULTIPLIERS: usize = 1 << 18;
/// Products of each turn of one: four of vectors of four.
const PRODUCTS: u64 = 16;

fn kernel(entry: &'static str) -> Kernel {
    Kernel::new("ceiling").entry(entry).constant("THREADS", word(THREADS))
}

impl Gpu {
    fn timed(&self, mut recording: Recording) -> Result<f64> {
        recording.timed = true;
        let start = Instant::now();
        let times = self.context.run(recording, &[])?.times;
        Ok(times.pass_ms.unwrap_or_else(|| start.elapsed().as_secs_f64() * 1e3))
    }

    fn over_parts<'a>(
        &self,
        entry: &'static str,
        per_invocation: usize,
        matrices: impl Iterator<Item = &'a GpuMatrix>,
    ) -> Recording {
        let mut recording = Recording::default();
        for part in matrices.flat_map(|matrix| &matrix.parts) {
            let vectors = part.integers.size() / VECTOR;
            let params =
                CeilingParams { count: word(vectors), per_invocation: word(per_invocation) };
            let groups = self.context.workgroups(
                usize::try_from(vectors).expect("in memory").div_ceil(THREADS * per_invocation),
            );
            let kernel = kernel(entry);
            recording.dispatch(
                &self.context,
                &kernel,
                [Slice::whole(&part.integers)],
                &params,
                groups,
            );
        }
        recording
    }

    fn products(&self, entry: &'static str, products: u64) -> Result<f64> {
        let scratch = self.context.storage("ceiling", &[0; 16])?;
        let per_invocation = products.div_ceil(MULTIPLIERS as u64 * PRODUCTS);
        let params = CeilingParams { count: 1, per_invocation: word(per_invocation) };
        let mut recording = Recording::default();
        let groups = self.context.workgroups(MULTIPLIERS / THREADS);
        recording.dispatch(
            &self.context,
            &kernel(entry),
            [Slice::whole(&scratch)],
            &params,
            groups,
        );
        self.timed(recording)
    }
}

impl Ceilings for Gpu {
    fn read_modify_write_ms(&self, matrices: &mut [&mut GpuMatrix]) -> Result<f64> {
        let pass = || {
            self.timed(self.over_parts(
                "read_modify_write",
                1,
                matrices.iter().map(|matrix| &**matrix),
            ))
        };
        // Twice restores every bit; the second time is measured.
        pass()?;
        pass()
    }

    fn read_ms(&self, matrices: &[&GpuMatrix]) -> Result<f64> {
        self.timed(self.over_parts("read", READS, matrices.iter().copied()))
    }

    fn integer_products_ms(&self, products: u64) -> Result<f64> {
        self.products("integers", products)
    }

    fn float_products_ms(&self, products: u64) -> Result<f64> {
        self.products("floats", products)
    }
}
