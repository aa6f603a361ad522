//! A store through its API: what is published is found, and only that.

use std::collections::BTreeMap;
use std::path::Path;

use super::*;
use crate::WeightName;
use crate::adapter::AdapterDeltas;
use crate::compile::compile_node;
use crate::error::TreeDefect;
use crate::lattice::Grid;
use crate::testing::store::{deltas, info, lattice};

fn content(store: &Store, seed: u16) -> Content {
    store.compile(&deltas(seed)).unwrap()
}

fn new_store(folder: &Path) -> Store {
    Store::create(&folder.join("store"), info(), &lattice()).unwrap()
}

/// fr, fr/alice, fr/bob and de.
fn small_store(folder: &Path) -> Store {
    let store = new_store(folder);
    let mut changes = Changes::new();
    for (seed, name) in [(1, "fr"), (2, "fr/alice"), (3, "fr/bob"), (4, "de")] {
        changes.publish(name, content(&store, seed), Details::default());
    }
    assert_eq!(store.apply(&changes).unwrap(), [1, 2, 3, 4]);
    store
}

fn read(store: &Store, name: &str) -> CompiledNode {
    store.read(&store.get(name).unwrap().version.location).unwrap()
}

fn compiled(store: &Store, seed: u16) -> CompiledNode {
    let lattice = store.lattice().unwrap();
    compile_node(&deltas(seed), |name| lattice.grid(name)).unwrap().0
}

fn defect(result: Result<impl Sized>) -> StoreDefect {
    match result {
        Err(Error::Store { defect, .. }) => *defect,
        Err(error) => panic!("another error: {error}"),
        Ok(_) => panic!("it was accepted"),
    }
}

fn is_unknown(result: Result<impl Sized>) -> bool {
    matches!(result, Err(Error::Tree(defect)) if matches!(*defect, TreeDefect::UnknownNode { .. }))
}

#[test]
fn what_is_published_is_found_by_another_handle() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store(folder.path());
    let other = Store::open(store.folder()).unwrap();
    assert_eq!(read(&other, "/fr/alice/"), compiled(&store, 2));
    assert_eq!(other.children("/", None, 10).unwrap(), ["de", "fr"]);
    assert_eq!(other.children("fr", Some("fr/alice"), 10).unwrap(), ["fr/bob"]);
    let names = |prefix, after, limit| -> Vec<String> {
        other.list(prefix, after, limit).unwrap().into_iter().map(|node| node.name).collect()
    };
    assert_eq!(names("fr", None, 10), ["fr", "fr/alice", "fr/bob"]);
    assert_eq!(names("fr/", Some("fr/alice"), 10), ["fr/bob"]);
    assert_eq!(names("", None, 2), ["de", "fr"]);
    assert_eq!(names("x", None, 2), [""; 0]);
    let path: Vec<String> =
        other.path("fr/bob").unwrap().into_iter().map(|node| node.name).collect();
    assert_eq!(path, ["fr", "fr/bob"]);
    assert_eq!(other.get("fr/bob").unwrap().version.trained_on, 1);
    assert_eq!(other.lattice().unwrap().hash(), lattice().hash());
    store.publish("fr/carol", content(&store, 5), Details::default()).unwrap();
    assert_eq!(read(&other, "fr/carol"), compiled(&store, 5));
    assert_eq!(other.len().unwrap(), 5);
    assert!(store.verify(true, |_, _| ()).unwrap().is_clean());
}

#[test]
fn a_name_that_is_not_there_is_refused_with_those_near_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store(folder.path());
    let error = store.get("fr/alise").unwrap_err().to_string();
    assert!(error.contains("did you mean fr/alice"), "{error}");
    assert!(is_unknown(store.children("x", None, 1)) && is_unknown(store.history("x")));
    assert!(is_unknown(store.replace("x", content(&store, 1), Details::default(), None)));
    assert!(matches!(defect(store.remove("/", true, None)), StoreDefect::Root { .. }));
}

