//! Stores fail at their edges: on a disk that is full, in a folder that cannot be replaced, where a
//! move leads into names that it empties itself, and beside another program that tidies up.

#[path = "common/stored.rs"]
mod stored;

use std::sync::atomic::{AtomicBool, Ordering};

use pleach::adapter::{Limits, PeftHeader};
use pleach::error::StoreDefect;
use pleach::lattice::{BaseLattice, Grid};
use pleach::store::{Changes, Details, Faults, Store, StoreOptions};
use pleach::testing::adapter::{TinyAdapter, TinyModule};
use pleach::{Error, WeightName};
use stored::{content, info, labelled, lattice, scratch, seed_of, verified};

fn defect(error: Error) -> StoreDefect {
    match error {
        Error::Store { defect, .. } => *defect,
        other => panic!("{other}"),
    }
}

#[test]
fn a_move_may_give_a_node_the_name_that_another_gives_up() {
    let folder = scratch();
    let store = Store::create(&folder.path().join("store"), info(), lattice()).unwrap();
    let [before, after] =
        [["a/b", "a/b/a", "a/b/b", "a/b/b/a", "a/b/b/b"], ["a", "a/a", "a/b", "a/b/a", "a/b/b"]];
    for (seed, name) in (1..).zip(before) {
        store.publish(name, content(seed), labelled(seed)).unwrap();
    }
    store.move_to("a/b", "a", None).unwrap();
    let nodes = store.list("", None, usize::MAX).unwrap();
    assert_eq!(nodes.iter().map(|node| &node.name[..]).collect::<Vec<_>>(), after);
    for (seed, node) in (1..).zip(&nodes) {
        assert_eq!(seed_of(&store, &node.version).unwrap(), seed, "{}", node.name);
        assert_eq!(
            node.version.parent,
            node.name.rsplit_once('/').map_or("", |(parent, _)| parent)
        );
    }
    verified(&store);
}

#[test]
fn a_store_can_be_counted_while_a_compaction_removes_segments() {
    let folder = scratch();
    let path = folder.path().join("store");
    let options = StoreOptions { segment_bytes: 4096, ..StoreOptions::default() };
    let store = Store::create_with(&path, info(), lattice(), &options).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let counting = scope.spawn(|| {
            let other = Store::open(&path).unwrap();
            while !done.load(Ordering::Relaxed) {
                other.stats().unwrap();
            }
        });
        for round in 0..60 {
            for seed in 0..10 {
                let (name, content, details) = (format!("n{seed}"), content(seed), labelled(seed));
                match round {
                    0 => store.publish(&name, content, details).unwrap(),
                    _ => store.replace(&name, content, details, None).unwrap(),
                };
            }
            store.compact(|_, _| ()).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        counting.join().unwrap();
    });
}

/// What a failed change leaves in the segments is space that a full disk has no more.
#[test]
fn a_change_whose_bytes_cannot_be_written_takes_no_room() {
    let mut refused = 0;
    for steps in 0.. {
        let folder = scratch();
        let path = folder.path().join("store");
        drop(Store::create(&path, info(), lattice()).unwrap());
        let options = StoreOptions {
            faults: Faults::after(steps, false),
            segment_bytes: 2048,
            ..StoreOptions::default()
        };
        let Ok(store) = Store::open_with(&path, &options) else { continue };
        let before = store.stats().unwrap();
        let mut changes = Changes::new();
        for seed in 0..8 {
            changes.publish(&format!("n{seed}"), content(seed), labelled(seed));
        }
        match store.apply(&changes) {
            Ok(_) => break,
            Err(Error::Io { path, .. }) if path.extension().is_some_and(|kind| kind == "seg") => {
                let after = store.stats().unwrap();
                assert_eq!(
                    (after.segments, after.segment_bytes),
                    (before.segments, before.segment_bytes),
                    "{path:?}"
                );
                store.apply(&changes).unwrap();
                verified(&store);
                refused += 1;
            }
            // The catalogue's steps.
            Err(_) => {}
        }
    }
    assert!(refused > 10, "only {refused} steps failed");
}

