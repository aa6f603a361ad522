//! Choosing the next token from logits.
//!
//! **Invariant:** a token comes from finite logits only, and with a seed the choice is the same on every run.

use std::cmp::Ordering;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::{Error, Result};

/// How tokens are chosen. The default is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f32,
    /// Only this many likeliest tokens.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that together reach this probability (0 < p ≤ 1).
    pub top_p: Option<f32>,
    /// Seed of the random choices.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: None, top_p: None, seed: 0 }
    }
}

/// A source of choices.
pub struct Sampler {
    sampling: Sampling,
    rng: StdRng,
}

impl Sampler {
    /// A sampler with valid parameters.
    ///
    /// # Errors
    /// When a parameter is out of its range.
    pub fn new(sampling: &Sampling) -> Result<Self> {
        let refuse = |name, expected, found| Err(Error::SamplingParameter { name, expected, found });
        let Sampling { temperature, top_k, top_p, seed } = *sampling;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return refuse("temperature", "a finite number of at least 0", temperature.to_string());
        }
        if top_k == Some(0) {
            return refuse("top_k", "at least 1", "0".to_owned());
        }
        if let Some(p) = top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return refuse("top_p", "above 0 and at most 1", p.to_string());
        }
        Ok(Self { sampling: sampling.clone(), rng: StdRng::seed_from_u64(seed) })
    }

    /// The next token.
    ///
    /// # Errors
    /// When a logit is not finite, or there are none.
    pub fn choose(&mut self, logits: &[f32]) -> Result<u32> {
        let Sampling { temperature, top_k, top_p, .. } = self.sampling;
        if temperature == 0.0 {
            return greedy(logits);
        }
        let best = logits[greedy(logits)? as usize];
        if top_k.is_none() && top_p.is_none_or(|p| p >= 1.0) {
            let weight = |&logit: &f32| (f64::from(logit - best) / f64::from(temperature)).exp();
            let weights: Vec<f64> = logits.iter().map(weight).collect();
            return Ok(token_id(self.pick(&weights)));
        }
        let mut kept = likeliest(logits, top_k.unwrap_or(logits.len()));
        let mut weights: Vec<f64> =
            kept.iter().map(|&(_, logit)| (f64::from(logit - best) / f64::from(temperature)).exp()).collect();
        if let Some(p) = top_p {
            let enough = f64::from(p) * weights.iter().sum::<f64>();
            let mut sum = 0.0;
            let reached = weights.iter().position(|weight| {
                sum += weight;
                sum >= enough
            });
            let count = reached.map_or(weights.len(), |i| i + 1);
            weights.truncate(count);
            kept.truncate(count);
        }
        Ok(kept[self.pick(&weights)].0)
    }

    /// An index with probability proportional to its weight. The first weight or another is positive.
    fn pick(&mut self, weights: &[f64]) -> usize {
        let mut left = self.rng.random::<f64>() * weights.iter().sum::<f64>();
        let chosen = weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        // Rounding may leave a trace: then the last one that is possible.
        chosen.or_else(|| weights.iter().rposition(|&weight| weight > 0.0)).unwrap_or(0)
    }
}

#[allow(clippy::cast_possible_truncation, reason = "a vocabulary has fewer than 2^32 tokens")]
fn token_id(index: usize) -> u32 {
    index as u32
}

fn check_finite(logits: &[f32]) -> Result<()> {
    match logits.iter().position(|logit| !logit.is_finite()) {
        Some(index) => Err(Error::NonFiniteLogits { index, value: logits[index] }),
        None if logits.is_empty() => Err(Error::EmptyPrompt),
        None => Ok(()),
    }
}

/// Higher logits first, then lower ids.
fn by_rank(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The `k` likeliest tokens with their logits, likeliest first.
fn likeliest(logits: &[f32], k: usize) -> Vec<(u32, f32)> {
    // −0 and 0 are one logit; adding 0 makes them one for the total order too.
    let mut tokens: Vec<(u32, f32)> = logits.iter().enumerate().map(|(i, &logit)| (token_id(i), logit + 0.0)).collect();
    if k < tokens.len() {
        tokens.select_nth_unstable_by(k, by_rank);
        tokens.truncate(k);
    }
    tokens.sort_unstable_by(by_rank);
    tokens
}

/// The likeliest token; of equals, the lowest.
///
/// # Errors
/// When a logit is not finite, or there are none.
pub fn greedy(logits: &[f32]) -> Result<u32> {
    check_finite(logits)?;
    let best = logits.iter().enumerate().fold(0, |best, (i, &logit)| if logit > logits[best] { i } else { best });
    Ok(token_id(best))
}

/// The `k` likeliest tokens with the natural logarithm of their probability, likeliest first.
///
/// # Errors
/// When a logit is not finite, or there are none.
pub fn log_softmax_top(logits: &[f32], k: usize) -> Result<Vec<(u32, f32)>> {
    let best = f64::from(logits[greedy(logits)? as usize]);
    let log_sum = best + logits.iter().map(|&logit| (f64::from(logit) - best).exp()).sum::<f64>().ln();
    #[allow(clippy::cast_possible_truncation, reason = "rounded to the logits' precision")]
    let log_probability = |(token, logit)| (token, (f64::from(logit) - log_sum) as f32);
    Ok(likeliest(logits, k).into_iter().map(log_probability).collect())
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "test code")]
mod tests {
    use super::*;

