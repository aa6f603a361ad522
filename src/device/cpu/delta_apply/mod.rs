//! The switch on the CPU: every segment of a plan in one read and one write of each touched matrix.
//!
//! Work is cut into blocks of rows over all matrices together; blocks are independent and integers
//! commute, so neither threads nor tiles nor instruction sets can change a bit. The tile holds the
//! weights in registers while the segments' products go by.
//!
//! **Invariant:** plain integers throughout; sums wrap modulo 2^16, and the bound check made
//! beforehand guarantees that the final sum fits.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod kept;
mod scalar;

use bytemuck::Zeroable;
use rayon::prelude::*;

use super::{Cpu, SimdLevel};
use crate::adapter::FloatDelta;
use crate::lattice::{
    CompiledDelta, DeltaKind, Factors, Grid, LANES, LIMIT, Lane, LatticeMatrix, Segment, Sign,
    SparseRows, Squares, largest_magnitude,
};
use kept::Change;

/// Weights in one block of rows: large enough to pay for its start, small enough to keep every core
/// busy to the end.
const BLOCK_WEIGHTS: usize = 1 << 18;

/// Bytes of factors that stay in a core's second-level cache while row after row passes.
const CACHED_FACTOR_BYTES: usize = 384 << 10;

/// A pass that costs less, in integer products, is done by the thread that calls before another
/// would wake.
const ALONE: usize = 1 << 23;

/// What to read and write a weight costs, in integer products.
const TOUCH: usize = 16;

/// Applies to each matrix its segments, in parallel over all of them; a small pass stays on the
/// thread that calls.
///
/// # Panics
/// When a delta has another shape than its matrix.
pub fn delta_apply(cpu: &Cpu, work: Vec<(&mut LatticeMatrix, Vec<Segment>)>) {
    for (matrix, segments) in &work {
        let shape = (matrix.rows(), matrix.cols());
        assert!(
            segments.iter().all(|s| (s.delta.rows, s.delta.cols) == shape),
            "a delta of another shape than {shape:?}"
        );
    }
    let work: Vec<_> = work
        .into_iter()
        .filter(|(_, segments)| !segments.is_empty())
        .map(|(matrix, segments)| (matrix, Terms::new(&segments)))
        .collect();
    let cost: usize = work
        .iter()
        .map(|(matrix, terms)| matrix.rows() * matrix.cols() * (TOUCH + terms.products()))
        .sum();
    let blocks: Vec<_> = work
        .into_iter()
        .flat_map(|(matrix, terms)| {
            let (cols, lanes_per_row) = (matrix.cols(), matrix.stride() / LANES);
            let rows =
                (BLOCK_WEIGHTS / cols.max(1)).clamp(1, matrix.rows().max(1)).next_multiple_of(8);
            let (lanes, _) = matrix.parts_mut();
            let terms = std::sync::Arc::new(terms);
            lanes.chunks_mut((rows * lanes_per_row).max(1)).enumerate().map(move |(k, lanes)| {
                (RowBlock { lanes, lanes_per_row, first_row: k * rows }, terms.clone())
            })
        })
        .collect();
    let apply =
        |(mut block, terms): (RowBlock, std::sync::Arc<Terms>)| block.apply(cpu.simd, &terms);
    if cost < ALONE {
        blocks.into_iter().for_each(apply);
    } else {
        cpu.install(|| blocks.into_par_iter().with_max_len(1).for_each(apply));
    }
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
    let terms = Terms::new(&[Segment { delta, sign: Sign::Add }]);
    let lanes_per_row = delta.cols.div_ceil(LANES);
    let squares = row_max.par_chunks_mut(COUNTED_ROWS).enumerate().map(|(k, row_max)| {
        let first_row = k * COUNTED_ROWS;
        let mut lanes = vec![Lane::zeroed(); row_max.len() * lanes_per_row];
        let mut block = RowBlock { lanes: &mut lanes, lanes_per_row, first_row };
        block.apply(simd, &terms);
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
    fn rows(&self) -> usize {
        self.lanes.len() / self.lanes_per_row.max(1)
    }

    /// Adds and subtracts every term.
    fn apply(&mut self, simd: SimdLevel, terms: &Terms) {
        match simd {
            // SAFETY: `SimdLevel::Avx512` is at most what this machine has: asserted where it comes
            // in.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code, reason = "a call into instructions found at run time")]
            SimdLevel::Avx512 => unsafe { avx512::apply(self, terms) },
            // SAFETY: `SimdLevel::Avx2` is at most what this machine has: asserted where it comes
            // in.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code, reason = "a call into instructions found at run time")]
            SimdLevel::Avx2 => unsafe { avx2::apply(self, terms) },
            _ => scalar::apply(self, terms),
        }
        for &(sparse, sign) in &terms.sparse {
            scatter(self, sparse, sign);
        }
    }
}

/// Consecutive rows of one matrix.
struct RowBlock<'a> {
    lanes: &'a mut [Lane],
    lanes_per_row: usize,
    first_row: usize,
}

/// The segments of one matrix, sorted by kind.
struct Terms<'a> {
    factors: Vec<(&'a Factors, Sign)>,
    dense: Vec<(&'a [Lane], Sign)>,
    sparse: Vec<(&'a SparseRows, Sign)>,
}

impl<'a> Terms<'a> {
    fn new(segments: &[Segment<'a>]) -> Self {
        let mut terms = Self { factors: Vec::new(), dense: Vec::new(), sparse: Vec::new() };
        for segment in segments {
            match &segment.delta.kind {
                DeltaKind::LowRank(chunks) => {
                    terms.factors.extend(chunks.iter().map(|f| (f, segment.sign)))
                }
                DeltaKind::Dense(lanes) => terms.dense.push((lanes, segment.sign)),
                DeltaKind::Sparse(sparse) => terms.sparse.push((sparse, segment.sign)),
            }
        }
        terms
    }

    /// Products and sums that each weight takes; a sparse delta counts as if it had every entry.
    fn products(&self) -> usize {
        let factors: usize = self.factors.iter().map(|(factors, _)| factors.pairs * 2).sum();
        factors + self.dense.len() + self.sparse.len()
    }

    /// Panels of 32 columns to pass at a time, so that their factors stay in the cache.
    fn panels_at_a_time(&self) -> usize {
        let bytes: usize = self.factors.iter().map(|(f, _)| f.pairs * 2 * size_of::<Lane>()).sum();
        (CACHED_FACTOR_BYTES / bytes.max(1)).max(1)
    }
}

/// Adds or subtracts the entries that lie in the block.
fn scatter(block: &mut RowBlock, sparse: &SparseRows, sign: Sign) {
    let (first_row, stride) = (block.first_row, block.lanes_per_row * LANES);
    let rows = block.rows();
    let integers: &mut [i16] = bytemuck::cast_slice_mut(block.lanes);
    for i in 0..rows {
        let range =
            sparse.row_start[first_row + i] as usize..sparse.row_start[first_row + i + 1] as usize;
        for (&j, &q) in sparse.cols[range.clone()].iter().zip(&sparse.values[range]) {
            let n = &mut integers[i * stride + j as usize];
            *n = match sign {
                Sign::Add => n.wrapping_add(q),
                Sign::Subtract => n.wrapping_sub(q),
            };
        }
    }
}

#[cfg(test)]
mod tests;
