//! A folder held open: what is in it is reached from the folder itself, not by its path.
//!
//! Somebody may move a store away and another one into its place while it is open. What goes on by
//! path would then write into the other store, or remove its files.
//!
//! **Invariant:** on Unix every file is opened, made, renamed and removed relative to the open
//! folder, and never through a link. Elsewhere it is by path: Windows moves no folder in which a
//! file is open, and a catalogue always is.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::disk::Disk;
use crate::error::StoreDefect;
use crate::{Error, Result};

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Reading.
    Read,
    /// Reading and writing.
    Write,
    /// Reading and writing a file that is not there yet.
    New,
}

/// Identifies a file or folder among all others for as long as it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    #[cfg(unix)]
    device: u64,
    #[cfg(unix)]
    number: u64,
}

/// An open folder.
pub(super) struct Folder {
    /// Where it was when it was opened: for messages, and to open from where there is no other way.
    path: PathBuf,
    #[cfg(unix)]
    handle: File,
}

impl Folder {
    /// Its path, as it was opened.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where a part of it was, for messages.
    pub(super) fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Opens a regular file.
    pub(super) fn file(&self, name: impl AsRef<Path>, access: Access) -> Result<File> {
        let name = name.as_ref();
        self.open_file(name, access).map_err(|error| self.refused(name, error))
    }

    /// Opens a folder in it.
    pub(super) fn folder(&self, name: impl AsRef<Path>) -> Result<Self> {
        let name = name.as_ref();
        self.open_folder(name).map_err(|error| self.refused(name, error))
    }

    /// The same folder, opened once more, which by now lies at `path`.
    pub(super) fn renamed(&self, path: PathBuf) -> Result<Self> {
        // By the handle where there is one: somebody may have moved it already.
        if cfg!(unix) {
            Ok(Self { path, ..self.folder(".")? })
        } else {
            Self::open(&path).map_err(|error| Error::io(path, error))
        }
    }

    /// What stands in the way of `name`: a link is reported as one, whatever opening it said.
    fn refused(&self, name: &Path, error: io::Error) -> Error {
        if !self.is_link(name) {
            return Error::io(self.at(name), error);
        }
        let (part, problem) = (name.to_string_lossy().into_owned(), "it is a link".to_owned());
        Error::store(self.at(name), StoreDefect::Damaged { part, problem })
    }

    /// Makes the names in it last.
    pub(super) fn sync(&self, disk: &Disk) -> io::Result<()> {
        disk.step()?;
        self.sync_names()
    }
}

