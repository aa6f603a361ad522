//! Opening the database and closing it.
//!
//! It is opened for reading first, and to write when something is to be changed: reading waits for
//! nobody. Where the catalogue may not be written it stays so: a store can lie on a volume that
//! only its publisher may write to.
//!
//! **Invariant:** a database that was opened for reading is never written, nor waits for one who
//! writes.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use redb::{ConcurrencyMode, Database, ReadOnlyDatabase, ReadTransaction, ReadableDatabase};

use super::backend::{Backend, CATALOGUE_VERSION, HeadProblem};
use super::wait::Waiting;
use super::{CATALOGUE_FILE, Failure, Step, damaged, guarded};
use crate::error::StoreDefect;
use crate::store::disk::Disk;
use crate::store::folder::{Access, FileId, Folder};
use crate::{Error, Result};

/// Memory that redb keeps pages in.
const CACHE_BYTES: usize = 16 << 20;

/// What a database is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Reading and writing, a new file.
    New,
    /// Reading and writing; reading where the file may not be written.
    Write,
    /// Reading.
    Read,
}

enum Handle {
    Write(Database),
    Read(ReadOnlyDatabase),
}

/// An open database. Closing it writes, and may run into damage: who had an answer from it has it,
/// so nothing is made of that.
pub(super) struct Open {
    /// There until it is dropped.
    handle: Option<Handle>,
    /// The file it is in.
    pub(super) file: FileId,
    path: PathBuf,
}

impl Open {
    /// Opens the database in `folder`; `limit` is the longest wait for who has it locked.
    pub(super) fn new(
        folder: &Folder,
        mode: Mode,
        limit: Option<Duration>,
        disk: &Disk,
    ) -> Result<Self> {
        let path = folder.at(CATALOGUE_FILE);
        let (handle, file) = guarded(&path, || open(folder, mode, limit, disk), || ())?;
        Ok(Self { handle: Some(handle), file, path })
    }

    pub(super) fn is_read_only(&self) -> bool {
        matches!(self.handle, Some(Handle::Read(_)))
    }

    pub(super) fn begin_read(&self) -> Step<ReadTransaction> {
        Ok(match self.handle.as_ref().expect("it is there until it is dropped") {
            Handle::Write(database) => database.begin_read()?,
            Handle::Read(database) => database.begin_read()?,
        })
    }

    pub(super) fn writable(&self) -> Step<&Database> {
        match self.handle.as_ref().expect("it is there until it is dropped") {
            Handle::Write(database) => Ok(database),
            Handle::Read(_) => Err(Error::store(&self.path, StoreDefect::ReadOnly).into()),
        }
    }

    pub(super) fn alone<T>(&mut self, work: impl FnOnce(&mut Database) -> Step<T>) -> Result<T> {
        let path = &self.path;
        match self.handle.as_mut().expect("it is there until it is dropped") {
            Handle::Write(database) => guarded(path, || work(database), || ()),
            Handle::Read(_) => Err(Error::store(path, StoreDefect::ReadOnly)),
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let close = || {
            self.handle = None;
            Ok(())
        };
        let _ = guarded(&self.path, close, || ());
    }
}

fn open(
    folder: &Folder,
    mode: Mode,
    limit: Option<Duration>,
    disk: &Disk,
) -> Step<(Handle, FileId)> {
    let path = folder.at(CATALOGUE_FILE);
    let io = |source| Failure::Ours(Error::io(&path, source));
    if mode == Mode::New {
        disk.step().map_err(io)?;
    }
    let may_not = |error: &Error| {
        matches!(error, Error::Io { source, .. }
            if matches!(source.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem))
    };
    let wanted = match mode {
        Mode::New => Access::New,
        Mode::Write => Access::Write,
        Mode::Read => Access::Read,
    };
    let (file, access) = match folder.file(CATALOGUE_FILE, wanted) {
        Err(error) if mode == Mode::Write && may_not(&error) => {
            (folder.file(CATALOGUE_FILE, Access::Read)?, Access::Read)
        }
        file => (file?, wanted),
    };
    let id = FileId::of(&file.metadata().map_err(io)?);
    let waiting = Waiting { path: path.clone(), file: id, limit };
    let backend =
        Backend::new(file, mode == Mode::New, waiting, disk).map_err(|problem| match problem {
            HeadProblem::Io(error) => io(error),
            HeadProblem::Damaged(problem) => damaged(&path, CATALOGUE_FILE, problem).into(),
            HeadProblem::Version(found) => {
                let (part, expected) = ("the catalogue", CATALOGUE_VERSION);
                Error::store(&path, StoreDefect::FormatVersion { part, expected, found }).into()
            }
        })?;
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES).set_concurrency_mode(ConcurrencyMode::MultiWriter);
    let handle = match access {
        Access::Read => Handle::Read(builder.open_read_only_with_backend(backend)?),
        Access::Write | Access::New => Handle::Write(builder.create_with_backend(backend)?),
    };
    Ok((handle, id))
}
