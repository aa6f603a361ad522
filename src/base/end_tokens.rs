//! Which tokens end a generation.
//!
//! **Source:** of a folder, what transformers' `generate` takes: `generation_config.json`'s
//! `eos_token_id` alone where it has one, else `config.json`'s; an id below 0 is no token and ends
//! nothing. Of a GGUF file, llama.cpp's `special_eog_ids`: what the keys name and what is known by
//! its text, since many files name one token of several.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::Result;
use crate::file::gguf::GgufFile;

/// `eos_token_id` as it is written: one id or a list.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum EndTokens {
    One(i64),
    Many(Vec<i64>),
}

impl EndTokens {
    /// The ids that are tokens, each once.
    pub(super) fn ids(self) -> Vec<u32> {
        let ids = match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        };
        distinct(ids.into_iter().filter_map(token_id))
    }
}

/// A token id; none for what stands where there is no such token, such as −1.
pub(super) fn token_id(id: i64) -> Option<u32> {
    u32::try_from(id).ok()
}

/// Texts of tokens that end a generation wherever they are in a vocabulary.
const BY_TEXT: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Tokens of infilling that end a generation: the key that names one, and the texts it is known by
/// where the key is missing.
const OF_INFILLING: [(&str, &[&str]); 3] = [
    ("fim_pad", &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"]),
    ("fim_rep", &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"]),
    ("fim_sep", &["<|file_sep|>"]),
];

/// Whether a token of this text is one of control, whatever type its file gives it: no text is ever
/// split into it.
pub(crate) fn is_control_text(text: &str) -> bool {
    BY_TEXT.contains(&text)
}

/// The end tokens of a GGUF file: those of `eos`, `eot` and `eom` first, then the others by id.
pub(super) fn of_gguf(file: &GgufFile) -> Result<Vec<u32>> {
    let tokens = file.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
    let keyed = |name: &str| -> Result<Option<u32>> {
        let id = file.signed(&format!("tokenizer.ggml.{name}_token_id"))?.and_then(token_id);
        // What lies beyond the vocabulary is no token; a file may have no vocabulary at all.
        Ok(id.filter(|id| tokens.is_empty() || (*id as usize) < tokens.len()))
    };
    let of_text = |known: &[&str]| {
        let found = tokens.iter().zip(0u32..).filter(|(text, _)| known.contains(text));
        found.map(|(_, id)| id).collect::<Vec<_>>()
    };
    let mut by_text: BTreeSet<u32> = of_text(&BY_TEXT).into_iter().collect();
    for (name, known) in OF_INFILLING {
        by_text.extend(keyed(name)?.or_else(|| of_text(known).first().copied()));
    }
    let mut ends = Vec::new();
    for name in ["eos", "eot", "eom"] {
        ends.extend(keyed(name)?);
    }
    let ends = distinct(ends.into_iter().chain(by_text));
    let has = |text: &str| ends.iter().any(|&id| tokens.get(id as usize) == Some(&text));
    // Where `<|call|>` and its like end a turn, `<|end|>` ends a message within it.
    let messages = (has("<|return|>") && (has("<|call|>") || has("<|calls|>")))
        || (has("<|flush|>") && (has("<|call|>") || has("<|calls|>")));
    let no_end =
        |text: &str| (text == "<|end|>" && messages) || (text == "</s>" && has("<|tool_response>"));
    Ok(ends
        .iter()
        .copied()
        .filter(|&id| !tokens.get(id as usize).is_some_and(|text| no_end(text)))
        .collect())
}

fn distinct(ids: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut seen = BTreeSet::new();
    ids.filter(|id| seen.insert(*id)).collect()
}