/// Frees the disk space of whole blocks of a file; what was there reads as zeros then.
pub(super) fn hollow(file: &File, range: &std::ops::Range<u64>) -> io::Result<()> {
    const BLOCK: u64 = 4096;
    let (start, end) = (range.start.next_multiple_of(BLOCK), range.end / BLOCK * BLOCK);
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if start < end {
        use rustix::fs::{FallocateFlags, fallocate};
        fallocate(
            file,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            start,
            end - start,
        )?;
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    if start < end {
        let _ = file;
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(())
}

/// Refuses what reading or writing could wait for, or never end at.
fn regular(file: File) -> io::Result<File> {
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

#[cfg(unix)]
mod system {
    use std::ffi::OsString;
    use std::fs::{File, Metadata};
    use std::io;
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use rustix::fs::{
        AtFlags, Dir, FileType, Mode, OFlags, Stat, mkdirat, openat, renameat, statat, unlinkat,
    };

    use super::{Access, FileId, Folder, regular};

    const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

    impl FileId {
        /// The id of the file or folder that this is about.
        pub(in crate::store) fn of(metadata: &Metadata) -> Self {
            Self { device: metadata.dev(), number: metadata.ino() }
        }
    }

    impl Folder {
        /// Opens the folder at `path`.
        pub(in crate::store) fn open(path: &Path) -> io::Result<Self> {
            let handle = rustix::fs::open(path, FOLDER, Mode::empty())?.into();
            Ok(Self { path: path.to_owned(), handle })
        }

        pub(super) fn open_folder(&self, name: &Path) -> io::Result<Self> {
            let handle =
                openat(&self.handle, name, FOLDER | OFlags::NOFOLLOW, Mode::empty())?.into();
            Ok(Self { path: self.at(name), handle })
        }

        pub(super) fn open_file(&self, name: &Path, access: Access) -> io::Result<File> {
            let access = match access {
                Access::Read => OFlags::RDONLY,
                Access::Write => OFlags::RDWR,
                Access::New => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
            };
            // Not blocking: a named pipe is to be refused, not waited for. To a regular file it is
            // all one.
            let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            regular(openat(&self.handle, name, flags, Mode::from_raw_mode(0o666))?.into())
        }

        fn stat(&self, name: &Path) -> io::Result<Stat> {
            Ok(statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW)?)
        }

        pub(super) fn is_link(&self, name: &Path) -> bool {
            self.stat(name)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
        }

        /// Length of a file.
        pub(in crate::store) fn length(&self, name: impl AsRef<Path>) -> io::Result<u64> {
            Ok(u64::try_from(self.stat(name.as_ref())?.st_size).unwrap_or(0))
        }

        /// Whether `name` stands for this open file.
        pub(in crate::store) fn is(
            &self,
            name: impl AsRef<Path>,
            file: FileId,
        ) -> io::Result<bool> {
            match self.stat(name.as_ref()) {
                #[allow(
                    clippy::unnecessary_cast,
                    reason = "the fields' types differ between systems"
                )]
                Ok(stat) => {
                    Ok((stat.st_dev as u64, stat.st_ino as u64) == (file.device, file.number))
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                Err(error) => Err(error),
            }
        }

        /// Whether `name` stands for this open folder.
        pub(in crate::store) fn holds(
            &self,
            name: impl AsRef<Path>,
            folder: &Self,
        ) -> io::Result<bool> {
            self.is(name, FileId::of(&folder.handle.metadata()?))
        }

        /// The names in it.
        pub(in crate::store) fn names(&self) -> io::Result<Vec<OsString>> {
            let mut names = Vec::new();
            for entry in Dir::read_from(&self.handle)? {
                let name = entry?.file_name().to_bytes().to_vec();
                if name != b"." && name != b".." {
                    names.push(OsString::from_vec(name));
                }
            }
            Ok(names)
        }

        /// Makes a folder in it.
        pub(in crate::store) fn make_folder(&self, name: impl AsRef<Path>) -> io::Result<()> {
            Ok(mkdirat(&self.handle, name.as_ref(), Mode::from_raw_mode(0o777))?)
        }

        /// Removes a file.
        pub(in crate::store) fn remove_file(&self, name: impl AsRef<Path>) -> io::Result<()> {
            Ok(unlinkat(&self.handle, name.as_ref(), AtFlags::empty())?)
        }

        /// Removes an empty folder.
        pub(in crate::store) fn remove_folder(&self, name: impl AsRef<Path>) -> io::Result<()> {
            Ok(unlinkat(&self.handle, name.as_ref(), AtFlags::REMOVEDIR)?)
        }

        /// Renames a file or folder in it; an empty folder of that name makes way.
        pub(in crate::store) fn rename(
            &self,
            from: impl AsRef<Path>,
            to: impl AsRef<Path>,
        ) -> io::Result<()> {
            Ok(renameat(&self.handle, from.as_ref(), &self.handle, to.as_ref())?)
        }

        pub(super) fn sync_names(&self) -> io::Result<()> {
            self.handle.sync_all()
        }

        /// Bytes that can still be written to the disk it lies on, if the system reports it.
        pub(in crate::store) fn available(&self) -> Option<u64> {
            let disk = rustix::fs::fstatvfs(&self.handle).ok()?;
            Some(disk.f_bavail.saturating_mul(disk.f_frsize))
        }

        /// Takes the folder for oneself, as long as it is open; false if somebody has it.
        pub(in crate::store) fn claim(&self) -> io::Result<bool> {
            match self.handle.try_lock() {
                Ok(()) => Ok(true),
                Err(std::fs::TryLockError::WouldBlock) => Ok(false),
                Err(std::fs::TryLockError::Error(error)) => Err(error),
            }
        }
    }
}

#[cfg(not(unix))]
mod system {
    use std::ffi::OsString;
    use std::fs::{File, Metadata, OpenOptions};
    use std::io;
    use std::path::Path;

    use super::{Access, FileId, Folder, regular};

    impl FileId {
        /// Nothing: an open file keeps its name here.
        pub(in crate::store) fn of(_: &Metadata) -> Self {
            Self {}
        }
    }

    impl Folder {
        /// Opens the folder at `path`.
        pub(in crate::store) fn open(path: &Path) -> io::Result<Self> {
            match std::fs::metadata(path)?.is_dir() {
                true => Ok(Self { path: path.to_owned() }),
                false => Err(io::ErrorKind::NotADirectory.into()),
            }
        }

        pub(super) fn open_folder(&self, name: &Path) -> io::Result<Self> {
            if self.is_link(name) {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            Self::open(&self.at(name))
        }

        pub(super) fn open_file(&self, name: &Path, access: Access) -> io::Result<File> {
            if self.is_link(name) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let write = access != Access::Read;
            regular(
                OpenOptions::new()
                    .read(true)
                    .write(write)
                    .create_new(access == Access::New)
                    .open(self.at(name))?,
            )
        }

        pub(super) fn is_link(&self, name: &Path) -> bool {
            self.at(name).is_symlink()
        }

        /// Length of a file.
        pub(in crate::store) fn length(&self, name: impl AsRef<Path>) -> io::Result<u64> {
            std::fs::symlink_metadata(self.at(name)).map(|metadata| metadata.len())
        }

        /// Whether `name` is there at all: an open file keeps its name here.
        pub(in crate::store) fn is(&self, name: impl AsRef<Path>, _: FileId) -> io::Result<bool> {
            Ok(self.at(name).exists())
        }

        /// The same for a folder.
        pub(in crate::store) fn holds(&self, name: impl AsRef<Path>, _: &Self) -> io::Result<bool> {
            Ok(self.at(name).is_dir())
        }

        /// The names in it.
        pub(in crate::store) fn names(&self) -> io::Result<Vec<OsString>> {
            std::fs::read_dir(&self.path)?
                .map(|entry| entry.map(|entry| entry.file_name()))
                .collect()
        }

        /// Makes a folder in it.
        pub(in crate::store) fn make_folder(&self, name: impl AsRef<Path>) -> io::Result<()> {
            std::fs::create_dir(self.at(name))
        }

        /// Removes a file.
        pub(in crate::store) fn remove_file(&self, name: impl AsRef<Path>) -> io::Result<()> {
            std::fs::remove_file(self.at(name))
        }

        /// Removes an empty folder.
        pub(in crate::store) fn remove_folder(&self, name: impl AsRef<Path>) -> io::Result<()> {
            std::fs::remove_dir(self.at(name))
        }

        /// Renames a file or folder in it.
        pub(in crate::store) fn rename(
            &self,
            from: impl AsRef<Path>,
            to: impl AsRef<Path>,
        ) -> io::Result<()> {
            std::fs::rename(self.at(from), self.at(to))
        }

        pub(super) fn sync_names(&self) -> io::Result<()> {
            crate::file::sync_folder(&self.path)
        }

        /// Not reported here.
        pub(in crate::store) fn available(&self) -> Option<u64> {
            None
        }

        /// Nobody can take a folder here, so nobody knows that it is left.
        pub(in crate::store) fn claim(&self) -> io::Result<bool> {
            Ok(false)
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn an_open_folder_is_the_same_wherever_it_is_moved() {
        let dir = tempfile::tempdir().unwrap();
        let [mine, moved] = ["mine", "moved"].map(|name| dir.path().join(name));
        std::fs::create_dir(&mine).unwrap();
        let folder = Folder::open(&mine).unwrap();
        let file = folder.file("a", Access::New).unwrap();
        std::fs::rename(&mine, &moved).unwrap();
        std::fs::create_dir(&mine).unwrap();
        std::fs::write(mine.join("a"), "theirs").unwrap();
        let file = FileId::of(&file.metadata().unwrap());
        assert!(folder.is("a", file).unwrap());
        folder.rename("a", "b").unwrap();
        folder.make_folder("c").unwrap();
        assert_eq!(folder.length("b").unwrap(), 0);
        let mut names = folder.names().unwrap();
        names.sort_unstable();
        assert_eq!(names, ["b", "c"]);
        folder.remove_file("b").unwrap();
        folder.remove_folder("c").unwrap();
        assert!(folder.names().unwrap().is_empty() && !folder.is("b", file).unwrap());
        assert_eq!(std::fs::read(mine.join("a")).unwrap(), b"theirs");
    }

    #[test]
    fn links_pipes_and_folders_are_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("file"), "x").unwrap();
        for (link, target) in
            [("link", "file"), ("dangling", "nothing"), ("out", "/"), ("self", "self")]
        {
            std::os::unix::fs::symlink(target, dir.path().join(link)).unwrap();
            for refusal in [folder.file(link, Access::Read).err(), folder.folder(link).err()] {
                let refusal = refusal.unwrap().to_string();
                assert!(refusal.contains("it is a link"), "{link}: {refusal}");
            }
        }
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        folder.make_folder("folder").unwrap();
        for name in ["pipe", "folder"] {
            let refusal = folder.file(name, Access::Read).unwrap_err();
            assert!(
                matches!(&refusal, Error::Io { path, .. } if path.ends_with(name)),
                "{refusal}"
            );
        }
    }
}
