//! The families that are run, and what each one's configuration class takes where `config.json` is
//! silent.
//!
//! **Invariant:** a default stands here and nowhere else.
//!
//! **Source:** `LlamaConfig`, `MistralConfig` and `Qwen2Config` of transformers 5.23;
//! `tests/fixtures/families` holds their values.

use crate::error::ConfigDefect;

/// One family of models, by its configuration class.
#[derive(Debug, PartialEq)]
pub(super) struct Family {
    /// As `architectures` names it.
    pub(super) architecture: &'static str,
    /// As `model_type` names it.
    pub(super) model_type: &'static str,
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    /// `None`: as many as query heads.
    pub(super) num_key_value_heads: Option<usize>,
    pub(super) max_position_embeddings: usize,
    pub(super) rms_norm_eps: f64,
    pub(super) rope_theta: f64,
    pub(super) tie_word_embeddings: bool,
    /// Which layers attend to a window only.
    pub(super) window: Window,
    pub(super) biases: FamilyBiases,
}

/// Attention windows of a family.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Window {
    /// The class knows no window.
    Never,
    /// All layers have the window of `sliding_window`, this many tokens where the key is absent;
    /// null is none.
    Always(usize),
    /// With `use_sliding_window`, the layers from `max_window_layers` on, or those that
    /// `layer_types` names.
    Switched {
        /// `sliding_window` where the key is absent.
        window: usize,
        /// `max_window_layers` where the key is absent.
        first_layer: usize,
    },
}

/// Linear layers that have biases.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FamilyBiases {
    /// Those that `attention_bias` and `mlp_bias` ask for.
    AsConfigured,
    /// None, whatever the configuration says.
    Never,
    /// Those of q, k and v, whatever the configuration says.
    QueryKeyValue,
}

const FAMILIES: [Family; 3] = [
    Family {
        architecture: "LlamaForCausalLM",
        model_type: "llama",
        vocab_size: 32_000,
        hidden_size: 4096,
        intermediate_size: 11_008,
        num_hidden_layers: 32,
        num_attention_heads: 32,
        num_key_value_heads: None,
        max_position_embeddings: 2048,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        tie_word_embeddings: false,
        window: Window::Never,
        biases: FamilyBiases::AsConfigured,
    },
    Family {
        architecture: "MistralForCausalLM",
        model_type: "mistral",
        vocab_size: 32_000,
        hidden_size: 4096,
        intermediate_size: 14_336,
        num_hidden_layers: 32,
        num_attention_heads: 32,
        num_key_value_heads: Some(8),
        max_position_embeddings: 131_072,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        tie_word_embeddings: false,
        window: Window::Always(4096),
        biases: FamilyBiases::Never,
    },
    Family {
        architecture: "Qwen2ForCausalLM",
        model_type: "qwen2",
        vocab_size: 151_936,
        hidden_size: 4096,
        intermediate_size: 22_016,
        num_hidden_layers: 32,
        num_attention_heads: 32,
        num_key_value_heads: Some(32),
        max_position_embeddings: 32_768,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        tie_word_embeddings: false,
        window: Window::Switched { window: 4096, first_layer: 28 },
        biases: FamilyBiases::QueryKeyValue,
    },
];

/// The family of a `config.json`. transformers takes `model_type`; where `architectures` says
/// another family, nobody knows which of the two the weights are.
pub(super) fn of(
    architectures: &[String],
    model_type: Option<&str>,
) -> Result<&'static Family, ConfigDefect> {
    let named = architectures.first().map(String::as_str);
    let found = || match (named, model_type) {
        (None, None) => "not named".to_owned(),
        (Some(name), None) => format!("`{name}`"),
        (None, Some(kind)) => format!("of model_type `{kind}`"),
        (Some(name), Some(kind)) => format!("`{name}` of model_type `{kind}`"),
    };
    let by_name = |name| FAMILIES.iter().find(|family| family.architecture == name);
    let by_type = |kind| FAMILIES.iter().find(|family| family.model_type == kind);
    let family = match (named, model_type) {
        (Some(name), None) => by_name(name),
        (None, Some(kind)) => by_type(kind),
        (Some(name), Some(kind)) => match (by_name(name), by_type(kind)) {
            (Some(family), Some(other)) if family == other => Some(family),
            (None, None) => None,
            _ => {
                let (architecture, model_type) = (name.to_owned(), kind.to_owned());
                return Err(ConfigDefect::FamilyConflict { architecture, model_type });
            }
        },
        (None, None) => None,
    };
    family.ok_or_else(|| ConfigDefect::Architecture { found: found() })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn every_default_is_that_of_the_familys_configuration_class() {
        let golden: Value =
            serde_json::from_str(include_str!("../../tests/fixtures/families/defaults.json"))
                .unwrap();
        let golden = golden["families"].as_object().unwrap();
        assert_eq!(golden.len(), FAMILIES.len());
        for family in &FAMILIES {
            let (window, switch, first_layer) = match family.window {
                Window::Never => (json!("unknown"), json!("unknown"), json!("unknown")),
                Window::Always(window) => (json!(window), json!("unknown"), json!("unknown")),
                Window::Switched { window, first_layer } => {
                    (json!(window), json!(false), json!(first_layer))
                }
            };
            let ours = json!({
                "model_type": family.model_type,
                "vocab_size": family.vocab_size,
                "hidden_size": family.hidden_size,
                "intermediate_size": family.intermediate_size,
                "num_hidden_layers": family.num_hidden_layers,
                "num_attention_heads": family.num_attention_heads,
                "num_key_value_heads": family.num_key_value_heads,
                "max_position_embeddings": family.max_position_embeddings,
                "rms_norm_eps": family.rms_norm_eps,
                "tie_word_embeddings": family.tie_word_embeddings,
                "hidden_act": "silu",
                "sliding_window": window,
                "use_sliding_window": switch,
                "max_window_layers": first_layer,
                "rope_theta": family.rope_theta,
                "rope_type": "default",
            });
            assert_eq!(&ours, &golden[family.architecture], "{}", family.architecture);
        }
    }
}
