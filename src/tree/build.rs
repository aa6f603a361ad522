//! From a list of nodes to a tree: names checked, parents found, cycles refused.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::{AdapterTree, BasePin, MAX_DEPTH, NodeSource};
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
    pub fn node(mut self, name: impl Into<String>, parent: impl Into<String>, source: NodeSource) -> Self {
        self.nodes.push(Spec { name: name.into(), parent: Some(parent.into()), label: None, source });
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
    /// [`TreeDefect`]: a bad name, two nodes of one name, an unknown parent, a cycle, a node too deep.
    pub fn build(self) -> Result<AdapterTree> {
        let mut specs: BTreeMap<String, Spec> = BTreeMap::new();
        for spec in self.nodes {
            check_name(&spec.name)?;
            match specs.entry(spec.name.clone()) {
                Entry::Occupied(_) => return Err(TreeDefect::DuplicateNode { name: spec.name }.into()),
                Entry::Vacant(place) => place.insert(spec),
            };
        }
        let mut children: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for spec in specs.values() {
            let parent = parent_of(spec, &specs)?;
            children.entry(parent).or_default().push(spec.name.clone());
        }
        let unplaced = specs.clone();
        let mut tree = AdapterTree::of_root(self.name, self.levels, self.base);
        // Depth first, children in the order of their names: the stack holds the last child at the bottom.
        let mut stack = Vec::new();
        let push = |stack: &mut Vec<_>, children: Option<Vec<String>>, parent| {
            stack.extend(children.into_iter().flatten().rev().map(|name| (name, parent)));
        };
        push(&mut stack, children.remove(""), tree.root());
        while let Some((name, parent)) = stack.pop() {
            let depth = tree.depth(parent) + 1;
            if depth > MAX_DEPTH {
                return Err(TreeDefect::TooDeep { name, depth, limit: MAX_DEPTH }.into());
            }
            let Some(spec) = specs.remove(&name) else { continue };
            let id = tree.attach(parent, &name, spec.label.as_deref(), spec.source);
            push(&mut stack, children.remove(&name), id);
        }
        // What is left hangs under no node that hangs under the root.
        match specs.into_keys().next() {
            Some(name) => Err(cycle_from(name, &unplaced).into()),
            None => Ok(tree),
        }
    }
}

/// The name of a node's parent, `""` for the root.
fn parent_of(spec: &Spec, specs: &BTreeMap<String, Spec>) -> Result<String, TreeDefect> {
    let Some(parent) = &spec.parent else {
        let above =
            std::iter::successors(Some(spec.name.as_str()), |name| name.rsplit_once('/').map(|(above, _)| above));
        return Ok(above.skip(1).find(|name| specs.contains_key(*name)).unwrap_or_default().to_owned());
    };
    let parent = parent.trim_matches('/');
    if parent.is_empty() || specs.contains_key(parent) {
        return Ok(parent.to_owned());
    }
    Err(TreeDefect::UnknownParent {
        node: spec.name.clone(),
        parent: parent.to_owned(),
        nearest: nearest(parent, '/', specs.keys().map(String::as_str).filter(|name| *name != spec.name)),
    })
}

/// The cycle that the parents of `name`, which do not lead to the root, run into.
fn cycle_from(name: String, specs: &BTreeMap<String, Spec>) -> TreeDefect {
    let mut walk = vec![name];
    loop {
        let last = &walk[walk.len() - 1];
        let parent = specs.get(last).and_then(|spec| parent_of(spec, specs).ok()).unwrap_or_default();
        if let Some(start) = walk.iter().position(|seen| *seen == parent) {
            walk.drain(..start);
            walk.push(parent);
            return TreeDefect::ParentCycle { nodes: walk };
        }
        walk.push(parent);
    }
}

/// Checks a node's name: parts of `[A-Za-z0-9._-]{1,128}`, at most [`MAX_DEPTH`] of them. A part can be a folder on every
/// system: no dot at its start or end, and no device of Windows, which has those in every folder and with any extension.
pub(crate) fn check_name(name: &str) -> Result<(), TreeDefect> {
    let depth = name.split('/').count();
    if depth > MAX_DEPTH {
        return Err(TreeDefect::TooDeep { name: shown(name), depth, limit: MAX_DEPTH });
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let good = |part: &str| {
        let dotted = part.starts_with('.') || part.ends_with('.');
        (1..=128).contains(&part.len()) && !dotted && part.bytes().all(allowed) && !is_device(part)
    };
    if name.split('/').all(good) { Ok(()) } else { Err(TreeDefect::InvalidName { name: shown(name) }) }
}

fn is_device(part: &str) -> bool {
    let stem = part.split('.').next().unwrap_or_default().to_ascii_uppercase();
    let numbered = |kind| stem.strip_prefix(kind).is_some_and(|n| n.len() == 1 && n.as_bytes()[0].is_ascii_digit());
    matches!(&stem[..], "CON" | "PRN" | "AUX" | "NUL") || numbered("COM") || numbered("LPT")
}

/// A name that may be long, for a message of one line.
pub(crate) fn shown(name: &str) -> String {
    name.chars().take(200).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
