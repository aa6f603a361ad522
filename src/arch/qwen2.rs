//! Qwen2 and Qwen2.5: Llama with biases on queries, keys and values, and a window that a
//! configuration may switch on from some layer on. GGUF files keep the rows as they are.
//!
//! **Source:** `Qwen2Config` and `modeling_qwen2.py` of transformers 5.23.

use super::llama::LLAMA;
use super::{Block, Defaults, Family, FamilyBiases, Window, tensors};

pub(super) const QWEN2: Family = Family {
    class: "Qwen2ForCausalLM",
    model_type: "qwen2",
    gguf: Some("qwen2"),
    defaults: Defaults {
        vocab_size: 151_936,
        intermediate_size: 22_016,
        num_key_value_heads: Some(32),
        max_position_embeddings: 32_768,
        ..LLAMA.defaults
    },
    window: Window::Switched { window: 4096, first_layer: 28 },
    biases: FamilyBiases::QueryKeyValue,
    block: Block {
        layer: &[&tensors::NORMS, &tensors::ATTENTION, &tensors::GATED_FEED_FORWARD],
        ..LLAMA.block
    },
};
