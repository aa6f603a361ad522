//! An adapter's files → float deltas by [`WeightName`]; each refusal named.

use std::collections::BTreeMap;

use crate::WeightName;

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
