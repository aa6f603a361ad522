//! Text to token ids and back.
//!
//! **Invariant:** every id given out has a row in the base's embedding; a streamed text is cut only between characters.
//!
//! **Source:** a folder's `tokenizer.json`; for a GGUF file its `tokenizer.ggml.*` metadata, with llama.cpp's
//! pre-tokenizer patterns by name.

use std::path::{Path, PathBuf};

use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use crate::base::BaseModel;
use crate::error::TokenizerDefect;
use crate::file::gguf::GgufFile;
use crate::file::read_limited;
use crate::{Error, Result};

const MAX_TOKENIZER_BYTES: u64 = 128 << 20;

/// Token types of GGUF that are matched whole in a text.
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A base's tokenizer.
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    /// Put in front of a text; a `tokenizer.json` does that by itself.
    bos: Option<u32>,
    vocab_size: usize,
}

impl Tokenizer {
    /// Reads the base's own tokenizer, or the `tokenizer.json` at `file` in its place.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::FileTooLarge`], [`Error::Gguf`] or [`Error::Tokenizer`].
    pub fn for_base(base: &BaseModel, file: Option<&Path>) -> Result<Self> {
        let vocab_size = base.config().vocab_size;
        match (file, base.gguf()) {
            (Some(file), _) => Self::from_file(file, vocab_size),
            (None, Some(gguf)) => Self::from_gguf(gguf, vocab_size),
            (None, None) => {
                let path = base.path().join("tokenizer.json");
                if !path.exists() {
                    return Err(Error::Tokenizer { path, defect: TokenizerDefect::Missing });
                }
                Self::from_file(&path, vocab_size)
            }
        }
    }

    fn from_file(path: &Path, vocab_size: usize) -> Result<Self> {
        let bytes = read_limited(path, MAX_TOKENIZER_BYTES)?;
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| library(path, &e))?;
        // Some files carry the training run's cut and padding: neither is wanted in a prompt.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| library(path, &e))?;
        Ok(Self { path: path.to_owned(), inner, bos: None, vocab_size })
    }

    fn from_gguf(file: &GgufFile, vocab_size: usize) -> Result<Self> {
        let path = file.path();
        let refuse = |defect| Error::Tokenizer { path: path.to_owned(), defect };
        let vocabulary = |what: String| refuse(TokenizerDefect::Vocabulary { what });
        let kind = file.text("tokenizer.ggml.model")?.ok_or_else(|| refuse(TokenizerDefect::Missing))?;
        if kind != "gpt2" {
            return Err(refuse(TokenizerDefect::Kind { found: kind.to_owned() }));
        }
        let name = file.text("tokenizer.ggml.pre")?.unwrap_or("missing");
        let pre = Pre::named(name).ok_or_else(|| refuse(TokenizerDefect::PreTokenizer { found: name.to_owned() }))?;

        let tokens = file.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
        let types = file.integers("tokenizer.ggml.token_type")?.unwrap_or_else(|| vec![1; tokens.len()]);
        if tokens.len() > vocab_size || types.len() != tokens.len() {
            let (tokens, types) = (tokens.len(), types.len());
            return Err(vocabulary(format!("{tokens} tokens and {types} types for {vocab_size} rows")));
        }
        let vocab: Vocab = tokens.iter().map(ToString::to_string).zip(0..).collect();
        if vocab.len() != tokens.len() {
            return Err(vocabulary("two tokens have the same text".to_owned()));
        }
        let merges = file.texts("tokenizer.ggml.merges")?.unwrap_or_default();
        let split = |merge: &&str| merge.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned()));
        let merges = merges.iter().map(split).collect::<Option<Vec<_>>>();
        let merges = merges.ok_or_else(|| vocabulary("a merge is not two tokens".to_owned()))?;

        let bpe = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(pre.ignore_merges).build();
        let mut inner = tokenizers::Tokenizer::new(bpe.map_err(|e| library(path, &e))?);
        inner.with_pre_tokenizer(Some(pre.build().map_err(|e| library(path, &e))?));
        inner.with_decoder(Some(ByteLevelDecoder::default()));
        if pre.nfc {
            inner.with_normalizer(Some(NFC)).map_err(|e| library(path, &e))?;
        }
        let whole = tokens.iter().zip(types).filter(|(_, kind)| matches!(*kind, CONTROL | USER_DEFINED));
        let added = whole.map(|(token, kind)| AddedToken::from(*token, kind == CONTROL).normalized(false));
        inner.add_tokens(added).map_err(|e| library(path, &e))?;

        let adds_bos = file.boolean("tokenizer.ggml.add_bos_token")?.unwrap_or(pre.adds_bos);
        let bos = file.integer("tokenizer.ggml.bos_token_id")?.filter(|_| adds_bos);
        let bos = bos.map(|id| u32::try_from(id).ok().filter(|id| (*id as usize) < tokens.len()));
        let bos = bos.map(|id| id.ok_or_else(|| vocabulary("bos_token_id is no token".to_owned()))).transpose()?;
        Ok(Self { path: path.to_owned(), inner, bos, vocab_size })
    }

    /// Token ids of a text, with the start token if the model wants one.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the tokenizer refuses or gives an id without a row in the embedding.
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
        let encoding = self.inner.encode_fast(text, specials).map_err(|e| library(&self.path, &e))?;
        let ids: Vec<u32> =
            self.bos.filter(|_| specials).into_iter().chain(encoding.get_ids().iter().copied()).collect();
        match ids.iter().find(|id| **id as usize >= self.vocab_size) {
            Some(id) => {
                let what = format!("token {id} has no row in the embedding of {}", self.vocab_size);
                Err(Error::Tokenizer { path: self.path.clone(), defect: TokenizerDefect::Vocabulary { what } })
            }
            None => Ok(ids),
        }
    }

    /// Text of token ids, control tokens written out.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the tokenizer refuses.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, false).map_err(|e| library(&self.path, &e))
    }

    /// One token as the vocabulary writes it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Starts decoding token by token.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, ids: Vec::new(), context: 0, emitted: 0 }
    }
}

