//! A model's hyper-parameters, checked.
//!
//! **Invariant:** every size is at least one and at most a sane cap, so shapes computed from it
//! cannot wrap; the key and value heads divide the query heads; a head's width is even.

use std::fmt::Display;
use std::ops::RangeInclusive;

use super::Block;
use crate::error::ConfigDefect;

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

/// The hyper-parameters of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family, by its configuration class, such as `LlamaForCausalLM`. A GGUF file of `llama`
    /// may be Mistral's, too.
    pub architecture: String,
    /// What a layer computes.
    pub block: Block,
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

impl ModelConfig {
    /// Refuses absurd values before anything is computed from them.
    pub(crate) fn check(&self) -> Result<(), ConfigDefect> {
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
}

/// Width of one head where the configuration does not give it.
pub(crate) fn default_head_dim(hidden: usize, heads: usize) -> Result<usize, ConfigDefect> {
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

pub(crate) fn wrong(key: &str, found: impl Display, expected: impl Into<String>) -> ConfigDefect {
    ConfigDefect::Value { key: key.to_owned(), found: found.to_string(), expected: expected.into() }
}
