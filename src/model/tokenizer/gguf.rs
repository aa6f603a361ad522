//! A tokenizer out of a GGUF file's `tokenizer.ggml.*` metadata.
//!
//! **Invariant:** a text becomes the ids that llama.cpp gives it, NFC aside (`pre.rs`), or the file
//! is refused.

use std::collections::{HashMap, HashSet};

use tokenizers::AddedToken;
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;

use super::pre::Pre;
use super::{Inner, Tokenizer, library};
use crate::base::is_control_text;
use crate::error::TokenizerDefect;
use crate::file::gguf::GgufFile;
use crate::{Error, Result};

// Token types: those that are matched whole in a text, and what most tokens are.
const NORMAL: u64 = 1;
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

pub(super) fn read(file: &GgufFile, vocab_size: usize) -> Result<Tokenizer> {
    let path = file.path();
    let refuse = |defect| Error::Tokenizer { path: path.to_owned(), defect };
    let vocabulary = |what: String| refuse(TokenizerDefect::Vocabulary { what });
    let kind =
        file.text("tokenizer.ggml.model")?.ok_or_else(|| refuse(TokenizerDefect::Missing))?;
    if kind != "gpt2" {
        return Err(refuse(TokenizerDefect::Kind { found: kind.to_owned() }));
    }
    let name = file.text("tokenizer.ggml.pre")?;
    let pre = Pre::named(name).ok_or_else(|| {
        refuse(TokenizerDefect::PreTokenizer { found: name.unwrap_or_default().to_owned() })
    })?;

    let tokens = texts(file)?;
    let types =
        file.integers("tokenizer.ggml.token_type")?.unwrap_or_else(|| vec![NORMAL; tokens.len()]);
    if tokens.len() > vocab_size || types.len() != tokens.len() {
        let (tokens, types) = (tokens.len(), types.len());
        return Err(vocabulary(format!("{tokens} tokens and {types} types for {vocab_size} rows")));
    }
    let vocab: Vocab = tokens.iter().cloned().zip(0..).collect();
    if vocab.len() != tokens.len() {
        return Err(vocabulary("two tokens have the same text".to_owned()));
    }
    let merges = file.texts("tokenizer.ggml.merges")?.unwrap_or_default();
    let split = |merge: &&str| merge.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned()));
    let merges = merges.iter().map(split).collect::<Option<Vec<_>>>();
    let merges = merges.ok_or_else(|| vocabulary("a merge is not two tokens".to_owned()))?;
    check_merges(&tokens, &types, &merges).map_err(refuse)?;

    let (vocab, fallen_apart) = with_unknown_pieces(vocab, &merges);
    let bpe =
        BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(pre.ignore_merges).build();
    let mut inner = Inner::new(bpe.map_err(|e| library(path, &e))?);
    inner.with_pre_tokenizer(Some(pre.build().map_err(|e| library(path, &e))?));
    inner.with_decoder(Some(ByteLevelDecoder::default()));
    if pre.nfc {
        inner.with_normalizer(Some(NFC)).map_err(|e| library(path, &e))?;
    }
    let whole = tokens.iter().zip(types).filter_map(|(token, kind)| {
        let control = kind == CONTROL || is_control_text(token);
        let matched = control || matches!(kind, USER_DEFINED | UNKNOWN);
        matched.then(|| AddedToken::from(token.as_str(), control).normalized(false))
    });
    inner.add_tokens(whole).map_err(|e| library(path, &e))?;

    let adds_bos = file.boolean("tokenizer.ggml.add_bos_token")?.unwrap_or(pre.adds_bos);
    let bos = file.signed("tokenizer.ggml.bos_token_id")?.filter(|id| adds_bos && *id != -1);
    let bos = bos.map(|id| u32::try_from(id).ok().filter(|id| (*id as usize) < tokens.len()));
    let bos = bos
        .map(|id| id.ok_or_else(|| vocabulary("bos_token_id is no token".to_owned())))
        .transpose()?;
    Tokenizer::new(path, inner, bos, vocab_size, fallen_apart)
}

/// The tokens' texts. Empty ones, which fill up a vocabulary, get a name each, as in llama.cpp.
fn texts(file: &GgufFile) -> Result<Vec<String>> {
    let tokens = file.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
    let named = |(id, text): (usize, &&str)| {
        if text.is_empty() { format!("[EMPTY_{id}]") } else { (*text).to_owned() }
    };
    Ok(tokens.iter().enumerate().map(named).collect())
}

/// Refuses a vocabulary whose merges are lost: every word would fall apart into bytes.
fn check_merges(
    tokens: &[String],
    types: &[u64],
    merges: &[(String, String)],
) -> Result<(), TokenizerDefect> {
    let made: HashSet<String> = merges.iter().map(|(a, b)| format!("{a}{b}")).collect();
    let normal =
        tokens.iter().zip(types).filter(|(text, kind)| **kind == NORMAL && !is_control_text(text));
    let (mut of_several, mut reached) = (0, 0);
    for (text, _) in normal.filter(|(text, _)| text.chars().nth(1).is_some()) {
        of_several += 1;
        reached += usize::from(made.contains(text));
    }
    if 2 * reached < of_several {
        return Err(TokenizerDefect::MergesLost {
            merges: merges.len(),
            reached,
            tokens: of_several,
        });
    }
    Ok(())
}

/// Adds the pieces that a merge names and the vocabulary does not have. Such a merge is made, and
/// what it leaves falls apart into the tokens of its bytes: those are given for each piece's id.
fn with_unknown_pieces(
    mut vocab: Vocab,
    merges: &[(String, String)],
) -> (Vocab, HashMap<u32, Vec<u32>>) {
    let mut fallen_apart = HashMap::new();
    for (a, b) in merges {
        for piece in [a.clone(), b.clone(), format!("{a}{b}")] {
            if vocab.contains_key(&piece) {
                continue;
            }
            let Ok(id) = u32::try_from(vocab.len()) else { continue };
            let bytes = piece
                .chars()
                .filter_map(|c| vocab.get(c.encode_utf8(&mut [0; 4]) as &str).copied())
                .collect();
            fallen_apart.insert(id, bytes);
            vocab.insert(piece, id);
        }
    }
    (vocab, fallen_apart)
}
