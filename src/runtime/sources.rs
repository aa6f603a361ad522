//! Where weights and deltas come from: read-only, whatever the device.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::adapter::{AdapterDeltas, BaseShapes, Limits, PeftAdapter, beside};
use crate::base::BaseModel;
use crate::error::{StoreDefect, TreeDefect};
use crate::lattice::{Grid, LatticeMatrix};
use crate::store::{CompiledNode, Store};
use crate::tree::{AdapterTree, NodeId, NodeSource};
use crate::weights::{EMBEDDING, HEAD, quantise_weight};
use crate::{Error, Result, WeightName, device::cpu::Cpu};

/// Nodes of a store kept in the tree beside those whose deltas are in memory.
const LOADED_NODES: usize = 4096;

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
        if Store::is_store(path) { Store::open(path).map(Self::Store) } else { AdapterTree::open(path).map(Self::from) }
    }

    /// Refuses a name that no node has.
    ///
    /// # Errors
    /// [`TreeDefect::UnknownNode`].
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

/// What becomes of a switch to a node that was trained on other content of its parent, or of the parent's parent, than
/// there is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StalePolicy {
    /// It is made, with a warning the first time.
    #[default]
    Warn,
    /// It is refused with [`StoreDefect::Stale`].
    Refuse,
    /// It is made.
    Accept,
}

/// The base, the tree, and how they are read.
pub(super) struct Sources {
    pub(super) base: BaseModel,
    pub(super) shapes: BaseShapes,
    /// The tree; of a store, the part that was asked for.
    pub(super) tree: AdapterTree,
    pub(super) store: Option<Store>,
    pub(super) stale: StalePolicy,
    /// Nodes that were warned about.
    pub(super) warned: HashSet<NodeId>,
    pub(super) limits: Limits,
    pub(super) headroom: f32,
    pub(super) contents: Contents,
    /// What was given in place of the base's tokenizer and chat templates: a file or a folder.
    pub(super) tokenizer: Option<PathBuf>,
}

/// What the files of a folder tree's nodes held when each was first read: BLAKE3 of both files. **Invariant:** a node is one
/// content while the runtime lives, so what was added to the weights, dropped from a cache and read again is the same.
#[derive(Default)]
pub(super) struct Contents(Mutex<HashMap<NodeId, blake3::Hash>>);

impl Contents {
    /// The hash of what was read first, if something was.
    fn first(&self, node: NodeId) -> Option<blake3::Hash> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&node).copied()
    }

    /// Keeps it; gives whether it is the first.
    fn keep(&self, node: NodeId, read: blake3::Hash) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.len();
        known.entry(node).or_insert(read);
        known.len() > before
    }
}

/// One node's deltas as they are kept.
pub(super) enum Deltas {
    Float(Arc<AdapterDeltas>),
    Compiled(CompiledNode),
}

impl Deltas {
    /// The weights they change.
    pub(super) fn weights(&self) -> Vec<&WeightName> {
        match self {
            Self::Float(deltas) => deltas.keys().collect(),
            Self::Compiled(node) => node.keys().collect(),
        }
    }
}

impl Sources {
    /// The node called `name`, as it now is.
    pub(super) fn resolve(&mut self, name: &str) -> Result<NodeId> {
        let Some(store) = &self.store else { return self.tree.node(name) };
        store.load(&mut self.tree, name)
    }

    /// Refuses an id that the tree does not hold (any more).
    pub(super) fn check_held(&self, node: NodeId) -> Result<()> {
        if self.tree.holds(node) {
            return Ok(());
        }
        let name = format!("with id {} (look it up by name)", node.index());
        Err(TreeDefect::UnknownNode { name, nearest: Vec::new() }.into())
    }

    /// Tells, or refuses, a node whose path was trained on other content than there is now.
    pub(super) fn check_stale(&mut self, node: NodeId) -> Result<()> {
        let Some(store) = self.store.as_ref().filter(|_| self.stale != StalePolicy::Accept) else { return Ok(()) };
        for at in self.tree.path_from_root(node) {
            let parent = self.tree.parent(at).unwrap_or(self.tree.root());
            let Some(stored) = self.tree.stored(at) else { continue };
            let found = self.tree.stored(parent).map_or(0, |parent| parent.content_generation);
            if stored.trained_on == found {
                continue;
            }
            let [name, parent] = [at, parent].map(|id| self.tree.name(id).to_owned());
            let told = self.stale == StalePolicy::Refuse || !self.warned.contains(&at);
            let trained_under = if told { store.trained_under(&parent, stored.trained_on)? } else { None };
            let defect = StoreDefect::Stale { name, parent, trained_under, trained_on: stored.trained_on, found };
            if self.stale == StalePolicy::Refuse {
                return Err(Error::store(store.folder(), defect));
            }
            if self.warned.insert(at) {
                tracing::warn!("{defect}");
            }
        }
        Ok(())
    }

