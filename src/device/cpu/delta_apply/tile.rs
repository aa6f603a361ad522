//! The tile in plain Rust, for instruction sets that have none of their own: one row, one panel of
//! 32 columns.

use super::delta_dense::delta_dense;
use super::{ByKind, RowBlock};

/// Applies the factored and dense deltas to a block.
pub(in crate::device::cpu) fn delta_tiles(block: &mut RowBlock, deltas: &ByKind) {
    let (first_row, panels) = (block.first_row, block.lanes_per_row);
    for (i, row) in block.lanes.chunks_exact_mut(panels).enumerate() {
        for (panel, lane) in row.iter_mut().enumerate() {
            for term in &deltas.factors {
                #[allow(clippy::cast_possible_truncation, reason = "sums are taken modulo 2^16")]
                let q = term.delta.q_panel(first_row + i, panel).map(|q| q as i16);
                delta_dense(lane, &q, term.sign);
            }
            for term in &deltas.dense {
                delta_dense(lane, &term.delta[(first_row + i) * panels + panel].0, term.sign);
            }
        }
    }
}
