//! One error type for the library: which file, node or weight; what was expected and found; what to
//! do next.
//!
//! **Invariant:** an error leaves weights and current node as they were, or else the copy of the
//! weights unusable ([`Error::Unusable`]) until it is restored; a store is as before or after the
//! change. What was read, compiled or uploaded on the way may stay in the caches.

use std::path::PathBuf;

use crate::WeightName;
use crate::device::cpu::SimdLevel;

mod adapter;
mod base;
mod engine;
mod file;
mod model;
mod store;
mod tree;

pub use adapter::AdapterDefect;
pub use base::{ConfigDefect, WeightDefect};
pub use engine::EngineDefect;
pub use file::{FileKind, GgufDefect, HubDefect, SafeTensorsDefect};
pub use model::{ChatDefect, TokenizerDefect};
pub use store::StoreDefect;
pub(crate) use tree::refusals;
pub use tree::{PassedOverWhy, RefusedEntry, TreeDefect};

/// Most headroom: beyond it a row has too few steps left for its own weights.
pub const MAX_HEADROOM: f32 = 1024.0;

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
    #[error(
        "{weight}: {expected} {what} expected, {found} found; the delta was made for another base"
    )]
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

    /// A delta names a matrix the model does not have.
    #[error("{weight}: the base has no such matrix; the delta was made for another base")]
    NoSuchMatrix {
        /// The weight.
        weight: WeightName,
    },

    /// A headroom outside what the lattice allows.
    #[error(
        "headroom {headroom}: a number from 1 to {MAX_HEADROOM} is expected (1.25 leaves a quarter of each row's largest weight for deltas)"
    )]
    Headroom {
        /// What was asked for.
        headroom: f32,
    },

    /// The tree was made for another base.
    #[error("{}: its BLAKE3 is {found}, but the tree's tree.toml asks for {expected}; give the base the tree was trained on", base.display())]
    WrongBase {
        /// The base.
        base: PathBuf,
        /// The hash in `tree.toml`.
        expected: String,
        /// The hash of the base's bytes.
        found: String,
    },

    /// A pass over the weights broke off, so they are in no known state.
    #[error(
        "the weights are unusable since a switch broke off; `Runtime::restore` loads them again from the base"
    )]
    Unusable,

    /// A node whose weights would leave the lattice.
    #[error(
        "{}{weight} row {row} would leave the lattice at headroom {headroom}; {}", of_node(node), advice(*needed, *in_store)
    )]
    Overflow {
        /// The node, or empty while a single delta is compiled.
        node: String,
        /// The weight.
        weight: WeightName,
        /// The row.
        row: usize,
        /// The headroom that would do; above [`MAX_HEADROOM`] none does.
        needed: f64,
        /// The headroom the base was opened with.
        headroom: f32,
        /// Whether that is a store's, which only another import changes.
        in_store: bool,
    },
    /// There is something else where a file is wanted.
    #[error("{}: not a regular file: {found}; put the file itself there", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What is there, in words: `a named pipe`, `a folder`.
        found: &'static str,
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
    /// A store is refused, or does not have what was asked of it.
    #[error("{}: {defect}", path.display())]
    Store {
        /// The store's folder.
        path: PathBuf,
        /// What is wrong.
        defect: Box<StoreDefect>,
    },
    /// A chosen instruction set is not there.
    #[error("this machine has no {requested:?}; choose {widest:?} or narrower")]
    SimdUnavailable {
        /// What was asked for.
        requested: SimdLevel,
        /// The widest this machine has.
        widest: SimdLevel,
    },

    /// A device that there is no such thing as.
    #[error("no device is called `{found}`; give auto, cpu, gpu, gpu:NUMBER or gpu:NAME")]
    UnknownDevice {
        /// What was asked for.
        found: String,
    },

    /// This build was made without support for GPUs.
    #[error(
        "this build runs on the CPU only: it was made without the feature `gpu`; leave --device out, or give cpu"
    )]
    NoGpuSupport,

    /// No device of the machine is what was asked for.
    #[error("no {asked}; this machine has {}", if .found.is_empty() { "no GPU that Vulkan, Metal or DirectX 12 reaches; install a driver, or leave the GPU out with --device cpu".to_owned() } else { format!("{}; `pleach devices` lists them", .found.join(", ")) })]
    NoSuchDevice {
        /// What was asked for.
        asked: String,
        /// What there is.
        found: Vec<String>,
    },

    /// A device broke off: it was lost, ran out of memory in the middle, or refused a command.
    #[error(
        "{device} failed: {problem}; load the weights again with `Runtime::restore`, or run with --device cpu"
    )]
    DeviceFailed {
        /// The device.
        device: String,
        /// What it said.
        problem: String,
    },

    /// Something is larger than the device can hold in one piece.
    #[error(
        "{what} takes {bytes} bytes, but the device holds at most {limit} in one piece; compute on the CPU (--device cpu)"
    )]
    DeviceLimit {
        /// What is too large.
        what: String,
        /// Its size.
        bytes: u64,
        /// The largest size.
        limit: u64,
    },

    /// The thread pool could not be started.
    #[error(
        "cannot start a pool of {threads} threads (0 is one per core): {source}; ask for fewer"
    )]
    ThreadPool {
        /// Threads asked for.
        threads: usize,
        /// What the pool said.
        source: rayon::ThreadPoolBuildError,
    },

    /// The model's configuration contradicts itself.
    #[error(
        "model configuration: {field} is {found}, expected {expected}; check the base's config"
    )]
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

    /// Keys and values were computed at another node.
    #[error(
        "the sequence's keys and values belong to another node's weights; release them with `KvPages::release` and open another here"
    )]
    CacheOwner {
        /// Whose keys and values the batch goes on from.
        expected: [u8; 32],
        /// Whose the sequence's are.
        found: [u8; 32],
    },

    /// A sequence is stepped while the weights stand at another version than it was begun at.
    #[error(
        "the sequence was begun at {sequence}, the weights stand at {weights}{}; switch to the sequence's version, then step",
        if sequence == weights { ", which has other content now" } else { "" }
    )]
    SequenceElsewhere {
        /// Node of the sequence.
        sequence: String,
        /// Node of the weights.
        weights: String,
    },

    /// Pages were made for a model of another form.
    #[error(
        "the pages were made for another model: {field} is {found}, expected {expected}; make a pool for this model"
    )]
    CacheShape {
        /// What differs.
        field: &'static str,
        /// The model's value.
        expected: usize,
        /// The pool's value.
        found: usize,
    },

    /// A pool of no page, or of more than can be addressed.
    #[error(
        "keys and values in {bytes} bytes are not possible here; ask for at least {page_bytes}, which are one page, and for less than {most}"
    )]
    CacheSize {
        /// Bytes asked for.
        bytes: u64,
        /// Bytes of one page.
        page_bytes: u64,
        /// The first size that is too large.
        most: u64,
    },

    /// The pages that are free do not hold what a batch brings.
    #[error(
        "the batch needs {needed} pages more for keys and values, and {free} of {pages} are free; wait until other sequences have ended, or give keys and values more memory"
    )]
    OutOfPages {
        /// Pages that all its sequences need beside their own.
        needed: usize,
        /// Pages that no sequence holds.
        free: usize,
        /// All pages.
        pages: usize,
    },

    /// A device has no memory for a buffer.
    #[error(
        "the device has no memory for {bytes} bytes more; ask for a shorter context, fewer sequences or a smaller delta budget, or compute on the CPU"
    )]
    DeviceMemory {
        /// Bytes asked for.
        bytes: usize,
    },

    /// A sequence would outgrow the model's context, or the memory that was asked for it.
    #[error(
        "sequence {index} would hold {needed} tokens, but the context holds {capacity}; shorten the prompt"
    )]
    ContextFull {
        /// The sequence's place in the batch.
        index: usize,
        /// Tokens it would hold.
        needed: usize,
        /// Tokens it can hold.
        capacity: usize,
    },

    /// A sequence cannot be in a batch as it is.
    #[error(
        "sequence {index} of the batch: {problem}; each stands there once, has an open table in this pool, and brings at least one token"
    )]
    BatchSequence {
        /// Which sequence.
        index: usize,
        /// What is wrong.
        problem: &'static str,
    },

    /// A token is not in the vocabulary.
    #[error(
        "token {token} is outside the vocabulary of {vocab_size}; use this base's own tokenizer"
    )]
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

    /// The engine refuses or ends a request.
    #[error(transparent)]
    Engine(#[from] EngineDefect),

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

/// All values, or the first error; of overflows the one that needs the most headroom, so that what
/// it asks for will do.
pub(crate) fn all_or_worst<T>(results: impl IntoIterator<Item = Result<T>>) -> Result<Vec<T>> {
    let (mut values, mut worst) = (Vec::new(), None);
    for result in results {
        match (result, &worst) {
            (Ok(value), _) => values.push(value),
            (Err(Error::Overflow { needed, .. }), Some(Error::Overflow { needed: most, .. }))
                if needed <= *most => {}
            (Err(error @ Error::Overflow { .. }), _) => worst = Some(error),
            (Err(error), _) => return Err(error),
        }
    }
    worst.map_or(Ok(values), Err)
}

/// The node's name in front of what is wrong with it; nothing while it is not known.
fn of_node(node: &str) -> String {
    if node.is_empty() { String::new() } else { format!("node {node}: ") }
}

/// What to do about a lattice that is too small.
fn advice(needed: f64, in_store: bool) -> String {
    if needed > f64::from(MAX_HEADROOM) {
        "no headroom holds it: the delta is far larger than the weights; check the adapter's base and scaling"
            .to_owned()
    } else if in_store {
        format!(
            "a store keeps the headroom it was made with: import the tree again with at least {needed} \
             (pleach store import --headroom {needed})"
        )
    } else {
        format!("open the base with a headroom of at least {needed} (--headroom {needed})")
    }
}

impl Error {
    /// Wraps an operating-system error with the path it happened on.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// Says which node a delta that does not fit the lattice belongs to.
    #[must_use]
    pub fn at_node(self, name: &str) -> Self {
        match self {
            Self::Overflow { weight, row, needed, headroom, in_store, .. } => {
                Self::Overflow { node: name.to_owned(), weight, row, needed, headroom, in_store }
            }
            other => other,
        }
    }

    /// Says that the lattice is a store's, so that the advice is about how that is made.
    #[must_use]
    pub(crate) fn in_store(self) -> Self {
        match self {
            Self::Overflow { node, weight, row, needed, headroom, .. } => {
                Self::Overflow { node, weight, row, needed, headroom, in_store: true }
            }
            other => other,
        }
    }

    /// Wraps a defect of the store in `path`.
    pub(crate) fn store(path: impl Into<PathBuf>, defect: StoreDefect) -> Self {
        Self::Store { path: path.into(), defect: Box::new(defect) }
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
