//! Qwen3: Qwen2 with a norm of every head of queries and keys in place of their biases, and heads
//! of a width of their own.
//!
//! **Source:** `Qwen3Config` and `modeling_qwen3.py` of transformers 5.23.

use super::llama::LLAMA;
use super::qwen2::QWEN2;
use super::{Block, Defaults, Family, FamilyBiases, tensors};

pub(super) const QWEN3: Family = Family {
    class: "Qwen3ForCausalLM",
    model_type: "qwen3",
    gguf: Some("qwen3"),
    defaults: Defaults { head_dim: Some(128), ..QWEN2.defaults },
    biases: FamilyBiases::Attention,
    block: Block {
        layer: &[
            &tensors::NORMS,
            &tensors::ATTENTION,
            &tensors::HEAD_NORMS,
            &tensors::GATED_FEED_FORWARD,
        ],
        ..LLAMA.block
    },
    ..QWEN2
};
