//! The lattice of a whole base: what compiling a node needs of it, without the weights themselves.

use std::collections::BTreeMap;

use super::Grid;
use crate::WeightName;
use crate::adapter::BaseShapes;
use crate::base::WeightInfo;

/// Steps and largest integers of every matrix of a base, a tied head under its own name, too.
#[derive(Clone, Debug, PartialEq)]
pub struct BaseLattice {
    headroom: f32,
    grids: BTreeMap<WeightName, Grid>,
}

impl BaseLattice {
    /// The lattice whose steps were made with `headroom`.
    pub fn new(headroom: f32, grids: impl IntoIterator<Item = (WeightName, Grid)>) -> Self {
        Self { headroom, grids: grids.into_iter().collect() }
    }

    /// Space above every row's largest weight, as a factor.
    pub fn headroom(&self) -> f32 {
        self.headroom
    }

    /// The grid of a matrix, if the base has it.
    pub fn grid(&self, weight: &WeightName) -> Option<&Grid> {
        self.grids.get(weight)
    }

    /// Every matrix with its grid, in the order of the names.
    pub fn grids(&self) -> impl ExactSizeIterator<Item = (&WeightName, &Grid)> {
        self.grids.iter()
    }

    /// What an adapter can land on; `name` is what errors call the base.
    pub fn shapes(&self, name: &str) -> BaseShapes {
        let info =
            |grid: &Grid| WeightInfo { shape: vec![grid.rows(), grid.cols], dtype: String::new() };
        let infos: Vec<_> = self.grids.iter().map(|(weight, grid)| (weight, info(grid))).collect();
        BaseShapes::new(name, infos.iter().map(|(weight, info)| (*weight, info)))
    }

    /// BLAKE3 of every matrix's name, a zero byte, rows and columns (u64), steps (f32) and largest
    /// integers (u16), all little-endian, in the order of the names. Deltas compiled for one hash
    /// fit no other.
    pub fn hash(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for (weight, grid) in &self.grids {
            hasher.update(weight.as_str().as_bytes()).update(&[0]);
            hasher
                .update(&(grid.rows() as u64).to_le_bytes())
                .update(&(grid.cols as u64).to_le_bytes());
            hasher
                .update(&grid.steps.iter().flat_map(|step| step.to_le_bytes()).collect::<Vec<_>>());
            hasher
                .update(&grid.row_max.iter().flat_map(|max| max.to_le_bytes()).collect::<Vec<_>>());
        }
        hasher.finalize()
    }
}
