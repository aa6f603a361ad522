//! A config's patterns: Python regular expressions over the paths of modules.
//!
//! **Invariant:** a match ends: patterns are short and the engine's backtracking is bounded.
//!
//! **Source:** PEFT 0.21.2: `utils/other.py`, `get_pattern_key`; `tuners/tuners_utils.py`,
//! `check_target_module_exists`.

use fancy_regex::{Regex, RegexBuilder};

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
pub(super) struct Pattern {
    pub(super) key: &'static str,
    pub(super) text: String,
    regex: Regex,
}

impl Pattern {
    /// `re.fullmatch(text, name)`.
    pub(super) fn full(key: &'static str, text: &str) -> Result<Self, AdapterDefect> {
        Self::compile(key, text, format!(r"\A(?:{text})\z"), MAX_COMPILED_BYTES)
    }

    /// `re.match((.*\.)?(text)$, name)`: a whole name, or what follows a dot in it. One of those
    /// that [`share`] allows so many bytes each.
    pub(super) fn suffix(
        key: &'static str,
        text: &str,
        bytes: usize,
    ) -> Result<Self, AdapterDefect> {
        Self::compile(key, text, format!(r"\A(.*\.)?({text})$"), bytes)
    }

    /// `re.match((?:^|.*?\.)text\.(\d+)\., name)`: the index that follows the name of a list of
    /// layers. The text is not a group of its own there, so an alternation in it splits the whole.
    pub(super) fn layer_index(text: &str, bytes: usize) -> Result<Self, AdapterDefect> {
        Self::compile("layers_pattern", text, format!(r"\A(?:(?:|.*?\.){text}\.(\d+)\.)"), bytes)
    }

    /// `re.match(.*?\.[^.]*\.(\d+)\., name)`: what PEFT takes without a `layers_pattern`.
    pub(super) fn any_layer_index() -> Result<Self, AdapterDefect> {
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
    pub(super) fn matches(&self, module: &str) -> Result<bool, AdapterDefect> {
        self.regex.is_match(module).map_err(|source| invalid(self.key, &self.text, source))
    }

    /// Whether it matches one of several.
    pub(super) fn matches_any(&self, modules: &[String]) -> Result<bool, AdapterDefect> {
        for module in modules {
            if self.matches(module)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What this pattern finds in `module`: nothing, or a match, with the layer's index unless the
    /// match has none.
    pub(super) fn index(&self, module: &str) -> Result<Option<Option<u64>>, AdapterDefect> {
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
pub(super) fn share(key: &str, count: usize) -> Result<usize, AdapterDefect> {
    if count <= MAX_PATTERNS {
        return Ok(MAX_COMPILED_BYTES.min(MAX_ALL_COMPILED_BYTES / count.max(1)));
    }
    let (key, found) = (key.to_owned(), format!("{count} of them"));
    Err(AdapterDefect::ConfigValue { key, expected: "at most 20,000 patterns", found })
}

fn invalid(key: &'static str, text: &str, source: fancy_regex::Error) -> AdapterDefect {
    AdapterDefect::PatternInvalid { key, pattern: text.to_owned(), source: Box::new(source) }
}