/// A compaction is for stores that have little space left: it may not take as much again as there
/// is.
#[test]
fn a_compaction_removes_segments_as_it_goes() {
    let folder = scratch();
    let options = StoreOptions { segment_bytes: 4096, ..StoreOptions::default() };
    let store =
        Store::create_with(&folder.path().join("store"), info(), lattice(), &options).unwrap();
    for seed in 0..200 {
        store.publish(&format!("n{seed:03}"), content(seed), labelled(seed)).unwrap();
    }
    for seed in (0..200).filter(|seed| *seed < 50 || seed % 5 == 0) {
        store.remove(&format!("n{seed:03}"), false, None).unwrap();
    }
    let before = store.stats().unwrap().segment_bytes;
    let (mut first, mut most) = (None, 0);
    let report = store.compact(|_, _| {
        let now = store.stats().unwrap().segment_bytes;
        first.get_or_insert(now);
        most = most.max(now);
    });
    assert!(report.unwrap().copied_bytes > 15 * 4096, "it had enough to do");
    assert!(
        first.unwrap() < before - 30_000,
        "what is dead goes first: {before} before, then {first:?}"
    );
    assert!(most < before + 7 * 4096, "{before} before, {most} at most");
    verified(&store);
}

/// An import of many adapters takes long: that its result has no place to go to is better said
/// before.
#[cfg(unix)]
#[test]
fn a_folder_that_cannot_be_replaced_is_refused_before_anything_is_made() {
    let folder = scratch();
    let [link, empty] = ["link", "empty"].map(|name| folder.path().join(name));
    std::fs::create_dir(&empty).unwrap();
    std::os::unix::fs::symlink(&empty, &link).unwrap();
    let options =
        StoreOptions { faults: Faults::after(i64::MAX, false), ..StoreOptions::default() };
    let refusal = Store::create_with(&link, info(), lattice(), &options).unwrap_err();
    assert!(matches!(&refusal, Error::Store { path, .. } if *path == link), "{refusal}");
    assert!(matches!(defect(refusal), StoreDefect::NotReplaceable { .. }));
    assert_eq!(options.faults.steps(), 0);
    Store::create(&empty, info(), lattice()).unwrap();
}

/// llama.cpp's converter drops `alpha_pattern`: files as they were published would be scaled
/// wrongly there.
#[test]
fn a_flattened_path_of_one_node_is_of_one_rank_though_its_files_were_kept() {
    let folder = scratch();
    let modules = ["q_proj", "k_proj"].map(|module| format!("model.layers.0.self_attn.{module}"));
    let grid = Grid { cols: 40, steps: vec![1e-4; 6], row_max: vec![20_000; 6], headroom: 1.25 };
    let grids =
        modules.iter().map(|module| (WeightName::new(format!("{module}.weight")), grid.clone()));
    let store = Store::create(&folder.path().join("store"), info(), &BaseLattice::new(1.25, grids))
        .unwrap();
    let mut tiny = modules.map(|module| TinyModule::linear(&module, 6, 40));
    tiny[0].rank = Some(5);
    let [adapter, kept, flat] = ["adapter", "kept", "flat"].map(|name| folder.path().join(name));
    let patterns = serde_json::json!({ "rank_pattern": { "q_proj": 5 } });
    TinyAdapter::new(tiny.to_vec(), 3, 1).with_config(patterns).write(&adapter).unwrap();
    let content = store.compile_adapter(&adapter, None, &Limits::default(), true).unwrap();
    store.publish("fr", content, Details::default()).unwrap();
    let ranks = |dir| PeftHeader::open(dir, &Limits::default()).unwrap().summary().ranks;
    assert!(store.export("fr", &kept, false).unwrap().original);
    assert_eq!(ranks(&kept), [3, 5]);
    assert!(!store.export("fr", &flat, true).unwrap().original);
    assert_eq!(ranks(&flat), [5]);
}

/// The number would become the parent's with its next content, and a stale node would pass for a
/// fresh one.
#[test]
fn a_node_cannot_be_trained_on_content_that_is_yet_to_come() {
    let folder = scratch();
    let store = Store::create(&folder.path().join("store"), info(), lattice()).unwrap();
    store.publish("fr", content(1), labelled(1)).unwrap();
    let publish = |trained_on| {
        store.publish(
            "fr/alice",
            content(2),
            Details { trained_on: Some(trained_on), ..labelled(2) },
        )
    };
    for later in [2, 3, u64::MAX] {
        let refusal = publish(later).unwrap_err();
        assert!(matches!(defect(refusal), StoreDefect::TrainedOn { last: 1, .. }), "{later}");
    }
    assert_eq!(publish(1).unwrap(), 2);
}

