//! Text in, text out: prompts become tokens, tokens become text, at the node the weights stand at.

use std::ops::ControlFlow;

use serde::Serialize;

use super::Runtime;
use super::live::{Live, on_device};
use crate::device::Compute;
use crate::model::chat::{ChatTemplate, Message};
use crate::model::tokenizer::Tokenizer;
use crate::model::{self, GenerateOptions, KvCache, StopTexts, log_softmax_top};
use crate::{Error, Result};

/// What a generation starts from.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Plain text.
    Text(String),
    /// A conversation, written out by the model's chat template.
    Chat(Vec<Message>),
    /// The same by one of its other chat templates.
    NamedChat {
        /// The template's name.
        template: String,
        /// The conversation.
        messages: Vec<Message>,
    },
    /// Token ids.
    Tokens(Vec<u32>),
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// A generated text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Generation {
    /// Node the weights stood at.
    pub node: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// New tokens.
    pub token_ids: Vec<u32>,
    /// Their text.
    pub text: String,
    /// Why it ended: `stop_token`, `stop_text`, `max_tokens` or `context_full`.
    pub stop: model::StopReason,
    /// Time of the prompt, in milliseconds.
    pub prefill_ms: f64,
    /// Time of the new tokens, in milliseconds.
    pub decode_ms: f64,
}

/// Logits of the position after a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// Node the weights stood at.
    pub node: String,
    /// The prompt's tokens.
    pub prompt_ids: Vec<u32>,
    /// One logit for every token of the vocabulary.
    pub logits: Vec<f32>,
}

/// A likely next token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NextToken {
    /// Token id.
    pub id: u32,
    /// The text it adds behind the prompt.
    pub text: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

impl Runtime {
    /// The tokenizer of the base, or what was given to the builder; read on first use.
    ///
    /// # Errors
    /// When there is none or it cannot be read.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        if let Some(tokenizer) = self.tokenizer.get() {
            return Ok(tokenizer);
        }
        let mut given = self.sources.tokenizer.as_deref();
        if let Some(folder) = given.filter(|path| path.is_dir())
            && !Tokenizer::lies_in(folder)
            && ChatTemplate::in_folder(folder, self.base())?.is_some()
        {
            given = None;
        }
        let tokenizer = Tokenizer::for_base(self.base(), given)?;
        Ok(self.tokenizer.get_or_init(|| tokenizer))
    }

    /// Token ids of a prompt.
    ///
    /// # Errors
    /// When the tokenizer or the chat template refuses it.
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        match prompt {
            Prompt::Text(text) => self.tokenizer()?.encode(text),
            Prompt::Tokens(ids) => Ok(ids.clone()),
            Prompt::Chat(messages) => self.render(None, messages),
            Prompt::NamedChat { template, messages } => self.render(Some(template), messages),
        }
    }

    fn render(&self, name: Option<&str>, messages: &[Message]) -> Result<Vec<u32>> {
        let templates = match self.chat.get() {
            Some(templates) => templates,
            None => {
                let folder = self.sources.tokenizer.as_deref().filter(|path| path.is_dir());
                let own = folder.map_or(Ok(None), |folder| ChatTemplate::in_folder(folder, self.base()))?;
                let templates = own.map_or_else(|| ChatTemplate::for_base(self.base()), Ok)?;
                self.chat.get_or_init(|| templates)
            }
        };
        self.tokenizer()?.encode_rendered(&templates.render_by(name, messages)?)
    }

    /// Continues `prompt` at the current node; `on_text` gets the text as it comes, in whole characters and as far as it cannot
    /// become part of a stop text. Tokens that end a text for this model stop it, beside those of `options`, unless
    /// `ignore_eos` is set.
    ///
    /// # Errors
    /// An empty or too long prompt, a parameter out of its range, [`Error::Unusable`] after a pass that broke off.
    pub fn generate(
        &self,
        prompt: &Prompt,
        options: &GenerateOptions,
        mut on_text: impl FnMut(&str),
    ) -> Result<Generation> {
        on_device!(&self.live, live => live.usable())?;
        let ids = self.encode(prompt)?;
        let tokenizer = self.tokenizer()?;
        let mut options = options.clone();
        if !options.ignore_eos {
            options.stop_tokens.extend(&self.base().config().eos_token_ids);
        }
        if options.stop_texts.iter().any(String::is_empty) {
            let (name, expected) = ("stop_texts", "texts of at least one character");
            return Err(Error::SamplingParameter { name, expected, found: "empty".to_owned() });
        }
        let capacity = ids.len().saturating_add(options.max_tokens);
        let mut stream = tokenizer.stream_after(&ids)?;
        let mut stops = StopTexts::new(&options.stop_texts);
        let mut text = String::new();
        let mut give = |piece: &str| {
            if !piece.is_empty() {
                text.push_str(piece);
                on_text(piece);
            }
        };
        let on_token = |token| {
            give(&stops.push(&stream.push(token)?));
            Ok(if stops.is_done() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        };
        let owner = self.owner();
        let mut generated = on_device!(&self.live, live => {
            let mut cache = self.kv_cache(live, capacity)?;
            model::generate(&live.model, &live.device, &live.weights, &mut cache, owner, &ids, &options, on_token)
        })?;
        give(&stops.push(&stream.finish()?));
        if stops.is_done() {
            generated.stop = model::StopReason::StopText;
        }
        give(&stops.finish());
        Ok(Generation {
            node: self.current().to_owned(),
            prompt_tokens: ids.len(),
            token_ids: generated.token_ids,
            text,
            stop: generated.stop,
            prefill_ms: generated.prefill.as_secs_f64() * 1e3,
            decode_ms: generated.decode.as_secs_f64() * 1e3,
        })
    }

    /// Logits of the position after `prompt` at the current node.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub fn score(&self, prompt: &Prompt) -> Result<Scores> {
        on_device!(&self.live, live => live.usable())?;
        let prompt_ids = self.encode(prompt)?;
        let logits = on_device!(&self.live, live => {
            let mut cache = self.kv_cache(live, prompt_ids.len())?;
            model::prefill(&live.model, &live.device, &live.weights, &mut cache, self.owner(), &prompt_ids)
        })?;
        let logits = logits.last().unwrap_or_default().to_vec();
        Ok(Scores { node: self.current().to_owned(), prompt_ids, logits })
    }

    /// The `k` likeliest tokens of `scores`, likeliest first.
    ///
    /// # Errors
    /// When a logit is not finite or the tokenizer refuses.
    pub fn likeliest(&self, scores: &Scores, k: usize) -> Result<Vec<NextToken>> {
        let tokenizer = self.tokenizer()?;
        let named = |(id, logprob)| {
            let text = tokenizer.continuation(&scores.prompt_ids, id)?;
            let text = if text.is_empty() { tokenizer.token(id).unwrap_or_default() } else { text };
            Ok(NextToken { id, text, logprob })
        };
        log_softmax_top(&scores.logits, k)?.into_iter().map(named).collect()
    }

    /// A cache for this generation of the weights alone.
    pub(super) fn kv_cache<D: Compute>(&self, live: &Live<D>, tokens: usize) -> Result<KvCache<D>> {
        let config = self.base().config();
        let capacity = tokens.clamp(1, config.max_position_embeddings);
        KvCache::new(&live.device, config, 1, capacity, self.owner())
    }

    /// Names one generation of this runtime's weights: no switch ever gives it again.
    pub(super) fn owner(&self) -> [u8; 32] {
        let mut owner = [0; 32];
        owner[..8].copy_from_slice(&self.generation.to_le_bytes());
        owner
    }
}
