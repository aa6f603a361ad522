//! What can be wrong with a tree, or with what is asked of it: each defect named.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use serde::ser::SerializeStruct;

use super::Error;
use crate::suggest::did_you_mean;

/// A node, or an entry of a tree's folder, that is not served while the others are. As JSON
/// `{node, reason}`.
#[derive(Clone, Debug)]
pub struct RefusedEntry {
    /// The node's name; for what is no node, the path from the tree's folder.
    pub name: String,
    /// Why.
    pub reason: Arc<Error>,
}

impl RefusedEntry {
    /// The entry called `name`, refused for `reason`.
    pub(crate) fn new(name: impl Into<String>, reason: impl Into<Error>) -> Self {
        Self { name: name.into(), reason: Arc::new(reason.into()) }
    }
}

impl fmt::Display for RefusedEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = self.reason.to_string();
        // Some reasons begin with the name themselves.
        match reason.strip_prefix(&self.name).is_some_and(|rest| rest.starts_with(": ")) {
            true => f.write_str(&reason),
            false => write!(f, "{}: {reason}", self.name),
        }
    }
}

impl PartialEq for RefusedEntry {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.reason.to_string() == other.reason.to_string()
    }
}

impl Eq for RefusedEntry {}

impl Serialize for RefusedEntry {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut entry = serializer.serialize_struct("RefusedEntry", 2)?;
        entry.serialize_field("node", &self.name)?;
        entry.serialize_field("reason", &self.reason.to_string())?;
        entry.end()
    }
}

/// Why a folder of a tree, and what is below it, is passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PassedOverWhy {
    /// `checkpoint-500`: an earlier state of the adapter it lies in.
    Checkpoint,
    /// `..2026_11_26_10_00_00.1`: where a Kubernetes volume keeps what its links lead to.
    Volume,
    /// `__pycache__`.
    Cache,
    /// A pattern of `[tree] skip` in `tree.toml`.
    Pattern(String),
}

impl fmt::Display for PassedOverWhy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checkpoint => {
                f.write_str("a trainer's checkpoint, an earlier state of the adapter beside it")
            }
            Self::Volume => {
                f.write_str("a Kubernetes volume's own folder, which its links lead to")
            }
            Self::Cache => f.write_str("a cache"),
            Self::Pattern(pattern) => write!(f, "skip = [{pattern:?}] in tree.toml"),
        }
    }
}

/// Refusals one under the other, or a single one on the same line.
pub(crate) fn refusals(refused: &[RefusedEntry]) -> String {
    match refused {
        [one] => format!(" {one}"),
        _ => refused.iter().map(|entry| format!("\n  {entry}")).collect(),
    }
}

