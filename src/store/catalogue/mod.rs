//! The catalogue: which nodes there are, where their bytes lie, and what was before. The only place that names redb and
//! bincode.
//!
//! Several processes may have it open and write, one at a time. A reader sees the last committed state for as long as
//! its reading lasts.
//!
//! **Invariant:** a change is one transaction: it is there whole once [`Catalogue::write`] returns, or not at all.
//! **Invariant:** damage is an error, also where the database would panic. After a failure the database is opened anew: a
//! disk that was full for a moment does not end a server.

mod backend;
mod open;
mod record;

use std::collections::BTreeSet;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};

use redb::{
    CommitError, DatabaseError, ReadOnlyTable, ReadTransaction, ReadableTable, ReadableTableMetadata, StorageError,
    Table, TableDefinition,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::faults::Faults;
use crate::error::StoreDefect;
use crate::{Error, Result};
use open::{Mode, Open};
pub use record::{Ending, NodeKind, PastVersion, Version};
use record::{FrameProblem, RECORD_VERSION, frame, unframe};
pub(super) use record::{Header, State};

/// The catalogue's file in a store's folder.
pub(super) const CATALOGUE_FILE: &str = crate::tree::STORE_FILE;

/// Name → [`Version`].
const NODES: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("nodes");
/// Parent's name and child's name.
const CHILDREN: TableDefinition<'static, (&str, &str), ()> = TableDefinition::new("children");
/// Name and generation → [`PastVersion`].
const HISTORY: TableDefinition<'static, (&str, u64), &[u8]> = TableDefinition::new("history");
/// `header` → [`Header`], `state` → [`State`].
const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");

/// The database.
pub(super) struct Catalogue {
    database: RwLock<Arc<Open>>,
    /// How it is opened anew.
    mode: Mode,
    path: PathBuf,
    faults: Faults,
    /// A write failed, or the database panicked: it refuses from then on, so the next step opens it anew.
    broken: AtomicBool,
}

/// What went wrong inside a transaction.
pub(super) enum Failure {
    /// The database's own error.
    Database(redb::Error),
    /// Ours.
    Ours(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Ours(error)
    }
}

macro_rules! from_redb {
    ($($error:ty),*) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::Database(error.into())
            }
        })*
    };
}
from_redb!(StorageError, redb::TableError, redb::TransactionError, DatabaseError, CommitError);

/// The result of a step inside a transaction.
pub(super) type Step<T> = std::result::Result<T, Failure>;

/// One committed state.
pub(super) struct Reading {
    transaction: ReadTransaction,
    nodes: ReadOnlyTable<&'static str, &'static [u8]>,
    path: PathBuf,
}

/// A change in the making.
pub(super) struct Writing<'a> {
    nodes: Table<'a, &'static str, &'static [u8]>,
    children: Table<'a, (&'static str, &'static str), ()>,
    history: Table<'a, (&'static str, u64), &'static [u8]>,
    meta: Table<'a, &'static str, &'static [u8]>,
    path: &'a Path,
}

impl Catalogue {
    /// Makes the catalogue of a new store.
    pub(super) fn create(folder: &Path, header: &Header, state: &State, faults: &Faults) -> Result<Self> {
        let catalogue = Self::start(folder, Mode::New, faults)?;
        catalogue.write(|writing| {
            writing.put_meta("header", header)?;
            writing.put_meta("state", state)
        })?;
        Ok(catalogue)
    }

    /// Opens the catalogue of a store; `read_only` also where it could be written.
    pub(super) fn open(folder: &Path, read_only: bool, faults: &Faults) -> Result<Self> {
        Self::start(folder, if read_only { Mode::Read } else { Mode::Write }, faults)
    }

    fn start(folder: &Path, mode: Mode, faults: &Faults) -> Result<Self> {
        let path = folder.join(CATALOGUE_FILE);
        let open = Open::new(&path, mode, faults)?;
        let mode = if open.is_read_only() { Mode::Read } else { Mode::Write };
        let database = RwLock::new(Arc::new(open));
        Ok(Self { database, mode, path, faults: faults.clone(), broken: AtomicBool::new(false) })
    }

    /// Whether it may not be written.
    pub(super) fn is_read_only(&self) -> bool {
        self.mode == Mode::Read
    }

    /// Reads one committed state.
    pub(super) fn read<T>(&self, work: impl FnOnce(&Reading) -> Step<T>) -> Result<T> {
        self.whole(|database| {
            let transaction = database.begin_read()?;
            let nodes = transaction.open_table(NODES)?;
            work(&Reading { transaction, nodes, path: self.path.clone() })
        })
    }

