//! What an adapter is, from its config and its tensors' header alone: targets, ranks, scalings, touched weights.
//!
//! **Invariant:** every tensor of the file belongs to a target, every target has A and B of the rank the config says.
//!
//! **Source:** PEFT's `save_pretrained`; the safetensors format.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

use super::config::{PeftConfig, shorten};
use super::pattern::ModuleName;
use super::{BaseShapes, Limits};
use crate::error::AdapterDefect;
use crate::file::read_limited;
use crate::file::safetensors::read_header;
use crate::{Error, Result, WeightName};

/// The config's file name.
pub(crate) const CONFIG_FILE: &str = "adapter_config.json";
/// The tensors' file name.
pub(crate) const TENSOR_FILE: &str = "adapter_model.safetensors";
const PICKLE_FILE: &str = "adapter_model.bin";

/// Longest key of a tensor, in bytes.
const MAX_KEY_BYTES: usize = 512;
/// Pattern comparisons in one adapter: a 70B model's 560 modules with a pattern each need 0.6 million.
const MAX_COMPARISONS: usize = 1 << 22;

/// One weight that an adapter changes.
#[derive(Clone, Debug)]
pub struct Target {
    /// The weight.
    pub weight: WeightName,
    /// Its `[out, in]`, by the adapter's tensors.
    pub shape: [usize; 2],
    /// Rank of the change.
    pub rank: usize,
    /// `alpha / rank`, or `alpha / √rank` with rsLoRA.
    pub scaling: f64,
    /// Whether it is an embedding `(vocab, dim)`: its factors are stored transposed.
    pub is_embedding: bool,
    pub(crate) module: String,
    pub(crate) lora_a: TensorSpan,
    pub(crate) lora_b: TensorSpan,
}

/// One tensor of the file.
#[derive(Clone, Debug)]
pub(crate) struct TensorSpan {
    pub(crate) key: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: [usize; 2],
}

/// An adapter's config and the shapes of its tensors; no tensor is read.
#[derive(Clone, Debug)]
pub struct PeftHeader {
    pub(crate) path: PathBuf,
    pub(crate) config: PeftConfig,
    pub(crate) targets: Vec<Target>,
    /// Copies of the base's own embedding or head that PEFT saves beside a change to them: weight and key.
    pub(crate) copies: Vec<(WeightName, String)>,
    pub(crate) data_bytes: u64,
}

impl PeftHeader {
    /// Reads the config and the header of the tensor file in the folder `dir`.
    ///
    /// # Errors
    /// [`Error::Adapter`] for everything [`AdapterDefect`] names, [`Error::SafeTensors`] for a damaged tensor header,
    /// [`Error::FileTooLarge`], and [`Error::Io`] if a file cannot be read.
    pub fn open(dir: &Path, limits: &Limits) -> Result<Self> {
        let (config, tensors) = files(dir)?;
        let config = read_limited(&config, limits.config_bytes)?;
        let (tensors, data_bytes) = read_header(&tensors, limits.file_bytes)?;
        Self::parse(dir, &config, &tensors, data_bytes, limits)
    }

    /// Parses a config, and checks it against the tensors of a file, which have `data_bytes` in all.
    pub(crate) fn parse(
        path: &Path,
        config: &[u8],
        tensors: &BTreeMap<String, TensorInfo>,
        data_bytes: u64,
        limits: &Limits,
    ) -> Result<Self> {
        let wrap = |defect| Error::adapter(path, defect);
        let config = PeftConfig::parse(config).map_err(wrap)?;
        let targets = targets(&config, tensors, limits).map_err(wrap)?;
        let copies = tensors.keys().filter_map(|key| Some((copied_weight(key)?, key.clone()))).collect();
        Ok(Self { path: path.to_owned(), config, targets, copies, data_bytes })
    }

    /// The folder the adapter was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The weights it changes, in the order of their names.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// How many weights (elements) of the base it changes.
    pub fn touched_weights(&self) -> u64 {
        self.targets.iter().map(|target| target.shape[0] as u64 * target.shape[1] as u64).sum()
    }

