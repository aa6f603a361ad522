//! From prompt to tokens, one after another.

use super::{
    Batch, History, KvPool, Logprobs, NewTokens, Pick, Sampler, Sampling, TableId, Transformer,
    Want,
};
use crate::device::cpu::sample;
use crate::device::{Choice, Compute};
use crate::weights::Weights;
use crate::{Error, Result};

/// Prompt tokens computed at once: the memory a forward pass needs stays the same for any prompt.
pub(crate) const PREFILL: usize = 512;

/// What to generate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerateOptions {
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Tokens that end the text; the one that did is not returned.
    pub stop_tokens: Vec<u32>,
    /// Texts at which [`Runtime::generate`](crate::Runtime::generate) ends, wherever the tokens
    /// lie: they and what comes after are left out of the text, not of the tokens.
    pub stop_texts: Vec<String>,
    /// Whether [`Runtime::generate`](crate::Runtime::generate) goes on after tokens that end a text
    /// for the model.
    pub ignore_eos: bool,
    /// Whether each token comes with its logarithm of probability, and with those of how many of
    /// the likeliest, as the model gives them: before penalties, biases and temperature.
    pub logprobs: Option<usize>,
    /// How tokens are chosen.
    pub sampling: Sampling,
}

impl GenerateOptions {
    /// Refuses what no text can be generated with.
    ///
    /// # Errors
    /// [`Error::SamplingParameter`], also for an empty text to stop at.
    pub fn check(&self) -> Result<()> {
        Sampler::new(&self.sampling)?;
        if self.stop_texts.iter().any(String::is_empty) {
            let (name, expected) = ("stop_texts", "texts of at least one character");
            return Err(Error::SamplingParameter { name, expected, found: "empty".to_owned() });
        }
        Ok(())
    }
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// This stop token was chosen.
    StopToken(u32),
    /// A stop text is complete.
    StopText,
    /// `max_tokens` were generated.
    MaxTokens,
    /// The context is full.
    ContextFull,
    /// Whoever asked for it wants no more.
    Cancelled,
}

/// What runs the tokens of one sequence through a model, whatever the device.
pub trait Forward {
    /// Runs tokens whose logits nobody wants.
    ///
    /// # Errors
    /// What the forward pass returns.
    fn fill(&mut self, tokens: &[u32]) -> Result<()>;

    /// Runs tokens and chooses the one that follows.
    ///
    /// # Errors
    /// What the forward pass returns; a logit that is not finite.
    fn choose(&mut self, tokens: &[u32], choice: Choice) -> Result<u32>;

    /// Runs tokens and returns the logits after the last one, `(vocab_size)`.
    ///
    /// # Errors
    /// What the forward pass returns.
    fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>>;
}

/// A prompt and what follows it, token by token.
pub struct Decoding {
    /// The prompt's tokens, then the new ones.
    tokens: Vec<u32>,
    prompt_tokens: usize,
    /// How many of them were run.
    run: usize,
    /// How many were run in all, again after a restart.
    run_tokens: usize,
    sampler: Sampler,
    /// Where repetition is penalised.
    history: History,
    /// How many of the likeliest are wanted beside each token, if any.
    top_logprobs: Option<usize>,
    /// Of the token that was chosen last.
    logprobs: Option<Logprobs>,
    max_tokens: usize,
    stop_tokens: Vec<u32>,
    capacity: usize,
    stop: Option<StopReason>,
}

impl Decoding {
    /// Begins behind `prompt`, in a context of `capacity` tokens.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::ContextFull`] for a prompt longer than the context,
    /// [`Error::SamplingParameter`].
    pub fn new(prompt: &[u32], options: &GenerateOptions, capacity: usize) -> Result<Self> {
        let sampler = Sampler::new(&options.sampling)?;
        check_prompt(prompt, capacity)?;
        let mut history = History::default();
        if sampler.penalises() {
            history.seen.extend(prompt);
        }
        Ok(Self {
            tokens: prompt.to_vec(),
            prompt_tokens: prompt.len(),
            run: 0,
            run_tokens: 0,
            sampler,
            history,
            top_logprobs: options.logprobs,
            logprobs: None,
            max_tokens: options.max_tokens,
            stop_tokens: options.stop_tokens.clone(),
            capacity,
            stop: None,
        })
    }

    /// Runs what is pending and chooses the next token; `None` where the text has ended, which
    /// [`Self::stop`] explains. Where repetition is penalised, or logprobs are wanted, the logits come
    /// to the host, and the token is chosen there.
    ///
    /// # Errors
    /// What `forward` returns. What was run of this step is not known then: see [`Self::restart`].
    pub fn step(&mut self, forward: &mut dyn Forward) -> Result<Option<u32>> {
        if self.end_at_limits() {
            return Ok(None);
        }
        let rest = fill(forward, &self.tokens[self.run..])?;
        let token = match self.needs_logits() {
            false => forward.choose(rest, self.sampler.draw())?,
            true => {
                let logits = forward.logits(rest)?;
                self.choose_from(logits)?
            }
        };
        self.ran(self.tokens.len());
        Ok(self.take(token))
    }

    /// Ends the text where there may be no more tokens; whether it has ended.
    pub(crate) fn end_at_limits(&mut self) -> bool {
        if self.stop.is_none() && self.token_ids().len() >= self.max_tokens {
            self.stop = Some(StopReason::MaxTokens);
        }
        if self.stop.is_none() && self.tokens.len() > self.capacity {
            self.stop = Some(StopReason::ContextFull);
        }
        self.stop.is_some()
    }

