//! An operator moved a store away and a new one into its place while the old one was being
//! compacted: the compaction went on by path, wrote into the new store and removed its segments,
//! and both were lost. Here folders change places at every step of every kind of work: each handle
//! stays with its own store, and nothing of another is written, cut or removed.

#[path = "common/stored.rs"]
mod stored;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pleach::error::StoreDefect;
use pleach::store::{Faults, Store, StoreInfo, StoreOptions};
use pleach::{Error, Result};
use rand::Rng;
use stored::{Model, Op, content, info, labelled, lattice, look, scratch, seed_of, verified};
use tempfile::TempDir;

fn options(faults: Faults) -> StoreOptions {
    StoreOptions { faults, segment_bytes: 4096, ..StoreOptions::default() }
}

/// A store of nodes called `PREFIX0` and on, several segments long and with dead bytes in them.
fn make(place: &Path, prefix: &str, first: u16) {
    let info = StoreInfo { base_name: prefix.to_owned(), ..info() };
    let store = Store::create_with(place, info, lattice(), &options(Faults::default())).unwrap();
    for seed in 0..24 {
        store
            .publish(&format!("{prefix}{seed}"), content(first + seed), labelled(first + seed))
            .unwrap();
    }
    for seed in (0..24).step_by(3) {
        store.remove(&format!("{prefix}{seed}"), false, None).unwrap();
    }
}

/// Every file below `folder` with its bytes.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(
                files(&path)
                    .into_iter()
                    .map(|(name, bytes)| (Path::new(path.file_name().unwrap()).join(name), bytes)),
            );
        } else {
            found.insert(path.file_name().unwrap().into(), std::fs::read(&path).unwrap());
        }
    }
    found
}

fn copy(from: &Path, to: &Path) {
    for (name, bytes) in files(from) {
        std::fs::create_dir_all(to.join(&name).parent().unwrap()).unwrap();
        std::fs::write(to.join(name), bytes).unwrap();
    }
}

/// Two stores beside each other, `store` and `new`.
struct Pair {
    dir: TempDir,
}

impl Pair {
    fn new() -> Self {
        let dir = scratch();
        make(&dir.path().join("store"), "a", 0);
        make(&dir.path().join("new"), "b", 100);
        Self { dir }
    }

