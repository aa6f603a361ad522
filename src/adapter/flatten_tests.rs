//! Paths of made deltas flattened: the same changes to the same weights.

#![allow(clippy::cast_precision_loss, reason = "small numbers")]

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::Error;

pub(super) const Q: &str = "model.layers.1.self_attn.q_proj.weight";
pub(super) const DOWN: &str = "model.layers.11.mlp.down_proj.weight";
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(super) const HEAD: &str = "lm_head.weight";

pub(super) const SHAPES: [(&str, [usize; 2]); 4] =
    [(Q, [6, 5]), (DOWN, [5, 9]), (EMBEDDING, [11, 5]), (HEAD, [11, 5])];

pub(super) fn made(
    rng: &mut StdRng,
    [rows, cols]: [usize; 2],
    rank: usize,
    scaling: f64,
) -> FloatDelta {
    let mut random = |n: usize| (0..n).map(|_| rng.random_range(-1.0_f32..1.0)).collect();
    FloatDelta::LowRank { rank, lora_a: random(rank * cols), lora_b: random(rows * rank), scaling }
}

pub(super) fn with_ranks(seed: u64, ranks: [usize; 4], scaling: f64) -> AdapterDeltas {
    let rng = &mut StdRng::seed_from_u64(seed);
    let deltas = SHAPES.iter().zip(ranks).filter(|(_, rank)| *rank > 0);
    deltas
        .map(|((weight, shape), rank)| (WeightName::new(weight), made(rng, *shape, rank, scaling)))
        .collect()
}

/// `Σ scaling · B · A` over several levels in f64, and the sum of the magnitudes.
pub(super) fn product(deltas: &[&FloatDelta], [rows, cols]: [usize; 2]) -> Vec<[f64; 2]> {
    let mut sums = vec![[0.0; 2]; rows * cols];
    for delta in deltas {
        let FloatDelta::LowRank { rank, lora_a, lora_b, scaling } = delta else {
            panic!("{delta:?}")
        };
        for (k, sum) in sums.iter_mut().enumerate() {
            for r in 0..*rank {
                let term = scaling
                    * f64::from(lora_b[k / cols * rank + r])
                    * f64::from(lora_a[r * cols + k % cols]);
                *sum = [sum[0] + term, sum[1] + term.abs()];
            }
        }
    }
    sums
}

pub(super) fn assert_same_product(
    found: &[&FloatDelta],
    expected: &[&FloatDelta],
    shape: [usize; 2],
) {
    for ([found, _], [expected, size]) in
        product(found, shape).into_iter().zip(product(expected, shape))
    {
        assert!((found - expected).abs() <= size / f64::from(1 << 23), "{found} for {expected}");
    }
}

#[test]
fn a_flattened_path_is_the_float64_sum_of_its_products() {
    // Each level leaves out other weights; the scalings are no powers of two.
    let levels = [
        with_ranks(4, [3, 1, 0, 8], 2.0),
        with_ranks(5, [5, 0, 2, 1], 1.0 / 3.0),
        with_ranks(6, [1, 7, 0, 4], 32.0 / 7.0_f64.sqrt()),
    ];
    let flat = flatten(&levels.each_ref()).unwrap();
    for ((weight, shape), expected_rank) in SHAPES.into_iter().zip([9, 8, 2, 13]) {
        let weight = WeightName::new(weight);
        let FloatDelta::LowRank { rank, scaling, .. } = &flat[&weight] else { panic!() };
        assert_eq!((*rank, *scaling), (expected_rank, 1.0));
        let parts: Vec<&FloatDelta> =
            levels.iter().filter_map(|level| level.get(&weight)).collect();
        assert_same_product(&[&flat[&weight]], &parts, shape);
    }
}

#[test]
fn the_order_of_components_is_that_of_the_path() {
    let level = |a: f32, b: f32| {
        let delta = FloatDelta::LowRank {
            rank: 1,
            lora_a: vec![a, a],
            lora_b: vec![b, b, b],
            scaling: 0.5,
        };
        AdapterDeltas::from([(WeightName::new(Q), delta)])
    };
    let flat = flatten(&[&level(2.0, 3.0), &level(4.0, 5.0)]).unwrap();
    let (lora_a, lora_b) = (vec![1.0, 1.0, 2.0, 2.0], vec![3.0, 5.0, 3.0, 5.0, 3.0, 5.0]);
    assert_eq!(
        flat[&WeightName::new(Q)],
        FloatDelta::LowRank { rank: 2, lora_a, lora_b, scaling: 1.0 }
    );
}

#[test]
fn factors_of_two_shapes_are_not_joined() {
    let rng = &mut StdRng::seed_from_u64(1);
    let mut level = |shape| AdapterDeltas::from([(WeightName::new(Q), made(rng, shape, 2, 1.0))]);
    let levels = [level([6, 5]), level([6, 4]), level([7, 5])];
    for other in &levels[1..] {
        let result = flatten(&[&levels[0], other]);
        assert!(matches!(result, Err(Error::DeltaShape { .. })), "{result:?}");
    }
    let ragged =
        FloatDelta::LowRank { rank: 2, lora_a: vec![0.0; 9], lora_b: vec![0.0; 12], scaling: 1.0 };
    let result = flatten(&[&AdapterDeltas::from([(WeightName::new(Q), ragged)])]);
    assert!(matches!(result, Err(Error::DeltaShape { found: 9, .. })), "{result:?}");
}
