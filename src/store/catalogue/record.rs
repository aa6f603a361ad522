//! What the catalogue's tables hold, and the frame around each record. docs/format.md draws it.
//!
//! **Invariant:** bincode sees no byte that BLAKE3 has not passed. The hash covers the key, too: a
//! record that turns up under another key is refused.

use std::collections::BTreeMap;

use bincode::Options;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::store::segment::Location;

const MAGIC: &[u8; 4] = b"PLCR";
/// Version of the frame and of every record in it.
pub(in crate::store) const RECORD_VERSION: u32 = 1;
/// Magic, version, length, BLAKE3.
const FRAME_BYTES: usize = 4 + 4 + 4 + 32;
/// Longest record.
const MAX_RECORD_BYTES: u64 = 1 << 20;

/// How a node's deltas are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    /// It changes nothing.
    Empty,
    /// All are low-rank.
    LowRank,
    /// All are dense.
    Dense,
    /// All are sparse.
    Sparse,
    /// Some of each.
    Mixed,
}

/// One version of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Its parent's name; empty for the root.
    pub parent: String,
    /// The change that made this version; no two versions of a node share one.
    pub generation: u64,
    /// The change that brought its content: a rolled back or moved node has a younger generation
    /// than its content.
    pub content_generation: u64,
    /// The content generation of the parent it was trained on; 0 is the base.
    pub trained_on: u64,
    /// When this version was made, in milliseconds since 1970 by the clock of the machine that made
    /// it.
    pub created_ms: u64,
    /// How its deltas are stored.
    pub kind: NodeKind,
    /// The ranks of its low-rank deltas, padded to pairs, each once, ascending.
    pub ranks: Vec<u32>,
    /// Matrices it touches.
    pub matrices: u32,
    /// Where its compiled deltas lie.
    pub location: Location,
    /// Where the adapter's files lie, if they were kept.
    pub original: Option<Location>,
    /// BLAKE3 of the adapter's files, as [`PeftAdapter::hash`](crate::adapter::PeftAdapter::hash)
    /// returns it; all zeros if it did not come from files.
    pub adapter_hash: [u8; 32],
    /// Free labels.
    pub labels: BTreeMap<String, String>,
}

impl Version {
    /// Where its bytes lie: compiled deltas and kept files.
    pub(in crate::store) fn locations(&self) -> impl Iterator<Item = &Location> {
        std::iter::once(&self.location).chain(&self.original)
    }

    /// The same, to be changed.
    pub(in crate::store) fn locations_mut(&mut self) -> impl Iterator<Item = &mut Location> {
        std::iter::once(&mut self.location).chain(&mut self.original)
    }
}

/// How a version ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Another version took its place.
    Replaced,
    /// The node was removed.
    Removed,
    /// The node was moved to another name.
    Moved,
}

/// A version that is no longer current.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastVersion {
    /// The version.
    pub version: Version,
    /// How it ended.
    pub ending: Ending,
    /// The change that ended it.
    pub ended: u64,
}

/// What is fixed when a store is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::store) struct Header {
    pub(in crate::store) id: [u8; 16],
    pub(in crate::store) base_name: String,
    /// Hexadecimal.
    pub(in crate::store) base_hash: String,
    pub(in crate::store) lattice_hash: [u8; 32],
    pub(in crate::store) headroom: f32,
    pub(in crate::store) tree_name: Option<String>,
    pub(in crate::store) levels: Vec<String>,
    pub(in crate::store) created_ms: u64,
}

/// What every change changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) struct State {
    /// Counts commits, compactions among them.
    pub(in crate::store) sequence: u64,
    /// The last generation given.
    pub(in crate::store) generation: u64,
    /// Where the next blob goes.
    pub(in crate::store) segment: u32,
    pub(in crate::store) offset: u64,
    /// Where the base's lattice lies.
    pub(in crate::store) lattice: Location,
}

/// Why a frame does not open.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::store) enum FrameProblem {
    Version(u32),
    Damaged(&'static str),
}

fn options() -> impl Options {
    bincode::DefaultOptions::new().with_fixint_encoding().with_limit(MAX_RECORD_BYTES)
}

fn hash(key: &[u8], payload: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u64).to_le_bytes()).update(key).update(payload);
    hasher.finalize()
}

/// A record in its frame; nothing if it is too long.
pub(in crate::store) fn frame(key: &[u8], record: &impl Serialize) -> Option<Vec<u8>> {
    frame_payload(key, &options().serialize(record).ok()?)
}