    /// Makes one change, alone among all processes, and waits until it is on disk. If `work` fails nothing has changed.
    /// `work` must not come back here: it may have to open the database, which waits for the change to end.
    pub(super) fn write<T>(&self, work: impl FnOnce(&mut Writing<'_>) -> Step<T>) -> Result<T> {
        self.whole(|database| {
            let mut transaction = database.writable()?.begin_write()?;
            // What is left to do after a crash is then little, however large the catalogue.
            transaction.set_quick_repair(true);
            let done = work(&mut Writing {
                nodes: transaction.open_table(NODES)?,
                children: transaction.open_table(CHILDREN)?,
                history: transaction.open_table(HISTORY)?,
                meta: transaction.open_table(META)?,
                path: &self.path,
            })?;
            transaction.commit().map_err(|error| {
                let problem = error.to_string();
                Error::store(&self.path, StoreDefect::Unconfirmed { problem })
            })?;
            Ok(done)
        })
    }

    fn whole<T>(&self, work: impl FnOnce(&Open) -> Step<T>) -> Result<T> {
        if self.broken.load(Ordering::Relaxed) {
            let mut database = self.database.write().expect("no thread panics holding it");
            // Another thread may have been quicker.
            if self.broken.load(Ordering::Relaxed) {
                *database = Arc::new(Open::new(&self.path, self.mode, &self.faults)?);
                self.broken.store(false, Ordering::Relaxed);
            }
        }
        let database = self.database.read().expect("no thread panics holding it").clone();
        guarded(&self.path, || work(&database), || self.broken.store(true, Ordering::Relaxed))
    }

    /// Checks every page of the database; whether it had to be mended.
    pub(super) fn check_integrity(&self) -> Result<bool> {
        let mut open = Open::new(&self.path, self.mode, &Faults::default())?;
        open.alone(|database| Ok(!database.check_integrity()?))
    }

    /// Gives back what the database no longer needs of its file. Readers in all processes wait meanwhile.
    pub(super) fn compact(&self) -> Result<()> {
        let mut open = Open::new(&self.path, self.mode, &self.faults)?;
        open.alone(|database| match database.compact() {
            // Somebody reads or writes: another time.
            Ok(_) | Err(redb::CompactionError::TransactionInProgress) => Ok(()),
            Err(error) => Err(Failure::Database(error.into())),
        })
    }
}

/// Runs `work`; `broken` is told when the database is not to be used again.
fn guarded<T>(path: &Path, work: impl FnOnce() -> Step<T>, broken: impl FnOnce()) -> Result<T> {
    // What a panic may leave behind is not used again: the catalogue is marked, or was never handed out.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(Failure::Ours(error))) => {
            if matches!(&error, Error::Store { defect, .. } if matches!(**defect, StoreDefect::Unconfirmed { .. })) {
                broken();
            }
            Err(error)
        }
        Ok(Err(Failure::Database(error))) => {
            broken();
            Err(database_error(path, error))
        }
        Err(panic) => {
            broken();
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Err(damaged(path, CATALOGUE_FILE, text.unwrap_or("the database gave up on it")))
        }
    }
}

