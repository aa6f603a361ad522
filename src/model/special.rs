//! What a folder's files beside `tokenizer.json` declare: special and added tokens, and chat
//! templates.
//!
//! **Source:** transformers 5.23, `PreTrainedTokenizerBase._from_pretrained`:
//! `tokenizer_config.json`; where that has no `added_tokens_decoder`, `special_tokens_map.json`
//! over it and `added_tokens.json`, too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::TokenizerDefect;
use crate::file::{from_json, read_limited};
use crate::{Error, Result};

const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Names of special tokens, in transformers' order.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A token as a file declares it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Declared {
    pub(super) content: String,
    pub(super) single_word: bool,
    pub(super) lstrip: bool,
    pub(super) rstrip: bool,
    /// Whether it is looked for in the normalised text.
    pub(super) normalized: bool,
    pub(super) special: bool,
}

impl Declared {
    /// A special token given by its text alone.
    fn text(content: &str) -> Self {
        let content = content.to_owned();
        Self {
            content,
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
            special: true,
        }
    }

    /// A token written out as an object; `special` where that does not say.
    fn object(fields: &Map<String, Value>, special: bool) -> Option<Self> {
        let flag = |name: &str| fields.get(name).and_then(Value::as_bool);
        let special = flag("special").unwrap_or(special);
        Some(Self {
            content: fields.get("content")?.as_str()?.to_owned(),
            single_word: flag("single_word").unwrap_or(false),
            lstrip: flag("lstrip").unwrap_or(false),
            rstrip: flag("rstrip").unwrap_or(false),
            normalized: flag("normalized").unwrap_or(!special),
            special,
        })
    }

    fn of(value: &Value, special: bool) -> Option<Self> {
        match value {
            Value::String(content) => Some(Self::text(content)),
            Value::Object(fields) => Self::object(fields, special),
            _ => None,
        }
    }
}

/// What a folder declares.
#[derive(Clone, Debug, Default)]
pub(super) struct FolderTokens {
    /// Special tokens with a name, such as `bos_token`, in transformers' order.
    pub(super) named: Vec<(String, Declared)>,
    /// Special tokens without a name.
    pub(super) extra: Vec<Declared>,
    /// Added tokens by id.
    pub(super) added: BTreeMap<u32, Declared>,
    /// `chat_template` as it is written.
    pub(super) chat_template: Option<Value>,
    /// `tokenizer_class`.
    pub(super) class: Option<String>,
    /// Every key of the configuration: one that is null is none by intent.
    keys: Vec<String>,
}

