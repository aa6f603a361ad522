//! Small random models for tests.

use crate::base::{ModelConfig, RopeScaling};

/// Three layers, grouped queries, odd sizes.
pub(crate) fn tiny_config() -> ModelConfig {
    ModelConfig {
        architecture: "LlamaForCausalLM".to_owned(),
        hidden_size: 24,
        intermediate_size: 40,
        num_hidden_layers: 3,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        head_dim: 6,
        vocab_size: 50,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        max_position_embeddings: 128,
        sliding_window: None,
        tie_word_embeddings: true,
        eos_token_ids: vec![2],
        bos_token_id: None,
    }
}
