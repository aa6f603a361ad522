//! Every kernel against the obvious loops, on random shapes, ranks, scalings and mixes of kinds.
#![allow(clippy::cast_possible_truncation, reason = "made numbers")]

use std::sync::LazyLock;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::WeightName;
use crate::adapter::FloatDelta;
use crate::lattice::{
    CompiledDelta, DEFAULT_HEADROOM, Grid, compile, quantise, reach, reference, row_squares,
};

/// One for each instruction set, the widest last.
static CPUS: LazyLock<Vec<Cpu>> = LazyLock::new(|| {
    SimdLevel::available().map(|simd| Cpu::with_simd(Some(2), simd).unwrap()).collect()
});

fn made_base(rng: &mut StdRng, rows: usize, cols: usize, headroom: f32) -> (LatticeMatrix, Grid) {
    // A row of zeros now and then, and rows of very different size.
    let sizes: Vec<f32> = (0..rows)
        .map(|_| if rng.random_bool(0.1) { 0.0 } else { rng.random_range(0.01..1.0) })
        .collect();
    let values: Vec<f32> =
        (0..rows * cols).map(|k| sizes[k / cols] * rng.random_range(-1.0..1.0)).collect();
    quantise(&WeightName::new("w"), rows, cols, headroom, |range, out| {
        out.copy_from_slice(&values[range.start * cols..range.end * cols]);
        Ok(())
    })
    .expect("finite")
}

fn made_delta(
    rng: &mut StdRng,
    rows: usize,
    cols: usize,
    rank: usize,
    kind: u8,
    size: f32,
) -> FloatDelta {
    let mut random = |n: usize, size: f32| -> Vec<f32> {
        (0..n).map(|_| size * rng.random_range(-1.0..1.0)).collect()
    };
    match kind {
        0 => {
            let mut lora_a = random(rank * cols, 1.0);
            let mut lora_b = random(rows * rank, size);
            // Components of very different size and balance.
            for r in 0..rank {
                let tilt = 10_f32.powi((r % 7) as i32 - 3);
                lora_a[r * cols..(r + 1) * cols].iter_mut().for_each(|a| *a *= tilt);
                lora_b.iter_mut().skip(r).step_by(rank).for_each(|b| *b /= tilt);
            }
            FloatDelta::LowRank { rank, lora_a, lora_b, scaling: 1.0 / rank as f64 }
        }
        1 => FloatDelta::Dense { values: random(rows * cols, size) },
        _ => {
            let values = random(rows * cols, size);
            let entries = values.iter().enumerate().filter(|(k, _)| k % 5 == 0);
            FloatDelta::Sparse {
                entries: entries.map(|(k, &v)| ((k / cols) as u32, (k % cols) as u32, v)).collect(),
            }
        }
    }
}

/// The compiled delta; none where it does not fit, which another test is about.
fn compiled(delta: &FloatDelta, grid: &Grid) -> Option<CompiledDelta> {
    match compile(&WeightName::new("w"), delta, grid) {
        Ok(mut compiled) => {
            let bounds = compiled.row_max.clone();
            tighten(SimdLevel::detect(), &mut compiled);
            assert!(compiled.row_max.iter().zip(&bounds).all(|(largest, bound)| largest <= bound));
            compiled.row_max.iter().all(|&largest| largest <= LIMIT).then_some(compiled)
        }
        Err(crate::Error::Overflow { .. }) => None,
        Err(other) => panic!("{other}"),
    }
}

