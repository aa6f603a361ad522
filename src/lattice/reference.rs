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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lattice::{CompiledDelta, DeltaKind, Factors, Lane, SparseRows};

    /// One delta of each kind on 3 × 33 weights, which fill a lane and begin another.
    fn deltas() -> [CompiledDelta; 3] {
        let (rows, cols) = (3, 33);
        let mut factors = Factors::zeros(2, rows, cols);
        for j in 0..cols {
            factors.set_a(0, j, 5);
            factors.set_a(1, j, -3);
        }
        // Row 0: 2 · 5 − 3 = 7, and 7 >> 1 rounds up to 4; row 1: −2 · 5 = −10; row 2: nothing.
        for (i, r, value) in [(0, 0, 2), (0, 1, 1), (1, 0, -2)] {
            factors.set_b(i, r, value);
        }
        factors.shift = vec![1, 0, 0];
        let sparse =
            SparseRows { row_start: vec![0, 1, 1, 2], cols: vec![32, 0], values: vec![100, -7] };
        let dense = (0..2 * 3).map(|k| Lane([k; 32])).collect();
        [DeltaKind::LowRank(vec![factors]), DeltaKind::Sparse(sparse), DeltaKind::Dense(dense)]
            .map(|kind| CompiledDelta { rows, cols, row_max: vec![100; rows], kind })
    }

    #[test]
    fn every_kind_is_added_by_the_definition_and_subtracted_bit_for_bit() {
        let [low_rank, sparse, dense] = &deltas();
        let mut matrix = LatticeMatrix::zeros(3, 33);
        let added = [low_rank, sparse].map(SignedDelta::added);
        delta_apply(&mut matrix, &added);
        let corners = |matrix: &LatticeMatrix| [0, 1, 2].map(|i| [0, 32].map(|j| matrix.row(i)[j]));
        assert_eq!(corners(&matrix), [[4, 104], [-10, -10], [-7, 0]]);
        delta_apply(&mut matrix, &[SignedDelta::added(dense)]);
        assert_eq!(corners(&matrix), [[4, 105], [-8, -7], [-3, 5]]);
        let all = [dense, sparse, low_rank].map(SignedDelta::subtracted);
        delta_apply(&mut matrix, &all);
        assert!(matrix.integers().iter().all(|&n| n == 0));
    }
}
