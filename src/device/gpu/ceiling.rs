//! [`Ceilings`] for the GPU, by its own clock where it has one.

use std::time::Instant;

use super::context::Slice;
use super::params::CeilingParams;
use super::pipeline::Kernel;
use super::steps::Steps;
use super::{Gpu, GpuMatrix, word};
use crate::Result;
use crate::device::Ceilings;

/// Invocations in a workgroup.
const GROUP: usize = 256;
/// Bytes in a vector of four words.
const VECTOR: u64 = 16;
/// Vectors that an invocation reads.
const READS: usize = 8;
/// Invocations that multiply, enough to keep any device busy, and the products of each step of one.
const MULTIPLIERS: usize = 1 << 18;
const PRODUCTS: u64 = 16;

impl Gpu {
    fn timed(&self, mut steps: Steps) -> Result<f64> {
        steps.timed = true;
        let start = Instant::now();
        let times = self.context.run(steps, &[])?.times;
        Ok(times.pass_ms.unwrap_or_else(|| start.elapsed().as_secs_f64() * 1e3))
    }

    fn over_parts<'a>(
        &self,
        entry: &'static str,
        per_invocation: usize,
        matrices: impl Iterator<Item = &'a GpuMatrix>,
    ) -> Steps {
        let mut steps = Steps::default();
        for part in matrices.flat_map(|matrix| &matrix.parts) {
            let vectors = part.integers.size() / VECTOR;
            let params =
                CeilingParams { count: word(vectors), per_invocation: word(per_invocation) };
            let groups = self.context.grid(
                usize::try_from(vectors).expect("in memory").div_ceil(GROUP * per_invocation),
            );
            let kernel = Kernel::new("ceiling").entry(entry);
            steps.dispatch(&self.context, &kernel, [Slice::whole(&part.integers)], &params, groups);
        }
        steps
    }

    fn products(&self, entry: &'static str, products: u64) -> Result<f64> {
        let scratch = self.context.storage("ceiling", &[0; 16])?;
        let per_invocation = products.div_ceil(MULTIPLIERS as u64 * PRODUCTS);
        let params = CeilingParams { count: 1, per_invocation: word(per_invocation) };
        let mut steps = Steps::default();
        let groups = self.context.grid(MULTIPLIERS / GROUP);
        steps.dispatch(
            &self.context,
            &Kernel::new("ceiling").entry(entry),
            [Slice::whole(&scratch)],
            &params,
            groups,
        );
        self.timed(steps)
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
