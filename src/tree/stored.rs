//! What a node of a store carries: which version it is and where its compiled deltas lie.

/// The file that makes a folder a store.
pub(crate) const STORE_FILE: &str = "catalogue.db";

/// A version of a node in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredNode {
    /// The change that made this version; no two versions of a node share one.
    pub generation: u64,
    /// The change that brought its content: a rolled back or moved node has a younger generation than its content.
    pub content_generation: u64,
    /// The content generation of the parent it was trained on; 0 is the base.
    pub trained_on: u64,
    /// Where its compiled deltas lie.
    pub location: Location,
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