#[test]
fn a_change_expects_the_generation_it_was_told() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store(folder.path());
    let replace =
        |expected| store.replace("fr/alice", content(&store, 9), Details::default(), expected);
    assert_eq!(replace(Some(2)).unwrap(), 5);
    let mismatch = defect(replace(Some(2)));
    assert!(
        matches!(mismatch, StoreDefect::GenerationMismatch { expected: 2, found: 5, .. }),
        "{mismatch}"
    );
    assert_eq!(read(&store, "fr/alice"), compiled(&store, 9));
    assert!(matches!(
        defect(store.publish("fr/alice", content(&store, 1), Details::default())),
        StoreDefect::NodeExists { generation: 5, .. }
    ));
}

#[test]
fn a_batch_is_made_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store(folder.path());
    let mut changes = Changes::new();
    changes.publish("de/eva", content(&store, 7), Details::default());
    changes.remove("fr", false, None);
    assert!(matches!(defect(store.apply(&changes)), StoreDefect::HasChildren { .. }));
    assert!(is_unknown(store.get("de/eva")));
    assert_eq!(store.stats().unwrap().generation, 4);
    let mut changes = Changes::new();
    changes.remove("de", false, None).replace("de", content(&store, 7), Details::default(), None);
    assert!(is_unknown(store.apply(&changes)), "it is gone in the batch, and there outside");
}

#[test]
fn a_removed_node_comes_back_by_rollback_until_compaction() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store(folder.path());
    store.remove("fr", true, None).unwrap();
    assert!(is_unknown(store.get("fr/bob")));
    assert!(matches!(defect(store.rollback("fr/bob", 3, None)), StoreDefect::UnknownParent { .. }));
    store.rollback("fr", 1, None).unwrap();
    store.rollback("fr/bob", 3, None).unwrap();
    let bob = store.get("fr/bob").unwrap().version;
    assert_eq!((bob.content_generation, bob.trained_on), (3, 1));
    assert_eq!(read(&store, "fr/bob"), compiled(&store, 3));
    let known = defect(store.rollback("fr/bob", 99, None)).to_string();
    assert!(known.contains("it has 3"), "{known}");
    store.compact(|_, _| ()).unwrap();
    assert!(is_unknown(store.rollback("fr/alice", 2, None)));
    assert_eq!(read(&store, "fr/bob"), compiled(&store, 3));
    assert!(store.verify(true, |_, _| ()).unwrap().is_clean());
}

#[test]
fn a_moved_node_takes_what_hangs_below_it_along() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store(folder.path());
    assert!(matches!(defect(store.move_to("fr", "fr/x", None)), StoreDefect::BelowItself { .. }));
    assert!(matches!(defect(store.move_to("fr", "de", None)), StoreDefect::NodeExists { .. }));
    store.move_to("fr", "de/fr", None).unwrap();
    assert!(is_unknown(store.get("fr")) && is_unknown(store.get("fr/alice")));
    let alice = store.get("de/fr/alice").unwrap().version;
    assert_eq!(
        (alice.parent.as_str(), alice.content_generation, alice.trained_on),
        ("de/fr", 2, 1)
    );
    assert_eq!(read(&store, "de/fr/alice"), compiled(&store, 2));
    assert!(store.verify(true, |_, _| ()).unwrap().is_clean());
}

#[test]
fn a_parent_may_be_named_and_loops_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store(folder.path());
    let under = |parent: &str| Details { parent: Some(parent.into()), ..Details::default() };
    store.publish("eva", content(&store, 6), under("fr/alice")).unwrap();
    assert_eq!(store.children("fr/alice", None, 9).unwrap(), ["eva"]);
    let looped = defect(store.replace("fr", content(&store, 6), under("eva"), None));
    assert!(matches!(looped, StoreDefect::BelowItself { .. }), "{looped}");
    store.move_to("fr", "it", None).unwrap();
    assert_eq!(store.get("eva").unwrap().version.parent, "it/alice");
}

