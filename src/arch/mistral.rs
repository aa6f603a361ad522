//! Mistral: Llama with a window in every layer and no biases. GGUF files of it call themselves
//! `llama` and have no window.
//!
//! **Source:** `MistralConfig` and `modeling_mistral.py` of transformers 5.23.

use super::llama::LLAMA;
use super::{Defaults, Family, FamilyBiases, Window};

pub(super) const MISTRAL: Family = Family {
    class: "MistralForCausalLM",
    model_type: "mistral",
    gguf: None,
    defaults: Defaults {
        intermediate_size: 14_336,
        num_key_value_heads: Some(8),
        max_position_embeddings: 131_072,
        ..LLAMA.defaults
    },
    window: Window::Always(4096),
    biases: FamilyBiases::Never,
    ..LLAMA
};