    /// The base that the config names (`base_model_name_or_path`).
    pub fn base_model(&self) -> Option<&str> {
        self.config.base_model.as_deref().filter(|name| !name.is_empty())
    }

    /// Checks that every weight it changes is in `base` with the same shape.
    ///
    /// # Errors
    /// [`AdapterDefect::NotInBase`] and [`AdapterDefect::ShapeMismatch`] inside [`Error::Adapter`].
    pub fn fits(&self, base: &BaseShapes) -> Result<()> {
        base.accepts(self).map_err(|defect| Error::adapter(&self.path, defect))
    }
}

/// The paths of an adapter's two files, which are there.
pub(crate) fn files(dir: &Path) -> Result<(PathBuf, PathBuf)> {
    if !dir.is_dir() {
        std::fs::read_dir(dir).map_err(|source| Error::io(dir, source))?;
    }
    let [config, tensors] = [CONFIG_FILE, TENSOR_FILE].map(|file| dir.join(file));
    if !config.exists() {
        return Err(Error::adapter(dir, AdapterDefect::MissingFile { file: CONFIG_FILE }));
    }
    if !tensors.exists() {
        let pickle = dir.join(PICKLE_FILE).exists();
        let missing = AdapterDefect::MissingFile { file: TENSOR_FILE };
        return Err(Error::adapter(dir, if pickle { AdapterDefect::Pickle } else { missing }));
    }
    Ok((config, tensors))
}

/// A module's halves as they are found.
#[derive(Default)]
struct Halves {
    lora_a: Option<TensorSpan>,
    lora_b: Option<TensorSpan>,
}

fn targets(
    config: &PeftConfig,
    tensors: &BTreeMap<String, TensorInfo>,
    limits: &Limits,
) -> Result<Vec<Target>, AdapterDefect> {
    if tensors.len() > limits.tensors {
        return Err(AdapterDefect::TooManyTensors { found: tensors.len(), limit: limits.tensors });
    }
    let mut modules: BTreeMap<(String, bool), Halves> = BTreeMap::new();
    for (key, info) in tensors.iter().filter(|(key, _)| copied_weight(key).is_none()) {
        let (module, part) = parse_key(key)?;
        let span = span(key, info, part)?;
        let halves = modules.entry((module.to_owned(), part.is_embedding)).or_default();
        let half = if part.is_a { &mut halves.lora_a } else { &mut halves.lora_b };
        if let Some(other) = half.replace(span) {
            let weight = WeightName::from_peft_module(module).to_string();
            return Err(AdapterDefect::DuplicateTarget { weight, first: other.key, second: key.clone() });
        }
    }
    if modules.is_empty() {
        return Err(AdapterDefect::NoTargets);
    }
    let patterns = config.pattern_count();
    if patterns.saturating_mul(modules.len()) > MAX_COMPARISONS {
        return Err(AdapterDefect::TooManyPatterns { patterns, modules: modules.len() });
    }
    let mut used = UsedPatterns::new(config);
    let mut by_weight: BTreeMap<WeightName, Target> = BTreeMap::new();
    for ((module, is_embedding), halves) in modules {
        let target = target(config, module, is_embedding, halves, &mut used, limits)?;
        if let Some(other) = by_weight.get(&target.weight) {
            let (first, second) = (other.module.clone(), target.module);
            return Err(AdapterDefect::DuplicateTarget { weight: target.weight.to_string(), first, second });
        }
        by_weight.insert(target.weight.clone(), target);
    }
    let targets: Vec<Target> = by_weight.into_values().collect();
    used.check(config, &targets)?;
    if config.ensure_weight_tying && targets.iter().any(|target| is_embedding_name(&target.weight)) {
        return Err(AdapterDefect::ConfigUnsupported {
            key: "ensure_weight_tying".into(),
            value: "true".into(),
            advice: "it ties the adapters of the embedding and the head; train with it unset",
        });
    }
    Ok(targets)
}

