//! From prompt to tokens, one after another.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::{Batch, KvCache, Llama, Logits, Sampler, Sampling, Sequence, Want};
use crate::device::Compute;
use crate::device::cpu::choose;
use crate::weights::Weights;
use crate::{Error, Result};

/// Prompt tokens computed at once: the room a forward pass needs stays the same for any prompt.
const PREFILL: usize = 512;

/// What to generate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerateOptions {
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Tokens that end the text; the one that did is not returned.
    pub stop_tokens: Vec<u32>,
    /// Texts at which [`Runtime::generate`](crate::Runtime::generate) ends, wherever the tokens lie: they and what comes after are
    /// left out of the text, not of the tokens.
    pub stop_texts: Vec<String>,
    /// Whether [`Runtime::generate`](crate::Runtime::generate) goes on after tokens that end a text for the model.
    pub ignore_eos: bool,
    /// How tokens are chosen.
    pub sampling: Sampling,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// This stop token was chosen.
    StopToken(u32),
    /// Whoever takes the tokens wants no more: a stop text is complete.
    StopText,
    /// `max_tokens` were generated.
    MaxTokens,
    /// The context is full.
    ContextFull,
}

/// What was generated, and how long it took.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The new tokens.
    pub token_ids: Vec<u32>,
    /// Why there are no more.
    pub stop: StopReason,
    /// Time from the first prompt token to the first logits.
    pub prefill: Duration,
    /// Time from there to the end.
    pub decode: Duration,
}

/// Continues `prompt` in slot 0 of `cache`, which is emptied first. `on_token` is called with each token as it is chosen, and may
/// end the text there. `owner` names the weights. Where repetition is penalised the logits come to the host, and the token is
/// chosen there.
///
/// # Errors
/// What `on_token` returns; when a parameter is out of its range, the prompt is empty or longer than the context, the cache belongs to other
/// weights, or logits are not finite.
#[allow(clippy::too_many_arguments, reason = "the parts of a runtime, each borrowed once")]
pub fn generate<D: Compute>(
    model: &Llama,
    device: &D,
    weights: &Weights<D>,
    cache: &mut KvCache<D>,
    owner: [u8; 32],
    prompt: &[u32],
    options: &GenerateOptions,
    mut on_token: impl FnMut(u32) -> Result<ControlFlow<()>>,
) -> Result<Generation> {
    let mut sampler = Sampler::new(&options.sampling)?;
    let capacity = cache.capacity();
    let started = Instant::now();
    let rest = fill(model, device, weights, cache, owner, prompt)?;
    let mut seen: BTreeSet<u32> = if sampler.penalises() { prompt.iter().copied().collect() } else { BTreeSet::new() };
    let mut forward = |tokens: &[u32]| {
        let sequences = &[Sequence { slot: 0, tokens, want: Want::Last }];
        let batch = Batch { sequences, owner };
        if !sampler.penalises() {
            return Ok::<u32, Error>(model.next_tokens(device, weights, cache, &batch, &[sampler.draw()])?[0]);
        }
        let logits = model.forward(device, weights, cache, &batch)?;
        let mut logits = logits.last().unwrap_or_default().to_vec();
        sampler.penalise(&mut logits, &seen);
        let token = choose(&logits, &sampler.draw())?;
        seen.insert(token);
        Ok(token)
    };
    let mut token = forward(rest)?;
    let prefill = started.elapsed();

    let started = Instant::now();
    let mut token_ids = Vec::new();
    let stop = loop {
        if token_ids.len() == options.max_tokens {
            break StopReason::MaxTokens;
        }
        if options.stop_tokens.contains(&token) {
            break StopReason::StopToken(token);
        }
        token_ids.push(token);
        if on_token(token)?.is_break() {
            break StopReason::StopText;
        }
        if token_ids.len() == options.max_tokens {
            break StopReason::MaxTokens;
        }
        if prompt.len() + token_ids.len() > capacity {
            break StopReason::ContextFull;
        }
        token = forward(&[token])?;
    };
    Ok(Generation { token_ids, stop, prefill, decode: started.elapsed() })
}

/// Runs `prompt` through slot 0 of `cache`, which is emptied first, and returns the logits after its last token.
///
/// # Errors
/// When the prompt is empty or longer than the context, or the cache belongs to other weights.
pub fn prefill<D: Compute>(
    model: &Llama,
    device: &D,
    weights: &Weights<D>,
    cache: &mut KvCache<D>,
    owner: [u8; 32],
    prompt: &[u32],
) -> Result<Logits> {
    let tokens = fill(model, device, weights, cache, owner, prompt)?;
    let sequences = &[Sequence { slot: 0, tokens, want: Want::Last }];
    model.forward(device, weights, cache, &Batch { sequences, owner })
}

/// Runs all of `prompt` but its last part, which is returned, through slot 0 of `cache`, which is emptied first.
fn fill<'a, D: Compute>(
    model: &Llama,
    device: &D,
    weights: &Weights<D>,
    cache: &mut KvCache<D>,
    owner: [u8; 32],
    prompt: &'a [u32],
) -> Result<&'a [u32]> {
    let capacity = cache.capacity();
    if prompt.is_empty() {
        return Err(Error::EmptyPrompt);
    } else if prompt.len() > capacity {
        return Err(Error::ContextFull { slot: 0, needed: prompt.len(), capacity });
    }
    cache.clear_slot(0);
    let (parts, rest) = prompt.split_at((prompt.len() - 1) / PREFILL * PREFILL);
    for tokens in parts.chunks(PREFILL) {
        let sequences = &[Sequence { slot: 0, tokens, want: Want::Nothing }];
        model.forward(device, weights, cache, &Batch { sequences, owner })?;
    }
    Ok(rest)
}
