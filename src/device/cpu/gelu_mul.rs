//! `gate ← gelu(gate) · up` with the tanh form of GELU.
//!
//! **Source:** Hendrycks and Gimpel, arXiv 1606.08415; `gelu_pytorch_tanh` of transformers.

use super::Cpu;
use super::parallel::{Plane, RowBlocks};
use super::simd::{Kernel, Simd};
use super::tanh::tanh;

/// Values in one task: 32 KiB of each factor, an L1 cache.
const TASK: usize = 1 << 13;
/// √(2/π)
const SQRT_2_OVER_PI: f32 = 0.797_884_6;
/// Weight of the cube, fitted to the normal distribution's integral.
const CUBE: f32 = 0.044_715;

impl Cpu {
    /// [`crate::device::Compute::gelu_mul`].
    pub(super) fn gelu_mul_values(&self, gate: &mut [f32], up: &[f32], len: usize) {
        let plane = Plane { data: &mut gate[..len], width: len, block: TASK };
        // A hyperbolic tangent is worth about twenty products.
        self.for_tiles([plane], RowBlocks::Every { rows: 1, block: 1 }, len * 20, |mut tile| {
            let up = &up[tile.cols.clone()];
            self.simd.run(GeluMul { gate: tile.row(0), up });
        });
    }
}

struct GeluMul<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Kernel for GeluMul<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (gate, up) in self.gate.iter_mut().zip(self.up) {
            let x = *gate;
            let inner = SQRT_2_OVER_PI * simd.fma1(CUBE * x * x, x, x);
            *gate = 0.5 * x * (1.0 + tanh(simd, inner)) * up;
        }
    }
}
