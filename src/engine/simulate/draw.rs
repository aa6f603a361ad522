//! Draws from distributions.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A source of draws.
#[derive(Debug)]
pub(super) struct Draw(StdRng);

impl Draw {
    pub(super) fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// From 0 up to 1.
    pub(super) fn share(&mut self) -> f64 {
        self.0.random_range(0.0..1.0)
    }

    /// One of `0..count`.
    pub(super) fn below(&mut self, count: usize) -> usize {
        self.0.random_range(0..count)
    }

    /// Normal, of mean 0 and deviation 1.
    pub(super) fn normal(&mut self) -> f64 {
        let (u, v) = (1.0 - self.share(), self.share());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// Log-normal by its median and its 90th percentile, rounded, within bounds.
    pub(super) fn length(&mut self, median: f64, p90: f64, least: usize, most: usize) -> usize {
        let deviation = (p90 / median).ln() / 1.2816;
        ((median * (deviation * self.normal()).exp()).round() as usize).clamp(least, most)
    }

    /// Gamma of mean `mean` whose deviation is `cv` times it (Marsaglia and Tsang).
    pub(super) fn gamma(&mut self, mean: f64, cv: f64) -> f64 {
        let shape = 1.0 / (cv * cv);
        let boost = if shape < 1.0 { (1.0 - self.share()).powf(1.0 / shape) } else { 1.0 };
        let d = if shape < 1.0 { shape + 1.0 } else { shape } - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            let u = 1.0 - self.share();
            if v > 0.0 && u.ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return mean / shape * d * v * boost;
            }
        }
    }

    /// One of `0..count`, the k-th as often as (k + 1) to the power of -`exponent`.
    pub(super) fn zipf(&mut self, count: usize, exponent: f64) -> usize {
        let weight = |k: usize| ((k + 1) as f64).powf(-exponent);
        let mut left = self.share() * (0..count).map(weight).sum::<f64>();
        for k in 0..count {
            left -= weight(k);
            if left < 0.0 {
                return k;
            }
        }
        count - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_have_the_moments_asked_for() {
        let mut draw = Draw::new(1);
        for cv in [0.5, 1.0, 4.0] {
            let draws: Vec<f64> = (0..200_000).map(|_| draw.gamma(10.0, cv)).collect();
            let mean = draws.iter().sum::<f64>() / draws.len() as f64;
            let square = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / draws.len() as f64;
            assert!((mean / 10.0 - 1.0).abs() < 0.05, "mean {mean} at cv {cv}");
            assert!((square.sqrt() / mean / cv - 1.0).abs() < 0.1, "cv {}", square.sqrt() / mean);
        }
        let mut lengths: Vec<usize> =
            (0..20_000).map(|_| draw.length(100.0, 300.0, 1, 5000)).collect();
        lengths.sort_unstable();
        assert!((95..105).contains(&lengths[10_000]), "{}", lengths[10_000]);
        assert!((280..320).contains(&lengths[18_000]), "{}", lengths[18_000]);
        let firsts = (0..10_000).filter(|_| draw.zipf(4, 1.0) == 0).count();
        assert!((4_600..5_000).contains(&firsts), "{firsts}");
    }
}