fn database_error(path: &Path, error: redb::Error) -> Error {
    match error {
        redb::Error::Io(source) => match source.kind() {
            std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof => {
                damaged(path, CATALOGUE_FILE, &source.to_string())
            }
            _ => Error::io(path, source),
        },
        redb::Error::RepairAborted => Error::store(path, StoreDefect::Unfinished),
        redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => Error::store(path, StoreDefect::Locked),
        error @ (redb::Error::Corrupted(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::TableDoesNotExist(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TypeDefinitionChanged { .. }) => damaged(path, CATALOGUE_FILE, &error.to_string()),
        error => Error::store(path, StoreDefect::Catalogue { problem: error.to_string() }),
    }
}

fn damaged(path: &Path, part: &str, problem: &str) -> Error {
    Error::store(path, StoreDefect::Damaged { part: part.to_owned(), problem: problem.to_owned() })
}

/// Opens a record's frame.
fn opened<T: DeserializeOwned>(path: &Path, key: &[u8], shown: &str, bytes: &[u8]) -> Step<T> {
    unframe(key, bytes).map_err(|problem| {
        Failure::Ours(match problem {
            FrameProblem::Damaged(problem) => damaged(path, &format!("the record of {shown}"), problem),
            FrameProblem::Version(found) => {
                let part = "a record of the catalogue";
                Error::store(path, StoreDefect::FormatVersion { part, expected: RECORD_VERSION, found })
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

fn node(path: &Path, table: &impl ReadableTable<&'static str, &'static [u8]>, name: &str) -> Step<Option<Version>> {
    let Some(bytes) = table.get(name)? else { return Ok(None) };
    opened(path, name.as_bytes(), name, bytes.value()).map(Some)
}

fn meta<T: DeserializeOwned>(
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
    for entry in table.range::<(&str, &str)>((Bound::Excluded((parent, after)), Bound::Unbounded))?.take(limit) {
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
    pub(super) fn header(&self) -> Step<Header> {
        meta(&self.path, &self.transaction.open_table(META)?, "header")
    }

    pub(super) fn state(&self) -> Step<State> {
        meta(&self.path, &self.transaction.open_table(META)?, "state")
    }

    pub(super) fn node(&self, name: &str) -> Step<Option<Version>> {
        node(&self.path, &self.nodes, name)
    }

    /// Nodes in the catalogue.
    pub(super) fn count(&self) -> Step<u64> {
        Ok(self.nodes.len()?)
    }

    /// Past versions in the catalogue.
    pub(super) fn past_count(&self) -> Step<u64> {
        Ok(self.transaction.open_table(HISTORY)?.len()?)
    }

    pub(super) fn children(&self, parent: &str, after: &str, limit: usize) -> Step<Vec<String>> {
        children(&self.transaction.open_table(CHILDREN)?, parent, after, limit)
    }

    pub(super) fn is_child(&self, parent: &str, name: &str) -> Step<bool> {
        Ok(self.transaction.open_table(CHILDREN)?.get((parent, name))?.is_some())
    }

    /// Links from parent to child in the catalogue.
    pub(super) fn each_link(&self, mut each: impl FnMut(&str, &str) -> Step<()>) -> Step<()> {
        for entry in self.transaction.open_table(CHILDREN)?.iter()? {
            let entry = entry?.0;
            let (parent, name) = entry.value();
            each(parent, name)?;
        }
        Ok(())
    }

    pub(super) fn history(&self, name: &str) -> Step<Vec<PastVersion>> {
        history(&self.path, &self.transaction.open_table(HISTORY)?, name)
    }

    /// Every past version with its node's name.
    pub(super) fn each_past(&self, mut each: impl FnMut(&str, Step<PastVersion>) -> Step<()>) -> Step<()> {
        for entry in self.transaction.open_table(HISTORY)?.iter()? {
            let (key, bytes) = entry?;
            let (name, generation) = key.value();
            each(name, opened(&self.path, &history_key(name, generation), name, bytes.value()))?;
        }
        Ok(())
    }

    /// Nodes after `after` in the order of the names, while `each` gives true.
    pub(super) fn each_node(
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

    /// Names in the order of the catalogue around where `name` would be: up to `count` before and after.
    pub(super) fn names_around(&self, name: &str, count: usize) -> Step<Vec<String>> {
        names_around(&self.nodes, name, count)
    }
}

impl Writing<'_> {
    pub(super) fn put_meta(&mut self, key: &'static str, record: &impl Serialize) -> Step<()> {
        let bytes = framed(self.path, key.as_bytes(), key, record)?;
        self.meta.insert(key, &bytes[..])?;
        Ok(())
    }

    pub(super) fn state(&self) -> Step<State> {
        meta(self.path, &self.meta, "state")
    }

    pub(super) fn put_state(&mut self, state: &State) -> Step<()> {
        self.put_meta("state", state)
    }

    pub(super) fn node(&self, name: &str) -> Step<Option<Version>> {
        node(self.path, &self.nodes, name)
    }

    pub(super) fn children(&self, parent: &str, limit: usize) -> Step<Vec<String>> {
        children(&self.children, parent, "", limit)
    }

    pub(super) fn history(&self, name: &str) -> Step<Vec<PastVersion>> {
        history(self.path, &self.history, name)
    }

    pub(super) fn is_child(&self, parent: &str, name: &str) -> Step<bool> {
        Ok(self.children.get((parent, name))?.is_some())
    }

    /// As [`Reading::names_around`].
    pub(super) fn names_around(&self, name: &str, count: usize) -> Step<Vec<String>> {
        names_around(&self.nodes, name, count)
    }

    /// The segments that versions lie in, past ones too.
    pub(super) fn segments(&self) -> Step<BTreeSet<u32>> {
        let mut segments = BTreeSet::new();
        for entry in self.nodes.iter()? {
            let (key, bytes) = entry?;
            let version: Version = opened(self.path, key.value().as_bytes(), key.value(), bytes.value())?;
            segments.extend(version.locations().map(|location| location.segment));
        }
        for entry in self.history.iter()? {
            let (key, bytes) = entry?;
            let (name, generation) = key.value();
            let past: PastVersion = opened(self.path, &history_key(name, generation), name, bytes.value())?;
            segments.extend(past.version.locations().map(|location| location.segment));
        }
        Ok(segments)
    }

    /// Makes `version` the current one of `name`, with a link from its parent.
    pub(super) fn put(&mut self, name: &str, version: &Version) -> Step<()> {
        let bytes = framed(self.path, name.as_bytes(), name, version)?;
        self.nodes.insert(name, &bytes[..])?;
        self.children.insert((version.parent.as_str(), name), ())?;
        Ok(())
    }

    /// Takes the current version of `name` away, with its link.
    pub(super) fn take(&mut self, name: &str, version: &Version) -> Step<()> {
        self.nodes.remove(name)?;
        self.children.remove((version.parent.as_str(), name))?;
        Ok(())
    }

    pub(super) fn put_past(&mut self, name: &str, past: &PastVersion) -> Step<()> {
        let generation = past.version.generation;
        let bytes = framed(self.path, &history_key(name, generation), name, past)?;
        self.history.insert((name, generation), &bytes[..])?;
        Ok(())
    }

    /// Forgets up to `count` past versions; gives how many.
    pub(super) fn forget(&mut self, count: usize) -> Step<usize> {
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
