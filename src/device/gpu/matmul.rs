//! `out[t][i] = step_i · Σ_j N_ij x[t][j]` for many tokens, and how either kernel is dispatched: with
//! few tokens `matvec.rs` has one that reads every weight once. Twin: `device/cpu/matmul.rs`.
//!
//! **Invariant:** within one kernel a token's sum is taken in the same order whatever else is in
//! the batch. The kernels differ in their order, so between them a token's values agree to
//! rounding.

use super::params::MatmulParams;
use super::pipeline::Kernel;
use super::{Gpu, GpuBuffer, Slice, matvec, word};
use crate::device::Product;

/// Outputs of a workgroup of `matmul.wgsl`.
const OUTPUTS: usize = 64;
/// Fewest and most tokens of one.
const TOKENS: (usize, usize) = (16, 64);
/// Inputs that it takes at a time.
const INPUTS: usize = 16;

/// A kernel and the piece of the output that one of its workgroups makes.
pub(super) struct Tiling {
    pub(super) kernel: Kernel,
    pub(super) outputs: usize,
    pub(super) tokens: usize,
}

impl Tiling {
    /// The kernel for so many tokens of so many inputs.
    pub(super) fn of(tokens: usize, inputs: usize) -> Self {
        if tokens <= matvec::MOST_TOKENS {
            return matvec::tiling(tokens, inputs);
        }
        let tokens = tokens.next_power_of_two().clamp(TOKENS.0, TOKENS.1);
        let constants = [("TOKENS", tokens), ("OUTPUTS", OUTPUTS), ("INPUTS", INPUTS)];
        Self { kernel: kernel("matmul", inputs, &constants), outputs: OUTPUTS, tokens }
    }
}

/// Whether x can be read by fours, for as many inputs at a time as either kernel takes.
fn is_aligned(inputs: usize) -> bool {
    inputs.is_multiple_of(INPUTS)
}

/// A kernel for matrices of so many inputs.
pub(super) fn kernel(
    shader: &'static str,
    inputs: usize,
    constants: &[(&'static str, usize)],
) -> Kernel {
    let kernel = Kernel::new(shader).constant("ALIGNED", is_aligned(inputs).into());
    constants.iter().fold(kernel, |kernel, &(name, value)| kernel.constant(name, word(value)))
}

/// [`crate::device::Compute::matmul`].
pub(super) fn products(gpu: &Gpu, x: &GpuBuffer, rows: usize, products: &[Product<'_, Gpu>]) {
    let Some(first) = products.first() else { return };
    let inputs = first.weight.cols;
    assert!(
        products.iter().all(|product| product.weight.cols == inputs),
        "matrices of one product differ in inputs"
    );
    matmul(gpu, &Tiling::of(rows, inputs), x, rows, products);
}

/// A dispatch for each part of each matrix.
pub(super) fn matmul(
    gpu: &Gpu,
    tiling: &Tiling,
    x: &GpuBuffer,
    rows: usize,
    products: &[Product<'_, Gpu>],
) {
    let mut pending = gpu.pending();
    for Product { weight, bias, out, accumulate, .. } in products {
        assert!(
            rows * weight.cols <= x.len && rows * weight.rows <= out.len,
            "more rows than a buffer holds"
        );
        let steps = Slice::whole(&weight.steps);
        for part in &weight.parts {
            let weights = Slice::whole(&part.integers);
            let buffers = [
                weights.clone(),
                steps.clone(),
                bias.map_or(steps.clone(), GpuBuffer::slice),
                x.slice(),
                // A binding by fours takes 16 bytes at least; what is not read may be anything.
                if is_aligned(weight.cols) { x.slice() } else { weights },
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
            let [across, down, _] = gpu.context.workgroups(part.rows.div_ceil(tiling.outputs));
            // Tokens first: workgroups that read the same weights run beside each other.
            let groups = [word(rows.div_ceil(tiling.tokens)), across, down];
            pending.dispatch(&gpu.context, &tiling.kernel, buffers, &params, groups);
        }
    }
}
