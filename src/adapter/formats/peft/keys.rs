//! A tensor's key → the module, the factor and the adapter's name in it; a key that is no factor's
//! is refused with what it is.
//!
//! **Invariant:** a tensor is a factor of one module, a copy of the base's embedding or head, or
//! refused.
//!
//! **Source:** PEFT 0.21.2, `utils/save_and_load.py`, `get_peft_model_state_dict`.

use std::collections::BTreeMap;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

use super::config::shorten;
use crate::WeightName;
use crate::adapter::module::{TensorSpan, WeightCopy};
use crate::error::AdapterDefect;
use crate::name::{EMBEDDING, HEAD};

/// Longest key of a tensor, in bytes.
const MAX_KEY_BYTES: usize = 512;

/// What a key says.
pub(super) struct Key<'a> {
    pub(super) module: &'a str,
    pub(super) part: Part,
    /// The adapter's name, which PEFT takes out on saving and others leave in; none for `default`.
    pub(super) adapter: Option<&'a str>,
}

/// Which of a module's tensors a key names.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) is_a: bool,
    pub(super) is_embedding: bool,
}

/// What stands between a module's path and the rest of a key.
const PARTS: [(&str, Part); 4] = [
    (".lora_A", Part { is_a: true, is_embedding: false }),
    (".lora_B", Part { is_a: false, is_embedding: false }),
    (".lora_embedding_A", Part { is_a: true, is_embedding: true }),
    (".lora_embedding_B", Part { is_a: false, is_embedding: true }),
];

const TORCHTUNE: &str =
    "torchtune's spelling; convert the file to PEFT's format (its checkpointer writes that, too)";
const MLX: &str = "MLX's spelling, with transposed factors; convert the file to PEFT's format";
const KOHYA: &str = "a kohya key; convert the file to PEFT's format";

/// Signs in the keys of what is no factor, the clearest ones first, and what each means.
const OTHERS: [(&str, &str); 17] = [
    (
        "lora_magnitude_vector",
        "it belongs to DoRA, whose changes do not add up; train with use_dora=False",
    ),
    ("lora_B.bias", "a bias of lora_B; train with lora_bias=False"),
    (
        "token_adapter",
        "it overwrites rows of the embedding; train with trainable_token_indices=None",
    ),
    (
        "base_layer.",
        "a copy of the base's own weight; save the adapter again from the trained PeftModel",
    ),
    ("lora_E", "it belongs to AdaLoRA; only LORA is supported"),
    ("hada_", "it belongs to LoHa; only LORA is supported"),
    ("lokr_", "it belongs to LoKr; only LORA is supported"),
    (".lora_a.weight", TORCHTUNE),
    (".lora_b.weight", TORCHTUNE),
    (".lora_a", MLX),
    (".lora_b", MLX),
    ("lora_down", KOHYA),
    ("lora_up", KOHYA),
    ("prompt_embeddings", "it belongs to prompt tuning, which changes no weights"),
    ("modules_to_save", "a whole module, not a change to one; train with modules_to_save=None"),
    (".bias", "a whole bias, not a change to one; train with bias=\"none\""),
    (
        ".weight",
        "a whole weight, not a change to one; train without modules_to_save and resized embeddings",
    ),
];

/// Splits a tensor's key into its module, its part and the adapter's name.
pub(super) fn parse_key(key: &str) -> Result<Key<'_>, AdapterDefect> {
    match PARTS.iter().find_map(|(word, part)| split(key, word, *part)) {
        Some(parsed) if !parsed.module.is_empty() && key.len() <= MAX_KEY_BYTES => Ok(parsed),
        _ => Err(AdapterDefect::TensorRefused { tensor: shorten(key), reason: refusal(key) }),
    }
}

/// Splits a key at `word`, if it is there and what follows is a factor's ending.
fn split<'a>(key: &'a str, word: &str, part: Part) -> Option<Key<'a>> {
    let (module, rest) = key.rsplit_once(word)?;
    // The factors of an embedding are parameters, the others modules with a weight.
    let rest = if part.is_embedding { rest } else { rest.strip_suffix(".weight")? };
    let adapter = match rest {
        "" => None,
        name => Some(adapter_name(name)?),
    };
    Some(Key { module, part, adapter: adapter.filter(|name| *name != "default") })
}

/// The name in `.NAME`: one segment.
fn adapter_name(rest: &str) -> Option<&str> {
    rest.strip_prefix('.').filter(|name| !matches!(*name, "" | "weight") && !name.contains('.'))
}

/// Says what a tensor that is not a LoRA factor is.
fn refusal(key: &str) -> &'static str {
    if key.len() > MAX_KEY_BYTES {
        return "its name is too long";
    }
    let known = OTHERS.iter().find(|(sign, _)| key.contains(sign));
    known.map_or("no LoRA tensor is named so; is this a PEFT LoRA file?", |(_, reason)| reason)
}

/// The factor that a tensor is, of a shape and type that can be read.
pub(super) fn span(key: &str, info: &TensorInfo, part: Part) -> Result<TensorSpan, AdapterDefect> {
    if !matches!(info.dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        return Err(AdapterDefect::TensorDtype {
            tensor: key.to_owned(),
            dtype: info.dtype.to_string(),
        });
    }
    let side = |[rows, cols]: [usize; 2]| if part.is_a { cols } else { rows };
    match <[usize; 2]>::try_from(info.shape.as_slice()) {
        // The rank may be 0 here: that has an error of its own.
        Ok(shape) if side(shape) > 0 => {
            Ok(TensorSpan { key: key.to_owned(), dtype: info.dtype, shape })
        }
        _ => Err(AdapterDefect::TensorShape {
            tensor: key.to_owned(),
            shape: info.shape.clone(),
            expected: match part.is_a {
                true => "(rank, in); convolutions are not supported",
                false => "(out, rank)",
            },
        }),
    }
}

/// The tensors that are copies of the base's embedding and head, which PEFT saves beside a change to
/// them, or where it is asked for them (`save_embedding_layers`).
pub(super) fn weight_copies(tensors: &BTreeMap<String, TensorInfo>) -> Vec<WeightCopy> {
    let copy = |key: &String| Some(WeightCopy { weight: copied_weight(key)?, key: key.clone() });
    tensors.keys().filter_map(copy).collect()
}

/// The weight of which a tensor is a copy, if it is an embedding or head, or the base layer of one.
pub(super) fn copied_weight(key: &str) -> Option<WeightName> {
    let module = key.strip_suffix(".weight")?;
    let module = module.strip_suffix(".base_layer").unwrap_or(module);
    Some(WeightName::from_peft_module(module)).filter(is_embedding_or_head)
}

pub(super) fn is_embedding_or_head(weight: &WeightName) -> bool {
    [EMBEDDING, HEAD].contains(&weight.as_str())
}
