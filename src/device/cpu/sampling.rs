//! Sampling a token from logits, by temperature, top-k, top-p (the nucleus of Holtzman et al., "The
//! Curious Case of Neural Text Degeneration", 2019) and min-p, in this order.
//!
//! **Invariant:** a token comes from finite logits only.

use std::cmp::Ordering;

use super::argmax::{argmax, token_id};
use crate::Result;
use crate::device::Choice;

/// One token from one row of logits.
///
/// # Errors
/// When a logit is not finite, or there are none.
pub fn sample(logits: &[f32], choice: &Choice) -> Result<u32> {
    let Choice { temperature, top_k, top_p, min_p, random } = *choice;
    let best = argmax(logits)?;
    if temperature == 0.0 {
        return Ok(best);
    }
    let best = logits[best as usize];
    let weight = |logit: f32| (f64::from(logit - best) / f64::from(temperature)).exp();
    let min_p = min_p.filter(|p| *p > 0.0);
    if top_k.is_none() && top_p.is_none_or(|p| p >= 1.0) && min_p.is_none() {
        return Ok(token_id(pick(logits.iter().map(|&logit| weight(logit)), random)));
    }
    let mut kept = top_k_tokens(logits, top_k.unwrap_or(logits.len()));
    if let Some(p) = top_p {
        let enough = f64::from(p) * kept.iter().map(|&(_, logit)| weight(logit)).sum::<f64>();
        let mut sum = 0.0;
        let reached = kept.iter().position(|&(_, logit)| {
            sum += weight(logit);
            sum >= enough
        });
        kept.truncate(reached.map_or(kept.len(), |i| i + 1));
    }
    if let Some(p) = min_p {
        let lowest = lowest_logit(best, temperature, p);
        kept.retain(|&(_, logit)| logit >= lowest);
    }
    kept.sort_unstable_by_key(|&(token, _)| token);
    Ok(kept[pick(kept.iter().map(|&(_, logit)| weight(logit)), random)].0)
}

/// The lowest logit that is at least `share` as likely as the best one.
#[allow(clippy::cast_possible_truncation, reason = "a logit")]
fn lowest_logit(best: f32, temperature: f32, share: f32) -> f32 {
    // A share of 1 keeps those as likely as the best, whatever the temperature.
    (f64::from(best) + f64::from(temperature) * f64::from(share).ln()) as f32
}

/// An index with probability proportional to its weight. At least one weight is positive.
fn pick(
    weights: impl ExactSizeIterator<Item = f64> + DoubleEndedIterator + Clone,
    random: f64,
) -> usize {
    let mut left = random * weights.clone().sum::<f64>();
    let chosen = weights.clone().position(|weight| {
        left -= weight;
        left < 0.0
    });
    // Rounding may leave a trace: then the last one that is possible.
    let last = weights.len() - 1;
    chosen.unwrap_or_else(|| last - weights.rev().position(|weight| weight > 0.0).unwrap_or(0))
}

/// Higher logits first, then lower ids.
fn by_rank(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The `k` likeliest tokens with their logits, likeliest first.
pub fn top_k_tokens(logits: &[f32], k: usize) -> Vec<(u32, f32)> {
    // −0 and 0 are one logit; adding 0 makes them one for the total order too.
    let mut tokens: Vec<(u32, f32)> =
        logits.iter().enumerate().map(|(i, &logit)| (token_id(i), logit + 0.0)).collect();
    if k < tokens.len() {
        tokens.select_nth_unstable_by(k, by_rank);
        tokens.truncate(k);
    }
    tokens.sort_unstable_by(by_rank);
    tokens
}
