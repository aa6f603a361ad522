//! What an adapter is, from its config and its tensors' header alone: targets, ranks, scalings,
//! touched weights.
//!
//! **Invariant:** every tensor of the file belongs to a target, every target has A and B of the
//! rank the config says.
//!
//! **Source:** PEFT's `save_pretrained`; the safetensors format.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

use super::config::{PeftConfig, shorten};
use super::pattern::Pattern;
use super::{BaseShapes, Limits};
use crate::error::AdapterDefect;
use crate::file::read_limited;
use crate::file::safetensors::read_header;
use crate::name::{EMBEDDING, HEAD, peft_module};
use crate::{Error, Result, WeightName};

/// The config's file name.
pub(crate) const CONFIG_FILE: &str = "adapter_config.json";
/// The tensors' file name.
pub(crate) const TENSOR_FILE: &str = "adapter_model.safetensors";
const PICKLE_FILE: &str = "adapter_model.bin";

/// Longest key of a tensor, in bytes.
const MAX_KEY_BYTES: usize = 512;
/// Pattern comparisons in one adapter: a 70B model's 560 modules with a pattern each need 0.6
/// million.
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
    /// Copies of the base's own embedding or head that PEFT saves beside a change to them, or where
    /// it is asked for them: weight and key.
    pub(crate) copies: Vec<(WeightName, String)>,
    pub(crate) data_bytes: u64,
}

impl PeftHeader {
    /// Reads the config and the header of the tensor file in the folder `dir`.
    ///
    /// # Errors
    /// [`Error::Adapter`] for everything [`AdapterDefect`] names, [`Error::SafeTensors`] for a
    /// damaged tensor header, [`Error::FileTooLarge`], and [`Error::Io`] if a file cannot be read.
    pub fn open(dir: &Path, limits: &Limits) -> Result<Self> {
        let (config, tensors) = files(dir)?;
        let config = read_limited(&config, limits.config_bytes)?;
        let (tensors, data_bytes) = read_header(&tensors, limits.file_bytes)?;
        Self::parse(dir, &config, &tensors, data_bytes, limits)
    }

    /// Parses a config, and checks it against the tensors of a file, which have `data_bytes` in
    /// all.
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
        let copies =
            tensors.keys().filter_map(|key| Some((copied_weight(key)?, key.clone()))).collect();
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
    let wrap = |defect| Err(Error::adapter(dir, defect));
    // What is not there at all, or may not be looked at, has the system's own words. One look: it
    // may come and go.
    if !std::fs::metadata(dir).map_err(|source| Error::io(dir, source))?.is_dir() {
        return wrap(AdapterDefect::NotAFolder);
    }
    let [config, tensors] = [CONFIG_FILE, TENSOR_FILE].map(|file| dir.join(file));
    if config.exists() && tensors.exists() {
        return Ok((config, tensors));
    }
    let names = std::fs::read_dir(dir).map_err(|source| Error::io(dir, source))?;
    let names: Vec<_> =
        names.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let missing = if config.exists() { TENSOR_FILE } else { CONFIG_FILE };
    wrap(match foreign(&names) {
        Some((file, what)) => AdapterDefect::Foreign { missing, file: file.to_owned(), what },
        None if missing == TENSOR_FILE && dir.join(PICKLE_FILE).exists() => AdapterDefect::Pickle,
        None => AdapterDefect::MissingFile { file: missing },
    })
}

