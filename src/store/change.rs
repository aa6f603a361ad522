//! Changes to a store: publish, replace, remove, move, roll back, alone or several at once. What is
//! asked for, and what of it is refused before anything is locked; `apply` then makes it.
//!
//! **Invariant:** a batch is made whole or not at all, and is on disk when [`Store::apply`]
//! returns.
//! **Invariant:** what a change replaces or removes stays in the history until a compaction.

use std::collections::BTreeMap;

use super::apply::make_all;
use super::blob::encode_node;
use super::catalogue::NodeKind;
use super::segment::MAX_BLOB_BYTES;
use super::{Store, clean_name};
use crate::Result;
use crate::compile::CompiledNode;
use crate::error::StoreDefect;
use crate::lattice::{DeltaKind, Kept};
use crate::tree::check_name;

/// Most labels of a node: every lookup of it reads them, those of a switch too.
const MAX_LABELS: usize = 32;
/// Bytes of all labels of a node.
const MAX_LABEL_BYTES: usize = 4096;

/// What is published: compiled deltas as they lie in a segment, and where they came from.
#[derive(Clone, Debug)]
pub struct Content {
    /// BLAKE3 of the lattice it was compiled for.
    lattice_hash: blake3::Hash,
    pub(super) blob: Vec<u8>,
    pub(super) kind: NodeKind,
    pub(super) ranks: Vec<u32>,
    pub(super) matrices: u32,
    /// BLAKE3 of the adapter's files.
    pub(super) adapter_hash: [u8; 32],
    /// The adapter's files, if they are to be kept.
    pub(super) original: Option<Vec<u8>>,
    /// What share of the change the lattice keeps, where it was compiled here.
    pub(super) kept: Option<Kept>,
    /// What else there is to say about the adapter.
    pub(super) remarks: Vec<String>,
}

impl Content {
    /// The content of a node with these deltas, compiled for the lattice with this hash
    /// ([`BaseLattice::hash`](crate::lattice::BaseLattice::hash)). A store of another lattice
    /// refuses it.
    pub fn new(node: &CompiledNode, lattice_hash: blake3::Hash) -> Self {
        let kinds = || node.values().map(|delta| std::mem::discriminant(&delta.kind));
        let kind = match node.values().next().map(|delta| &delta.kind) {
            None => NodeKind::Empty,
            Some(first) if kinds().any(|kind| kind != std::mem::discriminant(first)) => {
                NodeKind::Mixed
            }
            Some(DeltaKind::LowRank(_)) => NodeKind::LowRank,
            Some(DeltaKind::Dense(_)) => NodeKind::Dense,
            Some(DeltaKind::Sparse(_)) => NodeKind::Sparse,
        };
        let mut ranks: Vec<u32> = node
            .values()
            .filter_map(|delta| u32::try_from(delta.rank()).ok())
            .filter(|&rank| rank > 0)
            .collect();
        ranks.sort_unstable();
        ranks.dedup();
        let matrices = u32::try_from(node.len()).unwrap_or(u32::MAX);
        let blob = encode_node(node);
        let (adapter_hash, original, kept, remarks) = ([0; 32], None, None, Vec::new());
        Self { lattice_hash, blob, kind, ranks, matrices, adapter_hash, original, kept, remarks }
    }

    /// What share of the change the lattice keeps; none if it was not compiled by
    /// [`Store::compile`] or [`Store::compile_adapter`]. It is reported, and not kept in the store.
    pub fn kept(&self) -> Option<&Kept> {
        self.kept.as_ref()
    }

    /// What there is to say about the adapter it was compiled from, each in a sentence: what it
    /// does less than it claims, how little of its change the lattice keeps, and what lies beside
    /// it that is not as in the base. It is reported, and not kept in the store.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// Bytes it takes in a segment, kept files included.
    pub fn bytes(&self) -> u64 {
        self.blobs().map(|blob| blob.len() as u64).sum()
    }

    /// Its compiled deltas, then the adapter's files if they are to be kept.
    fn blobs(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(&self.blob[..]).chain(self.original.as_deref())
    }
}

/// What is recorded of a node beside its content.
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// Its parent; without one the nearest node above it by name, or the one it has.
    pub parent: Option<String>,
    /// The content generation of the parent it was trained on; without one the parent's as it now
    /// is.
    pub trained_on: Option<u64>,
    /// Free labels; without any a replaced node keeps its own.
    pub labels: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug)]
pub(super) enum Op {
    Publish { name: String, content: Content, details: Details },
    Replace { name: String, content: Content, details: Details, expected: Option<u64> },
    Remove { name: String, recursive: bool, expected: Option<u64> },
    Move { name: String, target: String, expected: Option<u64> },
    Rollback { name: String, generation: u64, expected: Option<u64> },
}

/// Changes to be made together, in order.
///
/// With `expected` (a generation) a change is made only if the node is still in it: compare and
/// swap.
#[derive(Clone, Debug, Default)]
pub struct Changes(pub(super) Vec<Op>);

impl Changes {
    /// No changes yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a new node.
    pub fn publish(&mut self, name: &str, content: Content, details: Details) -> &mut Self {
        self.0.push(Op::Publish { name: clean_name(name), content, details });
        self
    }

    /// Replaces a node's content.
    pub fn replace(
        &mut self,
        name: &str,
        content: Content,
        details: Details,
        expected: Option<u64>,
    ) -> &mut Self {
        self.0.push(Op::Replace { name: clean_name(name), content, details, expected });
        self
    }

