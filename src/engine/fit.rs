//! Coefficients of a linear model, learned one observation at a time.
//!
//! Recursive least squares with a prior (a Kalman filter whose state drifts). The coefficients are
//! held relative to where they started, and the prior says that they are wrong *together* (a slower
//! machine is slower at everything) and each a little by itself: so the first few observations also
//! mend what they did not touch.
//!
//! **Invariant:** one observation moves a prediction by no more than a few times what the fit
//! expects to be wrong by: an outlier costs little, a lasting change is followed within some tens
//! of observations.

/// What a measurement is off by, as a share of it.
const NOISE: f64 = 0.1;
/// Variance of the factor that all coefficients are wrong by together.
const SHARED_VARIANCE: f64 = 0.6;
/// Variance of what each is wrong by beside it.
const OWN_VARIANCE: f64 = 0.3;
/// Variance that every observation adds to each: how fast a machine may change.
const DRIFT: f64 = 5e-4;
/// A measurement that is off by more than so many standard deviations moves the fit no farther than
/// one that is off by as many.
const CLIP: f64 = 3.0;
/// Least coefficient, as a share of where it started.
const LEAST: f64 = 0.02;

/// A linear model of positive coefficients.
#[derive(Clone, Debug)]
pub(super) struct Fit {
    /// Where the coefficients started.
    start: Vec<f64>,
    /// What they are now, as shares of that.
    shares: Vec<f64>,
    /// Their covariance, row-major.
    covariance: Vec<f64>,
    /// Running mean of the relative error of predictions, before they were learned from.
    error: f64,
}

impl Fit {
    /// A model with these coefficients, all above zero.
    pub(super) fn new(start: Vec<f64>) -> Self {
        let n = start.len();
        let prior = |k: usize| SHARED_VARIANCE + if k / n == k % n { OWN_VARIANCE } else { 0.0 };
        let covariance = (0..n * n).map(prior).collect();
        Self { shares: vec![1.0; n], covariance, start, error: 0.0 }
    }

    /// Coefficient `k` as it is now.
    pub(super) fn get(&self, k: usize) -> f64 {
        self.start[k] * self.shares[k]
    }

    /// Running mean of the relative error of predictions.
    pub(super) fn error(&self) -> f64 {
        self.error
    }

    /// Learns that features `x` cost `measured`. What is no positive number is left out.
    pub(super) fn observe(&mut self, x: &[f64], measured: f64) {
        let n = self.start.len();
        let z: Vec<f64> = x.iter().zip(&self.start).map(|(x, start)| x * start).collect();
        let predicted: f64 = z.iter().zip(&self.shares).map(|(z, share)| z * share).sum();
        if !(measured.is_finite() && measured > 0.0 && predicted > 0.0) {
            return;
        }
        self.error += 0.05 * ((predicted / measured - 1.0).abs() - self.error);
        let row = |i: usize| &self.covariance[i * n..][..n];
        let spread: Vec<f64> =
            (0..n).map(|i| row(i).iter().zip(&z).map(|(p, z)| p * z).sum()).collect();
        let expected: f64 = z.iter().zip(&spread).map(|(z, s)| z * s).sum();
        let (variance, innovation) = (expected + (NOISE * predicted).powi(2), measured - predicted);
        // One that is farther off counts as measured with so much more noise.
        let variance = variance * (innovation.abs() / (CLIP * variance.sqrt())).max(1.0);
        for i in 0..n {
            self.shares[i] = (self.shares[i] + spread[i] / variance * innovation).max(LEAST);
            for j in 0..n {
                self.covariance[i * n + j] -= spread[i] * spread[j] / variance;
            }
            let own = &mut self.covariance[i * n + i];
            *own = (*own + DRIFT).min(SHARED_VARIANCE + OWN_VARIANCE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(k: usize) -> [f64; 3] {
        [1.0, (k % 7) as f64, (k * k % 11) as f64]
    }

    fn cost(scale: f64, x: [f64; 3]) -> f64 {
        scale * (30.0 * x[0] + 4.0 * x[1] + 0.5 * x[2])
    }

    fn worst(fit: &Fit, scale: f64) -> f64 {
        let off = |k: usize| {
            let x = features(k);
            let predicted: f64 = (0..3).map(|i| x[i] * fit.get(i)).sum();
            (predicted / cost(scale, x) - 1.0).abs()
        };
        (0..77).map(off).fold(0.0, f64::max)
    }

    #[test]
    fn a_fit_finds_the_coefficients_and_follows_them() {
        let mut fit = Fit::new(vec![10.0, 10.0, 0.4]);
        assert!(worst(&fit, 1.0) > 0.25);
        (0..100).for_each(|k| fit.observe(&features(k), cost(1.0, features(k))));
        assert!(worst(&fit, 1.0) < 0.1, "{}", worst(&fit, 1.0));
        (0..100).for_each(|k| fit.observe(&features(k), cost(2.0, features(k))));
        assert!(worst(&fit, 2.0) < 0.1, "{}", worst(&fit, 2.0));
    }

    #[test]
    fn outliers_move_it_little() {
        let mut fit = Fit::new(vec![10.0, 10.0, 0.1]);
        (0..100).for_each(|k| fit.observe(&features(k), cost(1.0, features(k))));
        fit.observe(&features(3), 50.0 * cost(1.0, features(3)));
        assert!(worst(&fit, 1.0) < 0.25, "{}", worst(&fit, 1.0));
        for k in 0..200 {
            let stalled = if k % 20 == 0 { 20.0 } else { 1.0 };
            fit.observe(&features(k), stalled * cost(1.0, features(k)));
        }
        assert!(worst(&fit, 1.0) < 0.25, "{}", worst(&fit, 1.0));
        let before = fit.get(0);
        fit.observe(&features(0), f64::NAN);
        fit.observe(&features(0), 0.0);
        assert_eq!(fit.get(0), before, "what is no time is not learned from");
    }

    #[test]
    fn what_was_not_observed_is_mended_with_the_rest() {
        let mut fit = Fit::new(vec![10.0, 10.0, 10.0]);
        (0..50).for_each(|_| fit.observe(&[1.0, 0.0, 0.0], 30.0));
        assert!((fit.get(0) / 30.0 - 1.0).abs() < 0.05, "{}", fit.get(0));
        assert!(
            fit.get(2) > 15.0,
            "a machine that is slower at one thing is at others: {}",
            fit.get(2)
        );
    }
}
