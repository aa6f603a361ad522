//! Servers that load an adapter halfway and then fail have gone on answering with weights that
//! belong to nobody: some layers of one user, some of another. Here everything that can fail comes
//! before the first weight moves, so a switch that fails leaves node, bits and text as they were,
//! and the next one works.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pleach::adapter::{AdapterDeltas, FloatDelta};
use pleach::error::{AdapterDefect, MAX_HEADROOM, TreeDefect};
use pleach::model::GenerateOptions;
use pleach::runtime::RuntimeBuilder;
use pleach::testing::adapter::{TinyAdapter, TinyModule, serialize};
use pleach::testing::{TinyModel, tiny_hf_model, tiny_hf_model_of};
use pleach::tree::{AdapterTree, NodeSource};
use pleach::{Error, Runtime, WeightName};
use safetensors::Dtype;
use tempfile::TempDir;

const UP: &str = "model.layers.1.mlp.up_proj";
const EMBEDDING: &str = "model.embed_tokens.weight";

/// A made base and the tree `fr`, `fr/alice`, `fr/bob` in files.
struct Made {
    dir: TempDir,
}

impl Made {
    fn new() -> Self {
        let made = Self { dir: tempfile::tempdir().unwrap() };
        tiny_hf_model(&made.base(), &TinyModel::default());
        made.adapter("fr", 1);
        made.adapter("fr/alice", 2);
        made.adapter("fr/bob", 3);
        made
    }

    fn base(&self) -> PathBuf {
        self.dir.path().join("base")
    }

    fn node(&self, name: &str) -> PathBuf {
        self.dir.path().join("tree").join(name)
    }

    fn adapter(&self, name: &str, seed: u64) {
        let modules = vec![
            TinyModule::linear(UP, 96, 64),
            TinyModule::linear("model.layers.0.self_attn.q_proj", 64, 64),
        ];
        TinyAdapter::new(modules, 2, seed).write(&self.node(name)).unwrap();
    }

    fn builder(&self) -> RuntimeBuilder {
        Runtime::builder().base(self.base()).tree(self.dir.path().join("tree")).headroom(2.0)
    }

    /// A runtime that stands at `fr/alice`.
    fn at_alice(&self) -> Runtime {
        let mut runtime = self.builder().open().unwrap();
        runtime.switch_to("fr/alice").unwrap();
        runtime
    }
}

/// What a failed switch must leave as it is.
fn state(runtime: &Runtime) -> (String, blake3::Hash, String) {
    let options = GenerateOptions { max_tokens: 8, ..GenerateOptions::default() };
    let text =
        runtime.generate(&"hello w".into(), &options, |_| ControlFlow::Continue(())).unwrap().text;
    (runtime.current().to_owned(), runtime.fingerprint().unwrap(), text)
}

/// The error of a switch that changed nothing.
fn refused(runtime: &mut Runtime, node: &str) -> Error {
    let before = state(runtime);
    let error = runtime.switch_to(node).unwrap_err();
    assert_eq!(state(runtime), before, "{error}");
    error
}

/// The same of an adapter's files.
fn defect(runtime: &mut Runtime, node: &str) -> AdapterDefect {
    match refused(runtime, node) {
        Error::Adapter { defect, .. } => *defect,
        other => panic!("{other:?}"),
    }
}

#[test]
fn unknown_node_is_refused_with_the_nearest_names() {
    let made = Made::new();
    let mut runtime = made.at_alice();
    let Error::Tree(defect) = refused(&mut runtime, "fr/alise") else { panic!() };
    let TreeDefect::UnknownNode { nearest, .. } = *defect else { panic!("{defect:?}") };
    assert_eq!(nearest[0], "fr/alice");
}

/// A node's name is looked up in the tree and never becomes a path.
#[test]
fn names_that_lead_out_of_the_tree_are_unknown() {
    let made = Made::new();
    made.adapter("../outside", 4);
    let mut runtime = made.at_alice();
    let outside = made.dir.path().join("outside").display().to_string();
    let long = "../".repeat(1 << 18);
    for name in [
        "../outside",
        "fr/../../outside",
        "fr/alice/../bob",
        "fr/./bob",
        "./fr/bob",
        "fr//bob",
        "..",
        ".",
        "~",
        "*",
        "fr/*",
        "fr\\bob",
        "fr/bob\0",
        "fr/bob ",
        " fr/bob",
        "FR/BOB",
        "fr/bob/adapter_config.json",
        "fr%2Fbob",
        "fr／bob",
        &outside,
        &long,
    ] {
        let Error::Tree(defect) = refused(&mut runtime, name) else { panic!("{name}") };
        assert!(matches!(*defect, TreeDefect::UnknownNode { .. }), "{name}: {defect:?}");
        assert!(defect.to_string().len() < 1000, "{name}");
    }
}

