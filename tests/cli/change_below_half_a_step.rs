//! An adapter trained with a small rate, or served with an alpha of 1, changes each weight by less
//! than the lattice's half step: it loads, it switches, and it does nothing, or half of what it
//! should. Nothing failed, so nothing was said. Here one figure a node says what share of its change
//! is kept: 1 of all, 0 of nothing, and a warning below 99 %.

#[path = "../common/cli.rs"]
mod cli;

use std::sync::{Arc, Mutex};

use pleach::adapter::{AdapterDeltas, FloatDelta};
use pleach::base::BaseModel;
use pleach::compile::base_lattice;
use pleach::compile::compile_node;
use pleach::lattice::{Grid, KEPT_ENOUGH, Kept};
use pleach::testing::adapter::TinyAdapter;
use pleach::testing::{TinyModel, tiny_hf_model};
use pleach::tree::{AdapterTree, NodeSource};
use pleach::{Runtime, WeightName};
use serde_json::json;

use cli::{keys, make_base_and_tree, modules, pleach};

/// A matrix of 64 rows of 96 columns whose rows all have the step `2^-14`.
fn grid() -> Grid {
    Grid {
        cols: 96,
        steps: vec![f32::powi(2.0, -14); 64],
        row_max: vec![20000; 64],
        headroom: 1.25,
    }
}

/// What is kept of a delta on that matrix.
fn kept(delta: FloatDelta) -> Kept {
    let (grid, deltas) = (grid(), AdapterDeltas::from([(WeightName::new("w"), delta)]));
    compile_node(&deltas, |_| Some(&grid)).unwrap().1
}

/// `size` steps in every entry but for the sign, as rank 1.
fn steps(size: f32) -> FloatDelta {
    let sign = |k: u16| if k.is_multiple_of(3) { -1.0 } else { 1.0 };
    let lora_a = (0..96).map(sign).collect();
    let lora_b = (0..64).map(|i| sign(i) * size * f32::powi(2.0, -14)).collect();
    FloatDelta::LowRank { rank: 1, lora_a, lora_b, scaling: 1.0 }
}

fn share(delta: FloatDelta) -> f64 {
    kept(delta).share().unwrap()
}

#[test]
fn whole_steps_are_kept_and_what_lies_below_half_a_step_is_not() {
    // The values are those of the definition: every entry is off by the same part of itself.
    for (size, expected) in [
        (1.0, 1.0),
        (3.0, 1.0),
        (0.49, 0.0),
        (1e-6, 0.0),
        (1e-30, 0.0),
        (2.4, 2.0 / 2.4),
        (1.5, 0.667),
    ] {
        let found = share(steps(size));
        assert!((found - expected).abs() < 2e-3, "{size} steps: {found}");
    }
    assert!(kept(steps(2.4)).is_low() && !kept(steps(3.0)).is_low());
    let dense = |size: f32| FloatDelta::Dense { values: vec![size * f32::powi(2.0, -14); 64 * 96] };
    for (size, expected) in [(7.0, 1.0), (0.25, 0.0), (0.75, 1.0 - 0.25 / 0.75)] {
        assert!((share(dense(size)) - expected).abs() < 1e-6, "{size} steps, dense");
    }
    let sparse =
        |size: f32| FloatDelta::Sparse { entries: vec![(5, 7, size * f32::powi(2.0, -14))] };
    assert!((share(sparse(4.25)) - 4.0 / 4.25).abs() < 1e-6 && share(sparse(0.2)) == 0.0);
}

/// A change of nothing is kept whole: there is no share, and nothing to warn of.
#[test]
fn zeros_have_no_share() {
    let zeros = FloatDelta::LowRank {
        rank: 2,
        lora_a: vec![1.0; 2 * 96],
        lora_b: vec![0.0; 2 * 64],
        scaling: 1.0,
    };
    for delta in [
        zeros,
        FloatDelta::Dense { values: vec![0.0; 64 * 96] },
        FloatDelta::Sparse { entries: vec![] },
    ] {
        assert!(kept(delta).share().is_none());
    }
    assert!(!Kept::default().is_low());
}

