//! Text to token ids and back.
//!
//! **Invariant:** every id given out has a row in the base's embedding; a streamed text is cut only
//! between characters; a file that the tokenizers library panics on is refused.
//!
//! **Source:** a folder's `tokenizer.json` with the tokens that the files beside it add; for a GGUF
//! file its `tokenizer.ggml.*` metadata, with llama.cpp's pre-tokenizer patterns by name.

mod gguf;
mod pre;
mod stream;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::{AddedToken, Decoder};

pub(crate) use stream::StreamState;
pub use stream::TextStream;

use super::special::{Declared, FolderTokens, kind};
use crate::base::BaseModel;
use crate::contain::contained;
use crate::error::TokenizerDefect;
use crate::file::gguf::GgufFile;
use crate::file::{from_json, read_limited};
use crate::{Error, Result};

type Inner = tokenizers::Tokenizer;

const FILE: &str = "tokenizer.json";
const MAX_TOKENIZER_BYTES: u64 = 128 << 20;

/// A base's tokenizer.
pub struct Tokenizer {
    path: PathBuf,
    inner: Inner,
    /// Put in front of a text; a `tokenizer.json` does that by itself.
    bos: Option<u32>,
    vocab_size: usize,
    /// Ids that stand for the tokens of their bytes.
    fallen_apart: HashMap<u32, Vec<u32>>,
    /// Added tokens whose text the decoder would take for bytes, as it takes them for that text.
    respelt: HashMap<u32, String>,
}

/// A `tokenizer.json` as far as it is looked at before the library reads it.
#[derive(Deserialize)]
struct Outline {
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
    model: Option<IgnoredAny>,
}

impl Tokenizer {
    /// Reads the base's own tokenizer, or in its place the `tokenizer.json` that `file` is, or that
    /// lies in the folder `file`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::FileTooLarge`], [`Error::Gguf`] or [`Error::Tokenizer`].
    pub fn for_base(base: &BaseModel, file: Option<&Path>) -> Result<Self> {
        let vocab_size = base.config().vocab_size;
        match (file, base.gguf()) {
            (Some(folder), _) if folder.is_dir() => Self::from_folder(folder, vocab_size),
            (Some(file), _) => Self::from_file(file, vocab_size),
            (None, Some(gguf)) => Self::from_gguf(gguf, vocab_size),
            (None, None) => Self::from_folder(base.path(), vocab_size),
        }
    }

    /// Whether there is a tokenizer in a folder.
    pub(crate) fn lies_in(folder: &Path) -> bool {
        folder.join(FILE).exists()
    }

