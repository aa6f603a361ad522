//! What is asked of the catalogue's tables inside one committed state, and what a change writes
//! into them.

use std::ops::Bound;
use std::path::Path;

use redb::{ReadableTable, ReadableTableMetadata};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::record::{FrameProblem, PastVersion, RECORD_VERSION, State, Version, frame, unframe};
use super::{
    CATALOGUE_FILE, CHILDREN, Failure, HISTORY, Header, META, Reading, Step, Writing, damaged,
};
use crate::Error;
use crate::error::StoreDefect;
use crate::store::segment::Location;

/// Opens a record's frame.
fn opened<T: DeserializeOwned>(path: &Path, key: &[u8], shown: &str, bytes: &[u8]) -> Step<T> {
    unframe(key, bytes).map_err(|problem| {
        Failure::Ours(match problem {
            FrameProblem::Damaged(problem) => {
                damaged(path, &format!("the record of {shown}"), problem)
            }
            FrameProblem::Version(found) => {
                let part = "a record of the catalogue";
                Error::store(
                    path,
                    StoreDefect::FormatVersion { part, expected: RECORD_VERSION, found },
                )
            }
        })
    })
}

fn framed(path: &Path, key: &[u8], shown: &str, record: &impl Serialize) -> Step<Vec<u8>> {
    frame(key, record).ok_or_else(|| {
        let problem = format!("the record of {shown} is too long");
        Error::store(path, StoreDefect::Catalogue { problem }).into()
    })
}

fn history_key(name: &str, generation: u64) -> Vec<u8> {
    [&generation.to_le_bytes(), name.as_bytes()].concat()
}

fn node(
    path: &Path,
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &str,
) -> Step<Option<Version>> {
    let Some(bytes) = table.get(name)? else { return Ok(None) };
    opened(path, name.as_bytes(), name, bytes.value()).map(Some)
}