/// The weight of which a tensor is a copy, if it is the base layer of an embedding or head.
fn copied_weight(key: &str) -> Option<WeightName> {
    let module = key.strip_suffix(".base_layer.weight")?;
    Some(WeightName::from_peft_module(module)).filter(is_embedding_name)
}

fn is_embedding_name(weight: &WeightName) -> bool {
    matches!(weight.as_str(), "model.embed_tokens.weight" | "lm_head.weight")
}

/// Which patterns of `rank_pattern` and `alpha_pattern` selected a module.
struct UsedPatterns {
    rank: Vec<bool>,
    alpha: Vec<bool>,
}

impl UsedPatterns {
    fn new(config: &PeftConfig) -> Self {
        Self { rank: vec![false; config.rank_pattern.len()], alpha: vec![false; config.alpha_pattern.len()] }
    }

    /// A pattern that an earlier one always shadows still has to match something by itself.
    fn check(&self, config: &PeftConfig, targets: &[Target]) -> Result<(), AdapterDefect> {
        let ranks = config.rank_pattern.iter().map(|(pattern, _)| pattern).zip(&self.rank);
        let alphas = config.alpha_pattern.iter().map(|(pattern, _)| pattern).zip(&self.alpha);
        for (pattern, _) in ranks.chain(alphas).filter(|(_, used)| !**used) {
            let mut matched = false;
            for target in targets {
                matched = matched || pattern.matches(module_name(&target.module, &target.weight))?;
            }
            if !matched {
                return Err(AdapterDefect::PatternMatchesNothing {
                    key: pattern.key,
                    pattern: pattern.text.clone(),
                    modules: targets.len(),
                    example: targets[0].module.clone(),
                });
            }
        }
        Ok(())
    }
}

fn module_name<'a>(module: &'a str, weight: &'a WeightName) -> ModuleName<'a> {
    ModuleName {
        in_file: module.strip_prefix("base_model.model.").unwrap_or(module),
        canonical: weight.as_str().strip_suffix(".weight").unwrap_or(weight.as_str()),
    }
}

fn target(
    config: &PeftConfig,
    module: String,
    is_embedding: bool,
    halves: Halves,
    used: &mut UsedPatterns,
    limits: &Limits,
) -> Result<Target, AdapterDefect> {
    let (present, missing) = if halves.lora_a.is_some() { ("lora_A", "lora_B") } else { ("lora_B", "lora_A") };
    let (Some(lora_a), Some(lora_b)) = (halves.lora_a, halves.lora_b) else {
        return Err(AdapterDefect::MissingHalf { module, present, missing });
    };
    let weight = WeightName::from_peft_module(&module);
    let name = module_name(&module, &weight);
    if let Some(reason) = config.targets.leaves_out(name, is_embedding)? {
        return Err(AdapterDefect::NotTargeted { module, reason });
    }
    let ([rank, input], [output, rank_b]) = (lora_a.shape, lora_b.shape);
    let (config_rank, rank_pattern) = config.rank_of(name)?;
    let (alpha, alpha_pattern) = config.alpha_of(name)?;
    for (flags, index) in [(&mut used.rank, rank_pattern), (&mut used.alpha, alpha_pattern)] {
        if let Some(index) = index {
            flags[index] = true;
        }
    }
    if rank == 0 || rank_b == 0 {
        return Err(AdapterDefect::RankZero { module });
    }
    if rank != rank_b || rank != config_rank {
        return Err(AdapterDefect::RankMismatch { module, lora_a: rank, lora_b: rank_b, config: config_rank });
    }
    if rank > limits.rank {
        return Err(AdapterDefect::RankTooLarge { module, rank, limit: limits.rank });
    }
    let scaling = config.scaling(alpha, rank);
    if !scaling.is_finite() {
        return Err(AdapterDefect::ScalingNotFinite { module, alpha, rank });
    }
    // An embedding's change is (B·A)ᵀ: A is (rank, vocab), B is (dim, rank), the weight (vocab, dim).
    let shape = if is_embedding { [input, output] } else { [output, input] };
    Ok(Target { weight, shape, rank, scaling, is_embedding, module, lora_a, lora_b })
}

