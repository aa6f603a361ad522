//! Segment files: blobs one after the other, appended and never changed. docs/format.md draws them.
//!
//! **Invariant:** only bytes that the catalogue names are read, and those are never written again:
//! what lies behind its tail was left by a change that did not happen, and is written over.
//! **Invariant:** a blob is handed out only if its BLAKE3 is the catalogue's.
//! **Invariant:** no segment of another store is written to, cut or removed, whatever its name.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use super::blob::BlobProblem;
use super::bytes::Reader;
use super::disk::Disk;
use super::folder::{self, Access, Folder};
use crate::error::StoreDefect;
use crate::file::FileBytes;
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"PLCHSEGM";
const VERSION: u32 = 1;
/// Magic, version, number, the store's id, and BLAKE3 of those.
pub(super) const HEADER_BYTES: u64 = 64;
/// Largest blob.
pub(super) const MAX_BLOB_BYTES: u64 = 4 << 30;

/// Identifies a store, so that no segment of another is taken for one of its own.
pub(super) type StoreId = [u8; 16];

/// The segment files of a store.
pub(super) struct Segments {
    folder: Folder,
    id: StoreId,
    /// A segment takes no blob that would make it longer than this, unless it is the first.
    pub(super) segment_bytes: u64,
    pub(super) disk: Disk,
    maps: RwLock<HashMap<u32, Arc<FileBytes>>>,
    reads: AtomicU64,
    read_bytes: AtomicU64,
}

/// Bytes in a segment file of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Location {
    /// Number of the segment.
    pub segment: u32,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// BLAKE3 of the bytes.
    pub blake3: [u8; 32],
}

/// Bytes of a mapped segment.
pub(super) struct Blob {
    /// A copy: what was checked is what is used, also where a full disk's compaction makes a hole
    /// of the place meanwhile.
    bytes: Vec<u8>,
}

impl Blob {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// The file of a segment.
pub(super) fn file_name(segment: u32) -> String {
    format!("{segment:08}.seg")
}

/// Whether a file is called as those of segments are.
pub(super) fn is_file_name(name: &str) -> bool {
    number_of(name).is_some()
}

fn number_of(name: &str) -> Option<u32> {
    let number = name.strip_suffix(".seg")?.parse().ok()?;
    (name == file_name(number)).then_some(number)
}

impl Segments {
    pub(super) fn new(folder: Folder, id: StoreId, segment_bytes: u64, disk: Disk) -> Self {
        Self {
            folder,
            id,
            segment_bytes,
            disk,
            maps: RwLock::default(),
            reads: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
        }
    }

    fn path(&self, segment: u32) -> PathBuf {
        self.folder.at(file_name(segment))
    }

    /// Their folder.
    pub(super) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Blobs and bytes read so far.
    pub(super) fn reads(&self) -> (u64, u64) {
        (self.reads.load(Ordering::Relaxed), self.read_bytes.load(Ordering::Relaxed))
    }

    /// The bytes at `location`, if they are what the catalogue says.
    #[allow(clippy::cast_possible_truncation, reason = "it lies inside the mapping")]
    pub(super) fn read(&self, location: &Location) -> Result<Blob> {
        let map = self.map(location)?;
        let (offset, length) = (location.offset as usize, location.length as usize);
        map.will_need(offset, length);
        let blob = Blob { bytes: map[offset..][..length].to_vec() };
        if blake3::hash(blob.bytes()).as_bytes() != &location.blake3 {
            return Err(self.damaged(location, "its BLAKE3 is not the catalogue's"));
        }
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.read_bytes.fetch_add(location.length, Ordering::Relaxed);
        Ok(blob)
    }

    /// Names the blob at `location` in an error.
    pub(super) fn damaged(&self, location: &Location, problem: &str) -> Error {
        let part = format!(
            "segment {} from byte {} to {}",
            location.segment,
            location.offset,
            end(location)
        );
        Error::store(self.folder.path(), StoreDefect::Damaged { part, problem: problem.to_owned() })
    }

    /// The same for a blob that does not decode.
    pub(super) fn undecoded(&self, location: &Location, problem: BlobProblem) -> Error {
        match problem {
            BlobProblem::Damaged(problem) => self.damaged(location, problem),
            BlobProblem::Version(found) => Error::store(
                self.folder.path(),
                StoreDefect::FormatVersion {
                    part: "a blob",
                    expected: super::blob::BLOB_VERSION,
                    found,
                },
            ),
        }
    }