    /// Removes a node, with `recursive` also what hangs below it.
    pub fn remove(&mut self, name: &str, recursive: bool, expected: Option<u64>) -> &mut Self {
        self.0.push(Op::Remove { name: clean_name(name), recursive, expected });
        self
    }

    /// Moves a node and what hangs below it to another name. Its new parent is the nearest node
    /// above that name.
    pub fn move_to(&mut self, name: &str, target: &str, expected: Option<u64>) -> &mut Self {
        self.0.push(Op::Move { name: clean_name(name), target: clean_name(target), expected });
        self
    }

    /// Puts the content of an earlier generation back into a node, or into one that was removed.
    pub fn rollback(&mut self, name: &str, generation: u64, expected: Option<u64>) -> &mut Self {
        self.0.push(Op::Rollback { name: clean_name(name), generation, expected });
        self
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Store {
    /// Makes changes, all or none, and waits until they are on disk. Returns the generation each
    /// made of its node. [`Self::check_fits`] says beforehand whether a switch can reach what is
    /// changed.
    ///
    /// # Errors
    /// [`StoreDefect`] for everything that a change can run into,
    /// [`TreeDefect`](crate::error::TreeDefect) for a name, and what writing returns. Nothing has
    /// changed then, unless it is [`StoreDefect::Unconfirmed`].
    pub fn apply(&self, changes: &Changes) -> Result<Vec<u64>> {
        changes.0.iter().try_for_each(|op| self.check(op))?;
        if self.only_removes(changes)? {
            self.give_up_reserve();
        }
        let blobs: Vec<&[u8]> = changes.0.iter().flat_map(Op::blobs).collect();
        self.change(|writing| make_all(self, writing, &changes.0, &blobs))
    }

    /// Whether every change takes away a node that is there.
    fn only_removes(&self, changes: &Changes) -> Result<bool> {
        for op in &changes.0 {
            let Op::Remove { name, .. } = op else { return Ok(false) };
            if self.inner.catalogue.read(|reading| reading.node(name))?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// [`Changes::publish`] alone.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn publish(&self, name: &str, content: Content, details: Details) -> Result<u64> {
        self.apply_one(Changes::new().publish(name, content, details))
    }

    /// [`Changes::replace`] alone.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn replace(
        &self,
        name: &str,
        content: Content,
        details: Details,
        expected: Option<u64>,
    ) -> Result<u64> {
        self.apply_one(Changes::new().replace(name, content, details, expected))
    }

    /// [`Changes::remove`] alone.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn remove(&self, name: &str, recursive: bool, expected: Option<u64>) -> Result<u64> {
        self.apply_one(Changes::new().remove(name, recursive, expected))
    }

    /// [`Changes::move_to`] alone.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn move_to(&self, name: &str, target: &str, expected: Option<u64>) -> Result<u64> {
        self.apply_one(Changes::new().move_to(name, target, expected))
    }

    /// [`Changes::rollback`] alone.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn rollback(&self, name: &str, generation: u64, expected: Option<u64>) -> Result<u64> {
        self.apply_one(Changes::new().rollback(name, generation, expected))
    }

    fn apply_one(&self, changes: &Changes) -> Result<u64> {
        self.apply(changes).map(|generations| generations[0])
    }

    /// What can be refused before anything is locked or written.
    fn check(&self, op: &Op) -> Result<()> {
        let (name, done) = match op {
            Op::Publish { name, .. } => (name, "published"),
            Op::Replace { name, .. } => (name, "replaced"),
            Op::Remove { name, .. } => (name, "removed"),
            Op::Move { name, .. } => (name, "moved"),
            Op::Rollback { name, .. } => (name, "rolled back"),
        };
        if name.is_empty() {
            return Err(self.defect(StoreDefect::Root { done }));
        }
        check_name(name)?;
        if let Op::Move { target, .. } = op {
            check_name(target)?;
        }
        if let Op::Publish { content, details, .. } | Op::Replace { content, details, .. } = op {
            self.check_lattice_hash(content.lattice_hash)?;
            if content.bytes() > MAX_BLOB_BYTES {
                let (bytes, limit) = (content.bytes(), MAX_BLOB_BYTES);
                return Err(self.defect(StoreDefect::TooLarge {
                    name: name.clone(),
                    bytes,
                    limit,
                }));
            }
            if let Some(labels) = &details.labels {
                self.check_labels(name, labels)?;
            }
        }
        Ok(())
    }

    fn check_labels(&self, name: &str, labels: &BTreeMap<String, String>) -> Result<()> {
        let bytes: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
        let problem = if labels.len() > MAX_LABELS {
            format!("{} labels", labels.len())
        } else if let Some(key) = labels.keys().find(|key| key.is_empty() || key.len() > 128) {
            format!("a label's key has {} bytes", key.len())
        } else if labels
            .iter()
            .any(|(key, value)| [key, value].iter().any(|text| text.contains(char::is_control)))
        {
            "a label holds a control character".to_owned()
        } else if bytes > MAX_LABEL_BYTES {
            format!("its labels have {bytes} bytes")
        } else {
            return Ok(());
        };
        Err(self.defect(StoreDefect::Labels { name: name.to_owned(), problem, count: MAX_LABELS }))
    }
}

impl Op {
    /// What goes into a segment for it, in the order in which it is used.
    fn blobs(&self) -> impl Iterator<Item = &[u8]> {
        let content = match self {
            Self::Publish { content, .. } | Self::Replace { content, .. } => Some(content),
            _ => None,
        };
        content.into_iter().flat_map(Content::blobs)
    }
}
