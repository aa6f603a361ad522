//! Questions to a store: one node, a path, children, names that begin alike, versions, and the way
//! into a tree.

use serde::Serialize;

use super::catalogue::{PastVersion, Reading, Step, Version, Writing};
use super::{Store, clean_name};
use crate::error::{StoreDefect, TreeDefect};
use crate::suggest::nearest;
use crate::tree::{MAX_DEPTH, normal, shown};
use crate::{Error, Result};

/// Most records looked at to find whose content a node was trained on.
const SEARCHED: usize = 10_000;
/// Names looked at on either side of one that is not there.
const NEIGHBOURS: usize = 64;

/// A node of a store as it now is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StoreNode {
    /// Its name.
    pub name: String,
    /// Its current version.
    #[serde(flatten)]
    pub version: Version,
}

/// What a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StoreStats {
    /// Nodes.
    pub nodes: u64,
    /// Past versions that can be rolled back to.
    pub past_versions: u64,
    /// The last generation given.
    pub generation: u64,
    /// Commits so far.
    pub commits: u64,
    /// Segment files.
    pub segments: u64,
    /// Bytes of all segment files.
    pub segment_bytes: u64,
    /// Bytes of the catalogue.
    pub catalogue_bytes: u64,
    /// Blobs this process has read.
    pub reads: u64,
    /// Bytes of them.
    pub read_bytes: u64,
}

impl Store {
    /// The node called `name`.
    ///
    /// # Errors
    /// [`TreeDefect::UnknownNode`] with the names nearest to it, and what reading the catalogue
    /// returns.
    pub fn get(&self, name: &str) -> Result<StoreNode> {
        let name = clean_name(name);
        if name.is_empty() {
            return Err(self.defect(StoreDefect::Root { done: "looked up in a store" }));
        }
        match self.inner.catalogue.read(|reading| reading.node(&name))? {
            Some(version) => Ok(StoreNode { name, version }),
            None => Err(self.unknown(&name)),
        }
    }

