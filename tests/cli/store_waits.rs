//! A publisher that was stopped, not killed, in the middle of a change made `store stat` wait
//! without a word; and a lock that any user may put on a file he can read shut every reader and
//! writer out. Here processes stop at every step of a change: who reads does not wait, and who must
//! learns for whom, as long as was asked.

#![cfg(unix)]

#[path = "../common/stored.rs"]
mod stored;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pleach::error::StoreDefect;
use pleach::store::{Faults, Store, StoreOptions};
use pleach::{Error, Result};
use stored::{content, info, labelled, lattice, scratch, seed_of, verified};

/// Shows a process that it is the one that stops: the step, and the folder of the store.
const CHILD: &str = "PLEACH_STOPPED_CHILD";
const THIS: &str = "a_publisher_that_is_stopped_keeps_no_reader_waiting";

fn signal(process: u32, name: &str) {
    assert!(Command::new("kill").args([name, &process.to_string()]).status().unwrap().success());
}

/// Publishes a node, and stops before the step named.
fn stop_in_a_change(named: &str) {
    let (step, folder) = named.split_once(' ').unwrap();
    let at: u64 = step.parse().unwrap();
    let faults = Faults::watched(move |step| {
        if step == at {
            signal(std::process::id(), "-STOP");
        }
    });
    let store =
        Store::open_with(Path::new(folder), &StoreOptions { faults, ..StoreOptions::default() })
            .unwrap();
    store.publish("later", content(7), labelled(7)).unwrap();
}

/// A process that has stopped in a change; goes on when it is dropped.
struct Stopped {
    process: Child,
}

