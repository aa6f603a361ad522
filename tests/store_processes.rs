//! Caches that two programs share have served one user's bytes under another's name while the other
//! program wrote. Here one process changes a store at full speed while another reads it, and
//! several count together: whoever reads sees a version that was committed, never an older one
//! after a newer, and no count is lost.

#[path = "common/stored.rs"]
mod stored;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pleach::Error;
use pleach::error::{StoreDefect, TreeDefect};
use pleach::store::{Details, Store, StoreOptions};
use rand::Rng;
use stored::{content, info, labelled, lattice, scratch, seed_of, verified};

/// Shows a process that it is one of those that work on the store in the folder named.
const CHILD: &str = "PLEACH_STORE_CHILD";
const NAMES: [&str; 5] = ["fr", "fr/alice", "fr/bob", "de", "de/eva"];
const THREADS: usize = 4;
const SWAPS: usize = 25;

/// This test in another process.
fn start(test: &str, store: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, store)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn open(folder: &Path) -> Store {
    Store::open_with(folder, &StoreOptions { segment_bytes: 64 << 10, ..StoreOptions::default() })
        .unwrap()
}

/// Figures, for whoever looks.
fn report(figures: &str) {
    std::io::stderr().write_all(format!("{figures}\n").as_bytes()).unwrap();
}

fn is_unknown(error: &Error) -> bool {
    matches!(error, Error::Tree(defect) if matches!(**defect, TreeDefect::UnknownNode { .. }))
}

fn change_for_ever(folder: &Path) -> ! {
    let store = open(folder);
    let mut rng = rand::rng();
    for change in 1_u64.. {
        let (name, seed) = (NAMES[rng.random_range(0..NAMES.len())], rng.random_range(0..300));
        match store.get(name) {
            Ok(_) if change % 7 == 0 => drop(store.remove(name, true, None).unwrap()),
            Ok(_) => drop(store.replace(name, content(seed), labelled(seed), None).unwrap()),
            Err(_) => drop(store.publish(name, content(seed), labelled(seed)).unwrap()),
        }
        if change % 300 == 0 {
            store.compact(|_, _| ()).unwrap();
        }
    }
    unreachable!("it is killed before")
}

#[test]
fn a_reader_beside_a_writer_sees_committed_versions_in_their_order() {
    if let Some(folder) = std::env::var_os(CHILD) {
        change_for_ever(Path::new(&folder));
    }
    let seconds =
        std::env::var("PLEACH_STORE_SECONDS").map_or(3, |seconds| seconds.parse().unwrap());
    let folder = scratch();
    let place = folder.path().join("store");
    drop(Store::create(&place, info(), lattice()).unwrap());
    let store = open(&place);
    let mut writer =
        start("a_reader_beside_a_writer_sees_committed_versions_in_their_order", &place);
    let (begin, mut seen) = (Instant::now(), BTreeMap::new());
    let (mut reads, mut missing, mut moved) = (0_u64, 0_u64, 0_u64);
    while reads < 1000 || begin.elapsed() < Duration::from_secs(seconds) {
        assert!(writer.try_wait().unwrap().is_none(), "the writer ended");
        for name in NAMES {
            let node = match store.get(name) {
                Ok(node) => node,
                Err(error) => {
                    assert!(is_unknown(&error), "{error}");
                    missing += 1;
                    continue;
                }
            };
            let last = seen.insert(name, node.version.generation).unwrap_or(0);
            assert!(
                node.version.generation >= last,
                "{name} went back from {last} to {}",
                node.version.generation
            );
            if let Err(error) = seed_of(&store, &node.version) {
                // A compaction took its bytes elsewhere, or it is gone.
                assert!(
                    store
                        .get(name)
                        .map_or(true, |now| now.version.location != node.version.location),
                    "{error}"
                );
                moved += 1;
            }
            reads += 1;
        }
    }
    writer.kill().unwrap();
    writer.wait().unwrap();
    let stats = store.stats().unwrap();
    report(&format!(
        "{:.1} s: {reads} reads, {missing} of nodes that were not there, {moved} of bytes that had moved, {} changes",
        begin.elapsed().as_secs_f64(),
        stats.generation
    ));
    assert!(stats.generation > 100, "nothing was changed meanwhile");
    // A new segment is looked into, and those that are gone are let go.
    let (name, folder) = ("new", place.to_string_lossy().into_owned());
    store.compact(|_, _| ()).unwrap();
    let generation = store.publish(name, content(1), labelled(1)).unwrap();
    let node = store.get(name).unwrap();
    assert_eq!((node.version.generation, seed_of(&store, &node.version).unwrap()), (generation, 1));
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let gone = maps.lines().filter(|line| {
        line.contains(&folder) && line.contains(".seg") && line.ends_with("(deleted)")
    });
    assert!(gone.clone().count() <= 1, "{:?}", gone.collect::<Vec<_>>());
    verified(&open(&place));
}

