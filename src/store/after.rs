//! The nodes of a store as changes would leave them: names, parents and where their bytes come
//! from, before anything is written. What [`Store::apply`] would refuse is left out: its own error
//! says more.

use std::collections::{BTreeMap, BTreeSet};

use super::blob::decode_node;
use super::catalogue::Version;
use super::change::{Changes, Content, Op};
use super::{Store, again, clean_name};
use crate::compile::CompiledNode;
use crate::tree::MAX_DEPTH;
use crate::{Error, Result};

/// Children looked up at a time.
const PAGE: usize = 512;

/// Where a node's deltas will be.
#[derive(Clone)]
enum Bytes<'a> {
    /// In what is published.
    Content(&'a Content),
    /// Where this node's are now.
    Now(String),
    /// Where those of a past generation of a node are.
    Past(String, u64),
}

/// A node to be.
#[derive(Clone)]
pub(super) struct Planned<'a> {
    pub(super) parent: String,
    bytes: Bytes<'a>,
}

/// A store's nodes after some changes.
pub(super) struct After<'a> {
    store: &'a Store,
    /// What is not as it was; nothing where there will be no node.
    nodes: BTreeMap<String, Option<Planned<'a>>>,
    /// The same by parent.
    children: BTreeMap<String, BTreeSet<String>>,
    /// Nodes whose content or place changes.
    pub(super) changed: BTreeSet<String>,
}

impl<'a> After<'a> {
    /// The store as it is.
    pub(super) fn unchanged(store: &'a Store) -> Self {
        Self { store, nodes: BTreeMap::new(), children: BTreeMap::new(), changed: BTreeSet::new() }
    }

    /// The store after `changes`.
    pub(super) fn of(store: &'a Store, changes: &'a Changes) -> Result<Self> {
        let mut after = Self::unchanged(store);
        changes.0.iter().try_for_each(|op| after.take(op))?;
        let Self { nodes, changed, .. } = &mut after;
        changed.retain(|name| !name.is_empty() && !matches!(nodes.get(name), Some(None)));
        Ok(after)
    }

    fn take(&mut self, op: &'a Op) -> Result<()> {
        match op {
            Op::Publish { name, content, details } | Op::Replace { name, content, details, .. } => {
                let parent = match (&details.parent, self.node(name)?) {
                    (Some(parent), _) => clean_name(parent),
                    (None, Some(old)) => old.parent,
                    (None, None) => self.parent_by_name(name)?,
                };
                self.put(name, Planned { parent, bytes: Bytes::Content(content) });
                self.changed.insert(name.clone());
            }
            Op::Remove { name, .. } => {
                for (name, _) in self.subtree(name)? {
                    self.drop_node(&name)?;
                }
            }
            Op::Move { name, target, .. } => {
                let Some(mut root) = self.node(name)? else { return Ok(()) };
                root.parent = self.parent_by_name(target)?;
                let renamed = |old: &str| match old.strip_prefix(name.as_str()) {
                    Some(rest) if rest.is_empty() || rest.starts_with('/') => {
                        format!("{target}{rest}")
                    }
                    _ => old.to_owned(),
                };
                let below: Vec<_> = self.subtree(name)?.into_iter().skip(1).collect();
                self.drop_node(name)?;
                for (old, _) in &below {
                    self.drop_node(old)?;
                }
                self.put(target, root);
                for (old, planned) in below {
                    self.put(
                        &renamed(&old),
                        Planned { parent: renamed(&planned.parent), ..planned },
                    );
                }
                self.changed.insert(target.clone());
            }
            Op::Rollback { name, generation, .. } => {
                let Some(old) = self.past(name, *generation)? else { return Ok(()) };
                let parent = self.node(name)?.map_or(old.parent, |now| now.parent);
                self.put(name, Planned { parent, bytes: Bytes::Past(name.clone(), *generation) });
                self.changed.insert(name.clone());
            }
        }
        Ok(())
    }

    fn put(&mut self, name: &str, planned: Planned<'a>) {
        if let Some(Some(old)) = self.nodes.get(name)
            && let Some(children) = self.children.get_mut(&old.parent)
        {
            children.remove(name);
        }
        self.children.entry(planned.parent.clone()).or_default().insert(name.to_owned());
        self.nodes.insert(name.to_owned(), Some(planned));
    }

