//! A base as a Hugging Face folder: `config.json` and one or several safetensors files.
//!
//! **Invariant:** a setting that would change the computation and is not understood is refused by
//! name.
//!
//! **Source:** transformers' configuration classes; what is particular to one is in
//! [`crate::arch`].

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::end_tokens::{EndTokens, token_id};
use super::given::Given;
use super::hf_rope::rope;
use super::wrapped;
use crate::arch::{self, Biases, Family, FamilyBiases, ModelConfig, Window, default_head_dim};
use crate::error::ConfigDefect;
use crate::file::safetensors::SafeTensorsFile;
use crate::file::{from_json, read_limited};
use crate::{Error, Result};

const MAX_CONFIG_BYTES: u64 = 1 << 20;
const MAX_INDEX_BYTES: u64 = 32 << 20;

/// `config.json` as it is written.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct RawConfig {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
    hidden_size: Given<usize>,
    intermediate_size: Given<usize>,
    num_hidden_layers: Given<usize>,
    num_attention_heads: Given<usize>,
    num_key_value_heads: Given<usize>,
    head_dim: Option<usize>,
    vocab_size: Given<usize>,
    max_position_embeddings: Given<usize>,
    rms_norm_eps: Given<f64>,
    pub(super) rope_theta: Option<f64>,
    pub(super) rope_scaling: Option<Value>,
    pub(super) rope_parameters: Option<Value>,
    pub(super) original_max_position_embeddings: Option<usize>,
    pub(super) partial_rotary_factor: Option<f64>,
    sliding_window: Given<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
    quantization_config: Option<Value>,
    _name_or_path: Option<String>,
    eos_token_id: Option<EndTokens>,
    bos_token_id: Option<i64>,
}

