//! Deltas flattened, written and read again: the same changes to the same weights, or a refusal by
//! name.

#![allow(clippy::cast_precision_loss, reason = "small numbers")]

use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::*;
use crate::Error;
use crate::base::WeightInfo;
use crate::error::AdapterDefect;

const Q: &str = "model.layers.1.self_attn.q_proj.weight";
const DOWN: &str = "model.layers.11.mlp.down_proj.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

const SHAPES: [(&str, [usize; 2]); 4] =
    [(Q, [6, 5]), (DOWN, [5, 9]), (EMBEDDING, [11, 5]), (HEAD, [11, 5])];

fn made(rng: &mut StdRng, [rows, cols]: [usize; 2], rank: usize, scaling: f64) -> FloatDelta {
    let mut random = |n: usize| (0..n).map(|_| rng.random_range(-1.0_f32..1.0)).collect();
    FloatDelta::LowRank { rank, lora_a: random(rank * cols), lora_b: random(rows * rank), scaling }
}

fn with_ranks(seed: u64, ranks: [usize; 4], scaling: f64) -> AdapterDeltas {
    let rng = &mut StdRng::seed_from_u64(seed);
    let deltas = SHAPES.iter().zip(ranks).filter(|(_, rank)| *rank > 0);
    deltas
        .map(|((weight, shape), rank)| (WeightName::new(weight), made(rng, *shape, rank, scaling)))
        .collect()
}

fn base() -> BaseShapes {
    let info = |shape: [usize; 2]| WeightInfo { shape: shape.to_vec(), dtype: "F32".into() };
    let weights: Vec<_> =
        SHAPES.iter().map(|(weight, shape)| (WeightName::new(weight), info(*shape))).collect();
    BaseShapes::new("tiny", weights.iter().map(|(weight, info)| (weight, info)))
}

fn read(dir: &Path) -> AdapterDeltas {
    PeftAdapter::open(dir, &Limits::default()).unwrap().deltas(&base()).unwrap()
}

/// `Σ scaling · B · A` over several levels in f64, and the sum of the magnitudes.
fn product(deltas: &[&FloatDelta], [rows, cols]: [usize; 2]) -> Vec<[f64; 2]> {
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

fn assert_same_product(found: &[&FloatDelta], expected: &[&FloatDelta], shape: [usize; 2]) {
    for ([found, _], [expected, size]) in
        product(found, shape).into_iter().zip(product(expected, shape))
    {
        assert!((found - expected).abs() <= size / f64::from(1 << 23), "{found} for {expected}");
    }
}

fn config(dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join(CONFIG_FILE)).unwrap()).unwrap()
}

fn defect(result: crate::Result<impl std::fmt::Debug>) -> AdapterDefect {
    match result {
        Err(Error::Adapter { defect, .. }) => *defect,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_written_is_read_back_bit_for_bit() {
    let parent = tempfile::tempdir().unwrap();
    for (name, ranks) in
        [("mixed", [3, 1, 5, 8]), ("equal", [4; 4]), ("one", [0, 0, 0, 7]), ("rows", [0, 0, 9, 0])]
    {
        let (dir, deltas) = (parent.path().join(name), with_ranks(1, ranks, 1.0));
        write_peft(&dir, &deltas, &PeftOptions::default()).unwrap();
        assert_eq!(read(&dir), deltas, "{name}");
    }
}

#[test]
fn the_config_names_each_module_in_full_with_a_scaling_of_one() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("new/adapter");
    let options = PeftOptions { base_model: Some("made/tiny".into()), ..PeftOptions::default() };
    write_peft(&dir, &with_ranks(1, [3, 8, 8, 0], 2.0), &options).unwrap();
    let config = config(&dir);
    assert_eq!(config["peft_type"], "LORA");
    assert_eq!(config["task_type"], "CAUSAL_LM");
    assert_eq!(config["base_model_name_or_path"], "made/tiny");
    assert_eq!([&config["r"], &config["lora_alpha"]], [&json!(8); 2]);
    let pattern = json!({r"model\.layers\.1\.self_attn\.q_proj": 3});
    assert_eq!([&config["rank_pattern"], &config["alpha_pattern"]], [&pattern; 2]);
    let modules =
        ["model.embed_tokens", "model.layers.1.self_attn.q_proj", "model.layers.11.mlp.down_proj"];
    assert_eq!(config["target_modules"], json!(modules));
    let adapter = PeftAdapter::open(&dir, &Limits::default()).unwrap();
    assert_eq!(adapter.summary().scalings, [1.0]);
    assert_eq!(adapter.summary().ranks, [3, 8]);
    // Nothing is left of the writing.
    assert_eq!(std::fs::read_dir(dir.parent().unwrap()).unwrap().count(), 1);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2);
}

#[test]
fn a_scaling_is_in_the_factors_to_the_rounding_of_f32() {
    let parent = tempfile::tempdir().unwrap();
    let (dir, deltas) = (parent.path().join("a"), with_ranks(2, [3, 2, 4, 5], 0.7));
    write_peft(&dir, &deltas, &PeftOptions::default()).unwrap();
    let found = read(&dir);
    for (weight, shape) in SHAPES {
        let weight = WeightName::new(weight);
        assert_same_product(&[&found[&weight]], &[&deltas[&weight]], shape);
    }
}

