//! A file that is read while somebody may replace it: an adapter's two files must be of one
//! version.
//!
//! **Invariant:** both files are opened before either is read, and both must be the folder's own
//! and unwritten when both have been read: a version that was moved into place meanwhile is found
//! in at least one of them.

use std::fs::{File, Metadata};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::AdapterDefect;
use crate::file::{open_limited, read_open};
use crate::{Error, Result};

/// An open file and what it was when it was opened.
pub(super) struct Watched {
    name: &'static str,
    path: PathBuf,
    file: File,
    opened: Stamp,
}

/// What a file and another differ in, and a file and itself before it was written to.
#[derive(PartialEq)]
struct Stamp {
    /// Device and number, where files have such.
    identity: (u64, u64),
    modified: Option<SystemTime>,
    bytes: u64,
}

impl Watched {
    /// Opens the file at `path`, of at most `max_bytes`; `name` is what a defect calls it.
    pub(super) fn open(path: &Path, name: &'static str, max_bytes: u64) -> Result<Self> {
        let (file, _) = open_limited(path, max_bytes)?;
        let opened = Stamp::of(&file.metadata().map_err(|error| Error::io(path, error))?);
        Ok(Self { name, path: path.to_owned(), file, opened })
    }

    /// Reads all of it.
    pub(super) fn read(&self, max_bytes: u64) -> Result<Vec<u8>> {
        read_open(&self.file, &self.path, max_bytes)
    }

    /// Refuses a file that was written to since it was opened, or that is no longer the one of its
    /// name.
    pub(super) fn check_unchanged(&self) -> Result<(), AdapterDefect> {
        let now = [self.file.metadata(), std::fs::metadata(&self.path)];
        let same =
            now.iter().all(|now| now.as_ref().is_ok_and(|now| Stamp::of(now) == self.opened));
        if same { Ok(()) } else { Err(AdapterDefect::Changed { file: self.name }) }
    }
}

impl Stamp {
    fn of(file: &Metadata) -> Self {
        #[cfg(unix)]
        let identity =
            (std::os::unix::fs::MetadataExt::dev(file), std::os::unix::fs::MetadataExt::ino(file));
        #[cfg(not(unix))]
        let identity = (0, 0);
        Self { identity, modified: file.modified().ok(), bytes: file.len() }
    }
}
