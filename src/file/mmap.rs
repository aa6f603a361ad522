//! Maps a file into memory, read-only.
//!
//! **Invariant:** the only place that maps one. A mapped file must not be cut short or written in
//! place while it is open: replace a model by renaming a new file over it.

#![allow(unsafe_code, reason = "mapping a file is unsafe: another process may change it")]

use std::fs::File;
use std::path::Path;

use memmap2::{Mmap, MmapOptions};

use super::regular::open_regular;
use crate::{Error, Result};

/// Maps the whole of the regular file at `path`.
pub(super) fn map(path: &Path) -> Result<Mmap> {
    map_open(&open_regular(path)?.0, path)
}

/// The same for a regular file that is open; `path` is for messages.
pub(super) fn map_open(file: &File, path: &Path) -> Result<Mmap> {
    let map = || -> std::io::Result<Mmap> {
        let bytes = usize::try_from(file.metadata()?.len()).map_err(|_| {
            std::io::Error::new(std::io::ErrorKind::FileTooLarge, "larger than the address space")
        })?;
        // SAFETY: the file is only read and its length is the mapping's length, so every byte
        // exists now. The bytes are only ever read as plain integers, for which any value is valid.
        // That nobody truncates the file while it is mapped is the documented duty of whoever owns
        // the folder.
        unsafe { MmapOptions::new().len(bytes).map(file) }
    };
    map().map_err(|e| Error::io(path, e))
}