/// The file in an adapter's folder that tells whose it is, and what to do.
fn foreign(names: &[String]) -> Option<(&str, &'static str)> {
    let kind = |name: &str| match name {
        "adapters.safetensors" => Some(
            "MLX's, whose factors are transposed and whose config is another; convert it to PEFT's format",
        ),
        "adapter_0.pt" | "adapter_0.safetensors" => Some(
            "torchtune's; let its checkpointer write PEFT's format (`output_dir` with `adapter_model.safetensors`)",
        ),
        "pytorch_lora_weights.safetensors" => {
            Some("diffusers', for an image model; adapters of language models are run")
        }
        _ if name.starts_with("adapter_model-")
            || name == "adapter_model.safetensors.index.json" =>
        {
            Some(
                "a part of an adapter cut into shards; save it in one file (`save_pretrained` with a larger `max_shard_size`)",
            )
        }
        _ if name.ends_with(".gguf") => {
            Some("a GGUF file; PEFT's own folder, which it was made from, is needed")
        }
        _ => None,
    };
    names.iter().find_map(|name| Some((name.as_str(), kind(name)?)))
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
    let mut names = None;
    for (key, info) in tensors.iter().filter(|(key, _)| copied_weight(key).is_none()) {
        let Key { module, part, adapter } = parse_key(key)?;
        if *names.get_or_insert(adapter) != adapter {
            let [first, second] =
                [names.flatten(), adapter].map(|name| name.unwrap_or("default").to_owned());
            return Err(AdapterDefect::SeveralAdapters { first, second, tensor: shorten(key) });
        }
        let span = span(key, info, part)?;
        let halves = modules.entry((module.to_owned(), part.is_embedding)).or_default();
        let half = if part.is_a { &mut halves.lora_a } else { &mut halves.lora_b };
        if let Some(other) = half.replace(span) {
            let weight = WeightName::from_peft_module(module).to_string();
            return Err(AdapterDefect::DuplicateTarget {
                weight,
                first: other.key,
                second: key.clone(),
            });
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
            return Err(AdapterDefect::DuplicateTarget {
                weight: target.weight.to_string(),
                first,
                second,
            });
        }
        by_weight.insert(target.weight.clone(), target);
    }
    let targets: Vec<Target> = by_weight.into_values().collect();
    used.check(config, &targets)?;
    let tied = targets.iter().filter(|target| is_embedding_name(&target.weight)).count();
    if config.ensure_weight_tying && tied == 1 {
        return Err(AdapterDefect::ConfigUnsupported {
            key: "ensure_weight_tying".into(),
            value: "true".into(),
            advice: "PEFT then writes the factors of embedding and head both, and one of them is missing; save it again",
        });
    }
    Ok(targets)
}

/// The weight of which a tensor is a copy, if it is an embedding or head, or the base layer of one:
/// what PEFT saves with `save_embedding_layers`.
fn copied_weight(key: &str) -> Option<WeightName> {
    let module = key.strip_suffix(".weight")?;
    let module = module.strip_suffix(".base_layer").unwrap_or(module);
    Some(WeightName::from_peft_module(module)).filter(is_embedding_name)
}

fn is_embedding_name(weight: &WeightName) -> bool {
    [EMBEDDING, HEAD].contains(&weight.as_str())
}

/// Which patterns of `rank_pattern` and `alpha_pattern` selected a module.
struct UsedPatterns {
    rank: Vec<bool>,
    alpha: Vec<bool>,
}

impl UsedPatterns {
    fn new(config: &PeftConfig) -> Self {
        Self {
            rank: vec![false; config.rank_pattern.len()],
            alpha: vec![false; config.alpha_pattern.len()],
        }
    }

