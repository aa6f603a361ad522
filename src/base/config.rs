//! A model's hyper-parameters, checked.
//!
//! **Invariant:** every size is at least one and at most a sane cap, so shapes computed from it
//! cannot wrap; the key and value heads divide the query heads; a head's width is even.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;

use crate::WeightName;
use crate::error::ConfigDefect;
use crate::name::{EMBEDDING, HEAD};

const MAX_LAYERS: usize = 4096;
const MAX_WIDTH: usize = 1 << 24;
const MAX_HEADS: usize = 1 << 16;
const MAX_POSITIONS: usize = 1 << 28;

/// How the rotary embedding's frequencies are scaled.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Plain frequencies `theta^(-2i/head_dim)`.
    None,
    /// Llama 3.1's scaling (`rope_type: llama3`).
    Llama3 {
        /// `factor`
        factor: f64,
        /// `low_freq_factor`
        low_freq_factor: f64,
        /// `high_freq_factor`
        high_freq_factor: f64,
        /// `original_max_position_embeddings`
        original_max_position: usize,
    },
    /// Linear position interpolation by `factor`.
    Linear {
        /// `factor`
        factor: f64,
    },
    /// Explicit per-frequency divisors (GGUF's `rope_freqs.weight`), length `head_dim / 2`.
    Factors(Vec<f32>),
}

/// The hyper-parameters of a Llama-family model (Llama, Mistral, Qwen2).
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// `LlamaForCausalLM`, `MistralForCausalLM` or `Qwen2ForCausalLM`. A GGUF file of `llama` may
    /// be Mistral's, too.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward block.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads (grouped-query attention).
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Scaling of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Longest context, in tokens.
    pub max_position_embeddings: usize,
    /// Attention window in tokens (Mistral), if any.
    pub sliding_window: Option<usize>,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Tokens that end a generation.
    pub eos_token_ids: Vec<u32>,
    /// Token that starts a text; whether a prompt gets it is the tokenizer's business.
    pub bos_token_id: Option<u32>,
}

/// Which linear layers have biases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Biases {
    pub(super) qkv: bool,
    pub(super) o: bool,
    pub(super) mlp: bool,
}

impl ModelConfig {
    /// Refuses absurd values before anything is computed from them.
    pub(super) fn check(&self) -> Result<(), ConfigDefect> {
        within("hidden_size", self.hidden_size, 1..=MAX_WIDTH)?;
        within("intermediate_size", self.intermediate_size, 1..=MAX_WIDTH)?;
        within("num_hidden_layers", self.num_hidden_layers, 1..=MAX_LAYERS)?;
        within("num_attention_heads", self.num_attention_heads, 1..=MAX_HEADS)?;
        within("num_key_value_heads", self.num_key_value_heads, 1..=self.num_attention_heads)?;
        within("head_dim", self.head_dim, 2..=MAX_HEADS)?;
        within("vocab_size", self.vocab_size, 1..=MAX_WIDTH)?;
        within("max_position_embeddings", self.max_position_embeddings, 1..=MAX_POSITIONS)?;
        within("rms_norm_eps", self.rms_norm_eps, 0.0..=0.1)?;
        within("rope_theta", self.rope_theta, f64::MIN_POSITIVE..=1e15)?;
        if let Some(window) = self.sliding_window {
            within("sliding_window", window, 1..=MAX_POSITIONS)?;
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let expected =
                format!("a divisor of num_attention_heads ({})", self.num_attention_heads);
            return Err(wrong("num_key_value_heads", self.num_key_value_heads, expected));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(wrong("head_dim", self.head_dim, "an even number"));
        }
        self.check_rope()
    }

    fn check_rope(&self) -> Result<(), ConfigDefect> {
        const FACTOR: RangeInclusive<f64> = 1e-6..=1e6;
        match &self.rope_scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => within("rope_scaling.factor", *factor, FACTOR),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position,
            } => {
                within("rope_scaling.factor", *factor, FACTOR)?;
                within("rope_scaling.low_freq_factor", *low_freq_factor, FACTOR)?;
                within("rope_scaling.high_freq_factor", *high_freq_factor, FACTOR)?;
                within(
                    "rope_scaling.original_max_position_embeddings",
                    *original_max_position,
                    1..=MAX_POSITIONS,
                )?;
                if high_freq_factor <= low_freq_factor {
                    let expected = format!("more than low_freq_factor ({low_freq_factor})");
                    return Err(wrong("rope_scaling.high_freq_factor", high_freq_factor, expected));
                }
                Ok(())
            }
            RopeScaling::Factors(factors) => {
                within(
                    "length of rope_freqs.weight",
                    factors.len(),
                    self.head_dim / 2..=self.head_dim / 2,
                )?;
                factors
                    .iter()
                    .try_for_each(|factor| within("rope_freqs.weight", f64::from(*factor), FACTOR))
            }
        }
    }

    /// Every weight the architecture has, with its shape.
    pub(super) fn expected_weights(&self, biases: Biases) -> BTreeMap<WeightName, Vec<usize>> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (q, kv) =
            (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let mut weights = BTreeMap::new();
        let mut add =
            |name: String, shape: Vec<usize>| weights.insert(WeightName::new(name), shape);
        add(EMBEDDING.to_owned(), vec![self.vocab_size, hidden]);
        add("model.norm.weight".to_owned(), vec![hidden]);
        if !self.tie_word_embeddings {
            add(HEAD.to_owned(), vec![self.vocab_size, hidden]);
        }
        for layer in 0..self.num_hidden_layers {
            for (module, rows, cols, bias) in [
                ("self_attn.q_proj", q, hidden, biases.qkv),
                ("self_attn.k_proj", kv, hidden, biases.qkv),
                ("self_attn.v_proj", kv, hidden, biases.qkv),
                ("self_attn.o_proj", hidden, q, biases.o),
                ("mlp.gate_proj", inner, hidden, biases.mlp),
                ("mlp.up_proj", inner, hidden, biases.mlp),
                ("mlp.down_proj", hidden, inner, biases.mlp),
            ] {
                add(format!("model.layers.{layer}.{module}.weight"), vec![rows, cols]);
                if bias {
                    add(format!("model.layers.{layer}.{module}.bias"), vec![rows]);
                }
            }
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                add(format!("model.layers.{layer}.{norm}.weight"), vec![hidden]);
            }
        }
        weights
    }
}

/// Width of one head where the configuration does not give it.
pub(super) fn default_head_dim(hidden: usize, heads: usize) -> Result<usize, ConfigDefect> {
    match hidden.checked_rem(heads) {
        Some(0) => Ok(hidden / heads),
        _ => Err(wrong(
            "num_attention_heads",
            heads,
            format!("a divisor of the hidden size ({hidden})"),
        )),
    }
}

fn within<T: PartialOrd + Display>(
    key: &str,
    found: T,
    range: RangeInclusive<T>,
) -> Result<(), ConfigDefect> {
    if range.contains(&found) {
        return Ok(());
    }
    Err(wrong(key, found, format!("{} to {}", range.start(), range.end())))
}

pub(super) fn wrong(key: &str, found: impl Display, expected: impl Into<String>) -> ConfigDefect {
    ConfigDefect::Value { key: key.to_owned(), found: found.to_string(), expected: expected.into() }
}
