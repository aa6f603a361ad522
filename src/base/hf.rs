//! A base as a Hugging Face folder: `config.json` and one or several safetensors files.
//!
//! **Invariant:** a setting that would change the computation and is not understood is refused by name.
//!
//! **Source:** transformers' `LlamaConfig`, `MistralConfig` and `Qwen2Config`, of v4 (`rope_theta`, `rope_scaling`) and
//! v5 (`rope_parameters`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::config::{Biases, ModelConfig, RopeScaling, default_head_dim};
use crate::error::ConfigDefect;
use crate::file::read_limited;
use crate::file::safetensors::SafeTensorsFile;
use crate::{Error, Result};

const MAX_CONFIG_BYTES: u64 = 1 << 20;
const MAX_INDEX_BYTES: u64 = 32 << 20;
/// What transformers takes where `rope_theta` is not given.
const DEFAULT_ROPE_THETA: f64 = 10_000.0;
const DEFAULT_RMS_NORM_EPS: f64 = 1e-6;
const ACTIVATION: &str = "silu";

/// `config.json` as it is written. Sizes that have no default are looked for in [`required`].
#[derive(Deserialize)]
struct RawConfig {
    architectures: Option<Vec<String>>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    layer_types: Option<Vec<String>>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
    partial_rotary_factor: Option<f64>,
    quantization_config: Option<Value>,
    eos_token_id: Option<OneOrMany>,
    bos_token_id: Option<u32>,
}

