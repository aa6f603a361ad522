//! A tree that grows and shrinks while it is used: the loaded part of a store.
//!
//! **Invariant:** a node that is held keeps its name, its parent and its depth, and so do all above it, whatever its name
//! leads to by now: a way that was walked down can be walked up again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use petgraph::graphmap::DiGraphMap;

use super::{AdapterTree, BasePin, Node, NodeId, NodeSource, StoredNode};

impl AdapterTree {
    /// A tree of nothing but the root.
    pub(crate) fn of_root(name: Option<String>, levels: Vec<String>, base: Option<BasePin>) -> Self {
        let root = NodeId(0);
        let node = Node { name: Arc::from("/"), label: None, source: None, parent: root, depth: 0, is_placed: false };
        let (nodes, by_name) = (HashMap::from([(root, node)]), HashMap::new());
        let (refused, passed_over) = (Vec::new(), Vec::new());
        Self { graph: DiGraphMap::new(), nodes, by_name, next_id: 1, name, levels, base, refused, passed_over }
    }

    /// The node called `name`, without slashes around it, if it is here; `""` is the root.
    pub(crate) fn find(&self, name: &str) -> Option<NodeId> {
        if name.is_empty() { Some(self.root()) } else { self.by_name.get(name).copied() }
    }

    /// Whether the node is (still) here.
    pub(crate) fn holds(&self, id: NodeId) -> bool {
        self.nodes.contains_key(&id)
    }

    /// Adds a node under `parent`: from now on `name` leads to it. A node that it led to before (an older version) stays,
    /// but is not among its parent's children any more.
    ///
    /// The caller has checked the name and the depth.
    pub(crate) fn attach(&mut self, parent: NodeId, name: &str, label: Option<&str>, source: NodeSource) -> NodeId {
        let id = NodeId(self.next_id);
        let depth = self.depth(parent) + 1;
        // Versions of a node share the text of their name.
        let name = self.by_name.get_key_value(name).map_or_else(|| Arc::from(name), |(name, _)| name.clone());
        self.next_id += 1;
        self.by_name.insert(name.clone(), id);
        self.graph.add_edge(parent, id, ());
        let (label, source) = (label.map(str::to_owned), Some(source));
        self.nodes.insert(id, Node { name, label, source, parent, depth, is_placed: false });
        id
    }

    /// Makes `name` lead nowhere. The node stays until [`Self::retain`] drops it, and names below it lead where they led.
    pub(crate) fn detach(&mut self, name: &str) {
        self.by_name.remove(name);
    }

    /// Says anew where a node's deltas come from; they are the same deltas.
    pub(crate) fn set_source(&mut self, id: NodeId, source: NodeSource) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.source = Some(source);
        }
    }

    /// Where in a store the node lies; `None` for the root and for nodes that come from elsewhere.
    pub(crate) fn stored(&self, id: NodeId) -> Option<&Arc<StoredNode>> {
        match self.source(id)? {
            NodeSource::Stored(stored) => Some(stored),
            NodeSource::Folder(_) | NodeSource::Memory(_) => None,
        }
    }

    /// Drops every node but the root, those that `keep` names and those above them, and gives their memory back.
    ///
    /// Goes through the whole tree, so it is for now and then.
    pub(crate) fn retain(&mut self, keep: impl Fn(NodeId) -> bool) {
        let mut kept = HashSet::from([self.root()]);
        for &id in self.nodes.keys().filter(|id| keep(**id)) {
            let mut at = id;
            while kept.insert(at) {
                at = self.get(at).parent;
            }
        }
        self.nodes.retain(|id, _| kept.contains(id));
        self.nodes.shrink_to_fit();
        self.by_name.retain(|_, id| kept.contains(id));
        self.by_name.shrink_to_fit();
        // Made anew: to take nodes out one by one, each is looked for among all its siblings.
        let root = self.root();
        let below = self.nodes.iter().filter(|(id, _)| **id != root);
        self.graph = DiGraphMap::from_edges(below.map(|(id, node)| (node.parent, *id)));
    }
}
