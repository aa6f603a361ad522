//! Changes to a store: publish, replace, remove, move, roll back, alone or several at once.
//!
//! **Invariant:** a batch is made whole or not at all, and is on disk when [`Store::apply`]
//! returns.
//! **Invariant:** what a change takes away stays in the history until a compaction.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use super::blob::encode_node;
use super::catalogue::{Ending, NodeKind, PastVersion, State, Step, Version, Writing};
use super::segment::{Location, MAX_BLOB_BYTES};
use super::{Store, clean_name};
use crate::compile::CompiledNode;
use crate::error::StoreDefect;
use crate::lattice::{DeltaKind, Kept};
use crate::tree::{MAX_DEPTH, check_name, shown};
use crate::{Error, Result};

/// Most labels of a node.
const MAX_LABELS: usize = 32;
/// Bytes of all labels of a node.
const MAX_LABEL_BYTES: usize = 4096;

/// What is published: compiled deltas as they lie in a segment, and where they came from.
#[derive(Clone, Debug)]
pub struct Content {
    /// BLAKE3 of the lattice it was compiled for.
    lattice_hash: blake3::Hash,
    pub(super) blob: Vec<u8>,
    kind: NodeKind,
    ranks: Vec<u32>,
    matrices: u32,
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
    /// [`Store::compile`] or [`Store::compile_adapter`]. It is told, and not kept in the store.
    pub fn kept(&self) -> Option<&Kept> {
        self.kept.as_ref()
    }

    /// What there is to say about the adapter it was compiled from, each in a sentence: what it
    /// does less than it claims, how little of its change the lattice keeps, and what lies beside
    /// it that is not as in the base. It is told, and not kept in the store.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// Bytes it takes in a segment, kept files included.
    pub fn bytes(&self) -> u64 {
        (self.blob.len() + self.original.as_ref().map_or(0, Vec::len)) as u64
    }
}

/// What is said about a node beside its content.
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

    /// Gives a node new content.
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

    /// Takes a node away, with `recursive` also what hangs below it.
    pub fn remove(&mut self, name: &str, recursive: bool, expected: Option<u64>) -> &mut Self {
        self.0.push(Op::Remove { name: clean_name(name), recursive, expected });
        self
    }

    /// Gives a node and what hangs below it another place. Its new parent is the nearest node above
    /// the new name.
    pub fn move_to(&mut self, name: &str, target: &str, expected: Option<u64>) -> &mut Self {
        self.0.push(Op::Move { name: clean_name(name), target: clean_name(target), expected });
        self
    }

    /// Gives a node, or one that was removed, the content of an earlier generation.
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
    /// Makes changes, all or none, and waits until they are on disk. Gives the generation each made
    /// of its node. Whether a switch can reach what is changed, [`Self::check_fits`] tells before.
    ///
    /// # Errors
    /// [`StoreDefect`] for everything that a change can run into,
    /// [`TreeDefect`](crate::error::TreeDefect) for a name, and what writing returns. Nothing has
    /// changed then, unless it is [`StoreDefect::Unconfirmed`].
    pub fn apply(&self, changes: &Changes) -> Result<Vec<u64>> {
        changes.0.iter().try_for_each(|op| self.check(op))?;
        let contents = changes.0.iter().filter_map(Op::content);
        let blobs =
            contents.flat_map(|content| [Some(&content.blob[..]), content.original.as_deref()]);
        let blobs: Vec<&[u8]> = blobs.flatten().collect();
        let is_removal = |op: &Op| match op {
            Op::Remove { name, .. } => {
                Ok(self.inner.catalogue.read(|reading| reading.node(name))?.is_some())
            }
            _ => Ok(false),
        };
        if changes
            .0
            .iter()
            .map(is_removal)
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .all(|removal| removal)
        {
            self.give_up_reserve();
        }
        self.change(|writing| {
            let mut state = writing.state()?;
            let (locations, (segment, offset)) =
                self.inner.segments.append((state.segment, state.offset), &blobs)?;
            (state.segment, state.offset) = (segment, offset);
            let mut change = Change {
                store: self,
                writing,
                state,
                locations: locations.into_iter(),
                now_ms: now_ms(),
            };
            let generations =
                changes.0.iter().map(|op| change.make(op)).collect::<Step<Vec<_>>>()?;
            change.state.sequence += 1;
            let state = change.state;
            writing.put_state(&state)?;
            Ok(generations)
        })
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
    fn content(&self) -> Option<&Content> {
        match self {
            Self::Publish { content, .. } | Self::Replace { content, .. } => Some(content),
            _ => None,
        }
    }
}

/// A batch in the making.
struct Change<'a, 'w> {
    store: &'a Store,
    writing: &'a mut Writing<'w>,
    state: State,
    /// Where the contents lie, in order.
    locations: std::vec::IntoIter<Location>,
    now_ms: u64,
}

