//! `out[t][i] = step_i · Σ_j N_ij x[t][j]` for many tokens, and how either kernel is dispatched: with
//! few tokens `matvec.rs` has one that reads every weight once. Twin: `device/cpu/matmul.rs`.
//!
//! **Invariant:** within one kernel a token's sum is taken in the same order whatever else is in
//! the batch. The kernels differ in their order, so between them a token's values agree to
//! rounding.

use std::ops::Range;

use super::matrix::Part;
use super::params::MatmulParams;
use super::pipeline::Kernel;
use super::recording::Recording;
use super::unmerged::PRODUCTS;
use super::{Gpu, GpuBuffer, GpuUnmerged, Slice, matvec, word};
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
pub(super) fn products(
    gpu: &Gpu,
    x: &GpuBuffer,
    rows: usize,
    products: &[Product<'_, Gpu>],
    unmerged: &GpuUnmerged<'_>,
) {
    let Some(first) = products.first() else { return };
    let inputs = first.weight.cols;
    assert!(
        products.iter().all(|product| product.weight.cols == inputs),
        "matrices of one product differ in inputs"
    );
    let tiling = Tiling::of(rows, inputs);
    for products in products.chunks(PRODUCTS) {
        // First what the products need not wait for.
        let addends = unmerged.shrink(gpu, x, products);
        matmul(gpu, &tiling, x, rows, products);
        unmerged.expand(gpu, &tiling, x, rows, products, &addends);
    }
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
    for product in products {
        for part in &product.weight.parts {
            let weights = Weights { part, integers: &part.integers, is_delta: false };
            dispatch(gpu, &mut pending, tiling, x, 0..rows, product, &weights);
        }
    }
}

/// What a dispatch multiplies by.
pub(super) struct Weights<'a> {
    /// Which part of the matrix it is.
    pub(super) part: &'a Part,
    pub(super) integers: &'a wgpu::Buffer,
    /// Whether it is what a dense delta adds to the matrix, so that the product is added, too.
    pub(super) is_delta: bool,
}

/// Appends the dispatch of one part, for these rows.
pub(super) fn dispatch(
    gpu: &Gpu,
    pending: &mut Recording,
    tiling: &Tiling,
    x: &GpuBuffer,
    rows: Range<usize>,
    product: &Product<'_, Gpu>,
    weights: &Weights<'_>,
) {
    let Product { weight, out, accumulate, .. } = product;
    let Weights { part, integers, is_delta } = *weights;
    assert!(
        rows.end * weight.cols <= x.len && rows.end * weight.rows <= out.len,
        "more rows than a buffer holds"
    );
    let bias = product.bias.filter(|_| !is_delta);
    let [integers, steps] = [integers, &weight.steps].map(Slice::whole);
    let buffers = [
        integers.clone(),
        steps.clone(),
        bias.map_or(steps, GpuBuffer::slice),
        x.slice(),
        // A binding by fours takes 16 bytes at least; what is not read may be anything.
        if is_aligned(weight.cols) { x.slice() } else { integers },
        out.slice(),
    ];
    let params = MatmulParams {
        first_row: word(rows.start),
        rows: word(rows.len()),
        inputs: word(weight.cols),
        outputs: word(weight.rows),
        part_outputs: word(part.rows),
        first_output: word(part.first_row),
        has_bias: bias.is_some().into(),
        accumulate: (*accumulate || is_delta).into(),
    };
    let [across, down, _] = gpu.context.workgroups(part.rows.div_ceil(tiling.outputs));
    // Tokens first: workgroups that read the same weights run beside each other.
    let groups = [word(rows.len().div_ceil(tiling.tokens)), across, down];
    pending.dispatch(&gpu.context, &tiling.kernel, buffers, &params, groups);
}
