//! The compiled deltas of one node, resident on a device.

use std::collections::BTreeMap;

use crate::Result;
use crate::device::Device;
use crate::lattice::CompiledDelta;

/// Index of a resident matrix in [`Weights`](crate::weights::Weights).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MatrixId(pub usize);

/// One node's compiled deltas by matrix, with their row bounds.
pub struct NodeDeltas<D: Device> {
    entries: BTreeMap<MatrixId, Entry<D>>,
}

pub(crate) struct Entry<D: Device> {
    delta: D::Delta,
    row_max: Vec<u32>,
    bytes: usize,
    rank: usize,
}

impl<D: Device> NodeDeltas<D> {
    /// Moves a compiled delta to the device.
    pub(crate) fn entry(device: &D, id: MatrixId, compiled: CompiledDelta) -> Result<(MatrixId, Entry<D>)> {
        let (rank, row_max) = (compiled.rank(), compiled.row_max.clone());
        let bytes = compiled.bytes() + size_of_val(&row_max[..]);
        Ok((id, Entry { delta: device.upload_delta(compiled)?, row_max, bytes, rank }))
    }

    pub(crate) fn new(entries: Vec<(MatrixId, Entry<D>)>) -> Self {
        Self { entries: entries.into_iter().collect() }
    }

    /// The delta on a matrix, if the node touches it.
    pub fn delta(&self, id: MatrixId) -> Option<&D::Delta> {
        self.entries.get(&id).map(|entry| &entry.delta)
    }

    /// `max_j |Q_ij|` by row, if the node touches the matrix.
    pub fn row_max(&self, id: MatrixId) -> Option<&[u32]> {
        self.entries.get(&id).map(|entry| &entry.row_max[..])
    }

    /// Bytes the compiled deltas hold.
    pub fn bytes(&self) -> usize {
        self.entries.values().map(|entry| entry.bytes).sum()
    }

    /// The summed rank on a matrix, padded to pairs, if the node touches it.
    pub fn rank_on(&self, id: MatrixId) -> Option<usize> {
        self.entries.get(&id).map(|entry| entry.rank)
    }
}
