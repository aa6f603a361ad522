//! A registry took an adapter, `inspect` said that it fits, and the first request for it failed:
//! the sum of its path left the lattice, or the parent that was replaced had left no space for the
//! leaves below. A check that says yes where the switch says no is worse than none. Here every
//! check is held against the switch itself.

#[path = "../common/cli.rs"]
mod cli;

use std::path::Path;
use std::sync::Arc;

use pleach::adapter::{AdapterDeltas, FloatDelta};
use pleach::base::BaseModel;
use pleach::compile::base_lattice;
use pleach::error::StoreDefect;
use pleach::store::{Changes, Details, ImportOptions, PathFit, Store};
use pleach::testing::adapter::{TinyAdapter, TinyModule};
use pleach::testing::{TinyModel, tiny_hf_model, tiny_hf_model_of};
use pleach::tree::{AdapterTree, NodeSource};
use pleach::{Error, Runtime, WeightName};
use serde_json::json;
use tempfile::TempDir;

use cli::pleach;

const UP: &str = "model.layers.1.mlp.up_proj";

/// A rank-1 delta on `UP` with every entry `size`.
fn deltas(size: f32) -> AdapterDeltas {
    let delta = FloatDelta::LowRank {
        rank: 1,
        lora_a: vec![1.0; 64],
        lora_b: vec![size; 96],
        scaling: 1.0,
    };
    AdapterDeltas::from([(WeightName::new(format!("{UP}.weight")), delta)])
}

/// A made base and a store of it at a headroom of 1.25 with `nodes`.
struct Made {
    dir: TempDir,
    base: BaseModel,
}

impl Made {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        tiny_hf_model(&dir.path().join("base"), &TinyModel::default());
        let base = BaseModel::open(&dir.path().join("base")).unwrap();
        Self { dir, base }
    }

    fn at(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// Each node hangs under the one above it by name.
    fn tree(nodes: &[(&str, f32)]) -> AdapterTree {
        let node = |builder: pleach::tree::TreeBuilder, &(name, size): &(&str, f32)| {
            let parent = name.rsplit_once('/').map_or("/", |(parent, _)| parent);
            builder.node(name, parent, NodeSource::Memory(Arc::new(deltas(size))))
        };
        nodes.iter().fold(AdapterTree::builder(), node).build().unwrap()
    }

    fn store(&self, nodes: &[(&str, f32)]) -> Store {
        let lattice = base_lattice(&self.base, 1.25, |_, _| ()).unwrap();
        let folder = self.dir.path().join("store");
        Store::import(
            &folder,
            &Self::tree(nodes),
            &self.base,
            &lattice,
            ImportOptions::default(),
            |_, _| (),
        )
        .unwrap();
        Store::open(&folder).unwrap()
    }

    /// Whether a switch says yes.
    fn switch(&self, store: &Store, node: &str) -> bool {
        let base = BaseModel::open(self.base.path()).unwrap();
        let mut runtime = Runtime::builder().base_model(base).nodes(store.clone()).open().unwrap();
        match runtime.switch_to(node) {
            Ok(_) => true,
            Err(Error::Overflow { .. }) => false,
            Err(other) => panic!("{other}"),
        }
    }

    /// An adapter on disk that changes `UP` by up to about `size`.
    fn adapter(&self, name: &str, size: f64) -> String {
        let mut adapter = TinyAdapter::new(vec![TinyModule::linear(UP, 96, 64)], 1, 7)
            .with_config(json!({ "layers_to_transform": [1] }));
        // Factors lie within 0.1: a product reaches 0.01 times alpha.
        adapter.alpha = size * 100.0;
        adapter.write(Path::new(&self.at(name))).unwrap();
        self.at(name)
    }
}

