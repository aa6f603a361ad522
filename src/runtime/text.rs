//! Text in, text out: prompts become tokens, tokens become text, at the node the weights stand at.

use std::ops::ControlFlow;
use std::time::Instant;

use serde::Serialize;

use super::{Runtime, Sequence, Shared, Step};
use crate::Result;
use crate::model::chat::Message;
use crate::model::tokenizer::Tokenizer;
use crate::model::{self, GenerateOptions, log_softmax_top, prefill};

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

impl Shared {
    /// Token ids of a prompt.
    pub(crate) fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        match prompt {
            Prompt::Text(text) => self.tokenizer()?.encode(text),
            Prompt::Tokens(ids) => Ok(ids.clone()),
            Prompt::Chat(messages) => self.render(None, messages),
            Prompt::NamedChat { template, messages } => self.render(Some(template), messages),
        }
    }

    fn render(&self, name: Option<&str>, messages: &[Message]) -> Result<Vec<u32>> {
        self.tokenizer()?.encode_rendered(&self.chat()?.render_by(name, messages)?)
    }
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
    /// Why it ended: `stop_token`, `stop_text`, `max_tokens`, `context_full` or `cancelled`.
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
        self.shared.tokenizer()
    }

    /// Token ids of a prompt.
    ///
    /// # Errors
    /// When the tokenizer or the chat template refuses it.
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        self.shared.encode(prompt)
    }

    /// Begins a text behind `prompt` at the current node. Tokens that end a text for this model
    /// stop it, beside those of `options`, unless `ignore_eos` is set.
    ///
    /// # Errors
    /// An empty or too long prompt, a parameter out of its range,
    /// [`Error::Unusable`](crate::Error::Unusable) after a pass that broke off.
    pub fn sequence(&self, prompt: &Prompt, options: &GenerateOptions) -> Result<Sequence> {
        Sequence::new(&*self.replica, &self.encode(prompt)?, options)
    }

    /// Chooses the next token of a sequence: the first step runs the whole prompt. A sequence that
    /// has ended returns no token.
    ///
    /// # Errors
    /// [`Error::SequenceElsewhere`](crate::Error::SequenceElsewhere) where the weights stand at
    /// another version than it was begun at; [`Error::Unusable`](crate::Error::Unusable) after a
    /// pass that broke off, and what the device returns. The sequence may be stepped again all the
    /// same.
    pub fn step(&self, sequence: &mut Sequence) -> Result<Step> {
        sequence.step(&*self.replica)
    }

    /// Continues `prompt` at the current node, step by step: [`Self::sequence`], and [`Self::step`]
    /// to the end. `on_text` gets the text as it comes, in whole characters and as far as it cannot
    /// become part of a stop text, and may end it.
    ///
    /// # Errors
    /// As these.
    pub fn generate(
        &self,
        prompt: &Prompt,
        options: &GenerateOptions,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let mut sequence = self.sequence(prompt, options)?;
        let (start, mut prefill_ms, mut text) = (Instant::now(), None, String::new());
        let stop = loop {
            let step = self.step(&mut sequence)?;
            prefill_ms.get_or_insert_with(|| milliseconds(start));
            text += &step.text;
            if let Some(stop) = step.stop {
                if !step.text.is_empty() {
                    // It ends either way.
                    let _ = on_text(&step.text);
                }
                break stop;
            }
            if !step.text.is_empty() && on_text(&step.text).is_break() {
                sequence.cancel();
            }
        };
        let prefill_ms = prefill_ms.unwrap_or_default();
        Ok(Generation {
            node: self.current().to_owned(),
            prompt_tokens: sequence.prompt_tokens(),
            token_ids: sequence.token_ids().to_vec(),
            text,
            stop,
            prefill_ms,
            decode_ms: milliseconds(start) - prefill_ms,
        })
    }

    /// Logits of the position after `prompt` at the current node.
    ///
    /// # Errors
    /// As [`Self::sequence`].
    pub fn score(&self, prompt: &Prompt) -> Result<Scores> {
        self.replica.check_usable()?;
        let prompt_ids = self.encode(prompt)?;
        let mut kv = self.replica.kv(prompt_ids.len())?;
        let capacity = kv.capacity;
        let logits = prefill(&mut *self.replica.forward(&mut kv)?, &prompt_ids, capacity)?;
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
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
