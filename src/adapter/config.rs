//! `adapter_config.json`: every key known and supported, or refused by name.
//!
//! **Invariant:** no key that could change the maths is ignored.
//!
//! **Source:** PEFT's `LoraConfig` and `update_layer`.

use serde_json::{Map, Value};

use super::pattern::{Pattern, Targets, share};
use crate::error::AdapterDefect;
use crate::file::from_json;

/// Keys that do not change what the tensors mean.
const HARMLESS: [&str; 16] = [
    "_comment",
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "lora_dropout",
    // MS-Swift's: the factors' own type is in the file, and learning rates are past.
    "lora_dtype",
    "lorap_emb_lr",
    "lorap_lr_ratio",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    // These choose start values; PEFT reads them only together with an `init_lora_weights` that is
    // judged by itself.
    "corda_config",
    "eva_config",
];

/// Keys that are read below.
const READ: [&str; 15] = [
    "alpha_pattern",
    "bias",
    "ensure_weight_tying",
    "exclude_modules",
    "fan_in_fan_out",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "target_parameters",
    "use_rslora",
];

/// Keys that change the maths whenever they are set, and what to do instead.
const REFUSED: [(&str, &str); 15] = [
    ("alora_invocation_tokens", "an aLoRA acts only after its tokens, so it can never be merged"),
    ("arrow_config", "Arrow routes each token to another adapter, so it can never be merged"),
    ("kasa_config", "KaSA changed the base's weights when training began; save it as a plain LoRA"),
    ("layer_replication", "it changes the number of layers"),
    (
        "loftq_config",
        "LoftQ changed the base's weights when training began; merge it into its base instead",
    ),
    ("lora_bias", "biases of lora_B are not supported; train with lora_bias=False"),
    (
        "lora_ga_config",
        "LoRA-GA changed the base's weights when training began; save it with \
         `save_pretrained(path, path_initial_model_for_weight_conversion=...)` and without this key",
    ),
    (
        "megatron_config",
        "Megatron's parallel layers are not supported; save the adapter for the Hugging Face model",
    ),
    (
        "modules_to_save",
        "the file then holds whole modules, not changes; train with modules_to_save=None",
    ),
    ("monteclora_config", "MonteCLoRA draws its weights at random; it is not a fixed change"),
    ("trainable_token_indices", "it overwrites rows of the embedding; train with it unset"),
    ("use_bdlora", "BD-LoRA's block-diagonal factors are not supported"),
    (
        "use_dora",
        "DoRA rescales whole rows, so two on a path do not add up; train with use_dora=False",
    ),
    ("use_qalora", "QALoRA pools its input; train with use_qalora=False"),
    ("velora_config", "VeLoRA's compressed inputs are not supported"),
];

/// `init_lora_weights` that only choose start values.
const PLAIN_INITS: [&str; 4] = ["gaussian", "eva", "orthogonal", "mica"];

/// Beginnings of those that change the base's own weights.
const CHANGING_INITS: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// Values of `bias`. Where the base has biases the file then holds them whole, and is refused for
/// that tensor.
const BIASES: [&str; 3] = ["none", "all", "lora_only"];

/// What an adapter's config says about the maths.
#[derive(Clone, Debug)]
pub(crate) struct PeftConfig {
    pub(crate) rslora: bool,
    pub(crate) fan_in_fan_out: bool,
    /// The factors of embedding and head are to be one pair.
    pub(crate) ensure_weight_tying: bool,
    pub(crate) base_model: Option<String>,
    pub(crate) targets: Targets,
    pub(crate) rank: usize,
    pub(crate) alpha: f64,
    pub(crate) rank_pattern: Vec<(Pattern, usize)>,
    pub(crate) alpha_pattern: Vec<(Pattern, f64)>,
}

impl PeftConfig {
    /// Parses the bytes of `adapter_config.json`.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, AdapterDefect> {
        let config: Map<String, Value> =
            from_json(bytes).map_err(|source| AdapterDefect::ConfigNotJson { source })?;
        // The method first: another method's keys would only confuse.
        match config.get("peft_type") {
            Some(Value::String(name)) if name == "LORA" => {}
            Some(found) => {
                return Err(AdapterDefect::PeftType { found: shorten(&found.to_string()) });
            }
            None => return Err(AdapterDefect::PeftType { found: "missing".into() }),
        }
        for (key, value) in &config {
            check_key(key, value)?;
        }
        let rank = config.get("r").map_or(Ok(8), |value| parse_rank("r", value))?;
        let alpha =
            config.get("lora_alpha").map_or(Ok(8.0), |value| parse_number("lora_alpha", value))?;
        Ok(Self {
            rslora: flag(&config, "use_rslora")?,
            fan_in_fan_out: flag(&config, "fan_in_fan_out")?,
            ensure_weight_tying: flag(&config, "ensure_weight_tying")?,
            base_model: config
                .get("base_model_name_or_path")
                .and_then(Value::as_str)
                .map(str::to_owned),
            targets: Targets::parse(&config)?,
            rank,
            alpha,
            rank_pattern: patterns(&config, "rank_pattern", parse_rank)?,
            alpha_pattern: patterns(&config, "alpha_pattern", parse_number)?,
        })
    }

    /// Comparisons that one module costs.
    pub(crate) fn pattern_count(&self) -> usize {
        self.targets.len() + self.rank_pattern.len() + self.alpha_pattern.len()
    }

    /// The rank of `module`, as the file spells it, and which pattern gave it.
    pub(crate) fn rank_of(&self, module: &str) -> Result<(usize, Option<usize>), AdapterDefect> {
        first_match(&self.rank_pattern, module)
            .map(|found| found.map_or((self.rank, None), |(i, rank)| (rank, Some(i))))
    }

    /// The alpha of `module`, and which pattern gave it.
    pub(crate) fn alpha_of(&self, module: &str) -> Result<(f64, Option<usize>), AdapterDefect> {
        first_match(&self.alpha_pattern, module)
            .map(|found| found.map_or((self.alpha, None), |(i, alpha)| (alpha, Some(i))))
    }

    /// `alpha / rank`, or `alpha / √rank` with rsLoRA.
    #[allow(clippy::cast_precision_loss, reason = "ranks are at most some hundreds")]
    pub(crate) fn scaling(&self, alpha: f64, rank: usize) -> f64 {
        if self.rslora { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 }
    }
}