fn frame_payload(key: &[u8], payload: &[u8]) -> Option<Vec<u8>> {
    let length = u32::try_from(payload.len()).ok()?;
    let head = [&MAGIC[..], &RECORD_VERSION.to_le_bytes(), &length.to_le_bytes()].concat();
    Some([&head, &hash(key, payload).as_bytes()[..], payload].concat())
}

/// Whether a payload whose hash is right decodes as some record: what the fuzzers and the saved
/// inputs run.
///
/// # Panics
/// If a record that was decoded does not come back from its own bytes.
#[cfg(feature = "testing")]
pub(in crate::store) fn decodes(payload: &[u8]) -> bool {
    fn as_record<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
        framed: &[u8],
    ) -> bool {
        let Ok(record) = unframe::<T>(b"k", framed) else { return false };
        let again = frame(b"k", &record).expect("it is no longer than it was");
        // A number that is none equals nothing, itself neither.
        let back = unframe::<T>(b"k", &again).expect("it was just framed");
        assert!(
            back == record || format!("{record:?}").contains("NaN"),
            "{back:?} is not {record:?}"
        );
        true
    }
    let Some(framed) = frame_payload(b"k", payload) else { return false };
    let found = [
        as_record::<Version>(&framed),
        as_record::<PastVersion>(&framed),
        as_record::<Header>(&framed),
        as_record::<State>(&framed),
    ];
    found.contains(&true)
}

/// The record in a frame that [`frame`] made for the same key.
pub(in crate::store) fn unframe<T: DeserializeOwned>(
    key: &[u8],
    bytes: &[u8],
) -> Result<T, FrameProblem> {
    let damaged = FrameProblem::Damaged;
    let (head, payload) = bytes.split_at_checked(FRAME_BYTES).ok_or(damaged("it is too short"))?;
    let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
    if head[..4] != MAGIC[..] {
        return Err(damaged("it does not begin as a record does"));
    }
    // Before all else: a later version may hash otherwise.
    if number(4) != RECORD_VERSION {
        return Err(FrameProblem::Version(number(4)));
    }
    if number(8) as usize != payload.len() {
        return Err(damaged("its length is wrong"));
    }
    if head[12..] != hash(key, payload).as_bytes()[..] {
        return Err(damaged("its BLAKE3 is wrong"));
    }
    options().deserialize(payload).map_err(|_| damaged("it does not decode"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version() -> Version {
        Version {
            parent: "fr".into(),
            generation: 7,
            content_generation: 5,
            trained_on: 2,
            created_ms: 1_700_000_000_000,
            kind: NodeKind::LowRank,
            ranks: vec![4, 8],
            matrices: 3,
            location: Location { segment: 1, offset: 64, length: 10, blake3: [9; 32] },
            original: None,
            adapter_hash: [1; 32],
            labels: BTreeMap::from([("team".into(), "blue".into())]),
        }
    }

    #[test]
    fn a_record_comes_back_under_its_own_key_only() {
        let bytes = frame(b"fr/alice", &version()).unwrap();
        assert_eq!(unframe::<Version>(b"fr/alice", &bytes), Ok(version()));
        assert_eq!(
            unframe::<Version>(b"fr/bob", &bytes),
            Err(FrameProblem::Damaged("its BLAKE3 is wrong"))
        );
    }

    #[test]
    fn every_changed_byte_and_every_truncation_is_refused() {
        let bytes = frame(b"k", &version()).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            assert!(unframe::<Version>(b"k", &changed).is_err(), "byte {at} changed");
            assert!(unframe::<Version>(b"k", &bytes[..at]).is_err(), "cut at {at}");
        }
    }

    /// The bytes on disk are a promise: a change of layout needs a new version.
    #[test]
    fn the_layout_of_version_1_has_not_moved() {
        let hash = |bytes: Vec<u8>| blake3::hash(&bytes).to_hex().to_string();
        let past = PastVersion { version: version(), ending: Ending::Moved, ended: 8 };
        let state = State {
            sequence: 1,
            generation: 2,
            segment: 3,
            offset: 4,
            lattice: version().location,
        };
        let header = Header {
            id: [3; 16],
            base_name: "b".into(),
            base_hash: "ab".into(),
            lattice_hash: [4; 32],
            headroom: 1.25,
            tree_name: None,
            levels: vec!["user".into()],
            created_ms: 1,
        };
        let hashes = [
            hash(frame(b"k", &past).unwrap()),
            hash(frame(b"k", &state).unwrap()),
            hash(frame(b"k", &header).unwrap()),
        ];
        assert_eq!(
            hashes.map(|hash| hash[..16].to_owned()),
            ["c6f46bdcef325e30", "77b3950abb39e7d7", "0f7611f842d4b891"]
        );
    }
}