#[derive(Deserialize)]
struct GenerationConfig {
    eos_token_id: Option<EndTokens>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Reads `config.json`, and `generation_config.json` for its end tokens.
pub(super) fn read_config(dir: &Path) -> Result<(ModelConfig, Biases)> {
    let path = dir.join("config.json");
    if !path.exists() {
        let defect = wrapped::no_model(dir).unwrap_or(ConfigDefect::NoConfig);
        return Err(Error::Config { path: dir.to_owned(), defect });
    }
    let raw: RawConfig = read_json(&path, MAX_CONFIG_BYTES)?;
    if let Some(quantization) = &raw.quantization_config {
        let defect = wrapped::quantised(dir, raw._name_or_path.as_deref(), quantization);
        return Err(Error::Config { path, defect });
    }
    let (mut config, biases) = interpret(raw).map_err(|defect| Error::Config { path, defect })?;
    let path = dir.join("generation_config.json");
    if path.exists() {
        let generation: GenerationConfig = read_json(&path, MAX_CONFIG_BYTES)?;
        if let Some(ends) = generation.eos_token_id {
            config.eos_token_ids = ends.ids();
        }
    }
    Ok((config, biases))
}

fn interpret(raw: RawConfig) -> Result<(ModelConfig, Biases), ConfigDefect> {
    let architectures = raw.architectures.as_deref().unwrap_or_default();
    let family = arch::of_config(architectures, raw.model_type.as_deref())?;
    let defaults = &family.defaults;
    let activations = family.block.activation.names();
    if let Some(other) = raw.hidden_act.as_ref().filter(|name| !activations.contains(&&name[..])) {
        return Err(unsupported("hidden_act", other, activations[0]));
    }
    let max_position_embeddings = raw
        .max_position_embeddings
        .or("max_position_embeddings", defaults.max_position_embeddings)?;
    let (rope_theta, rope_scaling) = rope(&raw, defaults.rope_theta, max_position_embeddings)?;
    let hidden_size = raw.hidden_size.or("hidden_size", defaults.hidden_size)?;
    let num_attention_heads =
        raw.num_attention_heads.or("num_attention_heads", defaults.num_attention_heads)?;
    let head_dim = match raw.head_dim.or(defaults.head_dim) {
        Some(head_dim) => head_dim,
        None => default_head_dim(hidden_size, num_attention_heads)?,
    };
    let num_hidden_layers =
        raw.num_hidden_layers.or("num_hidden_layers", defaults.num_hidden_layers)?;
    let sliding_window = window(&raw, family, num_hidden_layers, max_position_embeddings)?;
    let attention = raw.attention_bias.unwrap_or(false);
    let biases = match family.biases {
        FamilyBiases::AsConfigured => {
            Biases { qkv: attention, o: attention, mlp: raw.mlp_bias.unwrap_or(false) }
        }
        FamilyBiases::Attention => Biases { qkv: attention, o: attention, mlp: false },
        FamilyBiases::Never => Biases::default(),
        FamilyBiases::QueryKeyValue => Biases { qkv: true, ..Biases::default() },
    };
    let config = ModelConfig {
        architecture: family.class.to_owned(),
        block: family.block,
        hidden_size,
        intermediate_size: raw
            .intermediate_size
            .or("intermediate_size", defaults.intermediate_size)?,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads: raw
            .num_key_value_heads
            .or_none(defaults.num_key_value_heads)
            .unwrap_or(num_attention_heads),
        head_dim,
        vocab_size: raw.vocab_size.or("vocab_size", defaults.vocab_size)?,
        rms_norm_eps: raw.rms_norm_eps.or("rms_norm_eps", defaults.rms_norm_eps)?,
        rope_theta,
        rope_scaling,
        max_position_embeddings,
        sliding_window,
        tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(defaults.tie_word_embeddings),
        eos_token_ids: raw.eos_token_id.map(EndTokens::ids).unwrap_or_default(),
        bos_token_id: raw.bos_token_id.and_then(token_id),
    };
    config.check()?;
    Ok((config, biases))
}

/// The attention window of all layers, if they have one.
fn window(
    raw: &RawConfig,
    family: &Family,
    layers: usize,
    max_position_embeddings: usize,
) -> Result<Option<usize>, ConfigDefect> {
    let windowed = |kind: &String| kind == "sliding_attention";
    match family.window {
        // The class takes no notice of the key, but the cache of keys and values does once a text
        // is longer.
        Window::Never => match raw
            .sliding_window
            .or_none(None)
            .filter(|window| *window < max_position_embeddings)
        {
            Some(found) => Err(unsupported(
                "sliding_window",
                found,
                "null: this family's attention has no window",
            )),
            None => Ok(None),
        },
        Window::Always(default) => {
            let window = raw.sliding_window.or_none(Some(default));
            match raw.layer_types.iter().flatten().find(|kind| window.is_some() != windowed(kind)) {
                Some(found) => Err(unsupported(
                    "layer_types",
                    found,
                    "what sliding_window says, for all layers",
                )),
                None => Ok(window),
            }
        }
        Window::Switched { window, first_layer } => {
            let window = raw
                .sliding_window
                .or_none(Some(window))
                .filter(|_| raw.use_sliding_window == Some(true));
            let count = match &raw.layer_types {
                Some(types) => types.iter().filter(|kind| windowed(kind)).count(),
                None => layers.saturating_sub(raw.max_window_layers.unwrap_or(first_layer)),
            };
            match (window, count) {
                (Some(_), 0) => Ok(None),
                (Some(window), count) if count >= layers => Ok(Some(window)),
                (Some(_), count) => {
                    let found = format!("{count} of {layers}");
                    Err(unsupported(
                        "layers with a sliding_window",
                        found,
                        "one window for all layers, or none",
                    ))
                }
                (None, count) if raw.layer_types.is_some() && count > 0 => {
                    let expected = "full_attention where use_sliding_window is not true";
                    Err(unsupported("layer_types", "sliding_attention", expected))
                }
                (None, _) => Ok(None),
            }
        }
    }
}

/// Opens the folder's safetensors, in name order: one file, or those that the index names.
pub(super) fn open_files(dir: &Path) -> Result<Vec<SafeTensorsFile>> {
    let single = dir.join("model.safetensors");
    if single.exists() {
        return Ok(vec![SafeTensorsFile::open_mapped(&single)?]);
    }
    let path = dir.join("model.safetensors.index.json");
    if !path.exists() {
        let defect = wrapped::no_model(dir)
            .unwrap_or_else(|| ConfigDefect::NoWeights { hint: what_lacks(dir) });
        return Err(Error::Config { path: dir.to_owned(), defect });
    }
    let index: Index = read_json(&path, MAX_INDEX_BYTES)?;
    // A tensor that no shard has is none that is missed, unless the architecture asks for it.
    let shards: BTreeMap<_, _> =
        index.weight_map.iter().map(|(tensor, name)| (name, tensor)).collect();
    let open = |(name, tensor): (&String, &String)| {
        let shard = shard(dir, name, tensor)
            .map_err(|defect| Error::Config { path: path.clone(), defect })?;
        SafeTensorsFile::open_mapped(&shard)
    };
    shards.into_iter().map(open).collect()
}

/// What to say of a folder without weights that are read.
fn what_lacks(dir: &Path) -> &'static str {
    let has = |file: &str| dir.join(file).exists();
    let is_shard = |name: &str| name.starts_with("model-") && name.ends_with(".safetensors");
    let mut entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    if has("pytorch_model.bin") || has("pytorch_model.bin.index.json") {
        "pickled weights (.bin) are never read, convert them with save_pretrained(safe_serialization=True)"
    } else if entries.any(|entry| entry.file_name().to_str().is_some_and(is_shard)) {
        "there are shards, model-….safetensors, so it is the index that is missing; fetch it"
    } else {
        "fetch the model again"
    }
}

/// The file that the index calls `name`: in the folder, or in one below that is no link out of it.
fn shard(dir: &Path, name: &str, tensor: &str) -> Result<PathBuf, ConfigDefect> {
    let file = dir.join(name);
    let within = |folder: &Path| {
        let [folder, root] = [folder, dir].map(|path| path.canonicalize());
        folder.is_ok_and(|folder| root.is_ok_and(|root| folder.starts_with(root)))
    };
    let parts = Path::new(name).components();
    let plain = !name.contains(['\\', ':'])
        && parts.clone().all(|part| matches!(part, Component::Normal(_)));
    let below = file.parent().filter(|_| parts.count() > 1);
    if !plain
        || !name.ends_with(".safetensors")
        || below.is_some_and(|folder| folder.exists() && !within(folder))
    {
        return Err(ConfigDefect::ShardName { file: name.to_owned() });
    }
    if !file.exists() {
        return Err(ConfigDefect::MissingShard { tensor: tensor.to_owned(), file });
    }
    Ok(file)
}

fn read_json<T: DeserializeOwned>(path: &Path, max_bytes: u64) -> Result<T> {
    let bytes = read_limited(path, max_bytes)?;
    from_json(&bytes).map_err(|reason| Error::Config {
        path: path.to_owned(),
        defect: ConfigDefect::Json { reason },
    })
}

pub(super) fn unsupported(key: &str, found: impl ToString, expected: &'static str) -> ConfigDefect {
    ConfigDefect::Unsupported { key: key.to_owned(), found: found.to_string(), expected }
}
