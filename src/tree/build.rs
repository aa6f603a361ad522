//! From a list of nodes to a tree: names checked, parents found, cycles refused.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::{AdapterTree, BasePin, MAX_DEPTH, NodeSource, check_name, normal, shown};
use crate::Result;
use crate::error::TreeDefect;
use crate::suggest::nearest;

/// Makes a tree from nodes in any order.
#[derive(Clone, Debug, Default)]
pub struct TreeBuilder {
    pub(super) nodes: Vec<Spec>,
    pub(super) name: Option<String>,
    pub(super) levels: Vec<String>,
    pub(super) base: Option<BasePin>,
}

/// One node to be.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) name: String,
    /// `None`: the nearest node above it by name.
    pub(super) parent: Option<String>,
    pub(super) label: Option<String>,
    pub(super) source: NodeSource,
}

impl TreeBuilder {
    /// Adds a node under `parent` (`""` or `/` is the root).
    #[must_use]
    pub fn node(
        mut self,
        name: impl Into<String>,
        parent: impl Into<String>,
        source: NodeSource,
    ) -> Self {
        self.nodes.push(Spec {
            name: name.into(),
            parent: Some(parent.into()),
            label: None,
            source,
        });
        self
    }

    /// Names the tree.
    #[must_use]
    pub fn named(mut self, name: Option<String>) -> Self {
        self.name = name;
        self
    }

    /// Names the levels from depth 1 down.
    #[must_use]
    pub fn levels(mut self, levels: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.levels = levels.into_iter().map(Into::into).collect();
        self
    }

    /// Builds the tree.
    ///
    /// # Errors
    /// [`TreeDefect`]: a bad name, two nodes of one name, an unknown parent, a cycle, a node too
    /// deep.
    pub fn build(self) -> Result<AdapterTree> {
        self.build_without(BTreeSet::new(), |_, defect| Err(defect.into()))
    }

    /// The same without the nodes called as `refused` says. What else cannot be a node is handed to
    /// `refuse`, and is left out, too, if that lets it pass; and so is all that hangs below what is
    /// left out.
    pub(super) fn build_without(
        self,
        refused: BTreeSet<String>,
        mut refuse: impl FnMut(&str, TreeDefect) -> Result<()>,
    ) -> Result<AdapterTree> {
        let mut left_out = refused;
        let mut specs: BTreeMap<String, Spec> = BTreeMap::new();
        for spec in self.nodes {
            let name = spec.name.clone();
            if let Err(defect) = check_name(&name) {
                refuse(&name, defect)?;
                left_out.insert(name);
                continue;
            }
            match specs.entry(name) {
                Entry::Occupied(place) => {
                    let name = place.key().clone();
                    refuse(&name, TreeDefect::DuplicateNode { name: name.clone() })?;
                    left_out.insert(name);
                }
                Entry::Vacant(place) => drop(place.insert(spec)),
            }
        }
        specs.retain(|name, _| !left_out.contains(name));
        let mut children: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut lost = Vec::new();
        for spec in specs.values() {
            match parent_of(spec, &specs, &left_out) {
                Ok(parent) => children.entry(parent).or_default().push(spec.name.clone()),
                Err(defect) => {
                    refuse(&spec.name, defect)?;
                    lost.push(spec.name.clone());
                }
            }
        }
        lost.iter().for_each(|name| drop(specs.remove(name)));
        lost.extend(left_out);
        let unplaced = specs.clone();
        let mut tree = AdapterTree::of_root(self.name, self.levels, self.base);
        // Depth first, children in the order of their names: the stack holds the last child at the
        // bottom.
        let mut stack = Vec::new();
        let push = |stack: &mut Vec<_>, children: Option<Vec<String>>, parent| {
            stack.extend(children.into_iter().flatten().rev().map(|name| (name, parent)));
        };
        push(&mut stack, children.remove(""), tree.root());
        while let Some((name, parent)) = stack.pop() {
            let Some(spec) = specs.remove(&name) else { continue };
            let depth = tree.depth(parent) + 1;
            if depth > MAX_DEPTH {
                refuse(&name, TreeDefect::TooDeep { name: name.clone(), depth, limit: MAX_DEPTH })?;
                lost.push(name);
                continue;
            }
            let id = tree.attach(parent, &name, spec.label, spec.source, spec.parent.is_some());
            push(&mut stack, children.remove(&name), id);
        }
        while let Some(parent) = lost.pop() {
            for node in children.remove(&parent).into_iter().flatten() {
                specs.remove(&node);
                refuse(
                    &node,
                    TreeDefect::BelowRefused { node: node.clone(), parent: parent.clone() },
                )?;
                lost.push(node);
            }
        }
        // What is left hangs under no node that hangs under the root.
        match specs.into_keys().next() {
            Some(name) => Err(cycle_from(name, &unplaced).into()),
            None => Ok(tree),
        }
    }
}

/// The name of a node's parent, `""` for the root. The nearest name above it counts also where that
/// is left out: to hang a node under the one above that would make another model of it.
fn parent_of(
    spec: &Spec,
    specs: &BTreeMap<String, Spec>,
    left_out: &BTreeSet<String>,
) -> Result<String, TreeDefect> {
    let is_known = |name: &str| specs.contains_key(name) || left_out.contains(name);
    let Some(parent) = &spec.parent else {
        let above = std::iter::successors(Some(spec.name.as_str()), |name| {
            name.rsplit_once('/').map(|(above, _)| above)
        });
        return Ok(above.skip(1).find(|name| is_known(name)).unwrap_or_default().to_owned());
    };
    let parent = normal(parent.trim_matches('/'));
    if parent.is_empty() || is_known(&parent) {
        return Ok(parent.into_owned());
    }
    Err(TreeDefect::UnknownParent {
        node: spec.name.clone(),
        parent: shown(&parent),
        nearest: nearest(
            &parent,
            '/',
            specs.keys().map(String::as_str).filter(|name| *name != spec.name),
        ),
    })
}

/// The cycle that the parents of `name`, which do not lead to the root, run into.
fn cycle_from(name: String, specs: &BTreeMap<String, Spec>) -> TreeDefect {
    let mut walk = vec![name];
    loop {
        let last = &walk[walk.len() - 1];
        let parent = specs
            .get(last)
            .and_then(|spec| parent_of(spec, specs, &BTreeSet::new()).ok())
            .unwrap_or_default();
        if let Some(start) = walk.iter().position(|seen| *seen == parent) {
            walk.drain(..start);
            walk.push(parent);
            return TreeDefect::ParentCycle { nodes: walk };
        }
        walk.push(parent);
    }
}