/// Sizes around what a row of the made base can hold: the check and the switch change their
/// minds at the same one.
#[test]
fn check_of_a_path_says_what_the_switch_says() {
    let made = Made::new();
    let store = made.store(&[("a", 0.001), ("a/b", 0.001)]);
    let mut said = Vec::new();
    for (k, size) in [0.005, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.3].into_iter().enumerate() {
        let name = format!("a/b/{k}");
        let mut changes = Changes::new();
        changes.publish(&name, store.compile(&deltas(size)).unwrap(), Details::default());
        let checked = store.check_fits(&changes, Some(&made.base), true, |_, _| ());
        let blind = store.check_fits(&changes, None, true, |_, _| ());
        store.apply(&changes).unwrap();
        let fits = made.switch(&store, &name);
        match &checked {
            Ok(report) => assert_eq!((report.checked, report.open_count), (1, 0)),
            Err(Error::Overflow { node, in_store: true, .. }) => assert_eq!(*node, name),
            Err(other) => panic!("{other}"),
        }
        assert_eq!(checked.is_ok(), fits, "{size}");
        // Without the base a yes and a no are true, too; between them it says that it cannot
        // decide.
        match blind {
            Ok(report) if report.open_count == 0 => assert!(fits, "{size}"),
            Ok(report) => {
                assert!(report.open[0].problem.contains("only the base decides (--base)"))
            }
            Err(_) => assert!(!fits, "{size}"),
        }
        match store.check_fit(&name, Some(&made.base)) {
            Ok(fit) => assert!(fits && fit == PathFit::Fits),
            Err(error) => {
                assert!(
                    !fits && error.to_string().contains("import the tree again with at least"),
                    "{error}"
                )
            }
        }
        said.push(fits);
    }
    assert!(said[0] && !said[7], "sizes on both sides: {said:?}");
    let all = store.check_all_fit(Some(&made.base), |_, _| ()).unwrap();
    let unreachable: Vec<_> = all.unreachable.iter().map(|found| &found.node[..]).collect();
    let expected: Vec<_> = (0..8).filter(|&k| !said[k]).map(|k| format!("a/b/{k}")).collect();
    assert_eq!((all.checked, unreachable), (10, expected.iter().map(|name| &name[..]).collect()));
}

/// Everything that changes a path: replace, move, roll back, each also in a batch with others.
#[test]
fn children_that_a_change_leaves_without_room_are_named() {
    let made = Made::new();
    let nodes = [("a", 0.0), ("a/x", 0.02), ("a/x/deep", 0.0), ("a/y", -0.02), ("b", 0.0)];
    let store = made.store(&nodes);
    let check = |changes: &Changes| store.check_fits(changes, Some(&made.base), true, |_, _| ());
    // The largest change that fits alone, so that 0.02 more does not.
    let content = |size: f32| store.compile(&deltas(size)).unwrap();
    let fits_alone = |size: f32| {
        let mut changes = Changes::new();
        changes.replace("b", content(size), Details::default(), None);
        check(&changes).is_ok()
    };
    let size =
        (1..100).map(|k| k as f32 * 0.005).take_while(|&size| fits_alone(size)).last().unwrap();
    assert!(size > 0.01, "{size}");

    let mut changes = Changes::new();
    changes.replace("a", content(size), Details::default(), None);
    let report = check(&changes).unwrap();
    let names: Vec<_> = report.unreachable.iter().map(|found| &found.node[..]).collect();
    assert_eq!((report.checked, names), (4, vec!["a/x", "a/x/deep"]));
    let Some(Error::Store { defect, .. }) = store.unreachable("a", &report) else { panic!() };
    assert!(matches!(*defect, StoreDefect::Unreachable { count: 2, .. }));
    assert!(
        defect
            .to_string()
            .contains("leaves 2 nodes below it that no switch can reach: a/x, a/x/deep"),
        "{defect}"
    );
    // Only the node itself: what is below is not looked at.
    let report = store.check_fits(&changes, Some(&made.base), false, |_, _| ()).unwrap();
    assert_eq!((report.checked, report.unreachable_count), (1, 0));
    // With a smaller child in the same batch it fits.
    changes.replace("a/x", content(-0.01), Details::default(), None);
    assert_eq!(check(&changes).unwrap().unreachable_count, 0);

    store.apply(&changes).unwrap();
    // `b` moves below `a`, which has no space for more of the same sign, and rolling back brings
    // the old `a/x` back.
    store.replace("b", content(0.02), Details::default(), None).unwrap();
    let mut moving = Changes::new();
    moving.move_to("b", "a/b", None);
    assert!(matches!(check(&moving), Err(Error::Overflow { node, .. }) if node == "a/b"));
    let mut back = Changes::new();
    let first = store.history("a/x").unwrap()[0].version.generation;
    back.rollback("a/x", first, None);
    assert!(matches!(check(&back), Err(Error::Overflow { node, .. }) if node == "a/x"));
    // A removal and a move away leave more space, not less.
    let mut away = Changes::new();
    away.move_to("a/x", "x", None).remove("a", true, None);
    let report = check(&away).unwrap();
    assert_eq!((report.checked, report.unreachable_count), (2, 0));
    // Each answer was the switch's.
    store.apply(&moving).unwrap();
    store.apply(&back).unwrap();
    assert!(
        !made.switch(&store, "a/b") && !made.switch(&store, "a/x") && made.switch(&store, "a/y")
    );
}