/// The first pattern, in the config's order, that matches.
fn first_match<T: Copy>(
    patterns: &[(Pattern, T)],
    module: &str,
) -> Result<Option<(usize, T)>, AdapterDefect> {
    for (index, (pattern, value)) in patterns.iter().enumerate() {
        if pattern.matches(module)? {
            return Ok(Some((index, *value)));
        }
    }
    Ok(None)
}

fn check_key(key: &str, value: &Value) -> Result<(), AdapterDefect> {
    let unsupported = |advice| AdapterDefect::ConfigUnsupported {
        key: key.to_owned(),
        value: shorten(&value.to_string()),
        advice,
    };
    if key == "init_lora_weights" {
        let Value::String(name) = value else {
            let plain = matches!(value, Value::Null | Value::Bool(_));
            return if plain { Ok(()) } else { Err(wrong(key, "a name, true or false", value)) };
        };
        let name = name.to_ascii_lowercase();
        return match () {
            () if PLAIN_INITS.contains(&name.as_str()) => Ok(()),
            () if CHANGING_INITS.iter().any(|start| name.starts_with(start)) => Err(unsupported(
                "this start changed the base's own weights, so the adapter does not fit the stock base; save it with \
                 `save_pretrained(path, path_initial_model_for_weight_conversion=...)`, which turns it into a plain LoRA",
            )),
            () => Err(unsupported(
                "this start is unknown here, and it may have changed the base's own weights; write true if you know that \
                 it did not",
            )),
        };
    }
    if key == "bias"
        && value.as_str().is_none_or(|bias| !BIASES.contains(&bias))
        && !is_nothing(value)
    {
        return Err(wrong(key, "none, all or lora_only", value));
    }
    if is_nothing(value) || HARMLESS.contains(&key) || READ.contains(&key) {
        return Ok(());
    }
    match REFUSED.iter().find(|(name, _)| *name == key) {
        Some((_, advice)) => Err(unsupported(advice)),
        None => Err(AdapterDefect::ConfigUnknownKey {
            key: shorten(key),
            value: shorten(&value.to_string()),
        }),
    }
}

/// Whether a value says "not used".
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty() || text.eq_ignore_ascii_case("none"),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

fn wrong(key: &str, expected: &'static str, found: &Value) -> AdapterDefect {
    AdapterDefect::ConfigValue { key: key.to_owned(), expected, found: shorten(&found.to_string()) }
}

fn flag(config: &Map<String, Value>, key: &str) -> Result<bool, AdapterDefect> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(other) => Err(wrong(key, "true or false", other)),
    }
}

fn parse_rank(key: &str, value: &Value) -> Result<usize, AdapterDefect> {
    match value.as_u64().map(usize::try_from) {
        Some(Ok(0)) => {
            Err(AdapterDefect::RankZero { module: format!("adapter_config.json's {key}") })
        }
        Some(Ok(rank)) => Ok(rank),
        _ => Err(wrong(key, "a positive whole number", value)),
    }
}

fn parse_number(key: &str, value: &Value) -> Result<f64, AdapterDefect> {
    value
        .as_f64()
        .filter(|number| number.is_finite())
        .ok_or_else(|| wrong(key, "a finite number", value))
}

fn patterns<T>(
    config: &Map<String, Value>,
    key: &'static str,
    read: impl Fn(&str, &Value) -> Result<T, AdapterDefect>,
) -> Result<Vec<(Pattern, T)>, AdapterDefect> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Object(map)) => {
            let bytes = share(key, map.len())?;
            map.iter()
                .map(|(text, value)| Ok((Pattern::suffix(key, text, bytes)?, read(key, value)?)))
                .collect()
        }
        Some(other) => Err(wrong(key, "an object of patterns", other)),
    }
}

/// The first characters of a text that may be long.
pub(crate) fn shorten(text: &str) -> String {
    const SHOWN: usize = 120;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
