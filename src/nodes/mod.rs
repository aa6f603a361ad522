//! Where nodes come from: a folder of adapters, memory, or a store. A name resolves to a
//! [`NodeVersion`], a value that can be held and compared.
//!
//! **Invariant:** two versions are equal only if they are the same content on the same path:
//! weights that stand at equal versions are the same bits.
//! **Invariant:** a version holds those above it, so that a path that was walked down can be walked
//! up again, whatever its name leads to by now.

mod cache;
mod folder;
mod stored;

use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rand::rngs::StdRng;

pub use cache::{CacheStats, DeltaCache};
pub(crate) use folder::TreeNodes;
pub(crate) use stored::StoreNodes;

use crate::adapter::{AdapterDeltas, BaseShapes, Limits};
use crate::base::BaseModel;
use crate::compile::CompiledNode;
use crate::store::Location;
use crate::store::Store;
use crate::tree::AdapterTree;
use crate::{Error, Result};

/// One content of one node on one path: what a switch adds to the weights and later subtracts.
/// Cheap to clone. Equal versions of one runtime are the same content under the same parents.
#[derive(Clone)]
pub struct NodeVersion(Arc<Version>);

struct Version {
    /// Given once: no two versions have the same.
    serial: u64,
    name: Arc<str>,
    /// `None` for the root.
    parent: Option<NodeVersion>,
    source: Source,
    /// Whether it was reported that it was trained on other content of its parent.
    warned_stale: AtomicBool,
    /// Whether it was reported that the lattice keeps little of its change.
    warned_kept: AtomicBool,
}

/// Where a version's deltas are.
pub(crate) enum Source {
    /// It changes nothing.
    Nothing,
    /// In memory, as floats.
    Memory(Arc<AdapterDeltas>),
    /// In an adapter's folder. **Invariant:** it is one content as long as it is held, that which
    /// was read first.
    Folder {
        dir: PathBuf,
        /// BLAKE3 of both files as they were read first.
        content: OnceLock<blake3::Hash>,
    },
    /// In a store, compiled.
    Stored {
        generation: u64,
        content_generation: u64,
        trained_on: u64,
        /// A compaction moves it.
        location: Mutex<Location>,
    },
}

impl NodeVersion {
    fn new(name: Arc<str>, parent: Option<Self>, source: Source) -> Self {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let (warned_stale, warned_kept) = (AtomicBool::new(false), AtomicBool::new(false));
        Self(Arc::new(Version { serial, name, parent, source, warned_stale, warned_kept }))
    }

    /// The root of a tree: the base itself.
    fn root() -> Self {
        Self::new(Arc::from("/"), None, Source::Nothing)
    }

    /// The node's name: its path, or `/` for the root.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What it hangs under; `None` for the root.
    pub fn parent(&self) -> Option<&Self> {
        self.0.parent.as_ref()
    }

    /// The versions from the top down to this one, without the root: what is added to the base.
    pub fn path(&self) -> Vec<Self> {
        let up = std::iter::successors(Some(self), |version| version.parent());
        let mut path: Vec<Self> =
            up.filter(|version| version.parent().is_some()).cloned().collect();
        path.reverse();
        path
    }

    /// What a switch from here to `target` subtracts and adds: what the two paths do not share.
    pub(crate) fn way_to(&self, target: &Self) -> Way {
        let (mut left, mut entered) = (self.path(), target.path());
        let common = left.iter().zip(&entered).take_while(|(here, there)| here == there).count();
        left.drain(..common);
        left.reverse();
        entered.drain(..common);
        Way { left, entered }
    }

    /// The change of the store that made it; none where nodes are not those of a store.
    pub fn generation(&self) -> Option<u64> {
        match self.source() {
            Source::Stored { generation, .. } => Some(*generation),
            _ => None,
        }
    }

    /// BLAKE3 of what this node alone changes: of a store of its compiled deltas, of a folder of the
    /// adapter's files. None for the root, for deltas in memory, and for a folder that nobody has
    /// read yet.
    pub fn content_hash(&self) -> Option<blake3::Hash> {
        match self.source() {
            Source::Stored { location, .. } => {
                let location = location.lock().unwrap_or_else(PoisonError::into_inner);
                Some(location.blake3.into())
            }
            Source::Folder { content, .. } => content.get().copied(),
            Source::Nothing | Source::Memory(_) => None,
        }
    }

    pub(crate) fn serial(&self) -> u64 {
        self.0.serial
    }

    pub(crate) fn source(&self) -> &Source {
        &self.0.source
    }

