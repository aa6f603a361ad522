//! Disk space kept so that space can be freed: on a full disk the catalogue could not even write
//! that a node is removed.
//!
//! It is a file of the store, a mebibyte of no meaning. It is removed before nodes are, where the
//! disk is nearly full, and a compaction that finds space again makes it again. A store without it
//! is whole.

use std::io::Write;

use super::Store;
use super::disk::Disk;
use super::folder::{Access, Folder};

/// The file's name.
pub(super) const RESERVE_FILE: &str = "reserve";
/// Its length; several times what a change writes into a large catalogue.
const BYTES: usize = 1 << 20;

/// Makes the file, where the system reports the free space. A store does not promise it, so a
/// failure here is no error.
pub(super) fn make(folder: &Folder, disk: &Disk) {
    if folder.available().is_none_or(|free| free < 4 * BYTES as u64)
        || folder.length(RESERVE_FILE).is_ok()
    {
        return;
    }
    // Bytes that no file system makes smaller.
    let mut bytes = vec![0; BYTES];
    rand::Rng::fill(&mut rand::rng(), &mut bytes[..]);
    let made = disk.step().is_ok()
        && folder
            .file(RESERVE_FILE, Access::New)
            .is_ok_and(|mut file| file.write_all(&bytes).is_ok());
    if !made {
        let _ = folder.remove_file(RESERVE_FILE);
    }
}

impl Store {
    /// Frees the space that was kept, if there is little else.
    pub(super) fn give_up_reserve(&self) {
        let folder = &self.inner.folder;
        if folder.available().is_some_and(|free| free < 2 * BYTES as u64) {
            let _ = folder.remove_file(RESERVE_FILE);
        }
    }

    /// Keeps space again, if there is plenty.
    pub(super) fn keep_reserve(&self) {
        make(&self.inner.folder, &self.inner.segments.disk);
    }
}
