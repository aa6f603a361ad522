//! The likeliest token.
//!
//! **Invariant:** a token comes from finite logits only.

use crate::{Error, Result};

/// The likeliest token; of equals, the lowest.
///
/// # Errors
/// When a logit is not finite, or there are none.
pub fn argmax(logits: &[f32]) -> Result<u32> {
    check_finite(logits)?;
    let best = logits
        .iter()
        .enumerate()
        .fold(0, |best, (i, &logit)| if logit > logits[best] { i } else { best });
    Ok(token_id(best))
}

fn check_finite(logits: &[f32]) -> Result<()> {
    match logits.iter().position(|logit| !logit.is_finite()) {
        Some(index) => Err(Error::NonFiniteLogits { index, value: logits[index] }),
        None if logits.is_empty() => Err(Error::EmptyPrompt),
        None => Ok(()),
    }
}

#[allow(clippy::cast_possible_truncation, reason = "a vocabulary has fewer than 2^32 tokens")]
pub(super) fn token_id(index: usize) -> u32 {
    index as u32
}