    /// The segment as far as `location` reaches at least.
    fn map(&self, location: &Location) -> Result<Arc<FileBytes>> {
        let reaches = |map: &FileBytes| (map.len() as u64) >= end(location);
        if let Some(map) =
            self.maps.read().expect("no thread panics holding it").get(&location.segment)
            && reaches(map)
        {
            return Ok(map.clone());
        }
        let name = file_name(location.segment);
        let map = FileBytes::map_scattered(
            &self.folder.file(&name, Access::Read)?,
            &self.folder.at(&name),
        )?;
        check_header(&map, location.segment, &self.id)
            .map_err(|defect| Error::store(self.folder.path(), defect))?;
        if !reaches(&map) {
            return Err(self.damaged(location, &format!("the file ends at byte {}", map.len())));
        }
        let map = Arc::new(map);
        let mut maps = self.maps.write().expect("no thread panics holding it");
        // What another process's compaction removed keeps its space on disk for as long as it is
        // mapped.
        maps.retain(|&segment, _| self.folder.length(file_name(segment)).is_ok());
        maps.insert(location.segment, map.clone());
        Ok(map)
    }

    /// Writes blobs from `at` on, in a new segment where the old one is full, and waits until they
    /// are on disk. Returns their places and where the next goes. Nobody else may append meanwhile:
    /// hold the catalogue's write transaction.
    pub(super) fn append(
        &self,
        at: (u32, u64),
        blobs: &[&[u8]],
    ) -> Result<(Vec<Location>, (u32, u64))> {
        self.append_whole(at, blobs).inspect_err(|_| self.free_from(at))
    }

    /// Frees what was written from the tail on, as far as it can be: on a full disk there would be
    /// no space for any other change, not even to remove a node.
    fn free_from(&self, (mut segment, offset): (u32, u64)) {
        if offset > 0 {
            let cut = |file: File| {
                if file.metadata()?.len() > offset { file.set_len(offset) } else { Ok(()) }
            };
            let _ = self.own(segment, Access::Write).map(cut);
            segment += 1;
        }
        while self.clear(segment).is_ok_and(|there| there) {
            segment += 1;
        }
    }

    /// Opens a segment of this store.
    fn own(&self, segment: u32, access: Access) -> Result<File> {
        let name = file_name(segment);
        let mut file = self.folder.file(&name, access)?;
        let found =
            first_bytes(&mut file).map_err(|error| Error::io(self.folder.at(&name), error))?;
        check_header(&found, segment, &self.id)
            .map_err(|defect| Error::store(self.folder.path(), defect))?;
        Ok(file)
    }

