//! How the next token is chosen: parameters and a seeded source of choices.
//!
//! **Invariant:** with a seed the choices are the same on every run.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::device::Choice;
use crate::device::cpu::{argmax, top_k_tokens};
use crate::{Error, Result};

/// How tokens are chosen. The default is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f32,
    /// Only this many likeliest tokens; 0 is all.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that together reach this probability (0 < p ≤ 1); 1 is all.
    pub top_p: Option<f32>,
    /// Only tokens that are at least this share as likely as the likeliest (0 ≤ p ≤ 1), as
    /// transformers' `MinPLogitsWarper`; 0 is all.
    pub min_p: Option<f32>,
    /// Of every token that is in the prompt or was chosen, a logit above 0 is divided and one below
    /// 0 multiplied by this, as in transformers' `RepetitionPenaltyLogitsProcessor`, before all
    /// else; 1 leaves them.
    pub repeat_penalty: f32,
    /// Subtracted from the logit of every token that was chosen before, once, as OpenAI's
    /// `presence_penalty`; 0 leaves them.
    pub presence_penalty: f32,
    /// Subtracted from the logit of every token for each time it was chosen before, as OpenAI's
    /// `frequency_penalty`; 0 leaves them.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens, as OpenAI's `logit_bias`.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the random choices.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

/// The tokens before the one that is chosen, as far as penalties ask.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Of the prompt and of what was chosen.
    pub seen: BTreeSet<u32>,
    /// Of what was chosen, and how often.
    pub chosen: BTreeMap<u32, u32>,
}

/// A token's natural logarithm of its probability, and those of the likeliest.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Of the token that was chosen.
    pub chosen: f32,
    /// The likeliest tokens, likeliest first.
    pub top: Vec<(u32, f32)>,
}

impl Logprobs {
    /// Those of `token` and of the `k` likeliest by `logits`.
    ///
    /// # Errors
    /// When a logit is not finite, or there are none.
    pub fn of(logits: &[f32], token: u32, k: usize) -> Result<Self> {
        let log_sum = log_sum(logits)?;
        let top = top_k_tokens(logits, k).into_iter();
        Ok(Self {
            chosen: log_probability(logits[token as usize], log_sum),
            top: top.map(|(token, logit)| (token, log_probability(logit, log_sum))).collect(),
        })
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
        let refuse = |name, expected, found: f32| {
            Err(Error::SamplingParameter { name, expected, found: found.to_string() })
        };
        let Sampling { temperature, top_p, min_p, repeat_penalty, seed, .. } = *sampling;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return refuse("temperature", "a finite number of at least 0", temperature);
        }
        if let Some(p) = top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return refuse("top_p", "above 0 and at most 1", p);
        }
        if let Some(p) = min_p.filter(|p| !(0.0..=1.0).contains(p)) {
            return refuse("min_p", "0 to 1", p);
        }
        // Beyond that a logit may become infinite.
        if !(0.001..=1000.0).contains(&repeat_penalty) {
            return refuse("repeat_penalty", "0.001 to 1000", repeat_penalty);
        }
        let penalties = [
            ("presence_penalty", sampling.presence_penalty),
            ("frequency_penalty", sampling.frequency_penalty),
        ];
        for (name, penalty) in penalties {
            if !(-2.0..=2.0).contains(&penalty) {
                return refuse(name, "-2 to 2", penalty);
            }
        }
        if let Some((_, bias)) =
            sampling.logit_bias.iter().find(|(_, bias)| !(-100.0..=100.0).contains(bias))
        {
            return refuse("logit_bias", "-100 to 100", *bias);
        }
        let mut sampling = sampling.clone();
        sampling.top_k = sampling.top_k.filter(|k| *k > 0);
        sampling.top_p = top_p.filter(|p| *p < 1.0);
        sampling.min_p = min_p.filter(|p| *p > 0.0);
        Ok(Self { sampling, rng: StdRng::seed_from_u64(seed) })
    }

    /// How the next token is chosen.
    pub fn draw(&mut self) -> Choice {
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.sampling;
        Choice { temperature, top_k, top_p, min_p, random: self.rng.random() }
    }

    /// Whether the logits depend on the tokens before: they are needed on the host then.
    pub fn penalises(&self) -> bool {
        let Sampling { repeat_penalty, presence_penalty, frequency_penalty, .. } = self.sampling;
        repeat_penalty != 1.0
            || presence_penalty != 0.0
            || frequency_penalty != 0.0
            || !self.sampling.logit_bias.is_empty()
    }

    /// Changes the logits by the penalties and biases.
    pub fn penalise(&self, logits: &mut [f32], history: &History) {
        let Sampling { repeat_penalty, presence_penalty, frequency_penalty, .. } = self.sampling;
        for &token in &history.seen {
            if let Some(logit) = logits.get_mut(token as usize) {
                let is_below = *logit < 0.0;
                *logit = if is_below { *logit * repeat_penalty } else { *logit / repeat_penalty };
            }
        }
        #[allow(clippy::cast_precision_loss, reason = "tokens of one text")]
        for (&token, &times) in &history.chosen {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit -= presence_penalty + frequency_penalty * times as f32;
            }
        }
        for &(token, bias) in &self.sampling.logit_bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
    }
}