/// Decodes token by token. A token may end within a character, and a decoder may treat a text's first token specially,
/// so new text is what the last tokens together say beyond what was given out already.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// Start of the tokens that are decoded again for context.
    context: usize,
    /// Tokens whose text was given out.
    emitted: usize,
}

impl TextStream<'_> {
    /// Takes the next token and gives the text that is complete by now, perhaps none.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the tokenizer refuses.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.pending()?;
        // The replacement character at the end: an unfinished character, or a part of no character at all.
        if text.is_empty() || text.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        self.context = self.emitted;
        self.emitted = self.ids.len();
        Ok(text)
    }

    /// Gives what is left, an unfinished character as the replacement character.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the tokenizer refuses.
    pub fn finish(self) -> Result<String> {
        self.pending()
    }

    fn pending(&self) -> Result<String> {
        let given = self.tokenizer.decode(&self.ids[self.context..self.emitted])?;
        let all = self.tokenizer.decode(&self.ids[self.context..])?;
        Ok(all.strip_prefix(&given).unwrap_or_default().to_owned())
    }
}

/// How a byte-level BPE cuts a text before it merges.
struct Pre {
    patterns: &'static [&'static str],
    nfc: bool,
    ignore_merges: bool,
    adds_bos: bool,
}

impl Pre {
    /// llama.cpp's names.
    fn named(name: &str) -> Option<Self> {
        let plain = |patterns| Self { patterns, nfc: false, ignore_merges: false, adds_bos: false };
        Some(match name {
            "gpt-2" => plain(&[GPT2]),
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => plain(&[r"\p{N}", GPT2]),
            "llama-bpe" | "llama3" | "llama-v3" => Self { ignore_merges: true, adds_bos: true, ..plain(&[LLAMA3]) },
            "smaug-bpe" => plain(&[LLAMA3]),
            "qwen2" | "deepseek-r1-qwen" => Self { nfc: true, ..plain(&[QWEN2]) },
            "default" => plain(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
            _ => return None,
        })
    }

    fn build(&self) -> Result<Sequence, tokenizers::Error> {
        let split = |pattern: &&str| {
            let pattern = SplitPattern::Regex((*pattern).to_owned());
            Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map(PreTokenizerWrapper::from)
        };
        let mut steps = self.patterns.iter().map(split).collect::<Result<Vec<_>, _>>()?;
        steps.push(ByteLevel::new(false, true, false).into());
        Ok(Sequence::new(steps))
    }
}

fn library(path: &Path, error: &tokenizers::Error) -> Error {
    Error::Tokenizer { path: path.to_owned(), defect: TokenizerDefect::Library { reason: error.to_string() } }
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
