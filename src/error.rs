//! One error type for the library: which file, node or weight; what was expected and found; what to do next.
//!
//! **Invariant:** an error is returned before anything changed: weights, current node and cache are as they were.

use std::path::PathBuf;

use crate::WeightName;
use crate::device::cpu::SimdLevel;

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

    /// A chosen instruction set is not there.
    #[error("this machine has no {requested:?}; choose {widest:?} or narrower")]
    SimdUnavailable {
        /// What was asked for.
        requested: SimdLevel,
        /// The widest this machine has.
        widest: SimdLevel,
    },

    /// The thread pool could not be started.
    #[error("cannot start a pool of {threads} threads (0 is one per core): {source}; ask for fewer")]
    ThreadPool {
        /// Threads asked for.
        threads: usize,
        /// What the pool said.
        source: rayon::ThreadPoolBuildError,
    },

    /// The model's configuration contradicts itself.
    #[error("model configuration: {field} is {found}, expected {expected}; check the base's config")]
    ModelConfig {
        /// The field.
        field: &'static str,
        /// What would do.
        expected: String,
        /// Its value.
        found: String,
    },

    /// A weight the architecture needs is not in the base.
    #[error("weight {weight} is not in the base; check that the base is a complete {architecture}")]
    MissingWeight {
        /// The weight.
        weight: WeightName,
        /// The architecture that needs it.
        architecture: String,
    },

    /// A weight has another shape than the configuration says.
    #[error(
        "weight {weight} has shape {found:?}, but the configuration makes it {expected:?}; check the base's config"
    )]
    WeightShape {
        /// The weight.
        weight: WeightName,
        /// Shape by the configuration.
        expected: Vec<usize>,
        /// Shape in the base.
        found: Vec<usize>,
    },

    /// A cache of keys and values was made at another node.
    #[error("the cache belongs to another node's weights; clear it with `KvCache::claim` before using it here")]
    CacheOwner {
        /// Fingerprint the batch was made for.
        expected: [u8; 32],
        /// Fingerprint the cache was filled under.
        found: [u8; 32],
    },

    /// A cache was made for a model of another form.
    #[error("the cache was made for another model: {field} is {found}, expected {expected}; make one for this model")]
    CacheShape {
        /// What differs.
        field: &'static str,
        /// The model's value.
        expected: usize,
        /// The cache's value.
        found: usize,
    },

    /// A cache would be too large to address.
    #[error("a cache of {slots} sequences of {capacity} tokens is not possible here; ask for at least 1 and fewer")]
    CacheSize {
        /// Sequences.
        slots: usize,
        /// Tokens each.
        capacity: usize,
    },

    /// A device has no room for a buffer.
    #[error("the device has no room for {bytes} bytes; ask for a shorter context or fewer sequences")]
    DeviceMemory {
        /// Bytes asked for.
        bytes: usize,
    },

    /// A sequence would outgrow its cache or the model's context.
    #[error("sequence {slot} would hold {needed} tokens, but the context has room for {capacity}; shorten the prompt")]
    ContextFull {
        /// The sequence's place in the cache.
        slot: usize,
        /// Tokens it would hold.
        needed: usize,
        /// Tokens there is room for.
        capacity: usize,
    },

    /// The sequences of a batch do not fit the cache.
    #[error(
        "sequence {index} of the batch: {problem}; slots must ascend, be below {slots}, and bring at least one token"
    )]
    BatchSequence {
        /// Which sequence.
        index: usize,
        /// What is wrong.
        problem: &'static str,
        /// Slots in the cache.
        slots: usize,
    },

    /// A token is not in the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocab_size}; use this base's own tokenizer")]
    UnknownToken {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },

    /// There is nothing to generate from.
    #[error("the prompt is empty; give at least one token")]
    EmptyPrompt,

    /// The model computed something that is no number.
    #[error("logit {index} is {value}; the weights of this node are damaged or too large")]
    NonFiniteLogits {
        /// First such token.
        index: usize,
        /// Its logit.
        value: f32,
    },

    /// A sampling parameter is out of its range.
    #[error("sampling parameter {name} is {found}, expected {expected}")]
    SamplingParameter {
        /// The parameter.
        name: &'static str,
        /// Its range.
        expected: &'static str,
        /// Its value.
        found: String,
    },
}

impl Error {
    /// Wraps an operating-system error with the path it happened on.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }
}