    fn copied(&self) -> Self {
        let dir = scratch();
        for name in ["store", "new"] {
            copy(&self.at(name), &dir.path().join(name));
        }
        Self { dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What moves the store away and the new one into its place.
    fn swap(&self) -> impl Fn() + Send + Sync + 'static {
        let [store, old, new] = ["store", "old", "new"].map(|name| self.at(name));
        move || {
            std::fs::rename(&store, &old).unwrap();
            std::fs::rename(&new, &store).unwrap();
        }
    }
}

fn model(store: &Store) -> Model {
    let names = (0..24).flat_map(|k| ["a", "b"].map(|prefix| format!("{prefix}{k}")));
    look(store, &names.chain(["x".to_owned(), "y".to_owned()]).collect()).unwrap()
}

fn script() -> Vec<Op> {
    let publish = |name: &str, seed| Op::Publish(name.into(), seed);
    vec![
        Op::Batch(
            (0..6)
                .map(|k| publish(&format!("x/{k}"), 200 + k))
                .chain([publish("x", 210)])
                .collect(),
        ),
        Op::Remove("a1".into()),
        Op::Move("x".into(), "y".into()),
        Op::Compact,
        Op::Replace("a2".into(), 211),
    ]
}

#[test]
fn whoever_works_on_a_store_stays_with_it_when_another_takes_its_name() {
    let pair = Pair::new();
    let counted = pair.copied();
    let steps = options(Faults::after(i64::MAX, false));
    let store = Store::open_with(&counted.at("store"), &steps).unwrap();
    for op in script() {
        op.make(&store).unwrap();
    }
    let (steps, expected) = (steps.faults.steps(), model(&store));
    assert!(steps > 60, "only {steps} steps");
    let theirs = files(&pair.at("new"));
    for at in 0..steps {
        let pair = pair.copied();
        let swap = pair.swap();
        let options = options(Faults::watched(move |step| {
            if step == at {
                swap()
            }
        }));
        let store = Store::open_with(&pair.at("store"), &options).unwrap();
        for op in script() {
            op.make(&store)
                .unwrap_or_else(|error| panic!("{op:?}, swapped before step {at}: {error}"));
        }
        assert_eq!(model(&store), expected, "swapped before step {at}");
        drop(store);
        assert!(
            files(&pair.at("store")) == theirs,
            "the other store was written to; swapped before step {at}"
        );
        let moved = Store::open(&pair.at("old")).unwrap();
        assert_eq!(model(&moved), expected, "swapped before step {at}");
        verified(&moved);
    }
    verified(&Store::open(&pair.at("new")).unwrap());
}

/// The folder that a store is made in is exchanged for another while it is made: it is whole in one
/// of the two, and nothing else is left in either.
#[test]
fn a_store_in_the_making_is_whole_where_it_was_begun() {
    let make = |dir: &Path, faults: Faults| {
        let (above, other) = (dir.join("above"), dir.join("other"));
        for (folder, note) in [(&above, "first"), (&other, "second")] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join("notes.txt"), note).unwrap();
        }
        Store::create_with(&above.join("store"), info(), lattice(), &options(faults))
    };
    let counting = options(Faults::after(i64::MAX, false)).faults;
    make(scratch().path(), counting.clone()).unwrap();
    let steps = counting.steps();
    assert!(steps > 8, "only {steps} steps");
    for at in 0..steps {
        let dir = scratch();
        let [above, old, other] = ["above", "old", "other"].map(|name| dir.path().join(name));
        let folders = [above.clone(), old.clone()];
        let faults = Faults::watched(move |step| {
            if step == at {
                std::fs::rename(&above, &old).unwrap();
                std::fs::rename(&other, &above).unwrap();
            }
        });
        let store = make(dir.path(), faults)
            .unwrap_or_else(|error| panic!("swapped before step {at}: {error}"));
        store.publish("a", content(1), labelled(1)).unwrap();
        drop(store);
        let held: Vec<_> =
            folders.iter().map(|folder| std::fs::read_dir(folder).unwrap().count()).collect();
        assert_eq!(held.iter().sum::<usize>(), 3, "swapped before step {at}");
        let [store] = &folders
            .iter()
            .map(|folder| folder.join("store"))
            .filter(|store| store.exists())
            .collect::<Vec<_>>()[..]
        else {
            panic!("swapped before step {at}: not one store");
        };
        let store = Store::open(store).unwrap();
        assert_eq!(seed_of(&store, &store.get("a").unwrap().version).unwrap(), 1);
        verified(&store);
    }
}

#[test]
fn who_reads_or_verifies_goes_on_with_the_store_that_was_opened() {
    let pair = Pair::new();
    let theirs = files(&pair.at("new"));
    let store = Store::open(&pair.at("store")).unwrap();
    let expected = model(&Store::open(&pair.at("store")).unwrap());
    let (swap, mut swapped) = (pair.swap(), false);
    let report = store.verify(true, |_, _| {
        if !std::mem::replace(&mut swapped, true) {
            swap();
        }
    });
    assert!(swapped && report.as_ref().unwrap().is_clean(), "{report:?}");
    assert_eq!(report.unwrap().nodes, expected.nodes.len() as u64);
    // No segment was mapped before.
    assert_eq!(model(&store), expected);
    assert_eq!(store.lattice().unwrap().hash(), lattice().hash());
    store.verify(true, |_, _| ()).unwrap();
    store.compact_catalogue().unwrap();
    assert!(files(&pair.at("store")) == theirs, "the other store was written to");
}

