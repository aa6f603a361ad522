//! What the fuzzers and the saved inputs run: any bytes as a segment, and as a catalogue.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::catalogue::{CATALOGUE_FILE, decodes};
use super::{SEGMENT_FOLDER, Store, StoreOptions, blob, segment};
use crate::error::StoreDefect;
use crate::{Error, Result};

fn refused(problem: &str) -> Error {
    let (part, problem) = ("the bytes".to_owned(), problem.to_owned());
    Error::store(Path::new("bytes"), StoreDefect::Damaged { part, problem })
}

/// Reads a segment's header and, behind it, one blob: of a node, or of a lattice.
///
/// # Errors
/// Where they are neither.
///
/// # Panics
/// If deltas that were decoded are not encoded to the same bytes.
pub fn read_segment_bytes(bytes: &[u8]) -> Result<()> {
    let bytes =
        segment::after_header(bytes).map_err(|defect| Error::store(Path::new("bytes"), defect))?;
    if let Ok(node) = blob::decode_node(bytes) {
        assert!(
            blob::encode_node(&node) == bytes,
            "it is encoded to other bytes than it was decoded from"
        );
        return Ok(());
    }
    blob::decode_lattice(bytes).map(drop).map_err(|_| refused("no blob of a node or a lattice"))
}

/// Opens the bytes of a catalogue's file and asks it everything; behind a zero, reads them as the
/// payload of a record.
///
/// # Errors
/// Where they are neither.
pub fn read_catalogue_bytes(bytes: &[u8]) -> Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);

    if let [0, payload @ ..] = bytes {
        return if decodes(payload) { Ok(()) } else { Err(refused("no record")) };
    }
    let name =
        format!("pleach-bytes-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let folder = std::env::temp_dir().join(name);
    let io = |error| Error::io(&folder, error);
    std::fs::create_dir_all(folder.join(SEGMENT_FOLDER)).map_err(io)?;
    let asked =
        std::fs::write(folder.join(CATALOGUE_FILE), bytes).map_err(io).and_then(|()| ask(&folder));
    std::fs::remove_dir_all(&folder).map_err(io)?;
    asked
}

fn ask(folder: &Path) -> Result<()> {
    let store =
        Store::open_with(folder, &StoreOptions { read_only: true, ..StoreOptions::default() })?;
    for node in store.list("", None, 1000)? {
        store.path(&node.name)?;
        store.history(&node.name)?;
        store.children(&node.name, None, 1000)?;
    }
    store.stats().map(drop)
}
