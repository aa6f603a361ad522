//! Which modules a config selects: names, suffixes, regular expressions and layers.
//!
//! **Source:** PEFT 0.21.2, `tuners/tuners_utils.py`, `check_target_module_exists` and
//! `_maybe_include_all_linear_layers`.

use serde_json::{Map, Value};

use super::config::shorten;
use super::pattern::{Pattern, share};
use crate::adapter::module::Claims;
use crate::error::AdapterDefect;

/// `target_modules` or `exclude_modules`.
#[derive(Clone, Debug)]
enum Rule {
    /// Nothing said.
    Unset,
    /// `all-linear`: every linear module but the head.
    AllLinear,
    /// A regular expression for the whole name.
    Regex(Pattern),
    /// Names, each a whole name or what follows a dot in it.
    Names(Vec<String>),
}

impl Rule {
    /// Reads the value of `key`.
    fn parse(key: &'static str, value: Option<&Value>) -> Result<Self, AdapterDefect> {
        match value {
            None | Some(Value::Null) => Ok(Self::Unset),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("all-linear") => {
                Ok(Self::AllLinear)
            }
            Some(Value::String(text)) => Ok(Self::Regex(Pattern::full(key, text)?)),
            Some(list) => strings(key, list).map(Self::Names),
        }
    }

    /// Comparisons that one module costs.
    fn len(&self) -> usize {
        if let Self::Names(names) = self { names.len() } else { 1 }
    }

    fn selects(&self, module: &str, is_embedding: bool) -> Result<bool, AdapterDefect> {
        Ok(match self {
            Self::Unset => false,
            Self::AllLinear => !is_embedding && !is_name_or_suffix(module, "lm_head"),
            Self::Regex(pattern) => pattern.matches(module)?,
            Self::Names(names) => names.iter().any(|entry| is_name_or_suffix(module, entry)),
        })
    }
}

/// Which modules a config selects: the keys that PEFT reads to place its layers.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    target_modules: Rule,
    exclude_modules: Rule,
    /// Bare parameters, each a whole name such as `q_proj.weight` or what follows a dot in it.
    target_parameters: Vec<String>,
    layers_to_transform: Vec<u64>,
    layers_pattern: Vec<Pattern>,
}

impl Selection {
    /// Reads the five keys.
    pub(super) fn parse(config: &Map<String, Value>) -> Result<Self, AdapterDefect> {
        let target_modules = Rule::parse("target_modules", config.get("target_modules"))?;
        let layers_to_transform = match config.get("layers_to_transform") {
            None | Some(Value::Null) => Vec::new(),
            Some(value) => indices("layers_to_transform", value)?,
        };
        let layers_pattern = match config.get("layers_pattern") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::String(text)) => vec![text.clone()],
            Some(list) => strings("layers_pattern", list)?,
        };
        // PEFT's config refuses the two together.
        if !layers_to_transform.is_empty()
            && matches!(target_modules, Rule::Regex(_) | Rule::AllLinear)
        {
            return Err(AdapterDefect::ConfigUnsupported {
                key: "layers_to_transform".into(),
                value: format!("{layers_to_transform:?}"),
                advice: "it goes with a list of target_modules only; put the layers into the regular expression",
            });
        }
        Ok(Self {
            target_modules,
            layers_to_transform,
            layers_pattern: layer_indices(&layers_pattern)?,
            target_parameters: target_parameters(config)?,
            exclude_modules: Rule::parse("exclude_modules", config.get("exclude_modules"))?,
        })
    }

    /// Comparisons that one module costs.
    pub(super) fn len(&self) -> usize {
        let lists = self.target_parameters.len() + self.layers_pattern.len();
        self.target_modules.len() + self.exclude_modules.len() + lists
    }

    /// What the patterns of rank and alpha are matched against: the module's path, or its weight's
    /// where the config names the parameter.
    pub(super) fn pattern_name(&self, module: &str) -> String {
        let weight = format!("{module}.weight");
        if self.names_parameter(&weight) { weight } else { module.to_owned() }
    }

    fn names_parameter(&self, weight: &str) -> bool {
        self.target_parameters.iter().any(|entry| is_name_or_suffix(weight, entry))
    }

    /// Why PEFT would place no layer at `module`, as the file spells it, if it would not.
    pub(super) fn leaves_out(
        &self,
        module: &str,
        is_embedding: bool,
    ) -> Result<Option<&'static str>, AdapterDefect> {
        if self.names_parameter(&format!("{module}.weight")) {
            return Ok(None);
        }
        if self.exclude_modules.selects(module, is_embedding)? {
            return Ok(Some("exclude_modules names it"));
        }
        if matches!(self.target_modules, Rule::Unset) {
            let parameters = !self.target_parameters.is_empty();
            return Ok(parameters.then_some("target_parameters does not name it"));
        }
        if !self.target_modules.selects(module, is_embedding)? {
            return Ok(Some("target_modules does not name it"));
        }
        // A module named in full is taken whatever its layer.
        let Rule::Names(names) = &self.target_modules else { return Ok(None) };
        if self.layers_to_transform.is_empty() || names.iter().any(|entry| entry == module) {
            return Ok(None);
        }
        for pattern in &self.layers_pattern {
            match pattern.index(module)? {
                None => {}
                Some(None) => break,
                Some(Some(index)) => {
                    let taken = self.layers_to_transform.contains(&index);
                    return Ok((!taken).then_some("layers_to_transform leaves out its layer"));
                }
            }
        }
        Ok(Some("layers_pattern finds no layer in it"))
    }
}

