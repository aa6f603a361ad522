//! Compiled deltas kept under a byte budget, in memory or on a device: least recently used goes first.
//!
//! **Invariant:** a node that is applied to the weights is pinned: what was added is what will be subtracted, even if the
//! adapter's files change meanwhile. The order of use names exactly the nodes that are held, so neither a use nor an
//! eviction looks at nodes that stay.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::Result;
use crate::tree::NodeId;

/// Deltas by node: `T` is what holds one node's, in the host's memory or on a device.
pub struct DeltaCache<T> {
    entries: HashMap<NodeId, Held<T>>,
    /// The nodes held by when they were last used.
    order: BTreeMap<u64, NodeId>,
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
    /// Bytes of the deltas made, in all.
    pub made_bytes: u64,
    /// Bytes of the deltas dropped for want of room, in all.
    pub evicted_bytes: u64,
}

impl<T> DeltaCache<T> {
    /// An empty cache that holds `budget_bytes` beside the pinned nodes.
    pub fn new(budget_bytes: usize) -> Self {
        let (entries, order) = (HashMap::new(), BTreeMap::new());
        Self { entries, order, budget_bytes, clock: 0, stats: CacheStats::default() }
    }

    /// The node's deltas; those that are not here are made by `make`, which also says how many bytes they hold.
    ///
    /// # Errors
    /// What `make` returns; the cache is then as it was.
    pub(crate) fn get(&mut self, node: NodeId, make: impl FnOnce() -> Result<(Arc<T>, usize)>) -> Result<Arc<T>> {
        self.clock += 1;
        if let Some(held) = self.entries.get_mut(&node) {
            self.order.remove(&held.used);
            self.order.insert(self.clock, node);
            held.used = self.clock;
            self.stats.hits += 1;
            return Ok(held.deltas.clone());
        }
        let (deltas, bytes) = make()?;
        self.stats.misses += 1;
        self.stats.bytes += bytes;
        self.stats.made_bytes += bytes as u64;
        self.order.insert(self.clock, node);
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

    /// The same, until the rest fits `budget_bytes`.
    pub(crate) fn evict_to(&mut self, budget_bytes: usize, pinned_nodes: &[NodeId]) {
        if self.stats.bytes <= budget_bytes {
            return;
        }
        let pinned: BTreeSet<_> = pinned_nodes.iter().collect();
        let pinned_bytes: usize = pinned.iter().filter_map(|node| self.entries.get(node)).map(|held| held.bytes).sum();
        let mut bytes = self.stats.bytes - pinned_bytes;
        let mut oldest = self.order.values().filter(|node| !pinned.contains(node));
        let mut dropped = Vec::new();
        while bytes > budget_bytes
            && let Some(held) = oldest.next().and_then(|node| self.entries.remove(node))
        {
            bytes -= held.bytes;
            self.stats.evictions += 1;
            self.stats.evicted_bytes += held.bytes as u64;
            dropped.push(held.used);
        }
        for used in dropped {
            self.order.remove(&used);
        }
        self.stats.bytes = bytes + pinned_bytes;
    }

    /// The nodes whose deltas are here, the least recently used first.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.order.values().copied()
    }

