//! A server that looks at its adapters only when it starts serves yesterday's model to today's
//! user; one that looks while they are being replaced serves a mixture of both. A runtime over a
//! store takes each change whole at its next switch, and what it has added before is what it
//! subtracts.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::made;
use pleach::base::BaseModel;
use pleach::compile::base_lattice;
use pleach::error::{StoreDefect, TreeDefect};
use pleach::lattice::BaseLattice;
use pleach::runtime::{RuntimeBuilder, StalePolicy};
use pleach::store::{Changes, Content, Details, ImportOptions, Store, StoreInfo};
use pleach::testing::adapter::{TinyAdapter, TinyModule};
use pleach::testing::{TinyModel, tiny_hf_model};
use pleach::tree::AdapterTree;
use pleach::{Error, Runtime};
use rand::SeedableRng;
use rand::rngs::StdRng;

const HEADROOM: f32 = 4.0;

/// A made base and its lattice.
struct Made {
    dir: tempfile::TempDir,
    base: BaseModel,
    lattice: BaseLattice,
}

impl Made {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        tiny_hf_model(&dir.path().join("base"), &TinyModel::default());
        let base = BaseModel::open(&dir.path().join("base")).unwrap();
        let lattice = base_lattice(&base, HEADROOM, |_, _| ()).unwrap();
        Self { dir, base, lattice }
    }

    fn store_path(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// An empty store.
    fn store(&self) -> Store {
        let base_hash = self.base.content_hash().to_owned();
        let info = StoreInfo { base_name: "made".into(), base_hash, ..StoreInfo::default() };
        Store::create(&self.store_path(), info, &self.lattice).unwrap()
    }

    fn builder(&self) -> RuntimeBuilder {
        Runtime::builder().base(self.dir.path().join("base")).tree(self.store_path())
    }

    /// A runtime over the store.
    fn open(&self) -> Runtime {
        self.builder().open().unwrap()
    }

    /// The fingerprint at `node` of a runtime that was never anywhere else.
    fn fresh(&self, node: &str) -> String {
        fingerprint_at(&mut self.open(), node)
    }
}

fn fingerprint_at(runtime: &mut Runtime, node: &str) -> String {
    runtime.switch_to(node).unwrap();
    runtime.fingerprint().unwrap().to_string()
}

/// What an adapter made from `seed` compiles to.
fn content(store: &Store, seed: u64) -> Content {
    let dir = tempfile::tempdir().unwrap();
    let modules = vec![
        TinyModule::linear("model.layers.1.mlp.up_proj", 96, 64),
        TinyModule::linear("model.layers.0.self_attn.q_proj", 64, 64),
    ];
    TinyAdapter::new(modules, 3, seed).write(dir.path()).unwrap();
    store.compile_adapter(dir.path(), None, &Default::default(), false).unwrap()
}

fn publish(store: &Store, name: &str, seed: u64) -> u64 {
    store.publish(name, content(store, seed), Details::default()).unwrap()
}

fn replace(store: &Store, name: &str, seed: u64) -> u64 {
    store.replace(name, content(store, seed), Details::default(), None).unwrap()
}

fn is_unknown<T>(result: pleach::Result<T>) -> bool {
    matches!(result, Err(Error::Tree(defect)) if matches!(*defect, TreeDefect::UnknownNode { .. }))
}

