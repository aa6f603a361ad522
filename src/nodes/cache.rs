//! Compiled deltas kept under a byte budget, in memory or on a device: least recently used goes
//! first.
//!
//! **Invariant:** what is pinned, because it is applied to some weights, stays and does not count.
//! The order of use names exactly the versions that are here, so neither a use nor an eviction
//! looks at those that stay.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::NodeVersion;
use crate::Result;

/// Deltas by node version: `T` is what holds one node's, in the host's memory or on a device.
pub struct DeltaCache<T> {
    entries: HashMap<NodeVersion, Held<T>>,
    /// The versions by when they were last used.
    order: BTreeMap<u64, NodeVersion>,
    budget_bytes: usize,
    pinned_bytes: usize,
    clock: u64,
    stats: CacheStats,
}

struct Held<T> {
    deltas: Arc<T>,
    bytes: usize,
    used: u64,
    /// How many have pinned it.
    pins: usize,
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
    /// Deltas dropped for want of memory.
    pub evictions: u64,
    /// Bytes of the deltas made, in all.
    pub made_bytes: u64,
    /// Bytes of the deltas dropped for want of memory, in all.
    pub evicted_bytes: u64,
}

impl<T> DeltaCache<T> {
    /// An empty cache that holds `budget_bytes` beside what is pinned.
    pub fn new(budget_bytes: usize) -> Self {
        let (entries, order) = (HashMap::new(), BTreeMap::new());
        Self {
            entries,
            order,
            budget_bytes,
            pinned_bytes: 0,
            clock: 0,
            stats: CacheStats::default(),
        }
    }

    /// The version's deltas; those that are not here are made by `make`, which also returns how
    /// many bytes they hold.
    ///
    /// # Errors
    /// What `make` returns; the cache is then as it was.
    pub(crate) fn get(
        &mut self,
        version: &NodeVersion,
        make: impl FnOnce() -> Result<(Arc<T>, usize)>,
    ) -> Result<Arc<T>> {
        if let Some(deltas) = self.find(version) {
            return Ok(deltas);
        }
        let (deltas, bytes) = make()?;
        self.insert(version, deltas.clone(), bytes);
        Ok(deltas)
    }

    /// The version's deltas, if they are here.
    pub(crate) fn find(&mut self, version: &NodeVersion) -> Option<Arc<T>> {
        let held = self.entries.get_mut(version)?;
        self.clock += 1;
        self.order.remove(&held.used);
        self.order.insert(self.clock, version.clone());
        held.used = self.clock;
        self.stats.hits += 1;
        Some(held.deltas.clone())
    }

    /// Takes in deltas that are not here and hold so many bytes.
    pub(crate) fn insert(&mut self, version: &NodeVersion, deltas: Arc<T>, bytes: usize) {
        self.clock += 1;
        self.stats.misses += 1;
        self.stats.bytes += bytes;
        self.stats.made_bytes += bytes as u64;
        self.order.insert(self.clock, version.clone());
        let held = Held { deltas, bytes, used: self.clock, pins: 0 };
        self.entries.insert(version.clone(), held);
    }

    /// Bytes it holds beside what is pinned.
    pub(crate) fn budget_bytes(&self) -> usize {
        self.budget_bytes
    }

    /// Whether the version's deltas are here.
    pub fn contains(&self, version: &NodeVersion) -> bool {
        self.entries.contains_key(version)
    }

    /// Keeps a version's deltas, if they are here, until [`Self::unpin`] is called as often.
    pub(crate) fn pin(&mut self, version: &NodeVersion) {
        if let Some(held) = self.entries.get_mut(version) {
            self.pinned_bytes += if held.pins == 0 { held.bytes } else { 0 };
            held.pins += 1;
        }
    }

    /// Takes one pin back.
    pub(crate) fn unpin(&mut self, version: &NodeVersion) {
        if let Some(held) = self.entries.get_mut(version).filter(|held| held.pins > 0) {
            held.pins -= 1;
            self.pinned_bytes -= if held.pins == 0 { held.bytes } else { 0 };
        }
    }

    /// Drops the least recently used deltas until the rest fits the budget; what is pinned stays
    /// and does not count.
    pub(crate) fn evict(&mut self) {
        self.evict_to(self.budget_bytes);
    }

    /// The same, until the rest fits `budget_bytes`.
    pub(crate) fn evict_to(&mut self, budget_bytes: usize) {
        let mut dropped = Vec::new();
        for (used, version) in &self.order {
            if self.stats.bytes - self.pinned_bytes <= budget_bytes {
                break;
            }
            let Some(held) = self.entries.get(version).filter(|held| held.pins == 0) else {
                continue;
            };
            self.stats.bytes -= held.bytes;
            self.stats.evictions += 1;
            self.stats.evicted_bytes += held.bytes as u64;
            self.entries.remove(version);
            dropped.push(*used);
        }
        for used in dropped {
            self.order.remove(&used);
        }
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.order.clear();
        (self.stats.bytes, self.pinned_bytes) = (0, 0);
    }

