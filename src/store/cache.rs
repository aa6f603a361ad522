//! Compiled deltas kept in memory under a byte budget: least recently used goes first.
//!
//! **Invariant:** a node that is applied to the weights is pinned: what was added is what will be subtracted, even if the
//! adapter's files change meanwhile.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::NodeDeltas;
use crate::Result;
use crate::device::Device;
use crate::tree::NodeId;

/// Compiled deltas by node.
pub struct DeltaCache<D: Device> {
    entries: HashMap<NodeId, Held<D>>,
    budget_bytes: usize,
    clock: u64,
    stats: CacheStats,
}

struct Held<D: Device> {
    deltas: Arc<NodeDeltas<D>>,
    used: u64,
}

/// What the cache holds and how often it was of use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct CacheStats {
    /// Bytes held.
    pub bytes: usize,
    /// Nodes held.
    pub nodes: usize,
    /// Deltas found.
    pub hits: u64,
    /// Deltas compiled.
    pub misses: u64,
    /// Deltas dropped for want of room.
    pub evictions: u64,
}

impl<D: Device> DeltaCache<D> {
    /// An empty cache that holds `budget_bytes` beside the pinned nodes.
    pub fn new(budget_bytes: usize) -> Self {
        Self { entries: HashMap::new(), budget_bytes, clock: 0, stats: CacheStats::default() }
    }

    /// The node's deltas, compiled by `compile` when they are not here.
    ///
    /// # Errors
    /// What `compile` returns; the cache is then as it was.
    pub(crate) fn get(
        &mut self,
        node: NodeId,
        compile: impl FnOnce() -> Result<NodeDeltas<D>>,
    ) -> Result<Arc<NodeDeltas<D>>> {
        self.clock += 1;
        if let Some(held) = self.entries.get_mut(&node) {
            held.used = self.clock;
            self.stats.hits += 1;
            return Ok(held.deltas.clone());
        }
        let deltas = Arc::new(compile()?);
        self.stats.misses += 1;
        self.stats.bytes += deltas.bytes();
        self.entries.insert(node, Held { deltas: deltas.clone(), used: self.clock });
        Ok(deltas)
    }

    /// The node's deltas, if they are here; does not count as use.
    pub(crate) fn peek(&self, node: NodeId) -> Option<&NodeDeltas<D>> {
        self.entries.get(&node).map(|held| &*held.deltas)
    }

    /// Whether the node's deltas are here.
    pub fn contains(&self, node: NodeId) -> bool {
        self.entries.contains_key(&node)
    }

    /// Drops the least recently used nodes until the rest fits the budget; pinned nodes stay and do not count.
    pub(crate) fn evict(&mut self, pinned_nodes: &[NodeId]) {
        let pinned: BTreeSet<_> = pinned_nodes.iter().collect();
        let mut order: Vec<_> = self.entries.iter().filter(|(node, _)| !pinned.contains(node)).collect();
        order.sort_by_key(|(_, held)| held.used);
        let pinned_bytes: usize = pinned.iter().filter_map(|node| self.peek(**node)).map(NodeDeltas::bytes).sum();
        let mut bytes = self.stats.bytes - pinned_bytes;
        let mut dropped = Vec::new();
        for (&node, held) in order {
            if bytes <= self.budget_bytes {
                break;
            }
            bytes -= held.deltas.bytes();
            dropped.push(node);
        }
        for node in dropped {
            self.entries.remove(&node);
            self.stats.evictions += 1;
        }
        self.stats.bytes = bytes + pinned_bytes;
    }

    /// Drops everything: the weights it was compiled for are gone.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.stats.bytes = 0;
    }

    /// Counters.
    pub fn stats(&self) -> CacheStats {
        CacheStats { nodes: self.entries.len(), ..self.stats }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::Cpu;
    use crate::lattice::{CompiledDelta, DeltaKind, Lane};
    use crate::store::MatrixId;
    use crate::tree::{AdapterTree, NodeSource};
    use bytemuck::Zeroable;

    fn deltas(cpu: &Cpu, lanes: usize) -> NodeDeltas<Cpu> {
        let kind = DeltaKind::Dense(vec![Lane::zeroed(); lanes]);
        let compiled = CompiledDelta { rows: 0, cols: 32, row_max: Vec::new(), kind };
        NodeDeltas::new(vec![NodeDeltas::entry(cpu, MatrixId(0), compiled).unwrap()])
    }

    #[test]
    fn least_recently_used_goes_first_and_pinned_nodes_stay() {
        let cpu = Cpu::new(Some(1)).unwrap();
        let nothing = || NodeSource::Memory(Arc::default());
        let tree = AdapterTree::builder()
            .node("a", "/", nothing())
            .node("b", "/", nothing())
            .node("c", "/", nothing())
            .build()
            .unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| tree.node(name).unwrap());
        let mut cache = DeltaCache::new(2 * 64);
        for node in [a, b, a, c] {
            cache.get(node, || Ok(deltas(&cpu, 1))).unwrap();
        }
        cache.evict(&[]);
        assert_eq!([a, b, c].map(|node| cache.contains(node)), [true, false, true]);
        assert_eq!(cache.stats(), CacheStats { bytes: 128, nodes: 2, hits: 1, misses: 3, evictions: 1 });
        cache.get(b, || Ok(deltas(&cpu, 5))).unwrap();
        cache.evict(&[b]);
        assert_eq!([a, b, c].map(|node| cache.contains(node)), [true; 3]);
        cache.evict(&[a]);
        assert_eq!([a, b, c].map(|node| cache.contains(node)), [true, false, false]);
        assert_eq!(cache.stats().bytes, 64);
    }
}
