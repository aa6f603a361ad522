//! One error type for the library: which file, node or weight; what was expected and found; what to do next.
//!
//! **Invariant:** an error is returned before anything changed: weights, current node and cache are as they were.

use std::path::PathBuf;

use crate::WeightName;

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, each defect with its own variant.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// A NaN or an infinity where a number is needed.
    #[error(
        "tensor {tensor}: element {index} is {value}; a finite number is expected. The file is damaged or its training diverged"
    )]
    NonFinite {
        /// Name of the tensor.
        tensor: String,
        /// Index of the element, row-major.
        index: usize,
        /// What stands there.
        value: f32,
    },

    /// A delta whose factors do not have its weight's shape.
    #[error("{weight}: {expected} {what} expected, {found} found; the delta was made for another base")]
    DeltaShape {
        /// The weight.
        weight: WeightName,
        /// What was counted.
        what: &'static str,
        /// Elements that fit the weight.
        expected: usize,
        /// Elements given.
        found: usize,
    },

    /// An entry of a sparse delta outside its weight, or not in row-major order.
    #[error(
        "{weight}: sparse entry ({row}, {column}) lies outside the weight or does not follow the entry before it in row-major order"
    )]
    SparseEntry {
        /// The weight.
        weight: WeightName,
        /// Row of the entry.
        row: u32,
        /// Column of the entry.
        column: u32,
    },

    /// A node whose weights would leave the lattice.
    #[error(
        "node {node}: {weight} row {row} would leave the lattice at headroom {headroom}; open the base with a headroom of at least {needed} (--headroom {needed})"
    )]
    Overflow {
        /// The node, or empty while a single delta is compiled.
        node: String,
        /// The weight.
        weight: WeightName,
        /// The row.
        row: usize,
        /// The headroom that would do.
        needed: f64,
        /// The headroom the base was opened with.
        headroom: f32,
    },
}

impl Error {
    /// Wraps an operating-system error with the path it happened on.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }
}