    /// The nodes from below the root down to the one called `name`, as one committed state has
    /// them.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn path(&self, name: &str) -> Result<Vec<StoreNode>> {
        let name = clean_name(name);
        match self.inner.catalogue.read(|reading| self.path_in(reading, &name))? {
            Some(path) => Ok(path),
            None => Err(self.unknown(&name)),
        }
    }

    fn path_in(&self, reading: &Reading, name: &str) -> Step<Option<Vec<StoreNode>>> {
        let mut path = Vec::new();
        let mut at = name.to_owned();
        while !at.is_empty() {
            let Some(version) = reading.node(&at)? else {
                if path.is_empty() {
                    return Ok(None);
                }
                return Err(self
                    .damaged(format!("the record of {at}"), "it is not there, but its child is")
                    .into());
            };
            if path.len() >= MAX_DEPTH {
                return Err(self.damaged(format!("the path of {name}"), "it is too long").into());
            }
            let parent = version.parent.clone();
            path.push(StoreNode { name: std::mem::replace(&mut at, parent), version });
        }
        path.reverse();
        Ok(Some(path))
    }

    /// Names of the children of `name` (the root: `/`) in order, those after `after`, at most
    /// `limit`.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn children(&self, name: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>> {
        let name = clean_name(name);
        let found = self.inner.catalogue.read(|reading| {
            if !name.is_empty() && reading.node(&name)?.is_none() {
                return Ok(None);
            }
            reading.children(&name, after.unwrap_or_default(), limit).map(Some)
        })?;
        found.ok_or_else(|| self.unknown(&name))
    }

    /// Nodes whose names begin with `prefix`, in order, those after `after`, at most `limit`.
    ///
    /// # Errors
    /// What reading the catalogue returns.
    pub fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<StoreNode>> {
        let prefix = &*normal(prefix.trim_start_matches('/'));
        let mut nodes = Vec::new();
        self.inner.catalogue.read(|reading| {
            // The prefix itself may be a node.
            if after.is_none_or(|after| after < prefix)
                && limit > 0
                && let Some(version) = reading.node(prefix)?
            {
                nodes.push(StoreNode { name: prefix.to_owned(), version });
            }
            let after = after.unwrap_or_default().max(prefix);
            reading.each_node(Some(after), |name, version| {
                if !name.starts_with(prefix) || nodes.len() >= limit {
                    return Ok(false);
                }
                nodes.push(StoreNode { name: name.to_owned(), version: version? });
                Ok(true)
            })
        })?;
        Ok(nodes)
    }

    /// Versions of a node, or of one that was removed, that it can be rolled back to, oldest first.
    ///
    /// # Errors
    /// [`TreeDefect::UnknownNode`] for a name that never was one, and what reading the catalogue
    /// returns.
    pub fn history(&self, name: &str) -> Result<Vec<PastVersion>> {
        let name = clean_name(name);
        let (past, node) = self
            .inner
            .catalogue
            .read(|reading| Ok((reading.history(&name)?, reading.node(&name)?)))?;
        if past.is_empty() && node.is_none() {
            return Err(self.unknown(&name));
        }
        Ok(past)
    }

    /// The node whose content a node below `parent` was trained on, if it is another one than
    /// `parent` and can be found: for messages. The base is `/`.
    pub(crate) fn trained_under(&self, parent: &str, trained_on: u64) -> Result<Option<String>> {
        let parent = clean_name(parent);
        if trained_on == 0 {
            return Ok((!parent.is_empty()).then(|| "/".to_owned()));
        }
        self.inner.catalogue.read(|reading| {
            let has_it = |version: &Version| version.content_generation == trained_on;
            if reading.history(&parent)?.iter().any(|past| has_it(&past.version)) {
                return Ok(None);
            }
            let (mut found, mut left) = (None, SEARCHED);
            reading.each_node(None, |name, version| {
                left -= 1;
                found = has_it(&version?).then(|| name.to_owned());
                Ok(found.is_none() && left > 0)
            })?;
            let mut left = SEARCHED;
            reading.each_past(|name, past| {
                if found.is_none() && has_it(&past?.version) {
                    found = Some(name.to_owned());
                }
                left -= 1;
                Ok(found.is_none() && left > 0)
            })?;
            Ok(found.filter(|name| *name != parent))
        })
    }

    /// Nodes in the store.
    ///
    /// # Errors
    /// What reading the catalogue returns.
    pub fn len(&self) -> Result<u64> {
        self.inner.catalogue.read(Reading::count)
    }

    /// Whether it holds no node.
    ///
    /// # Errors
    /// As [`Self::len`].
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// What it holds.
    ///
    /// # Errors
    /// What reading the catalogue and the folder returns.
    pub fn stats(&self) -> Result<StoreStats> {
        let (state, nodes, past_versions) = self
            .inner
            .catalogue
            .read(|reading| Ok((reading.state()?, reading.count()?, reading.past_count()?)))?;
        let files = self.inner.segments.files()?;
        let folder = &self.inner.folder;
        let length = folder.length(super::CATALOGUE_FILE);
        let catalogue_bytes = length
            .map_err(|error| self.or_gone(Error::io(folder.at(super::CATALOGUE_FILE), error)))?;
        let (reads, read_bytes) = self.inner.segments.reads();
        Ok(StoreStats {
            nodes,
            past_versions,
            generation: state.generation,
            commits: state.sequence,
            segments: files.len() as u64,
            segment_bytes: files.iter().map(|(_, bytes)| bytes).sum(),
            catalogue_bytes,
            reads,
            read_bytes,
        })
    }

    /// The error about a name that no node has.
    pub(super) fn unknown(&self, name: &str) -> Error {
        let looked = self.inner.catalogue.read(|reading| {
            // All in one committed state: since it was missed it may have come, or gone with its
            // link.
            let missing = reading.node(name)?.is_none();
            let is_child = |parent: &str| Ok(missing && reading.is_child(parent, name)?);
            self.unknown_in(name, is_child, || reading.names_around(name, NEIGHBOURS))
        });
        looked.unwrap_or_else(|error| error)
    }

    /// The same inside a change.
    pub(super) fn unknown_to(&self, writing: &Writing<'_>, name: &str) -> Step<Error> {
        self.unknown_in(
            name,
            |parent| writing.is_child(parent, name),
            || writing.names_around(name, NEIGHBOURS),
        )
    }

    /// A name whose record alone is missing is damage.
    fn unknown_in(
        &self,
        name: &str,
        is_child: impl Fn(&str) -> Step<bool>,
        around: impl FnOnce() -> Step<Vec<String>>,
    ) -> Step<Error> {
        let mut above = name;
        loop {
            above = above.rsplit_once('/').map_or("", |(parent, _)| parent);
            if is_child(above)? {
                return Ok(self.damaged(
                    format!("the record of {}", shown(name)),
                    "it is not there, but its link is",
                ));
            }
            if above.is_empty() {
                let nearest = nearest(name, '/', around()?.iter().map(String::as_str));
                return Ok(TreeDefect::UnknownNode { name: shown(name), nearest }.into());
            }
        }
    }

    pub(super) fn damaged(&self, part: String, problem: &str) -> Error {
        self.defect(StoreDefect::Damaged { part, problem: problem.to_owned() })
    }
}