    fn from_folder(folder: &Path, vocab_size: usize) -> Result<Self> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Err(Error::Tokenizer { path, defect: TokenizerDefect::Missing });
        }
        Self::from_file(&path, vocab_size)
    }

    /// Reads a `tokenizer.json` and what its folder declares beside it.
    fn from_file(path: &Path, vocab_size: usize) -> Result<Self> {
        let bytes = read_limited(path, MAX_TOKENIZER_BYTES)?;
        let declared = match (path.file_name(), path.parent()) {
            (Some(name), Some(folder)) if name == FILE => FolderTokens::read(folder)?,
            _ => FolderTokens::default(),
        };
        Self::from_bytes(path, &bytes, &declared, vocab_size)
    }

    /// Reads the bytes of a `tokenizer.json`, and of a `tokenizer_config.json` beside it.
    #[cfg(feature = "testing")]
    pub(crate) fn from_json(
        bytes: &[u8],
        config: Option<&[u8]>,
        vocab_size: usize,
    ) -> Result<Self> {
        let path = Path::new("bytes");
        let declared = config
            .map_or(Ok(FolderTokens::default()), |config| FolderTokens::from_bytes(path, config))?;
        Self::from_bytes(path, bytes, &declared, vocab_size)
    }

    fn from_bytes(
        path: &Path,
        bytes: &[u8],
        declared: &FolderTokens,
        vocab_size: usize,
    ) -> Result<Self> {
        check(bytes).map_err(|defect| Error::Tokenizer { path: path.to_owned(), defect })?;
        let read = || -> tokenizers::Result<Inner> {
            let mut inner = Inner::from_bytes(bytes)?;
            // Some files carry the training run's cut and padding: neither is wanted in a prompt.
            inner.with_padding(None);
            inner.with_truncation(None)?;
            Ok(inner)
        };
        let mut inner = contain(path, read)?;
        contain(path, || add(&mut inner, declared))?;
        Self::new(path, inner, None, vocab_size, HashMap::new())
    }

    fn from_gguf(file: &GgufFile, vocab_size: usize) -> Result<Self> {
        match contained(|| gguf::read(file, vocab_size)) {
            Ok(result) => result,
            Err(panic) => Err(panicked(file.path(), &panic)),
        }
    }

    fn new(
        path: &Path,
        inner: Inner,
        bos: Option<u32>,
        vocab_size: usize,
        fallen_apart: HashMap<u32, Vec<u32>>,
    ) -> Result<Self> {
        let respelt = contain(path, || respelt(&inner))?;
        Ok(Self { path: path.to_owned(), inner, bos, vocab_size, fallen_apart, respelt })
    }

    /// Token ids of a text, with the start token if the model wants one.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the tokenizer refuses or returns an id without a row in the
    /// embedding.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, true)
    }

    /// Token ids of a text that a chat template wrote: it has its start token already.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, false)
    }

    fn encode_with(&self, text: &str, specials: bool) -> Result<Vec<u32>> {
        let encoding = contain(&self.path, || self.inner.encode_fast(text, specials))?;
        let mut ids: Vec<u32> = self.bos.filter(|_| specials).into_iter().collect();
        for id in encoding.get_ids() {
            match self.fallen_apart.get(id) {
                Some(bytes) => ids.extend(bytes),
                None => ids.push(*id),
            }
        }
        match ids.iter().find(|id| **id as usize >= self.vocab_size) {
            Some(id) => {
                let what = format!("token {id} has no row in the embedding of {}", self.vocab_size);
                Err(Error::Tokenizer {
                    path: self.path.clone(),
                    defect: TokenizerDefect::Vocabulary { what },
                })
            }
            None => Ok(ids),
        }
    }

    /// Text of token ids, control tokens written out.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the tokenizer refuses.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        contain(&self.path, || match self.inner.get_decoder() {
            Some(decoder) if ids.iter().any(|id| self.respelt.contains_key(id)) => {
                let token = |id: &u32| {
                    self.respelt.get(id).cloned().or_else(|| self.inner.id_to_token(*id))
                };
                decoder.decode(ids.iter().filter_map(token).collect())
            }
            _ => self.inner.decode(ids, false),
        })
    }

    /// Text that `id` adds behind `prompt`; a decoder may treat a text's first token specially.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the tokenizer refuses.
    pub fn continuation(&self, prompt: &[u32], id: u32) -> Result<String> {
        let mut stream = self.stream_after(prompt)?;
        Ok(stream.push(id)? + &stream.finish()?)
    }

    /// One token as the vocabulary writes it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The bytes that one token adds to a text, which may be a part of a character; none for an id
    /// without a token.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Some(token) = self.inner.id_to_token(id) else { return Vec::new() };
        let is_added = self.inner.get_added_tokens_decoder().contains_key(&id);
        if is_added {
            return token.into_bytes();
        }
        if self.inner.get_decoder().is_some_and(is_byte_level) {
            let letters = byte_letters();
            let byte = |c: char| letters.iter().position(|letter| *letter == c);
            let bytes = token.chars().map(|c| byte(c).and_then(|byte| u8::try_from(byte).ok()));
            return bytes.collect::<Option<_>>().unwrap_or_else(|| token.into_bytes());
        }
        let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => vec![byte],
            None => token.replace('\u{2581}', " ").into_bytes(),
        }
    }

    /// Starts decoding a text of its own, token by token.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream::new(self)
    }

    /// Starts decoding what follows `prompt`, token by token.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the tokenizer refuses.
    pub fn stream_after(&self, prompt: &[u32]) -> Result<TextStream<'_>> {
        TextStream::after(self, prompt)
    }
}

