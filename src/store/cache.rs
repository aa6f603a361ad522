//! Compiled deltas kept under a byte budget, in memory or on a device: least recently used goes first.
//!
//! **Invariant:** a node that is applied to the weights is pinned: what was added is what will be subtracted, even if the
//! adapter's files change meanwhile.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::Result;
use crate::tree::NodeId;

/// Deltas by node: `T` is what holds one node's, in the host's memory or on a device.
pub struct DeltaCache<T> {
    entries: HashMap<NodeId, Held<T>>,
    budget_bytes: usize,
    clock: u64,
    stats: CacheStats,
}

struct Held<T> {
    deltas: Arc<T>,
    bytes: usize,
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
    /// Deltas made: compiled, or moved to the device.
    pub misses: u64,
    /// Deltas dropped for want of room.
    pub evictions: u64,
}

impl<T> DeltaCache<T> {
    /// An empty cache that holds `budget_bytes` beside the pinned nodes.
    pub fn new(budget_bytes: usize) -> Self {
        Self { entries: HashMap::new(), budget_bytes, clock: 0, stats: CacheStats::default() }
    }

    /// The node's deltas; those that are not here are made by `make`, which also says how many bytes they hold.
    ///
    /// # Errors
    /// What `make` returns; the cache is then as it was.
    pub(crate) fn get(&mut self, node: NodeId, make: impl FnOnce() -> Result<(Arc<T>, usize)>) -> Result<Arc<T>> {
        self.clock += 1;
        if let Some(held) = self.entries.get_mut(&node) {
            held.used = self.clock;
            self.stats.hits += 1;
            return Ok(held.deltas.clone());
        }
        let (deltas, bytes) = make()?;
        self.stats.misses += 1;
        self.stats.bytes += bytes;
        self.entries.insert(node, Held { deltas: deltas.clone(), bytes, used: self.clock });
        Ok(deltas)
    }

    /// The node's deltas, if they are here; does not count as use.
    pub(crate) fn peek(&self, node: NodeId) -> Option<&T> {
        self.entries.get(&node).map(|held| &*held.deltas)
    }

    /// Whether the node's deltas are here.
    pub fn contains(&self, node: NodeId) -> bool {
        self.entries.contains_key(&node)
    }

    /// Drops the least recently used nodes until the rest fits the budget; pinned nodes stay and do not count.
    pub(crate) fn evict(&mut self, pinned_nodes: &[NodeId]) {
        self.evict_to(self.budget_bytes, pinned_nodes);
    }

    /// The same for another budget.
    pub(crate) fn evict_to(&mut self, budget_bytes: usize, pinned_nodes: &[NodeId]) {
        let pinned: BTreeSet<_> = pinned_nodes.iter().collect();
        let mut order: Vec<_> = self.entries.iter().filter(|(node, _)| !pinned.contains(node)).collect();
        order.sort_by_key(|(_, held)| held.used);
        let pinned_bytes: usize = pinned.iter().filter_map(|node| self.entries.get(node)).map(|held| held.bytes).sum();
        let mut bytes = self.stats.bytes - pinned_bytes;
        let mut dropped = Vec::new();
        for (&node, held) in order {
            if bytes <= budget_bytes {
                break;
            }
            bytes -= held.bytes;
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
    use crate::tree::{AdapterTree, NodeSource};

    #[test]
    fn least_recently_used_goes_first_and_pinned_nodes_stay() {
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
            cache.get(node, || Ok((Arc::new("one"), 64))).unwrap();
        }
        cache.evict(&[]);
        assert_eq!([a, b, c].map(|node| cache.contains(node)), [true, false, true]);
        assert_eq!(cache.stats(), CacheStats { bytes: 128, nodes: 2, hits: 1, misses: 3, evictions: 1 });
        cache.get(b, || Ok((Arc::new("five"), 5 * 64))).unwrap();
        cache.evict(&[b]);
        assert_eq!([a, b, c].map(|node| cache.contains(node)), [true; 3]);
        cache.evict(&[a]);
        assert_eq!([a, b, c].map(|node| cache.contains(node)), [true, false, false]);
        assert_eq!(cache.stats().bytes, 64);
    }
}