/// The catalogue is opened again after a failure: by then another one may lie where it was.
#[test]
fn a_catalogue_opened_anew_is_that_of_the_same_store() {
    let pair = Pair::new();
    let theirs = files(&pair.at("new"));
    let mut unconfirmed = 0;
    for at in 0..40 {
        let pair = pair.copied();
        let store =
            Store::open_with(&pair.at("store"), &options(Faults::after(at, false))).unwrap();
        let failed = store.publish("x", content(200), labelled(200));
        pair.swap()();
        let again = match failed {
            Ok(_) => break,
            Err(Error::Store { defect, .. }) => {
                assert!(matches!(*defect, StoreDefect::Unconfirmed { .. }), "{defect}");
                unconfirmed += 1;
                store.get("x").map(drop)
            }
            Err(_) => {
                Err(Error::Io { path: PathBuf::new(), source: std::io::ErrorKind::NotFound.into() })
            }
        };
        if again.is_err() {
            store.publish("x", content(200), labelled(200)).unwrap();
        }
        assert_eq!(seed_of(&store, &store.get("x").unwrap().version).unwrap(), 200);
        store.compact(|_, _| ()).unwrap();
        drop(store);
        assert!(
            files(&pair.at("store")) == theirs,
            "the other store was written to after step {at} had failed"
        );
        let moved = Store::open(&pair.at("old")).unwrap();
        moved.get("x").unwrap();
        verified(&moved);
    }
    assert!(unconfirmed > 0, "no end of a change failed");
}

fn is_replaced<T>(result: Result<T>) -> bool {
    matches!(result.err().expect("it is refused"), Error::Store { defect, .. } if matches!(*defect, StoreDefect::Replaced))
}

/// Not the folder, but what is in it is exchanged, all of it or a part; or it is all removed.
#[test]
fn a_store_whose_files_were_exchanged_is_neither_appended_to_nor_tidied() {
    for exchanged in [&["catalogue.db"][..], &["segments"], &["catalogue.db", "segments"], &[]] {
        let pair = Pair::new();
        let store = Store::open_with(&pair.at("store"), &options(Faults::default())).unwrap();
        // One that has written, too, and one that opens only then to write.
        store.publish("x", content(200), labelled(200)).unwrap();
        let other = Store::open(&pair.at("store")).unwrap();
        let removed = exchanged.is_empty();
        if removed {
            std::fs::remove_dir_all(pair.at("store")).unwrap();
        }
        for name in exchanged {
            std::fs::rename(pair.at("store").join(name), pair.at(name)).unwrap();
            std::fs::rename(pair.at("new").join(name), pair.at("store").join(name)).unwrap();
        }
        // Its own catalogue keeps the database's accounts until it is closed.
        let own =
            if exchanged.contains(&"catalogue.db") { "catalogue.db" } else { "store/catalogue.db" };
        let others = || {
            let mut files = files(pair.dir.path());
            files.remove(Path::new(own));
            files
        };
        let before = others();
        for store in [&store, &other] {
            assert!(is_replaced(store.publish("y", content(201), labelled(201))), "{exchanged:?}");
            assert!(is_replaced(store.remove("a1", false, None)), "{exchanged:?}");
            assert!(is_replaced(store.compact(|_, _| ())), "{exchanged:?}");
        }
        if removed {
            assert!(is_replaced(other.get("a1").and_then(|node| seed_of(&other, &node.version))));
            // What is mapped can still be read.
            store.get("a1").unwrap();
        }
        drop((store, other));
        assert!(
            others() == before,
            "something was written after {exchanged:?} came from another store"
        );
    }
}

