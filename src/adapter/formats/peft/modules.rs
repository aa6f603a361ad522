//! A config and the header of a tensors' file → modules with their ranks and scalings.
//!
//! **Invariant:** every tensor of the file belongs to a module or is a copy of the base's own, every
//! module has A and B of the rank the config says.
//!
//! **Source:** PEFT 0.21.2, `tuners/lora/layer.py`, `update_layer`, and `tuners/lora/model.py`.

use std::collections::BTreeMap;

use safetensors::tensor::TensorInfo;

use super::config::{PeftConfig, UsedPatterns, shorten};
use super::keys::{copied_weight, is_embedding_or_head, parse_key, span};
use crate::WeightName;
use crate::adapter::Limits;
use crate::adapter::module::{Change, Module, TensorSpan};
use crate::error::AdapterDefect;
use crate::name::peft_module;

/// Pattern comparisons in one adapter: a 70B model's 560 modules with a pattern each need 0.6
/// million.
const MAX_COMPARISONS: usize = 1 << 22;

/// A module as the file's keys name it.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct ModuleKey {
    name: String,
    is_embedding: bool,
}

/// A module's halves as they are found.
#[derive(Default)]
struct Halves {
    lora_a: Option<TensorSpan>,
    lora_b: Option<TensorSpan>,
}

/// The modules of a file, in the order of their names.
pub(super) fn modules(
    config: &PeftConfig,
    tensors: &BTreeMap<String, TensorInfo>,
    limits: &Limits,
) -> Result<Vec<Module>, AdapterDefect> {
    if tensors.len() > limits.tensors {
        return Err(AdapterDefect::TooManyTensors { found: tensors.len(), limit: limits.tensors });
    }
    let halves = halves(tensors)?;
    if halves.is_empty() {
        return Err(AdapterDefect::NoTargets);
    }
    let patterns = config.pattern_count();
    if patterns.saturating_mul(halves.len()) > MAX_COMPARISONS {
        return Err(AdapterDefect::TooManyPatterns { patterns, modules: halves.len() });
    }
    let mut used = UsedPatterns::default();
    let modules = halves
        .into_iter()
        .map(|(key, halves)| module(config, key, halves, &mut used, limits))
        .collect::<Result<Vec<_>, _>>()?;
    config.check_all_used(&used, &modules)?;
    check_tied(config, &modules)?;
    Ok(modules)
}

/// Puts the factors together by module.
fn halves(
    tensors: &BTreeMap<String, TensorInfo>,
) -> Result<BTreeMap<ModuleKey, Halves>, AdapterDefect> {
    let mut modules: BTreeMap<ModuleKey, Halves> = BTreeMap::new();
    let mut adapters = None;
    for (key, info) in tensors.iter().filter(|(key, _)| copied_weight(key).is_none()) {
        let parsed = parse_key(key)?;
        if *adapters.get_or_insert(parsed.adapter) != parsed.adapter {
            let [first, second] = [adapters.flatten(), parsed.adapter]
                .map(|name| name.unwrap_or("default").to_owned());
            return Err(AdapterDefect::SeveralAdapters { first, second, tensor: shorten(key) });
        }
        let span = span(key, info, parsed.part)?;
        let name = parsed.module.to_owned();
        let halves =
            modules.entry(ModuleKey { name, is_embedding: parsed.part.is_embedding }).or_default();
        let half = if parsed.part.is_a { &mut halves.lora_a } else { &mut halves.lora_b };
        if let Some(other) = half.replace(span) {
            return Err(AdapterDefect::DuplicateTarget {
                weight: WeightName::from_peft_module(parsed.module).to_string(),
                first: other.key,
                second: key.clone(),
            });
        }
    }
    Ok(modules)
}

/// One module, with the rank and scaling that the config says.
fn module(
    config: &PeftConfig,
    key: ModuleKey,
    halves: Halves,
    used: &mut UsedPatterns,
    limits: &Limits,
) -> Result<Module, AdapterDefect> {
    let ModuleKey { name, is_embedding } = key;
    let (lora_a, lora_b) = match (halves.lora_a, halves.lora_b) {
        (Some(lora_a), Some(lora_b)) => (lora_a, lora_b),
        (Some(_), None) => return Err(missing_half(name, "lora_A", "lora_B")),
        (None, _) => return Err(missing_half(name, "lora_B", "lora_A")),
    };
    let path = peft_module(&name);
    if let Some(reason) = config.selection.leaves_out(&path, is_embedding)? {
        return Err(AdapterDefect::NotTargeted { module: name, reason });
    }
    let pattern_name = config.selection.pattern_name(&path);
    let rank = config.rank.value_for(&pattern_name, &mut used.rank)?;
    let alpha = config.alpha.value_for(&pattern_name, &mut used.alpha)?;
    check_rank(&name, &lora_a, &lora_b, rank, limits)?;
    let scaling = config.scaling(alpha, rank);
    if !scaling.is_finite() {
        return Err(AdapterDefect::ScalingNotFinite { module: name, alpha, rank });
    }
    // An embedding's change is (B·A)ᵀ: A is (rank, vocab), B is (dim, rank), the weight (vocab,
    // dim).
    let (input, output) = (lora_a.shape[1], lora_b.shape[0]);
    let shape = if is_embedding { [input, output] } else { [output, input] };
    let change = Change::Lora { lora_a, lora_b, is_transposed: is_embedding };
    Ok(Module { shape, rank, scaling, name, path, change })
}

fn missing_half(module: String, present: &'static str, missing: &'static str) -> AdapterDefect {
    AdapterDefect::MissingHalf { module, present, missing }
}

/// Checks that both factors have the config's rank, and that it is within the limits.
fn check_rank(
    module: &str,
    lora_a: &TensorSpan,
    lora_b: &TensorSpan,
    config: usize,
    limits: &Limits,
) -> Result<(), AdapterDefect> {
    let module = || module.to_owned();
    let ([rank, input], [output, rank_b]) = (lora_a.shape, lora_b.shape);
    if rank == 0 || rank_b == 0 {
        return Err(AdapterDefect::RankZero { module: module() });
    }
    if rank != rank_b || rank != config {
        return Err(AdapterDefect::RankMismatch {
            module: module(),
            lora_a: rank,
            lora_b: rank_b,
            config,
            turned: [input, output] == [config, config] && rank != config,
        });
    }
    if rank > limits.rank {
        return Err(AdapterDefect::RankTooLarge { module: module(), rank, limit: limits.rank });
    }
    Ok(())
}

/// With `ensure_weight_tying` there are changes to both embedding and head, or to neither.
fn check_tied(config: &PeftConfig, modules: &[Module]) -> Result<(), AdapterDefect> {
    let weights = modules.iter().map(|module| WeightName::of_module(&module.path));
    if !config.ensure_weight_tying || weights.filter(is_embedding_or_head).count() != 1 {
        return Ok(());
    }
    Err(AdapterDefect::ConfigUnsupported {
        key: "ensure_weight_tying".into(),
        value: "true".into(),
        advice: "PEFT then writes the factors of embedding and head both, and one of them is \
                 missing; save it again",
    })
}
