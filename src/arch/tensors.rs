//! The weights of an architecture as tables: what each is called in a Hugging Face folder and in a
//! GGUF file, its shape, and what the forward pass takes it for.
//!
//! **Invariant:** a weight's names, shape and order of rows stand here once; what reads files and
//! what computes look them up.
//!
//! **Source:** the modules of transformers' `modeling_llama.py`; the tensor name map of llama.cpp's
//! GGUF writer.

use std::collections::BTreeMap;

use super::{Block, ModelConfig};
use crate::WeightName;

/// What the forward pass takes a weight for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Norm of the residual stream before attention.
    AttentionNorm,
    Query,
    Key,
    Value,
    /// Norm of every head of the queries, before they are rotated.
    QueryNorm,
    /// The same of the keys.
    KeyNorm,
    /// From the heads back to the residual stream.
    Output,
    /// Norm of the residual stream before the feed-forward block.
    FeedForwardNorm,
    Gate,
    Up,
    Down,
}

/// A side of a weight, by the model's sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    Hidden,
    Intermediate,
    /// All query heads beside each other.
    Queries,
    /// All key heads, or value heads.
    Keys,
    /// One head.
    Head,
}

/// Linear layers that have a bias or have none together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BiasOf {
    QueryKeyValue,
    Output,
    FeedForward,
}

/// Which linear layers of a model have biases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Biases {
    pub(crate) qkv: bool,
    pub(crate) o: bool,
    pub(crate) mlp: bool,
}

impl Biases {
    fn has(self, of: BiasOf) -> bool {
        match of {
            BiasOf::QueryKeyValue => self.qkv,
            BiasOf::Output => self.o,
            BiasOf::FeedForward => self.mlp,
        }
    }
}

/// One module of a decoder layer and its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensor {
    pub(crate) role: Role,
    /// Hugging Face's module, below `model.layers.N.`.
    pub(crate) module: &'static str,
    /// GGUF's, below `blk.N.`.
    pub(crate) gguf: &'static str,
    pub(crate) shape: Shape,
    /// Whether a GGUF file has each head's two halves interleaved
    /// ([`interleaved_row`](super::interleaved_row)).
    pub(crate) interleaved: bool,
}

/// Shape of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A linear layer: outputs, inputs, and whose bias it may have.
    Linear(Size, Size, BiasOf),
    /// A norm.
    Norm(Size),
}

/// Norms of the residual stream before attention and before the feed-forward block.
pub(super) const NORMS: [Tensor; 2] = [
    norm(Role::AttentionNorm, "input_layernorm", "attn_norm", Size::Hidden),
    norm(Role::FeedForwardNorm, "post_attention_layernorm", "ffn_norm", Size::Hidden),
];

/// Norms of every head of queries and keys.
pub(super) const HEAD_NORMS: [Tensor; 2] = [
    norm(Role::QueryNorm, "self_attn.q_norm", "attn_q_norm", Size::Head),
    norm(Role::KeyNorm, "self_attn.k_norm", "attn_k_norm", Size::Head),
];

/// Grouped-query attention.
pub(super) const ATTENTION: [Tensor; 4] = attention(false);

/// The same, queries and keys interleaved in GGUF files.
pub(super) const INTERLEAVED_ATTENTION: [Tensor; 4] = attention(true);

/// The gated feed-forward block: `down(activation(gate · x) ⊙ up · x)`.
pub(super) const GATED_FEED_FORWARD: [Tensor; 3] = [
    feed_forward(Role::Gate, "mlp.gate_proj", "ffn_gate", Size::Intermediate, Size::Hidden),
    feed_forward(Role::Up, "mlp.up_proj", "ffn_up", Size::Intermediate, Size::Hidden),
    feed_forward(Role::Down, "mlp.down_proj", "ffn_down", Size::Hidden, Size::Intermediate),
];

/// GGUF's and Hugging Face's names of the modules outside the layers.
const OUTER: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", NORM), ("output", "lm_head")];

/// The norm after the last layer.
const NORM: &str = "model.norm";

const fn norm(role: Role, module: &'static str, gguf: &'static str, size: Size) -> Tensor {
    Tensor { role, module, gguf, shape: Shape::Norm(size), interleaved: false }
}