#[test]
fn segments_roll_over_and_compaction_gives_their_room_back() {
    let folder = tempfile::tempdir().unwrap();
    let options = StoreOptions { segment_bytes: 4096, ..StoreOptions::default() };
    let store = Store::create_with(&folder.path().join("s"), info(), &lattice(), &options).unwrap();
    for seed in 0..30 {
        store.publish(&format!("n{seed}"), content(&store, seed), Details::default()).unwrap();
    }
    assert!(store.stats().unwrap().segments > 3);
    for seed in 0..30 {
        if seed % 3 != 0 {
            store.remove(&format!("n{seed}"), false, None).unwrap();
        }
    }
    let before = store.stats().unwrap();
    let report = store.compact(|_, _| ()).unwrap();
    let after = store.stats().unwrap();
    assert_eq!((report.forgotten_versions, after.past_versions, after.nodes), (20, 0, 10));
    assert!(after.segment_bytes * 2 < before.segment_bytes, "{before:?} {after:?}");
    for seed in (0..30).step_by(3) {
        assert_eq!(read(&store, &format!("n{seed}")), compiled(&store, seed));
    }
    let again = store.compact(|_, _| ()).unwrap();
    assert_eq!(
        (again.copied_bytes, again.removed_segments),
        (0, 0),
        "there was nothing left to do"
    );
    assert!(store.verify(true, |_, _| ()).unwrap().is_clean());
}

#[test]
fn another_base_lattice_or_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store(folder.path());
    let other = BaseLattice::new(
        1.25,
        lattice().grids().take(1).map(|(n, grid)| (n.clone(), grid.clone())),
    );
    assert!(matches!(defect(store.check_lattice(&other)), StoreDefect::Lattice { .. }));
    store.check_lattice(&lattice()).unwrap();
    assert!(matches!(defect(Store::open(folder.path())), StoreDefect::NotAStore { .. }));
    assert!(matches!(
        defect(Store::create(store.folder(), info(), &lattice())),
        StoreDefect::Exists
    ));
    let foreign =
        AdapterDeltas::from([(WeightName::new("c"), deltas(1)[&WeightName::new("a")].clone())]);
    assert!(matches!(store.compile(&foreign), Err(Error::NoSuchMatrix { .. })));
}

#[test]
fn a_blob_of_another_version_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store(folder.path());
    let mut content = content(&store, 6);
    content.blob[8..12].copy_from_slice(&7_u32.to_le_bytes());
    store.publish("later", content, Details::default()).unwrap();
    let refusal = defect(store.read(&store.get("later").unwrap().version.location));
    assert!(
        matches!(refusal, StoreDefect::FormatVersion { part: "a blob", found: 7, .. }),
        "{refusal}"
    );
    assert_eq!(store.verify(false, |_, _| ()).unwrap().problem_count, 1);
}

#[test]
fn labels_have_limits() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store(folder.path());
    let label = |key: &str, length| BTreeMap::from([(key.to_owned(), "x".repeat(length))]);
    let replace = |labels| {
        store.replace(
            "de",
            content(&store, 1),
            Details { labels: Some(labels), ..Details::default() },
            None,
        )
    };
    for labels in [label("", 1), label(&"k".repeat(129), 1), label("k", 4096)] {
        assert!(matches!(defect(replace(labels)), StoreDefect::Labels { .. }));
    }
    replace(label("k", 4095)).unwrap();
    store.replace("de", content(&store, 2), Details::default(), None).unwrap();
    assert_eq!(store.get("de").unwrap().version.labels, label("k", 4095), "they stay");
}

