//! The cheapest order in which to visit a set of nodes.
//!
//! A walk from `start` through all of them crosses every edge between them at least twice, but for
//! those it does not return over: the edges from `start` to where it ends. So depth-first order is
//! best, with the dearest way last. This is exact because the graph is a tree.

use std::collections::{BTreeMap, BTreeSet};

use super::{AdapterTree, NodeId};

/// A part of the tree as seen from `start`: which way it goes on, and the dearest way to a wanted
/// node in it.
struct Branch {
    from: NodeId,
    onwards: Vec<NodeId>,
    reach: u64,
}

impl AdapterTree {
    /// The nodes (each once) in the order that makes a walk from `start` through all of them
    /// cheapest, where applying or removing a node costs `cost(node)`. The walk may end anywhere.
    ///
    /// ```
    /// use pleach::tree::{AdapterTree, NodeSource};
    /// let nothing = || NodeSource::Memory(Default::default());
    /// let tree = AdapterTree::builder()
    ///     .node("a", "", nothing()).node("a/1", "a", nothing()).node("a/2", "a", nothing()).node("b", "", nothing())
    ///     .build()?;
    /// let names = ["a/1", "b", "a/2"];
    /// let nodes = names.map(|name| tree.node(name).unwrap());
    /// let tour = tree.tour(&nodes, tree.root(), |_| 1);
    /// assert_eq!(tour.iter().map(|id| tree.name(*id)).collect::<Vec<_>>(), ["b", "a/1", "a/2"]);
    /// # Ok::<(), pleach::Error>(())
    /// ```
    pub fn tour(
        &self,
        nodes: &[NodeId],
        start: NodeId,
        cost: impl Fn(NodeId) -> u64,
    ) -> Vec<NodeId> {
        let wanted: BTreeSet<NodeId> = nodes.iter().copied().collect();
        let mut neighbours: BTreeMap<NodeId, BTreeSet<NodeId>> = BTreeMap::new();
        for &node in &wanted {
            let plan = self.plan(start, node);
            let mut at = start;
            let up = plan.subtract.iter().filter_map(|&id| self.parent(id));
            for next in up.chain(plan.add.iter().copied()) {
                neighbours.entry(at).or_default().insert(next);
                at = next;
            }
        }
        // Parents before children, as seen from `start`.
        let mut order = vec![start];
        let mut branches =
            BTreeMap::from([(start, Branch { from: start, onwards: Vec::new(), reach: 0 })]);
        let mut next = 0;
        while let Some(&at) = order.get(next) {
            next += 1;
            let onwards: Vec<NodeId> =
                neighbours.remove(&at).unwrap_or_default().into_iter().collect();
            for &child in &onwards {
                branches.insert(child, Branch { from: at, onwards: Vec::new(), reach: 0 });
            }
            order.extend(&onwards);
            if let Some(branch) = branches.get_mut(&at) {
                branch.onwards = onwards;
            }
        }
        for &at in order.iter().skip(1).rev() {
            let (from, reach) = (branches[&at].from, branches[&at].reach);
            // Crossing an edge applies or removes its lower node.
            let lower = if self.parent(at) == Some(from) { at } else { from };
            let through = reach.saturating_add(cost(lower));
            if let Some(branch) = branches.get_mut(&at) {
                branch.reach = through;
            }
            if let Some(branch) = branches.get_mut(&from) {
                branch.reach = branch.reach.max(through);
            }
        }
        let mut tour = Vec::with_capacity(wanted.len());
        let mut stack = vec![start];
        while let Some(at) = stack.pop() {
            if wanted.contains(&at) {
                tour.push(at);
            }
            // The dearest branch goes to the bottom of the stack, the others onto it, the first by
            // id on top.
            let mut onwards = branches[&at].onwards.clone();
            if let Some(last) = onwards.iter().copied().max_by_key(|id| (branches[id].reach, *id)) {
                onwards.retain(|id| *id != last);
                stack.push(last);
                stack.extend(onwards.into_iter().rev());
            }
        }
        tour
    }
}
