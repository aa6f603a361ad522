//! The switch on the CPU: every delta of a plan in one read and one write of each touched matrix.
//!
//! Work is cut into blocks of rows over all matrices together; blocks are independent and integers
//! commute, so neither threads nor tiles nor instruction sets can change a bit. A tile holds the
//! weights in registers while the deltas' products go by, as the micro-kernel of a matrix product
//! holds its sums, and the factors pass a panel of columns at a time, so that they stay in the L2
//! while row after row passes (Goto and van de Geijn, "Anatomy of High-Performance Matrix
//! Multiplication", 2008). `tile.rs` is the tile in plain Rust; an instruction set with its own has
//! it beside its other operations, in `simd/`.
//!
//! **Invariant:** plain integers throughout; sums wrap modulo 2^16, and the bound check made
//! beforehand guarantees that the final sum fits.

mod delta_dense;
mod delta_sparse;
mod kept;
mod tile;

use std::sync::Arc;

use bytemuck::Zeroable;
use rayon::prelude::*;

use super::simd::{Kernel, Simd};
use super::{Cpu, SimdLevel};
use crate::adapter::FloatDelta;
use crate::lattice::{
    CompiledDelta, DeltaKind, Factors, Grid, LANES, LIMIT, Lane, LatticeMatrix, Sign, SignedDelta,
    SparseRows, Squares, largest_magnitude,
};
use delta_sparse::delta_sparse;
use kept::Change;
pub(super) use tile::delta_tiles;

/// Weights in one block of rows: large enough to pay for its start, small enough to keep every core
/// busy to the end.
const BLOCK_WEIGHTS: usize = 1 << 18;

/// Bytes of factors that stay in a core's second-level cache while row after row passes,
/// beside the weights that stream through.
const CACHED_FACTOR_BYTES: usize = 384 << 10;

/// A pass that costs less, in integer products, is done by the thread that calls before another
/// would wake.
const ALONE: usize = 1 << 23;

/// What to read and write a weight costs, in integer products.
const TOUCH: usize = 16;

/// Applies to each matrix its deltas, in parallel over all of them; a small pass stays on the
/// thread that calls.
///
/// # Panics
/// When a delta has another shape than its matrix.
pub fn delta_apply(cpu: &Cpu, work: Vec<(&mut LatticeMatrix, Vec<SignedDelta<&CompiledDelta>>)>) {
    for (matrix, deltas) in &work {
        let shape = (matrix.rows(), matrix.cols());
        assert!(
            deltas.iter().all(|term| (term.delta.rows, term.delta.cols) == shape),
            "a delta of another shape than {shape:?}"
        );
    }
    let work: Vec<_> = work
        .into_iter()
        .filter(|(_, deltas)| !deltas.is_empty())
        .map(|(matrix, deltas)| (matrix, ByKind::new(&deltas)))
        .collect();
    let cost: usize = work
        .iter()
        .map(|(matrix, deltas)| matrix.rows() * matrix.cols() * (TOUCH + deltas.products()))
        .sum();
    let blocks: Vec<_> =
        work.into_iter().flat_map(|(matrix, deltas)| row_blocks(matrix, deltas)).collect();
    let apply = |(mut block, deltas): (RowBlock, Arc<ByKind>)| block.apply(cpu.simd, &deltas);
    if cost < ALONE {
        blocks.into_iter().for_each(apply);
    } else {
        cpu.install(|| blocks.into_par_iter().with_max_len(1).for_each(apply));
    }
}

/// A matrix in blocks of rows, each with the deltas. All blocks but the last have a multiple of
/// eight rows: whole tiles of the tallest kind.
fn row_blocks<'a>(
    matrix: &'a mut LatticeMatrix,
    deltas: ByKind<'a>,
) -> impl Iterator<Item = (RowBlock<'a>, Arc<ByKind<'a>>)> {
    let (cols, lanes_per_row) = (matrix.cols(), matrix.stride() / LANES);
    let rows = (BLOCK_WEIGHTS / cols.max(1)).clamp(1, matrix.rows().max(1)).next_multiple_of(8);
    let (lanes, _) = matrix.parts_mut();
    let deltas = Arc::new(deltas);
    lanes.chunks_mut((rows * lanes_per_row).max(1)).enumerate().map(move |(k, lanes)| {
        (RowBlock { lanes, lanes_per_row, first_row: k * rows }, deltas.clone())
    })
}

/// Rows whose sums are counted at a time.
const COUNTED_ROWS: usize = 16;

/// Replaces each bound in `row_max` by the row's largest `|Q_ij|`, counted; call it inside the pool
/// that shall do the work.
///
/// # Panics
/// When `simd` is beyond this machine.
pub fn tighten(simd: SimdLevel, delta: &mut CompiledDelta) {
    count(simd, delta, None);
}

