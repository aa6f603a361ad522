//! Every import that was asked to end, by a terminal that closed or by a supervisor, left a hidden
//! folder of its size behind. Here imports are ended by each signal at any moment: nothing is left,
//! the status is the one shells know, and what a killed one must leave behind goes with the next
//! import, but never what somebody still works in.

#![cfg(unix)]

#[path = "../common/cli.rs"]
mod cli;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use pleach::testing::{TinyModel, tiny_hf_model};
use tempfile::TempDir;

use cli::pleach;

/// A base and a tree that takes a while to import.
struct Made {
    dir: TempDir,
}

impl Made {
    fn new(adapters: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        tiny_hf_model(&dir.path().join("base"), &TinyModel::default());
        let one = cli::adapter(2, 1);
        for k in 0..adapters {
            one.write(&dir.path().join(format!("tree/n{k}"))).unwrap();
        }
        Self { dir }
    }

    fn at(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn import(&self, store: &str) -> Child {
        let [tree, store, base] = ["tree", store, "base"].map(|name| self.at(name));
        Command::new(env!("CARGO_BIN_EXE_pleach"))
            .args(["store", "import", &tree, &store, "--base", &base, "--headroom", "4"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// What is in the folder beside base and tree.
    fn beside(&self) -> Vec<PathBuf> {
        let entries =
            std::fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path());
        let mut beside: Vec<_> =
            entries.filter(|path| !path.ends_with("base") && !path.ends_with("tree")).collect();
        beside.sort();
        beside
    }

    /// An import that has begun to make the store called `store`; none if it was quicker than we
    /// looked.
    fn begun(&self, store: &str) -> Option<Child> {
        let (before, begin) = (self.beside(), Instant::now());
        let mut import = self.import(store);
        while self.beside().iter().all(|path| before.contains(path)) {
            assert!(begin.elapsed() < Duration::from_secs(60), "it makes nothing");
            std::thread::yield_now();
        }
        import.try_wait().unwrap().is_none().then_some(import)
    }
}

fn send(process: &Child, signal: &str) {
    assert!(
        Command::new("kill").args([signal, &process.id().to_string()]).status().unwrap().success()
    );
}

fn end(process: Child, signal: &str) -> Output {
    send(&process, signal);
    process.wait_with_output().unwrap()
}

/// Whether this process was started with a signal ignored, which what it starts inherits.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).unwrap() >> (signal - 1) & 1 == 1)
}

fn is_making(path: &Path, store: &str) -> bool {
    path.file_name().unwrap().to_str().unwrap().starts_with(&format!(".{store}.making-"))
}

#[test]
fn an_import_that_is_told_to_end_leaves_nothing_behind() {
    let made = Made::new(2000);
    for (signal, status) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
        if is_ignored(status - 128) {
            assert_ne!(signal, "-TERM", "nothing would end the import");
            println!(
                "skipped: {signal} is ignored here, as with nohup, and so is it by what is started here"
            );
            continue;
        }
        let mut ended = 0;
        for round in 0..40 {
            let import = made.begun("store").expect("2,000 adapters take longer");
            std::thread::sleep(Duration::from_millis(13 * (round % 4)));
            let output = end(import, signal);
            if output.status.code() == Some(0) {
                // It was done first.
                assert!(pleach(&["store", "verify", &made.at("store")]).status == Some(0));
                std::fs::remove_dir_all(made.at("store")).unwrap();
                continue;
            }
            assert_eq!(output.status.code(), Some(status), "{signal}: {output:?}");
            assert!(
                output.stdout.is_empty() && made.beside().is_empty(),
                "{signal} left {:?}",
                made.beside()
            );
            ended += 1;
            if ended == 4 {
                break;
            }
        }
        assert!(ended > 0, "{signal} never came in time");
    }
}

/// `nohup` lets SIGHUP be ignored: it stays so.
#[test]
fn a_signal_that_is_ignored_stays_ignored() {
    let made = Made::new(60);
    let [tree, store, base] = ["tree", "store", "base"].map(|name| made.at(name));
    let script = "trap '' HUP; echo ignored; exec \"$@\"";
    let mut import = Command::new("sh")
        .args([
            "-c",
            script,
            "sh",
            env!("CARGO_BIN_EXE_pleach"),
            "store",
            "import",
            &tree,
            &store,
            "--base",
            &base,
        ])
        .args(["--headroom", "4"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Before the shell says so it would end by the first signal.
    let mut printed = BufReader::new(import.stdout.take().unwrap());
    printed.read_line(&mut String::new()).unwrap();
    while import.try_wait().unwrap().is_none() {
        send(&import, "-HUP");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(import.wait().unwrap().success());
}

#[test]
fn what_a_killed_import_left_goes_with_the_next_of_its_name() {
    let made = Made::new(400);
    for _ in 0..3 {
        let import = made.begun("store").expect("400 adapters take longer");
        end(import, "-KILL");
    }
    let left = made.beside();
    assert!(!left.is_empty() && left.iter().all(|path| is_making(path, "store")), "{left:?}");
    // One of another store, and what only looks as if it were ours.
    let [other, id] = ["ab", "0f"].map(|part| part.repeat(16));
    let strays = [
        format!(".storeroom.making-{other}"),
        format!(".store.making-{other}"),
        ".store.making-mine".to_owned(),
        format!(".store.making-{id}0"),
    ];
    for stray in &strays {
        std::fs::create_dir(made.at(stray)).unwrap();
        std::fs::write(PathBuf::from(made.at(stray)).join("notes.txt"), "mine").unwrap();
    }
    std::os::unix::fs::symlink(made.at("tree"), made.at(&format!(".store.making-{id}"))).unwrap();
    let output = made.import("store").wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stderr).unwrap();
    assert!(left.iter().all(|path| printed.contains(path.to_str().unwrap())), "{printed}");
    assert!(left.iter().all(|path| !path.exists()));
    for stray in &strays {
        assert_eq!(
            std::fs::read(PathBuf::from(made.at(stray)).join("notes.txt")).unwrap(),
            b"mine",
            "{stray}"
        );
    }
    assert!(PathBuf::from(made.at(&format!(".store.making-{id}"))).is_symlink());
    assert_eq!(std::fs::read_dir(made.at("tree")).unwrap().count(), 400);
}

/// One that is slow, or stopped, is not one that was killed.
#[test]
fn what_another_import_is_at_is_left_alone() {
    let made = Made::new(400);
    let slow = made.begun("store").expect("400 adapters take longer");
    send(&slow, "-STOP");
    let [making] = &made.beside()[..] else { panic!("{:?}", made.beside()) };
    let quick = made.import("store").wait_with_output().unwrap();
    assert!(quick.status.success() && quick.stderr.is_empty(), "{quick:?}");
    assert!(making.exists());
    let before = std::fs::read(made.at("store/catalogue.db")).unwrap();
    let output = end(slow, "-CONT");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("there is something here already"));
    assert!(!making.exists() && std::fs::read(made.at("store/catalogue.db")).unwrap() == before);
    assert_eq!(made.beside().len(), 1);
    assert_eq!(pleach(&["store", "verify", &made.at("store")]).status, Some(0));
}