impl Stopped {
    /// Nothing if it made its change before that step.
    fn before_step(step: u64, folder: &Path) -> Option<Self> {
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", THIS])
            .env(CHILD, format!("{step} {}", folder.display()))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut stopped = Self { process };
        loop {
            if let Some(status) = stopped.process.try_wait().unwrap() {
                assert!(status.success());
                return None;
            }
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", stopped.id())).unwrap();
            if stat.rsplit_once(')').unwrap().1.trim_start().starts_with('T') {
                return Some(stopped);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn id(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if self.process.try_wait().unwrap().is_none() {
            signal(self.id(), "-CONT");
        }
        assert!(self.process.wait().unwrap().success());
    }
}

fn made() -> (tempfile::TempDir, PathBuf) {
    let folder = scratch();
    let path = folder.path().join("store");
    let store = Store::create(&path, info(), lattice()).unwrap();
    store.publish("fr", content(1), labelled(1)).unwrap();
    drop(store);
    (folder, path)
}

fn busy<T>(result: Result<T>) -> (String, f64) {
    match result.err().expect("it is refused") {
        Error::Store { defect, .. } => match *defect {
            StoreDefect::Busy { holder, seconds } => (holder, seconds),
            other => panic!("{other}"),
        },
        other => panic!("{other}"),
    }
}

/// Everything that reads, in a store opened now; returns how many nodes there are.
fn read_all(path: &Path) -> Result<u64> {
    let store = Store::open_within(path, Duration::from_millis(300))?;
    let nodes = store.stats()?.nodes;
    assert_eq!(store.list("", None, 10)?.len() as u64, nodes);
    assert_eq!(store.children("/", None, 1)?, ["fr"]);
    assert!(store.history("fr")?.is_empty());
    assert_eq!(seed_of(&store, &store.get("fr")?.version)?, 1);
    store.lattice().map(|_| nodes)
}

#[cfg(target_os = "linux")]
#[test]
fn a_publisher_that_is_stopped_keeps_no_reader_waiting() {
    if let Ok(named) = std::env::var(CHILD) {
        return stop_in_a_change(&named);
    }
    let (mut at_once, mut while_committing) = (0, 0);
    for step in 0.. {
        let (_folder, path) = made();
        let Some(stopped) = Stopped::before_step(step, &path) else { break };
        // While the head of the catalogue is written nobody may read it, and one may be stopped in
        // that.
        let is_made = match read_all(&path) {
            Ok(nodes) => {
                at_once += 1;
                nodes == 2
            }
            Err(error) => {
                let (holder, _) = busy(Err::<(), _>(error));
                assert!(holder.starts_with(&format!("process {} (", stopped.id())), "{holder}");
                while_committing += 1;
                false
            }
        };
        if is_made {
            // It stopped behind its change.
            continue;
        }
        let begin = Instant::now();
        let refused = Store::open_within(&path, Duration::from_millis(50))
            .and_then(|store| store.publish("mine", content(2), labelled(2)));
        let (holder, seconds) = busy(refused);
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        assert!((seconds - 0.05).abs() < 1e-9);
        assert!(
            holder.starts_with(&format!("process {} (", stopped.id()))
                && holder.ends_with(", stopped)"),
            "{holder}"
        );
        drop(stopped);
        let store = Store::open(&path).unwrap();
        store.publish("mine", content(2), labelled(2)).unwrap();
        assert_eq!(store.len().unwrap(), 3);
        verified(&store);
    }
    let printed = format!(
        "{at_once} steps at which readers did not wait, {while_committing} at which they did"
    );
    assert!(at_once > 3 && at_once >= while_committing, "{printed}");
}

#[cfg(target_os = "linux")]
#[test]
fn the_command_line_tells_for_whom_it_waits_and_no_longer_than_asked() {
    let stopped_writing_a_segment = || {
        (0..).find_map(|step| {
            let (folder, path) = made();
            let stopped = Stopped::before_step(step, &path).unwrap();
            // Before its change is made: behind it nobody waits.
            (read_all(&path).ok() == Some(1)).then_some((stopped, folder, path))
        })
    };
    let (stopped, _folder, path) = stopped_writing_a_segment().unwrap();
    let pleach = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pleach"));
        command.arg("store").args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let store = path.to_str().unwrap();
    for reading in [&["stat", store][..], &["list", store], &["history", store, "fr"]] {
        let output = pleach(&[reading, &["--timeout", "20"]].concat()).wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{reading:?}: {output:?}");
    }
    let name = format!("process {} (", stopped.id());
    let refused = pleach(&["remove", store, "fr", "--timeout", "0.2"]).wait_with_output().unwrap();
    let printed = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        printed.starts_with("error: ") && printed.contains(&name) && printed.contains("stopped"),
        "{printed}"
    );
    assert!(printed.contains("0.2 s") && printed.contains("--timeout"), "{printed}");
    // Without a limit, or within it, it waits, says so after a second, and goes on when it can.
    let mut waiting =
        [(&["remove", store, "fr"][..]), &["compact", store, "--timeout", "300"]].map(pleach);
    for process in &mut waiting {
        let stderr = process.stderr.take().unwrap();
        let line = BufReader::new(stderr).lines().next().unwrap().unwrap();
        assert!(
            line.starts_with("warning: ") && line.contains(&name) && line.contains("waiting for"),
            "{line}"
        );
        assert!(process.try_wait().unwrap().is_none());
    }
    drop(stopped);
    for mut process in waiting {
        assert!(process.wait().unwrap().success());
    }
    assert_eq!(Store::open(&path).unwrap().len().unwrap(), 1);
}

/// Whoever may read a file may lock the whole of it.
#[test]
fn a_lock_that_any_user_may_take_shuts_nobody_out() {
    let (_folder, path) = made();
    let locks = ["catalogue.db", "segments/00000001.seg", "segments", ""]
        .map(|name| File::open(path.join(name)).unwrap());
    locks.iter().for_each(|file| file.lock().unwrap());
    let store = Store::open_within(&path, Duration::from_secs(5)).unwrap();
    assert_eq!(seed_of(&store, &store.get("fr").unwrap().version).unwrap(), 1);
    store.publish("de", content(2), labelled(2)).unwrap();
    store.remove("de", false, None).unwrap();
    store.compact(|_, _| ()).unwrap();
    store.compact_catalogue().unwrap();
    verified(&store);
}