    /// Drops nodes of a store from the tree where there are many: those without deltas in memory that no `kept` one
    /// hangs below.
    pub(super) fn prune(&mut self, kept_count: usize, kept: impl FnOnce(&AdapterTree) -> HashSet<NodeId>) {
        if self.store.is_some() && self.tree.len() > LOADED_NODES + 2 * kept_count {
            let kept = kept(&self.tree);
            self.tree.retain(|id| kept.contains(&id));
            let tree = &self.tree;
            self.warned.retain(|&id| tree.holds(id));
        }
    }

    /// A node's deltas, read from where the tree says, those of files checked against the base.
    pub(super) fn deltas(&self, node: NodeId) -> Result<Deltas> {
        match self.tree.source(node) {
            None => Ok(Deltas::Float(Arc::default())),
            Some(NodeSource::Memory(deltas)) => Ok(Deltas::Float(deltas.clone())),
            Some(NodeSource::Stored(stored)) => {
                let Some(store) = &self.store else {
                    let name = self.tree.name(node).to_owned();
                    return Err(Error::store(name.clone(), StoreDefect::OfAStore { name }));
                };
                store.read(stored).map(Deltas::Compiled)
            }
            Some(NodeSource::Folder(dir)) => {
                let adapter = PeftAdapter::open(dir, &self.limits).map_err(|error| match dir.exists() {
                    true => error,
                    false => TreeDefect::Gone { node: self.tree.name(node).to_owned(), path: dir.to_owned() }.into(),
                })?;
                self.check_content(node, dir, adapter.hash())?;
                adapter.check_copies(&self.base)?;
                let deltas = adapter.deltas(&self.shapes)?;
                // What is refused is no content yet: it may be mended.
                self.keep_content(node, &adapter)?;
                Ok(Deltas::Float(Arc::new(deltas)))
            }
        }
    }

    /// Refuses files that are not those that were read first.
    fn check_content(&self, node: NodeId, dir: &Path, found: blake3::Hash) -> Result<()> {
        let Some(first) = self.contents.first(node).filter(|first| *first != found) else { return Ok(()) };
        let [first, found] = [first, found].map(|hash| hash.to_hex()[..16].to_owned());
        let (node, path) = (self.tree.name(node).to_owned(), dir.to_owned());
        Err(TreeDefect::Changed { node, path, first, found }.into())
    }

    /// Keeps what a node's files held when they were first read and found good; tells then what is doubtful about it.
    fn keep_content(&self, node: NodeId, read: &PeftAdapter) -> Result<()> {
        if self.contents.first(node).is_some() {
            return Ok(());
        }
        let remarks = read.remarks(&self.shapes)?;
        if !self.contents.keep(node, read.hash()) {
            return Ok(());
        }
        let name = self.tree.name(node);
        for remark in remarks {
            tracing::warn!("{name}: {remark}");
        }
        if let Some(doubt) = self.tree.doubt(node, &self.limits) {
            tracing::warn!("{doubt}");
        }
        let dir = read.header().path();
        let beside = beside(dir, &self.base);
        // What was asked for is used.
        if !beside.is_empty() && self.tokenizer.as_deref().is_none_or(|given| !given.starts_with(dir)) {
            let beside = beside.join(", and ");
            let dir = dir.display();
            tracing::warn!("{name}: beside the adapter lies {beside}; the base's is used (another: --tokenizer {dir})");
        }
        Ok(())
    }

    /// Names of nodes to visit: all of a tree, of a store up to `count` chosen so that each is as likely as any other.
    pub(super) fn some_names(&self, count: usize, rng: &mut impl rand::Rng) -> Result<Vec<String>> {
        let Some(store) = &self.store else {
            return Ok(self.tree.nodes().map(|id| self.tree.name(id).to_owned()).collect());
        };
        let mut names = vec!["/".to_owned()];
        let mut after: Option<String> = None;
        let mut seen = 1;
        loop {
            let page = store.list("", after.as_deref(), 10_000)?;
            let Some(last) = page.last() else { return Ok(names) };
            after = Some(last.name.clone());
            for node in page {
                seen += 1;
                if names.len() < count {
                    names.push(node.name);
                } else if let Some(place) = names.get_mut(rng.random_range(0..seen)) {
                    *place = node.name;
                }
            }
        }
    }

    /// A matrix of the base, read anew; a tied head is the embedding.
    pub(super) fn fresh_matrix(&self, name: &WeightName, host: &Cpu) -> Result<(LatticeMatrix, Grid)> {
        let tied = self.base.config().tie_word_embeddings && name.as_str() == HEAD;
        let source = if tied { &WeightName::new(EMBEDDING) } else { name };
        host.install(|| quantise_weight(&self.base, source, self.headroom))
    }
}