    /// Whether this is the first time that this is reported of it.
    pub(crate) fn warns_of_kept(&self) -> bool {
        !self.0.warned_kept.swap(true, Ordering::Relaxed)
    }
}

impl PartialEq for NodeVersion {
    fn eq(&self, other: &Self) -> bool {
        self.0.serial == other.0.serial
    }
}

impl Eq for NodeVersion {}

impl Hash for NodeVersion {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.serial.hash(state);
    }
}

impl std::fmt::Debug for NodeVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("NodeVersion").field(&self.name()).field(&self.0.serial).finish()
    }
}

/// The way from one version to another.
pub(crate) struct Way {
    /// What is subtracted, from the bottom upwards.
    pub(crate) left: Vec<NodeVersion>,
    /// What is added, downwards.
    pub(crate) entered: Vec<NodeVersion>,
}

/// One node's deltas as they are kept.
pub(crate) enum Deltas {
    /// To be compiled.
    Float(Arc<AdapterDeltas>),
    /// Compiled already.
    Compiled(CompiledNode),
}

/// What adapters are read against.
pub(crate) struct Reading<'a> {
    pub(crate) base: &'a BaseModel,
    pub(crate) shapes: &'a BaseShapes,
    pub(crate) limits: &'a Limits,
    /// What was given in place of the base's tokenizer and chat templates.
    pub(crate) tokenizer: Option<&'a Path>,
}

/// What becomes of a switch to a node that was trained on other content of its parent, or of the
/// parent's parent, than there is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StalePolicy {
    /// It is made, with a warning the first time.
    #[default]
    Warn,
    /// It is refused with [`StoreDefect::Stale`](crate::error::StoreDefect::Stale).
    Refuse,
    /// It is made.
    Accept,
}

/// A set of nodes by name.
pub(crate) trait NodeSet: Send + Sync {
    /// The base.
    fn root(&self) -> &NodeVersion;

    /// The version that `name` leads to now; `""` and `/` are the root.
    fn resolve(&self, name: &str) -> Result<NodeVersion>;

    /// Names of the children of the node called `name` in order, those after `after`, at most
    /// `limit`.
    fn children(&self, name: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>>;

    /// Names of nodes, the root among them: all, or where they may be very many `most`, each as
    /// likely as any other.
    fn sample(&self, most: usize, rng: &mut StdRng) -> Result<Vec<String>>;

    /// A version's deltas, those of files checked against the base.
    fn read(&self, version: &NodeVersion, reading: &Reading<'_>) -> Result<Deltas>;

    /// Warns of, or refuses, a version whose path was trained on other content than there is now.
    fn check_stale(&self, version: &NodeVersion, policy: StalePolicy) -> Result<()>;

    /// An error about a path that leaves the lattice, with advice that helps here.
    fn advised(&self, error: Error) -> Error;

    /// Resolves `name` and does `work` with the version, again with another one if what it names is
    /// gone by then.
    fn with(&self, name: &str, work: &mut dyn FnMut(NodeVersion) -> Result<()>) -> Result<()>;

    /// Versions held in memory.
    fn held(&self) -> usize;

    /// The tree, where the nodes are those of one.
    fn tree(&self) -> Option<&AdapterTree>;

    /// The store, where they are those of one.
    fn store(&self) -> Option<&Store>;
}

/// Where nodes come from.
#[derive(Clone, Debug)]
pub enum Nodes {
    /// A tree: of a folder, or made in memory.
    Tree(Box<AdapterTree>),
    /// A store.
    Store(Store),
}

impl Nodes {
    /// Opens `path`: a store, or a folder of adapters.
    ///
    /// # Errors
    /// As [`Store::open`] and [`AdapterTree::open`].
    pub fn open(path: &Path) -> Result<Self> {
        if Store::is_store(path) {
            Store::open(path).map(Self::Store)
        } else {
            AdapterTree::open(path).map(Self::from)
        }
    }

    /// Refuses a name that no node has.
    ///
    /// # Errors
    /// [`TreeDefect::UnknownNode`](crate::error::TreeDefect::UnknownNode).
    pub fn check(&self, name: &str) -> Result<()> {
        match self {
            Self::Tree(tree) => tree.node(name).map(drop),
            Self::Store(store) => store.path(name).map(drop),
        }
    }
}

impl From<AdapterTree> for Nodes {
    fn from(tree: AdapterTree) -> Self {
        Self::Tree(Box::new(tree))
    }
}

impl From<Store> for Nodes {
    fn from(store: Store) -> Self {
        Self::Store(store)
    }
}