fn shapes() -> impl Strategy<Value = (usize, usize)> {
    let side = || prop_oneof![Just(1_usize), Just(2), 3..10_usize, 30..70_usize, Just(128)];
    (side(), side())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_kernel_gives_the_bits_of_the_obvious_loops(
        (rows, cols) in shapes(),
        kinds in prop::collection::vec((0_u8..3, prop_oneof![1_usize..9, 60_usize..70, Just(200)], -6_i32..=-1, any::<bool>()), 1..5),
        seed in any::<u64>(),
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        // Memory for five deltas as large as the weights.
        let headroom = 8.0;
        let (base, grid) = made_base(&mut rng, rows, cols, headroom);
        let deltas: Vec<_> = kinds
            .iter()
            .filter_map(|&(kind, rank, size, _)| {
                // The smallest row's step is a sixteenth of the mean: sizes above would not fit it.
                let delta = made_delta(&mut rng, rows, cols, rank, kind, 0.2 * 10_f32.powi(size));
                compiled(&delta, &grid)
            })
            .collect();
        let terms: Vec<_> = deltas
            .iter()
            .zip(&kinds)
            .map(|(delta, kind)| if kind.3 { SignedDelta::added(delta) } else { SignedDelta::subtracted(delta) })
            .collect();
        let mut expected = base.clone();
        reference::delta_apply(&mut expected, &terms);
        for cpu in CPUS.iter() {
            let mut found = base.clone();
            delta_apply(cpu, vec![(&mut found, terms.clone())]);
            prop_assert_eq!(&found, &expected, "{:?}", cpu.simd());
            let undo = terms.iter().map(|term| term.inverse());
            delta_apply(cpu, vec![(&mut found, undo.collect())]);
            prop_assert_eq!(&found, &base, "undone by {:?}", cpu.simd());
        }
    }

    #[test]
    fn a_compiled_delta_is_the_float_delta_rounded_once_a_chunk(
        (rows, cols) in shapes(),
        rank in prop_oneof![1_usize..9, 60_usize..70, Just(200)],
        size in -7_i32..=-2,
        seed in any::<u64>(),
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let (_, grid) = made_base(&mut rng, rows, cols, 4.0);
        let delta = made_delta(&mut rng, rows, cols, rank, 0, 10_f32.powi(size));
        let Some(compiled) = compiled(&delta, &grid) else { return Err(TestCaseError::reject("too large")) };
        let FloatDelta::LowRank { lora_a, lora_b, scaling, .. } = &delta else { unreachable!() };
        let DeltaKind::LowRank(chunks) = &compiled.kind else { unreachable!() };
        for i in 0..rows {
            let step = f64::from(grid.steps[i]);
            let largest = (0..cols).map(|j| compiled.q(i, j).unsigned_abs()).max();
            prop_assert_eq!(Some(compiled.row_max[i]), largest);
            for j in 0..cols {
                let exact: f64 = (0..rank)
                    .map(|r| f64::from(lora_b[i * rank + r]) * scaling / step * f64::from(lora_a[r * cols + j]))
                    .sum();
                // Half a step a chunk, and half a unit of each factor times the other.
                let bound: f64 = chunks
                    .iter()
                    .map(|chunk| {
                        let b = chunk.b_row(i).map(|b| f64::from(b).abs());
                        let a = (0..chunk.pairs * 2).map(|r| f64::from(chunk.a(r, j)).abs());
                        let factors: f64 = a.zip(b).map(|(a, b)| 0.5 * (a + b) + 0.25).sum();
                        0.5 + factors / f64::from(1_u32 << chunk.shift[i])
                    })
                    .sum();
                let error = (f64::from(compiled.q(i, j)) - exact).abs();
                prop_assert!(error <= bound + 1e-6, "row {i} column {j}: {} for {exact}", compiled.q(i, j));
            }
            for chunk in chunks {
                let b: u64 = chunk.b_row(i).map(|b| u64::from(b.unsigned_abs()).pow(2)).sum();
                let a = (0..cols).map(|j| (0..chunk.pairs * 2).map(|r| u64::from(chunk.a(r, j).unsigned_abs()).pow(2)).sum::<u64>());
                prop_assert!(u128::from(b) * u128::from(a.max().unwrap_or(0)) < 1 << 60, "a sum may leave i32");
            }
        }
    }
}