#[test]
fn another_version_of_the_catalogue_is_told_apart_from_damage() {
    let folder = tempfile::tempdir().unwrap();
    let path = small_store(folder.path()).folder().to_owned();
    let file = path.join(CATALOGUE_FILE);
    let whole = std::fs::read(&file).unwrap();
    let opened = |at: usize, value: u8| {
        let mut bytes = whole.clone();
        bytes[at] = value;
        std::fs::write(&file, &bytes).unwrap();
        defect(Store::open(&path))
    };
    assert!(matches!(
        opened(8, 9),
        StoreDefect::FormatVersion { part: "the catalogue", expected: 1, found: 9 }
    ));
    assert!(matches!(opened(0, 9), StoreDefect::Damaged { .. }));
    std::fs::write(&file, &whole[..16]).unwrap();
    assert!(
        matches!(defect(Store::open(&path)), StoreDefect::Damaged { .. }),
        "it is not made again"
    );
}

#[test]
fn a_new_parent_may_not_push_what_hangs_below_too_deep() {
    let folder = tempfile::tempdir().unwrap();
    let store = new_store(folder.path());
    let under = |parent: String| Details { parent: Some(parent), ..Details::default() };
    let mut changes = Changes::new();
    for chain in ["a", "b"] {
        changes.publish(&format!("{chain}0"), content(&store, 1), Details::default());
        for depth in 1..40 {
            changes.publish(
                &format!("{chain}{depth}"),
                content(&store, 1),
                under(format!("{chain}{}", depth - 1)),
            );
        }
    }
    store.apply(&changes).unwrap();
    let replace =
        |parent: &str| store.replace("b0", content(&store, 1), under(parent.into()), None);
    let error = replace("a39").map_err(|error| error.to_string()).unwrap_err();
    assert!(error.contains("80 levels deep"), "{error}");
    replace("a23").unwrap();
    assert_eq!(store.path("b39").unwrap().len(), crate::tree::MAX_DEPTH);
}

#[test]
fn content_compiled_for_another_store_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store(folder.path());
    let coarse = lattice();
    let finer = coarse.grids().map(|(name, grid)| {
        (
            name.clone(),
            Grid { steps: grid.steps.iter().map(|step| step / 2.0).collect(), ..grid.clone() },
        )
    });
    let other = BaseLattice::new(1.25, finer);
    let foreign = Store::create(&folder.path().join("other"), info(), &other).unwrap();
    let refused = store.publish("x", content(&foreign, 1), Details::default());
    assert!(matches!(defect(refused), StoreDefect::Lattice { .. }));
}

/// A move and a rollback of the old name leave one blob with two nodes.
#[test]
fn a_blob_that_two_nodes_share_is_counted_and_moved_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store(folder.path());
    store.move_to("de", "it", None).unwrap();
    store.rollback("de", 4, None).unwrap();
    store.remove("fr", true, None).unwrap();
    store.compact(|_, _| ()).unwrap();
    let [de, it] = ["de", "it"].map(|name| store.get(name).unwrap().version.location);
    assert_eq!(de, it);
    assert_eq!(
        (read(&store, "de"), read(&store, "it")),
        (compiled(&store, 4), compiled(&store, 4))
    );
    let again = store.compact(|_, _| ()).unwrap();
    assert_eq!(
        (again.copied_bytes, again.removed_segments),
        (0, 0),
        "there was nothing left to do"
    );
}

#[cfg(unix)]
#[test]
fn a_segment_that_is_a_link_is_neither_read_nor_written() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store(folder.path());
    let (mine, theirs) =
        (store.folder().join("segments/00000001.seg"), folder.path().join("theirs"));
    let node = store.get("de").unwrap().version.location;
    std::fs::rename(&mine, &theirs).unwrap();
    std::os::unix::fs::symlink(&theirs, &mine).unwrap();
    let before = std::fs::read(&theirs).unwrap();
    let again = Store::open(store.folder()).unwrap();
    assert!(again.read(&node).unwrap_err().to_string().contains("it is a link"));
    assert!(again.publish("x", content(&store, 9), Details::default()).is_err());
    assert_eq!(std::fs::read(&theirs).unwrap(), before);
}
