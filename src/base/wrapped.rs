//! What is given as a base and is something else: an adapter, one file of a folder, a PEFT model
//! saved whole, a quantised copy. Each is named, with what to give in its place.

use std::path::Path;

use serde_json::Value;

use super::published::{cached_model, plain_twin};
use crate::error::{ConfigDefect, FileKind};
use crate::file::safetensors::SafeTensorsFile;
use crate::file::{from_json, read_limited, sniff_file};

/// Longest adapter configuration that is looked into.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// What a PEFT model's tensors are called below.
const PEFT_PREFIX: &str = "base_model.model.";
/// Parts of names that only a model with adapters in it has.
const PEFT_PARTS: [&str; 5] =
    [".base_layer.", ".lora_", ".modules_to_save.", ".original_module.", ".token_adapter."];
/// What a file is that is no GGUF file.
pub(super) fn no_gguf(path: &Path) -> ConfigDefect {
    let folder = || path.parent().unwrap_or(Path::new("")).to_owned();
    match sniff_file(path) {
        Some(FileKind::SafeTensors) => ConfigDefect::InsideFolder { folder: folder() },
        Some(FileKind::Json) if path.file_name().is_some_and(|name| name == "config.json") => {
            ConfigDefect::InsideFolder { folder: folder() }
        }
        Some(FileKind::Json) | None => ConfigDefect::NotABase,
        Some(found) => ConfigDefect::OtherFile { found },
    }
}

/// What a folder is that lacks `config.json` or weights, where it shows.
pub(super) fn no_model(dir: &Path) -> Option<ConfigDefect> {
    let adapter = dir.join("adapter_config.json");
    if adapter.exists() {
        let config = read_limited(&adapter, MAX_CONFIG_BYTES)
            .ok()
            .and_then(|bytes| from_json::<Value>(&bytes).ok());
        let name =
            config.as_ref().and_then(|config| config.get("base_model_name_or_path")?.as_str());
        let base = name.map_or_else(|| "unnamed".to_owned(), |name| format!("`{name}`"));
        return Some(ConfigDefect::Adapter { base });
    }
    let files = std::fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let file = files
        .filter(|file| file.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf")))
        .min()?;
    Some(ConfigDefect::GgufInside { file })
}

/// How a quantised model's weights are kept, and which model it was made of.
pub(super) fn quantised(dir: &Path, name: Option<&str>, quantization: &Value) -> ConfigDefect {
    let method = quantization.get("quant_method").unwrap_or(quantization);
    let method = method.as_str().map_or_else(|| method.to_string(), str::to_owned);
    let folder = dir.file_name().and_then(|folder| folder.to_str());
    let names = [
        name.map(str::to_owned),
        cached_model(dir).map(|(_, name)| name),
        folder.map(str::to_owned),
    ];
    let plain = names.iter().flatten().find_map(|name| plain_twin(name));
    let twin = plain
        .map(|name| format!("; the plain model is called {name}, by its name"))
        .unwrap_or_default();
    ConfigDefect::Quantised { method, twin }
}

/// Whether the files' tensors are those of a plain model below [`PEFT_PREFIX`].
///
/// # Errors
/// [`ConfigDefect::PeftModel`] where there are adapters in it, too: which of its matrices is the
/// model's is for PEFT to say.
pub(super) fn is_peft_model(files: &[SafeTensorsFile]) -> Result<bool, ConfigDefect> {
    let names = || files.iter().flat_map(SafeTensorsFile::names);
    if !names().any(|name| name.starts_with(PEFT_PREFIX)) {
        return Ok(false);
    }
    let strange = |name: &&str| {
        !name.starts_with(PEFT_PREFIX) || PEFT_PARTS.iter().any(|part| name.contains(part))
    };
    match names().find(strange) {
        Some(tensor) => Err(ConfigDefect::PeftModel { tensor: tensor.to_owned() }),
        None => Ok(true),
    }
}

/// A tensor's name in the model that PEFT wrapped.
pub(super) fn inner_name(tensor: &str) -> &str {
    tensor.strip_prefix(PEFT_PREFIX).unwrap_or(tensor)
}
