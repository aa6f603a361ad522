//! A tree of adapters: one root (the base), every other node an adapter on top of its parent.
//!
//! **Invariant:** a name leads to one node at most, every node but the root has one parent, and
//! parents lead to the root. Ids count without gaps from the root in depth-first order, children in
//! the order of their names: parents have smaller ids than their children, and equal trees have
//! equal ids.

mod assemble;
mod build;
mod doubt;
mod left_out;
mod made_for;
mod manifest;
mod name;
mod plan;
pub mod render;
mod scan;
mod tour;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use petgraph::graphmap::DiGraphMap;

#[cfg(feature = "testing")]
pub(crate) use assemble::read_manifest_bytes;
pub use build::TreeBuilder;
pub use doubt::{Doubt, DoubtWhy};
pub use left_out::PassedOver;
pub use manifest::BasePin;
pub use name::normal;
pub(crate) use name::{check_name, shown};
pub use plan::{PlanSummary, SwitchPlan};

use crate::Result;
use crate::adapter::AdapterDeltas;
use crate::error::RefusedEntry;
use crate::suggest::nearest;

/// The file that makes a folder a store.
pub(crate) const STORE_FILE: &str = "catalogue.db";

/// Deepest node: the root has depth 0.
pub const MAX_DEPTH: usize = 64;

/// A node of one tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(usize);

impl NodeId {
    /// Its number: 0 is the root, and the others follow without gaps.
    pub fn index(self) -> usize {
        self.0
    }
}

/// Where a node's deltas come from.
#[derive(Clone, Debug)]
pub enum NodeSource {
    /// A PEFT folder.
    Folder(PathBuf),
    /// Deltas made in memory.
    Memory(Arc<AdapterDeltas>),
}

#[derive(Clone, Debug)]
struct Node {
    name: Arc<str>,
    label: Option<String>,
    source: Option<NodeSource>,
    /// Here and not in the graph alone: walks up need no search. The root's is the root.
    parent: NodeId,
    depth: usize,
    /// Whether `tree.toml` names its parent.
    is_placed: bool,
}

/// A tree of adapters. Nothing of an adapter but its place is read when a tree is opened.
///
/// ```
/// use pleach::tree::{AdapterTree, NodeSource};
///
/// let nothing = || NodeSource::Memory(Default::default());
/// let tree = AdapterTree::builder()
///     .node("fr", "/", nothing())
///     .node("fr/alice", "fr", nothing())
///     .node("fr/bob", "fr", nothing())
///     .build()?;
/// let (alice, bob) = (tree.node("fr/alice")?, tree.node("/fr/bob/")?);
/// assert_eq!(tree.lowest_common_ancestor(alice, bob), tree.node("fr")?);
/// assert_eq!(tree.plan(alice, bob).display(&tree).to_string(), "fr/alice → fr/bob: − fr/alice  + fr/bob");
/// # Ok::<(), pleach::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct AdapterTree {
    /// Edges lead from parent to child.
    graph: DiGraphMap<NodeId, ()>,
    /// By their ids.
    nodes: Vec<Node>,
    by_name: HashMap<Arc<str>, NodeId>,
    name: Option<String>,
    levels: Vec<String>,
    base: Option<BasePin>,
    refused: Vec<RefusedEntry>,
    passed_over: Vec<PassedOver>,
}

impl AdapterTree {
    /// Opens the tree in `folder`: every folder with an `adapter_config.json` is a node called by
    /// its path, its parent the nearest node above it. `tree.toml` may add to that.
    ///
    /// Hidden folders and trainers' `checkpoint-500` folders are not entered. An entry that cannot
    /// be a node (a link out of the folder, a bad name, a folder that cannot be read) and what
    /// hangs below it are left out: [`Self::refused`].
    ///
    /// # Errors
    /// [`TreeDefect`](crate::error::TreeDefect) for what concerns the whole: `tree.toml`, a cycle
    /// of parents, an adapter at the root, no node at all; [`Error::Io`](crate::Error::Io) if the
    /// folder itself cannot be read.
    pub fn open(folder: &Path) -> Result<Self> {
        scan::open(folder)
    }

    /// Starts a tree without files.
    pub fn builder() -> TreeBuilder {
        TreeBuilder::default()
    }

    /// The root: the base itself.
    #[allow(clippy::unused_self, reason = "a root belongs to its tree")]
    pub fn root(&self) -> NodeId {
        NodeId(0)
    }

    /// The node called `name`; `""` and `/` are the root, a slash before or after a name does not
    /// matter.
    ///
    /// # Errors
    /// [`TreeDefect::UnknownNode`](crate::error::TreeDefect::UnknownNode), with the names nearest
    /// to it, or what it is that has the name:
    /// [`TreeDefect::Refused`](crate::error::TreeDefect::Refused),
    /// [`TreeDefect::PassedOver`](crate::error::TreeDefect::PassedOver).
    pub fn node(&self, name: &str) -> Result<NodeId> {
        let name = normal(name.trim_matches('/'));
        self.find(&name).ok_or_else(|| self.unknown(&name))
    }

