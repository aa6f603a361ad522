//! On a disk that was full to the last byte a node could not be removed, and once it was, a
//! compaction failed for want of space to copy into: the one thing that would have freed space
//! needed some. Here disks fill up under stores, really and at every step.

#[path = "common/stored.rs"]
mod stored;

use std::collections::BTreeSet;
use std::path::Path;

use pleach::Error;
use pleach::store::{Faults, Store, StoreOptions};
use stored::{Model, Op, content, info, labelled, lattice, look, scratch, verified};

fn options(faults: Faults) -> StoreOptions {
    StoreOptions { faults, segment_bytes: 256 << 10, ..StoreOptions::default() }
}

fn fill(store: &Store, count: u16) {
    for first in (0..count).step_by(20) {
        let ops = (first..count.min(first + 20)).map(|seed| Op::Publish(format!("n{seed}"), seed));
        Op::Batch(ops.collect()).make(store).unwrap();
    }
}

fn model(store: &Store, count: u16) -> Model {
    look(store, &(0..count).map(|seed| format!("n{seed}")).collect()).unwrap()
}

/// A small disk; gone when it is dropped.
#[cfg(target_os = "linux")]
struct Disk(tempfile::TempDir);

#[cfg(target_os = "linux")]
impl Disk {
    /// None where this user may not have one.
    fn new(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mount = ["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"];
        let mounted =
            std::process::Command::new("mount").args(mount).arg(folder.path()).output().ok()?;
        mounted.status.success().then(|| Self(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Fills it to the last byte, in whole blocks and then single bytes.
    fn fill(&self) {
        use std::io::Write;
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.path().join("full"))
            .unwrap();
        for bytes in [1 << 16, 4096, 1] {
            while file.write_all(&vec![1; bytes]).is_ok() {}
        }
    }

    fn free(&self) -> u64 {
        let output = std::process::Command::new("df")
            .args(["-B1", "--output=avail"])
            .arg(self.path())
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().lines().nth(1).unwrap().trim().parse().unwrap()
    }
}

#[cfg(target_os = "linux")]
impl Drop for Disk {
    fn drop(&mut self) {
        assert!(std::process::Command::new("umount").arg(self.path()).status().unwrap().success());
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_store_on_a_full_disk_can_be_emptied() {
    const COUNT: u16 = 400;
    // Of every so many runs of 20 nodes one stays; with 0 none does.
    for kept in [0, 2, 10] {
        let Some(disk) = Disk::new("8m") else {
            eprintln!("skipped: this user may not mount a disk of its own");
            return;
        };
        let place = disk.path().join("store");
        let store =
            Store::create_with(&place, info(), lattice(), &options(Faults::default())).unwrap();
        assert!(place.join("reserve").exists());
        fill(&store, COUNT);
        disk.fill();
        assert_eq!(disk.free(), 0);
        let many = Op::Batch((0..100).map(|k| Op::Publish(format!("x{k}"), k)).collect());
        let refused = many.make(&store).unwrap_err();
        let is_full = |error: &std::io::Error| error.kind() == std::io::ErrorKind::StorageFull;
        assert!(matches!(&refused, Error::Io { source, .. } if is_full(source)), "{refused}");
        for seed in (0..COUNT).filter(|seed| kept == 0 || seed / 20 % kept != 0) {
            store.remove(&format!("n{seed}"), false, None).unwrap();
        }
        // Somebody else is quicker to use what was freed.
        disk.fill();
        let (before, nodes) = (store.stats().unwrap().segment_bytes, model(&store, COUNT).nodes);
        let report = store.compact(|_, _| ()).unwrap();
        assert_eq!(model(&store, COUNT).nodes, nodes);
        verified(&store);
        let dead = before - 100_u64.checked_div(kept.into()).map_or(0, |live| before * live / 100);
        let (free, left) = (disk.free(), report.left_bytes);
        assert!(
            free > dead * 6 / 10,
            "{free} bytes free of {dead} dead ones, 1 of {kept} kept: {report:?}"
        );
        assert!(left == 0 || kept != 0, "{left} bytes left in segments that are all dead");
        store.publish("x", content(1), labelled(1)).unwrap();
        std::fs::remove_file(disk.path().join("full")).unwrap();
        assert_eq!(store.compact(|_, _| ()).unwrap().left_bytes, 0);
        assert!(place.join("reserve").exists(), "space is kept again");
        verified(&store);
        verified(&Store::open(&place).unwrap());
    }
}

/// Wherever a compaction finds no space, nothing is lost, and where it was to copy it goes on.
#[test]
fn a_compaction_that_finds_no_room_once_gives_back_what_is_dead() {
    const COUNT: u16 = 60;
    let folder = scratch();
    let made = folder.path().join("made");
    let store = Store::create_with(
        &made,
        info(),
        lattice(),
        &StoreOptions { segment_bytes: 16 << 10, ..options(Faults::default()) },
    )
    .unwrap();
    fill(&store, COUNT);
    for seed in (0..COUNT).filter(|seed| seed % 4 != 0) {
        store.remove(&format!("n{seed}"), false, None).unwrap();
    }
    let (expected, before) = (model(&store, COUNT).nodes, store.stats().unwrap().segment_bytes);
    drop(store);
    let (mut copies, mut kinds) = (0, BTreeSet::new());
    for step in 0.. {
        let place = folder.path().join(format!("at{step}"));
        copy(&made, &place);
        let faults = Faults::no_space_after(step);
        let store = Store::open_with(
            &place,
            &StoreOptions { segment_bytes: 16 << 10, ..options(faults.clone()) },
        )
        .unwrap();
        match store.compact(|_, _| ()) {
            Ok(report) => {
                assert_eq!(report.left_bytes, 0);
                assert!(store.stats().unwrap().segment_bytes < before / 2);
                copies += 1;
            }
            Err(Error::Io { path, .. }) => {
                // A segment's own file is never what stops it, but where one is removed.
                kinds.insert(path.file_name().unwrap().to_str().unwrap().to_owned());
            }
            Err(Error::Store { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        assert_eq!(model(&store, COUNT).nodes, expected, "no space at step {step}");
        verified(&store);
        let steps = faults.steps();
        drop(store);
        std::fs::remove_dir_all(&place).unwrap();
        if i64::try_from(steps).unwrap() <= step {
            break;
        }
    }
    assert!(copies > 5, "only {copies} compactions went on; stopped at {kinds:?}");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        match path.is_dir() {
            true => copy(&path, &to),
            false => std::fs::write(to, std::fs::read(path).unwrap()).unwrap(),
        }
    }
}