impl Change<'_, '_> {
    fn make(&mut self, op: &Op) -> Step<u64> {
        match op {
            Op::Publish { name, content, details } => {
                if let Some(Version { generation, .. }) = self.writing.node(name)? {
                    return self.refuse(StoreDefect::NodeExists { name: name.clone(), generation });
                }
                self.put_content(name, content, details, None)
            }
            Op::Replace { name, content, details, expected } => {
                let old = self.current(name, *expected)?;
                self.put_content(name, content, details, Some(&old))
            }
            Op::Remove { name, recursive, expected } => {
                let version = self.current(name, *expected)?;
                let children = self.writing.children(name, 2)?;
                if !recursive && !children.is_empty() {
                    let children = match &children[..] {
                        [one] => format!("a child, {one}"),
                        [first, ..] => format!("children, {first} first"),
                        [] => String::new(),
                    };
                    return self.refuse(StoreDefect::HasChildren { name: name.clone(), children });
                }
                let generation = self.generation();
                let mut doomed = vec![(name.clone(), version)];
                while let Some((name, version)) = doomed.pop() {
                    for child in self.writing.children(&name, usize::MAX)? {
                        let version = self.current(&child, None)?;
                        doomed.push((child, version));
                    }
                    self.end(&name, version, Ending::Removed, generation)?;
                }
                Ok(generation)
            }
            Op::Move { name, target, expected } => self.move_node(name, target, *expected),
            Op::Rollback { name, generation, expected } => {
                self.rollback(name, *generation, *expected)
            }
        }
    }

    fn refuse<T>(&self, defect: StoreDefect) -> Step<T> {
        Err(self.store.defect(defect).into())
    }

    fn generation(&mut self) -> u64 {
        self.state.generation += 1;
        self.state.generation
    }

    /// The node's current version, in the generation the caller expects.
    fn current(&self, name: &str, expected: Option<u64>) -> Step<Version> {
        let Some(version) = self.writing.node(name)? else {
            return match expected {
                // Removed meanwhile.
                Some(expected) => self.refuse(StoreDefect::GenerationMismatch {
                    name: name.to_owned(),
                    expected,
                    found: 0,
                }),
                None => Err(self.store.unknown_to(self.writing, name)?.into()),
            };
        };
        match expected {
            Some(expected) if expected != version.generation => {
                let (name, found) = (name.to_owned(), version.generation);
                self.refuse(StoreDefect::GenerationMismatch { name, expected, found })
            }
            _ => Ok(version),
        }
    }

    /// The content generation of a node that is to be a parent.
    fn content_of(&self, parent: &str) -> Step<Option<u64>> {
        if parent.is_empty() {
            return Ok(Some(0));
        }
        Ok(self.writing.node(parent)?.map(|version| version.content_generation))
    }

    /// The nearest node above `name`, without those below `not_below`.
    fn parent_by_name(&self, name: &str) -> Step<(String, u64)> {
        let mut above = name;
        while let Some((parent, _)) = above.rsplit_once('/') {
            if let Some(content) = self.content_of(parent)? {
                return Ok((parent.to_owned(), content));
            }
            above = parent;
        }
        Ok((String::new(), 0))
    }

    /// The parent called `parent`, with its content generation.
    fn parent(&self, node: &str, parent: &str) -> Step<(String, u64)> {
        match self.content_of(parent)? {
            Some(content) => Ok((parent.to_owned(), content)),
            None => self.refuse(StoreDefect::UnknownParent {
                node: node.to_owned(),
                parent: shown(parent),
            }),
        }
    }

    fn depth(&self, parent: &str) -> Step<usize> {
        let (mut depth, mut at) = (0, parent.to_owned());
        while !at.is_empty() && depth <= MAX_DEPTH {
            depth += 1;
            at = self.writing.node(&at)?.map(|version| version.parent).unwrap_or_default();
        }
        Ok(depth)
    }

    fn put_content(
        &mut self,
        name: &str,
        content: &Content,
        details: &Details,
        old: Option<&Version>,
    ) -> Step<u64> {
        let (parent, parent_content) = match (&details.parent, old) {
            (Some(parent), _) => self.parent(name, &clean_name(parent))?,
            (None, Some(old)) => self.parent(name, &old.parent)?,
            (None, None) => self.parent_by_name(name)?,
        };
        if old.is_none_or(|old| old.parent != parent) {
            self.check_place(name, &parent)?;
        }
        let trained_on = details.trained_on.unwrap_or(parent_content);
        // A later content of the parent could get that number, and the node would pass for trained
        // on it.
        if trained_on > self.state.generation {
            let (name, last) = (name.to_owned(), self.state.generation);
            return self.refuse(StoreDefect::TrainedOn { name, trained_on, last });
        }
        let generation = self.generation();
        let location = self.locations.next().expect("every content was appended");
        let original = content.original.as_ref().and_then(|_| self.locations.next());
        let labels = details.labels.clone().or_else(|| old.map(|old| old.labels.clone()));
        if let Some(old) = old {
            self.end(name, old.clone(), Ending::Replaced, generation)?;
        }
        let version = Version {
            parent,
            generation,
            content_generation: generation,
            trained_on,
            created_ms: self.now_ms,
            kind: content.kind,
            ranks: content.ranks.clone(),
            matrices: content.matrices,
            location,
            original,
            adapter_hash: content.adapter_hash,
            labels: labels.unwrap_or_default(),
        };
        self.writing.put(name, &version)?;
        Ok(generation)
    }