/// Random changes on a random base, by their size beside the weights.
#[test]
fn smaller_changes_keep_less() {
    let dir = tempfile::tempdir().unwrap();
    tiny_hf_model(dir.path(), &TinyModel::default());
    let base = BaseModel::open(dir.path()).unwrap();
    let lattice = base_lattice(&base, 1.25, |_, _| ()).unwrap();
    let adapter = TinyAdapter::new(modules().to_vec(), 4, 5);
    let adapter = pleach::adapter::PeftAdapter::from_bytes(
        &adapter.config_bytes(),
        adapter.tensor_bytes(),
        &pleach::adapter::Limits::default(),
    );
    let whole = adapter.unwrap().deltas(&lattice.shapes("made")).unwrap();
    let share = |by: f64| {
        let mut deltas = whole.clone();
        for delta in deltas.values_mut() {
            let FloatDelta::LowRank { scaling, .. } = delta else { panic!("LoRA") };
            *scaling *= by;
        }
        let (_, kept) = compile_node(&deltas, |name| lattice.grid(name)).unwrap();
        (kept.share().unwrap(), kept)
    };
    let shares = [1.0, 1e-2, 1e-3, 1e-4, 1e-6].map(|by| share(by).0);
    assert!(shares.windows(2).all(|pair| pair[0] > pair[1]), "{shares:?}");
    assert!(shares[0] > KEPT_ENOUGH && shares[4] < 1e-9, "{shares:?}");
    let (_, kept) = share(1e-3);
    let warning = kept.warning(false);
    assert!(
        warning.contains("most is lost in model.layers.0.self_attn.") && warning.contains(" %"),
        "{warning}"
    );
}

/// The step of a row comes from its largest weight: one that is huge leaves nothing of the row's
/// change.
#[test]
fn row_with_one_huge_weight_loses_its_change() {
    let mut grid = grid();
    grid.steps[9] *= 1000.0;
    let deltas = AdapterDeltas::from([(WeightName::new("w"), steps(8.0))]);
    let (_, kept) = compile_node(&deltas, |_| Some(&grid)).unwrap();
    // One row of 64 is gone: 1 − 1 / √64.
    assert!((kept.share().unwrap() - (1.0 - 0.125)).abs() < 1e-3, "{kept:?}");
    assert_eq!(kept.worst().unwrap().0.as_str(), "w");
}

/// A lattice with more space than the node needs could be finer: the advice names a headroom that
/// holds it.
#[test]
fn smaller_headroom_is_advised_where_there_is_one() {
    let mut wide = grid();
    wide.headroom = 8.0;
    wide.row_max = vec![4096; 64];
    let deltas = AdapterDeltas::from([(WeightName::new("w"), steps(2.4))]);
    let (_, kept) = compile_node(&deltas, |_| Some(&wide)).unwrap();
    let (headroom, share) = kept.smaller_headroom().unwrap();
    assert!(
        (1.01..1.1).contains(&headroom) && share > kept.share().unwrap(),
        "{headroom}, {share}"
    );
    assert!(
        kept.warning(false).contains(&format!(
            "open the base with a headroom of {headroom} (--headroom {headroom})"
        ))
    );
    assert!(kept.warning(true).contains(&format!("import again with a headroom of {headroom}")));
    // At 1.25 with the base's largest integers at 26214 there is none to speak of.
    let mut usual = grid();
    usual.row_max = vec![26214; 64];
    let (_, kept) = compile_node(&deltas, |_| Some(&usual)).unwrap();
    assert!(
        kept.smaller_headroom().is_none()
            && kept.warning(true).contains("no smaller headroom would help much")
    );
}