fn count_of(store: &Store) -> (u64, u64) {
    let version = store.get("counter").unwrap().version;
    (version.labels["count"].parse().unwrap(), version.generation)
}

fn counted(count: u64) -> Details {
    Details {
        labels: Some(BTreeMap::from([("count".to_owned(), count.to_string())])),
        ..Details::default()
    }
}

/// Raises the counter; returns how often somebody else was faster.
fn raise(store: &Store) -> usize {
    let mut lost = 0;
    for _ in 0..SWAPS {
        loop {
            let (count, generation) = count_of(store);
            match store.replace("counter", content(1), counted(count + 1), Some(generation)) {
                Ok(_) => break,
                Err(Error::Store { defect, .. })
                    if matches!(*defect, StoreDefect::GenerationMismatch { .. }) =>
                {
                    lost += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    lost
}

#[test]
fn no_swap_of_several_processes_is_lost() {
    if let Some(folder) = std::env::var_os(CHILD) {
        let store = open(Path::new(&folder));
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| raise(&store));
            }
        });
        return;
    }
    let folder = scratch();
    let place = folder.path().join("store");
    let store = Store::create(&place, info(), lattice()).unwrap();
    store.publish("counter", content(1), counted(0)).unwrap();
    let children = [0; 2].map(|_| start("no_swap_of_several_processes_is_lost", &place));
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(count_of(&store).0, (2 * THREADS * SWAPS) as u64);
    verified(&store);
}

/// Memory of this process in KiB and open files, where the system reports them.
fn held() -> Option<(u64, usize)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let memory =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.split_whitespace().next()?;
    Some((memory.parse().ok()?, std::fs::read_dir("/proc/self/fd").ok()?.count()))
}

#[test]
fn a_store_that_is_changed_for_long_holds_no_more_memory_or_files() {
    let cycles: u32 =
        std::env::var("PLEACH_STORE_CYCLES").map_or(3000, |cycles| cycles.parse().unwrap());
    let folder = scratch();
    let store = Store::create(&folder.path().join("store"), info(), lattice()).unwrap();
    let mut begin = None;
    for cycle in 0..cycles {
        let (name, seed) = (format!("n{}", cycle % 50), u16::try_from(cycle % 300).unwrap());
        store.publish(&name, content(seed), labelled(seed)).unwrap();
        assert_eq!(seed_of(&store, &store.get(&name).unwrap().version).unwrap(), seed);
        store.remove(&name, false, None).unwrap();
        if cycle % 500 == 499 {
            store.compact(|_, _| ()).unwrap();
            let now = held();
            begin = begin.or(now);
            let stats = store.stats().unwrap();
            report(&format!(
                "{} cycles: {now:?} KiB and files, {} B",
                cycle + 1,
                stats.segment_bytes + stats.catalogue_bytes
            ));
            if let (Some((memory, files)), Some((memory_then, files_then))) = (now, begin) {
                assert!(
                    memory < memory_then + (16 << 10),
                    "{memory} KiB after {cycle} cycles, {memory_then} at first"
                );
                assert!(
                    files < files_then + 20,
                    "{files} open files after {cycle} cycles, {files_then} at first"
                );
            }
            assert!(stats.segment_bytes < 1 << 20 && stats.catalogue_bytes < 16 << 20, "{stats:?}");
        }
    }
}