    fn drop_node(&mut self, name: &str) -> Result<()> {
        if let Some(Planned { parent, .. }) = self.node(name)?
            && let Some(children) = self.children.get_mut(&parent)
        {
            children.remove(name);
        }
        self.nodes.insert(name.to_owned(), None);
        Ok(())
    }

    /// A node and all below it, parents first.
    pub(super) fn subtree(&self, name: &str) -> Result<Vec<(String, Planned<'a>)>> {
        let mut found = Vec::new();
        let mut waiting = vec![name.to_owned()];
        while let Some(name) = waiting.pop() {
            let Some(planned) = self.node(&name)? else { continue };
            self.each_page(&name, |page| {
                waiting.extend(page);
                Ok(())
            })?;
            found.push((name, planned));
        }
        Ok(found)
    }

    fn parent_by_name(&self, name: &str) -> Result<String> {
        let mut above = name;
        while let Some((parent, _)) = above.rsplit_once('/') {
            if self.node(parent)?.is_some() {
                return Ok(parent.to_owned());
            }
            above = parent;
        }
        Ok(String::new())
    }

    fn stored(&self, name: &str) -> Result<Option<Version>> {
        self.store.inner.catalogue.read(|reading| reading.node(name))
    }

    fn past(&self, name: &str, generation: u64) -> Result<Option<Version>> {
        let past = self.store.inner.catalogue.read(|reading| reading.history(name))?;
        Ok(past
            .into_iter()
            .map(|past| past.version)
            .find(|version| version.generation == generation))
    }

    /// The node called `name`, if there will be one.
    pub(super) fn node(&self, name: &str) -> Result<Option<Planned<'a>>> {
        if let Some(planned) = self.nodes.get(name) {
            return Ok(planned.clone());
        }
        let version = self.stored(name)?;
        Ok(version
            .map(|version| Planned { parent: version.parent, bytes: Bytes::Now(name.to_owned()) }))
    }

    /// The nodes from below the root down to the one called `name`; nothing where there is no such
    /// path.
    pub(super) fn path(&self, name: &str) -> Result<Option<Vec<(String, Planned<'a>)>>> {
        let mut path = Vec::new();
        let mut at = name.to_owned();
        while !at.is_empty() {
            match self.node(&at)? {
                Some(planned) if path.len() < MAX_DEPTH => {
                    let parent = planned.parent.clone();
                    path.push((std::mem::replace(&mut at, parent), planned));
                }
                _ => return Ok(None),
            }
        }
        path.reverse();
        Ok(Some(path))
    }

    /// Calls `each` with the names of the children of `parent` (the root: empty), some hundred at a
    /// time.
    pub(super) fn each_page(
        &self,
        parent: &str,
        mut each: impl FnMut(Vec<String>) -> Result<()>,
    ) -> Result<()> {
        let mut after = String::new();
        loop {
            let page = self
                .store
                .inner
                .catalogue
                .read(|reading| reading.children(parent, &after, PAGE))?;
            let Some(last) = page.last() else { break };
            after.clone_from(last);
            let is_last = page.len() < PAGE;
            let kept: Vec<_> =
                page.into_iter().filter(|child| !self.nodes.contains_key(child)).collect();
            if !kept.is_empty() {
                each(kept)?;
            }
            if is_last {
                break;
            }
        }
        match self.children.get(parent) {
            Some(children) if !children.is_empty() => each(children.iter().cloned().collect()),
            _ => Ok(()),
        }
    }

    /// The error about a chain of links that does not end.
    pub(super) fn too_deep(&self, name: &str) -> Error {
        self.store.damaged(format!("the path of {name}"), "it is too long")
    }

    /// The deltas of a node.
    pub(super) fn read(&self, planned: &Planned<'_>) -> Result<CompiledNode> {
        let gone = |name: &str| self.store.unknown(name);
        match &planned.bytes {
            Bytes::Content(content) => {
                let damaged = |_| {
                    self.store.damaged("what is to be published".to_owned(), "it does not decode")
                };
                decode_node(&content.blob).map_err(damaged)
            }
            // Looked up again each time: a compaction may move the bytes.
            Bytes::Now(name) => again(|| {
                let version = self.stored(name)?.ok_or_else(|| gone(name))?;
                self.store.read(&version.location)
            }),
            Bytes::Past(name, generation) => again(|| {
                let version = self.past(name, *generation)?.ok_or_else(|| gone(name))?;
                self.store.read(&version.location)
            }),
        }
    }
}
