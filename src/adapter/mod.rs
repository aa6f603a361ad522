//! An adapter's files → float deltas by [`WeightName`], and back; each refusal named.
//!
//! **Invariant:** an adapter that could mean something else than what is read here is refused,
//! never guessed.

mod base_shapes;
mod beside;
mod config;
mod flatten;
mod header;
mod made_for;
mod pattern;
mod peft;
mod remarks;
mod summary;
mod watched;
mod write;

use std::collections::BTreeMap;

pub use base_shapes::BaseShapes;
pub use beside::beside;
pub(crate) use beside::{BESIDE_FILES, files_beside, names_beside};
pub use flatten::flatten;
pub(crate) use header::{CONFIG_FILE, TENSOR_FILE};
pub use header::{PeftHeader, Target};
pub(crate) use made_for::published_base;
pub use peft::PeftAdapter;
pub use remarks::AdapterRemark;
pub use summary::AdapterSummary;
pub(crate) use write::write_files;
pub use write::{PeftOptions, write_peft};

use crate::WeightName;

/// How large an adapter may be before it is refused unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of `adapter_model.safetensors`.
    pub file_bytes: u64,
    /// Bytes of `adapter_config.json`.
    pub config_bytes: u64,
    /// Rank of one module.
    pub rank: usize,
    /// Tensors in the file.
    pub tensors: usize,
}

impl Default for Limits {
    /// 2 GiB of tensors, 1 MiB of config, rank 512, 100,000 tensors.
    fn default() -> Self {
        Self { file_bytes: 2 << 30, config_bytes: 1 << 20, rank: 512, tensors: 100_000 }
    }
}

/// A change to one weight, in floats, as the adapter's files give it. Added to `W (out, in)`.
#[derive(Clone, Debug, PartialEq)]
pub enum FloatDelta {
    /// `scaling · lora_b · lora_a`.
    LowRank {
        /// Rank of the product.
        rank: usize,
        /// `(rank, in)`, row-major.
        lora_a: Vec<f32>,
        /// `(out, rank)`, row-major.
        lora_b: Vec<f32>,
        /// `alpha / rank`, or `alpha / sqrt(rank)` with rsLoRA.
        scaling: f64,
    },
    /// A full matrix `(out, in)`, row-major.
    Dense {
        /// The values.
        values: Vec<f32>,
    },
    /// Single entries.
    Sparse {
        /// `(row, column, value)`, in row-major order, no position twice.
        entries: Vec<(u32, u32, f32)>,
    },
}

/// The float deltas of one node by weight.
pub type AdapterDeltas = BTreeMap<WeightName, FloatDelta>;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod write_tests;
