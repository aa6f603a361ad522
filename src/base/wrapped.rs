//! What is given as a base and is something else: an adapter, one file of a folder, a PEFT model saved whole, a quantised
//! copy. Each is named, with what to give in its place.

use std::path::Path;

use serde_json::Value;

use crate::error::{ConfigDefect, FileKind};
use crate::file::safetensors::SafeTensorsFile;
use crate::file::{from_json, read_limited, sniff_file};

/// Longest adapter configuration that is looked into.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// What a PEFT model's tensors are called below.
const PEFT_PREFIX: &str = "base_model.model.";
/// Parts of names that only a model with adapters in it has.
const PEFT_PARTS: [&str; 5] = [".base_layer.", ".lora_", ".modules_to_save.", ".original_module.", ".token_adapter."];
/// What the names of quantised copies end in; those of bitsandbytes lie beside the plain model.
const BESIDE: [&str; 4] = ["-unsloth-bnb-4bit", "-bnb-4bit", "-bnb-8bit", "-4bit"];
const ELSEWHERE: [&str; 7] = ["-gptq-int4", "-gptq-int8", "-gptq", "-awq-int4", "-awq", "-fp8", "-8bit"];

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

/// What a folder is that lacks `config.json` or weights, where it tells.
pub(super) fn no_model(dir: &Path) -> Option<ConfigDefect> {
    let adapter = dir.join("adapter_config.json");
    if adapter.exists() {
        let config = read_limited(&adapter, MAX_CONFIG_BYTES).ok().and_then(|bytes| from_json::<Value>(&bytes).ok());
        let name = config.as_ref().and_then(|config| config.get("base_model_name_or_path")?.as_str());
        let base = name.map_or_else(|| "unnamed".to_owned(), |name| format!("`{name}`"));
        return Some(ConfigDefect::Adapter { base });
    }
    let files = std::fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let file = files.filter(|file| file.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"))).min()?;
    Some(ConfigDefect::GgufInside { file })
}

/// How a quantised model's weights are kept, and which model it was made of.
pub(super) fn quantised(dir: &Path, name: Option<&str>, quantization: &Value) -> ConfigDefect {
    let method = quantization.get("quant_method").unwrap_or(quantization);
    let method = method.as_str().map_or_else(|| method.to_string(), str::to_owned);
    // The hub's cache keeps `ORG/NAME` in `models--ORG--NAME/snapshots/COMMIT`.
    let folders = || dir.ancestors().filter_map(|folder| folder.file_name()?.to_str());
    let cached = folders().find_map(|folder| Some(folder.strip_prefix("models--")?.replacen("--", "/", 1)));
    let names = [name.map(str::to_owned), cached, folders().next().map(str::to_owned)];
    let plain = names.iter().flatten().find_map(|name| plain_twin(name));
    let twin = plain.map(|name| format!("; the plain model is called {name}, by its name")).unwrap_or_default();
    ConfigDefect::Quantised { method, twin }
}

/// The name of the model that a quantised one of this name was made of.
pub(crate) fn plain_twin(name: &str) -> Option<String> {
    let cut = |suffixes: &[&str]| {
        let end = |suffix: &&str| name.len().checked_sub(suffix.len()).filter(|end| *end > 0);
        suffixes.iter().find_map(|suffix| {
            let (plain, found) = name.split_at_checked(end(suffix)?)?;
            found.eq_ignore_ascii_case(suffix).then_some(plain)
        })
    };
    let beside = cut(&BESIDE).map(str::to_owned);
    // Who quantises by these methods seldom has the plain model under the same name.
    beside.or_else(|| cut(&ELSEWHERE).map(|plain| plain.rsplit('/').next().unwrap_or(plain).to_owned()))
}

/// Whether the files' tensors are those of a plain model below [`PEFT_PREFIX`].
///
/// # Errors
/// [`ConfigDefect::PeftModel`] where there are adapters in it, too: which of its matrices is the model's is for PEFT to say.
pub(super) fn is_peft_model(files: &[SafeTensorsFile]) -> Result<bool, ConfigDefect> {
    let names = || files.iter().flat_map(SafeTensorsFile::names);
    if !names().any(|name| name.starts_with(PEFT_PREFIX)) {
        return Ok(false);
    }
    let strange = |name: &&str| !name.starts_with(PEFT_PREFIX) || PEFT_PARTS.iter().any(|part| name.contains(part));
    match names().find(strange) {
        Some(tensor) => Err(ConfigDefect::PeftModel { tensor: tensor.to_owned() }),
        None => Ok(true),
    }
}

/// A tensor's name in the model that PEFT wrapped.
pub(super) fn inner_name(tensor: &str) -> &str {
    tensor.strip_prefix(PEFT_PREFIX).unwrap_or(tensor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantised_copies_name_their_plain_twin() {
        for (name, plain) in [
            ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", Some("unsloth/Llama-3.2-1B-Instruct")),
            ("unsloth/Qwen2.5-7B-unsloth-bnb-4bit", Some("unsloth/Qwen2.5-7B")),
            ("TheBloke/Mistral-7B-v0.1-GPTQ", Some("Mistral-7B-v0.1")),
            ("Qwen/Qwen2.5-7B-Instruct-AWQ", Some("Qwen2.5-7B-Instruct")),
            ("org/plain", None),
            ("-gptq", None),
            ("é-é", None),
        ] {
            assert_eq!(plain_twin(name).as_deref(), plain, "{name}");
        }
    }
}