const fn feed_forward(
    role: Role,
    module: &'static str,
    gguf: &'static str,
    rows: Size,
    cols: Size,
) -> Tensor {
    let shape = Shape::Linear(rows, cols, BiasOf::FeedForward);
    Tensor { role, module, gguf, shape, interleaved: false }
}

const fn attention(interleaved: bool) -> [Tensor; 4] {
    const fn of(
        role: Role,
        module: &'static str,
        gguf: &'static str,
        rows: Size,
        interleaved: bool,
    ) -> Tensor {
        let shape = Shape::Linear(rows, Size::Hidden, BiasOf::QueryKeyValue);
        Tensor { role, module, gguf, shape, interleaved }
    }
    [
        of(Role::Query, "self_attn.q_proj", "attn_q", Size::Queries, interleaved),
        of(Role::Key, "self_attn.k_proj", "attn_k", Size::Keys, interleaved),
        of(Role::Value, "self_attn.v_proj", "attn_v", Size::Keys, false),
        Tensor {
            role: Role::Output,
            module: "self_attn.o_proj",
            gguf: "attn_output",
            shape: Shape::Linear(Size::Hidden, Size::Queries, BiasOf::Output),
            interleaved: false,
        },
    ]
}

impl Size {
    fn of(self, config: &ModelConfig) -> usize {
        match self {
            Self::Hidden => config.hidden_size,
            Self::Intermediate => config.intermediate_size,
            Self::Queries => config.num_attention_heads * config.head_dim,
            Self::Keys => config.num_key_value_heads * config.head_dim,
            Self::Head => config.head_dim,
        }
    }
}

impl Tensor {
    /// Name of the weight in layer `layer`.
    pub(crate) fn weight(&self, layer: usize) -> WeightName {
        WeightName::new(format!("model.layers.{layer}.{}.weight", self.module))
    }

    /// Name of the bias in layer `layer`.
    pub(crate) fn bias(&self, layer: usize) -> WeightName {
        WeightName::new(format!("model.layers.{layer}.{}.bias", self.module))
    }

    /// `[out, in]` of a linear layer, `[len]` of a norm.
    pub(crate) fn shape(&self, config: &ModelConfig) -> Vec<usize> {
        match self.shape {
            Shape::Linear(rows, cols, _) => vec![rows.of(config), cols.of(config)],
            Shape::Norm(size) => vec![size.of(config)],
        }
    }
}

impl Block {
    /// Every weight of a decoder layer.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &'static Tensor> {
        self.layer.iter().flat_map(|part| part.iter())
    }

    /// The weight that the forward pass takes for `role`, if the block has it.
    pub(crate) fn tensor(&self, role: Role) -> Option<&'static Tensor> {
        self.tensors().find(|tensor| tensor.role == role)
    }

    /// The layer and the module that a GGUF tensor inside a layer belongs to, and `weight` or
    /// `bias`.
    fn gguf_tensor<'a>(&self, name: &'a str) -> Option<(u32, &'static Tensor, &'a str)> {
        let (module, kind) = split_kind(name)?;
        let (layer, module) = module.strip_prefix("blk.")?.split_once('.')?;
        // One spelling a layer: `blk.007` or `blk.+7` would meet `blk.7` under one name.
        let layer = layer.parse::<u32>().ok().filter(|number| number.to_string() == layer)?;
        Some((layer, self.tensors().find(|tensor| tensor.gguf == module)?, kind))
    }

    /// Translates a GGUF tensor name; `None` for a name that the architecture does not have.
    pub(crate) fn name_of_gguf(&self, name: &str) -> Option<WeightName> {
        if let Some((layer, tensor, kind)) = self.gguf_tensor(name) {
            let module = tensor.module;
            return Some(WeightName::new(format!("model.layers.{layer}.{module}.{kind}")));
        }
        let (module, kind) = split_kind(name)?;
        let (_, module) = OUTER.iter().find(|(gguf, _)| *gguf == module)?;
        Some(WeightName::new(format!("{module}.{kind}")))
    }

    /// Whether the converter interleaved the rows of a GGUF tensor.
    pub(crate) fn is_interleaved(&self, name: &str) -> bool {
        self.gguf_tensor(name).is_some_and(|(_, tensor, _)| tensor.interleaved)
    }

    /// What is added to the values of a weight as a Hugging Face file has them.
    pub(crate) fn added(&self, name: &WeightName) -> f32 {
        let module = name.as_str().strip_suffix(".weight").unwrap_or_default();
        let of_a_layer = module.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
        let is_norm = |tensor: &Tensor| {
            matches!(tensor.shape, Shape::Norm(_))
                && of_a_layer.is_some_and(|(_, module)| module == tensor.module)
        };
        if module == NORM || self.tensors().any(is_norm) { self.norm_offset } else { 0.0 }
    }
}

