//! An adapter's files → float deltas by [`WeightName`], and back; each refusal named.
//!
//! `formats/` reads the files to modules by the files' own names (`module.rs`), `bind.rs` puts these
//! on a base, `lower.rs` turns each into a [`FloatDelta`].
//!
//! **Invariant:** an adapter that could mean something else than what is read here is refused,
//! never guessed.

mod beside;
mod bind;
mod flatten;
mod formats;
mod lower;
mod module;
mod open;
mod remarks;
mod summary;
mod write;

use std::collections::BTreeMap;

pub use beside::beside;
pub(crate) use beside::{BESIDE_FILES, files_beside, names_beside};
pub use bind::BaseShapes;
pub use flatten::flatten;
pub(crate) use formats::{CONFIG_FILE, TENSOR_FILE, named_base};
pub use formats::{PeftOptions, write_peft};
pub use module::Module;
pub use open::{PeftAdapter, PeftHeader};
pub use remarks::AdapterRemark;
pub use summary::AdapterSummary;
pub(crate) use write::write_files;

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

/// A change to one weight, in floats: what is added to `W (out, in)`.
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

/// `(rows, cols)` to `(cols, rows)`, both row-major.
fn transpose(values: &[f32], [rows, cols]: [usize; 2]) -> Vec<f32> {
    (0..cols).flat_map(|col| (0..rows).map(move |row| values[row * cols + col])).collect()
}

#[cfg(test)]
mod flatten_tests;
#[cfg(test)]
mod tests;
