//! `N ← N ± Q` for the entries of a sparse delta, in compressed rows.

use super::RowBlock;
use crate::lattice::{LANES, SignedDelta, SparseRows};

/// Adds or subtracts the entries that lie in the block.
pub(super) fn delta_sparse(block: &mut RowBlock, term: &SignedDelta<&SparseRows>) {
    let SignedDelta { delta: sparse, sign } = *term;
    let (first_row, stride) = (block.first_row, block.lanes_per_row * LANES);
    let rows = block.rows();
    let integers: &mut [i16] = bytemuck::cast_slice_mut(block.lanes);
    for i in 0..rows {
        let range =
            sparse.row_start[first_row + i] as usize..sparse.row_start[first_row + i + 1] as usize;
        for (&j, &q) in sparse.cols[range.clone()].iter().zip(&sparse.values[range]) {
            let n = &mut integers[i * stride + j as usize];
            *n = sign.apply(*n, q);
        }
    }
}
