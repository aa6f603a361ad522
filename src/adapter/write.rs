//! An adapter's files → a folder, as a whole.
//!
//! **Invariant:** the folder appears whole or not at all, and nothing that was there is
//! overwritten.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::AdapterDefect;
use crate::file::sync_folder;
use crate::{Error, Result};

/// Writes an adapter's files, by their names, as they are into the folder `dir`, which is made.
///
/// They are written into a folder beside `dir`, named `.NAME.PROCESS-NUMBER.part`, and moved; a
/// crash leaves that one at most.
///
/// # Errors
/// [`AdapterDefect::FolderNotEmpty`] inside [`Error::Adapter`], and [`Error::Io`].
pub(crate) fn write_files(dir: &Path, files: &[(&str, &[u8])]) -> Result<()> {
    check_free(dir)?;
    let parent = match dir.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => dir,
    };
    fs::create_dir_all(parent).map_err(|source| Error::io(parent, source))?;
    let part = part_folder(parent, dir)?;
    let moved = fill(&part, files).and_then(|()| move_into_place(&part, dir, parent));
    if moved.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_dir_all(&part);
    }
    moved
}

/// Refuses a folder that holds something.
pub(super) fn check_free(dir: &Path) -> Result<()> {
    match fs::read_dir(dir).map(|mut entries| entries.next().is_some()) {
        Ok(false) => Ok(()),
        Ok(true) => Err(Error::adapter(dir, AdapterDefect::FolderNotEmpty)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io(dir, error)),
    }
}

/// Renames the folder `part` to `dir`.
fn move_into_place(part: &Path, dir: &Path, parent: &Path) -> Result<()> {
    // A rename onto an empty folder is not possible everywhere. One that has filled meanwhile
    // stays.
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(taken(dir, error)),
        _ => fs::rename(part, dir).map_err(|source| taken(dir, source))?,
    }
    sync_folder(parent).map_err(|source| Error::io(parent, source))
}

/// Makes an empty folder beside `dir` that nobody else writes to.
fn part_folder(parent: &Path, dir: &Path) -> Result<PathBuf> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let Some(name) = dir.file_name() else {
        return Err(Error::io(
            dir,
            io::Error::new(ErrorKind::InvalidInput, "give a folder by its name"),
        ));
    };
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let part =
        parent.join(format!(".{}.{}-{number}.part", name.to_string_lossy(), std::process::id()));
    fs::create_dir(&part).map_err(|source| Error::io(&part, source))?;
    Ok(part)
}

/// Writes the files and sees them onto the disk.
fn fill(folder: &Path, files: &[(&str, &[u8])]) -> Result<()> {
    for (name, bytes) in files {
        let path = folder.join(name);
        let written = File::create_new(&path).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        written.map_err(|source| Error::io(&path, source))?;
    }
    sync_folder(folder).map_err(|source| Error::io(folder, source))
}

/// What it means that `dir` could not be taken: systems differ in what they say of a folder that
/// has filled.
fn taken(dir: &Path, error: io::Error) -> Error {
    check_free(dir).err().unwrap_or_else(|| Error::io(dir, error))
}
