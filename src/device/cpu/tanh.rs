//! The hyperbolic tangent, for capped scores and GELU.
//!
//! **Source:** `tanhf` of Cephes: a polynomial near 0, where `1 − 2 / (e^2x + 1)` would lose what is
//! small.

use super::exp::exp;
use super::simd::Simd;

/// Where the polynomial ends, as in Cephes. From 0.55 on the tangent is above a half: `1 − …` then
/// cancels nothing, and an error of the quotient does not grow.
const NEAR: f32 = 0.625;

/// `tanh x` to 3 units in the last place. Without branches, so loops over it become vectors.
#[inline(always)]
pub(super) fn tanh<S: Simd>(simd: S, x: f32) -> f32 {
    let z = x * x;
    let mut p = -5.704_988_7e-3;
    for c in [2.063_908_8e-2, -5.373_971_5e-2, 1.333_144_2e-1, -3.333_328e-1] {
        p = simd.fma1(p, z, c);
    }
    let near = simd.fma1(p * z, x, x);
    let far = (1.0 - 2.0 / (exp(simd, 2.0 * x.abs()) + 1.0)).copysign(x);
    if x.abs() < NEAR { near } else { far }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::SimdLevel;
    use crate::device::cpu::simd::Kernel;

    struct Tanh<'a>(&'a mut [f32]);

    impl Kernel for Tanh<'_> {
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            self.0.iter_mut().for_each(|x| *x = tanh(simd, *x));
        }
    }

    #[test]
    fn tanh_is_exact_to_three_units_at_every_level() {
        for level in SimdLevel::available() {
            #[allow(clippy::cast_precision_loss, reason = "small integers")]
            let x: Vec<f32> = (-20_000..=20_000).map(|i| i as f32 * 1e-3 + 1e-7).collect();
            let mut y = x.clone();
            level.run(Tanh(&mut y));
            for (x, y) in x.iter().zip(&y) {
                let exact = f64::from(*x).tanh();
                assert!(
                    (f64::from(*y) / exact - 1.0).abs() < 3.6e-7,
                    "tanh({x}) = {y}, not {exact}, {level:?}"
                );
            }
            let mut special = [f32::NEG_INFINITY, f32::INFINITY, 1e30, 0.0, f32::NAN];
            level.run(Tanh(&mut special));
            assert_eq!(special[..4], [-1.0, 1.0, 1.0, 0.0]);
            assert!(special[4].is_nan());
        }
    }
}