    /// Levels below a node, its own among them.
    fn height(&self, name: &str) -> Step<usize> {
        let (mut height, mut level) = (0, vec![name.to_owned()]);
        while !level.is_empty() {
            height += 1;
            let below = level
                .iter()
                .map(|name| self.writing.children(name, usize::MAX))
                .collect::<Step<Vec<_>>>()?;
            level = below.into_iter().flatten().collect();
        }
        Ok(height)
    }

    /// A node may hang under `parent` if that is not below it, and neither it nor what hangs below
    /// it gets too deep.
    fn check_place(&self, name: &str, parent: &str) -> Step<()> {
        let depth = self.depth(parent)? + self.height(name)?;
        if depth > MAX_DEPTH {
            let name = name.to_owned();
            return Err(Error::from(crate::error::TreeDefect::TooDeep {
                name,
                depth,
                limit: MAX_DEPTH,
            })
            .into());
        }
        let mut at = parent.to_owned();
        while !at.is_empty() {
            if at == name {
                return self.refuse(StoreDefect::BelowItself {
                    name: name.to_owned(),
                    target: format!("below {parent}"),
                });
            }
            at = self.writing.node(&at)?.map(|version| version.parent).unwrap_or_default();
        }
        Ok(())
    }

    /// Moves the current version into the history.
    fn end(&mut self, name: &str, version: Version, ending: Ending, generation: u64) -> Step<()> {
        self.writing.take(name, &version)?;
        self.writing.put_past(name, &PastVersion { version, ending, ended: generation })
    }

    fn move_node(&mut self, name: &str, target: &str, expected: Option<u64>) -> Step<u64> {
        let version = self.current(name, expected)?;
        if target == name || target.strip_prefix(name).is_some_and(|rest| rest.starts_with('/')) {
            return self.refuse(StoreDefect::BelowItself {
                name: name.to_owned(),
                target: target.to_owned(),
            });
        }
        let (parent, _) = self.parent_by_name(target)?;
        self.check_place(name, &parent)?;
        let generation = self.generation();
        let (from, to) = (format!("{name}/"), format!("{target}/"));
        let mut moving = vec![(name.to_owned(), target.to_owned(), parent, version)];
        let mut moved = Vec::new();
        while let Some((old, new, parent, version)) = moving.pop() {
            for child in self.writing.children(&old, usize::MAX)? {
                // A child whose name does not begin with the node's keeps it.
                let renamed = child
                    .strip_prefix(&from)
                    .map_or_else(|| child.clone(), |rest| format!("{to}{rest}"));
                check_name(&renamed).map_err(Error::from)?;
                let version = self.current(&child, None)?;
                moving.push((child, renamed, new.clone(), version));
            }
            self.end(&old, version.clone(), Ending::Moved, generation)?;
            moved.push((new, parent, version));
        }
        // Once all have left: one may take the name that another had.
        for (new, parent, version) in moved {
            if let Some(Version { generation, .. }) = self.writing.node(&new)? {
                return self.refuse(StoreDefect::NodeExists { name: new, generation });
            }
            self.writing
                .put(&new, &Version { parent, generation, created_ms: self.now_ms, ..version })?;
        }
        Ok(generation)
    }

    fn rollback(&mut self, name: &str, wanted: u64, expected: Option<u64>) -> Step<u64> {
        let now = match self.writing.node(name)? {
            None if expected.is_none() => None,
            _ => Some(self.current(name, expected)?),
        };
        let past = self.writing.history(name)?;
        let Some(old) = past.iter().find(|past| past.version.generation == wanted) else {
            if past.is_empty() && now.is_none() {
                return Err(self.store.unknown_to(self.writing, name)?.into());
            }
            let known = past.iter().map(|past| past.version.generation).collect();
            let name = name.to_owned();
            return self.refuse(StoreDefect::UnknownGeneration { name, generation: wanted, known });
        };
        let old = old.version.clone();
        let parent = now.as_ref().map_or(&old.parent, |now| &now.parent);
        let (parent, _) = self.parent(name, parent)?;
        if now.is_none() {
            self.check_place(name, &parent)?;
        }
        let generation = self.generation();
        if let Some(now) = now {
            self.end(name, now, Ending::Replaced, generation)?;
        }
        self.writing.put(name, &Version { parent, generation, created_ms: self.now_ms, ..old })?;
        Ok(generation)
    }
}

pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
