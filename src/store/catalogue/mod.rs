//! The catalogue: which nodes there are, where their bytes lie, and what was before. The only place
//! that names redb and bincode.
//!
//! Several processes may have it open and write, one at a time. A reader sees the last committed
//! state for as long as its reading lasts.
//!
//! **Invariant:** a change is one transaction: it is there whole once [`Catalogue::write`] returns,
//! or not at all. One whose end failed is settled before the error is returned, if the disk lets
//! it.
//! **Invariant:** damage is an error, also where the database would panic. After a failure the
//! database is opened again: a disk that was full for a moment does not end a server.

mod backend;
mod open;
mod record;
mod tables;
mod wait;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::Duration;

use redb::{
    CommitError, DatabaseError, ReadOnlyTable, ReadTransaction, StorageError, Table,
    TableDefinition,
};

use super::Options;
use super::disk::Disk;
use super::folder::Folder;
use super::segment::StoreId;
use crate::contain::contained;
use crate::error::StoreDefect;
use crate::{Error, Result};
use open::{Mode, Open};
#[cfg(feature = "testing")]
pub(super) use record::decodes;
pub use record::{Ending, NodeKind, PastVersion, Version};
pub(super) use record::{Header, State};
use tables::meta;

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
    /// Opened for reading until something is to be changed.
    database: RwLock<Arc<Open>>,
    /// Held while it is opened again: who reads meanwhile goes on with the one there is.
    opening: Mutex<()>,
    folder: Arc<Folder>,
    path: PathBuf,
    /// Whether it is only to be read, also where it could be written.
    read_only: bool,
    /// Longest wait for another process.
    limit: Option<Duration>,
    disk: Disk,
    /// The store it was when it was opened.
    id: OnceLock<StoreId>,
    /// A write failed, or the database panicked: it refuses from then on, so the next step opens it
    /// again.
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
    pub(super) fn create(
        folder: Arc<Folder>,
        header: &Header,
        state: &State,
        options: &Options,
    ) -> Result<()> {
        let catalogue = Self::start(folder, Mode::New, options)?;
        catalogue.write(|writing| {
            writing.put_meta("header", header)?;
            writing.put_meta("state", state)
        })
    }

    /// Opens the catalogue of a store, and returns what the store is.
    pub(super) fn open(folder: Arc<Folder>, options: &Options) -> Result<(Self, Header)> {
        let catalogue = match Self::start(folder.clone(), Mode::Read, options) {
            Err(error)
                if !options.read_only
                    && is(&error, |defect| matches!(defect, StoreDefect::Unfinished)) =>
            {
                // Opening it to write tidies up what a killed writer left.
                Self::start(folder, Mode::Write, options)?
            }
            catalogue => catalogue?,
        };
        let header = catalogue.read(|reading| {
            // Both are looked at: a store without a state is none.
            reading.state()?;
            reading.header()
        })?;
        let _ = catalogue.id.set(header.id);
        Ok((catalogue, header))
    }

    fn start(folder: Arc<Folder>, mode: Mode, options: &Options) -> Result<Self> {
        let limit = options.wait_limit;
        let open =
            Open::new(&folder, mode, limit, &options.disk).map_err(|error| timed(error, limit))?;
        Ok(Self {
            database: RwLock::new(Arc::new(open)),
            opening: Mutex::default(),
            path: folder.at(CATALOGUE_FILE),
            folder,
            read_only: options.read_only,
            limit,
            disk: options.disk.clone(),
            id: OnceLock::new(),
            broken: AtomicBool::new(false),
        })
    }

    /// Reads one committed state.
    pub(super) fn read<T>(&self, work: impl FnOnce(&Reading) -> Step<T>) -> Result<T> {
        let open = self.database()?;
        self.whole(&open, work_on_reading(&self.path, work))
    }

    /// The same, but of a database opened for it, so that every page is read from the disk.
    pub(super) fn read_from_disk<T>(&self, work: impl FnOnce(&Reading) -> Step<T>) -> Result<T> {
        let open = self.reopen(Mode::Read, &Disk::default())?;
        guarded(&self.path, || work_on_reading(&self.path, work)(&open), || ())
    }

    /// Makes one change, alone among all processes, and waits until it is on disk. If `work` fails
    /// nothing has changed. `work` must not come back here: it may have to open the database, which
    /// waits for the change to end.
    pub(super) fn write<T>(&self, work: impl FnOnce(&mut Writing<'_>) -> Step<T>) -> Result<T> {
        self.alone(work, true).map_err(|error| self.settled(error))
    }

    /// Settles a commit that was not confirmed, and says whether that worked. redb marks a commit
    /// that its last flush has not passed: every reader goes on with the one before, and whoever
    /// begins to write next makes the marked one valid. Without a next one here, the change would
    /// turn up after its caller looked and found it missing. An empty commit, because an aborted
    /// transaction is not flushed.
    fn settled(&self, error: Error) -> Error {
        match error {
            Error::Store { path, defect } => match *defect {
                StoreDefect::Unconfirmed { problem, .. } => {
                    let settled = self.alone(|_| Ok(()), true).is_ok();
                    Error::store(path, StoreDefect::Unconfirmed { problem, settled })
                }
                defect => Error::store(path, defect),
            },
            error => error,
        }
    }

    /// Does something while nobody changes the store, and changes nothing.
    pub(super) fn hold<T>(&self, work: impl FnOnce(&mut Writing<'_>) -> Step<T>) -> Result<T> {
        self.alone(work, false)
    }

    fn alone<T>(&self, work: impl FnOnce(&mut Writing<'_>) -> Step<T>, commit: bool) -> Result<T> {
        let open = self.database_to_write()?;
        self.whole(&open, |database| {
            let mut transaction = database.writable()?.begin_write()?;
            // What is left to do after a crash is then little, however large the catalogue.
            transaction.set_quick_repair(true);
            let mut writing = Writing {
                nodes: transaction.open_table(NODES)?,
                children: transaction.open_table(CHILDREN)?,
                history: transaction.open_table(HISTORY)?,
                meta: transaction.open_table(META)?,
                path: &self.path,
            };
            self.check_own(database, || meta(&self.path, &writing.meta, "header"))?;
            let done = work(&mut writing)?;
            drop(writing);
            if !commit {
                transaction.abort()?;
                return Ok(done);
            }
            transaction.commit().map_err(|error| {
                let problem = error.to_string();
                Error::store(&self.path, StoreDefect::Unconfirmed { problem, settled: false })
            })?;
            Ok(done)
        })
    }

    fn whole<T>(&self, database: &Open, work: impl FnOnce(&Open) -> Step<T>) -> Result<T> {
        guarded(&self.path, || work(database), || self.broken.store(true, Ordering::Relaxed))
            .map_err(|error| timed(error, self.limit))
    }

    /// The open database.
    fn database(&self) -> Result<Arc<Open>> {
        if !self.broken.load(Ordering::Relaxed) {
            return Ok(self.current());
        }
        self.replace(|open| match open.is_read_only() {
            true => Mode::Read,
            false => Mode::Write,
        })
    }

    /// The open database, to be written if it may be.
    fn database_to_write(&self) -> Result<Arc<Open>> {
        let open = self.database()?;
        if self.read_only || !open.is_read_only() {
            return Ok(open);
        }
        self.replace(|_| Mode::Write)
    }

    /// Opens the database again, unless another thread was quicker.
    fn replace(&self, mode: impl FnOnce(&Open) -> Mode) -> Result<Arc<Open>> {
        let opening = self.opening.lock().expect("no thread panics holding it");
        let open = self.current();
        let mode = mode(&open);
        if !self.broken.load(Ordering::Relaxed) && open.is_read_only() == (mode == Mode::Read) {
            return Ok(open);
        }
        let open = Arc::new(self.reopen(mode, &self.disk)?);
        *self.database.write().expect("no thread panics holding it") = open.clone();
        self.broken.store(false, Ordering::Relaxed);
        drop(opening);
        Ok(open)
    }

    fn current(&self) -> Arc<Open> {
        self.database.read().expect("no thread panics holding it").clone()
    }

    /// Opens the database of the same store once more.
    fn reopen(&self, mode: Mode, disk: &Disk) -> Result<Open> {
        let open = |mode| {
            let open =
                Open::new(&self.folder, mode, self.limit, disk).map_err(|error| match error {
                    // A store that was open had one.
                    Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                        Error::store(self.folder.path(), StoreDefect::Replaced)
                    }
                    error => timed(error, self.limit),
                })?;
            let check = || {
                let transaction = open.begin_read()?;
                let table = transaction.open_table(META)?;
                self.check_own(&open, || meta(&self.path, &table, "header"))
            };
            guarded(&self.path, check, || ()).map(|()| open)
        };
        // Opening to write writes: whose it is has to be known before.
        let found = open(Mode::Read);
        let is_refused = |defect: &StoreDefect| {
            matches!(defect, StoreDefect::Replaced | StoreDefect::Busy { .. })
        };
        match found {
            found if mode == Mode::Read => found,
            Err(error) if is(&error, is_refused) => Err(error),
            // What is wrong with it may be mended.
            _ => open(mode),
        }
    }

    /// Whether this is still the store that was opened: another may have been brought into its
    /// folder.
    fn check_own(&self, open: &Open, header: impl FnOnce() -> Step<Header>) -> Step<()> {
        let Some(id) = self.id.get() else { return Ok(()) };
        let is_there = self
            .folder
            .is(CATALOGUE_FILE, open.file)
            .map_err(|error| Error::io(&self.path, error))?;
        if is_there && header()?.id == *id {
            return Ok(());
        }
        Err(Error::store(self.folder.path(), StoreDefect::Replaced).into())
    }

    /// Checks every page of the database; whether it had to be mended. Nothing where it may not be
    /// written.
    pub(super) fn check_integrity(&self) -> Result<Option<bool>> {
        if self.read_only {
            return Ok(None);
        }
        let mut open = self.reopen(Mode::Write, &Disk::default())?;
        if open.is_read_only() {
            return Ok(None);
        }
        open.alone(|database| Ok(!database.check_integrity()?))
            .map(Some)
            .map_err(|error| timed(error, self.limit))
    }

    /// Frees what the database no longer needs of its file. Readers in all processes wait
    /// meanwhile.
    pub(super) fn compact(&self) -> Result<()> {
        let mode = if self.read_only { Mode::Read } else { Mode::Write };
        let mut open = self.reopen(mode, &self.disk)?;
        let compacted = open.alone(|database| match database.compact() {
            // Somebody reads or writes: another time.
            Ok(_) | Err(redb::CompactionError::TransactionInProgress) => Ok(()),
            Err(error) => Err(Failure::Database(error.into())),
        });
        compacted.map_err(|error| timed(error, self.limit))
    }
}

fn work_on_reading<T>(
    path: &Path,
    work: impl FnOnce(&Reading) -> Step<T>,
) -> impl FnOnce(&Open) -> Step<T> {
    move |database| {
        let transaction = database.begin_read()?;
        let nodes = transaction.open_table(NODES)?;
        work(&Reading { transaction, nodes, path: path.to_owned() })
    }
}

/// Says how long was waited.
fn timed(error: Error, limit: Option<Duration>) -> Error {
    match (error, limit) {
        (Error::Io { path, source }, Some(limit))
            if source.kind() == std::io::ErrorKind::TimedOut =>
        {
            Error::store(
                path,
                StoreDefect::Busy { holder: source.to_string(), seconds: limit.as_secs_f64() },
            )
        }
        (error, _) => error,
    }
}

fn is(error: &Error, defect: impl Fn(&StoreDefect) -> bool) -> bool {
    matches!(error, Error::Store { defect: found, .. } if defect(found))
}

/// Runs `work`; `broken` is called when the database is not to be used again.
fn guarded<T>(path: &Path, work: impl FnOnce() -> Step<T>, broken: impl FnOnce()) -> Result<T> {
    // What a panic may leave behind is not used again: the catalogue is marked, or was never handed
    // out.
    match contained(work) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(Failure::Ours(error))) => {
            if is(&error, |defect| matches!(defect, StoreDefect::Unconfirmed { .. })) {
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
            Err(damaged(path, CATALOGUE_FILE, &format!("the database broke off: {panic}")))
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
        redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => {
            Error::store(path, StoreDefect::Locked)
        }
        error @ (redb::Error::Corrupted(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::TableDoesNotExist(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TypeDefinitionChanged { .. }) => {
            damaged(path, CATALOGUE_FILE, &error.to_string())
        }
        error => Error::store(path, StoreDefect::Catalogue { problem: error.to_string() }),
    }
}

fn damaged(path: &Path, part: &str, problem: &str) -> Error {
    Error::store(path, StoreDefect::Damaged { part: part.to_owned(), problem: problem.to_owned() })
}