/// Every kind of delta: low-rank, dense and sparse, on a tied and an untied model.
#[test]
fn an_imported_tree_has_the_fingerprints_of_its_folder_at_every_node() {
    for (seed, tied) in [(1, true), (2, false)] {
        let dir = tempfile::tempdir().unwrap();
        let base = made::base(
            &dir.path().join("base"),
            &TinyModel { tied, layers: 1, ..made::odd_model() },
        );
        let tree = made::tree(&mut StdRng::seed_from_u64(seed), &base, 12, 1e-3);
        let lattice = base_lattice(&base, HEADROOM, |_, _| ()).unwrap();
        let path = dir.path().join("store");
        let report =
            Store::import(&path, &tree, &base, &lattice, ImportOptions::default(), |_, _| ())
                .unwrap();
        assert_eq!(report.nodes, tree.len() as u64 - 1);
        let builder = || Runtime::builder().base(dir.path().join("base"));
        let mut folder = builder().adapter_tree(tree.clone()).headroom(HEADROOM).open().unwrap();
        let mut store = builder().tree(&path).open().unwrap();
        for node in tree.nodes() {
            let name = tree.name(node);
            assert_eq!(
                fingerprint_at(&mut folder, name),
                fingerprint_at(&mut store, name),
                "{name}"
            );
        }
        let report = store.verify(200, 1, 7, |_| ()).unwrap();
        assert!(report.is_clean() && report.nodes_visited == tree.len(), "{report:?}");
    }
}

#[test]
fn a_change_is_taken_at_the_next_switch_and_undone_as_it_was_added() {
    let made = Made::new();
    let store = made.store();
    for (name, seed) in [("fr", 1), ("fr/alice", 2), ("fr/bob", 3)] {
        publish(&store, name, seed);
    }
    let mut runtime = made.open();
    let root = runtime.fingerprint().unwrap().to_string();
    let before = fingerprint_at(&mut runtime, "fr/alice");
    replace(&store, "fr/alice", 4);
    assert_eq!(runtime.fingerprint().unwrap().to_string(), before, "nothing moves until a switch");
    let after = fingerprint_at(&mut runtime, "fr/alice");
    assert!(after != before && after == made.fresh("fr/alice"));
    replace(&store, "fr", 5);
    assert_eq!(fingerprint_at(&mut runtime, "fr/bob"), made.fresh("fr/bob"));
    store.remove("fr/bob", false, None).unwrap();
    assert!(is_unknown(runtime.switch_to("fr/bob")) && is_unknown(runtime.prefetch("fr/bob")));
    assert_eq!(runtime.current(), "fr/bob");
    store.move_to("fr", "it/fr", None).unwrap();
    assert_eq!(fingerprint_at(&mut runtime, "it/fr/alice"), made.fresh("it/fr/alice"));
    store
        .rollback("it/fr/alice", store.get("it/fr/alice").unwrap().version.generation - 1, None)
        .unwrap_err();
    store.compact(|_, _| ()).unwrap();
    assert_eq!(fingerprint_at(&mut runtime, "it/fr"), made.fresh("it/fr"));
    assert_eq!(fingerprint_at(&mut runtime, "/"), root);
    assert!(runtime.verify(50, 1, 1, |_| ()).unwrap().is_clean());
}

/// A node's weights are bound to what its parent was when it was trained.
#[test]
fn a_node_trained_on_other_content_of_an_ancestor_is_told_or_refused() {
    let made = Made::new();
    let store = made.store();
    for (name, seed) in [("fr", 1), ("fr/x", 2), ("fr/x/alice", 3)] {
        publish(&store, name, seed);
    }
    let open = |policy| made.builder().stale_policy(policy).open().unwrap();
    let mut strict = open(StalePolicy::Refuse);
    strict.switch_to("fr/x/alice").unwrap();
    replace(&store, "fr", 4);
    let error = strict.switch_to("fr/x/alice").unwrap_err();
    assert!(
        error.to_string().contains("fr/x was trained on content 1 of fr, which now has content 4"),
        "{error}"
    );
    assert!(
        matches!(error, Error::Store { defect, .. } if matches!(*defect, StoreDefect::Stale { .. }))
    );
    strict.switch_to("fr").unwrap();
    open(StalePolicy::Warn).switch_to("fr/x/alice").unwrap();
    open(StalePolicy::Accept).switch_to("fr/x/alice").unwrap();
    // The content it was trained on is back, in a new generation.
    store.rollback("fr", 1, None).unwrap();
    strict.switch_to("fr/x/alice").unwrap();
    store.move_to("fr", "de", None).unwrap();
    strict.switch_to("de/x/alice").unwrap();
}