    fn nearest_names(&self, name: &str) -> Vec<String> {
        nearest(name, '/', self.nodes().skip(1).map(|id| self.name(id)))
    }

    fn get(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// A tree of nothing but the root.
    fn of_root(name: Option<String>, levels: Vec<String>, base: Option<BasePin>) -> Self {
        let root = NodeId(0);
        let node = Node {
            name: Arc::from("/"),
            label: None,
            source: None,
            parent: root,
            depth: 0,
            is_placed: false,
        };
        let (refused, passed_over) = (Vec::new(), Vec::new());
        let (graph, by_name) = (DiGraphMap::new(), HashMap::new());
        Self { graph, nodes: vec![node], by_name, name, levels, base, refused, passed_over }
    }

    /// Adds a node under `parent`; the caller has checked the name and the depth.
    fn attach(
        &mut self,
        parent: NodeId,
        name: &str,
        label: Option<String>,
        source: NodeSource,
        is_placed: bool,
    ) -> NodeId {
        let (id, depth) = (NodeId(self.nodes.len()), self.depth(parent) + 1);
        let name: Arc<str> = Arc::from(name);
        self.by_name.insert(name.clone(), id);
        self.graph.add_edge(parent, id, ());
        self.nodes.push(Node { name, label, source: Some(source), parent, depth, is_placed });
        id
    }

    /// The node called `name`, without slashes around it, if it is here; `""` is the root.
    fn find(&self, name: &str) -> Option<NodeId> {
        if name.is_empty() { Some(self.root()) } else { self.by_name.get(name).copied() }
    }

    /// The node's name: its path, or `/` for the root.
    ///
    /// # Panics
    /// Like every method that takes a [`NodeId`], if the tree has no node of that id.
    pub fn name(&self, id: NodeId) -> &str {
        &self.get(id).name
    }

    /// What `tree.toml` calls the node, if it says so.
    pub fn label(&self, id: NodeId) -> Option<&str> {
        self.get(id).label.as_deref()
    }

    /// Where its deltas come from; `None` for the root.
    pub fn source(&self, id: NodeId) -> Option<&NodeSource> {
        self.get(id).source.as_ref()
    }

    /// Its parent; `None` for the root.
    pub fn parent(&self, id: NodeId) -> Option<NodeId> {
        (id != self.root()).then(|| self.get(id).parent)
    }

    /// Its children, in the order of their names.
    pub fn children(&self, id: NodeId) -> Vec<NodeId> {
        let mut children: Vec<NodeId> = self.graph.neighbors(id).collect();
        children.sort_unstable_by_key(|child| self.name(*child));
        children
    }

    /// Steps from the root: 0 for the root itself.
    pub fn depth(&self, id: NodeId) -> usize {
        self.get(id).depth
    }

    /// Nodes in the tree, the root among them.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is no node but the root.
    pub fn is_empty(&self) -> bool {
        self.len() == 1
    }

    /// All nodes in the order of their ids: parents before children, the root first.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len()).map(NodeId)
    }

    /// The nodes without children.
    pub fn leaves(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes().filter(|&id| self.graph.neighbors(id).next().is_none())
    }

    /// The node's ancestors and the node itself, from the top down, without the root: the deltas
    /// that make it.
    pub fn path_from_root(&self, id: NodeId) -> Vec<NodeId> {
        let mut path = self.path_up(id, self.root());
        path.reverse();
        path
    }

    /// From `id` up to but without its ancestor `top`.
    fn path_up(&self, id: NodeId, top: NodeId) -> Vec<NodeId> {
        std::iter::successors(Some(id), |&id| self.parent(id)).take_while(|&id| id != top).collect()
    }

    /// The deepest node that is `a` or above it and `b` or above it.
    pub fn lowest_common_ancestor(&self, a: NodeId, b: NodeId) -> NodeId {
        let (mut a, mut b) = (a, b);
        while a != b {
            if self.depth(a) >= self.depth(b) {
                a = self.get(a).parent;
            } else {
                b = self.get(b).parent;
            }
        }
        a
    }

    /// What the level at `depth` is called (`language` at depth 1, say); `None` for the root and
    /// for unnamed levels.
    pub fn level_name(&self, depth: usize) -> Option<&str> {
        self.levels.get(depth.checked_sub(1)?).map(String::as_str)
    }

    /// The tree's own name, if it has one.
    pub fn tree_name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The base that `tree.toml` names, if it does.
    pub fn base(&self) -> Option<&BasePin> {
        self.base.as_ref()
    }
}

#[cfg(test)]
mod tests;
