//! A store: the compiled deltas of a tree on disk, published to while they are served.
//!
//! A store is a folder; docs/format.md draws its bytes. It opens at once however many nodes it
//! has: only the catalogue's first pages are read. It holds deltas *compiled* for one base and one
//! lattice, since that is what a switch needs: a cold switch reads, checks and copies, and
//! compiles nothing. It also holds the lattice itself (names, steps, largest integers), so that
//! publishing needs no base.
//!
//! **Three parts.** *Segments* are append-only files of blobs. The *catalogue* (redb) says which
//! blob is which version of which node. In memory are the versions that somebody holds
//! (`nodes/stored.rs`), found again by parent, name and generation.
//!
//! **Changes** (`change.rs`, `apply.rs`). Contents are compiled and encoded before anything is
//! locked. Inside redb's write transaction, which excludes all other writers in all processes, the
//! blobs go behind the tail and are synced; then the records and the new tail are committed.
//!
//! **Generations** count over the whole store, so nothing that is removed and made again can be
//! mistaken for what it was. A version also has the generation that brought its *content*; moving
//! and rolling back keep that. A node records the content of the parent it was trained on, and is
//! stale if that, or the same of an ancestor, is no longer what it hangs under: rolling the parent
//! back mends it, moving a whole subtree does not break it.
//!
//! **Versions.** Resolving a name compares its path in one committed state with the versions that
//! are held, keeps those that still hold, and makes new ones from the first difference down. A
//! version holds those above it: a runtime that stands on a replaced version still knows what it
//! added and finds the way from there, and the caches never hold one version for another. What
//! nobody holds is forgotten by itself.
//!
//! **Tiers.** Disk, memory, device: `Store::read` behind one `DeltaCache` in memory and one on a
//! GPU (`nodes/cache.rs`), each with its budget and counters; the current path is pinned. A hit
//! looks up the path in the catalogue, marks a use in O(log n), and evicts nothing unless the
//! budget is exceeded.
//!
//! **One folder.** An open store is its folder, not its path (`folder.rs`). Before a change, the
//! catalogue, the segments and the store's id must be those that were opened; a segment is
//! appended to or removed only if its header does not name another store. The catalogue is opened
//! for reading, and to write at the first change; readers wait for no change (`catalogue/wait.rs`
//! says for whom what waits does). Where the file may not be written it is opened for reading
//! (`catalogue/open.rs`), which waits for nobody and shares it with those who write; only the
//! mending of what a killed writer left needs one who may.
//!
//! **Damage.** redb looks at its checksums only when it mends a file, so `catalogue/backend.rs`
//! puts 16 bytes of BLAKE3 behind each page and compares them at every read. A record's BLAKE3
//! covers its key, a blob's is in its record, a segment's header names store and number. A name
//! whose link is there but not its record is damage, not an unknown node. Should redb panic,
//! `catalogue/mod.rs` makes an error of it; after that or a failed write it opens the database
//! again, so a full disk does not end a server. `Store::verify` looks at every page, record and
//! byte; with `deep` it also counts every row's bound again. Whoever finds a file gone looks up
//! again (`again`).
//!
//! **Disk space.** Compaction (`compact.rs`) forgets past versions and rewrites segments that hold
//! dead bytes, a few MiB a transaction; files go only after a commit in which nothing names them:
//! dead ones first, the others every gigabyte, so that a full disk can be emptied. A change that
//! could not write its bytes cuts them off again. A mebibyte (`reserve.rs`) is freed where a
//! removal would find no space, and where there is none for copies dead blocks become holes
//! (Linux).
//!
//! **Tests.** `tests/store_damage.rs` changes bytes (`PLEACH_DAMAGE_STRIDE=1`: every one) and cuts
//! files short; `store_crash.rs` makes every write, sync, rename and removal fail in turn;
//! `store_kill.rs` kills processes; `store_walk.rs` walks at random beside a model in memory;
//! `store_edges.rs` and `store_full.rs` are about full disks, read-only files and names that trade
//! places, `store_swaps.rs` about stores that do, `store_processes.rs` about several programs.
//!
//! **Invariant:** what a change returns from is on disk whole; a change that fails has not
//! happened.
//! **Invariant:** the catalogue never names bytes that are not on disk.
//! **Invariant:** bytes that it names are never written again, so reading a blob needs no lock.
//! **Invariant:** nothing inside a change reads through the catalogue's other end: it may have to
//! open the database again, which waits for the change.
//! **Invariant:** bytes are used only if their BLAKE3 is the one written with them.