/// A server whose volume only the publisher may write to.
#[test]
fn a_store_that_may_only_be_read_follows_its_publisher_and_refuses_changes() {
    let folder = scratch();
    let path = folder.path().join("store");
    let store = Store::create(&path, info(), lattice()).unwrap();
    store.publish("fr", content(1), labelled(1)).unwrap();
    let read_only = StoreOptions { read_only: true, ..StoreOptions::default() };
    let reader = Store::open_with(&path, &read_only).unwrap();
    let seed = |name| seed_of(&reader, &reader.get(name)?.version);
    assert_eq!(seed("fr").unwrap(), 1);
    for round in 2..40 {
        store.replace("fr", content(round), labelled(round), None).unwrap();
        if round % 7 == 0 {
            store.compact(|_, _| ()).unwrap();
        }
        assert_eq!(seed("fr").unwrap(), round);
    }
    let before = std::fs::read(path.join("catalogue.db")).unwrap();
    let refusals = [
        reader.publish("de", content(1), labelled(1)).unwrap_err(),
        reader.remove("fr", false, None).unwrap_err(),
        reader.compact(|_, _| ()).unwrap_err(),
        reader.compact_catalogue().unwrap_err(),
    ];
    for refusal in refusals {
        assert!(matches!(defect(refusal), StoreDefect::ReadOnly));
    }
    let report = reader.verify(true, |_, _| ()).unwrap();
    assert!(report.is_clean() && report.nodes == 1 && !report.free_pages_checked, "{report:?}");
    drop(reader);
    assert!(std::fs::read(path.join("catalogue.db")).unwrap() == before);
    verified(&store);
}

#[cfg(unix)]
#[test]
fn files_that_this_user_may_not_write_are_opened_to_read() {
    use std::os::unix::fs::PermissionsExt;

    let folder = scratch();
    let path = folder.path().join("store");
    let store = Store::create(&path, info(), lattice()).unwrap();
    store.publish("fr", content(1), labelled(1)).unwrap();
    drop(store);
    let catalogue = path.join("catalogue.db");
    std::fs::set_permissions(&catalogue, std::fs::Permissions::from_mode(0o444)).unwrap();
    if std::fs::OpenOptions::new().write(true).open(&catalogue).is_ok() {
        eprintln!("skipped: this user may write everything; run the test as another");
        return;
    }
    let reader = Store::open(&path).unwrap();
    assert_eq!(seed_of(&reader, &reader.get("fr").unwrap().version).unwrap(), 1);
    assert!(matches!(defect(reader.remove("fr", false, None).unwrap_err()), StoreDefect::ReadOnly));
}

/// Its catalogue looks as one whose publisher was killed: nobody has it open.
#[test]
fn a_store_copied_from_under_its_publisher_must_be_opened_to_write_first() {
    let folder = scratch();
    let [path, copy] = ["store", "copy"].map(|name| folder.path().join(name));
    let store = Store::create(&path, info(), lattice()).unwrap();
    store.publish("fr", content(1), labelled(1)).unwrap();
    std::fs::create_dir_all(copy.join("segments")).unwrap();
    for file in ["catalogue.db", "segments/00000001.seg"] {
        std::fs::copy(path.join(file), copy.join(file)).unwrap();
    }
    let read_only = StoreOptions { read_only: true, ..StoreOptions::default() };
    let refusal = Store::open_with(&copy, &read_only).err().unwrap();
    assert!(matches!(defect(refusal), StoreDefect::Unfinished));
    drop(Store::open(&copy).unwrap());
    let reader = Store::open_with(&copy, &read_only).unwrap();
    assert_eq!(seed_of(&reader, &reader.get("fr").unwrap().version).unwrap(), 1);
}

#[test]
fn a_file_that_is_named_almost_as_a_segment_is_left_alone() {
    let folder = scratch();
    let path = folder.path().join("store");
    let store = Store::create(&path, info(), lattice()).unwrap();
    store.publish("fr", content(1), labelled(1)).unwrap();
    let strays =
        ["7.seg", "00000007.seg.bak", "+0000007.seg"].map(|name| path.join("segments").join(name));
    for stray in &strays {
        std::fs::write(stray, "mine").unwrap();
    }
    store.remove("fr", false, None).unwrap();
    store.compact(|_, _| ()).unwrap();
    verified(&store);
    assert!(strays.iter().all(|stray| std::fs::read(stray).unwrap() == b"mine"));
}
