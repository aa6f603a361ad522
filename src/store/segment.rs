//! Segment files: blobs one after the other, appended and never changed. docs/format.md draws them.
//!
//! **Invariant:** only bytes that the catalogue names are read, and those are never written again: what lies behind its
//! tail was left by a change that did not happen, and is written over.
//! **Invariant:** a blob is handed out only if its BLAKE3 is the catalogue's.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use super::blob::BlobProblem;
use super::bytes::Reader;
use super::faults::Faults;
use super::not_a_link;
use crate::error::StoreDefect;
use crate::file::FileBytes;
use crate::tree::Location;
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
    folder: PathBuf,
    id: StoreId,
    /// A segment takes no blob that would make it longer than this, unless it is the first.
    pub(super) segment_bytes: u64,
    pub(super) faults: Faults,
    maps: RwLock<HashMap<u32, Arc<FileBytes>>>,
    reads: AtomicU64,
    read_bytes: AtomicU64,
}

/// Bytes of a mapped segment.
pub(super) struct Blob {
    map: Arc<FileBytes>,
    location: Location,
}

impl Blob {
    #[allow(clippy::cast_possible_truncation, reason = "it lies inside the mapping")]
    pub(super) fn bytes(&self) -> &[u8] {
        &self.map[self.location.offset as usize..][..self.location.length as usize]
    }

    #[allow(clippy::cast_possible_truncation, reason = "it lies inside the mapping")]
    fn will_need(&self) {
        self.map.will_need(self.location.offset as usize, self.location.length as usize);
    }
}

/// The file of a segment.
pub(super) fn file_name(segment: u32) -> String {
    format!("{segment:08}.seg")
}

impl Segments {
    pub(super) fn new(folder: PathBuf, id: StoreId, segment_bytes: u64, faults: Faults) -> Self {
        Self {
            folder,
            id,
            segment_bytes,
            faults,
            maps: RwLock::default(),
            reads: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
        }
    }

    pub(super) fn path(&self, segment: u32) -> PathBuf {
        self.folder.join(file_name(segment))
    }

    /// Blobs and bytes read so far.
    pub(super) fn reads(&self) -> (u64, u64) {
        (self.reads.load(Ordering::Relaxed), self.read_bytes.load(Ordering::Relaxed))
    }

    /// The bytes at `location`, if they are what the catalogue says.
    pub(super) fn read(&self, location: &Location) -> Result<Blob> {
        let map = self.map(location)?;
        let blob = Blob { map, location: *location };
        blob.will_need();
        if blake3::hash(blob.bytes()).as_bytes() != &location.blake3 {
            return Err(self.damaged(location, "its BLAKE3 is not the catalogue's"));
        }
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.read_bytes.fetch_add(location.length, Ordering::Relaxed);
        Ok(blob)
    }

    /// Names the blob at `location` in an error.
    pub(super) fn damaged(&self, location: &Location, problem: &str) -> Error {
        let part = format!("segment {} from byte {} to {}", location.segment, location.offset, end(location));
        Error::store(&self.folder, StoreDefect::Damaged { part, problem: problem.to_owned() })
    }

    /// The same for a blob that does not decode.
    pub(super) fn undecoded(&self, location: &Location, problem: BlobProblem) -> Error {
        match problem {
            BlobProblem::Damaged(problem) => self.damaged(location, problem),
            BlobProblem::Version(found) => Error::store(
                &self.folder,
                StoreDefect::FormatVersion { part: "a blob", expected: super::blob::BLOB_VERSION, found },
            ),
        }
    }

    /// The segment as far as `location` reaches at least.
    fn map(&self, location: &Location) -> Result<Arc<FileBytes>> {
        let reaches = |map: &FileBytes| (map.len() as u64) >= end(location);
        if let Some(map) = self.maps.read().expect("no thread panics holding it").get(&location.segment)
            && reaches(map)
        {
            return Ok(map.clone());
        }
        let path = self.path(location.segment);
        not_a_link(&path)?;
        let map = FileBytes::map_scattered(&path)?;
        check_header(&map, location.segment, &self.id).map_err(|defect| Error::store(&self.folder, defect))?;
        if !reaches(&map) {
            return Err(self.damaged(location, &format!("the file ends at byte {}", map.len())));
        }
        let map = Arc::new(map);
        let mut maps = self.maps.write().expect("no thread panics holding it");
        // What another process's compaction removed keeps its room on disk for as long as it is mapped.
        maps.retain(|&segment, _| self.path(segment).exists());
        maps.insert(location.segment, map.clone());
        Ok(map)
    }

