//! A store in the making: a folder beside its place that is renamed there once everything is in it.
//!
//! **Invariant:** the store appears whole, or not at all. What is not finished is removed: by who
//! began it, by [`abandon_unfinished`] when the process is asked to end, or by the next who makes a
//! store of that name.
//! **Invariant:** only what is named and built as these folders are, and that nobody works in, is
//! removed.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::catalogue::CATALOGUE_FILE;
use super::disk::Disk;
use super::folder::Folder;
use super::reserve::RESERVE_FILE;
use super::segment::StoreId;
use super::{SEGMENT_FOLDER, segment};
use crate::error::StoreDefect;
use crate::{Error, Result};

/// Times that a folder is begun which somebody else tidies up at once.
const ATTEMPTS: usize = 8;

/// Those that this process has begun.
static UNFINISHED: Mutex<Vec<Arc<Place>>> = Mutex::new(Vec::new());

fn unfinished() -> MutexGuard<'static, Vec<Arc<Place>>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a store is made.
struct Place {
    parent: Folder,
    /// The folder's name in it.
    name: OsString,
    folder: Arc<Folder>,
}

impl Place {
    /// Removes the folder, if nothing is in it that a store does not have.
    fn remove(&self) -> std::io::Result<()> {
        if let Ok(segments) = self.folder.folder(SEGMENT_FOLDER) {
            for name in segments.names()? {
                if let Some(name) = name.to_str().filter(|name| segment::is_file_name(name)) {
                    segments.remove_file(name)?;
                }
            }
            self.folder.remove_folder(SEGMENT_FOLDER)?;
        }
        for name in [CATALOGUE_FILE, RESERVE_FILE] {
            if self.folder.length(name).is_ok() {
                self.folder.remove_file(name)?;
            }
        }
        self.parent.remove_folder(&self.name)
    }
}

/// A store in the making. Dropped before it is finished, it is removed.
pub(super) struct Making {
    place: Arc<Place>,
    /// The store's name.
    target: OsString,
    target_path: PathBuf,
    id: StoreId,
}

impl Making {
    /// Begins a store that is to be `folder`, which must not exist or be empty; first removes what
    /// others left who began one of that name and were killed.
    pub(super) fn begin(folder: &Path, disk: &Disk) -> Result<Self> {
        make_way(folder)?;
        let above = folder
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let target = folder.file_name().unwrap_or_default().to_owned();
        let io = |error| Error::io(folder, error);
        disk.step().map_err(io)?;
        std::fs::create_dir_all(above).map_err(|error| Error::io(above, error))?;
        let prefix =
            [OsStr::new("."), &target, OsStr::new(".making-")].into_iter().collect::<OsString>();
        let open_above = || Folder::open(above).map_err(|error| Error::io(above, error));
        remove_left(open_above, &prefix);
        for _ in 0..ATTEMPTS {
            let mut id = [0; 16];
            rand::Rng::fill(&mut rand::rng(), &mut id);
            let (parent, mut name) = (open_above()?, prefix.clone());
            name.push(format!("{:032x}", u128::from_le_bytes(id)));
            // Nothing is begun once the process is asked to end.
            let mut unfinished = unfinished();
            parent.make_folder(&name).map_err(|error| Error::io(parent.at(&name), error))?;
            let made = Arc::new(parent.folder(&name)?);
            // Where folders cannot be claimed nobody removes what others left.
            let claimed = made.claim().unwrap_or(true) || cfg!(not(unix));
            if !claimed || !parent.holds(&name, &made).map_err(io)? {
                continue;
            }
            let place = Arc::new(Place { parent, name, folder: made });
            unfinished.push(place.clone());
            drop(unfinished);
            let making = Self { place, target, target_path: folder.to_owned(), id };
            making.place.folder.make_folder(SEGMENT_FOLDER).map_err(io)?;
            return Ok(making);
        }
        Err(io(std::io::Error::other("somebody removes what is begun here")))
    }

    /// The store's id.
    pub(super) fn id(&self) -> StoreId {
        self.id
    }