/// Which of a module's tensors a key names.
#[derive(Clone, Copy)]
struct Part {
    is_a: bool,
    is_embedding: bool,
}

/// Splits a tensor's key into its module and its part.
fn parse_key(key: &str) -> Result<(&str, Part), AdapterDefect> {
    // Old files keep the adapter's name, `default`, in their keys.
    const PARTS: [(&str, bool, bool); 8] = [
        (".lora_A.weight", true, false),
        (".lora_B.weight", false, false),
        (".lora_A.default.weight", true, false),
        (".lora_B.default.weight", false, false),
        (".lora_embedding_A", true, true),
        (".lora_embedding_B", false, true),
        (".lora_embedding_A.default", true, true),
        (".lora_embedding_B.default", false, true),
    ];
    let part = PARTS.iter().find_map(|&(suffix, is_a, is_embedding)| {
        key.strip_suffix(suffix).map(|module| (module, Part { is_a, is_embedding }))
    });
    match part {
        Some((module, part)) if !module.is_empty() && key.len() <= MAX_KEY_BYTES => Ok((module, part)),
        _ => Err(AdapterDefect::TensorRefused { tensor: shorten(key), reason: refusal(key) }),
    }
}

/// Says what a tensor that is not a LoRA factor is.
fn refusal(key: &str) -> &'static str {
    const KNOWN: [(&str, &str); 13] = [
        ("lora_magnitude_vector", "it belongs to DoRA, whose changes do not add up; train with use_dora=False"),
        ("lora_B.bias", "a bias of lora_B; train with lora_bias=False"),
        ("token_adapter", "it overwrites rows of the embedding; train with trainable_token_indices=None"),
        ("base_layer.", "a copy of the base's own weight; save the adapter again from the trained PeftModel"),
        ("lora_E", "it belongs to AdaLoRA; only LORA is supported"),
        ("hada_", "it belongs to LoHa; only LORA is supported"),
        ("lokr_", "it belongs to LoKr; only LORA is supported"),
        ("lora_down", "a kohya key; convert the file to PEFT's format"),
        ("lora_up", "a kohya key; convert the file to PEFT's format"),
        ("prompt_embeddings", "it belongs to prompt tuning, which changes no weights"),
        ("modules_to_save", "a whole module, not a change to one; train with modules_to_save=None"),
        (".bias", "a whole bias, not a change to one; train with bias=\"none\""),
        (".weight", "a whole weight, not a change to one; train without modules_to_save and resized embeddings"),
    ];
    if key.len() > MAX_KEY_BYTES {
        return "its name is too long";
    }
    let known = KNOWN.iter().find(|(sign, _)| key.contains(sign));
    known.map_or("no LoRA tensor is named so; is this a PEFT LoRA file?", |(_, reason)| reason)
}

fn span(key: &str, info: &TensorInfo, part: Part) -> Result<TensorSpan, AdapterDefect> {
    if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        return Err(AdapterDefect::TensorDtype { tensor: key.to_owned(), dtype: info.dtype.to_string() });
    }
    let shape_error = || AdapterDefect::TensorShape {
        tensor: key.to_owned(),
        shape: info.shape.clone(),
        expected: if part.is_a { "(rank, in); convolutions are not supported" } else { "(out, rank)" },
    };
    let shape: [usize; 2] = info.shape.as_slice().try_into().map_err(|_| shape_error())?;
    // The rank may be 0 here: that has an error of its own.
    let side = if part.is_a { shape[1] } else { shape[0] };
    if side == 0 {
        return Err(shape_error());
    }
    Ok(TensorSpan { key: key.to_owned(), dtype: info.dtype, shape })
}