    /// Counters.
    pub fn stats(&self) -> CacheStats {
        CacheStats { nodes: self.entries.len(), ..self.stats }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Source;
    use super::*;

    fn versions<const N: usize>() -> [NodeVersion; N] {
        let root = NodeVersion::root();
        std::array::from_fn(|index| {
            NodeVersion::new(format!("n{index}").into(), Some(root.clone()), Source::Nothing)
        })
    }

    fn held<T>(cache: &DeltaCache<T>) -> Vec<NodeVersion> {
        cache.order.values().cloned().collect()
    }

    #[test]
    fn least_recently_used_goes_first_and_what_is_pinned_stays() {
        let [a, b, c] = &versions();
        let mut cache = DeltaCache::new(2 * 64);
        for version in [a, b, a, c] {
            cache.get(version, || Ok((Arc::new("one"), 64))).unwrap();
        }
        cache.evict();
        assert_eq!(held(&cache), [a.clone(), c.clone()]);
        let made = CacheStats { misses: 3, made_bytes: 192, ..CacheStats::default() };
        let now =
            CacheStats { bytes: 128, nodes: 2, hits: 1, evictions: 1, evicted_bytes: 64, ..made };
        assert_eq!(cache.stats(), now);
        cache.get(b, || Ok((Arc::new("five"), 5 * 64))).unwrap();
        // Twice, by two copies of the weights.
        cache.pin(b);
        cache.pin(b);
        cache.unpin(b);
        cache.evict();
        assert_eq!([a, b, c].map(|version| cache.contains(version)), [true; 3]);
        cache.unpin(b);
        cache.unpin(b);
        cache.pin(a);
        cache.evict();
        assert_eq!([a, b, c].map(|version| cache.contains(version)), [true, false, false]);
        assert_eq!(cache.stats().bytes, 64);
    }

    #[test]
    fn deltas_that_cannot_be_made_leave_the_cache_as_it_was() {
        let [a, b] = &versions();
        let mut cache = DeltaCache::new(64);
        cache.get(a, || Ok((Arc::new(()), 64))).unwrap();
        let before = cache.stats();
        assert!(cache.get(b, || Err(crate::Error::Unusable)).is_err());
        assert_eq!((cache.stats(), held(&cache)), (before, vec![a.clone()]));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Get {
            node: usize,
            bytes: usize,
        },
        /// With these pinned.
        Evict {
            pinned: Vec<usize>,
        },
        EvictTo {
            budget_bytes: usize,
            pinned: Vec<usize>,
        },
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

    /// The same as a list of nodes and their bytes, the least recently used first; gone through
    /// from the start each time.
    fn evict_model(held: &mut Vec<(usize, usize)>, budget_bytes: usize, pinned: &[usize]) {
        let free = |held: &[(usize, usize)]| -> usize {
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
            let versions: [NodeVersion; 8] = versions();
            let mut cache = DeltaCache::new(BUDGET_BYTES);
            let mut model: Vec<(usize, usize)> = Vec::new();
            let (mut made_bytes, mut cleared_bytes) = (0, 0);
            for step in steps {
                let mut evict = |model: &mut Vec<(usize, usize)>, budget_bytes, pinned: &[usize]| {
                    pinned.iter().for_each(|&index| cache.pin(&versions[index]));
                    cache.evict_to(budget_bytes);
                    pinned.iter().for_each(|&index| cache.unpin(&versions[index]));
                    evict_model(model, budget_bytes, pinned);
                };
                match step {
                    Step::Get { node, bytes } => {
                        let known = model.iter().position(|(held, _)| *held == node).map(|at| model.remove(at));
                        let mut made = false;
                        let make = || { made = true; Ok((Arc::new(bytes), bytes)) };
                        let deltas = cache.get(&versions[node], make).unwrap();
                        prop_assert_eq!(made, known.is_none());
                        let bytes = known.map_or(bytes, |(_, bytes)| bytes);
                        prop_assert_eq!(*deltas, bytes);
                        made_bytes += if made { bytes } else { 0 };
                        model.push((node, bytes));
                    }
                    Step::Evict { pinned } => evict(&mut model, BUDGET_BYTES, &pinned),
                    Step::EvictTo { budget_bytes, pinned } => evict(&mut model, budget_bytes, &pinned),
                    Step::Clear => {
                        cache.clear();
                        cleared_bytes += model.drain(..).map(|(_, bytes)| bytes).sum::<usize>();
                    }
                }
                let expected: Vec<_> = model.iter().map(|(node, _)| versions[*node].clone()).collect();
                prop_assert_eq!(held(&cache), expected);
                let here = versions.each_ref().map(|version| cache.contains(version));
                prop_assert_eq!(here, std::array::from_fn(|at| model.iter().any(|(held, _)| *held == at)));
                let stats = cache.stats();
                let bytes: usize = model.iter().map(|(_, bytes)| bytes).sum();
                prop_assert_eq!((stats.bytes, stats.nodes), (bytes, model.len()));
                prop_assert_eq!(stats.made_bytes, made_bytes as u64);
                prop_assert_eq!(stats.evicted_bytes, (made_bytes - cleared_bytes - bytes) as u64);
            }
        }
    }
}
