//! Deltas written and read again: the same changes to the same weights, or a refusal by name.

use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::*;
use crate::WeightName;
use crate::adapter::flatten_tests::{
    DOWN, Q, SHAPES, assert_same_product, made, product, with_ranks,
};
use crate::adapter::{AdapterDeltas, BaseShapes, FloatDelta, PeftAdapter, flatten};
use crate::base::WeightInfo;

fn base() -> BaseShapes {
    let info = |shape: [usize; 2]| WeightInfo { shape: shape.to_vec(), dtype: "F32".into() };
    let weights: Vec<_> =
        SHAPES.iter().map(|(weight, shape)| (WeightName::new(weight), info(*shape))).collect();
    BaseShapes::new("tiny", weights.iter().map(|(weight, info)| (weight, info)))
}

fn read(dir: &Path) -> AdapterDeltas {
    PeftAdapter::open(dir, &Limits::default()).unwrap().deltas(&base()).unwrap()
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
