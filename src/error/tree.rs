//! What can be wrong with a tree, or with what is asked of it: each defect named.

use std::path::PathBuf;

use crate::suggest::did_you_mean;

/// Why a tree or a request to it is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TreeDefect {
    /// The folder holds no node.
    #[error("{}: no folder in it has an adapter_config.json, so there is no tree here", path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
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
    /// A node's name breaks the rules.
    #[error(
        "{name:?} cannot be a node's name: each part between slashes is 1 to 128 of the letters A–Z, a–z, 0–9, '.', '_' \
         and '-', neither starts nor ends with a dot, and is no device of Windows (CON, NUL, COM1, …); choose another"
    )]
    InvalidName {
        /// The name.
        name: String,
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
    #[error("two nodes are called {name}; rename one of them, or remove `adapter` from its entry in tree.toml")]
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
