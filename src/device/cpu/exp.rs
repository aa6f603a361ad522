//! The exponential, for softmax and SiLU.
//!
//! **Source:** `expf` of Cephes: `e^x = 2^n · e^r` with `|r| ≤ ln 2 / 2`, and a polynomial for `e^r`.

use super::simd::Simd;

/// `e^x` to 2 units in the last place; 0 below −87.3, about 2^127 above 88. NaN stays NaN. Without
/// branches, so loops over it become vectors.
#[inline(always)]
pub(super) fn exp<S: Simd>(simd: S, x: f32) -> f32 {
    // Adding 1.5·2^23 rounds to an integer, which the low bits then hold.
    const ROUND: f32 = 12_582_912.0;
    // ln 2^−126 is −87.34 and ln 2^127 is 88.03: between these `scale` is a normal number.
    let clamped = if x < -87.3 { -87.3 } else { x };
    let clamped = if clamped > 88.0 { 88.0 } else { clamped };
    let shifted = simd.fma1(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln 2 in two parts, the first so short that its product with n is exact (Cody and Waite).
    let r = simd.fma1(n, -0.693_359_4, clamped);
    let r = simd.fma1(n, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = simd.fma1(p, r, c);
    }
    let p = simd.fma1(p, r * r, r) + 1.0;
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    let y = p * scale;
    if x < -87.3 { 0.0 } else { y }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::SimdLevel;
    use crate::device::cpu::simd::Kernel;

    struct Exp<'a>(&'a mut [f32]);

    impl Kernel for Exp<'_> {
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            self.0.iter_mut().for_each(|x| *x = exp(simd, *x));
        }
    }

    #[test]
    fn exp_is_exact_to_two_units_at_every_level() {
        for level in SimdLevel::available() {
            #[allow(clippy::cast_precision_loss, reason = "small integers")]
            let x: Vec<f32> = (-87_000..=87_000).map(|i| i as f32 * 1e-3).collect();
            let mut y = x.clone();
            level.run(Exp(&mut y));
            for (x, y) in x.iter().zip(&y) {
                let exact = f64::from(*x).exp();
                assert!(
                    (f64::from(*y) / exact - 1.0).abs() < 2.4e-7,
                    "exp({x}) = {y}, not {exact}, {level:?}"
                );
            }
            let mut special = [f32::NEG_INFINITY, -1000.0, f32::NAN, 0.0];
            level.run(Exp(&mut special));
            assert_eq!(special[..2], [0.0, 0.0]);
            assert!(special[2].is_nan());
            assert_eq!(special[3], 1.0);
        }
    }
}