    /// All tokens, the prompt's first.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// How the next token is to be chosen: on the device, or here from all logits.
    pub(crate) fn pick(&mut self) -> Pick {
        if self.needs_logits() { Pick::Logits } else { Pick::Token(self.sampler.draw()) }
    }

    fn needs_logits(&self) -> bool {
        self.top_logprobs.is_some() || self.sampler.penalises()
    }

    /// Chooses a token here.
    pub(crate) fn choose_from(&mut self, mut logits: Vec<f32>) -> Result<u32> {
        let choice = self.sampler.draw();
        let Some(k) = self.top_logprobs else {
            self.sampler.penalise(&mut logits, &self.history);
            return sample(&logits, &choice);
        };
        let mut changed = logits.clone();
        self.sampler.penalise(&mut changed, &self.history);
        let token = sample(&changed, &choice)?;
        self.logprobs = Some(Logprobs::of(&logits, token, k)?);
        Ok(token)
    }

    /// Those of the token that was chosen last, if they were wanted and not taken yet.
    pub(crate) fn take_logprobs(&mut self) -> Option<Logprobs> {
        self.logprobs.take()
    }

    /// Says that all tokens before `end` have been run.
    pub(crate) fn ran(&mut self, end: usize) {
        self.run_tokens += end - self.run;
        self.run = end;
    }

    /// Takes the token that was chosen; `None` where it ends the text.
    pub(crate) fn take(&mut self, token: u32) -> Option<u32> {
        if self.stop_tokens.contains(&token) {
            self.stop = Some(StopReason::StopToken(token));
            self.logprobs = None;
            return None;
        }
        self.tokens.push(token);
        if self.sampler.penalises() {
            self.history.seen.insert(token);
            *self.history.chosen.entry(token).or_default() += 1;
        }
        Some(token)
    }

    /// Runs every token again at the next step: what was run is lost.
    pub fn restart(&mut self) {
        self.run = 0;
    }

    /// Ends the text where whoever takes the tokens wants no more.
    pub fn end(&mut self, reason: StopReason) {
        self.stop = Some(reason);
    }

    /// Why there are no more tokens, if there are none.
    pub fn stop(&self) -> Option<StopReason> {
        self.stop
    }

    /// Tokens that were run so far, those that had to be run again counted again.
    pub fn run_tokens(&self) -> usize {
        self.run_tokens
    }

    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// The new tokens so far.
    pub fn token_ids(&self) -> &[u32] {
        &self.tokens[self.prompt_tokens..]
    }
}

/// One sequence of a pool, with the model and the weights that run it.
pub struct OneSequence<'a, D: Compute> {
    /// The model.
    pub model: &'a Transformer,
    /// Where it runs.
    pub device: &'a D,
    /// Its weights.
    pub weights: &'a Weights<D>,
    /// Keys and values of the tokens that were run.
    pub pool: &'a mut KvPool<D>,
    /// The pages of them that are the sequence's.
    pub table: TableId,
    /// Names the weights.
    pub owner: [u8; 32],
}

impl<D: Compute> OneSequence<'_, D> {
    fn new_tokens<'a>(&self, tokens: &'a [u32], want: Want) -> [NewTokens<'a>; 1] {
        [NewTokens { table: self.table, owner: self.owner, tokens, want }]
    }
}

impl<D: Compute> Forward for OneSequence<'_, D> {
    fn fill(&mut self, tokens: &[u32]) -> Result<()> {
        let new = self.new_tokens(tokens, Want::Nothing);
        let batch = Batch::merged(&new);
        self.model.forward(self.device, self.weights, self.pool, &batch).map(drop)
    }

    fn choose(&mut self, tokens: &[u32], choice: Choice) -> Result<u32> {
        let new = self.new_tokens(tokens, Want::Last);
        let batch = Batch::merged(&new);
        Ok(self.model.next_tokens(self.device, self.weights, self.pool, &batch, &[choice])?[0])
    }

    fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let new = self.new_tokens(tokens, Want::Last);
        let batch = Batch::merged(&new);
        let logits = self.model.forward(self.device, self.weights, self.pool, &batch)?;
        Ok(logits.last().unwrap_or_default().to_vec())
    }
}

/// Runs `prompt`, which has to fit into a context of `capacity` tokens, and returns the logits
/// after its last token.
///
/// # Errors
/// [`Error::EmptyPrompt`], [`Error::ContextFull`], and what `forward` returns.
pub fn prefill(forward: &mut dyn Forward, prompt: &[u32], capacity: usize) -> Result<Vec<f32>> {
    check_prompt(prompt, capacity)?;
    let rest = fill(forward, prompt)?;
    forward.logits(rest)
}

/// Refuses a prompt that is empty or does not fit into a context of `capacity` tokens.
pub(crate) fn check_prompt(prompt: &[u32], capacity: usize) -> Result<()> {
    match prompt.len() {
        0 => Err(Error::EmptyPrompt),
        needed if needed > capacity => Err(Error::ContextFull { index: 0, needed, capacity }),
        _ => Ok(()),
    }
}

/// Runs all of `tokens` but the last part, which is returned.
fn fill<'a>(forward: &mut dyn Forward, tokens: &'a [u32]) -> Result<&'a [u32]> {
    let (parts, rest) = tokens.split_at(tokens.len().saturating_sub(1) / PREFILL * PREFILL);
    parts.chunks(PREFILL).try_for_each(|part| forward.fill(part))?;
    Ok(rest)
}
