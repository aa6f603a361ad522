//! The compiled deltas of one node, in memory, for whatever device: the integers never change; what
//! is found out about them meanwhile, the path they fit with, is kept behind a lock.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::CompiledDelta;

/// Index of a resident matrix in [`Weights`](crate::weights::Weights).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MatrixId(pub usize);

/// One node's compiled deltas by matrix, with their row bounds.
#[derive(Debug)]
pub struct NodeDeltas {
    entries: BTreeMap<MatrixId, CompiledDelta>,
    /// No two compilations have the same one.
    serial: u64,
    /// Serials of the ancestors with which this node was found to stay on the lattice.
    fits_below: Mutex<Option<Vec<u64>>>,
}

impl NodeDeltas {
    /// The deltas of one node, one for each matrix it touches.
    pub fn new(entries: impl IntoIterator<Item = (MatrixId, CompiledDelta)>) -> Self {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        Self {
            entries: entries.into_iter().collect(),
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            fits_below: Mutex::default(),
        }
    }

    /// The delta on a matrix, if the node touches it.
    pub fn delta(&self, id: MatrixId) -> Option<&CompiledDelta> {
        self.entries.get(&id)
    }

    /// Every delta, by matrix.
    pub fn iter(&self) -> impl Iterator<Item = (MatrixId, &CompiledDelta)> {
        self.entries.iter().map(|(&id, delta)| (id, delta))
    }

    /// Bytes held in memory.
    pub fn bytes(&self) -> usize {
        self.entries.values().map(CompiledDelta::bytes).sum()
    }

    /// Whether `path`, which ends with this node, was found to stay on the lattice.
    pub(crate) fn known_to_fit(&self, path: &[&Self]) -> bool {
        let known = self.fits_below.lock().expect("no thread panics holding it");
        known.as_ref().is_some_and(|known| known.iter().eq(path.iter().map(|node| &node.serial)))
    }

    /// Remembers that `path`, which ends with this node, stays on the lattice.
    pub(crate) fn fits(&self, path: &[&Self]) {
        *self.fits_below.lock().expect("no thread panics holding it") =
            Some(path.iter().map(|node| node.serial).collect());
    }
}