/// An embedding that was saved with the adapter and trained is not the base's: only a base decides.
#[test]
fn a_copy_of_the_embedding_is_compared_by_every_check() {
    let dir = tempfile::tempdir().unwrap();
    cli::make_base_and_tree(dir.path());
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (base, tree, store) = (at("base"), at("tree"), at("store"));
    pleach(&["store", "import", &tree, &store, "--base", &base]).text();
    let (shape, values) = TinyModel::default().weights()["model.embed_tokens.weight"].clone();
    for (name, factor) in [("same", 1.0), ("other", 1.5)] {
        let made = cli::adapter(2, 1);
        let mut tensors = made.tensors();
        let copy = values.iter().map(|value| value * factor).collect();
        tensors.push((
            "base_model.model.model.embed_tokens.weight".to_owned(),
            [shape[0], shape[1]],
            copy,
        ));
        std::fs::create_dir(at(name)).unwrap();
        std::fs::write(dir.path().join(name).join("adapter_config.json"), made.config_bytes())
            .unwrap();
        let bytes = pleach::testing::adapter::serialize(&tensors, safetensors::Dtype::F32);
        std::fs::write(dir.path().join(name).join("adapter_model.safetensors"), bytes).unwrap();
        let (adapter, is_same) = (at(name), factor == 1.0);
        let inspected = pleach(&["inspect", &adapter, "--base", &base]);
        assert_eq!(
            (inspected.status, inspected.stdout.contains(": yes")),
            (Some(i32::from(!is_same)), is_same)
        );
        let published = pleach(&["store", "publish", &store, name, &adapter, "--base", &base]);
        assert_eq!(published.status, Some(i32::from(!is_same)), "{published:?}");
        let unsure = pleach(&["store", "publish", &store, "unsure", &adapter]).refusal();
        assert!(unsure.contains("--base"), "{unsure}");
    }
}