mod after;
mod apply;
mod blob;
mod bytes;
mod catalogue;
mod change;
mod compact;
mod disk;
mod export;
#[cfg(feature = "testing")]
mod faults;
mod fits;
mod folder;
#[cfg(feature = "testing")]
mod fuzzed;
mod import;
mod look;
mod making;
mod publishable;
mod reserve;
mod segment;
#[cfg(test)]
mod tests;
mod verify;

use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use catalogue::{Ending, NodeKind, PastVersion, Version};
pub use change::{Changes, Content, Details};
pub use compact::CompactReport;
pub use export::ExportReport;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub use faults::{Faults, StoreOptions};
pub use fits::{FitReport, NodeFit, PathFit, check_path};
#[cfg(feature = "testing")]
#[doc(hidden)]
pub use fuzzed::{read_catalogue_bytes, read_segment_bytes};
pub use import::{ImportOptions, ImportReport};
pub use look::{StoreNode, StoreStats};
pub use making::abandon_unfinished;
pub use verify::StoreReport;

use crate::base::BaseModel;
use crate::compile::CompiledNode;
use crate::error::StoreDefect;
use crate::lattice::BaseLattice;
use crate::tree::normal;
use crate::{Error, Result};
use blob::{decode_lattice, decode_node, encode_lattice};
use catalogue::{CATALOGUE_FILE, Catalogue, Header, State, Step, Writing};
use disk::Disk;
use folder::Folder;
use making::Making;
pub use segment::Location;
use segment::{Blob, Segments};

/// The folder of the segments in a store's folder.
const SEGMENT_FOLDER: &str = "segments";
/// A segment takes no node that would make it longer than this: so long that a million small
/// leaves (18 GB) lie in some seventy files, each mapped once, and so short that a compaction, which
/// removes an old one after its copy is committed, needs space for a few of them alone.
const SEGMENT_BYTES: u64 = 256 << 20;

/// Times that bytes which are not where they were are looked up again: each of them takes another
/// compaction that ends between the two steps of one look.
const LOOKS: usize = 3;

/// A store of compiled deltas. Clones are the same store.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    folder: Arc<Folder>,
    header: Header,
    catalogue: Catalogue,
    segments: Segments,
    lattice: OnceLock<Arc<BaseLattice>>,
}

/// What a store is made for.
#[derive(Clone, Debug, Default)]
pub struct StoreInfo {
    /// What the base is called.
    pub base_name: String,
    /// The base's content hash, hexadecimal: [`BaseModel::content_hash`].
    pub base_hash: String,
    /// The tree's name.
    pub tree_name: Option<String>,
    /// Names of the levels from depth 1 down.
    pub levels: Vec<String>,
}

/// How a store is opened.
#[derive(Clone, Debug)]
struct Options {
    /// What its steps to disk pass.
    disk: Disk,
    /// Longest segment, in bytes.
    segment_bytes: u64,
    /// Only to be read, also where it could be written.
    read_only: bool,
    /// Longest wait for another process.
    wait_limit: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            disk: Disk::default(),
            segment_bytes: SEGMENT_BYTES,
            read_only: false,
            wait_limit: None,
        }
    }
}

/// A name as nodes have it: without slashes around it, in NFC; empty for the root.
fn clean_name(name: &str) -> String {
    normal(name.trim_matches('/')).into_owned()
}

impl Store {
    /// Whether `folder` holds a store.
    pub fn is_store(folder: &Path) -> bool {
        folder.join(CATALOGUE_FILE).is_file()
    }

    /// Makes an empty store in `folder`, which must not exist or be empty. A crash leaves no store,
    /// or an empty one.
    ///
    /// # Errors
    /// [`StoreDefect::Exists`], and what writing returns.
    pub fn create(folder: &Path, info: StoreInfo, lattice: &BaseLattice) -> Result<Self> {
        Self::create_by(folder, info, lattice, &Options::default())
    }

    fn create_by(
        folder: &Path,
        info: StoreInfo,
        lattice: &BaseLattice,
        options: &Options,
    ) -> Result<Self> {
        let (made, ()) = Self::make(folder, info, lattice, options, |_| Ok(()))?;
        Self::open_in(made, options)
    }