#[test]
fn a_segment_of_another_store_is_neither_appended_to_nor_removed() {
    let pair = Pair::new();
    let segment = |name: &str, number| pair.at(name).join(format!("segments/{number:08}.seg"));
    let last = (1..).take_while(|&number| segment("store", number).exists()).last().unwrap();
    // One that nothing names, and the one to append to.
    std::fs::rename(segment("new", 2), segment("store", last + 3)).unwrap();
    let unnamed = std::fs::read(segment("store", last + 3)).unwrap();
    let store = Store::open_with(&pair.at("store"), &options(Faults::default())).unwrap();
    let refusal = store.compact(|_, _| ()).unwrap_err().to_string();
    assert!(refusal.contains("its header is not this store's"), "{refusal}");
    assert!(std::fs::read(segment("store", last + 3)).unwrap() == unnamed);
    std::fs::remove_file(segment("store", last + 3)).unwrap();
    store.compact(|_, _| ()).unwrap();
    let tail = (1..64).rfind(|&number| segment("store", number).exists()).unwrap();
    std::fs::rename(segment("new", 1), segment("store", tail)).unwrap();
    let theirs = std::fs::read(segment("store", tail)).unwrap();
    let refusal = store.publish("x", content(200), labelled(200)).unwrap_err().to_string();
    assert!(refusal.contains("its header is not this store's"), "{refusal}");
    assert!(std::fs::read(segment("store", tail)).unwrap() == theirs);
}

/// Two stores trade places again and again while handles publish, read, compact and verify, and
/// others open what is there.
#[test]
fn stores_that_trade_places_keep_what_they_were_given() {
    let pair = Pair::new();
    let places = ["store", "new"].map(|name| pair.at(name));
    let between = pair.at("between");
    let stores =
        places.clone().map(|place| Store::open_with(&place, &options(Faults::default())).unwrap());
    let (done, swaps) = (AtomicBool::new(false), AtomicU64::new(0));
    let rounds: u16 =
        std::env::var("PLEACH_SWAP_ROUNDS").map_or(30, |rounds| rounds.parse().unwrap());
    let given: [BTreeSet<String>; 2] = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for (from, to) in
                    [(&places[0], &between), (&places[1], &places[0]), (&between, &places[1])]
                {
                    std::fs::rename(from, to).unwrap();
                    std::thread::sleep(std::time::Duration::from_micros(
                        rand::rng().random_range(0..2000),
                    ));
                }
                swaps.fetch_add(1, Ordering::Relaxed);
            }
        });
        // Whoever opens by name gets one of the two, whole, or learns that there is nothing.
        let visitor = scope.spawn(|| {
            let mut given = [BTreeSet::new(), BTreeSet::new()];
            for round in 0..u64::MAX {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                let Ok(store) = Store::open_with(&places[0], &options(Faults::default())) else {
                    continue;
                };
                let which = usize::from(store.info().base_name == "b");
                let name = format!("{}v{round}", ["a", "b"][which]);
                store.publish(&name, content(300), labelled(300)).unwrap();
                given[which].insert(name);
            }
            given
        });
        let workers = stores.each_ref().map(|store| {
            scope.spawn(move || {
                let prefix = store.info().base_name;
                let mut given = BTreeSet::new();
                for round in 0..rounds {
                    for k in 0..6 {
                        let name = format!("{prefix}w{round}-{k}");
                        store.publish(&name, content(400 + k), labelled(400 + k)).unwrap();
                        match k % 3 {
                            0 => drop(store.remove(&name, false, None).unwrap()),
                            _ => drop(given.insert(name)),
                        }
                    }
                    store.compact(|_, _| ()).unwrap();
                    if round % 5 == 0 {
                        store.compact_catalogue().unwrap();
                        verified(store);
                    }
                }
                given
            })
        });
        let [mut a, mut b] = workers.map(|worker| worker.join());
        done.store(true, Ordering::Relaxed);
        let [more_a, more_b] = visitor.join().unwrap();
        a.as_mut().unwrap().extend(more_a);
        b.as_mut().unwrap().extend(more_b);
        [a.unwrap(), b.unwrap()]
    });
    assert!(swaps.load(Ordering::Relaxed) > 10);
    for (store, given) in stores.iter().zip(given) {
        let prefix = store.info().base_name;
        let found: BTreeSet<String> = model(store).nodes.into_keys().collect();
        assert!(found.iter().all(|name| name.starts_with(&prefix)), "{found:?}");
        let made = found.iter().filter(|name| name.contains(['v', 'w']));
        assert_eq!(made.cloned().collect::<BTreeSet<_>>(), given);
        assert_eq!(found.len() - given.len(), 16);
        verified(store);
    }
}
