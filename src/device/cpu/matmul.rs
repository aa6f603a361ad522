//! `y[t][i] = u_i · Σ_j x[t][j] · N[i][j]`: how products are cut into tiles. Integer rows are read from
//! memory once for [`TILE_TOKENS`] tokens, as they lie; `product.rs` sums.

use std::array::from_fn;

use super::Cpu;
use super::buffer::FloatBuffer;
use super::expand::expand;
use super::parallel::{Plane, RowBlocks};
use super::product::{ROWS, TileProduct};
use super::shrink::Shrunk;
use super::simd::{Kernel, Simd};
use super::unmerged::{Addend, Unmerged, addends};
use crate::device::compute::Product;

/// Tokens in one tile; with their columns they fit an L2 cache.
const TILE_TOKENS: usize = 96;
/// Weight rows in one tile of more than [`FEW`] tokens: so many share each read of the tokens.
const TILE_ROWS: usize = 32;
/// Most tokens that wait for memory alone.
const FEW: usize = 6;
/// Integers in one tile of so few tokens, up to a power of two rows, so that as few tiles as can be
/// share a panel of `B'`: 32 to 64 KiB, some microseconds from memory.
const FEW_INTEGERS: usize = 1 << 14;

impl Cpu {
    /// [`crate::device::Compute::matmul`].
    pub(super) fn products<const N: usize>(
        &self,
        x: &[f32],
        tokens: usize,
        mut products: [Product<'_, Self>; N],
        unmerged: &Unmerged<'_>,
    ) {
        let Some(first) = products.first() else { return };
        let (cols, stride) = (first.weight.cols(), first.weight.stride());
        assert!(
            products.iter().all(|p| p.weight.cols() == cols),
            "matrices of one product differ in inputs"
        );
        let padded;
        let x = if cols == stride {
            &x[..tokens * stride]
        } else {
            padded = pad(&x[..tokens * cols], cols, stride);
            &padded[..]
        };
        let block = if tokens <= FEW {
            (FEW_INTEGERS / stride.max(1)).next_power_of_two().clamp(ROWS, 64)
        } else {
            TILE_ROWS
        };
        let parts: [_; N] = from_fn(|i| {
            let product = &products[i];
            (product.weight, product.bias.map(|bias| &bias[..]), product.accumulate)
        });
        let work = parts.iter().map(|(weight, ..)| weight.rows()).sum::<usize>() * stride * tokens;
        let addends = addends(products.each_ref().map(|product| unmerged.on(product.id)), tokens);
        let shrunk = self.shrink(x, tokens, &addends);
        let planes = products.each_mut().map(|product| {
            let width = product.weight.rows();
            Plane { data: &mut product.out[..tokens * width], width, block }
        });
        let rows = RowBlocks::Every { rows: tokens, block: TILE_TOKENS };
        self.for_tiles(planes, rows, work, |tile| {
            let (weight, bias, accumulate) = parts[tile.plane];
            let addends = &addends[tile.plane][..];
            let product = TileProduct { x, weight, bias, accumulate, tile };
            self.simd.run(Matmul { product, addends, shrunk: &shrunk });
        });
    }
}

/// Rows of `cols` values, each with zeros up to `stride`.
fn pad(x: &[f32], cols: usize, stride: usize) -> FloatBuffer {
    if cols == 0 {
        return FloatBuffer::default();
    }
    let mut padded = FloatBuffer::zeros(x.len() / cols * stride);
    for (row, out) in x.chunks_exact(cols).zip(padded.chunks_exact_mut(stride)) {
        out[..cols].copy_from_slice(row);
    }
    padded
}

/// A tile of a product, and what is added to it.
struct Matmul<'a, 't> {
    product: TileProduct<'a, 't>,
    addends: &'a [Addend<'a>],
    shrunk: &'a Shrunk,
}

impl Kernel for Matmul<'_, '_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { mut product, addends, shrunk } = self;
        product.start();
        let (weight, tokens) = (product.weight, product.tile.rows.clone());
        product.sweep(simd, weight.integers(), tokens);
        expand(simd, &mut product, addends, shrunk);
    }
}