    /// Makes a store that holds what `fill` puts into it. It is made beside its place and renamed
    /// there at the end, so that half a store is never taken for one. Returns its
    /// folder and what `fill` returned.
    fn make<T>(
        folder: &Path,
        info: StoreInfo,
        lattice: &BaseLattice,
        options: &Options,
        fill: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<(Arc<Folder>, T)> {
        let disk = &options.disk;
        let making = Making::begin(folder, disk)?;
        let id = making.id();
        let segments = Segments::new(
            making.folder().folder(SEGMENT_FOLDER)?,
            id,
            options.segment_bytes,
            disk.clone(),
        );
        let (locations, (segment, offset)) =
            segments.append((1, 0), &[&encode_lattice(lattice)])?;
        let state = State { sequence: 0, generation: 0, segment, offset, lattice: locations[0] };
        let header = Header {
            id,
            base_name: info.base_name,
            base_hash: info.base_hash,
            lattice_hash: lattice.hash().into(),
            headroom: lattice.headroom(),
            tree_name: info.tree_name,
            levels: info.levels,
            created_ms: apply::now_ms(),
        };
        Catalogue::create(making.folder().clone(), &header, &state, options)?;
        reserve::make(making.folder(), disk);
        let filled = fill(&Self::open_in(making.folder().clone(), options)?)?;
        Ok((making.finish(disk)?, filled))
    }

    /// Opens the store in `folder`. Nothing but the catalogue's first pages is read, and nobody is
    /// waited for, unless a program that wrote ended in the middle: then what it left is tidied up
    /// first. Where the files may not be written, the store can be read, and follows what others
    /// publish: a change is refused.
    ///
    /// It is this folder that is open, wherever it is moved, and not what may take its name.
    ///
    /// # Errors
    /// [`StoreDefect::NotAStore`], [`StoreDefect::FormatVersion`], [`StoreDefect::Damaged`],
    /// [`StoreDefect::Locked`], [`StoreDefect::Unfinished`].
    pub fn open(folder: &Path) -> Result<Self> {
        Self::open_by(folder, &Options::default())
    }

    /// The same; whatever waits for another process then waits no longer than `limit`, and is
    /// [`StoreDefect::Busy`].
    ///
    /// # Errors
    /// As [`Self::open`], and [`StoreDefect::Busy`].
    pub fn open_within(folder: &Path, limit: Duration) -> Result<Self> {
        Self::open_by(folder, &Options { wait_limit: Some(limit), ..Options::default() })
    }

    fn open_by(folder: &Path, options: &Options) -> Result<Self> {
        Self::open_in(
            Arc::new(Folder::open(folder).map_err(|error| Error::io(folder, error))?),
            options,
        )
    }

    fn open_in(folder: Arc<Folder>, options: &Options) -> Result<Self> {
        if matches!(folder.length(CATALOGUE_FILE), Err(error) if error.kind() == ErrorKind::NotFound)
        {
            return Err(Error::store(
                folder.path(),
                StoreDefect::NotAStore { missing: CATALOGUE_FILE },
            ));
        }
        let (catalogue, header) = Catalogue::open(folder.clone(), options)?;
        let disk = options.disk.clone();
        let segments =
            Segments::new(folder.folder(SEGMENT_FOLDER)?, header.id, options.segment_bytes, disk);
        Ok(Self {
            inner: Arc::new(Inner {
                folder,
                header,
                catalogue,
                segments,
                lattice: OnceLock::new(),
            }),
        })
    }

    /// Its folder, where it was when it was opened.
    pub fn folder(&self) -> &Path {
        self.inner.folder.path()
    }

    /// Makes a change to this store. Inside the catalogue's change nobody else appends or removes
    /// bytes; that the segments still lie beside the catalogue is looked at first.
    fn change<T>(&self, work: impl FnOnce(&mut Writing<'_>) -> Step<T>) -> Result<T> {
        self.inner.catalogue.write(|writing| {
            self.check_segments()?;
            work(writing)
        })
    }

    /// Refuses segments that do not lie beside the catalogue any more.
    fn check_segments(&self) -> Result<()> {
        let (folder, segments) = (&self.inner.folder, self.inner.segments.folder());
        match folder.holds(SEGMENT_FOLDER, segments) {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.defect(StoreDefect::Replaced)),
            Err(error) => Err(Error::io(segments.path(), error)),
        }
    }

    /// What it was made for.
    pub fn info(&self) -> StoreInfo {
        let Header { base_name, base_hash, tree_name, levels, .. } = self.inner.header.clone();
        StoreInfo { base_name, base_hash, tree_name, levels }
    }

    /// The headroom of its lattice.
    pub fn headroom(&self) -> f32 {
        self.inner.header.headroom
    }

    /// The lattice its deltas are compiled for.
    ///
    /// # Errors
    /// When it cannot be read or is damaged.
    pub fn lattice(&self) -> Result<Arc<BaseLattice>> {
        if let Some(lattice) = self.inner.lattice.get() {
            return Ok(lattice.clone());
        }
        let segments = &self.inner.segments;
        let lattice = again(|| {
            let location = self.inner.catalogue.read(|reading| Ok(reading.state()?.lattice))?;
            let lattice = decode_lattice(self.blob(&location)?.bytes())
                .map_err(|problem| segments.undecoded(&location, problem))?;
            if lattice.hash().as_bytes() != &self.inner.header.lattice_hash {
                return Err(segments
                    .damaged(&location, "the lattice is not the one the store was made with"));
            }
            Ok(lattice)
        })?;
        Ok(self.inner.lattice.get_or_init(|| Arc::new(lattice)).clone())
    }

    /// Refuses another base than the store's.
    ///
    /// # Errors
    /// [`StoreDefect::WrongBase`].
    pub fn check_base(&self, base: &BaseModel) -> Result<()> {
        let (expected, found) = (&self.inner.header.base_hash, base.content_hash());
        if expected.eq_ignore_ascii_case(found) {
            return Ok(());
        }
        let name = self.inner.header.base_name.clone();
        Err(self.defect(StoreDefect::WrongBase {
            name,
            expected: expected.clone(),
            found: found.to_owned(),
        }))
    }

    /// Refuses another lattice than the store's.
    ///
    /// # Errors
    /// [`StoreDefect::Lattice`].
    pub fn check_lattice(&self, lattice: &BaseLattice) -> Result<()> {
        self.check_lattice_hash(lattice.hash())
    }

    fn check_lattice_hash(&self, found: blake3::Hash) -> Result<()> {
        let expected = blake3::Hash::from(self.inner.header.lattice_hash);
        if expected == found {
            return Ok(());
        }
        let [expected, found] = [expected, found].map(|hash| hash.to_hex().to_string());
        Err(self.defect(StoreDefect::Lattice { expected, found }))
    }

    /// Refuses another headroom than the store's, and returns the store's.
    ///
    /// # Errors
    /// [`StoreDefect::Headroom`].
    #[allow(clippy::float_cmp, reason = "the same number or another")]
    pub fn check_headroom(&self, asked: Option<f32>) -> Result<f32> {
        let expected = self.headroom();
        match asked {
            Some(found) if found != expected => {
                Err(self.defect(StoreDefect::Headroom { expected, found }))
            }
            _ => Ok(expected),
        }
    }

    /// Reads the compiled deltas that lie at `location` ([`Version::location`]).
    ///
    /// # Errors
    /// When the segment is gone (a compaction may have moved the bytes: look the node up again) or
    /// damaged.
    pub fn read(&self, location: &Location) -> Result<CompiledNode> {
        let blob = self.blob(location)?;
        decode_node(blob.bytes())
            .map_err(|problem| self.inner.segments.undecoded(location, problem))
    }

    /// The bytes at `location`.
    fn blob(&self, location: &Location) -> Result<Blob> {
        self.inner.segments.read(location).map_err(|error| self.or_gone(error))
    }

    /// The error about a file that is not there; or the one about a store that is not.
    fn or_gone(&self, error: Error) -> Error {
        match error {
            Error::Io { source, .. }
                if source.kind() == ErrorKind::NotFound
                    && self.inner.folder.length(CATALOGUE_FILE).is_err() =>
            {
                self.defect(StoreDefect::Replaced)
            }
            error => error,
        }
    }

    fn defect(&self, defect: StoreDefect) -> Error {
        Error::store(self.folder(), defect)
    }
}

/// Looks something up and reads it, once more if the file was gone, or did not hold it any more: a
/// compaction has moved the bytes in between.
pub(crate) fn again<T>(mut work: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 0..LOOKS {
        match work() {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
            Err(Error::Store { defect, .. }) if matches!(*defect, StoreDefect::Damaged { .. }) => {}
            result => return result,
        }
    }
    work()
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("folder", &self.folder()).finish_non_exhaustive()
    }
}