    /// The folder it is made in.
    pub(super) fn folder(&self) -> &Arc<Folder> {
        &self.place.folder
    }

    /// Moves the store to its place; returns the folder as it is there.
    pub(super) fn finish(self, disk: &Disk) -> Result<Arc<Folder>> {
        let Place { parent, name, folder } = &*self.place;
        folder.sync(disk).map_err(|error| Error::io(folder.path(), error))?;
        let mut unfinished = unfinished();
        let renamed = disk.step().and_then(|()| parent.rename(name, &self.target));
        renamed.map_err(|error| match error.kind() {
            std::io::ErrorKind::DirectoryNotEmpty | std::io::ErrorKind::NotADirectory => {
                Error::store(&self.target_path, StoreDefect::Exists)
            }
            _ => Error::io(folder.path(), error),
        })?;
        unfinished.retain(|place| !Arc::ptr_eq(place, &self.place));
        drop(unfinished);
        parent.sync(disk).map_err(|error| Error::io(parent.path(), error))?;
        folder.renamed(parent.at(&self.target)).map(Arc::new)
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        let mut unfinished = unfinished();
        let before = unfinished.len();
        unfinished.retain(|place| !Arc::ptr_eq(place, &self.place));
        if unfinished.len() < before {
            // What cannot be removed is not a store either.
            let _ = self.place.remove();
        }
    }
}

/// Removes the stores that this process has begun and not finished. For who was asked to end the
/// process and does so next: whoever begins, finishes or drops one afterwards waits for that.
pub fn abandon_unfinished() {
    let mut unfinished = unfinished();
    for place in unfinished.drain(..) {
        // The thread that makes it may be adding a file.
        for _ in 0..ATTEMPTS {
            if place.remove().is_ok() {
                break;
            }
        }
    }
    // Kept locked: an error of the thread that made it must not end the process first, with another
    // status.
    std::mem::forget(unfinished);
}

/// Removes an empty folder where the store is to be.
fn make_way(folder: &Path) -> Result<()> {
    match std::fs::read_dir(folder).map(|mut entries| entries.next().is_none()) {
        // At once: a link, a mount or the folder one is in cannot be replaced, which is better said
        // before the work.
        Ok(true) => std::fs::remove_dir(folder).map_err(|error| {
            Error::store(folder, StoreDefect::NotReplaceable { problem: error.to_string() })
        }),
        Ok(false) => Err(Error::store(folder, StoreDefect::Exists)),
        Err(error) => match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            std::io::ErrorKind::NotADirectory => Err(Error::store(folder, StoreDefect::Exists)),
            _ => Err(Error::io(folder, error)),
        },
    }
}

/// Removes what killed processes left of stores whose folders begin with `prefix`. It is not what
/// was asked for: what cannot be removed stays.
fn remove_left(open_above: impl Fn() -> Result<Folder>, prefix: &OsStr) {
    let Ok(names) = open_above().map(|above| above.names().unwrap_or_default()) else { return };
    for name in names {
        let id = name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes());
        if id.is_none_or(|id| {
            id.len() != 32 || !id.iter().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
        }) {
            continue;
        }
        let Ok(parent) = open_above() else { return };
        let Ok(folder) = parent.folder(&name).map(Arc::new) else { continue };
        let ours = |folder: &Folder| {
            let names = folder.names().unwrap_or_default();
            names.iter().all(|name| {
                [CATALOGUE_FILE, RESERVE_FILE, SEGMENT_FOLDER].iter().any(|ours| name == ours)
            })
        };
        // Who is at it has it claimed, and lets go once it is a store under its own name.
        let stands = |parent: &Folder| parent.holds(&name, &folder).is_ok_and(|stands| stands);
        if ours(&folder) && folder.claim().is_ok_and(|free| free) && stands(&parent) {
            let path = folder.path().to_owned();
            match (Place { parent, name, folder }).remove() {
                Ok(()) => tracing::warn!(
                    "{} was left by a program that was killed; it is removed",
                    path.display()
                ),
                Err(error) => tracing::warn!(
                    "{} was left by a program that was killed: {error}",
                    path.display()
                ),
            }
        }
    }
}
