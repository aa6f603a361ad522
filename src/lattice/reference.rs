//! The obvious loops: the definition of a switch, one weight at a time. They judge every kernel.

use super::{CompiledDelta, LatticeMatrix, Sign, SignedDelta};

/// `N ← N ± Q` for every delta, by the definition.
///
/// # Panics
/// When a weight leaves i16: bounds are checked before a switch.
pub fn delta_apply(matrix: &mut LatticeMatrix, deltas: &[SignedDelta<&CompiledDelta>]) {
    let (rows, cols, stride) = (matrix.rows(), matrix.cols(), matrix.stride());
    for i in 0..rows {
        for j in 0..cols {
            let mut sum = i32::from(matrix.integers()[i * stride + j]);
            for SignedDelta { delta, sign } in deltas {
                let q = delta.q(i, j);
                sum = match sign {
                    Sign::Add => sum + q,
                    Sign::Subtract => sum - q,
                };
            }
            matrix.integers_mut()[i * stride + j] =
                i16::try_from(sum).expect("bounds are checked before a switch");
        }
    }
}
