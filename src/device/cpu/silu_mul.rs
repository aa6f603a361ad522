//! The gated activation of the feed-forward layer.
//!
//! **Source:** Shazeer, "GLU Variants Improve Transformer", 2020: SwiGLU.

use super::Cpu;
use super::exp::exp;
use super::parallel::{Plane, RowBlocks};
use super::simd::{Kernel, Simd};

/// Values in one task: 32 KiB of each factor, an L1 cache.
const TASK: usize = 1 << 13;

impl Cpu {
    /// [`crate::device::Compute::silu_mul`].
    pub(super) fn silu_mul_values(&self, gate: &mut [f32], up: &[f32], len: usize) {
        let plane = Plane { data: &mut gate[..len], width: len, block: TASK };
        // An exponential is worth about ten products.
        self.for_tiles([plane], RowBlocks::Every { rows: 1, block: 1 }, len * 10, |mut tile| {
            let up = &up[tile.cols.clone()];
            self.simd.run(SiluMul { gate: tile.row(0), up });
        });
    }
}

struct SiluMul<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Kernel for SiluMul<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (gate, up) in self.gate.iter_mut().zip(self.up) {
            *gate = *gate / (1.0 + exp(simd, -*gate)) * up;
        }
    }
}