/// The files are whole when the tree is opened and damaged when the node is first wanted.
#[test]
fn adapter_damaged_after_opening_is_refused() {
    let made = Made::new();
    let mut runtime = made.at_alice();
    let file = made.node("fr/bob").join("adapter_model.safetensors");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, b"garbage").unwrap();
    assert!(matches!(refused(&mut runtime, "fr/bob"), Error::SafeTensors { .. }));
    std::fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    assert!(matches!(refused(&mut runtime, "fr/bob"), Error::SafeTensors { .. }));
    std::fs::remove_file(&file).unwrap();
    assert!(matches!(defect(&mut runtime, "fr/bob"), AdapterDefect::MissingFile { .. }));
    // Repaired, it is taken.
    std::fs::write(&file, &whole).unwrap();
    runtime.switch_to("fr/bob").unwrap();
    let mut fresh = made.builder().open().unwrap();
    fresh.switch_to("fr/bob").unwrap();
    assert_eq!(state(&runtime), state(&fresh));
}

#[test]
fn nan_in_an_adapter_is_refused() {
    let made = Made::new();
    let adapter = TinyAdapter::new(vec![TinyModule::linear(UP, 96, 64)], 2, 9);
    adapter.write(&made.node("fr/bob")).unwrap();
    for value in [f32::NAN, f32::INFINITY] {
        let mut tensors = adapter.tensors();
        *tensors[1].2.last_mut().unwrap() = value;
        let file = serialize(&tensors, Dtype::F32);
        std::fs::write(made.node("fr/bob").join("adapter_model.safetensors"), file).unwrap();
        let found = defect(&mut made.at_alice(), "fr/bob");
        assert!(matches!(found, AdapterDefect::NotFinite { row: 95, column: 1, .. }), "{found:?}");
    }
}

#[test]
fn adapter_of_another_base_is_refused() {
    let made = Made::new();
    let mut runtime = made.at_alice();
    TinyAdapter::new(vec![TinyModule::linear(UP, 96, 32)], 2, 9)
        .write(&made.node("fr/bob"))
        .unwrap();
    assert!(matches!(defect(&mut runtime, "fr/bob"), AdapterDefect::ShapeMismatch { .. }));
    TinyAdapter::new(vec![TinyModule::linear("model.layers.2.mlp.up_proj", 96, 64)], 2, 9)
        .write(&made.node("fr/bob"))
        .unwrap();
    assert!(matches!(defect(&mut runtime, "fr/bob"), AdapterDefect::NotInBase { .. }));
}

