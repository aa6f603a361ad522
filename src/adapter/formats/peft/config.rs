//! `adapter_config.json`: every key known and supported, or refused by name.
//!
//! **Invariant:** no key that could change the maths is ignored.
//!
//! **Source:** PEFT 0.21.2: `tuners/lora/config.py`, `LoraConfig`; `tuners/lora/layer.py`,
//! `update_layer`.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::pattern::{Pattern, share};
use super::selection::Selection;
use crate::adapter::module::Module;
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
pub(super) struct PeftConfig {
    pub(super) rslora: bool,
    pub(super) fan_in_fan_out: bool,
    /// The factors of embedding and head are to be one pair.
    pub(super) ensure_weight_tying: bool,
    pub(super) base_model: Option<String>,
    pub(super) selection: Selection,
    /// `r` and `rank_pattern`.
    pub(super) rank: ByPattern<usize>,
    /// `lora_alpha` and `alpha_pattern`.
    pub(super) alpha: ByPattern<f64>,
}

impl PeftConfig {
    /// Parses the bytes of `adapter_config.json`.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, AdapterDefect> {
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
        // `LoraConfig`'s own defaults.
        let rank = config.get("r").map_or(Ok(8), |value| parse_rank("r", value))?;
        let alpha =
            config.get("lora_alpha").map_or(Ok(8.0), |value| parse_number("lora_alpha", value))?;
        let base_model = config.get("base_model_name_or_path").and_then(Value::as_str);
        Ok(Self {
            rslora: flag(&config, "use_rslora")?,
            fan_in_fan_out: flag(&config, "fan_in_fan_out")?,
            ensure_weight_tying: flag(&config, "ensure_weight_tying")?,
            base_model: base_model.map(str::to_owned),
            selection: Selection::parse(&config)?,
            rank: ByPattern::parse(rank, &config, "rank_pattern", parse_rank)?,
            alpha: ByPattern::parse(alpha, &config, "alpha_pattern", parse_number)?,
        })
    }

    /// Comparisons that one module costs.
    pub(super) fn pattern_count(&self) -> usize {
        self.selection.len() + self.rank.patterns.len() + self.alpha.patterns.len()
    }

    /// `alpha / rank`, or `alpha / √rank` with rsLoRA.
    #[allow(clippy::cast_precision_loss, reason = "ranks are at most some hundreds")]
    pub(super) fn scaling(&self, alpha: f64, rank: usize) -> f64 {
        if self.rslora { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 }
    }

    /// Refuses a pattern that is not among the `used` ones and matches no module: its rank or alpha
    /// would be lost. One that an earlier one always shadows still has to match something by
    /// itself.
    pub(super) fn check_all_used(
        &self,
        used: &UsedPatterns,
        modules: &[Module],
    ) -> Result<(), AdapterDefect> {
        let unused: Vec<&Pattern> =
            self.rank.unused(&used.rank).chain(self.alpha.unused(&used.alpha)).collect();
        if unused.is_empty() {
            return Ok(());
        }
        let names: Vec<String> =
            modules.iter().map(|module| self.selection.pattern_name(&module.path)).collect();
        for pattern in unused {
            if !pattern.matches_any(&names)? {
                return Err(AdapterDefect::PatternMatchesNothing {
                    key: pattern.key,
                    pattern: pattern.text.clone(),
                    modules: modules.len(),
                    example: modules[0].name.clone(),
                });
            }
        }
        Ok(())
    }
}

/// Which patterns set a module's rank or alpha, by their places in the config.
#[derive(Default)]
pub(super) struct UsedPatterns {
    pub(super) rank: BTreeSet<usize>,
    pub(super) alpha: BTreeSet<usize>,
}

/// A value that all modules have but those that a pattern names.
#[derive(Clone, Debug)]
pub(super) struct ByPattern<T> {
    default: T,
    /// In the config's order.
    patterns: Vec<(Pattern, T)>,
}

impl<T: Copy> ByPattern<T> {
    /// Reads the patterns under `key`, and each one's value with `read`.
    fn parse(
        default: T,
        config: &Map<String, Value>,
        key: &'static str,
        read: impl Fn(&str, &Value) -> Result<T, AdapterDefect>,
    ) -> Result<Self, AdapterDefect> {
        let patterns = match config.get(key) {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Object(map)) => {
                let bytes = share(key, map.len())?;
                map.iter()
                    .map(|(text, value)| {
                        Ok((Pattern::suffix(key, text, bytes)?, read(key, value)?))
                    })
                    .collect::<Result<_, _>>()?
            }
            Some(other) => return Err(wrong(key, "an object of patterns", other)),
        };
        Ok(Self { default, patterns })
    }

    /// The value of the module called `name`: the first pattern's that matches it. That pattern is
    /// put into `used`.
    pub(super) fn value_for(
        &self,
        name: &str,
        used: &mut BTreeSet<usize>,
    ) -> Result<T, AdapterDefect> {
        for (index, (pattern, value)) in self.patterns.iter().enumerate() {
            if pattern.matches(name)? {
                used.insert(index);
                return Ok(*value);
            }
        }
        Ok(self.default)
    }

    /// The patterns that are not among the `used` ones.
    fn unused(&self, used: &BTreeSet<usize>) -> impl Iterator<Item = &Pattern> {
        let patterns = self.patterns.iter().enumerate();
        patterns.filter(|(index, _)| !used.contains(index)).map(|(_, (pattern, _))| pattern)
    }
}

/// Refuses a key that is unknown, or has a value that is not supported.
fn check_key(key: &str, value: &Value) -> Result<(), AdapterDefect> {
    if key == "init_lora_weights" {
        return check_init(key, value);
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
        Some((_, advice)) => Err(unsupported(key, value, advice)),
        None => Err(AdapterDefect::ConfigUnknownKey {
            key: shorten(key),
            value: shorten(&value.to_string()),
        }),
    }
}

/// Refuses a start (`init_lora_weights`) that changed the base's own weights, or may have.
fn check_init(key: &str, value: &Value) -> Result<(), AdapterDefect> {
    let name = match value {
        Value::String(name) => name.to_ascii_lowercase(),
        Value::Null | Value::Bool(_) => return Ok(()),
        _ => return Err(wrong(key, "a name, true or false", value)),
    };
    if PLAIN_INITS.contains(&name.as_str()) {
        return Ok(());
    }
    let advice = if CHANGING_INITS.iter().any(|start| name.starts_with(start)) {
        "this start changed the base's own weights, so the adapter does not fit the stock base; save it with \
         `save_pretrained(path, path_initial_model_for_weight_conversion=...)`, which turns it into a plain LoRA"
    } else {
        "this start is unknown here, and it may have changed the base's own weights; write true if you know that it \
         did not"
    };
    Err(unsupported(key, value, advice))
}

fn unsupported(key: &str, value: &Value, advice: &'static str) -> AdapterDefect {
    let value = shorten(&value.to_string());
    AdapterDefect::ConfigUnsupported { key: key.to_owned(), value, advice }
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

/// The first characters of a text that may be long.
pub(super) fn shorten(text: &str) -> String {
    const SHOWN: usize = 120;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
