//! What a small store is made from: two matrices and adapters that differ by their seed.

use crate::WeightName;
use crate::adapter::{AdapterDeltas, FloatDelta};
use crate::lattice::{BaseLattice, Grid};
use crate::store::StoreInfo;

/// A lattice of two small matrices, 6 × 40 and 5 × 33.
pub fn lattice() -> BaseLattice {
    let grid = |rows, cols| Grid {
        cols,
        steps: vec![1e-4; rows],
        row_max: vec![20_000; rows],
        headroom: 1.25,
    };
    BaseLattice::new(
        1.25,
        [("a", grid(6, 40)), ("b", grid(5, 33))].map(|(n, grid)| (WeightName::new(n), grid)),
    )
}

/// What a store of that base says of it.
pub fn info() -> StoreInfo {
    StoreInfo { base_name: "made".into(), base_hash: "ab".repeat(32), ..StoreInfo::default() }
}

/// Deltas of rank 3 on both matrices that differ by `seed`.
pub fn deltas(seed: u16) -> AdapterDeltas {
    let values = |count: usize, by: f32| {
        (0..count).map(|k| (k as f32 + f32::from(seed)).sin() * by).collect()
    };
    let low_rank = |rows: usize, cols: usize| FloatDelta::LowRank {
        rank: 3,
        lora_a: values(3 * cols, 0.01),
        lora_b: values(3 * rows, 0.1),
        scaling: 1.0,
    };
    AdapterDeltas::from([
        (WeightName::new("a"), low_rank(6, 40)),
        (WeightName::new("b"), low_rank(5, 33)),
    ])
}