/// Five rank-1 deltas, each within its own bound, whose sum is 16 less than 2^32: as an i32 it
/// would look like −16.
#[test]
fn sums_beyond_an_i32_are_not_taken_for_small_ones() {
    let mut a = vec![Lane::zeroed(); 2];
    a[0].0[0] = 32766;
    let factors = Factors::from_rows(1, a, &[26216, 0], vec![0]);
    let kind = DeltaKind::LowRank(vec![factors]);
    let delta = CompiledDelta { rows: 1, cols: 1, row_max: vec![32766 * 26216], kind };
    let terms = [SignedDelta::added(&delta); 5];
    assert_eq!(reach(&[0], 0, &terms), 5 * 32766 * 26216);
}

#[test]
fn many_matrices_in_one_pass_keep_to_themselves_large_or_small() {
    let mut rng = StdRng::seed_from_u64(7);
    let shapes = [(64, 5_000), (513, 96), (1, 1), (70, 33)];
    let bases: Vec<_> = shapes.map(|(r, c)| made_base(&mut rng, r, c, DEFAULT_HEADROOM)).into();
    let weights: usize = shapes.iter().map(|(r, c)| r * c).sum();
    for (rank, alone) in [(1, true), (8, false)] {
        assert_eq!(weights * (TOUCH + rank + 1) < ALONE, alone);
        let deltas: Vec<_> = bases
            .iter()
            .map(|(_, grid)| {
                let delta = made_delta(&mut rng, grid.rows(), grid.cols, rank, 0, 1e-4);
                compiled(&delta, grid).expect("fits")
            })
            .collect();
        let mut found: Vec<_> = bases.iter().map(|(matrix, _)| matrix.clone()).collect();
        let work =
            found.iter_mut().zip(&deltas).map(|(m, delta)| (m, vec![SignedDelta::added(delta)]));
        delta_apply(CPUS.last().unwrap(), work.collect());
        for ((found, (base, _)), delta) in found.iter().zip(&bases).zip(&deltas) {
            let mut expected = base.clone();
            reference::delta_apply(&mut expected, &[SignedDelta::added(delta)]);
            assert_eq!(found, &expected);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_share_that_is_kept_is_the_one_of_the_definition(
        (rows, cols) in shapes(),
        kind in 0_u8..3,
        rank in prop_oneof![1_usize..9, 60_usize..70, Just(200)],
        size in -8_i32..=1,
        tilt in -20_i32..=20,
        seed in any::<u64>(),
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let (_, grid) = made_base(&mut rng, rows, cols, 2.0);
        let mut float = made_delta(&mut rng, rows, cols, rank, kind, 0.2 * 10_f32.powi(size));
        // The size may lie anywhere in factors and scaling.
        if let FloatDelta::LowRank { lora_a, scaling, .. } = &mut float {
            lora_a.iter_mut().for_each(|a| *a *= 10_f32.powi(tilt));
            *scaling *= 10_f64.powi(-tilt);
        }
        let Ok(plain) = compile(&WeightName::new("w"), &float, &grid) else { return Err(TestCaseError::reject("too large")) };
        let mut expected = Squares::default();
        (0..rows).for_each(|row| expected += row_squares(&float, &plain, &grid, row));
        for simd in SimdLevel::available() {
            let mut counted = plain.clone();
            let squares = tighten_and_count(simd, &mut counted, &float, &grid);
            let mut alone = plain.clone();
            tighten(simd, &mut alone);
            prop_assert_eq!(&counted, &alone, "counting changes no integer");
            match (squares.kept(), expected.kept()) {
                (Some(found), Some(expected)) => prop_assert!((found - expected).abs() < 1e-4, "{simd:?}: {found} for {expected}"),
                (found, expected) => prop_assert_eq!(found, expected),
            }
            prop_assert!((squares.change - expected.change).abs() <= 1e-4 * expected.change, "{squares:?}, {expected:?}");
        }
    }
}
