//! Room kept for giving room back: on a disk that is quite full the catalogue could not even write
//! that a node is removed.
//!
//! A file of a store, a mebibyte that says nothing. It is removed before nodes are, where the disk
//! is nearly full, and made anew by a compaction that finds room again. A store without it is
//! whole.

use std::io::Write;

use super::Store;
use super::faults::Faults;
use super::folder::{Access, Folder};

/// The file's name.
pub(super) const RESERVE_FILE: &str = "reserve";
/// Its length; several times what a change writes into a large catalogue.
const BYTES: usize = 1 << 20;

/// Makes the file, where the system tells how much room there is. It is no part of what a store
/// promises, so that it cannot be made is no error.
pub(super) fn make(folder: &Folder, faults: &Faults) {
    if folder.available().is_none_or(|room| room < 4 * BYTES as u64)
        || folder.length(RESERVE_FILE).is_ok()
    {
        return;
    }
    // Bytes that no file system makes smaller.
    let mut bytes = vec![0; BYTES];
    rand::Rng::fill(&mut rand::rng(), &mut bytes[..]);
    let made = faults.step().is_ok()
        && folder
            .file(RESERVE_FILE, Access::New)
            .is_ok_and(|mut file| file.write_all(&bytes).is_ok());
    if !made {
        let _ = folder.remove_file(RESERVE_FILE);
    }
}

impl Store {
    /// Gives up the room that was kept, if there is little else.
    pub(super) fn give_up_reserve(&self) {
        let folder = &self.inner.folder;
        if folder.available().is_some_and(|room| room < 2 * BYTES as u64) {
            let _ = folder.remove_file(RESERVE_FILE);
        }
    }

    /// Keeps room again, if there is plenty.
    pub(super) fn keep_reserve(&self) {
        make(&self.inner.folder, &self.inner.segments.faults);
    }
}
