//! PEFT's rules for naming modules: Python regular expressions and suffixes.
//!
//! **Invariant:** a match ends: patterns are short and the engine's backtracking is bounded.
//!
//! **Source:** PEFT's `check_target_module_exists` and `get_pattern_key`.

use fancy_regex::{Regex, RegexBuilder};
use serde_json::Value;

use super::config::shorten;
use crate::error::AdapterDefect;

/// Longest pattern, in bytes.
const MAX_PATTERN_BYTES: usize = 1024;

/// Backtracking steps of one match: thousands of times what any sane pattern needs, and a few
/// milliseconds.
const MAX_BACKTRACKS: usize = 20_000;

/// Patterns under one key: a mixture of experts has 18,000 modules.
const MAX_PATTERNS: usize = 20_000;

/// Memory of one compiled pattern, in bytes, and of all under one key.
const MAX_COMPILED_BYTES: usize = 1 << 20;
const MAX_ALL_COMPILED_BYTES: usize = 256 << 20;

/// One regular expression of a config, with the key it stands under.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    pub(crate) key: &'static str,
    pub(crate) text: String,
    regex: Regex,
}

impl Pattern {
    /// `re.fullmatch(text, name)`.
    pub(crate) fn full(key: &'static str, text: &str) -> Result<Self, AdapterDefect> {
        Self::compile(key, text, format!(r"\A(?:{text})\z"), MAX_COMPILED_BYTES)
    }

    /// `re.match((.*\.)?(text)$, name)`: a whole name, or what follows a dot in it. One of those
    /// that [`share`] allows so many bytes each.
    pub(crate) fn suffix(
        key: &'static str,
        text: &str,
        bytes: usize,
    ) -> Result<Self, AdapterDefect> {
        Self::compile(key, text, format!(r"\A(.*\.)?({text})$"), bytes)
    }

    /// `re.match((?:^|.*?\.)text\.(\d+)\., name)`: the index that follows the name of a list of
    /// layers. The text is not a group of its own there, so an alternation in it splits the whole.
    fn layer_index(text: &str, bytes: usize) -> Result<Self, AdapterDefect> {
        Self::compile("layers_pattern", text, format!(r"\A(?:(?:|.*?\.){text}\.(\d+)\.)"), bytes)
    }

    /// `re.match(.*?\.[^.]*\.(\d+)\., name)`: what PEFT takes without a `layers_pattern`.
    fn any_layer_index() -> Result<Self, AdapterDefect> {
        Self::compile(
            "layers_pattern",
            "[^.]*",
            r"\A.*?\.[^.]*\.(\d+)\.".to_owned(),
            MAX_COMPILED_BYTES,
        )
    }

    fn compile(
        key: &'static str,
        text: &str,
        full: String,
        bytes: usize,
    ) -> Result<Self, AdapterDefect> {
        if text.len() > MAX_PATTERN_BYTES {
            let (pattern, length) = (shorten(text), text.len());
            return Err(AdapterDefect::PatternTooLong {
                key,
                pattern,
                length,
                limit: MAX_PATTERN_BYTES,
            });
        }
        let regex = RegexBuilder::new(&full)
            .backtrack_limit(MAX_BACKTRACKS)
            .delegate_size_limit(bytes)
            .build()
            .map_err(|source| invalid(key, text, source))?;
        Ok(Self { key, text: text.to_owned(), regex })
    }

    /// Whether it matches the path of a module, as the file spells it.
    pub(crate) fn matches(&self, module: &str) -> Result<bool, AdapterDefect> {
        self.regex.is_match(module).map_err(|source| invalid(self.key, &self.text, source))
    }

    /// What this pattern finds in `module`: nothing, or a match, with the layer's index unless the
    /// match has none.
    fn index(&self, module: &str) -> Result<Option<Option<u64>>, AdapterDefect> {
        let captures =
            self.regex.captures(module).map_err(|source| invalid(self.key, &self.text, source))?;
        // The last group: the pattern may have groups of its own.
        let last =
            |groups: fancy_regex::Captures<'_>| groups.get(groups.len() - 1)?.as_str().parse().ok();
        Ok(captures.map(last))
    }
}

/// Memory that each of `count` patterns under one key may take when it is compiled; refuses too
/// many.
pub(crate) fn share(key: &str, count: usize) -> Result<usize, AdapterDefect> {
    if count <= MAX_PATTERNS {
        return Ok(MAX_COMPILED_BYTES.min(MAX_ALL_COMPILED_BYTES / count.max(1)));
    }
    let (key, found) = (key.to_owned(), format!("{count} of them"));
    Err(AdapterDefect::ConfigValue { key, expected: "at most 20,000 patterns", found })
}

fn invalid(key: &'static str, text: &str, source: fancy_regex::Error) -> AdapterDefect {
    AdapterDefect::PatternInvalid { key, pattern: text.to_owned(), source: Box::new(source) }
}