/// A tree in memory: `good`, and below it `bad` with the given deltas.
fn memory(deltas: impl IntoIterator<Item = (&'static str, FloatDelta)>) -> AdapterTree {
    let good = source([(format!("{UP}.weight"), low_rank(96, 64, 0.01))]);
    let bad = source(deltas.into_iter().map(|(name, delta)| (name.to_owned(), delta)));
    AdapterTree::builder().node("good", "/", good).node("good/bad", "good", bad).build().unwrap()
}

fn source(deltas: impl IntoIterator<Item = (String, FloatDelta)>) -> NodeSource {
    let deltas: AdapterDeltas =
        deltas.into_iter().map(|(name, delta)| (WeightName::new(name), delta)).collect();
    NodeSource::Memory(Arc::new(deltas))
}

/// A rank-1 delta with every entry `size`.
fn low_rank(rows: usize, cols: usize, size: f32) -> FloatDelta {
    FloatDelta::LowRank { rank: 1, lora_a: vec![1.0; cols], lora_b: vec![size; rows], scaling: 1.0 }
}

#[test]
fn deltas_in_memory_that_do_not_fit_are_refused() {
    let made = Made::new();
    let up = "model.layers.1.mlp.up_proj.weight";
    let nan_scaling = FloatDelta::LowRank {
        rank: 1,
        lora_a: vec![1.0; 64],
        lora_b: vec![1.0; 96],
        scaling: f64::NAN,
    };
    let mut nan = vec![0.0; 96 * 64];
    nan[77] = f32::NAN;
    let refusal = |name: &'static str, delta| {
        let tree = memory([(name, delta)]);
        let mut runtime = Runtime::builder().base(made.base()).adapter_tree(tree).open().unwrap();
        runtime.switch_to("good").unwrap();
        refused(&mut runtime, "good/bad")
    };
    assert!(matches!(
        refusal(up, low_rank(96, 65, 0.1)),
        Error::DeltaShape { expected: 64, found: 65, .. }
    ));
    assert!(matches!(
        refusal(up, FloatDelta::Dense { values: vec![0.0; 64] }),
        Error::DeltaShape { found: 64, .. }
    ));
    assert!(matches!(
        refusal("model.norm.weight", low_rank(1, 64, 0.1)),
        Error::NoSuchMatrix { .. }
    ));
    let outside = FloatDelta::Sparse { entries: vec![(95, 63, 0.1), (96, 0, 0.1)] };
    assert!(matches!(refusal(up, outside), Error::SparseEntry { row: 96, column: 0, .. }));
    let twice = FloatDelta::Sparse { entries: vec![(3, 3, 0.1), (3, 3, 0.1)] };
    assert!(matches!(refusal(up, twice), Error::SparseEntry { row: 3, column: 3, .. }));
    assert!(matches!(
        refusal(up, FloatDelta::Dense { values: nan }),
        Error::NonFinite { index: 77, .. }
    ));
    assert!(matches!(
        refusal(up, low_rank(96, 64, f32::INFINITY)),
        Error::NonFinite { index: 0, .. }
    ));
    assert!(matches!(refusal(up, nan_scaling), Error::NonFinite { index: 0, .. }));
    let sparse = FloatDelta::Sparse { entries: vec![(0, 0, 1.0), (0, 1, f32::NEG_INFINITY)] };
    assert!(matches!(refusal(up, sparse), Error::NonFinite { index: 1, .. }));
}

/// Opens the base with the headroom that each refusal of `node` names, until the switch goes
/// through; how often.
fn reopened_until_it_fits(base: &Path, tree: &AdapterTree, node: &str) -> usize {
    let mut headroom = 1.25;
    for reopened in 0..3 {
        let mut runtime = Runtime::builder()
            .base(base)
            .adapter_tree(tree.clone())
            .headroom(headroom)
            .open()
            .unwrap();
        runtime.switch_to("good").unwrap();
        if runtime.switch_to(node).is_ok() {
            runtime.switch_to("/").unwrap();
            return reopened;
        }
        let error = refused(&mut runtime, node);
        let Error::Overflow { node: named, needed, .. } = &error else { panic!("{error:?}") };
        assert_eq!(named, node);
        assert!(error.to_string().contains(&format!("(--headroom {needed})")), "{error}");
        headroom = needed.to_string().parse().unwrap();
    }
    panic!("a headroom of {headroom} was asked for and does not do")
}

#[test]
fn overflow_names_the_headroom_that_does() {
    let made = Made::new();
    let (up, down) = ("model.layers.1.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight");
    // Rows that need more and more space, so that the first to be found is not the one that
    // decides.
    let steep = |rows: u16, cols: usize| -> Vec<f32> {
        (0..rows).flat_map(|row| vec![0.3 + f32::from(row) / 20.0; cols]).collect()
    };
    let rows =
        FloatDelta::LowRank { rank: 1, lora_a: vec![1.0; 64], lora_b: steep(96, 1), scaling: 1.0 };
    let sparse = FloatDelta::Sparse { entries: vec![(0, 0, 1.0), (95, 63, -9.0)] };
    for (what, deltas) in [
        ("low rank", vec![(up, rows)]),
        ("dense", vec![(up, FloatDelta::Dense { values: steep(96, 64) })]),
        ("sparse", vec![(up, sparse)]),
        ("two matrices", vec![(down, low_rank(64, 96, 0.5)), (up, low_rank(96, 64, 4.0))]),
        (
            "two dense ones",
            vec![
                (down, FloatDelta::Dense { values: steep(64, 96) }),
                (up, FloatDelta::Dense { values: steep(96, 64) }),
            ],
        ),
        ("a tied embedding", vec![(EMBEDDING, low_rank(272, 64, 1.0))]),
    ] {
        let tree = memory(deltas);
        assert_eq!(reopened_until_it_fits(&made.base(), &tree, "good/bad"), 1, "{what}");
    }
}

