//! The base model: opened once, read-only, memory-mapped, with its content hash.

use std::ops::Range;
use std::path::Path;

use crate::{Result, WeightName};

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
    /// `LlamaForCausalLM`, `MistralForCausalLM` or `Qwen2ForCausalLM`.
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
    /// Token that starts a text, if the tokenizer adds one.
    pub bos_token_id: Option<u32>,
}

/// Shape and storage of one weight of the base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightInfo {
    /// `[out, in]` for a matrix, `[len]` for a vector (norms, biases).
    pub shape: Vec<usize>,
    /// Storage type in the file, such as `BF16` or `Q4_1`.
    pub dtype: String,
}

/// A base model on disk.
pub struct BaseModel {}

impl BaseModel {
    /// Opens a Hugging Face folder or a GGUF file.
    pub fn open(_path: &Path) -> Result<Self> {
        unimplemented!()
    }

    /// The model's hyper-parameters.
    pub fn config(&self) -> &ModelConfig {
        unimplemented!()
    }

    /// Every weight with its shape, in name order.
    pub fn weights(&self) -> Box<dyn Iterator<Item = (&WeightName, &WeightInfo)> + '_> {
        unimplemented!()
    }

    /// Dequantises `rows` of weight `name` into `out` (`rows.len() × in`, row-major, f32), in Hugging Face row order.
    /// A vector is one row.
    pub fn read_rows(&self, _name: &WeightName, _rows: Range<usize>, _out: &mut [f32]) -> Result<()> {
        unimplemented!()
    }
}
