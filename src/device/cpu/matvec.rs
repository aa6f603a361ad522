//! `y[t][i] = u_i · Σ_j x[t][j] · N[i][j]` for few tokens: integer rows are read once, as they lie,
//! and converted in registers; memory is what such a product waits for.

use super::product::{COLUMNS, TileProduct};
use super::simd::{CHUNK, Kernel, Simd};

/// Most tokens: their sums for [`ROWS`](super::product::ROWS) rows fit the registers of AVX-512.
pub(super) const FEW: usize = 6;

/// A tile of a product whose weights are read once.
pub(super) struct Matvec<'p, 'a, 't>(pub(super) &'p mut TileProduct<'a, 't>);

impl Kernel for Matvec<'_, '_, '_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self(product) = self;
        product.start();
        let (integers, _) = product.weight.integers().as_chunks::<CHUNK>();
        let row_chunks = product.weight.stride() / CHUNK;
        for from in (0..row_chunks).step_by(COLUMNS / CHUNK) {
            let columns = from..row_chunks.min(from + COLUMNS / CHUNK);
            let row = |i: usize| &integers[i * row_chunks..][columns.clone()];
            product.sweep(simd, product.tile.rows.clone(), from, row);
        }
    }
}
