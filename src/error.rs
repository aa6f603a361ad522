//! One error type for the library: which file, node or weight; what was expected and found; what to do next.
//!
//! **Invariant:** an error is returned before anything changed: weights, current node and cache are as they were.

use std::path::PathBuf;

use crate::adapter::AdapterDefect;
use crate::tree::TreeDefect;

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
    /// An adapter is refused.
    #[error("adapter {}: {defect}", path.display())]
    Adapter {
        /// The adapter's folder.
        path: PathBuf,
        /// What is wrong with it.
        defect: Box<AdapterDefect>,
    },
    /// A tree is refused, or does not have what was asked of it.
    #[error(transparent)]
    Tree(Box<TreeDefect>),
}

impl Error {
    /// Wraps an operating-system error with the path it happened on.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// Wraps a defect of the adapter at `path`.
    pub(crate) fn adapter(path: impl Into<PathBuf>, defect: AdapterDefect) -> Self {
        Self::Adapter { path: path.into(), defect: Box::new(defect) }
    }
}

impl From<TreeDefect> for Error {
    fn from(defect: TreeDefect) -> Self {
        Self::Tree(Box::new(defect))
    }
}