/// `target_modules` or `exclude_modules`.
#[derive(Clone, Debug)]
pub(crate) enum Selection {
    /// Nothing said.
    Unset,
    /// `all-linear`: every linear module but the head.
    AllLinear,
    /// A regular expression for the whole name.
    Regex(Pattern),
    /// Names, each a whole name or what follows a dot in it.
    Names(Vec<String>),
}

impl Selection {
    /// Reads the value of `key`.
    pub(crate) fn parse(key: &'static str, value: Option<&Value>) -> Result<Self, AdapterDefect> {
        match value {
            None | Some(Value::Null) => Ok(Self::Unset),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("all-linear") => {
                Ok(Self::AllLinear)
            }
            Some(Value::String(text)) => Ok(Self::Regex(Pattern::full(key, text)?)),
            Some(list) => strings(key, list).map(Self::Names),
        }
    }

    /// How many comparisons one module needs.
    pub(crate) fn len(&self) -> usize {
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
pub(crate) struct Targets {
    pub(crate) target_modules: Selection,
    pub(crate) exclude_modules: Selection,
    /// Bare parameters, each a whole name such as `q_proj.weight` or what follows a dot in it.
    target_parameters: Vec<String>,
    layers_to_transform: Vec<u64>,
    layers_pattern: Vec<Pattern>,
}

impl Targets {
    /// Reads the five keys.
    pub(crate) fn parse(config: &serde_json::Map<String, Value>) -> Result<Self, AdapterDefect> {
        let target_modules = Selection::parse("target_modules", config.get("target_modules"))?;
        let layers_to_transform = match config.get("layers_to_transform") {
            None | Some(Value::Null) => Vec::new(),
            Some(value) => indices("layers_to_transform", value)?,
        };
        let layers_pattern = match config.get("layers_pattern") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::String(text)) => vec![text.clone()],
            Some(list) => strings("layers_pattern", list)?,
        };
        if !layers_to_transform.is_empty()
            && matches!(target_modules, Selection::Regex(_) | Selection::AllLinear)
        {
            return Err(AdapterDefect::ConfigUnsupported {
                key: "layers_to_transform".into(),
                value: format!("{layers_to_transform:?}"),
                advice: "it goes with a list of target_modules only; put the layers into the regular expression",
            });
        }
        let bytes = share("layers_pattern", layers_pattern.len())?;
        let mut patterns: Vec<Pattern> = layers_pattern
            .iter()
            .filter(|text| !text.is_empty())
            .map(|text| Pattern::layer_index(text, bytes))
            .collect::<Result<_, _>>()?;
        if patterns.is_empty() {
            patterns.push(Pattern::any_layer_index()?);
        }
        let target_parameters = match config.get("target_parameters") {
            None | Some(Value::Null) => Vec::new(),
            Some(list) => strings("target_parameters", list)?,
        };
        if let Some(name) = target_parameters.iter().find(|name| !name.ends_with(".weight")) {
            return Err(AdapterDefect::ConfigUnsupported {
                key: "target_parameters".into(),
                value: shorten(name),
                advice: "of bare parameters only the weights of linear modules are run, no mixtures of experts",
            });
        }
        let exclude_modules = Selection::parse("exclude_modules", config.get("exclude_modules"))?;
        Ok(Self {
            target_modules,
            exclude_modules,
            target_parameters,
            layers_to_transform,
            layers_pattern: patterns,
        })
    }

    /// Comparisons that one module costs.
    pub(crate) fn len(&self) -> usize {
        let lists = self.target_parameters.len() + self.layers_pattern.len();
        self.target_modules.len() + self.exclude_modules.len() + lists
    }

    /// What the patterns of rank and alpha are matched against: the module's path, or its weight's
    /// where the config names the parameter.
    pub(crate) fn pattern_name(&self, module: &str) -> String {
        let weight = format!("{module}.weight");
        if self.names_parameter(&weight) { weight } else { module.to_owned() }
    }

    fn names_parameter(&self, weight: &str) -> bool {
        self.target_parameters.iter().any(|entry| is_name_or_suffix(weight, entry))
    }

    /// Whether PEFT would place a layer at `module`: an embedding is taken only where it is named.
    pub(crate) fn selects(&self, module: &str, is_embedding: bool) -> Result<bool, AdapterDefect> {
        let said =
            !matches!(self.target_modules, Selection::Unset) || !self.target_parameters.is_empty();
        Ok(said && self.leaves_out(module, is_embedding)?.is_none())
    }

    /// Why PEFT would place no layer at `module`, as the file spells it, if it would not.
    pub(crate) fn leaves_out(
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
        if matches!(self.target_modules, Selection::Unset) {
            let parameters = !self.target_parameters.is_empty();
            return Ok(parameters.then_some("target_parameters does not name it"));
        }
        if !self.target_modules.selects(module, is_embedding)? {
            return Ok(Some("target_modules does not name it"));
        }
        // A module named in full is taken whatever its layer.
        let Selection::Names(names) = &self.target_modules else { return Ok(None) };
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
