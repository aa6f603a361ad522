//! A text in the making: its tokens, its sampler, and the text that they are so far.

use super::Step;
use super::shared::Shared;
use crate::model::tokenizer::{StreamState, Tokenizer};
use crate::model::{Decoding, GenerateOptions, StopReason, StopTexts};
use crate::{Error, Result};

/// Tokens and text behind a prompt.
pub(crate) struct Script {
    pub(crate) decoding: Decoding,
    stream: StreamState,
    stops: StopTexts,
    /// Whether the last text was returned.
    is_flushed: bool,
}

impl Script {
    /// Begins behind the tokens of a prompt, in a context of `capacity` tokens. Tokens that end a
    /// text for the model stop it, unless they are to be ignored.
    pub(crate) fn new(
        shared: &Shared,
        ids: &[u32],
        options: &GenerateOptions,
        capacity: usize,
    ) -> Result<Self> {
        options.check()?;
        let vocab_size = shared.base.config().vocab_size;
        if let Some(&token) = ids.iter().find(|&&token| token as usize >= vocab_size) {
            return Err(Error::UnknownToken { token, vocab_size });
        }
        let mut options = options.clone();
        if !options.ignore_eos {
            options.stop_tokens.extend(&shared.base.config().eos_token_ids);
        }
        Ok(Self {
            decoding: Decoding::new(ids, &options, capacity)?,
            stream: StreamState::after(shared.tokenizer()?, ids)?,
            stops: StopTexts::new(&options.stop_texts),
            is_flushed: false,
        })
    }

    /// What a step made: the token that was taken, if one was, and the text that is complete by now.
    pub(crate) fn step(&mut self, tokenizer: &Tokenizer, token: Option<u32>) -> Result<Step> {
        let mut text = match token {
            Some(token) => self.stops.push(&self.stream.push(tokenizer, token)?),
            None => String::new(),
        };
        if self.stops.is_done() {
            self.decoding.end(StopReason::StopText);
        }
        if self.decoding.stop().is_some() && !std::mem::replace(&mut self.is_flushed, true) {
            text += &self.stops.push(&self.stream.rest(tokenizer)?);
            if self.stops.is_done() {
                self.decoding.end(StopReason::StopText);
            }
            text += &self.stops.finish();
        }
        let logprobs = self.decoding.take_logprobs();
        Ok(Step { token, text, logprobs, stop: self.decoding.stop() })
    }
}