/// The `k` likeliest tokens with the natural logarithm of their probability, likeliest first.
///
/// # Errors
/// When a logit is not finite, or there are none.
pub fn log_softmax_top(logits: &[f32], k: usize) -> Result<Vec<(u32, f32)>> {
    let log_sum = log_sum(logits)?;
    let top = top_k_tokens(logits, k).into_iter();
    Ok(top.map(|(token, logit)| (token, log_probability(logit, log_sum))).collect())
}

/// The natural logarithm of the sum of their exponentials.
fn log_sum(logits: &[f32]) -> Result<f64> {
    let best = f64::from(logits[argmax(logits)? as usize]);
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - best).exp()).sum();
    Ok(best + sum.ln())
}

#[allow(clippy::cast_possible_truncation, reason = "rounded to the logits' precision")]
fn log_probability(logit: f32, log_sum: f64) -> f32 {
    (f64::from(logit) - log_sum) as f32
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "test code")]
mod tests {
    use super::*;
    use crate::device::cpu::sample;

    fn sampler(temperature: f32, top_k: Option<usize>, top_p: Option<f32>, seed: u64) -> Sampler {
        Sampler::new(&Sampling { temperature, top_k, top_p, seed, ..Sampling::default() })
            .expect("valid parameters")
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        assert_eq!(argmax(&[1.0, 3.0, -2.0, 3.0]).unwrap(), 1);
        assert_eq!(argmax(&[-0.0, 0.0]).unwrap(), 0);
        assert_eq!(
            log_softmax_top(&[0.0, -0.0, 0.0], 2).unwrap().iter().map(|t| t.0).collect::<Vec<_>>(),
            [0, 1]
        );
    }

