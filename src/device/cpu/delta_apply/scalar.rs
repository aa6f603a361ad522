//! The tile in plain Rust: one row, one panel of 32 columns.

use super::{RowBlock, Terms};
use crate::lattice::{LANES, Lane, Sign};

pub(super) fn apply(block: &mut RowBlock, terms: &Terms) {
    let (first_row, panels) = (block.first_row, block.lanes_per_row);
    for (i, row) in block.lanes.chunks_exact_mut(panels).enumerate() {
        for (panel, lane) in row.iter_mut().enumerate() {
            for &(factors, sign) in &terms.factors {
                #[allow(clippy::cast_possible_truncation, reason = "sums are taken modulo 2^16")]
                let q = factors.q_panel(first_row + i, panel).map(|q| q as i16);
                add(lane, &q, sign);
            }
            for &(dense, sign) in &terms.dense {
                add(lane, &dense[(first_row + i) * panels + panel].0, sign);
            }
        }
    }
}

fn add(lane: &mut Lane, q: &[i16; LANES], sign: Sign) {
    for (n, &q) in lane.0.iter_mut().zip(q) {
        *n = match sign {
            Sign::Add => n.wrapping_add(q),
            Sign::Subtract => n.wrapping_sub(q),
        };
    }
}