#[test]
fn publish_and_replace_refuse_what_a_switch_would() {
    let made = Made::new();
    made.store(&[("a", 0.0), ("a/x", 0.02), ("a/y", -0.02)]);
    let (store, base) = (made.at("store"), made.at("base"));
    let (huge, large) = (made.adapter("huge", 5.0), made.adapter("large", 0.5));
    let refusal = pleach(&["store", "publish", &store, "a/z", &large, "--base", &base]).refusal();
    for words in [
        "node a/z: ",
        UP,
        "import the tree again with at least ",
        "pleach store import --headroom ",
    ] {
        assert!(refusal.contains(words), "{refusal}");
    }
    assert!(pleach(&["store", "publish", &store, "a/z", &huge]).refusal().contains("node a/z: "));
    assert!(
        pleach(&["store", "list", &store, "a/z", "--json"]).json()["nodes"]
            .as_array()
            .unwrap()
            .is_empty()
    );

    // A parent that fits alone and leaves no space below.
    let opened = Store::open(Path::new(&store)).unwrap();
    let parent = (1..100).map(|k| f64::from(k) * 0.002).take_while(|&size| {
        let adapter = made.adapter("parent", size);
        let content = opened.compile_adapter(
            Path::new(&adapter),
            None,
            &pleach::adapter::Limits::default(),
            false,
        );
        let mut changes = Changes::new();
        changes.replace("a", content.unwrap(), Details::default(), None);
        opened.check_fits(&changes, Some(&made.base), false, |_, _| ()).is_ok()
    });
    let parent = made.adapter("parent", parent.last().unwrap());
    let content = opened
        .compile_adapter(Path::new(&parent), None, &pleach::adapter::Limits::default(), false)
        .unwrap();
    let mut changes = Changes::new();
    changes.replace("a", content, Details::default(), None);
    let report = opened.check_fits(&changes, Some(&made.base), true, |_, _| ()).unwrap();
    let (lost, count) = (&report.unreachable[0].node, report.unreachable_count);
    let replace = ["store", "publish", &store, "a", &parent, "--replace", "--base", &base];
    let refusal = pleach(&replace).refusal();
    let words = format!("leaves {count} node");
    assert!(
        refusal.contains(&words)
            && refusal.contains(lost)
            && refusal.contains("--accept-unreachable"),
        "{refusal}"
    );
    assert_eq!(opened.get("a").unwrap().version.generation, 1);
    pleach(&[&replace[..], &["--accept-unreachable"]].concat()).text();
    assert!(!made.switch(&opened, lost));
    // What was accepted is what `verify --deep` and `inspect --base` report from now on.
    let verified = pleach(&["store", "verify", &store, "--deep", "--base", &base, "--json"]);
    let report: serde_json::Value = serde_json::from_str(&verified.stdout).unwrap();
    assert_eq!(
        (verified.status, &report["clean"], &report["problem_count"]),
        (Some(1), &json!(false), &json!(0))
    );
    let fit = &report["fit"];
    assert_eq!(
        (&fit["unreachable"][0]["node"], &fit["unreachable_count"]),
        (&json!(lost), &json!(count))
    );
    // The others are verified all the same.
    let walk = ["verify", "--base", &base, "--tree", &store, "--switches", "60", "--device", "cpu"];
    let walked = pleach(&[&walk[..], &["--json"]].concat());
    let report: serde_json::Value = serde_json::from_str(&walked.stdout).unwrap();
    assert_eq!(
        (walked.status, &report["refused"][0]["node"]),
        (Some(1), &json!(lost)),
        "{walked:?}"
    );
    assert!(
        report["compared"].as_u64() > Some(20) && report["mismatched_nodes"] == json!(0),
        "{report}"
    );
    assert_eq!(pleach(&[&walk[..], &["--skip-refused"]].concat()).status, Some(0));
    let inspected = pleach(&["inspect", &store, "--base", &base]);
    assert_eq!(inspected.status, Some(1));
    assert!(
        inspected.stdout.contains(": no: ") && inspected.stdout.contains(&format!("node {lost}: ")),
        "{}",
        inspected.stdout
    );
}

