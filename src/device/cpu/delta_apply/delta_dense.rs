//! `N ← N ± Q` for 32 columns of one row, `Q` laid out as `N` is.

use crate::lattice::{LANES, Lane, Sign};

/// Adds or subtracts `q`.
pub(super) fn delta_dense(lane: &mut Lane, q: &[i16; LANES], sign: Sign) {
    for (n, &q) in lane.0.iter_mut().zip(q) {
        *n = sign.apply(*n, q);
    }
}