    /// Drops everything: the weights it was compiled for are gone.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.order.clear();
        self.stats.bytes = 0;
    }

    /// Counters.
    pub fn stats(&self) -> CacheStats {
        CacheStats { nodes: self.entries.len(), ..self.stats }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tree::{AdapterTree, NodeSource};

    fn nodes<const N: usize>() -> [NodeId; N] {
        let nothing = || NodeSource::Memory(Arc::default());
        let builder = (0..N).fold(AdapterTree::builder(), |tree, index| tree.node(format!("n{index}"), "/", nothing()));
        let tree = builder.build().unwrap();
        std::array::from_fn(|index| tree.node(&format!("n{index}")).unwrap())
    }

    #[test]
    fn least_recently_used_goes_first_and_pinned_nodes_stay() {
        let [a, b, c] = nodes();
        let mut cache = DeltaCache::new(2 * 64);
        for node in [a, b, a, c] {
            cache.get(node, || Ok((Arc::new("one"), 64))).unwrap();
        }
        cache.evict(&[]);
        assert_eq!(cache.nodes().collect::<Vec<_>>(), [a, c]);
        let made = CacheStats { misses: 3, made_bytes: 192, ..CacheStats::default() };
        let now = CacheStats { bytes: 128, nodes: 2, hits: 1, evictions: 1, evicted_bytes: 64, ..made };
        assert_eq!(cache.stats(), now);
        cache.get(b, || Ok((Arc::new("five"), 5 * 64))).unwrap();
        cache.evict(&[b]);
        assert_eq!([a, b, c].map(|node| cache.contains(node)), [true; 3]);
        cache.evict(&[a]);
        assert_eq!([a, b, c].map(|node| cache.contains(node)), [true, false, false]);
        assert_eq!(cache.stats().bytes, 64);
    }

    #[test]
    fn deltas_that_cannot_be_made_leave_the_cache_as_it_was() {
        let [a, b] = nodes();
        let mut cache = DeltaCache::new(64);
        cache.get(a, || Ok((Arc::new(()), 64))).unwrap();
        let before = cache.stats();
        assert!(cache.get(b, || Err(crate::Error::Unusable)).is_err());
        assert_eq!((cache.stats(), cache.nodes().collect::<Vec<_>>()), (before, vec![a]));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Get { node: usize, bytes: usize },
        Evict { pinned: Vec<usize> },
        EvictTo { budget_bytes: usize, pinned: Vec<usize> },
        Clear,
    }

    fn any_step() -> impl Strategy<Value = Step> {
        // Of the same node twice, now and then.
        let pinned = || prop::collection::vec(0..8usize, 0..5);
        prop_oneof![
            8 => (0..8usize, 0..40usize).prop_map(|(node, bytes)| Step::Get { node, bytes }),
            4 => pinned().prop_map(|pinned| Step::Evict { pinned }),
            2 => (0..120usize, pinned()).prop_map(|(budget_bytes, pinned)| Step::EvictTo { budget_bytes, pinned }),
            1 => Just(Step::Clear),
        ]
    }

    const BUDGET_BYTES: usize = 60;

    /// The same as a list of nodes and their bytes, the least recently used first; gone through from the start each time.
    fn evict_model(held: &mut Vec<(NodeId, usize)>, budget_bytes: usize, pinned: &[NodeId]) {
        let free = |held: &[(NodeId, usize)]| -> usize {
            held.iter().filter(|(node, _)| !pinned.contains(node)).map(|(_, bytes)| bytes).sum()
        };
        while free(held) > budget_bytes {
            let first = held.iter().position(|(node, _)| !pinned.contains(node)).unwrap();
            held.remove(first);
        }
    }

    proptest! {
        #[test]
        fn a_cache_holds_what_a_list_in_order_of_use_holds(steps in prop::collection::vec(any_step(), 0..60)) {
            let nodes: [NodeId; 8] = nodes();
            let mut cache = DeltaCache::new(BUDGET_BYTES);
            let mut model: Vec<(NodeId, usize)> = Vec::new();
            let (mut made_bytes, mut cleared_bytes) = (0, 0);
            for step in steps {
                let ids = |pinned: &[usize]| pinned.iter().map(|&index| nodes[index]).collect::<Vec<_>>();
                match step {
                    Step::Get { node, bytes } => {
                        let node = nodes[node];
                        let known = model.iter().position(|(held, _)| *held == node).map(|at| model.remove(at));
                        let mut made = false;
                        let deltas = cache.get(node, || { made = true; Ok((Arc::new(bytes), bytes)) }).unwrap();
                        prop_assert_eq!(made, known.is_none());
                        let bytes = known.map_or(bytes, |(_, bytes)| bytes);
                        prop_assert_eq!(*deltas, bytes);
                        made_bytes += if made { bytes } else { 0 };
                        model.push((node, bytes));
                    }
                    Step::Evict { pinned } => {
                        cache.evict(&ids(&pinned));
                        evict_model(&mut model, BUDGET_BYTES, &ids(&pinned));
                    }
                    Step::EvictTo { budget_bytes, pinned } => {
                        cache.evict_to(budget_bytes, &ids(&pinned));
                        evict_model(&mut model, budget_bytes, &ids(&pinned));
                    }
                    Step::Clear => {
                        cache.clear();
                        cleared_bytes += model.drain(..).map(|(_, bytes)| bytes).sum::<usize>();
                    }
                }
                let held: Vec<NodeId> = model.iter().map(|(node, _)| *node).collect();
                prop_assert_eq!(cache.nodes().collect::<Vec<_>>(), held);
                let held_by_entry = nodes.map(|node| cache.contains(node));
                prop_assert_eq!(held_by_entry, nodes.map(|node| model.iter().any(|(held, _)| *held == node)));
                let stats = cache.stats();
                let bytes: usize = model.iter().map(|(_, bytes)| bytes).sum();
                prop_assert_eq!((stats.bytes, stats.nodes), (bytes, model.len()));
                prop_assert_eq!(stats.made_bytes, made_bytes as u64);
                prop_assert_eq!(stats.evicted_bytes, (made_bytes - cleared_bytes - bytes) as u64);
            }
        }
    }
}