    /// Writes blobs from `at` on, in a new segment where the old one is full, and waits until they are on disk. Gives
    /// their places and where the next goes. Nobody else may append meanwhile: hold the catalogue's write transaction.
    pub(super) fn append(&self, at: (u32, u64), blobs: &[&[u8]]) -> Result<(Vec<Location>, (u32, u64))> {
        self.append_whole(at, blobs).inspect_err(|_| self.give_back(at))
    }

    /// Gives back what was written from the tail on, as far as it can be: on a full disk there would be no room for any
    /// other change, not even to remove a node.
    fn give_back(&self, (mut segment, offset): (u32, u64)) {
        let path = self.path(segment);
        if offset > 0 {
            let cut = |file: std::fs::File| if file.metadata()?.len() > offset { file.set_len(offset) } else { Ok(()) };
            if not_a_link(&path).is_ok() {
                let _ = OpenOptions::new().write(true).open(path).and_then(cut);
            }
            segment += 1;
        }
        while std::fs::remove_file(self.path(segment)).is_ok() {
            segment += 1;
        }
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
                locations.push(Location { segment, offset, length, blake3: blake3::hash(blob).into() });
                offset += length;
                at += 1;
            }
            let path = self.path(segment);
            not_a_link(&path)?;
            // Opened each time: another process may have removed the file of that name and made a new one.
            let written = OpenOptions::new().write(true).open(&path).and_then(|mut file| {
                file.seek(SeekFrom::Start(start))?;
                self.faults.write(&bytes, |bytes| file.write_all(bytes))?;
                self.faults.step()?;
                file.sync_data()
            });
            written.map_err(|error| Error::io(path, error))?;
        }
        Ok((locations, (segment, offset)))
    }

    /// Makes an empty segment, in place of one that a change left which did not happen.
    fn create(&self, segment: u32) -> Result<()> {
        let path = self.path(segment);
        let create = || {
            self.faults.step()?;
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
            self.faults.write(&header(segment, &self.id), |bytes| file.write_all(bytes))?;
            self.faults.step()?;
            file.sync_all()?;
            sync_folder(&self.folder, &self.faults)
        };
        create().map_err(|error| Error::io(&path, error))
    }

    /// Numbers and lengths of the segment files there are.
    pub(super) fn files(&self) -> Result<Vec<(u32, u64)>> {
        let list = || -> io::Result<Vec<(u32, u64)>> {
            let mut files = Vec::new();
            for entry in std::fs::read_dir(&self.folder)? {
                let entry = entry?;
                let name = entry.file_name();
                let number = name.to_str().and_then(|name| name.strip_suffix(".seg")?.parse().ok());
                // What is not named as segments are is not ours.
                let Some(number) = number.filter(|&number| name == *file_name(number)) else { continue };
                match entry.metadata() {
                    Ok(metadata) => files.push((number, metadata.len())),
                    // A compaction has removed it since the folder was listed.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            files.sort_unstable();
            Ok(files)
        };
        list().map_err(|error| Error::io(&self.folder, error))
    }

    /// Removes a segment that nothing names any more.
    pub(super) fn remove(&self, segment: u32) -> Result<()> {
        self.maps.write().expect("no thread panics holding it").remove(&segment);
        let path = self.path(segment);
        let removed = self.faults.step().and_then(|()| std::fs::remove_file(&path));
        removed.map_err(|error| Error::io(path, error))
    }
}

fn end(location: &Location) -> u64 {
    location.offset.saturating_add(location.length)
}

/// Makes the names in a folder last.
pub(super) fn sync_folder(folder: &Path, faults: &Faults) -> io::Result<()> {
    faults.step()?;
    crate::file::sync_folder(folder)
}

fn header(segment: u32, id: &StoreId) -> Vec<u8> {
    let mut out = [&MAGIC[..], &VERSION.to_le_bytes(), &segment.to_le_bytes(), id].concat();
    let hash = blake3::hash(&out);
    out.extend(hash.as_bytes());
    out
}

fn check_header(bytes: &[u8], segment: u32, id: &StoreId) -> Result<(), StoreDefect> {
    let damaged = |problem: &str| StoreDefect::Damaged { part: file_name(segment), problem: problem.to_owned() };
    let mut reader = Reader(bytes);
    if reader.bytes(8).map_err(damaged)? != MAGIC {
        return Err(damaged("it does not begin as a segment does"));
    }
    let found = reader.u32().map_err(damaged)?;
    if found != VERSION
        && bytes.get(..32).map(blake3::hash).is_some_and(|hash| bytes.get(32..64) == Some(hash.as_bytes()))
    {
        return Err(StoreDefect::FormatVersion { part: "a segment", expected: VERSION, found });
    }
    if bytes.get(..64) == Some(&header(segment, id)) { Ok(()) } else { Err(damaged("its header is not this store's")) }
}
