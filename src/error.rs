//! One error type for the library: which file, node or weight; what was expected and found; what to do next.
//!
//! **Invariant:** an error is returned before anything changed: weights, current node and cache are as they were.

use std::path::PathBuf;

use crate::WeightName;

mod adapter;
mod base;
mod file;
mod model;
mod tree;

pub use adapter::AdapterDefect;
pub use base::{ConfigDefect, WeightDefect};
pub use file::{GgufDefect, HubDefect, SafeTensorsDefect};
pub use model::{ChatDefect, TokenizerDefect};
pub use tree::TreeDefect;

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
    /// A file is larger than what is read into memory.
    #[error("{}: the file has {bytes} bytes, more than the limit of {limit}", path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// The longest that is read.
        limit: u64,
    },
    /// A safetensors file is damaged, or was asked for what it does not have.
    #[error("{}: {defect}", path.display())]
    SafeTensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        defect: SafeTensorsDefect,
    },
    /// A GGUF file is damaged, or was asked for what it does not have.
    #[error("{}: {defect}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        defect: GgufDefect,
    },
    /// A base model's folder or configuration is not one that can be run.
    #[error("{}: {defect}", path.display())]
    Config {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        defect: ConfigDefect,
    },
    /// A weight of the base is missing, has another shape, or was asked for rows it does not have.
    #[error("{}: {weight}: {defect}", path.display())]
    Weight {
        /// The base.
        path: PathBuf,
        /// The weight.
        weight: WeightName,
        /// What is wrong.
        defect: WeightDefect,
    },
    /// A tokenizer cannot be built or cannot take a text.
    #[error("{}: {defect}", path.display())]
    Tokenizer {
        /// The file it came from.
        path: PathBuf,
        /// What is wrong.
        defect: TokenizerDefect,
    },
    /// A chat template is missing or fails.
    #[error("{}: {defect}", path.display())]
    Chat {
        /// The file it came from.
        path: PathBuf,
        /// What is wrong.
        defect: ChatDefect,
    },
    /// A model cannot be fetched from the hub.
    #[error("hf:{name}: {defect}")]
    Hub {
        /// The model as it was asked for, `ORG/NAME[@revision]`.
        name: String,
        /// What is wrong.
        defect: HubDefect,
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
