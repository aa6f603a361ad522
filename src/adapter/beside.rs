//! What lies beside an adapter's two files and changes what it means: a tokenizer with other
//! tokens, another chat template.
//!
//! **Invariant:** no file is read that is not the folder's own and regular, none above
//! [`MAX_BYTES`], and of none more than JSON and text.
//!
//! **Source:** transformers' `PreTrainedTokenizerBase.save_pretrained`, which PEFT's trainers call
//! on the adapter's folder.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::base::{BaseModel, cached_model};
use crate::error::AdapterDefect;
use crate::file::{from_json, read_limited};
use crate::{Error, Result};

/// What transformers saves of a tokenizer: the files that are kept with an adapter's own.
pub(crate) const BESIDE_FILES: [&str; 10] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// Largest file that is looked at or kept.
const MAX_BYTES: u64 = 32 << 20;

/// Tokens by their ids.
type Tokens = BTreeMap<u64, String>;

/// What lies beside the adapter in `folder` that is not as in `base`, in words; nothing where it is
/// the same, or where there is nothing to compare it with.
pub fn beside(folder: &Path, base: &BaseModel) -> Vec<String> {
    let tokens = other_tokens(folder, base);
    let template = template(folder)
        .filter(|own| base_template(base).is_none_or(|of_base| of_base.trim() != own.trim()));
    tokens
        .into_iter()
        .chain(template.map(|_| "a chat template other than the base's".to_owned()))
        .collect()
}

/// The names of the files beside the adapter in `folder` that make its tokenizer.
pub(crate) fn names_beside(folder: &Path) -> impl Iterator<Item = &'static str> {
    BESIDE_FILES.into_iter().filter(move |name| folder.join(name).exists())
}

/// The files beside the adapter in `folder` that make its tokenizer, by name; of those that are
/// byte for byte the base's, none.
///
/// # Errors
/// [`Error::FileTooLarge`] above 32 MiB, [`Error::NotAFile`], [`Error::Io`], and
/// [`AdapterDefect::Outside`] for a link out of the folder.
pub(crate) fn files_beside(
    folder: &Path,
    base: Option<&BaseModel>,
) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let base = base.filter(|base| base.gguf().is_none()).map(BaseModel::path);
    let mut files = Vec::new();
    for name in BESIDE_FILES {
        let Some(bytes) = read(folder, name)? else { continue };
        if base.is_none_or(|base| read(base, name).ok().flatten().is_none_or(|own| own != bytes)) {
            files.push((name, bytes));
        }
    }
    Ok(files)
}

/// The tokens that the folder adds and the base does not have at their places.
fn other_tokens(folder: &Path, base: &BaseModel) -> Option<String> {
    let added = added_tokens(folder);
    if added.is_empty() {
        // Most adapters: the base's own files, which may be long, are left alone.
        return None;
    }
    let known = match base.gguf() {
        Some(gguf) => {
            let texts = gguf.texts("tokenizer.ggml.tokens").ok().flatten()?;
            (0..).zip(texts.into_iter().map(str::to_owned)).collect()
        }
        None => {
            let mut known = vocabulary(base.path());
            known.extend(added_tokens(base.path()));
            known
        }
    };
    if known.is_empty() {
        return None;
    }
    let others: Vec<&String> = added
        .iter()
        .filter(|(id, text)| known.get(id) != Some(*text))
        .map(|(_, text)| text)
        .collect();
    let first = others.first()?;
    Some(match others.len() {
        1 => format!("a tokenizer with a token that the base does not have there ({first})"),
        count => format!(
            "a tokenizer with {count} tokens that the base does not have there (the first is {first})"
        ),
    })
}

/// The tokens that a folder's tokenizer files add to its vocabulary, in either of the three places.
fn added_tokens(folder: &Path) -> Tokens {
    let mut tokens = Tokens::new();
    if let Some(Value::Object(added)) = json(folder, "added_tokens.json") {
        tokens.extend(added.into_iter().filter_map(|(text, id)| Some((id.as_u64()?, text))));
    }
    if let Some(Value::Object(decoder)) =
        json(folder, "tokenizer_config.json").map(|mut c| c["added_tokens_decoder"].take())
    {
        let token = |(id, token): (String, Value)| {
            Some((id.parse().ok()?, token["content"].as_str()?.to_owned()))
        };
        tokens.extend(decoder.into_iter().filter_map(token));
    }
    if let Some(Value::Array(added)) =
        json(folder, "tokenizer.json").map(|mut file| file["added_tokens"].take())
    {
        tokens.extend(added.iter().filter_map(|token| {
            Some((token["id"].as_u64()?, token["content"].as_str()?.to_owned()))
        }));
    }
    tokens
}

/// The vocabulary of a folder's tokenizer.json: a map to ids, or a list of texts and scores.
fn vocabulary(folder: &Path) -> Tokens {
    match json(folder, "tokenizer.json").map(|mut file| file["model"]["vocab"].take()) {
        Some(Value::Object(map)) => {
            map.into_iter().filter_map(|(text, id)| Some((id.as_u64()?, text))).collect()
        }
        Some(Value::Array(list)) => (0..)
            .zip(&list)
            .filter_map(|(id, entry)| Some((id, entry[0].as_str()?.to_owned())))
            .collect(),
        _ => Tokens::new(),
    }
}

/// A folder's chat template: the file, else the key; of a list the one called `default`.
fn template(folder: &Path) -> Option<String> {
    if let Some(text) = read(folder, "chat_template.jinja")
        .ok()
        .flatten()
        .and_then(|bytes| String::from_utf8(bytes).ok())
    {
        return Some(text);
    }
    match json(folder, "tokenizer_config.json")?["chat_template"].take() {
        Value::String(text) => Some(text),
        Value::Array(list) => {
            let default = list.into_iter().find(|entry| entry["name"] == "default")?;
            default["template"].as_str().map(str::to_owned)
        }
        _ => None,
    }
}

fn base_template(base: &BaseModel) -> Option<String> {
    match base.gguf() {
        Some(gguf) => gguf.text("tokenizer.chat_template").ok().flatten().map(str::to_owned),
        None => template(base.path()),
    }
}

/// An object in a file of the folder; nothing where it is none.
fn json(folder: &Path, name: &str) -> Option<Value> {
    from_json(&read(folder, name).ok()??).ok().filter(Value::is_object)
}

/// The bytes of the folder's own file; none where there is none. A base in the hub's cache is links
/// throughout, an adapter's link is followed inside its folder alone.
fn read(folder: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    let path = folder.join(name);
    if !path.exists() {
        return Ok(None);
    }
    let real = |path: &Path| path.canonicalize().map_err(|error| Error::io(path, error));
    let file = real(&path)?;
    let is_below = |folder: &Path| real(folder).map(|folder| file.starts_with(folder));
    if is_below(folder)? || cached_model(folder).map_or(Ok(false), |(model, _)| is_below(model))? {
        return read_limited(&file, MAX_BYTES).map(Some);
    }
    Err(Error::adapter(folder, AdapterDefect::Outside { file: name.to_owned(), target: file }))
}