    fn sampler(temperature: f32, top_k: Option<usize>, top_p: Option<f32>, seed: u64) -> Sampler {
        Sampler::new(&Sampling { temperature, top_k, top_p, seed }).expect("valid parameters")
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        assert_eq!(greedy(&[1.0, 3.0, -2.0, 3.0]).unwrap(), 1);
        assert_eq!(greedy(&[-0.0, 0.0]).unwrap(), 0);
        assert_eq!(log_softmax_top(&[0.0, -0.0, 0.0], 2).unwrap().iter().map(|t| t.0).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn non_finite_logits_are_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let logits = [0.0, 1.0, bad];
            assert!(matches!(greedy(&logits), Err(Error::NonFiniteLogits { index: 2, .. })));
            assert!(matches!(log_softmax_top(&logits, 1), Err(Error::NonFiniteLogits { index: 2, .. })));
            assert!(matches!(sampler(1.0, None, None, 0).choose(&logits), Err(Error::NonFiniteLogits { .. })));
        }
        assert!(greedy(&[]).is_err());
    }

    #[test]
    fn parameters_out_of_range_are_refused() {
        let refused = |temperature, top_k, top_p| {
            let sampling = Sampling { temperature, top_k, top_p, seed: 0 };
            matches!(Sampler::new(&sampling), Err(Error::SamplingParameter { .. }))
        };
        assert!(refused(-0.1, None, None));
        assert!(refused(f32::NAN, None, None));
        assert!(refused(f32::INFINITY, None, None));
        assert!(refused(1.0, Some(0), None));
        assert!(refused(1.0, None, Some(0.0)));
        assert!(refused(1.0, None, Some(1.1)));
        assert!(refused(1.0, None, Some(f32::NAN)));
        assert!(!refused(1.0, Some(1), Some(1.0)));
    }

    #[test]
    fn log_softmax_gives_probabilities_in_order() {
        let top = log_softmax_top(&[0.0, 2.0, 1.0, -300.0], 10).unwrap();
        assert_eq!(top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2, 0, 3]);
        let sum = 1.0 + (-1f64).exp() + (-2f64).exp();
        assert!((f64::from(top[0].1) + sum.ln()).abs() < 1e-6);
        assert!((f64::from(top[2].1) + 2.0 + sum.ln()).abs() < 1e-6);
        assert_eq!(log_softmax_top(&[0.0, 2.0, 1.0], 0).unwrap(), []);
    }

    #[test]
    fn frequencies_follow_temperature_top_k_and_top_p() {
        // Probabilities 0.5, 0.25, 0.125, 0.125 at temperature 1.
        let logits = [2f32.ln(), 4f32.ln(), 0.0, 0.0];
        let count = |mut sampler: Sampler| {
            let mut counts = [0u32; 4];
            for _ in 0..8000 {
                counts[sampler.choose(&logits).unwrap() as usize] += 1;
            }
            counts.map(|count| f64::from(count) / 8000.0)
        };
        let near = |found: [f64; 4], expected: [f64; 4]| {
            for (found, expected) in found.into_iter().zip(expected) {
                assert!((found - expected).abs() < 0.03 && (expected > 0.0 || found == 0.0), "{found} {expected}");
            }
        };
        near(count(sampler(1.0, None, None, 1)), [0.25, 0.5, 0.125, 0.125]);
        near(count(sampler(0.5, None, None, 2)), [4.0 / 22.0, 16.0 / 22.0, 1.0 / 22.0, 1.0 / 22.0]);
        near(count(sampler(1.0, Some(2), None, 3)), [1.0 / 3.0, 2.0 / 3.0, 0.0, 0.0]);
        near(count(sampler(1.0, None, Some(0.6), 4)), [1.0 / 3.0, 2.0 / 3.0, 0.0, 0.0]);
        near(count(sampler(1.0, Some(3), Some(0.5), 5)), [0.0, 1.0, 0.0, 0.0].map(|p: f64| p.max(0.0)));
        near(count(sampler(1.0, Some(1), None, 6)), [0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn one_seed_gives_one_sequence() {
        let logits: Vec<f32> = (0..100).map(|i| (i * 37 % 11) as f32).collect();
        let draw = |seed| -> Vec<u32> {
            let mut sampler = sampler(1.0, None, Some(0.95), seed);
            (0..50).map(|_| sampler.choose(&logits).unwrap()).collect()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn tiny_temperature_is_greedy() {
        assert_eq!(sampler(1e-30, None, None, 0).choose(&[0.0, 1.0, 0.5]).unwrap(), 1);
    }
}
