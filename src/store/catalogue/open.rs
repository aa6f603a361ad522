//! Opening the database and closing it.
//!
//! Where the catalogue may not be written it is opened for reading: a store can lie on a volume that only its publisher
//! may write to.
//!
//! **Invariant:** a database that was opened for reading is never written, nor waits for one who writes.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use redb::{ConcurrencyMode, Database, ReadOnlyDatabase, ReadTransaction, ReadableDatabase};

use super::backend::{Backend, CATALOGUE_VERSION, HeadProblem};
use super::{CATALOGUE_FILE, Failure, Step, damaged, guarded};
use crate::error::StoreDefect;
use crate::store::faults::Faults;
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

/// An open database. Closing it writes, and may run into damage: who had an answer from it has it, so nothing is made of
/// that.
pub(super) struct Open {
    /// There until it is dropped.
    handle: Option<Handle>,
    path: PathBuf,
}

impl Open {
    pub(super) fn new(path: &Path, mode: Mode, faults: &Faults) -> Result<Self> {
        let handle = guarded(path, || open(path, mode, faults), || ())?;
        Ok(Self { handle: Some(handle), path: path.to_owned() })
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

fn open(path: &Path, mode: Mode, faults: &Faults) -> Step<Handle> {
    let io = |source| Failure::Ours(Error::io(path, source));
    if mode == Mode::New {
        faults.step().map_err(io)?;
    }
    let attempt = |write| OpenOptions::new().read(true).write(write).create_new(mode == Mode::New).open(path);
    let may_not =
        |error: &std::io::Error| matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem);
    let (file, writable) = match attempt(mode != Mode::Read) {
        Err(error) if mode == Mode::Write && may_not(&error) => (attempt(false), false),
        file => (file, mode != Mode::Read),
    };
    let file = file.map_err(io)?;
    let backend = Backend::new(file, mode == Mode::New, faults).map_err(|problem| match problem {
        HeadProblem::Io(error) => io(error),
        HeadProblem::Damaged(problem) => damaged(path, CATALOGUE_FILE, problem).into(),
        HeadProblem::Version(found) => {
            let (part, expected) = ("the catalogue", CATALOGUE_VERSION);
            Error::store(path, StoreDefect::FormatVersion { part, expected, found }).into()
        }
    })?;
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES).set_concurrency_mode(ConcurrencyMode::MultiWriter);
    Ok(match writable {
        true => Handle::Write(builder.create_with_backend(backend)?),
        false => Handle::Read(builder.open_read_only_with_backend(backend)?),
    })
}