#[test]
fn inspect_and_import_fail_where_an_adapter_or_a_path_does_not_fit() {
    let made = Made::new();
    let base = made.at("base");
    let large = made.adapter("large", 0.5);
    let run = pleach(&["inspect", &large, "--base", &base, "--json"]);
    let answer: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((run.status, &answer["fits"]), (Some(1), &json!(false)));
    let refusal = answer["refusal"].as_str().unwrap();
    let needed = refusal.split("--headroom ").nth(1).unwrap().trim_end_matches(')');
    pleach(&["inspect", &large, "--base", &base, "--headroom", needed]).text();

    // Two levels, each of which fits alone: their sum does not. A third that takes the second back
    // fits.
    let mut size = 0.002;
    while pleach(&["inspect", &made.adapter("alone", size), "--base", &base, "--quiet"]).status
        == Some(0)
    {
        size *= 1.5;
    }
    size /= 1.5;
    for name in ["tree/a", "tree/a/b"] {
        made.adapter(name, size);
    }
    made.adapter("tree/a/b/c", -size);
    let run = pleach(&["inspect", &made.at("tree"), "--base", &base, "--json", "--quiet"]);
    let answer: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let fits: Vec<_> = answer["adapters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| node["fits"].as_bool().unwrap())
        .collect();
    assert_eq!((run.status, fits), (Some(1), vec![true, false, true]));
    assert!(answer["refusal"].as_str().unwrap().starts_with("a/b: node a/b: "), "{answer}");
    let import = |more: &[&str]| {
        let store = made.at("imported");
        pleach(
            &[&["store", "import", &made.at("tree"), &store, "--base", &base, "--quiet"], more]
                .concat(),
        )
    };
    assert!(import(&[]).refusal().contains("node a/b: "));
    let run = import(&["--skip-refused", "--json"]).stdout;
    let run: serde_json::Value = serde_json::from_str(&run).unwrap();
    let refused: Vec<_> = run["refused"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["node"].as_str().unwrap())
        .collect();
    assert_eq!((&run["nodes"], refused), (&json!(1), vec!["a/b", "a/b/c"]));
    pleach(&["store", "verify", &made.at("imported"), "--deep", "--base", &base]).text();
}

/// A base whose every row is one large weight and small ones: maxima never meet, and only the
/// base's integers decide.
#[test]
fn base_decides_what_the_rows_maxima_leave_open() {
    let dir = tempfile::tempdir().unwrap();
    let model = TinyModel::default();
    let mut weights = model.weights();
    let up = &mut weights.get_mut(&format!("{UP}.weight")).unwrap().1;
    up.iter_mut().enumerate().for_each(|(k, w)| *w = if k % 64 == 0 { 1.0 } else { 0.001 });
    let folder = dir.path().join("base");
    tiny_hf_model_of(&folder, &model, &weights);
    let made = Made { dir, base: BaseModel::open(&folder).unwrap() };
    let store = made.store(&[]);
    let at = |column: usize| {
        let mut lora_a = vec![0.0; 64];
        lora_a[column] = 1.0;
        let delta = FloatDelta::LowRank { rank: 1, lora_a, lora_b: vec![0.5; 96], scaling: 1.0 };
        let mut changes = Changes::new();
        let deltas = AdapterDeltas::from([(WeightName::new(format!("{UP}.weight")), delta)]);
        changes.publish(
            &format!("at{column}"),
            store.compile(&deltas).unwrap(),
            Details::default(),
        );
        changes
    };
    for (column, fits) in [(0, false), (5, true)] {
        let changes = at(column);
        let blind = store.check_fits(&changes, None, true, |_, _| ()).unwrap();
        assert_eq!(
            (blind.open_count, blind.unreachable_count),
            (1, 0),
            "1.0 and 0.5 may meet, or not"
        );
        assert_eq!(store.check_fits(&changes, Some(&made.base), true, |_, _| ()).is_ok(), fits);
        store.apply(&changes).unwrap();
        assert_eq!(made.switch(&store, &format!("at{column}")), fits);
    }
    let run = pleach(&["store", "verify", &made.at("store"), "--deep"]);
    assert_eq!(run.status, Some(0), "what is open is no fault");
    assert!(
        run.stderr.contains("warning: at0: ") && run.stderr.contains("warning: at5: "),
        "{}",
        run.stderr
    );
    let run = pleach(&["store", "verify", &made.at("store"), "--deep", "--base", &made.at("base")]);
    assert_eq!((run.status, &run.stderr[..]), (Some(1), ""));
    assert!(
        run.stdout.contains("unreachable      1\nproblem          node at0: "),
        "{}",
        run.stdout
    );
}
