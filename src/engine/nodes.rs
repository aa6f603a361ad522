//! What the scheduler knows of nodes: numbers alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::Result;
use crate::error::EngineDefect;

/// Names a node version: its serial number, which no other version has.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct Serial(pub u64);

/// Node versions from the top down, without the root: where a sequence belongs, or where weights
/// stand. The root is the empty path.
pub type NodePath = Arc<[Serial]>;

/// What a node costs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeCost {
    /// The matrices it touches, by their places in the list given to [`NodeTable::new`].
    pub matrices: Vec<usize>,
    /// Numbers in its factors, and so the multiply-adds that it takes for a row when it is not
    /// merged: Σ over its matrices of rank × (inputs + outputs).
    pub factors: u64,
}

/// Nodes by serial number, as far as jobs speak of them.
#[derive(Clone, Debug, Default)]
pub struct NodeTable {
    /// Bytes that a switch reads and writes of each matrix it touches.
    matrix_bytes: Arc<[u64]>,
    nodes: BTreeMap<Serial, Entry>,
    /// Those that are still being read or compiled.
    unready: BTreeSet<Serial>,
}

#[derive(Clone, Debug)]
struct Entry {
    /// One bit a matrix.
    touched: Box<[u64]>,
    factors: f64,
}

impl NodeTable {
    /// A table without nodes over a model of these matrices: bytes that a switch reads and writes
    /// of each.
    pub fn new(matrix_bytes: impl Into<Arc<[u64]>>) -> Self {
        Self { matrix_bytes: matrix_bytes.into(), ..Self::default() }
    }

    /// Adds a node, or changes what it costs.
    ///
    /// # Panics
    /// If it touches a matrix that there is not.
    pub fn insert(&mut self, node: Serial, cost: &NodeCost) {
        let mut touched = vec![0; self.matrix_bytes.len().div_ceil(64)].into_boxed_slice();
        for matrix in &cost.matrices {
            assert!(*matrix < self.matrix_bytes.len(), "the model has no matrix {matrix}");
            touched[matrix / 64] |= 1u64 << (matrix % 64);
        }
        self.nodes.insert(node, Entry { touched, factors: cost.factors as f64 });
    }

    /// Forgets a node that no job speaks of any more.
    pub fn remove(&mut self, node: Serial) {
        self.nodes.remove(&node);
        self.unready.remove(&node);
    }

    /// Refuses a path with a node that is not in the table.
    pub(super) fn check(&self, path: &[Serial]) -> Result<()> {
        match path.iter().find(|node| !self.nodes.contains_key(node)) {
            Some(node) => Err(EngineDefect::UnknownNodeCost { serial: node.0 }.into()),
            None => Ok(()),
        }
    }

    /// Says whether a node can be used.
    pub(super) fn set_ready(&mut self, node: Serial, is_ready: bool) {
        if is_ready {
            self.unready.remove(&node);
        } else {
            self.unready.insert(node);
        }
    }

    /// Whether every node of a path can be used.
    pub(super) fn is_ready(&self, path: &[Serial]) -> bool {
        self.unready.is_empty() || !path.iter().any(|node| self.unready.contains(node))
    }

    /// Numbers in the factors of a node; none for one that is unknown.
    pub(super) fn factors(&self, node: Serial) -> f64 {
        self.nodes.get(&node).map_or(0.0, |entry| entry.factors)
    }

    /// Bytes that a switch reads and writes: of every matrix that a node left or entered touches,
    /// once.
    pub fn switch_bytes(&self, source: &[Serial], target: &[Serial]) -> f64 {
        let common = common_depth(source, target);
        let moved = source[common..].iter().chain(&target[common..]);
        let mut touched = vec![0u64; self.matrix_bytes.len().div_ceil(64)];
        for entry in moved.filter_map(|node| self.nodes.get(node)) {
            touched.iter_mut().zip(&entry.touched).for_each(|(all, own)| *all |= own);
        }
        let is_touched = |matrix: usize| touched[matrix / 64] >> (matrix % 64) & 1 == 1;
        let matrices = (0..self.matrix_bytes.len()).filter(|matrix| is_touched(*matrix));
        matrices.map(|matrix| self.matrix_bytes[matrix] as f64).sum()
    }
}

/// How many nodes two paths share from the top.
pub(super) fn common_depth(a: &[Serial], b: &[Serial]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_touches_each_matrix_once() {
        let mut table = NodeTable::new([10u64, 20, 40]);
        let cost = |matrices: &[usize]| NodeCost { matrices: matrices.to_vec(), factors: 1 };
        for (k, matrices) in [(1, &[0, 1][..]), (2, &[1]), (3, &[1, 2]), (4, &[])] {
            table.insert(Serial(k), &cost(matrices));
        }
        let bytes = |a: &[u64], b: &[u64]| {
            let [a, b] = [a, b].map(|path| path.iter().copied().map(Serial).collect::<Vec<_>>());
            table.switch_bytes(&a, &b)
        };
        assert_eq!(bytes(&[1, 2], &[1, 2]), 0.0);
        assert_eq!(bytes(&[], &[1, 2]), 30.0);
        assert_eq!(bytes(&[1, 2], &[1, 3]), 60.0, "what both have stays");
        assert_eq!(bytes(&[1], &[3]), 70.0);
        assert_eq!(bytes(&[4], &[]), 0.0);
    }
}
