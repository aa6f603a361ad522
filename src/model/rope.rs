//! Rotary position embedding: the frequencies of a model and their angles at given positions.
//!
//! **Source:** RoFormer, arXiv 2104.09864; the Llama 3 scaling as in `rope_type: llama3` of Hugging
//! Face configurations.

use std::f64::consts::TAU;

use crate::arch::{ModelConfig, RopeScaling};
use crate::{Error, Result};

/// `head_dim / 2` frequencies, in radians per position.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    frequencies: Vec<f64>,
}

impl RopeTable {
    /// The frequencies of `config`, scaled as it says.
    ///
    /// # Errors
    /// When explicit factors are not `head_dim / 2` positive numbers.
    pub fn new(config: &ModelConfig) -> Result<Self> {
        let half = config.head_dim / 2;
        #[allow(clippy::cast_precision_loss, reason = "a head is small")]
        let plain = |i: usize| config.rope_theta.powf(-(i as f64) / half as f64);
        let frequencies = match &config.rope_scaling {
            RopeScaling::None => (0..half).map(plain).collect(),
            RopeScaling::Linear { factor } => (0..half).map(|i| plain(i) / factor).collect(),
            RopeScaling::Factors(factors) => {
                if factors.len() != half || !factors.iter().all(|f| f.is_finite() && *f > 0.0) {
                    return Err(Error::ModelConfig {
                        field: "rope factors",
                        expected: format!("{half} positive numbers"),
                        found: format!("{} values {factors:?}", factors.len()),
                    });
                }
                factors.iter().enumerate().map(|(i, f)| plain(i) / f64::from(*f)).collect()
            }
            &RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position,
            } => (0..half)
                .map(|i| {
                    let frequency = plain(i);
                    #[allow(
                        clippy::cast_precision_loss,
                        reason = "a context is far below 2^52 tokens"
                    )]
                    let turns = original_max_position as f64 * frequency / TAU;
                    let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    let smooth = smooth.clamp(0.0, 1.0);
                    frequency * ((1.0 - smooth) / factor + smooth)
                })
                .collect(),
        };
        Ok(Self { frequencies })
    }

    /// For each position, `head_dim / 2` cosines, then as many sines.
    pub fn angles(&self, positions: impl Iterator<Item = usize>, out: &mut Vec<f32>) {
        out.clear();
        for position in positions {
            let start = out.len();
            let half = self.frequencies.len();
            out.resize(start + 2 * half, 0.0);
            let (cosines, sines) = out[start..].split_at_mut(half);
            for ((frequency, cos), sin) in self.frequencies.iter().zip(cosines).zip(sines) {
                #[allow(clippy::cast_precision_loss, reason = "a context is far below 2^52 tokens")]
                let (s, c) = (position as f64 * frequency).sin_cos();
                #[allow(
                    clippy::cast_possible_truncation,
                    reason = "rounded to the activations' precision"
                )]
                {
                    (*cos, *sin) = (c as f32, s as f32);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(rope_scaling: RopeScaling) -> ModelConfig {
        ModelConfig {
            rope_scaling,
            head_dim: 8,
            rope_theta: 500_000.0,
            ..crate::model::testing::tiny_config()
        }
    }

    fn frequencies(scaling: RopeScaling) -> Vec<f64> {
        RopeTable::new(&config(scaling)).expect("valid").frequencies
    }

    #[test]
    fn llama3_scaling_keeps_fast_and_divides_slow_frequencies() {
        let plain = frequencies(RopeScaling::None);
        let scaled = frequencies(RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position: 8192,
        });
        // Wavelengths 6.3, 167, 4443 and 118,000 of an original 8192: more than 4 turns twice,
        // between 1 and 4, below 1.
        assert_eq!(scaled[..2], plain[..2]);
        let smooth = (8192.0 * plain[2] / TAU - 1.0) / 3.0;
        assert!((scaled[2] / plain[2] - ((1.0 - smooth) / 32.0 + smooth)).abs() < 1e-12);
        assert_eq!(scaled[3], plain[3] / 32.0);
    }

    #[test]
    fn linear_scaling_and_factors_divide() {
        let plain = frequencies(RopeScaling::None);
        assert_eq!(frequencies(RopeScaling::Linear { factor: 4.0 })[1], plain[1] / 4.0);
        assert_eq!(frequencies(RopeScaling::Factors(vec![1.0, 2.0, 4.0, 8.0]))[3], plain[3] / 8.0);
    }

    #[test]
    fn factors_of_wrong_length_are_refused() {
        let result = RopeTable::new(&config(RopeScaling::Factors(vec![1.0; 3])));
        assert!(matches!(result, Err(Error::ModelConfig { field: "rope factors", .. })));
    }
}
