//! `y[t][i] = u_i · Σ_j x[t][j] · N[i][j]`: integer rows read as they lie, converted to f32 in
//! registers (few tokens) or once per panel in the L2 cache (many tokens).
//!
//! **Invariant:** one sum is always taken in the same order (16 columns at a time, [`COLUMNS`]
//! columns to a partial sum), whatever tile it falls in; so a token's result does not depend on its
//! neighbours.

use std::array::from_fn;
use std::cell::RefCell;

use super::Cpu;
use super::buffer::FloatBuffer;
use super::parallel::{Plane, RowBlocks, Tile};
use super::simd::{CHUNK, Kernel, Simd};
use crate::device::compute::Product;
use crate::lattice::LatticeMatrix;

/// Columns summed in registers before they are added to the output: 6 tokens of them fit half of a
/// 48 KiB L1 cache.
const COLUMNS: usize = 1024;
/// Rows summed at once.
const ROWS: usize = 4;
/// Rows converted to one f32 panel (128 KiB).
const PANEL_ROWS: usize = 32;
/// Tokens that share one conversion of a panel; with their columns they fit an L2 cache.
const PANEL_TOKENS: usize = 96;
/// Integers in one task when rows are read once.
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
        let few = tokens <= 6;
        let block =
            if few { (TASK / stride.max(1)).clamp(ROWS, 64) / ROWS * ROWS } else { PANEL_ROWS };
        let parts: [_; N] = from_fn(|i| {
            let product = &products[i];
            (product.weight, product.bias.map(|bias| &bias[..]), product.accumulate)
        });
        let work = parts.iter().map(|(weight, ..)| weight.rows()).sum::<usize>() * stride * tokens;
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
                if few {
                    return self.simd.run(TileProduct {
                        x,
                        weight,
                        bias,
                        accumulate,
                        tile,
                        panel: &mut [],
                    });
                }
                PANEL.with_borrow_mut(|panel| {
                    if panel.is_empty() {
                        *panel = FloatBuffer::zeros(PANEL_ROWS * COLUMNS);
                    }
                    self.simd.run(TileProduct {
                        x,
                        weight,
                        bias,
                        accumulate,
                        tile,
                        panel: &mut panel[..],
                    });
                });
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

struct TileProduct<'a, 't> {
    /// `(tokens, stride)`.
    x: &'a [f32],
    weight: &'a LatticeMatrix,
    bias: Option<&'a [f32]>,
    accumulate: bool,
    /// Rows are tokens, columns are rows of `weight`.
    tile: Tile<'t>,
    /// Room for `PANEL_ROWS` rows of `COLUMNS`; empty when there are too few tokens to be worth a
    /// conversion.
    panel: &'a mut [f32],
}

impl Kernel for TileProduct<'_, '_> {
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        self.start();
        let stride = self.weight.stride();
        let (integers, _) = self.weight.integers().as_chunks::<CHUNK>();
        let row_chunks = stride / CHUNK;
        if self.panel.is_empty() {
            for from in (0..row_chunks).step_by(COLUMNS / CHUNK) {
                let columns = from..row_chunks.min(from + COLUMNS / CHUNK);
                let row = |i: usize| &integers[i * row_chunks..][columns.clone()];
                let first = self.tile.cols.start;
                self.sweep(simd, from, first, row);
            }
            return;
        }
        let (panel, _) = std::mem::take(&mut self.panel).as_chunks_mut::<CHUNK>();
        for from in (0..row_chunks).step_by(COLUMNS / CHUNK) {
            let columns = from..row_chunks.min(from + COLUMNS / CHUNK);
            let width = columns.len();
            for (i, out) in self.tile.cols.clone().zip(panel.chunks_exact_mut(width)) {
                for (integers, out) in integers[i * row_chunks..][columns.clone()].iter().zip(out) {
                    for part in 0..S::PARTS {
                        simd.store(simd.load_i16(integers, part), out, part);
                    }
                }
            }
            let first = self.tile.cols.start;
            let panel = &*panel;
            self.sweep(simd, from, first, |i| &panel[(i - first) * width..][..width]);
        }
    }
}

impl TileProduct<'_, '_> {
    /// Sets the tile to what the product is added to.
    #[inline(always)]
    fn start(&mut self) {
        for t in self.tile.rows.clone() {
            let cols = self.tile.cols.clone();
            let out = self.tile.row(t);
            match self.bias {
                Some(bias) if self.accumulate => {
                    out.iter_mut().zip(&bias[cols]).for_each(|(y, b)| *y += b)
                }
                Some(bias) => out.copy_from_slice(&bias[cols]),
                None if self.accumulate => {}
                None => out.fill(0.0),
            }
        }
    }

