//! Made rows at the edge of the lattice: what is counted with the integers, and what can be said
//! without them.

use super::*;
use crate::lattice::{DeltaKind, LatticeMatrix};

/// One row of three columns whose base integers are `base`, and a dense delta `q` on it.
fn made(base: [i16; 3], q: [i16; 3]) -> (Grid, CompiledDelta) {
    let largest = |row: [i16; 3]| row.iter().map(|n| n.unsigned_abs()).max().unwrap();
    let grid = Grid { cols: 3, steps: vec![1.0], row_max: vec![largest(base)], headroom: 1.25 };
    let mut matrix = LatticeMatrix::zeros(1, 3);
    matrix.integers_mut()[..3].copy_from_slice(&q);
    let (row_max, kind) = (vec![u32::from(largest(q))], DeltaKind::Dense(matrix.into_lanes()));
    (grid, CompiledDelta { rows: 1, cols: 3, row_max, kind })
}

fn name() -> WeightName {
    WeightName::new("w")
}

#[test]
fn a_row_is_clear_up_to_the_last_integer_and_counted_beyond() {
    for (q, close) in [([0, 2767, 0], vec![]), ([0, 2768, 0], vec![0])] {
        let (grid, delta) = made([30000, 0, -5], q);
        assert_eq!(close_rows(&grid, &[&delta]), close);
    }
    // The largest entries lie in different columns: it fits, and only the integers decide.
    let (grid, delta) = made([30000, 0, -5], [0, 20000, 0]);
    let deltas = [SignedDelta::added(&delta)];
    assert!(check_rows(&name(), &grid, &[0], &[30000, 0, -5], &deltas).is_ok());
    let Err(Error::Overflow { needed, row: 0, .. }) =
        check_rows(&name(), &grid, &[0], &[0, 30000, -5], &deltas)
    else {
        panic!("30000 + 20000 is beyond 32767")
    };
    assert!(f64::from(50000) * 1.25 / needed <= 32767.0, "{needed} does");
}

#[test]
fn without_the_integers_yes_and_no_are_sure_and_the_rest_is_said_to_be_open() {
    let (grid, delta) = made([30000, 0, -5], [0, 20000, 0]);
    let (row, needed) =
        guess_rows(&name(), &grid, &[0], &[&delta]).unwrap().expect("30000 and 20000 may meet");
    assert!(row == 0 && f64::from(50000) * 1.25 / needed <= 32767.0, "{needed} does");
    // Two deltas that cancel: the maxima do not clear the row, their sum does.
    let (_, back) = made([0; 3], [0, -19000, 0]);
    assert_eq!(close_rows(&grid, &[&delta, &back]), [0]);
    assert_eq!(guess_rows(&name(), &grid, &[0], &[&delta, &back]).unwrap(), None);
    // Whatever lies there, a base of at most 1000 does not bring 33768 back to the lattice; 33767
    // it may.
    for (second, sure) in [(1001, true), (1000, false)] {
        let (grid, delta) = made([1000, 0, 0], [32767, 0, 0]);
        let (_, more) = made([0; 3], [second, 0, 0]);
        assert_eq!(guess_rows(&name(), &grid, &[0], &[&delta, &more]).is_err(), sure);
    }
}