impl FolderTokens {
    /// Reads what there is in `dir`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when a file is not what it has to be.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer_config.json");
        let config = read(&path)?.unwrap_or_default();
        Self::of(Some(dir), &path, config)
    }

    /// What the bytes of a `tokenizer_config.json` alone declare.
    ///
    /// # Errors
    /// As [`FolderTokens::read`].
    #[cfg(feature = "testing")]
    pub(super) fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self> {
        Self::of(None, path, parse(path, bytes)?)
    }

    fn of(dir: Option<&Path>, path: &Path, mut config: Map<String, Value>) -> Result<Self> {
        move_key(&mut config, "additional_special_tokens", "extra_special_tokens");
        let mut tokens = Self {
            chat_template: config.remove("chat_template").filter(|value| !value.is_null()),
            keys: config.keys().cloned().collect(),
            class: config.get("tokenizer_class").and_then(Value::as_str).map(str::to_owned),
            ..Self::default()
        };
        match config.remove("added_tokens_decoder").filter(|value| !value.is_null()) {
            Some(added) => {
                tokens.added = by_id(&added)
                    .ok_or_else(|| entry(path, "added_tokens_decoder", &added, BY_ID))?;
                tokens.read_names(path, &config)
            }
            None => tokens.read_older(dir, path, config),
        }?;
        Ok(tokens)
    }

    /// The files of before `added_tokens_decoder`.
    fn read_older(
        &mut self,
        dir: Option<&Path>,
        path: &Path,
        mut config: Map<String, Value>,
    ) -> Result<()> {
        let Some(dir) = dir else { return self.read_names(path, &config) };
        let map = dir.join("special_tokens_map.json");
        for (key, value) in read::<Map<String, Value>>(&map)?.unwrap_or_default() {
            // What the configuration says in the new spelling stays.
            if key != "additional_special_tokens" || !config.contains_key("extra_special_tokens") {
                config.insert(key, value);
            }
        }
        move_key(&mut config, "additional_special_tokens", "extra_special_tokens");
        self.read_names(path, &config)?;
        let added: BTreeMap<String, u32> =
            read(&dir.join("added_tokens.json"))?.unwrap_or_default();
        for (content, id) in added {
            let special = self.all_special().any(|token| token.content == content);
            self.added
                .insert(id, Declared { special, normalized: !special, ..Declared::text(&content) });
        }
        Ok(())
    }

    fn read_names(&mut self, path: &Path, config: &Map<String, Value>) -> Result<()> {
        let own = config.iter().filter(|(key, value)| {
            key.ends_with("_token")
                && !NAMES.contains(&key.as_str())
                && (value.is_string() || value.is_object())
        });
        let named = NAMES.iter().filter_map(|name| config.get_key_value(*name)).chain(own);
        for (name, value) in named.filter(|(_, value)| !value.is_null()) {
            let token = Declared::of(value, true).ok_or_else(|| entry(path, name, value, TOKEN))?;
            // How the token is matched is said where it is declared with its id.
            let known = self.added.values().find(|added| added.content == token.content).cloned();
            self.named.push((name.clone(), known.unwrap_or(token)));
        }
        match config.get("extra_special_tokens") {
            None | Some(Value::Null) => {}
            Some(Value::Array(items)) => {
                for item in items {
                    let token = Declared::of(item, true)
                        .ok_or_else(|| entry(path, "extra_special_tokens", item, TOKEN));
                    self.extra.push(token?);
                }
            }
            // Names of their own.
            Some(Value::Object(items)) => {
                for (name, value) in items {
                    let token =
                        Declared::of(value, true).ok_or_else(|| entry(path, name, value, TOKEN))?;
                    self.named.push((name.clone(), token));
                }
            }
            Some(other) => {
                return Err(entry(path, "extra_special_tokens", other, "a list of tokens"));
            }
        }
        Ok(())
    }

    /// Whether the configuration says something about `key`, if only that there is none.
    pub(super) fn mentions(&self, key: &str) -> bool {
        self.keys.iter().any(|known| known == key) || self.named.iter().any(|(name, _)| name == key)
    }

    fn all_special(&self) -> impl Iterator<Item = &Declared> {
        self.named.iter().map(|(_, token)| token).chain(&self.extra)
    }

    /// What is to be added to a tokenizer that has `known` as added tokens, in transformers' order.
    pub(super) fn to_add(&self, known: impl Fn(&str) -> bool) -> Vec<Declared> {
        let mut tokens: Vec<Declared> = self.added.values().cloned().collect();
        for token in self.all_special() {
            if !known(&token.content) && tokens.iter().all(|added| added.content != token.content) {
                tokens.push(token.clone());
            }
        }
        for token in &mut tokens {
            token.special |= self.named.iter().any(|(_, named)| named.content == token.content);
        }
        tokens
    }
}

const BY_ID: &str = "an object of tokens by id";
const TOKEN: &str = "a text, or an object with `content`";

fn by_id(value: &Value) -> Option<BTreeMap<u32, Declared>> {
    let token = |(id, value): (&String, &Value)| {
        Some((
            id.parse().ok()?,
            value.as_object().and_then(|fields| Declared::object(fields, false))?,
        ))
    };
    value.as_object()?.iter().map(token).collect()
}

fn move_key(map: &mut Map<String, Value>, from: &str, to: &str) {
    if map.get(to).is_none_or(Value::is_null)
        && let Some(value) = map.remove(from)
    {
        map.insert(to.to_owned(), value);
    }
}

/// The JSON of a file; none where there is no such file.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if !path.exists() {
        return Ok(None);
    }
    parse(path, &read_limited(path, MAX_CONFIG_BYTES)?).map(Some)
}

fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    let json = |reason| Error::Tokenizer {
        path: path.to_owned(),
        defect: TokenizerDefect::Json { reason },
    };
    from_json(bytes).map_err(json)
}

fn entry(path: &Path, name: &str, found: &Value, expected: &'static str) -> Error {
    let path: PathBuf = path.to_owned();
    Error::Tokenizer {
        path,
        defect: TokenizerDefect::Entry { entry: name.to_owned(), found: kind(found), expected },
    }
}

/// What a JSON value is.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
