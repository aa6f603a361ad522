//! Compaction: past versions are forgotten, and the disk space of what nothing refers to any more
//! is freed.
//!
//! Live blobs of a segment that holds dead bytes are copied behind the tail, a part of it a
//! transaction, so that a change or an opening waits for a few MiB; some segments later the old
//! files go. A reader whose record is from before looks it up again.
//!
//! On a full disk there is no space for copies. Then the space of dead bytes is freed where they
//! are, as holes in their segments, and what cannot be copied even so stays where it is.
//!
//! **Invariant:** a segment's file is removed, and bytes in it are freed, only after a commit
//! in which nothing names them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};

use serde::Serialize;

use super::Store;
use super::segment::{HEADER_BYTES, Location};
use crate::{Error, Result};

/// Past versions forgotten in one transaction.
const FORGET_AT_ONCE: usize = 10_000;
/// A segment is copied in so many transactions, or fewer where its blobs are large: 8 MiB each of a
/// full one, which is how long a publisher waits for its turn.
const PARTS: u64 = 32;

/// Full segments copied before the old ones are removed.
const SEGMENTS_AT_ONCE: u64 = 4;

/// Times that copying a segment is begun where the disk is full: what was copied frees space
/// for what was not.
const ATTEMPTS: usize = 8;

/// Offset, length and node of blobs by segment; the lattice's has an empty name.
type LiveBlobs = BTreeMap<u32, Vec<(u64, u64, Box<str>)>>;

/// What a compaction did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CompactReport {
    /// Past versions forgotten.
    pub forgotten_versions: u64,
    /// Segments rewritten or found unused.
    pub removed_segments: u64,
    /// Bytes of live nodes copied.
    pub copied_bytes: u64,
    /// Dead bytes left in segments because a full disk had no space for copies of what lives beside
    /// them. Most of their space is freed even so, as holes in the files; another compaction will
    /// free the rest.
    pub left_bytes: u64,
    /// Bytes of segments and catalogue before.
    pub bytes_before: u64,
    /// Bytes of segments and catalogue after.
    pub bytes_after: u64,
}

impl Store {
    /// Forgets past versions and frees the disk space of everything in segments that nothing refers
    /// to. Reading goes on meanwhile, and changing between a few MiB and the next. `progress` is
    /// called with how many of how many segments are done. The catalogue's file keeps its length
    /// and uses its free pages again: see [`Self::compact_catalogue`].
    ///
    /// # Errors
    /// What reading and writing return. What was done until then stays done.
    pub fn compact(&self, mut progress: impl FnMut(usize, usize)) -> Result<CompactReport> {
        let mut report =
            CompactReport { bytes_before: self.file_bytes()?, ..CompactReport::default() };
        self.give_up_reserve();
        loop {
            let forgotten = self.change(|writing| {
                let mut state = writing.state()?;
                state.sequence += 1;
                writing.put_state(&state)?;
                writing.forget(FORGET_AT_ONCE)
            })?;
            report.forgotten_versions += forgotten as u64;
            if forgotten < FORGET_AT_ONCE {
                break;
            }
        }
        // First what needs no space.
        report.removed_segments = self.remove_unused()?;
        let files = self.inner.segments.files()?;
        let mut live = self.live()?;
        let mut copied_since = 0;
        for (done, &(segment, length)) in files.iter().enumerate() {
            progress(done, files.len());
            let mut blobs = live.remove(&segment).unwrap_or_default();
            blobs.sort_unstable();
            // Two nodes may share a blob.
            let distinct =
                blobs.chunk_by(|one, other| one.0 == other.0).filter_map(|same| same.first());
            let live_bytes: u64 = distinct.map(|(_, length, _)| length).sum();
            let dead_bytes = length.saturating_sub(HEADER_BYTES).saturating_sub(live_bytes);
            if dead_bytes > 0 {
                match self.empty_segment_on_any_disk(segment, &blobs)? {
                    Some(copied) => copied_since += copied,
                    None => report.left_bytes += dead_bytes,
                }
            }
            // Seldom, since it looks at every record; often enough that there is never much twice.
            if copied_since > SEGMENTS_AT_ONCE * self.inner.segments.segment_bytes
                || done + 1 == files.len()
            {
                report.copied_bytes += std::mem::take(&mut copied_since);
                report.removed_segments += self.remove_unused()?;
            }
        }
        progress(files.len(), files.len());
        self.keep_reserve();
        report.bytes_after = self.file_bytes()?;
        Ok(report)
    }

    /// Frees the catalogue's free pages. Whoever reads, in any process, waits meanwhile.
    ///
    /// # Errors
    /// What reading and writing return.
    pub fn compact_catalogue(&self) -> Result<()> {
        self.inner.catalogue.compact()
    }

    /// Bytes of segments and catalogue.
    fn file_bytes(&self) -> Result<u64> {
        self.stats().map(|stats| stats.segment_bytes + stats.catalogue_bytes)
    }

    /// The live blobs.
    fn live(&self) -> Result<LiveBlobs> {
        let mut live = LiveBlobs::new();
        let mut add = |name: &str, location: &Location| {
            live.entry(location.segment).or_default().push((
                location.offset,
                location.length,
                name.into(),
            ));
        };
        self.inner.catalogue.read(|reading| {
            add("", &reading.state()?.lattice);
            reading.each_node(None, |name, version| {
                let version = version?;
                version.locations().for_each(|location| add(name, location));
                Ok(true)
            })
        })?;
        Ok(live)
    }