    /// Adds the products of the columns from chunk `from` on, as many as `row(i)` gives of weight
    /// row `i`.
    #[inline(always)]
    fn sweep<'w, S: Simd, E: Element>(
        &mut self,
        simd: S,
        from: usize,
        first: usize,
        row: impl Fn(usize) -> &'w [[E; CHUNK]],
    ) {
        let stride = self.weight.stride();
        let mut t = self.tile.rows.start;
        while t < self.tile.rows.end {
            let tokens = (self.tile.rows.end - t).min(S::TOKENS);
            let x = &self.x[t * stride..(t + tokens) * stride];
            match tokens {
                6 => self.rows::<S, E, 6>(simd, t, x, from, first, &row),
                5 => self.rows::<S, E, 5>(simd, t, x, from, first, &row),
                4 => self.rows::<S, E, 4>(simd, t, x, from, first, &row),
                3 => self.rows::<S, E, 3>(simd, t, x, from, first, &row),
                2 => self.rows::<S, E, 2>(simd, t, x, from, first, &row),
                _ => self.rows::<S, E, 1>(simd, t, x, from, first, &row),
            }
            t += tokens;
        }
    }

    /// All rows of the tile for the `T` tokens from `t` on.
    #[inline(always)]
    fn rows<'w, S: Simd, E: Element, const T: usize>(
        &mut self,
        simd: S,
        t: usize,
        x: &[f32],
        from: usize,
        first: usize,
        row: &impl Fn(usize) -> &'w [[E; CHUNK]],
    ) {
        let (x, _) = x.as_chunks::<CHUNK>();
        let stride = self.weight.stride();
        let cols = self.tile.cols.clone();
        let width = row(first).len();
        let x: [_; T] = from_fn(|k| &x[k * (stride / CHUNK) + from..][..width]);
        let ahead = ROWS * stride;
        let mut i = cols.start;
        while i < cols.end {
            let rows = (cols.end - i).min(ROWS);
            // A last group of fewer rows repeats one; its sums are not used.
            let w: [_; ROWS] = from_fn(|k| row(i + k.min(rows - 1)));
            let sums = dot(simd, w, x, ahead);
            let steps = &self.weight.steps()[i..i + rows];
            for (k, sums) in sums.into_iter().enumerate() {
                let out = &mut self.tile.row(t + k)[i - cols.start..][..rows];
                for ((y, step), sum) in out.iter_mut().zip(steps).zip(sums) {
                    *y = simd.fma1(*step, sum, *y);
                }
            }
            i += rows;
        }
    }
}

/// An element of a weight row: the integer, or the same as f32.
trait Element: Copy + 'static {
    fn load<S: Simd>(simd: S, chunk: &[Self; CHUNK], part: usize) -> S::V;
    fn prefetch<S: Simd>(simd: S, chunk: &[Self; CHUNK], ahead: usize);
}

impl Element for i16 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, chunk: &[i16; CHUNK], part: usize) -> S::V {
        simd.load_i16(chunk, part)
    }

    #[inline(always)]
    fn prefetch<S: Simd>(simd: S, chunk: &[i16; CHUNK], ahead: usize) {
        simd.prefetch(chunk, ahead);
    }
}

impl Element for f32 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, chunk: &[f32; CHUNK], part: usize) -> S::V {
        simd.load(chunk, part)
    }

    #[inline(always)]
    fn prefetch<S: Simd>(_simd: S, _chunk: &[f32; CHUNK], _ahead: usize) {}
}

/// `Σ_j w[r][j] · x[t][j]` for `ROWS` rows and `T` tokens.
#[inline(always)]
fn dot<S: Simd, E: Element, const T: usize>(
    simd: S,
    w: [&[[E; CHUNK]]; ROWS],
    x: [&[[f32; CHUNK]]; T],
    ahead: usize,
) -> [[f32; ROWS]; T] {
    let chunks = w[0].len();
    let w: [_; ROWS] = from_fn(|r| &w[r][..chunks]);
    let x: [_; T] = from_fn(|t| &x[t][..chunks]);
    let mut sums = [[simd.splat(0.0); ROWS]; T];
    for c in 0..chunks {
        for part in 0..S::PARTS {
            let mut wide = [simd.splat(0.0); ROWS];
            for r in 0..ROWS {
                wide[r] = E::load(simd, &w[r][c], part);
            }
            for t in 0..T {
                let x = simd.load(&x[t][c], part);
                for r in 0..ROWS {
                    sums[t][r] = simd.fma(wide[r], x, sums[t][r]);
                }
            }
        }
        // One line is two chunks.
        if c % 2 == 0 {
            for w in w {
                E::prefetch(simd, &w[c], ahead);
            }
        }
    }
    let mut total = [[0.0; ROWS]; T];
    for t in 0..T {
        total[t] = simd.sum4(sums[t]);
    }
    total
}