/// The same, and counts what the lattice keeps of `float`, which `delta` was compiled from on
/// `grid`.
///
/// # Panics
/// As [`tighten`], and when the three are of different shapes.
pub fn tighten_and_count(
    simd: SimdLevel,
    delta: &mut CompiledDelta,
    float: &FloatDelta,
    grid: &Grid,
) -> Squares {
    assert_eq!(
        (delta.rows, delta.cols),
        (grid.rows(), grid.cols),
        "the delta was compiled on another grid"
    );
    count(simd, delta, Some(&Change::new(float, grid)))
}

fn count(simd: SimdLevel, delta: &mut CompiledDelta, change: Option<&Change>) -> Squares {
    assert!(simd <= SimdLevel::detect(), "this machine has no {simd:?}");
    let mut row_max = std::mem::take(&mut delta.row_max);
    let deltas = ByKind::new(&[SignedDelta::added(&*delta)]);
    let lanes_per_row = delta.cols.div_ceil(LANES);
    let squares = row_max.par_chunks_mut(COUNTED_ROWS).enumerate().map(|(k, row_max)| {
        let first_row = k * COUNTED_ROWS;
        let mut lanes = vec![Lane::zeroed(); row_max.len() * lanes_per_row];
        let mut block = RowBlock { lanes: &mut lanes, lanes_per_row, first_row };
        block.apply(simd, &deltas);
        let squares =
            change.map(|change| change.squares(simd, &block, row_max, delta)).unwrap_or_default();
        for (i, (largest, row)) in
            row_max.iter_mut().zip(lanes.chunks_exact(lanes_per_row.max(1))).enumerate()
        {
            *largest = if *largest <= LIMIT {
                row.iter()
                    .flat_map(|lane| lane.0)
                    .map(|q| u32::from(q.unsigned_abs()))
                    .max()
                    .unwrap_or(0)
            } else {
                // A sum this large may have wrapped.
                let mut sums = vec![0; delta.cols];
                delta.add_row(first_row + i, Sign::Add, &mut sums);
                largest_magnitude(&sums)
            };
        }
        squares
    });
    // In the order of the rows, so that the figure does not depend on who came first.
    let squares: Vec<Squares> = squares.collect();
    delta.row_max = row_max;
    squares.into_iter().fold(Squares::default(), |mut sum, squares| {
        sum += squares;
        sum
    })
}

impl RowBlock<'_> {
    pub(super) fn rows(&self) -> usize {
        self.lanes.len() / self.lanes_per_row.max(1)
    }

    /// Adds and subtracts every delta.
    fn apply(&mut self, simd: SimdLevel, deltas: &ByKind) {
        simd.run(Tiles { block: self, deltas });
        for term in &deltas.sparse {
            delta_sparse(self, term);
        }
    }
}

/// The tiles of a block with the factored and dense deltas.
struct Tiles<'a, 'b, 'd> {
    block: &'a mut RowBlock<'b>,
    deltas: &'a ByKind<'d>,
}

impl Kernel for Tiles<'_, '_, '_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        simd.delta_tiles(self.block, self.deltas);
    }
}

/// Consecutive rows of one matrix.
pub(crate) struct RowBlock<'a> {
    pub(super) lanes: &'a mut [Lane],
    pub(super) lanes_per_row: usize,
    pub(super) first_row: usize,
}

/// The deltas of one matrix, sorted by kind.
pub(crate) struct ByKind<'a> {
    pub(super) factors: Vec<SignedDelta<&'a Factors>>,
    pub(super) dense: Vec<SignedDelta<&'a [Lane]>>,
    sparse: Vec<SignedDelta<&'a SparseRows>>,
}

impl<'a> ByKind<'a> {
    fn new(deltas: &[SignedDelta<&'a CompiledDelta>]) -> Self {
        let mut sorted = Self { factors: Vec::new(), dense: Vec::new(), sparse: Vec::new() };
        for term in deltas {
            match &term.delta.kind {
                DeltaKind::LowRank(chunks) => {
                    sorted.factors.extend(chunks.iter().map(|factors| term.with(factors)))
                }
                DeltaKind::Dense(lanes) => sorted.dense.push(term.with(lanes)),
                DeltaKind::Sparse(sparse) => sorted.sparse.push(term.with(sparse)),
            }
        }
        sorted
    }

    /// Products and sums that each weight takes; a sparse delta counts as if it had every entry.
    fn products(&self) -> usize {
        let factors: usize = self.factors.iter().map(|term| term.delta.pairs * 2).sum();
        factors + self.dense.len() + self.sparse.len()
    }

    /// Panels of 32 columns to pass at a time, so that their factors stay in the cache.
    pub(super) fn panels_at_a_time(&self) -> usize {
        let lanes: usize = self.factors.iter().map(|term| term.delta.pairs * 2).sum();
        (CACHED_FACTOR_BYTES / (lanes * size_of::<Lane>()).max(1)).max(1)
    }
}

#[cfg(test)]
mod tests;