    /// As [`Self::empty_segment`]; where a full disk has no space for the copies, that of dead
    /// bytes is freed first. Nothing if that is not enough.
    fn empty_segment_on_any_disk(
        &self,
        segment: u32,
        blobs: &[(u64, u64, Box<str>)],
    ) -> Result<Option<u64>> {
        for _ in 0..ATTEMPTS {
            match self.empty_segment(segment, blobs) {
                Err(Error::Io { path, source }) if is_full(&source) => match self.hollow_all() {
                    // The system cannot: the first error says more.
                    Err(Error::Io { source: hollowing, .. })
                        if hollowing.kind() == ErrorKind::Unsupported =>
                    {
                        return Err(Error::Io { path, source });
                    }
                    hollowed => hollowed?,
                },
                copied => return copied.map(Some),
            }
        }
        Ok(None)
    }

    /// Frees the space of every byte that nothing names, before the tail, in the files as they are.
    fn hollow_all(&self) -> Result<()> {
        // Without a commit: that would need space itself.
        self.inner.catalogue.hold(|writing| {
            self.check_segments()?;
            let state = writing.state()?;
            let mut named = BTreeMap::<u32, BTreeMap<u64, u64>>::new();
            let mut add = |location: &Location| {
                let end = location.offset.saturating_add(location.length);
                let ends =
                    named.entry(location.segment).or_default().entry(location.offset).or_default();
                *ends = end.max(*ends);
            };
            add(&state.lattice);
            writing.each_location(add)?;
            for (segment, length) in self.inner.segments.files()? {
                let length =
                    if segment == state.segment { state.offset.min(length) } else { length };
                let (mut dead, mut at) = (Vec::new(), HEADER_BYTES);
                for (start, end) in named.remove(&segment).unwrap_or_default() {
                    if at < start {
                        dead.push(at..start);
                    }
                    at = at.max(end);
                }
                if at < length {
                    dead.push(at..length);
                }
                // Those behind the tail are none of the store's yet.
                if segment <= state.segment && !dead.is_empty() {
                    self.inner.segments.hollow(segment, &dead)?;
                }
            }
            Ok(())
        })
    }

    /// Copies the live blobs of `segment`, ordered by offset, behind the tail, part by part;
    /// returns the bytes copied.
    fn empty_segment(&self, segment: u32, blobs: &[(u64, u64, Box<str>)]) -> Result<u64> {
        let (mut names, mut bytes, mut copied) = (BTreeSet::new(), 0, 0);
        for same in blobs.chunk_by(|one, other| one.0 == other.0) {
            if bytes >= self.inner.segments.segment_bytes / PARTS {
                copied += self.copy_behind(segment, &names)?;
                (names, bytes) = (BTreeSet::new(), 0);
            }
            names.extend(same.iter().map(|(_, _, name)| &**name));
            bytes += same[0].1;
        }
        Ok(copied + self.copy_behind(segment, &names)?)
    }

    /// Copies what `names` have in `segment` behind the tail; returns the bytes copied.
    fn copy_behind(&self, segment: u32, names: &BTreeSet<&str>) -> Result<u64> {
        let segments = &self.inner.segments;
        self.change(|writing| {
            let mut state = writing.state()?;
            if state.segment < segment {
                // Left by a change that did not happen.
                return Ok(0);
            }
            if state.segment == segment {
                (state.segment, state.offset) = (segment + 1, 0);
            }
            let mut versions = Vec::new();
            for name in names.iter().filter(|name| !name.is_empty()) {
                // Changed since it was counted: it may be elsewhere, or gone.
                versions.extend(writing.node(name)?.map(|version| (name, version)));
            }
            let locations = versions
                .iter()
                .flat_map(|(_, version)| version.locations())
                .chain([&state.lattice]);
            let here = locations.filter(|location| location.segment == segment);
            let moving: Vec<Location> = here
                .map(|location| (location.offset, *location))
                .collect::<BTreeMap<_, _>>()
                .into_values()
                .collect();
            let blobs = moving
                .iter()
                .map(|location| segments.read(location))
                .collect::<Result<Vec<_>>>()?;
            let bytes: Vec<&[u8]> = blobs.iter().map(|blob| blob.bytes()).collect();
            let (places, next) = segments.append((state.segment, state.offset), &bytes)?;
            (state.segment, state.offset) = next;
            let moved: BTreeMap<u64, Location> =
                moving.iter().map(|location| location.offset).zip(places).collect();
            let follow = |location: &mut Location| {
                if location.segment == segment {
                    *location = moved[&location.offset];
                }
            };
            follow(&mut state.lattice);
            for (name, version) in &mut versions {
                version.locations_mut().for_each(follow);
                writing.put(name, version)?;
            }
            state.sequence += 1;
            writing.put_state(&state)?;
            Ok(moving.iter().map(|location| location.length).sum())
        })
    }

    /// Removes the segments that nothing names.
    fn remove_unused(&self) -> Result<u64> {
        // Inside a change: nobody else makes a segment meanwhile.
        self.change(|writing| {
            let state = writing.state()?;
            let mut named = BTreeSet::from([state.segment, state.lattice.segment]);
            writing.each_location(|location| {
                named.insert(location.segment);
            })?;
            let mut removed = 0;
            for (segment, _) in self.inner.segments.files()? {
                if !named.contains(&segment) {
                    self.inner.segments.remove(segment)?;
                    removed += 1;
                }
            }
            Ok(removed)
        })
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}
