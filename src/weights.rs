//! The live weights on one device.

use std::collections::BTreeMap;

use crate::WeightName;
use crate::device::Device;

/// Index of a resident matrix in [`Weights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MatrixId(pub usize);

/// Every weight of the model, resident on one device.
pub struct Weights<D: Device> {
    matrices: Vec<D::Matrix>,
    names: BTreeMap<WeightName, MatrixId>,
    vectors: BTreeMap<WeightName, D::Buffer>,
}

impl<D: Device> Weights<D> {
    /// Weights made of parts, for tests and measurements.
    #[doc(hidden)]
    pub fn from_parts(
        matrices: impl IntoIterator<Item = (WeightName, D::Matrix)>,
        vectors: impl IntoIterator<Item = (WeightName, D::Buffer)>,
    ) -> Self {
        let (names, matrices): (Vec<_>, Vec<_>) = matrices.into_iter().unzip();
        let names = names.into_iter().enumerate().map(|(i, name)| (name, MatrixId(i))).collect();
        Self { matrices, names, vectors: vectors.into_iter().collect() }
    }

    /// The matrix called `name`, if the model has one.
    pub fn matrix_id(&self, name: &WeightName) -> Option<MatrixId> {
        self.names.get(name).copied()
    }

    /// The resident matrix.
    pub fn matrix(&self, id: MatrixId) -> &D::Matrix {
        &self.matrices[id.0]
    }

    /// The vector (norm or bias) called `name`, if the model has one.
    pub fn vector(&self, name: &WeightName) -> Option<&D::Buffer> {
        self.vectors.get(name)
    }
}