/// `module.weight` or `module.bias` in two.
fn split_kind(name: &str) -> Option<(&str, &str)> {
    name.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))
}

impl ModelConfig {
    /// Name of the norm after the last layer.
    pub(crate) fn final_norm(&self) -> WeightName {
        WeightName::new(format!("{NORM}.weight"))
    }

    /// Every weight the architecture has, with its shape.
    pub(crate) fn expected_weights(&self, biases: Biases) -> BTreeMap<WeightName, Vec<usize>> {
        let table = vec![self.vocab_size, self.hidden_size];
        let mut weights = BTreeMap::from([
            (WeightName::new(crate::name::EMBEDDING), table.clone()),
            (self.final_norm(), vec![self.hidden_size]),
        ]);
        if !self.tie_word_embeddings {
            weights.insert(WeightName::new(crate::name::HEAD), table);
        }
        for layer in 0..self.num_hidden_layers {
            for tensor in self.block.tensors() {
                let shape = tensor.shape(self);
                if let Shape::Linear(_, _, of) = tensor.shape
                    && biases.has(of)
                {
                    weights.insert(tensor.bias(layer), vec![shape[0]]);
                }
                weights.insert(tensor.weight(layer), shape);
            }
        }
        weights
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::FAMILIES;

    #[test]
    fn every_gguf_spelling_is_known() {
        for (gguf, hf) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output_norm.weight", "model.norm.weight"),
            ("output.weight", "lm_head.weight"),
            ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"),
            ("blk.11.ffn_norm.weight", "model.layers.11.post_attention_layernorm.weight"),
            ("blk.7.attn_q.weight", "model.layers.7.self_attn.q_proj.weight"),
            ("blk.2.attn_k.bias", "model.layers.2.self_attn.k_proj.bias"),
            ("blk.2.attn_output.weight", "model.layers.2.self_attn.o_proj.weight"),
            ("blk.2.ffn_down.weight", "model.layers.2.mlp.down_proj.weight"),
        ] {
            for family in FAMILIES {
                let found = family.block.name_of_gguf(gguf);
                assert_eq!(found, Some(WeightName::new(hf)), "{gguf}");
            }
        }
    }

    #[test]
    fn foreign_gguf_names_are_not_guessed() {
        for name in [
            "",
            ".",
            "blk.",
            "blk.0",
            "blk.x.attn_q.weight",
            "blk.007.attn_q.weight",
            "blk.+7.attn_q.weight",
            "blk.0.attn_q.scale",
            "blk.7.ssm_a",
            "rope_freqs.weight",
        ] {
            for family in FAMILIES {
                assert_eq!(family.block.name_of_gguf(name), None, "{name}");
            }
        }
    }

    #[test]
    fn no_family_has_a_role_or_a_name_twice() {
        for family in FAMILIES {
            let tensors: Vec<_> = family.block.tensors().collect();
            for (at, one) in tensors.iter().enumerate() {
                assert!(
                    tensors[..at].iter().all(|other| one.role != other.role
                        && one.module != other.module
                        && one.gguf != other.gguf),
                    "{} of {}",
                    one.module,
                    family.class
                );
            }
        }
    }

    #[test]
    fn an_offset_is_added_to_norms_alone() {
        let block = Block { norm_offset: 1.0, ..FAMILIES[0].block };
        for (name, added) in [
            ("model.norm.weight", 1.0),
            ("model.layers.3.input_layernorm.weight", 1.0),
            ("model.layers.12.post_attention_layernorm.weight", 1.0),
            ("model.layers.3.other_input_layernorm.weight", 0.0),
            ("model.layers.3.self_attn.q_proj.weight", 0.0),
            ("model.layers.3.self_attn.q_proj.bias", 0.0),
            ("model.embed_tokens.weight", 0.0),
        ] {
            assert_eq!(block.added(&WeightName::new(name)), added, "{name}");
        }
    }
}