    /// A pattern that an earlier one always shadows still has to match something by itself.
    fn check(&self, config: &PeftConfig, targets: &[Target]) -> Result<(), AdapterDefect> {
        let ranks = config.rank_pattern.iter().map(|(pattern, _)| pattern).zip(&self.rank);
        let alphas = config.alpha_pattern.iter().map(|(pattern, _)| pattern).zip(&self.alpha);
        let unused: Vec<&Pattern> =
            ranks.chain(alphas).filter(|(_, used)| !**used).map(|(pattern, _)| pattern).collect();
        let name = |target: &Target| config.targets.pattern_name(&peft_module(&target.module));
        let names: Vec<String> =
            if unused.is_empty() { Vec::new() } else { targets.iter().map(name).collect() };
        for pattern in unused {
            let mut matched = false;
            for name in &names {
                matched = matched || pattern.matches(name)?;
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

fn target(
    config: &PeftConfig,
    module: String,
    is_embedding: bool,
    halves: Halves,
    used: &mut UsedPatterns,
    limits: &Limits,
) -> Result<Target, AdapterDefect> {
    let (present, missing) =
        if halves.lora_a.is_some() { ("lora_A", "lora_B") } else { ("lora_B", "lora_A") };
    let (Some(lora_a), Some(lora_b)) = (halves.lora_a, halves.lora_b) else {
        return Err(AdapterDefect::MissingHalf { module, present, missing });
    };
    let weight = WeightName::from_peft_module(&module);
    let name = peft_module(&module);
    if let Some(reason) = config.targets.leaves_out(&name, is_embedding)? {
        return Err(AdapterDefect::NotTargeted { module, reason });
    }
    let name = config.targets.pattern_name(&name);
    let ([rank, input], [output, rank_b]) = (lora_a.shape, lora_b.shape);
    let (config_rank, rank_pattern) = config.rank_of(&name)?;
    let (alpha, alpha_pattern) = config.alpha_of(&name)?;
    for (flags, index) in [(&mut used.rank, rank_pattern), (&mut used.alpha, alpha_pattern)] {
        if let Some(index) = index {
            flags[index] = true;
        }
    }
    if rank == 0 || rank_b == 0 {
        return Err(AdapterDefect::RankZero { module });
    }
    if rank != rank_b || rank != config_rank {
        let turned = [input, output] == [config_rank, config_rank] && rank != config_rank;
        return Err(AdapterDefect::RankMismatch {
            module,
            lora_a: rank,
            lora_b: rank_b,
            config: config_rank,
            turned,
        });
    }
    if rank > limits.rank {
        return Err(AdapterDefect::RankTooLarge { module, rank, limit: limits.rank });
    }
    let scaling = config.scaling(alpha, rank);
    if !scaling.is_finite() {
        return Err(AdapterDefect::ScalingNotFinite { module, alpha, rank });
    }
    // An embedding's change is (B·A)ᵀ: A is (rank, vocab), B is (dim, rank), the weight (vocab,
    // dim).
    let shape = if is_embedding { [input, output] } else { [output, input] };
    Ok(Target { weight, shape, rank, scaling, is_embedding, module, lora_a, lora_b })
}

/// What a key says.
struct Key<'a> {
    module: &'a str,
    part: Part,
    /// The adapter's name, which PEFT takes out on saving and others leave in.
    adapter: Option<&'a str>,
}

/// Which of a module's tensors a key names.
#[derive(Clone, Copy)]
struct Part {
    is_a: bool,
    is_embedding: bool,
}

/// Splits a tensor's key into its module, its part and the adapter's name.
fn parse_key(key: &str) -> Result<Key<'_>, AdapterDefect> {
    const PARTS: [(&str, bool, bool); 4] = [
        (".lora_A", true, false),
        (".lora_B", false, false),
        (".lora_embedding_A", true, true),
        (".lora_embedding_B", false, true),
    ];
    let parsed = PARTS.iter().find_map(|&(word, is_a, is_embedding)| {
        let (module, rest) = key.rsplit_once(word)?;
        // The factors of an embedding are parameters, the others modules with a weight.
        let rest = if is_embedding { rest } else { rest.strip_suffix(".weight")? };
        let adapter = match rest {
            "" => None,
            name => Some(
                name.strip_prefix('.')
                    .filter(|name| !matches!(*name, "" | "weight") && !name.contains('.'))?,
            ),
        };
        Some(Key {
            module,
            part: Part { is_a, is_embedding },
            adapter: adapter.filter(|name| *name != "default"),
        })
    });
    match parsed {
        Some(parsed) if !parsed.module.is_empty() && key.len() <= MAX_KEY_BYTES => Ok(parsed),
        _ => Err(AdapterDefect::TensorRefused { tensor: shorten(key), reason: refusal(key) }),
    }
}

/// Says what a tensor that is not a LoRA factor is.
fn refusal(key: &str) -> &'static str {
    const KNOWN: [(&str, &str); 17] = [
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
        (
            ".lora_a.weight",
            "torchtune's spelling; convert the file to PEFT's format (its checkpointer writes that, too)",
        ),
        (
            ".lora_b.weight",
            "torchtune's spelling; convert the file to PEFT's format (its checkpointer writes that, too)",
        ),
        (".lora_a", "MLX's spelling, with transposed factors; convert the file to PEFT's format"),
        (".lora_b", "MLX's spelling, with transposed factors; convert the file to PEFT's format"),
        ("lora_down", "a kohya key; convert the file to PEFT's format"),
        ("lora_up", "a kohya key; convert the file to PEFT's format"),
        ("prompt_embeddings", "it belongs to prompt tuning, which changes no weights"),
        ("modules_to_save", "a whole module, not a change to one; train with modules_to_save=None"),
        (".bias", "a whole bias, not a change to one; train with bias=\"none\""),
        (
            ".weight",
            "a whole weight, not a change to one; train without modules_to_save and resized embeddings",
        ),
    ];
    if key.len() > MAX_KEY_BYTES {
        return "its name is too long";
    }
    let known = KNOWN.iter().find(|(sign, _)| key.contains(sign));
    known.map_or("no LoRA tensor is named so; is this a PEFT LoRA file?", |(_, reason)| reason)
}

fn span(key: &str, info: &TensorInfo, part: Part) -> Result<TensorSpan, AdapterDefect> {
    if !matches!(info.dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        return Err(AdapterDefect::TensorDtype {
            tensor: key.to_owned(),
            dtype: info.dtype.to_string(),
        });
    }
    let shape_error = || AdapterDefect::TensorShape {
        tensor: key.to_owned(),
        shape: info.shape.clone(),
        expected: if part.is_a {
            "(rank, in); convolutions are not supported"
        } else {
            "(out, rank)"
        },
    };
    let shape: [usize; 2] = info.shape.as_slice().try_into().map_err(|_| shape_error())?;
    // The rank may be 0 here: that has an error of its own.
    let side = if part.is_a { shape[1] } else { shape[0] };
    if side == 0 {
        return Err(shape_error());
    }
    Ok(TensorSpan { key: key.to_owned(), dtype: info.dtype, shape })
}
