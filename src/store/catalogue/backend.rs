//! The catalogue's file as redb sees it: it begins behind a head of ours, every page but its first
//! has a checksum behind it, and every write, sync and change of length can be made to fail.
//!
//! redb has checksums of its own, but looks at them only when it mends a file: until then a changed
//! byte makes it lose a node, find an old one, or panic. The first page holds the database's
//! header, of which a torn write must be readable.
//!
//! **Invariant:** redb sees no page that BLAKE3 has not passed, and no page in another's place.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Bound::{self, Excluded, Included};

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

use super::wait::{Range, Waiting};
use crate::store::disk::Disk;

/// What the file begins with: this, the version (u32), and zeros.
const MAGIC: &[u8; 8] = b"PLCHCATL";
/// Version of the head and of what is behind each page.
pub(super) const CATALOGUE_VERSION: u32 = 1;
const HEAD: usize = 16;

/// Bytes of a page of redb.
const PAGE: usize = 4096;
/// Bytes of BLAKE3 behind each page. Half of it is enough: it is to find damage, and who could
/// choose a page that collides could as well write its checksum.
const SUM: usize = 16;
/// A page and its checksum.
const BLOCK: usize = PAGE + SUM;

pub(super) struct Backend {
    file: FileBackend,
    waiting: Waiting,
    disk: Disk,
}

/// Why a file cannot be a catalogue.
pub(super) enum HeadProblem {
    Io(io::Error),
    Version(u32),
    Damaged(&'static str),
}

impl From<io::Error> for HeadProblem {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn head() -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(MAGIC);
    head[8..12].copy_from_slice(&CATALOGUE_VERSION.to_le_bytes());
    head
}

impl Backend {
    /// A `new` file gets its head; that of another is checked.
    pub(super) fn new(
        mut file: File,
        new: bool,
        waiting: Waiting,
        disk: &Disk,
    ) -> Result<Self, HeadProblem> {
        if new {
            disk.write(&head(), |head| file.write_all(head))?;
        } else {
            // redb would make a new database of an empty one.
            if file.metadata()?.len() < (HEAD + BLOCK) as u64 {
                return Err(HeadProblem::Damaged("it is too short"));
            }
            let mut found = [0; HEAD];
            file.read_exact(&mut found)?;
            let version = u32::from_le_bytes(found[8..12].try_into().expect("four bytes"));
            if found[..8] != MAGIC[..] || found[12..] != [0; 4] {
                return Err(HeadProblem::Damaged("it does not begin as a catalogue does"));
            }
            if version != CATALOGUE_VERSION {
                return Err(HeadProblem::Version(version));
            }
        }
        let file =
            FileBackend::new(file).map_err(|error| HeadProblem::Io(io::Error::other(error)))?;
        Ok(Self { file, waiting, disk: disk.clone() })
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.fmt(f)
    }
}

/// Where a byte of redb's file lies in ours.
fn place(offset: u64) -> u64 {
    HEAD as u64 + offset / PAGE as u64 * BLOCK as u64 + offset % PAGE as u64
}

/// The checksum of the page at `offset`.
fn sum(offset: u64, page: &[u8]) -> [u8; SUM] {
    let hash = blake3::Hasher::new().update(&offset.to_le_bytes()).update(page).finalize();
    hash.as_bytes()[..SUM].try_into().expect("a hash is longer")
}

/// The offsets of the pages in `length` bytes from `offset` on; none for bytes of the header.
fn pages(offset: u64, length: usize) -> io::Result<Option<impl Iterator<Item = u64>>> {
    if offset.saturating_add(length as u64) <= PAGE as u64 {
        return Ok(None);
    }
    if !offset.is_multiple_of(PAGE as u64) || !length.is_multiple_of(PAGE) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "something else than whole pages was asked for",
        ));
    }
    Ok(Some((offset..offset + length as u64).step_by(PAGE)))
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        let (length, block) = (self.file.len()?.saturating_sub(HEAD as u64), BLOCK as u64);
        Ok(length / block * PAGE as u64 + (length % block).min(PAGE as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let Some(pages) = pages(offset, out.len())? else {
            return self.file.read(place(offset), out);
        };
        let mut blocks = vec![0; out.len() / PAGE * BLOCK];
        self.file.read(place(offset), &mut blocks)?;
        for ((offset, page), block) in
            pages.zip(out.chunks_exact_mut(PAGE)).zip(blocks.chunks_exact(BLOCK))
        {
            let (bytes, found) = block.split_at(PAGE);
            // Space that was never written to is zero.
            if found != sum(offset, bytes) && block.iter().any(|&byte| byte != 0) {
                let problem = format!("the BLAKE3 of the page at byte {} is wrong", place(offset));
                return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
            }
            page.copy_from_slice(bytes);
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.disk.step()?;
        self.file.set_len(place(length))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.step()?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let Some(pages) = pages(offset, data.len())? else {
            return self.disk.write(data, |data| self.file.write(place(offset), data));
        };
        let blocks = pages.zip(data.chunks_exact(PAGE));
        let blocks: Vec<u8> =
            blocks.flat_map(|(offset, page)| [page, &sum(offset, page)[..]].concat()).collect();
        self.disk.write(&blocks, |blocks| self.file.write(place(offset), blocks))
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        let (start, end) = in_other_words(start, end);
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        let (start, end) = in_other_words(start, end);
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.waiting.lock(&self.file, in_other_words(start, end), false)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.waiting.lock(&self.file, in_other_words(start, end), true)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        let (start, end) = in_other_words(start, end);
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        let (start, end) = in_other_words(start, end);
        self.file.query_lock_range(start, end)
    }
}

/// A single byte by its end. Asked for some bytes as redb 4.6 names them, its file takes the lock
/// on the whole file, too, that its versions before 4.3 know, and is shut out by whoever holds
/// that: every user who may read the file can. No such version reads a catalogue, so the same byte
/// is named otherwise. `tests/cli/store_waits.rs` holds it to that.
fn in_other_words(start: Bound<u64>, end: Bound<u64>) -> Range {
    match end {
        Included(last) if last < u64::MAX => (start, Excluded(last + 1)),
        _ => (start, end),
    }
}