#[test]
fn a_uniform_rank_needs_no_patterns_and_changes_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let (dir, deltas) = (parent.path().join("a"), with_ranks(3, [3, 1, 2, 5], 1.0));
    write_peft(&dir, &deltas, &PeftOptions { uniform_rank: true, ..PeftOptions::default() })
        .unwrap();
    assert_eq!([&config(&dir)["rank_pattern"], &config(&dir)["alpha_pattern"]], [&json!({}); 2]);
    let found = read(&dir);
    for (weight, shape) in SHAPES {
        let weight = WeightName::new(weight);
        assert!(matches!(&found[&weight], FloatDelta::LowRank { rank: 5, .. }));
        assert_eq!(product(&[&found[&weight]], shape), product(&[&deltas[&weight]], shape));
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
fn what_a_lora_cannot_hold_is_refused_by_name() {
    let of = |weight: &str, delta| AdapterDeltas::from([(WeightName::new(weight), delta)]);
    let dense = of(Q, FloatDelta::Dense { values: vec![0.0; 30] });
    let sparse = of(DOWN, FloatDelta::Sparse { entries: vec![(0, 0, 1.0)] });
    for (deltas, expected, name) in [(&dense, "dense", Q), (&sparse, "sparse", DOWN)] {
        let found = defect(flatten(&[&with_ranks(1, [1; 4], 1.0), deltas]));
        assert!(
            matches!(&found, AdapterDefect::NotLowRank { weight, kind } if weight == name && *kind == expected),
            "{found}"
        );
    }
    let parent = tempfile::tempdir().unwrap();
    let write = |deltas: &AdapterDeltas| {
        defect(write_peft(&parent.path().join("a"), deltas, &PeftOptions::default()))
    };
    assert!(matches!(write(&dense), AdapterDefect::NotLowRank { .. }));
    let rng = &mut StdRng::seed_from_u64(1);
    for weight in ["model.layers.0.self_attn.q_proj.bias", "layers.0.mlp.up_proj.weight", ".weight"]
    {
        let found = write(&of(weight, made(rng, [2, 2], 1, 1.0)));
        assert!(
            matches!(&found, AdapterDefect::NotAModule { weight: named } if named == weight),
            "{found}"
        );
    }
    let infinite = FloatDelta::LowRank {
        rank: 1,
        lora_a: vec![1.0, 3e38],
        lora_b: vec![1.0; 2],
        scaling: 10.0,
    };
    assert!(matches!(write(&of(Q, infinite)), AdapterDefect::NotFinite { row: 0, column: 1, .. }));
    assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
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

#[test]
fn a_node_that_changes_nothing_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let zero = FloatDelta::LowRank { rank: 0, lora_a: vec![], lora_b: vec![], scaling: 1.0 };
    for deltas in [AdapterDeltas::new(), AdapterDeltas::from([(WeightName::new(Q), zero)])] {
        let found = defect(write_peft(&parent.path().join("a"), &deltas, &PeftOptions::default()));
        assert!(matches!(found, AdapterDefect::NothingToWrite), "{found}");
    }
    assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
}

#[test]
fn a_folder_that_holds_something_is_left_as_it_is() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("a");
    std::fs::create_dir(&dir).unwrap();
    // An empty one is taken.
    write_peft(&dir, &with_ranks(1, [1; 4], 1.0), &PeftOptions::default()).unwrap();
    let before = read(&dir);
    let found = defect(write_peft(&dir, &with_ranks(2, [1; 4], 1.0), &PeftOptions::default()));
    assert!(matches!(found, AdapterDefect::FolderNotEmpty), "{found}");
    assert_eq!(read(&dir), before);
    let file = parent.path().join("file");
    std::fs::write(&file, "kept").unwrap();
    let result = write_peft(&file, &before, &PeftOptions::default());
    assert!(matches!(result, Err(Error::Io { .. })), "{result:?}");
    assert_eq!(std::fs::read(&file).unwrap(), b"kept");
    assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 2, "nothing is left beside them");
}

/// Two writers of one folder: one of them wins whole, the other is refused.
#[test]
fn of_many_writers_one_wins_whole() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("a");
    let made: Vec<AdapterDeltas> = (0..8).map(|seed| with_ranks(seed, [2; 4], 1.0)).collect();
    let results: Vec<_> = std::thread::scope(|scope| {
        let writers: Vec<_> = made
            .iter()
            .map(|deltas| scope.spawn(|| write_peft(&dir, deltas, &PeftOptions::default())))
            .collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    let winners: Vec<usize> = (0..8).filter(|&k| results[k].is_ok()).collect();
    assert_eq!(winners.len(), 1, "{results:?}");
    assert_eq!(read(&dir), made[winners[0]]);
    for result in results.into_iter().filter(Result::is_err) {
        assert!(matches!(defect(result), AdapterDefect::FolderNotEmpty));
    }
    assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 1);
}
