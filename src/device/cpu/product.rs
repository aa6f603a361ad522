//! The sums of a product's tile, with few tokens or many.
//!
//! **Invariant:** one sum is always taken in the same order (16 columns at a time, [`COLUMNS`]
//! columns to a partial sum), whatever tile it falls in; so a token's result does not depend on its
//! neighbours.

use std::array::from_fn;
use std::ops::Range;

use super::parallel::Tile;
use super::simd::{CHUNK, Simd};
use crate::lattice::LatticeMatrix;

/// Columns summed in registers before they are added to the output: 6 tokens of them fit half of a
/// 48 KiB L1 cache.
pub(super) const COLUMNS: usize = 1024;
/// Rows summed at once: each vector of x serves so many products.
pub(super) const ROWS: usize = 4;

/// One tile of one product: rows are tokens, columns are rows of `weight`.
pub(super) struct TileProduct<'a, 't> {
    /// `(tokens, stride)`.
    pub(super) x: &'a [f32],
    pub(super) weight: &'a LatticeMatrix,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) accumulate: bool,
    pub(super) tile: Tile<'t>,
}

impl TileProduct<'_, '_> {
    /// Sets the tile to what the product is added to.
    #[inline(always)]
    pub(super) fn start(&mut self) {
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

    /// Adds the products of the columns from chunk `from` on, as many as `row(i)` returns of weight
    /// row `i`, for some tokens of the tile.
    #[inline(always)]
    pub(super) fn sweep<'w, S: Simd, E: Element>(
        &mut self,
        simd: S,
        tokens: Range<usize>,
        from: usize,
        row: impl Fn(usize) -> &'w [[E; CHUNK]],
    ) {
        let stride = self.weight.stride();
        let mut t = tokens.start;
        while t < tokens.end {
            let tokens = (tokens.end - t).min(S::TOKENS);
            let x = &self.x[t * stride..(t + tokens) * stride];
            match tokens {
                6 => self.rows::<S, E, 6>(simd, t, x, from, &row),
                5 => self.rows::<S, E, 5>(simd, t, x, from, &row),
                4 => self.rows::<S, E, 4>(simd, t, x, from, &row),
                3 => self.rows::<S, E, 3>(simd, t, x, from, &row),
                2 => self.rows::<S, E, 2>(simd, t, x, from, &row),
                _ => self.rows::<S, E, 1>(simd, t, x, from, &row),
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
        row: &impl Fn(usize) -> &'w [[E; CHUNK]],
    ) {
        let (x, _) = x.as_chunks::<CHUNK>();
        let stride = self.weight.stride();
        let cols = self.tile.cols.clone();
        let width = row(cols.start).len();
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
pub(super) trait Element: Copy + 'static {
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
pub(super) fn dot<S: Simd, E: Element, const T: usize>(
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