/// Why a tree or a request to it is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TreeDefect {
    /// The folder holds no node.
    #[error(
        "{}: {}, so there is no tree here{}", path.display(),
        if refused.is_empty() { "no folder in it has an adapter_config.json" } else { "every entry is refused" },
        if refused.is_empty() { String::new() } else { format!(":{}", refusals(refused)) }
    )]
    Empty {
        /// The folder.
        path: PathBuf,
        /// What might have been nodes.
        refused: Vec<RefusedEntry>,
    },
    /// The tree's root folder is itself an adapter.
    #[error(
        "{}: the root of a tree is the base itself, but this folder is an adapter; name the folder above it, or move \
         the adapter into a folder of its own",
        path.display()
    )]
    RootIsAdapter {
        /// The folder.
        path: PathBuf,
    },
    /// The folder is a store, not a folder of adapters.
    #[error("{}: this is a store, not a folder of adapters; `pleach store` reads it", path.display())]
    IsStore {
        /// The folder.
        path: PathBuf,
    },
    /// No node is called so.
    #[error("there is no node {name}{}", did_you_mean(nearest))]
    UnknownNode {
        /// The name asked for.
        name: String,
        /// Up to three nodes with a similar name.
        nearest: Vec<String>,
    },
    /// The node asked for, or what it is or lies below, is refused.
    #[error("there is no node {name}: {} is refused: {}", entry.name, entry.reason)]
    Refused {
        /// The name asked for.
        name: String,
        /// What is refused.
        entry: RefusedEntry,
    },
    /// The node asked for lies in a folder that is passed over.
    #[error(
        "there is no node {name}: {folder} is passed over ({why}); to serve what is in it give it a name in tree.toml: \
         [nodes.\"NAME\"] adapter = {name:?}"
    )]
    PassedOver {
        /// The name asked for.
        name: String,
        /// The folder.
        folder: String,
        /// Why.
        why: PassedOverWhy,
    },
    /// The parent of a node is refused.
    #[error(
        "its parent {parent} is refused, and under another it would be another model; mend {parent}, or say in tree.toml \
         what it hangs under: [nodes.{node:?}] parent = \"…\", \"/\" where it stands by itself"
    )]
    BelowRefused {
        /// The node.
        node: String,
        /// Its parent.
        parent: String,
    },
    /// A node's files are no longer those that the runtime read first.
    #[error(
        "{node}: the files in {} have changed since they were first read (BLAKE3 {first} then, {found} now), and a node is \
         one content while a runtime lives; open the runtime again, or publish changing adapters to a store",
        path.display()
    )]
    Changed {
        /// The node.
        node: String,
        /// The adapter's folder.
        path: PathBuf,
        /// BLAKE3 of the files as they were read first.
        first: String,
        /// BLAKE3 of the files as they are.
        found: String,
    },
    /// A node's name breaks the rules.
    #[error(
        "{name:?} cannot be a node's name: {problem}; choose another, or give the folder one in tree.toml \
         ([nodes.\"NAME\"] adapter = \"FOLDER\")"
    )]
    InvalidName {
        /// The name.
        name: String,
        /// Which part of the rule it breaks, as trees/README.md has it.
        problem: String,
    },
    /// A node lies too deep.
    #[error("{name} lies {depth} levels deep, the limit is {limit}")]
    TooDeep {
        /// The node or folder.
        name: String,
        /// Its depth.
        depth: usize,
        /// The limit.
        limit: usize,
    },
    /// Two nodes have one name.
    #[error(
        "two nodes are called {name} (however their letters are encoded); rename one of them, or remove `adapter` from \
         its entry in tree.toml"
    )]
    DuplicateNode {
        /// The name.
        name: String,
    },
    /// A node names a parent that is not in the tree.
    #[error("the parent {parent} of {node} is not in the tree{}", did_you_mean(nearest))]
    UnknownParent {
        /// The node.
        node: String,
        /// The parent it names.
        parent: String,
        /// Up to three nodes with a similar name.
        nearest: Vec<String>,
    },
    /// Following the parents of a node leads back to it.
    #[error("the parents of {} form a cycle: {}", nodes[0], nodes.join(" → "))]
    ParentCycle {
        /// The nodes of the cycle, each followed by its parent.
        nodes: Vec<String>,
    },
    /// `tree.toml` does not parse.
    #[error("{}: {source}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Where and why parsing stopped.
        source: Box<toml::de::Error>,
    },
    /// `tree.toml` is larger than the limit.
    #[error("{} has {bytes} bytes, the limit is {limit}", path.display())]
    ManifestTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// `[base] blake3` is not a hash.
    #[error("[base] blake3 = {found:?} in tree.toml is not a BLAKE3 hash of 64 hexadecimal digits")]
    BadHash {
        /// The value.
        found: String,
    },
    /// A pattern of `[tree] skip` is none.
    #[error("skip = [{pattern:?}] in tree.toml is no pattern: {reason}")]
    BadPattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An entry of `tree.toml` has no adapter and is not a folder of the tree.
    #[error(
        "[nodes.{name:?}] in tree.toml has no `adapter`, and no folder of that name is a node{}",
        did_you_mean(nearest)
    )]
    NodeWithoutFiles {
        /// The node.
        name: String,
        /// Up to three nodes with a similar name.
        nearest: Vec<String>,
    },
    /// A node's files are not inside the tree's folder.
    #[error("{node}: {} is outside the tree's folder; adapters are read from inside it only", path.display())]
    OutsideRoot {
        /// The node or folder.
        node: String,
        /// Where it leads.
        path: PathBuf,
    },
    /// A node's folder is not there any more.
    #[error(
        "{node}: {} was there when the tree was opened, and is not now; open the tree again to serve what there is",
        path.display()
    )]
    Gone {
        /// The node.
        node: String,
        /// Its folder.
        path: PathBuf,
    },
    /// A link leads to nothing.
    #[error("{}: this link leads nowhere; remove it, or pass it over in tree.toml ([tree] skip)", path.display())]
    DanglingLink {
        /// The link.
        path: PathBuf,
    },
    /// A link leads back to a folder above it.
    #[error("{}: this link leads back to a folder above it or to itself; remove it", path.display())]
    LinkCycle {
        /// The link.
        path: PathBuf,
    },
    /// One folder is reached by two ways.
    #[error(
        "{} is the same folder as {}; give it a second name with `adapter` in tree.toml instead of a link",
        path.display(), first.display()
    )]
    FolderTwice {
        /// The folder as reached now.
        path: PathBuf,
        /// The folder itself.
        first: PathBuf,
    },
}
