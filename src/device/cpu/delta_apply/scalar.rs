//! The tile in plain Rust: one row, one panel of 32 columns.

use super::{RowBlock, Terms};
use crate::lattice::{Factors, LANES, Lane, Sign};

pub(super) fn apply(block: &mut RowBlock, terms: &Terms) {
    let (first_row, panels) = (block.first_row, block.lanes_per_row);
    for (i, row) in block.lanes.chunks_exact_mut(panels).enumerate() {
        for (panel, lane) in row.iter_mut().enumerate() {
            for &(factors, sign) in &terms.factors {
                add(lane, &product(factors, first_row + i, panel), sign);
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

/// `Q` of one row and panel, modulo 2^16.
fn product(factors: &Factors, row: usize, panel: usize) -> [i16; LANES] {
    let shift = factors.shift[row];
    let mut sums = [(1_i32 << shift) >> 1; LANES];
    let a = &factors.a[panel * factors.pairs * 2..][..factors.pairs * 2];
    for (lanes, b) in a.chunks_exact(2).zip(factors.b_row(row).chunks_exact(2)) {
        let b = [i32::from(b[0]), i32::from(b[1])];
        for (parity, lane) in lanes.iter().enumerate() {
            for (m, a) in lane.0.chunks_exact(2).enumerate() {
                sums[m * 2 + parity] += i32::from(a[0]) * b[0] + i32::from(a[1]) * b[1];
            }
        }
    }
    #[allow(clippy::cast_possible_truncation, reason = "sums are taken modulo 2^16")]
    sums.map(|sum| (sum >> shift) as i16)
}
