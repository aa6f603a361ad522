//! The obvious loops: the definition of a switch, one weight at a time. They judge every kernel.

use super::{LatticeMatrix, Segment, Sign};

/// `N ← N ± Q` for every segment, by the definition.
pub fn apply(matrix: &mut LatticeMatrix, segments: &[Segment]) {
    let (rows, cols, stride) = (matrix.rows(), matrix.cols(), matrix.stride());
    for i in 0..rows {
        for j in 0..cols {
            let mut sum = i32::from(matrix.integers()[i * stride + j]);
            for segment in segments {
                let q = segment.delta.q(i, j);
                sum = match segment.sign {
                    Sign::Add => sum + q,
                    Sign::Subtract => sum - q,
                };
            }
            matrix.integers_mut()[i * stride + j] =
                i16::try_from(sum).expect("bounds are checked before a switch");
        }
    }
}