/// Collects warnings.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }
    fn event(&self, event: &tracing::Event<'_>) {
        struct Line<'a>(&'a Warnings);
        impl tracing::field::Visit for Line<'_> {
            fn record_debug(&mut self, _: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0.0.lock().unwrap().push(format!("{value:?}"));
            }
        }
        event.record(&mut Line(self));
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn first_switch_says_what_is_kept_and_warns_once() {
    let dir = tempfile::tempdir().unwrap();
    tiny_hf_model(dir.path(), &TinyModel::default());
    let name = "model.layers.0.self_attn.q_proj.weight";
    let node = |size: f32| {
        let delta = FloatDelta::LowRank {
            rank: 1,
            lora_a: vec![1.0; 64],
            lora_b: vec![size; 64],
            scaling: 1.0,
        };
        NodeSource::Memory(Arc::new(AdapterDeltas::from([(WeightName::new(name), delta)])))
    };
    let builder =
        AdapterTree::builder().node("good", "/", node(0.002)).node("faint", "/", node(1e-7));
    let tree = builder.node("empty", "/", NodeSource::Memory(Arc::default())).build().unwrap();
    let warnings = Warnings::default();
    tracing::subscriber::with_default(warnings.clone(), || {
        let mut runtime = Runtime::builder()
            .base(dir.path())
            .adapter_tree(tree)
            .delta_budget_bytes(1)
            .open()
            .unwrap();
        let good = runtime.switch_to("good").unwrap().kept;
        assert!(good["good"] > KEPT_ENOUGH, "{good:?}");
        assert!(runtime.switch_to("empty").unwrap().kept.is_empty());
        for _ in 0..2 {
            let faint = runtime.switch_to("faint").unwrap();
            assert_eq!(faint.kept["faint"].to_bits(), 0.0_f64.to_bits(), "nothing is left");
            // Nothing stays in memory, so it is compiled again; the figure comes again, the warning
            // does not.
            runtime.switch_to("/").unwrap();
        }
    });
    let warnings = warnings.0.lock().unwrap();
    let about: Vec<_> = warnings.iter().filter(|line| line.contains("the lattice keeps")).collect();
    assert!(
        matches!(about[..], [line] if line.starts_with("faint: the lattice keeps 0.0 % of its change") && line.contains(name)),
        "{about:?}"
    );
}

#[test]
fn inspect_import_and_publish_tell_what_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    make_base_and_tree(dir.path());
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (base, tree, store, faint) = (at("base"), at("tree"), at("store"), at("faint"));
    let mut adapter = TinyAdapter::new(modules().to_vec(), 2, 9)
        .with_config(json!({ "layers_to_transform": [0] }));
    adapter.alpha = 1e-6;
    adapter.write(faint.as_ref()).unwrap();

    let answer =
        pleach(&["inspect", &at("tree/fr"), "--base", &base, "--headroom", "4", "--json"]).json();
    assert!(
        answer["kept"].as_f64().unwrap() > KEPT_ENOUGH && answer["fits"] == json!(true),
        "{answer}"
    );
    assert_eq!(pleach(&["inspect", &at("tree/fr"), "--json"]).json()["kept"], json!(null));
    let low = pleach(&["inspect", &faint, "--base", &base]);
    assert_eq!(low.status, Some(0));
    assert!(low.stdout.contains("kept        0.0 % of its change"), "{}", low.stdout);
    assert!(
        low.stderr.contains("warning: ") && low.stderr.contains("the lattice keeps 0.0 %"),
        "{}",
        low.stderr
    );

    let import =
        pleach(&["store", "import", &tree, &store, "--base", &base, "--headroom", "4", "--json"])
            .json();
    assert_eq!(keys(&import["kept"]), ["fr", "fr/alice", "fr/bob"]);
    let low = pleach(&["store", "publish", &store, "fr/faint", &faint, "--base", &base, "--json"]);
    let answer: serde_json::Value = serde_json::from_str(&low.stdout).unwrap();
    assert_eq!((low.status, &answer["kept"]), (Some(0), &json!(0.0)));
    assert!(low.stderr.contains("warning: fr/faint: the lattice keeps 0.0 %"), "{}", low.stderr);
    let text =
        pleach(&["store", "publish", &store, "fr/carol", &at("tree/fr/bob"), "--base", &base])
            .text();
    assert!(text.ends_with(" % of its change kept\n"), "{text}");
}