pub(super) fn meta<T: DeserializeOwned>(
    path: &Path,
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Step<T> {
    match table.get(key)? {
        Some(bytes) => opened(path, key.as_bytes(), key, bytes.value()),
        None => Err(damaged(path, CATALOGUE_FILE, &format!("it has no {key}")).into()),
    }
}

/// Names of children after `after`, at most `limit`.
fn children(
    table: &impl ReadableTable<(&'static str, &'static str), ()>,
    parent: &str,
    after: &str,
    limit: usize,
) -> Step<Vec<String>> {
    let mut names = Vec::new();
    for entry in table
        .range::<(&str, &str)>((Bound::Excluded((parent, after)), Bound::Unbounded))?
        .take(limit)
    {
        let entry = entry?.0;
        let (of, name) = entry.value();
        if of != parent {
            break;
        }
        names.push(name.to_owned());
    }
    Ok(names)
}

/// Past versions of a node, oldest first.
fn history(
    path: &Path,
    table: &impl ReadableTable<(&'static str, u64), &'static [u8]>,
    name: &str,
) -> Step<Vec<PastVersion>> {
    let mut past = Vec::new();
    for entry in table.range::<(&str, u64)>((name, 0)..=(name, u64::MAX))? {
        let (key, bytes) = entry?;
        past.push(opened(path, &history_key(name, key.value().1), name, bytes.value())?);
    }
    Ok(past)
}

/// Names in the order of the table around where `name` would be: up to `count` before and after.
fn names_around(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &str,
    count: usize,
) -> Step<Vec<String>> {
    let mut names = Vec::new();
    for entry in table.range::<&str>(..name)?.rev().take(count) {
        names.push(entry?.0.value().to_owned());
    }
    for entry in table.range::<&str>(name..)?.take(count) {
        names.push(entry?.0.value().to_owned());
    }
    Ok(names)
}

impl Reading {
    pub(in crate::store) fn header(&self) -> Step<Header> {
        meta(&self.path, &self.transaction.open_table(META)?, "header")
    }

    pub(in crate::store) fn state(&self) -> Step<State> {
        meta(&self.path, &self.transaction.open_table(META)?, "state")
    }

    pub(in crate::store) fn node(&self, name: &str) -> Step<Option<Version>> {
        node(&self.path, &self.nodes, name)
    }

    /// Nodes in the catalogue.
    pub(in crate::store) fn count(&self) -> Step<u64> {
        Ok(self.nodes.len()?)
    }

    /// Past versions in the catalogue.
    pub(in crate::store) fn past_count(&self) -> Step<u64> {
        Ok(self.transaction.open_table(HISTORY)?.len()?)
    }

    pub(in crate::store) fn children(
        &self,
        parent: &str,
        after: &str,
        limit: usize,
    ) -> Step<Vec<String>> {
        children(&self.transaction.open_table(CHILDREN)?, parent, after, limit)
    }

    pub(in crate::store) fn is_child(&self, parent: &str, name: &str) -> Step<bool> {
        Ok(self.transaction.open_table(CHILDREN)?.get((parent, name))?.is_some())
    }

    /// Links from parent to child in the catalogue.
    pub(in crate::store) fn each_link(
        &self,
        mut each: impl FnMut(&str, &str) -> Step<()>,
    ) -> Step<()> {
        for entry in self.transaction.open_table(CHILDREN)?.iter()? {
            let entry = entry?.0;
            let (parent, name) = entry.value();
            each(parent, name)?;
        }
        Ok(())
    }

    pub(in crate::store) fn history(&self, name: &str) -> Step<Vec<PastVersion>> {
        history(&self.path, &self.transaction.open_table(HISTORY)?, name)
    }

    /// Past versions with their nodes' names, while `each` returns true.
    pub(in crate::store) fn each_past(
        &self,
        mut each: impl FnMut(&str, Step<PastVersion>) -> Step<bool>,
    ) -> Step<()> {
        for entry in self.transaction.open_table(HISTORY)?.iter()? {
            let (key, bytes) = entry?;
            let (name, generation) = key.value();
            if !each(name, opened(&self.path, &history_key(name, generation), name, bytes.value()))?
            {
                break;
            }
        }
        Ok(())
    }

    /// Nodes after `after` in the order of the names, while `each` returns true.
    pub(in crate::store) fn each_node(
        &self,
        after: Option<&str>,
        mut each: impl FnMut(&str, Step<Version>) -> Step<bool>,
    ) -> Step<()> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        for entry in self.nodes.range::<&str>((start, Bound::Unbounded))? {
            let (key, bytes) = entry?;
            let name = key.value();
            if !each(name, opened(&self.path, name.as_bytes(), name, bytes.value()))? {
                break;
            }
        }
        Ok(())
    }

    /// Names in the order of the catalogue around where `name` would be: up to `count` before and
    /// after.
    pub(in crate::store) fn names_around(&self, name: &str, count: usize) -> Step<Vec<String>> {
        names_around(&self.nodes, name, count)
    }
}

impl Writing<'_> {
    pub(in crate::store) fn put_meta(
        &mut self,
        key: &'static str,
        record: &impl Serialize,
    ) -> Step<()> {
        let bytes = framed(self.path, key.as_bytes(), key, record)?;
        self.meta.insert(key, &bytes[..])?;
        Ok(())
    }

    pub(in crate::store) fn state(&self) -> Step<State> {
        meta(self.path, &self.meta, "state")
    }

    pub(in crate::store) fn put_state(&mut self, state: &State) -> Step<()> {
        self.put_meta("state", state)
    }

    pub(in crate::store) fn node(&self, name: &str) -> Step<Option<Version>> {
        node(self.path, &self.nodes, name)
    }

    pub(in crate::store) fn children(&self, parent: &str, limit: usize) -> Step<Vec<String>> {
        children(&self.children, parent, "", limit)
    }

    pub(in crate::store) fn history(&self, name: &str) -> Step<Vec<PastVersion>> {
        history(self.path, &self.history, name)
    }

    pub(in crate::store) fn is_child(&self, parent: &str, name: &str) -> Step<bool> {
        Ok(self.children.get((parent, name))?.is_some())
    }

    /// As [`Reading::names_around`].
    pub(in crate::store) fn names_around(&self, name: &str, count: usize) -> Step<Vec<String>> {
        names_around(&self.nodes, name, count)
    }

    /// Every place that a version lies in, of past ones too.
    pub(in crate::store) fn each_location(&self, mut each: impl FnMut(&Location)) -> Step<()> {
        for entry in self.nodes.iter()? {
            let (key, bytes) = entry?;
            let version: Version =
                opened(self.path, key.value().as_bytes(), key.value(), bytes.value())?;
            version.locations().for_each(&mut each);
        }
        for entry in self.history.iter()? {
            let (key, bytes) = entry?;
            let (name, generation) = key.value();
            let past: PastVersion =
                opened(self.path, &history_key(name, generation), name, bytes.value())?;
            past.version.locations().for_each(&mut each);
        }
        Ok(())
    }

    /// Makes `version` the current one of `name`, with a link from its parent.
    pub(in crate::store) fn put(&mut self, name: &str, version: &Version) -> Step<()> {
        let bytes = framed(self.path, name.as_bytes(), name, version)?;
        self.nodes.insert(name, &bytes[..])?;
        self.children.insert((version.parent.as_str(), name), ())?;
        Ok(())
    }

    /// Takes the current version of `name` away, with its link.
    pub(in crate::store) fn take(&mut self, name: &str, version: &Version) -> Step<()> {
        self.nodes.remove(name)?;
        self.children.remove((version.parent.as_str(), name))?;
        Ok(())
    }

    pub(in crate::store) fn put_past(&mut self, name: &str, past: &PastVersion) -> Step<()> {
        let generation = past.version.generation;
        let bytes = framed(self.path, &history_key(name, generation), name, past)?;
        self.history.insert((name, generation), &bytes[..])?;
        Ok(())
    }

    /// Forgets up to `count` past versions; returns how many.
    pub(in crate::store) fn forget(&mut self, count: usize) -> Step<usize> {
        let mut keys = Vec::new();
        for entry in self.history.iter()?.take(count) {
            let entry = entry?.0;
            let (name, generation) = entry.value();
            keys.push((name.to_owned(), generation));
        }
        for (name, generation) in &keys {
            self.history.remove((name.as_str(), *generation))?;
        }
        Ok(keys.len())
    }
}