/// What the library may be given: JSON, and entries that it reads without a panic.
fn check(bytes: &[u8]) -> Result<(), TokenizerDefect> {
    let outline: Outline = from_json(bytes).map_err(|reason| TokenizerDefect::Json { reason })?;
    if outline.model.is_none() {
        return Err(TokenizerDefect::Entry {
            entry: "model".to_owned(),
            found: "missing",
            expected: "an object",
        });
    }
    for (name, value) in [
        ("normalizer", outline.normalizer),
        ("pre_tokenizer", outline.pre_tokenizer),
        ("post_processor", outline.post_processor),
        ("decoder", outline.decoder),
    ] {
        if let Some(value) = value {
            check_entry(name, &value)?;
        }
    }
    Ok(())
}

/// One step of a pipeline, or a sequence of them.
fn check_entry(name: &str, value: &Value) -> Result<(), TokenizerDefect> {
    let wrong =
        |entry: String, found, expected| Err(TokenizerDefect::Entry { entry, found, expected });
    let Some(fields) = value.as_object() else {
        return wrong(name.to_owned(), kind(value), "an object or null");
    };
    match fields.get("type") {
        None => return wrong(format!("{name}.type"), "missing", "the name of a step"),
        Some(Value::String(_)) => {}
        Some(other) => return wrong(format!("{name}.type"), kind(other), "the name of a step"),
    }
    for list in ["normalizers", "pretokenizers", "processors", "decoders"] {
        for (k, step) in
            fields.get(list).and_then(Value::as_array).into_iter().flatten().enumerate()
        {
            check_entry(&format!("{name}.{list}[{k}]"), step)?;
        }
    }
    Ok(())
}

/// Adds what the folder declares; a token that is there already is matched from now on as it is
/// declared.
fn add(inner: &mut Inner, declared: &FolderTokens) -> tokenizers::Result<()> {
    let known = inner.get_added_tokens_decoder();
    let known: std::collections::HashSet<&str> =
        known.values().map(|token| token.content.as_str()).collect();
    let tokens = declared.to_add(|content| known.contains(content));
    inner.add_tokens(tokens.into_iter().map(|token| {
        let Declared { content, single_word, lstrip, rstrip, normalized, special } = token;
        AddedToken { content, single_word, lstrip, rstrip, normalized, special }
    }))?;
    for (id, token) in &declared.added {
        let given = inner.token_to_id(&token.content);
        if given != Some(*id) && !token.content.is_empty() {
            let (token, given) = (&token.content, given.unwrap_or_default());
            tracing::warn!(
                "the files beside tokenizer.json give the token {token:?} the id {id}; it has {given}"
            );
        }
    }
    Ok(())
}

/// Added tokens stand in a text as they are, but a byte-level decoder takes letters of its alphabet
/// for bytes: those with such letters, spelt so that its text is theirs.
fn respelt(inner: &Inner) -> tokenizers::Result<HashMap<u32, String>> {
    let mut respelt = HashMap::new();
    if !inner.get_decoder().is_some_and(is_byte_level) {
        return Ok(respelt);
    }
    let alphabet = byte_letters();
    for (id, token) in inner.get_added_tokens_decoder() {
        if inner.decode(&[id], false)? != token.content {
            respelt.insert(
                id,
                token.content.bytes().map(|byte| alphabet[usize::from(byte)]).collect(),
            );
        }
    }
    Ok(respelt)
}

fn is_byte_level(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteLevel(_) => true,
        DecoderWrapper::Sequence(steps) => steps.get_decoders().iter().any(is_byte_level),
        _ => false,
    }
}

/// The letter of each byte: itself where it is printable, the others in order from U+0100 on.
fn byte_letters() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| {
        if matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) {
            return char::from(u8::try_from(byte).unwrap_or_default());
        }
        next += 1;
        char::from_u32(next - 1).unwrap_or_default()
    })
}

/// Runs the library on what a file says.
fn contain<T>(path: &Path, work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match contained(work) {
        Ok(result) => result.map_err(|error| library(path, &error)),
        Err(panic) => Err(panicked(path, &panic)),
    }
}

fn panicked(path: &Path, panic: &str) -> Error {
    let reason = format!("the tokenizers library broke off over this file: {panic}");
    Error::Tokenizer { path: path.to_owned(), defect: TokenizerDefect::Library { reason } }
}

fn library(path: &Path, error: &tokenizers::Error) -> Error {
    Error::Tokenizer {
        path: path.to_owned(),
        defect: TokenizerDefect::Library { reason: error.to_string() },
    }
}

#[cfg(test)]
mod tests;
