//! Made trees: random nodes of every kind of delta on a tiny model.

// Each test file compiles this for itself and uses a part of it.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "shared by test files that use different parts; made numbers are small"
)]

use std::path::Path;
use std::sync::Arc;

use pleach::WeightName;
use pleach::adapter::{AdapterDeltas, FloatDelta};
use pleach::base::BaseModel;
use pleach::testing::{TinyModel, tiny_hf_model};
use pleach::tree::{AdapterTree, NodeSource};
use rand::Rng;
use rand::rngs::StdRng;

/// Widths that fill no lane of 32 columns, the head tied to the embedding, and fewer tokens than
/// its tokenizer has.
pub fn odd_model() -> TinyModel {
    TinyModel {
        hidden: 36,
        intermediate: 50,
        heads: 2,
        kv_heads: 1,
        vocab: 71,
        ..TinyModel::default()
    }
}

/// Writes the model's folder at `dir` and opens it.
pub fn base(dir: &Path, model: &TinyModel) -> BaseModel {
    tiny_hf_model(dir, model);
    BaseModel::open(dir).unwrap()
}

/// Every matrix an adapter can land on, with its rows and columns: a tied head counts.
pub fn matrices(base: &BaseModel) -> Vec<(WeightName, usize, usize)> {
    let mut matrices: Vec<_> = base
        .weights()
        .filter(|(_, info)| info.shape.len() == 2)
        .map(|(name, info)| (name.clone(), info.rows(), info.cols()))
        .collect();
    if base.config().tie_word_embeddings {
        matrices.push((
            WeightName::new("lm_head.weight"),
            base.config().vocab_size,
            base.config().hidden_size,
        ));
    }
    matrices
}

fn values(rng: &mut StdRng, count: usize, size: f32) -> Vec<f32> {
    (0..count).map(|_| size * rng.random_range(-1.0f32..1.0)).collect()
}

/// A random change to a `rows × cols` matrix with entries of about `size`: low-rank of rank 1 to
/// 200, its size anywhere in factors and scaling, or dense, or sparse.
pub fn delta(rng: &mut StdRng, rows: usize, cols: usize, size: f32) -> FloatDelta {
    match rng.random_range(0..5) {
        0 => FloatDelta::Dense { values: values(rng, rows * cols, size) },
        1 => {
            let entry = |(at, value)| ((at / cols) as u32, (at % cols) as u32, value);
            let all = values(rng, rows * cols, size).into_iter().enumerate();
            FloatDelta::Sparse {
                entries: all.filter(|_| rng.random_range(0..8) == 0).map(entry).collect(),
            }
        }
        kind => {
            let rank = rng.random_range(1..=if kind == 2 { 200 } else { 16 });
            let [a, scaling] = [0, 1].map(|_| 10_f32.powi(rng.random_range(-8..=8)));
            let b = size / (rank as f32).sqrt() / a / scaling;
            let (lora_a, lora_b) = (values(rng, rank * cols, a), values(rng, rows * rank, b));
            FloatDelta::LowRank { rank, lora_a, lora_b, scaling: scaling.into() }
        }
    }
}

/// A node's change to about a third of all matrices.
pub fn deltas(rng: &mut StdRng, base: &BaseModel, size: f32) -> AdapterDeltas {
    let touched =
        matrices(base).into_iter().filter(|_| rng.random_range(0..3) == 0).collect::<Vec<_>>();
    touched.into_iter().map(|(name, rows, cols)| (name, delta(rng, rows, cols, size))).collect()
}

/// A random tree of `nodes` nodes below the root; half of them hang under the node made just
/// before.
pub fn tree(rng: &mut StdRng, base: &BaseModel, nodes: usize, size: f32) -> AdapterTree {
    let mut builder = AdapterTree::builder();
    for node in 0..nodes {
        let parent = if rng.random() { node } else { rng.random_range(0..=node) };
        let parent = if parent == 0 { "/".to_owned() } else { format!("n{}", parent - 1) };
        builder = builder.node(
            format!("n{node}"),
            parent,
            NodeSource::Memory(Arc::new(deltas(rng, base, size))),
        );
    }
    builder.build().unwrap()
}
