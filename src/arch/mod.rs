//! The families that are run: one file each, which holds all that is particular to it, as data.
//! What reads files ([`crate::base`]) and what computes ([`crate::model`]) know none by name.
//!
//! A dense family more is a file here, a line in `FAMILIES`, and its goldens.
//!
//! **Invariant:** a default of a configuration class stands in its family's file and nowhere else.
//!
//! **Source:** the configuration classes of transformers 5.23; `tests/fixtures/families` holds
//! their values.

mod config;
mod interleave;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;
mod tensors;

pub use config::{ModelConfig, RopeScaling};
pub(crate) use config::{default_head_dim, wrong};
pub(crate) use interleave::interleaved_row;
pub use tensors::Tensor;
pub(crate) use tensors::{Biases, Role};

use crate::error::ConfigDefect;

/// Every family that is run.
pub(crate) const FAMILIES: &[Family] =
    &[llama::LLAMA, mistral::MISTRAL, qwen2::QWEN2, qwen3::QWEN3];

/// One family of models, by its configuration class.
#[derive(Debug, PartialEq)]
pub(crate) struct Family {
    /// As `architectures` names it.
    pub(crate) class: &'static str,
    /// As `model_type` names it.
    pub(crate) model_type: &'static str,
    /// As `general.architecture` of a GGUF file names it, and its keys begin; `None` where such
    /// files name another family.
    pub(crate) gguf: Option<&'static str>,
    pub(crate) defaults: Defaults,
    /// Which layers attend to a window only.
    pub(crate) window: Window,
    pub(crate) biases: FamilyBiases,
    pub(crate) block: Block,
}

/// What the configuration class takes where `config.json` is silent.
#[derive(Debug, PartialEq)]
pub(crate) struct Defaults {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    /// `None`: as many as query heads.
    pub(crate) num_key_value_heads: Option<usize>,
    /// `None`: the hidden size, shared out among the query heads.
    pub(crate) head_dim: Option<usize>,
    pub(crate) max_position_embeddings: usize,
    pub(crate) rms_norm_eps: f64,
    pub(crate) rope_theta: f64,
    pub(crate) tie_word_embeddings: bool,
}

/// What a decoder layer computes, sizes aside:
/// `x += O · attention(rope(norm(Q·n)), rope(norm(K·n)), V·n)` with `n = norm(x)`, then
/// `x += Down · (activation(Gate·m) ⊙ Up·m)` with `m = norm(x)`. A norm that the tables do not have
/// is left out, and a linear layer has a bias where the model has one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Block {
    /// The weights of a layer, in parts that families share.
    pub(crate) layer: &'static [&'static [Tensor]],
    /// What a Hugging Face file's norm weights lack: 1 where the family multiplies by 1 + weight.
    /// GGUF files have it added.
    pub norm_offset: f32,
    /// What a query's product with a key is multiplied by; `None`: 1 / √head_dim.
    pub attention_scale: Option<f32>,
    /// A score `s` becomes `cap · tanh(s / cap)`.
    pub score_soft_cap: Option<f32>,
    /// Of the gate.
    pub activation: Activation,
}

/// The function of the feed-forward block's gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(−x))`.
    Silu,
    /// `x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`.
    GeluTanh,
}

impl Block {
    /// What a query's product with a key is multiplied by.
    pub(crate) fn scale(&self, head_dim: usize) -> f32 {
        #[allow(clippy::cast_precision_loss, reason = "a head has fewer than 2^24 values")]
        self.attention_scale.unwrap_or_else(|| 1.0 / (head_dim as f32).sqrt())
    }
}

impl Activation {
    /// As `hidden_act` names it, the usual name first.
    pub(crate) fn names(self) -> &'static [&'static str] {
        match self {
            Self::Silu => &["silu", "swish"],
            Self::GeluTanh => &["gelu_pytorch_tanh"],
        }
    }
}

/// Attention windows of a family.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Window {
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
pub(crate) enum FamilyBiases {
    /// Those that `attention_bias` and `mlp_bias` ask for.
    AsConfigured,
    /// Those that `attention_bias` asks for.
    Attention,
    /// None, whatever the configuration says.
    Never,
    /// Those of q, k and v, whatever the configuration says.
    QueryKeyValue,
}

/// The family of a `config.json`. transformers takes `model_type`; where `architectures` says
/// another family, nobody knows which of the two the weights are.
pub(crate) fn of_config(
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
    let by_name = |name| FAMILIES.iter().find(|family| family.class == name);
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
    family.ok_or_else(|| unknown(found()))
}

/// The family of a GGUF file, by its `general.architecture`.
pub(crate) fn of_gguf(name: &str) -> Result<&'static Family, ConfigDefect> {
    let family = FAMILIES.iter().find(|family| family.gguf == Some(name));
    family.ok_or_else(|| unknown(format!("`{name}`")))
}

fn unknown(found: String) -> ConfigDefect {
    let classes: Vec<_> = FAMILIES.iter().map(|family| family.class).collect();
    let gguf: Vec<_> = FAMILIES.iter().filter_map(|family| family.gguf).collect();
    ConfigDefect::Architecture {
        found,
        run: format!("{} (GGUF: {})", list(&classes), gguf.join(", ")),
    }
}

/// `a, b and c`.
fn list(names: &[&str]) -> String {
    match names {
        [most @ .., last] if !most.is_empty() => format!("{} and {last}", most.join(", ")),
        _ => names.concat(),
    }
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
        for family in FAMILIES {
            let (window, switch, first_layer) = match family.window {
                Window::Never => (json!("unknown"), json!("unknown"), json!("unknown")),
                Window::Always(window) => (json!(window), json!("unknown"), json!("unknown")),
                Window::Switched { window, first_layer } => {
                    (json!(window), json!(false), json!(first_layer))
                }
            };
            let ours = json!({
                "model_type": family.model_type,
                "vocab_size": family.defaults.vocab_size,
                "hidden_size": family.defaults.hidden_size,
                "intermediate_size": family.defaults.intermediate_size,
                "num_hidden_layers": family.defaults.num_hidden_layers,
                "num_attention_heads": family.defaults.num_attention_heads,
                "head_dim": family.defaults.head_dim,
                "num_key_value_heads": family.defaults.num_key_value_heads,
                "max_position_embeddings": family.defaults.max_position_embeddings,
                "rms_norm_eps": family.defaults.rms_norm_eps,
                "tie_word_embeddings": family.defaults.tie_word_embeddings,
                "hidden_act": family.block.activation.names()[0],
                "sliding_window": window,
                "use_sliding_window": switch,
                "max_window_layers": first_layer,
                "rope_theta": family.defaults.rope_theta,
                "rope_type": "default",
            });
            assert_eq!(&ours, &golden[family.class], "{}", family.class);
        }
    }
}
