//! Llama. A GGUF file of `llama` may be Mistral's, too: the converter writes both as one.
//!
//! **Source:** `LlamaConfig` and `modeling_llama.py` of transformers 5.23.

use super::{Activation, Block, Defaults, Family, FamilyBiases, Window, tensors};

pub(super) const LLAMA: Family = Family {
    class: "LlamaForCausalLM",
    model_type: "llama",
    gguf: Some("llama"),
    defaults: Defaults {
        vocab_size: 32_000,
        hidden_size: 4096,
        intermediate_size: 11_008,
        num_hidden_layers: 32,
        num_attention_heads: 32,
        num_key_value_heads: None,
        head_dim: None,
        max_position_embeddings: 2048,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        tie_word_embeddings: false,
    },
    window: Window::Never,
    biases: FamilyBiases::AsConfigured,
    block: Block {
        layer: &[&tensors::NORMS, &tensors::INTERLEAVED_ATTENTION, &tensors::GATED_FEED_FORWARD],
        norm_offset: 0.0,
        attention_scale: None,
        score_soft_cap: None,
        activation: Activation::Silu,
    },
};
