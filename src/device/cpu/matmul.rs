//! `y[t][i] = u_i · Σ_j x[t][j] · N[i][j]` for many tokens: integer rows are converted to f32 once
//! per panel, which stays in the L2 cache while all tokens of a tile pass: Goto and van de Geijn's
//! packing ("Anatomy of High-Performance Matrix Multiplication", 2008), with the conversion as the
//! copy. With few tokens a conversion would be used too seldom: `matvec.rs`. Both sum as `product.rs`
//! says.

use std::array::from_fn;
use std::cell::RefCell;

use super::Cpu;
use super::buffer::FloatBuffer;
use super::expand::Expand;
use super::matvec::{FEW, Matvec};
use super::parallel::{Plane, RowBlocks};
use super::product::{COLUMNS, ROWS, TileProduct};
use super::simd::{CHUNK, Kernel, Simd};
use super::unmerged::{Unmerged, addends};
use crate::device::compute::Product;

/// Rows converted to one f32 panel (128 KiB).
const PANEL_ROWS: usize = 32;
/// Tokens that share one conversion of a panel; with their columns they fit an L2 cache.
const PANEL_TOKENS: usize = 96;
/// Integers in one task when rows are read once: 32 KiB, some microseconds from memory.
const TASK: usize = 1 << 14;

thread_local! {
    static PANEL: RefCell<FloatBuffer> = RefCell::new(FloatBuffer::default());
}

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
        let few = tokens <= FEW;
        let block =
            if few { (TASK / stride.max(1)).clamp(ROWS, 64) / ROWS * ROWS } else { PANEL_ROWS };
        let parts: [_; N] = from_fn(|i| {
            let product = &products[i];
            (product.weight, product.bias.map(|bias| &bias[..]), product.accumulate)
        });
        let work = parts.iter().map(|(weight, ..)| weight.rows()).sum::<usize>() * stride * tokens;
        let mut used = vec![0; tokens];
        let addends =
            products.each_ref().map(|product| addends(unmerged.on(product.id), &mut used));
        let shrunk = self.shrink(x, tokens, &addends);
        let planes = products.each_mut().map(|product| {
            let width = product.weight.rows();
            Plane { data: &mut product.out[..tokens * width], width, block }
        });
        self.for_tiles(
            planes,
            RowBlocks::Every { rows: tokens, block: PANEL_TOKENS },
            work,
            |tile| {
                let (weight, bias, accumulate) = parts[tile.plane];
                let addends = &addends[tile.plane];
                let mut product = TileProduct { x, weight, bias, accumulate, tile };
                if few {
                    self.simd.run(Matvec(&mut product));
                } else {
                    PANEL.with_borrow_mut(|panel| {
                        if panel.is_empty() {
                            *panel = FloatBuffer::zeros(PANEL_ROWS * COLUMNS);
                        }
                        self.simd.run(Matmul { product: &mut product, panel: &mut panel[..] });
                    });
                }
                if !addends.is_empty() {
                    self.simd.run(Expand { product: &mut product, addends, shrunk: &shrunk });
                }
            },
        );
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

/// A tile of a product whose weights are converted panel by panel.
struct Matmul<'p, 'a, 't> {
    product: &'p mut TileProduct<'a, 't>,
    /// Memory for `PANEL_ROWS` rows of `COLUMNS`.
    panel: &'p mut [f32],
}

impl Kernel for Matmul<'_, '_, '_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { product, panel } = self;
        product.start();
        let (integers, _) = product.weight.integers().as_chunks::<CHUNK>();
        let row_chunks = product.weight.stride() / CHUNK;
        let (panel, _) = panel.as_chunks_mut::<CHUNK>();
        for from in (0..row_chunks).step_by(COLUMNS / CHUNK) {
            let columns = from..row_chunks.min(from + COLUMNS / CHUNK);
            let width = columns.len();
            for (i, out) in product.tile.cols.clone().zip(panel.chunks_exact_mut(width)) {
                for (integers, out) in integers[i * row_chunks..][columns.clone()].iter().zip(out) {
                    for part in 0..S::PARTS {
                        simd.store(simd.load_i16(integers, part), out, part);
                    }
                }
            }
            let first = product.tile.cols.start;
            let panel = &*panel;
            let row = |i: usize| &panel[(i - first) * width..][..width];
            product.sweep(simd, product.tile.rows.clone(), from, row);
        }
    }
}
