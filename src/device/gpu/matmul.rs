//! `out[t][i] = step_i · Σ_j N_ij x[t][j]`: `matvec.wgsl` for up to eight tokens, `matmul.wgsl` for more.
//!
//! **Invariant:** within one kernel a token's sum is taken in the same order whatever else is in the batch. The kernels
//! differ in their order, so between them a token's values agree to rounding.

use super::params::MatmulParams;
use super::pipeline::Kernel;
use super::{Gpu, GpuBuffer, Slice, word};
use crate::device::Product;

/// A kernel and the piece of the output that one of its workgroups makes.
pub(super) struct Tiling {
    pub(super) kernel: Kernel,
    pub(super) outputs: usize,
    pub(super) tokens: usize,
}

impl Tiling {
    /// The kernel for so many tokens.
    pub(super) fn of(tokens: usize) -> Self {
        if tokens <= 8 {
            let tokens = tokens.next_power_of_two();
            Self { kernel: Kernel::new("matvec").constant("TOKENS", word(tokens)), outputs: 16, tokens }
        } else {
            Self { kernel: Kernel::new("matmul"), outputs: 64, tokens: 64 }
        }
    }
}

/// [`crate::device::Compute::matmul`]: a dispatch for each part of each matrix.
pub(super) fn matmul(gpu: &Gpu, tiling: &Tiling, x: &GpuBuffer, rows: usize, products: &[Product<'_, Gpu>]) {
    let mut pending = gpu.pending();
    for Product { weight, bias, out, accumulate } in products {
        assert!(rows * weight.cols <= x.len && rows * weight.rows <= out.len, "more rows than a buffer holds");
        let steps = Slice::whole(&weight.steps);
        for part in &weight.parts {
            let weights = Slice::whole(&part.integers);
            let buffers = [
                weights.clone(),
                steps.clone(),
                bias.map_or(steps.clone(), GpuBuffer::slice),
                x.slice(),
                // A binding by fours takes 16 bytes at least; what is not read may be anything.
                if weight.cols.is_multiple_of(4) { x.slice() } else { weights },
                out.slice(),
            ];
            let params = MatmulParams {
                rows: word(rows),
                inputs: word(weight.cols),
                outputs: word(weight.rows),
                part_outputs: word(part.rows),
                first_output: word(part.first_row),
                has_bias: bias.is_some().into(),
                accumulate: (*accumulate).into(),
            };
            let [across, down, _] = gpu.context.grid(part.rows.div_ceil(tiling.outputs));
            // Tokens first: workgroups that read the same weights run beside each other.
            let groups = [word(rows.div_ceil(tiling.tokens)), across, down];
            pending.dispatch(&gpu.context, &tiling.kernel, buffers, &params, groups);
        }
    }
}