/// Each level fits alone; their sum does not.
#[test]
fn overflow_of_a_sum_names_the_headroom_that_does() {
    let made = Made::new();
    let up = || format!("{UP}.weight");
    let tree = AdapterTree::builder()
        .node("good", "/", source([(up(), low_rank(96, 64, 0.01))]))
        .node("a", "/", source([(up(), low_rank(96, 64, 0.15))]))
        .node("a/b", "a", source([(up(), FloatDelta::Dense { values: vec![0.15; 96 * 64] })]))
        .node("a/b/c", "a/b", source([(up(), low_rank(96, 64, 2.0))]))
        .build()
        .unwrap();
    for node in ["a/b", "a/b/c"] {
        assert_eq!(reopened_until_it_fits(&made.base(), &tree, node), 1, "{node}");
    }
}

/// A matrix of zeros has no largest weight to take its step from.
#[test]
fn overflow_of_a_matrix_of_zeros_names_the_headroom_that_does() {
    let dir = tempfile::tempdir().unwrap();
    let model = TinyModel::default();
    let mut weights = model.weights();
    weights.get_mut("model.layers.1.mlp.up_proj.weight").unwrap().1.fill(0.0);
    tiny_hf_model_of(dir.path(), &model, &weights);
    let tree = memory([("model.layers.1.mlp.up_proj.weight", low_rank(96, 64, 30.0))]);
    assert_eq!(reopened_until_it_fits(dir.path(), &tree, "good/bad"), 1);
}

#[test]
fn delta_beyond_any_headroom_is_refused_without_naming_one() {
    let made = Made::new();
    for size in [1e4, 1e30] {
        let tree = memory([("model.layers.1.mlp.up_proj.weight", low_rank(96, 64, size))]);
        let mut runtime = Runtime::builder().base(made.base()).adapter_tree(tree).open().unwrap();
        let error = refused(&mut runtime, "good/bad");
        assert!(
            matches!(error, Error::Overflow { needed, .. } if needed > f64::from(MAX_HEADROOM)),
            "{error:?}"
        );
        assert!(error.to_string().contains("no headroom holds it"), "{error}");
    }
}

/// With no memory to keep anything, only the deltas that are applied stay, and those are what is
/// subtracted, whatever has become of the files.
#[test]
fn adapters_replaced_while_applied_are_subtracted_as_they_were_added() {
    let made = Made::new();
    let mut runtime = made.builder().delta_budget_bytes(1).open().unwrap();
    let root = state(&runtime);
    runtime.switch_to("fr/bob").unwrap();
    runtime.switch_to("fr/alice").unwrap();
    assert_eq!(runtime.cache_stats().nodes, 2, "fr and fr/alice, which are applied");
    let old = state(&runtime);

    made.adapter("fr", 11);
    made.adapter("fr/alice", 12);
    assert!(runtime.switch_to("/").unwrap().compiled.is_empty());
    assert_eq!(state(&runtime), root);
    assert_eq!(runtime.cache_stats().nodes, 0);

    // The new files are another content: this runtime refuses them, one opened now serves them.
    let changed = refused(&mut runtime, "fr/alice");
    assert!(
        matches!(&changed, Error::Tree(defect) if matches!(**defect, TreeDefect::Changed { .. })),
        "{changed}"
    );
    assert_eq!(state(&runtime), root);
    let mut fresh = made.builder().open().unwrap();
    fresh.switch_to("fr/alice").unwrap();
    assert_ne!(state(&fresh).1, old.1);

    // Without the files there is still a way back.
    std::fs::remove_dir_all(made.node("fr")).unwrap();
    let gone = refused(&mut runtime, "fr/bob");
    assert!(
        matches!(&gone, Error::Tree(defect) if matches!(**defect, TreeDefect::Gone { .. })),
        "{gone}"
    );
    runtime.switch_to("/").unwrap();
    assert_eq!(state(&runtime), root);
}