    #[test]
    fn non_finite_logits_are_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let logits = [0.0, 1.0, bad];
            assert!(matches!(argmax(&logits), Err(Error::NonFiniteLogits { index: 2, .. })));
            assert!(matches!(
                log_softmax_top(&logits, 1),
                Err(Error::NonFiniteLogits { index: 2, .. })
            ));
            assert!(matches!(
                sample(&logits, &sampler(1.0, None, None, 0).draw()),
                Err(Error::NonFiniteLogits { .. })
            ));
        }
        assert!(argmax(&[]).is_err());
    }

    #[test]
    fn parameters_out_of_range_are_refused() {
        let refused_of = |sampling: &Sampling| {
            matches!(Sampler::new(sampling), Err(Error::SamplingParameter { .. }))
        };
        let refused = |temperature, top_k, top_p| {
            refused_of(&Sampling { temperature, top_k, top_p, ..Sampling::default() })
        };
        assert!(refused(-0.1, None, None));
        assert!(refused(f32::NAN, None, None));
        assert!(refused(f32::INFINITY, None, None));
        assert!(refused(1.0, None, Some(0.0)));
        assert!(refused(1.0, None, Some(1.1)));
        assert!(refused(1.0, None, Some(f32::NAN)));
        assert!(!refused(1.0, Some(1), Some(1.0)));
        for min_p in [-0.1, 1.1, f32::NAN] {
            assert!(refused_of(&Sampling { min_p: Some(min_p), ..Sampling::default() }), "{min_p}");
        }
        for repeat_penalty in [0.0, -1.0, 1e-40, 1001.0, f32::NAN, f32::INFINITY] {
            assert!(
                refused_of(&Sampling { repeat_penalty, ..Sampling::default() }),
                "{repeat_penalty}"
            );
        }
    }

    #[test]
    fn zero_top_k_one_top_p_and_zero_min_p_mean_off() {
        let off = Sampling {
            temperature: 1.0,
            top_k: Some(0),
            top_p: Some(1.0),
            min_p: Some(0.0),
            ..Sampling::default()
        };
        let choice = Sampler::new(&off).unwrap().draw();
        let plain =
            Sampler::new(&Sampling { temperature: 1.0, ..Sampling::default() }).unwrap().draw();
        assert_eq!(choice, plain);
        assert_eq!((choice.top_k, choice.top_p, choice.min_p), (None, None, None));
    }

    #[test]
    fn penalty_divides_what_is_above_zero_and_multiplies_what_is_below_once_each() {
        let sampler =
            Sampler::new(&Sampling { repeat_penalty: 2.0, ..Sampling::default() }).unwrap();
        assert!(sampler.penalises() && !Sampler::new(&Sampling::default()).unwrap().penalises());
        let mut logits = [3.0, -3.0, 0.0, 5.0, -1.0];
        // A token beyond the logits is none of theirs.
        let seen = BTreeSet::from([0, 1, 2, 9]);
        sampler.penalise(&mut logits, &History { seen, ..History::default() });
        assert_eq!(logits, [1.5, -6.0, 0.0, 5.0, -1.0]);
    }

    #[test]
    fn presence_counts_once_frequency_each_time_and_a_bias_always() {
        let sampling = Sampling {
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            logit_bias: vec![(3, 2.0), (9, 1.0)],
            ..Sampling::default()
        };
        let sampler = Sampler::new(&sampling).unwrap();
        assert!(sampler.penalises());
        let mut logits = [1.0, 1.0, 1.0, 1.0];
        // What was only in the prompt is not chosen.
        let seen = BTreeSet::from([0, 1, 2]);
        let chosen = BTreeMap::from([(1, 1), (2, 4), (9, 1)]);
        sampler.penalise(&mut logits, &History { seen, chosen });
        assert_eq!(logits, [1.0, 0.25, -0.5, 3.0]);
        type Change = fn(&mut Sampling);
        let refused: [Change; 4] = [
            |sampling| sampling.presence_penalty = 2.1,
            |sampling| sampling.frequency_penalty = f32::NAN,
            |sampling| sampling.logit_bias = vec![(1, 101.0)],
            |sampling| sampling.logit_bias = vec![(1, f32::NAN)],
        ];
        for change in refused {
            let mut sampling = Sampling::default();
            change(&mut sampling);
            let refusal = Sampler::new(&sampling).err();
            assert!(matches!(refusal, Some(Error::SamplingParameter { .. })), "{sampling:?}");
        }
    }

    #[test]
    fn logprobs_are_of_the_token_and_of_the_likeliest() {
        let logits = [0.0, 2.0, 1.0];
        let top = log_softmax_top(&logits, 3).unwrap();
        let found = Logprobs::of(&logits, 2, 2).unwrap();
        assert_eq!((found.chosen, &found.top[..]), (top[1].1, &top[..2]));
        assert!(Logprobs::of(&logits, 0, 0).unwrap().top.is_empty());
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
    fn frequencies_follow_temperature_top_k_top_p_and_min_p() {
        // Probabilities 0.5, 0.25, 0.125, 0.125 at temperature 1.
        let logits = [2f32.ln(), 4f32.ln(), 0.0, 0.0];
        let count = |mut sampler: Sampler| {
            let mut counts = [0u32; 4];
            for _ in 0..8000 {
                counts[sample(&logits, &sampler.draw()).unwrap() as usize] += 1;
            }
            counts.map(|count| f64::from(count) / 8000.0)
        };
        let near = |found: [f64; 4], expected: [f64; 4]| {
            for (found, expected) in found.into_iter().zip(expected) {
                assert!(
                    (found - expected).abs() < 0.03 && (expected > 0.0 || found == 0.0),
                    "{found} {expected}"
                );
            }
        };
        near(count(sampler(1.0, None, None, 1)), [0.25, 0.5, 0.125, 0.125]);
        near(count(sampler(0.5, None, None, 2)), [4.0 / 22.0, 16.0 / 22.0, 1.0 / 22.0, 1.0 / 22.0]);
        near(count(sampler(1.0, Some(2), None, 3)), [1.0 / 3.0, 2.0 / 3.0, 0.0, 0.0]);
        near(count(sampler(1.0, None, Some(0.6), 4)), [1.0 / 3.0, 2.0 / 3.0, 0.0, 0.0]);
        near(
            count(sampler(1.0, Some(3), Some(0.5), 5)),
            [0.0, 1.0, 0.0, 0.0].map(|p: f64| p.max(0.0)),
        );
        near(count(sampler(1.0, Some(1), None, 6)), [0.0, 1.0, 0.0, 0.0]);
        let min_p = |temperature, min_p, seed| {
            Sampler::new(&Sampling { temperature, min_p: Some(min_p), seed, ..Sampling::default() })
                .unwrap()
        };
        // Half as likely as the likeliest; a quarter, which is a sixteenth at half the temperature.
        near(count(min_p(1.0, 0.45, 7)), [1.0 / 3.0, 2.0 / 3.0, 0.0, 0.0]);
        near(count(min_p(1.0, 0.2, 8)), [0.25, 0.5, 0.125, 0.125]);
        near(count(min_p(0.5, 0.2, 9)), [0.2, 0.8, 0.0, 0.0]);
        near(count(min_p(1.0, 1.0, 10)), [0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn one_seed_gives_one_sequence() {
        let logits: Vec<f32> = (0..100).map(|i| (i * 37 % 11) as f32).collect();
        let tokens = |seed| -> Vec<u32> {
            let mut sampler = sampler(1.0, None, Some(0.95), seed);
            (0..50).map(|_| sample(&logits, &sampler.draw()).unwrap()).collect()
        };
        assert_eq!(tokens(7), tokens(7));
        assert_ne!(tokens(7), tokens(8));
    }

    #[test]
    fn tiny_temperature_is_greedy() {
        assert_eq!(sample(&[0.0, 1.0, 0.5], &sampler(1e-30, None, None, 0).draw()).unwrap(), 1);
    }
}