/// "was trained on content 1 of /, which now has content 0": the base has but one content, and was
/// never its parent.
#[test]
fn a_node_that_was_moved_is_told_where_it_was_trained() {
    let made = Made::new();
    let store = made.store();
    for (name, seed) in [("fr", 1), ("fr/x", 2), ("it", 3), ("y", 4)] {
        publish(&store, name, seed);
    }
    let mut strict = made.builder().stale_policy(StalePolicy::Refuse).open().unwrap();
    let mut refused = |node: &str, expected: &str| {
        let error = strict.switch_to(node).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    store.move_to("fr/x", "x", None).unwrap();
    refused("x", "x was trained under fr, on its content 1, but hangs under /; move it back");
    store.move_to("x", "it/x", None).unwrap();
    refused(
        "it/x",
        "it/x was trained under fr, on its content 1, but hangs under it; move it back",
    );
    store.move_to("fr", "de", None).unwrap();
    refused("it/x", "it/x was trained under de, on its content 1, but hangs under it");
    store.move_to("y", "it/y", None).unwrap();
    refused(
        "it/y",
        "it/y was trained on the base itself, but hangs under it, which has content 3; move it back",
    );
    store.remove("de", false, None).unwrap();
    refused("it/x", "it/x was trained under de, on its content 1");
    store.move_to("it/x", "x", None).unwrap();
    store.compact(|_, _| ()).unwrap();
    refused(
        "x",
        "x was trained on content 1 of a node that is not there any more, but hangs under /",
    );
    // Back where it was it is what it was.
    store.move_to("it/y", "y", None).unwrap();
    strict.switch_to("y").unwrap();
}

#[test]
fn another_base_or_headroom_is_refused() {
    let made = Made::new();
    publish(&made.store(), "fr", 1);
    let other = made.dir.path().join("other");
    tiny_hf_model(&other, &TinyModel { seed: 9, ..TinyModel::default() });
    let error = Runtime::builder().base(&other).tree(made.store_path()).open().unwrap_err();
    assert!(
        matches!(&error, Error::Store { defect, .. } if matches!(**defect, StoreDefect::WrongBase { .. })),
        "{error}"
    );
    let error = made.builder().headroom(1.25).open().unwrap_err();
    assert!(error.to_string().contains("a headroom of 4, but 1.25 was asked for"), "{error}");
    made.builder().headroom(HEADROOM).open().unwrap();
}

/// What a runtime remembers of a store is bounded by what its caches hold, not by what it has seen.
#[test]
fn the_versions_that_are_held_stay_few() {
    let made = Made::new();
    let store = made.store();
    let mut changes = Changes::new();
    changes.publish("fr", content(&store, 1), Details::default());
    let leaf = content(&store, 2);
    for user in 0..6000 {
        changes.publish(&format!("fr/u{user}"), leaf.clone(), Details::default());
    }
    store.apply(&changes).unwrap();
    let mut runtime = made
        .builder()
        .delta_budget_bytes(usize::try_from(leaf.bytes()).unwrap() * 10)
        .open()
        .unwrap();
    let first = fingerprint_at(&mut runtime, "fr/u0");
    let mut most = 0;
    for user in 0..6000 {
        runtime.switch_to(&format!("fr/u{user}")).unwrap();
        most = most.max(runtime.held_versions());
    }
    assert!((10..16).contains(&most), "{most} versions were held at most");
    assert!(runtime.cache_stats().nodes <= 12);
    assert_eq!(fingerprint_at(&mut runtime, "fr/u17"), first);
    assert_eq!(runtime.children("fr", Some("fr/u10"), 2).unwrap(), ["fr/u100", "fr/u1000"]);
}

/// The names, and by how much their seeds differ.
const NODES: [(&str, u64); 3] = [("fr", 0), ("fr/alice", 100), ("fr/bob", 200)];
/// States that the publisher goes through.
const STATES: usize = 6;
/// Names the store in the publisher's environment.
const STORE_VARIABLE: &str = "PLEACH_TEST_PUBLISH_TO";

/// The other process: replaces all nodes together, over and over; nothing without a store to do it
/// to.
#[test]
fn publisher() {
    let Some(path) = std::env::var_os(STORE_VARIABLE) else { return };
    let store = Store::open(Path::new(&path)).unwrap();
    let contents: Vec<Vec<Content>> = (0..STATES as u64)
        .map(|state| NODES.iter().map(|(_, by)| content(&store, by + state)).collect())
        .collect();
    for round in 0.. {
        let mut changes = Changes::new();
        for ((name, _), content) in NODES.iter().zip(&contents[round % STATES]) {
            changes.replace(name, content.clone(), Details::default(), None);
        }
        store.apply(&changes).unwrap();
        if round % 50 == 49 {
            store.compact(|_, _| ()).unwrap();
        }
    }
}

/// Three seconds, or as many as PLEACH_STORE_SECONDS says.
#[test]
fn a_runtime_beside_a_publishing_process_sees_committed_states_alone() {
    let seconds = std::env::var("PLEACH_STORE_SECONDS").map_or(3, |text| text.parse().unwrap());
    let made = Made::new();
    let store = made.store();
    let mut expected = Vec::new();
    for state in 0..STATES as u64 {
        let mut changes = Changes::new();
        for (name, by) in NODES {
            match state {
                0 => changes.publish(name, content(&store, by), Details::default()),
                _ => changes.replace(name, content(&store, by + state), Details::default(), None),
            };
        }
        store.apply(&changes).unwrap();
        let mut runtime = made.open();
        expected.push(NODES.map(|(name, _)| fingerprint_at(&mut runtime, name)));
    }
    let mut publisher = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "publisher", "--nocapture"])
        .env(STORE_VARIABLE, made.store_path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut runtime = made.builder().stale_policy(StalePolicy::Accept).open().unwrap();
    let root = runtime.fingerprint().unwrap();
    let (start, mut seen) = (Instant::now(), [0_u64; STATES]);
    for turn in 0.. {
        if start.elapsed() > Duration::from_secs(seconds) {
            break;
        }
        let node = turn % NODES.len();
        let found = fingerprint_at(&mut runtime, NODES[node].0);
        let state = expected.iter().position(|fingerprints| fingerprints[node] == found);
        seen[state.unwrap_or_else(|| panic!("{} at a state that never was", NODES[node].0))] += 1;
    }
    assert!(publisher.try_wait().unwrap().is_none(), "the publisher ended early");
    publisher.kill().unwrap();
    publisher.wait().unwrap();
    runtime.switch_to("/").unwrap();
    assert_eq!(runtime.fingerprint().unwrap(), root);
    println!("switches by state: {seen:?}, {} commits", store.stats().unwrap().commits);
    assert!(
        seen.iter().filter(|&&count| count > 0).count() > 1,
        "nothing changed meanwhile: {seen:?}"
    );
    assert!(store.verify(true, |_, _| ()).unwrap().is_clean());
}

/// The real tree: the store has the folder's fingerprints, and opens without reading an adapter.
#[test]
fn the_real_tree_has_the_same_fingerprints_from_a_store() {
    let Some(path) = pleach::testing::smollm2_base() else { return };
    let folder = common::golden::Golden::load().tree;
    let tree = AdapterTree::open(&folder).unwrap();
    let base = BaseModel::open(&path).unwrap();
    let lattice = base_lattice(&base, 1.25, |_, _| ()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    Store::import(
        &store,
        &tree,
        &base,
        &lattice,
        ImportOptions { keep_files: true, ..ImportOptions::default() },
        |_, _| (),
    )
    .unwrap();
    let mut from_folder = Runtime::builder().base(&path).tree(&folder).open().unwrap();
    let mut from_store = Runtime::builder().base(&path).tree(&store).open().unwrap();
    assert_eq!(from_store.store_stats().unwrap().unwrap().reads, 0);
    for node in tree.nodes() {
        let name = tree.name(node);
        assert_eq!(
            fingerprint_at(&mut from_folder, name),
            fingerprint_at(&mut from_store, name),
            "{name}"
        );
    }
}
