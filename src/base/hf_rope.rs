//! The rotary embedding that `config.json` asks for, spelled as before version 5 of transformers or
//! as since.
//!
//! **Invariant:** where two spellings of one fact disagree, the one counts that transformers takes.
//!
//! **Source:** transformers' `modeling_rope_utils.py`, `convert_rope_params_to_dict` and
//! `standardize_rope_params`: a `rope_scaling` that is not empty comes before `rope_parameters`,
//! `rope_type` before `type`, a `rope_theta` or `partial_rotary_factor` inside before one at the
//! top, but `original_max_position_embeddings` at the top before one inside.

use serde_json::{Map, Value};

use super::hf::{RawConfig, unsupported};
use crate::arch::{RopeScaling, wrong};
use crate::error::ConfigDefect;

/// Base of the frequencies, and their scaling; `default_theta` is the family's.
pub(super) fn rope(
    raw: &RawConfig,
    default_theta: f64,
    max_position_embeddings: usize,
) -> Result<(f64, RopeScaling), ConfigDefect> {
    let (key, given) = match non_empty("rope_scaling", raw.rope_scaling.as_ref())? {
        Some(map) => ("rope_scaling", Some(map)),
        None => ("rope_parameters", non_empty("rope_parameters", raw.rope_parameters.as_ref())?),
    };
    let nothing = Map::new();
    let rope = Rope { key, map: given.unwrap_or(&nothing) };
    if let Some((name, _)) = rope.map.iter().find(|(_, value)| value.is_object()) {
        return Err(unsupported(
            &rope.name(name),
            "an object",
            "one rotary embedding for all layers",
        ));
    }
    let partial = rope.number("partial_rotary_factor")?.or(raw.partial_rotary_factor);
    if let Some(part) = partial.filter(|part| *part != 1.0) {
        return Err(unsupported("partial_rotary_factor", part, "1"));
    }
    let theta = rope.number("rope_theta")?.or(raw.rope_theta).unwrap_or(default_theta);
    let scaling = match rope.text("rope_type")?.or(rope.text("type")?).unwrap_or("default") {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: rope.required("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: rope.required("factor")?,
            low_freq_factor: rope.required("low_freq_factor")?,
            high_freq_factor: rope.required("high_freq_factor")?,
            original_max_position: match raw.original_max_position_embeddings {
                Some(positions) => positions,
                None => rope
                    .size("original_max_position_embeddings")?
                    .unwrap_or(max_position_embeddings),
            },
        },
        other => {
            return Err(unsupported(&rope.name("rope_type"), other, "default, linear or llama3"));
        }
    };
    Ok((theta, scaling))
}

/// The object, unless it is absent, null or empty: Python's `or` passes all three over.
fn non_empty<'a>(
    key: &str,
    value: Option<&'a Value>,
) -> Result<Option<&'a Map<String, Value>>, ConfigDefect> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map).filter(|map| !map.is_empty())),
        Some(other) => Err(wrong(key, other, "an object")),
    }
}

/// The object of a rotary embedding, and the key it stands under.
struct Rope<'a> {
    key: &'static str,
    map: &'a Map<String, Value>,
}

impl<'a> Rope<'a> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.key)
    }

    /// A value that is neither absent nor null, by `read`.
    fn get<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigDefect> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                read(value).map(Some).ok_or_else(|| wrong(&self.name(key), value, expected))
            }
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>, ConfigDefect> {
        self.get(key, "a number", Value::as_f64)
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, ConfigDefect> {
        self.get(key, "a string", Value::as_str)
    }

    fn size(&self, key: &str) -> Result<Option<usize>, ConfigDefect> {
        self.get(key, "a whole number", |value| {
            value.as_u64().and_then(|size| usize::try_from(size).ok())
        })
    }

    fn required(&self, key: &str) -> Result<f64, ConfigDefect> {
        self.number(key)?.ok_or_else(|| ConfigDefect::Missing { key: self.name(key) })
    }
}