impl Claims for Selection {
    /// Whether PEFT would place a layer at `path`: an embedding is taken only where it is named.
    fn selects(&self, path: &str, is_embedding: bool) -> Result<bool, AdapterDefect> {
        let says_anything =
            !matches!(self.target_modules, Rule::Unset) || !self.target_parameters.is_empty();
        Ok(says_anything && self.leaves_out(path, is_embedding)?.is_none())
    }
}

/// What finds a layer's index in a module's path: the `layers_pattern`, or PEFT's own without one.
fn layer_indices(texts: &[String]) -> Result<Vec<Pattern>, AdapterDefect> {
    let bytes = share("layers_pattern", texts.len())?;
    let named = texts.iter().filter(|text| !text.is_empty());
    let patterns: Vec<Pattern> =
        named.map(|text| Pattern::layer_index(text, bytes)).collect::<Result<_, _>>()?;
    if patterns.is_empty() { Ok(vec![Pattern::any_layer_index()?]) } else { Ok(patterns) }
}

/// Bare parameters: those of linear modules alone, which are plain LoRA.
fn target_parameters(config: &Map<String, Value>) -> Result<Vec<String>, AdapterDefect> {
    let names = match config.get("target_parameters") {
        None | Some(Value::Null) => Vec::new(),
        Some(list) => strings("target_parameters", list)?,
    };
    match names.iter().find(|name| !name.ends_with(".weight")) {
        None => Ok(names),
        Some(name) => Err(AdapterDefect::ConfigUnsupported {
            key: "target_parameters".into(),
            value: shorten(name),
            advice: "of bare parameters only the weights of linear modules are run, no mixtures of experts",
        }),
    }
}

fn is_name_or_suffix(name: &str, entry: &str) -> bool {
    name.strip_suffix(entry).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn strings(key: &str, value: &Value) -> Result<Vec<String>, AdapterDefect> {
    let list = value
        .as_array()
        .map(|list| list.iter().map(|entry| entry.as_str().map(str::to_owned)).collect());
    list.flatten().ok_or_else(|| AdapterDefect::ConfigValue {
        key: key.to_owned(),
        expected: "a string or a list of strings",
        found: shorten(&value.to_string()),
    })
}

fn indices(key: &str, value: &Value) -> Result<Vec<u64>, AdapterDefect> {
    let list = match value {
        Value::Array(list) => list.iter().map(Value::as_u64).collect(),
        one => one.as_u64().map(|index| vec![index]),
    };
    list.ok_or_else(|| AdapterDefect::ConfigValue {
        key: key.to_owned(),
        expected: "a layer's index or a list of them",
        found: shorten(&value.to_string()),
    })
}