    /// Removes the file of a segment, whatever is in it, unless that is another store's; false if
    /// there is none.
    fn clear(&self, segment: u32) -> Result<bool> {
        let name = file_name(segment);
        let io = |error| Error::io(self.folder.at(&name), error);
        let mut file = match self.folder.file(&name, Access::Read) {
            Ok(file) => file,
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let found = first_bytes(&mut file).map_err(io)?;
        // One that was not finished may begin with anything.
        if owner(&found).is_some_and(|id| id != self.id) {
            let (part, problem) = (name, "its header is not this store's".to_owned());
            return Err(Error::store(self.folder.path(), StoreDefect::Damaged { part, problem }));
        }
        self.folder.remove_file(&name).map(|()| true).map_err(io)
    }

    fn append_whole(&self, at: (u32, u64), blobs: &[&[u8]]) -> Result<(Vec<Location>, (u32, u64))> {
        let (mut segment, mut offset) = at;
        let mut locations = Vec::with_capacity(blobs.len());
        let mut at = 0;
        while at < blobs.len() {
            if offset > HEADER_BYTES && offset + blobs[at].len() as u64 > self.segment_bytes {
                (segment, offset) = (segment + 1, 0);
            }
            if offset == 0 {
                self.create(segment)?;
                offset = HEADER_BYTES;
            }
            // As many as fit go in one write.
            let (start, mut bytes) = (offset, Vec::new());
            while let Some(blob) = blobs.get(at) {
                let length = blob.len() as u64;
                if offset > HEADER_BYTES && offset + length > self.segment_bytes {
                    break;
                }
                bytes.extend_from_slice(blob);
                locations.push(Location {
                    segment,
                    offset,
                    length,
                    blake3: blake3::hash(blob).into(),
                });
                offset += length;
                at += 1;
            }
            // Opened each time: another process may have removed the file of that name and made a
            // new one.
            let mut file = self.own(segment, Access::Write)?;
            let written = file.seek(SeekFrom::Start(start)).and_then(|_| {
                self.disk.write(&bytes, |bytes| file.write_all(bytes))?;
                self.disk.step()?;
                file.sync_data()
            });
            written.map_err(|error| Error::io(self.path(segment), error))?;
        }
        Ok((locations, (segment, offset)))
    }

    /// Makes an empty segment, in place of one that a change left which did not happen.
    fn create(&self, segment: u32) -> Result<()> {
        let io = |error| Error::io(self.path(segment), error);
        self.disk.step().map_err(io)?;
        self.clear(segment)?;
        let mut file = self.folder.file(file_name(segment), Access::New)?;
        let written = self
            .disk
            .write(&header(segment, &self.id), |bytes| file.write_all(bytes))
            .and_then(|()| {
                self.disk.step()?;
                file.sync_all()?;
                self.folder.sync(&self.disk)
            });
        written.map_err(io)
    }

    /// Frees the disk space of bytes that nothing names, where the system can: they read as zeros
    /// then, and the file keeps its length. Whoever still reads them finds their BLAKE3 wrong, and
    /// looks up again.
    pub(super) fn hollow(&self, segment: u32, dead: &[std::ops::Range<u64>]) -> Result<()> {
        let io = |error| Error::io(self.path(segment), error);
        let file = self.own(segment, Access::Write)?;
        for range in dead {
            self.disk.step().and_then(|()| folder::hollow(&file, range)).map_err(io)?;
        }
        Ok(())
    }

    /// Numbers and lengths of the segment files there are.
    pub(super) fn files(&self) -> Result<Vec<(u32, u64)>> {
        let list = || -> io::Result<Vec<(u32, u64)>> {
            let mut files = Vec::new();
            for name in self.folder.names()? {
                // What is not named as segments are is not ours.
                let Some(number) = name.to_str().and_then(number_of) else { continue };
                match self.folder.length(file_name(number)) {
                    Ok(length) => files.push((number, length)),
                    // A compaction has removed it since the folder was listed.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            files.sort_unstable();
            Ok(files)
        };
        list().map_err(|error| Error::io(self.folder.path(), error))
    }

    /// Removes a segment that nothing names any more.
    pub(super) fn remove(&self, segment: u32) -> Result<()> {
        self.maps.write().expect("no thread panics holding it").remove(&segment);
        self.disk.step().map_err(|error| Error::io(self.path(segment), error))?;
        self.clear(segment).map(drop)
    }
}

fn end(location: &Location) -> u64 {
    location.offset.saturating_add(location.length)
}

/// The bytes of a header, fewer where the file is shorter.
fn first_bytes(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.take(HEADER_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The store whose segment begins so, of whatever version and number.
fn owner(header: &[u8]) -> Option<StoreId> {
    let (stated, hash) = header.split_at_checked(32)?;
    let sound = stated[..8] == MAGIC[..] && hash == blake3::hash(stated).as_bytes();
    sound.then(|| stated[16..].try_into().ok()).flatten()
}

fn header(segment: u32, id: &StoreId) -> Vec<u8> {
    let mut out = [&MAGIC[..], &VERSION.to_le_bytes(), &segment.to_le_bytes(), id].concat();
    let hash = blake3::hash(&out);
    out.extend(hash.as_bytes());
    out
}

/// Checks the header of the first segment of any store; returns what follows.
#[cfg(feature = "testing")]
pub(super) fn after_header(bytes: &[u8]) -> Result<&[u8], StoreDefect> {
    let id = owner(bytes.get(..64).unwrap_or_default()).unwrap_or_default();
    check_header(bytes, 1, &id)?;
    Ok(&bytes[64..])
}

fn check_header(bytes: &[u8], segment: u32, id: &StoreId) -> Result<(), StoreDefect> {
    let damaged = |problem: &str| StoreDefect::Damaged {
        part: file_name(segment),
        problem: problem.to_owned(),
    };
    let mut reader = Reader(bytes);
    if reader.bytes(8).map_err(damaged)? != MAGIC {
        return Err(damaged("it does not begin as a segment does"));
    }
    let found = reader.u32().map_err(damaged)?;
    if found != VERSION
        && bytes
            .get(..32)
            .map(blake3::hash)
            .is_some_and(|hash| bytes.get(32..64) == Some(hash.as_bytes()))
    {
        return Err(StoreDefect::FormatVersion { part: "a segment", expected: VERSION, found });
    }
    if bytes.get(..64) == Some(&header(segment, id)) {
        Ok(())
    } else {
        Err(damaged("its header is not this store's"))
    }
}