#[derive(Deserialize)]
struct RawRope {
    rope_type: Option<String>,
    r#type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    partial_rotary_factor: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

#[derive(Deserialize)]
struct GenerationConfig {
    eos_token_id: Option<OneOrMany>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Reads `config.json`, and `generation_config.json` for its end tokens.
pub(super) fn read_config(dir: &Path) -> Result<(ModelConfig, Biases)> {
    let path = dir.join("config.json");
    if !path.exists() {
        return Err(Error::Config { path: dir.to_owned(), defect: ConfigDefect::NoConfig });
    }
    let raw: RawConfig = read_json(&path, MAX_CONFIG_BYTES)?;
    let (mut config, biases) = interpret(raw).map_err(|defect| Error::Config { path, defect })?;
    let path = dir.join("generation_config.json");
    if path.exists() {
        let generation: GenerationConfig = read_json(&path, MAX_CONFIG_BYTES)?;
        for id in ids(generation.eos_token_id) {
            if !config.eos_token_ids.contains(&id) {
                config.eos_token_ids.push(id);
            }
        }
    }
    Ok((config, biases))
}

fn interpret(raw: RawConfig) -> Result<(ModelConfig, Biases), ConfigDefect> {
    let architecture = raw.architectures.iter().flatten().next().cloned().unwrap_or_default();
    let qwen2 = architecture == "Qwen2ForCausalLM";
    if !qwen2 && !matches!(architecture.as_str(), "LlamaForCausalLM" | "MistralForCausalLM") {
        return Err(ConfigDefect::Architecture { found: format!("`{architecture}`") });
    }
    if let Some(quantization) = raw.quantization_config {
        let method = quantization.get("quant_method").unwrap_or(&quantization).to_string();
        return Err(unsupported("quantization_config", method, "plain f32, f16 or bf16 weights, or a GGUF file"));
    }
    if let Some(activation) = raw.hidden_act.filter(|activation| activation != ACTIVATION) {
        return Err(unsupported("hidden_act", activation, ACTIVATION));
    }
    let (rope_theta, rope_scaling) =
        rope(raw.rope_theta, raw.rope_parameters.as_ref().or(raw.rope_scaling.as_ref()), raw.partial_rotary_factor)?;
    let hidden_size = required("hidden_size", raw.hidden_size)?;
    let num_attention_heads = required("num_attention_heads", raw.num_attention_heads)?;
    let head_dim = match raw.head_dim {
        Some(head_dim) => head_dim,
        None => default_head_dim(hidden_size, num_attention_heads)?,
    };
    // Qwen2 writes a window that it does not use; the others have no switch for it.
    let windowed = raw.use_sliding_window.unwrap_or(!qwen2);
    let window_types = raw.layer_types.unwrap_or_default();
    if windowed && raw.sliding_window.is_some() && (qwen2 || window_types.iter().any(|kind| kind == "full_attention")) {
        return Err(unsupported("use_sliding_window", "true for some layers", "one window for all layers, or none"));
    }
    let bias = raw.attention_bias.unwrap_or(false);
    let biases = Biases { qkv: bias || qwen2, o: bias && !qwen2, mlp: raw.mlp_bias.unwrap_or(false) };
    let config = ModelConfig {
        architecture,
        hidden_size,
        intermediate_size: required("intermediate_size", raw.intermediate_size)?,
        num_hidden_layers: required("num_hidden_layers", raw.num_hidden_layers)?,
        num_attention_heads,
        num_key_value_heads: raw.num_key_value_heads.unwrap_or(num_attention_heads),
        head_dim,
        vocab_size: required("vocab_size", raw.vocab_size)?,
        rms_norm_eps: raw.rms_norm_eps.unwrap_or(DEFAULT_RMS_NORM_EPS),
        rope_theta,
        rope_scaling,
        max_position_embeddings: required("max_position_embeddings", raw.max_position_embeddings)?,
        sliding_window: raw.sliding_window.filter(|_| windowed),
        tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(false),
        eos_token_ids: ids(raw.eos_token_id),
        bos_token_id: raw.bos_token_id,
    };
    config.check()?;
    Ok((config, biases))
}

fn rope(theta: Option<f64>, rope: Option<&RawRope>, partial: Option<f64>) -> Result<(f64, RopeScaling), ConfigDefect> {
    if let Some(part) = rope.and_then(|rope| rope.partial_rotary_factor).or(partial).filter(|part| *part != 1.0) {
        return Err(unsupported("partial_rotary_factor", part, "1"));
    }
    let Some(rope) = rope else { return Ok((theta.unwrap_or(DEFAULT_ROPE_THETA), RopeScaling::None)) };
    let theta = rope.rope_theta.or(theta).unwrap_or(DEFAULT_ROPE_THETA);
    let factor = || required("rope_scaling.factor", rope.factor);
    let scaling = match rope.rope_type.as_deref().or(rope.r#type.as_deref()) {
        Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: factor()? },
        Some("llama3") => RopeScaling::Llama3 {
            factor: factor()?,
            low_freq_factor: required("rope_scaling.low_freq_factor", rope.low_freq_factor)?,
            high_freq_factor: required("rope_scaling.high_freq_factor", rope.high_freq_factor)?,
            original_max_position: required(
                "rope_scaling.original_max_position_embeddings",
                rope.original_max_position_embeddings,
            )?,
        },
        other => return Err(unsupported("rope_type", other.unwrap_or("missing"), "default, linear or llama3")),
    };
    Ok((theta, scaling))
}

/// Opens the folder's safetensors, in name order: one file, or those that the index names.
pub(super) fn open_files(dir: &Path) -> Result<Vec<SafeTensorsFile>> {
    let single = dir.join("model.safetensors");
    if single.exists() {
        return Ok(vec![SafeTensorsFile::open_mapped(&single)?]);
    }
    let path = dir.join("model.safetensors.index.json");
    if !path.exists() {
        let pickled = dir.join("pytorch_model.bin").exists() || dir.join("pytorch_model.bin.index.json").exists();
        let hint = if pickled {
            "pickled weights (.bin) are never read, convert them with save_pretrained(safe_serialization=True)"
        } else {
            "fetch the model again"
        };
        return Err(Error::Config { path: dir.to_owned(), defect: ConfigDefect::NoWeights { hint } });
    }
    let index: Index = read_json(&path, MAX_INDEX_BYTES)?;
    let mut files = BTreeMap::new();
    for name in index.weight_map.values().collect::<BTreeSet<_>>() {
        if name.contains(['/', '\\', ':']) || !name.ends_with(".safetensors") {
            let defect = ConfigDefect::ShardName { file: name.clone() };
            return Err(Error::Config { path, defect });
        }
        files.insert(name, SafeTensorsFile::open_mapped(&dir.join(name))?);
    }
    for (tensor, name) in &index.weight_map {
        if files[name].info(tensor).is_err() {
            let defect = ConfigDefect::IndexMismatch { tensor: tensor.clone(), file: name.into() };
            return Err(Error::Config { path, defect });
        }
    }
    Ok(files.into_values().collect())
}

fn read_json<T: DeserializeOwned>(path: &Path, max_bytes: u64) -> Result<T> {
    let bytes = read_limited(path, max_bytes)?;
    serde_json::from_slice(&bytes)
        .map_err(|reason| Error::Config { path: path.to_owned(), defect: ConfigDefect::Json { reason } })
}

fn ids(ids: Option<OneOrMany>) -> Vec<u32> {
    match ids {
        None => Vec::new(),
        Some(OneOrMany::One(id)) => vec![id],
        Some(OneOrMany::Many(ids)) => ids,
    }
}

fn required<T>(key: &str, value: Option<T>) -> Result<T, ConfigDefect> {
    value.ok_or_else(|| ConfigDefect::Missing { key: key.to_owned() })
}

fn unsupported(key: &str, found: impl ToString, expected: &'static str) -> ConfigDefect {
    ConfigDefect::Unsupported { key: key.to_owned(), found: found.to_string(), expected }
}
