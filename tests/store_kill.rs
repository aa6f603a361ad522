//! Power goes and processes are killed in the middle of a write; stores that promised otherwise
//! have come back with half a change, or without one they had confirmed. Here a process that
//! changes a store is killed again and again, at any moment, on the same store, alone and beside
//! another: what it had confirmed is there, and the one change it was at is there whole or not at
//! all.

#[path = "common/stored.rs"]
mod stored;

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pleach::Error;
use pleach::error::StoreDefect;
use pleach::store::{Store, StoreOptions};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use stored::{Model, Op, info, lattice, look, scratch, verified};

/// Shows the process that it is the one to be killed: folder of the store, its log, its part of the
/// tree, its seed.
const CHILD: &str = "PLEACH_KILLED_CHILD";
const NAMES: [&str; 9] = ["a", "b", "c", "a/x", "a/y", "a/x/u", "b/x", "b/x/v", "c/w"];

fn open(folder: &Path) -> Store {
    Store::open_with(folder, &StoreOptions { segment_bytes: 64 << 10, ..StoreOptions::default() })
        .unwrap()
}

/// The part of the model whose names begin with `part`.
fn part_of(model: &Model, part: &str) -> Model {
    let mut model = model.clone();
    model.nodes.retain(|name, _| name.starts_with(part));
    model.past.retain(|(name, _), _| name.starts_with(part));
    model
}

fn all_names() -> BTreeSet<String> {
    ["p0", "p1"].iter().flat_map(|part| NAMES.map(|name| format!("{part}/{name}"))).collect()
}

/// A change that the model allows.
fn any_op(model: &Model, part: &str, rng: &mut StdRng) -> Op {
    let name = |rng: &mut StdRng| format!("{part}/{}", NAMES.choose(rng).unwrap());
    loop {
        let op = match rng.random_range(0..40) {
            0..12 => Op::Publish(name(rng), rng.random_range(0..500)),
            12..20 => Op::Replace(name(rng), rng.random_range(0..500)),
            20..25 => Op::Remove(name(rng)),
            25..29 => {
                // Only what stays inside the pool of names.
                let (from, to) =
                    [("a", "b"), ("b/x", "a/x"), ("c", "a"), ("a/x/u", "b/x/v"), ("c/w", "a/y")]
                        [rng.random_range(0..5)];
                let op = Op::Move(format!("{part}/{from}"), format!("{part}/{to}"));
                let mut then = model.clone();
                if then.allows(&op) {
                    then.make(&op, 1);
                }
                if !then.names().is_subset(&all_names()) {
                    continue;
                }
                op
            }
            29..34 => match model.past.keys().collect::<Vec<_>>().choose(rng) {
                Some((name, generation)) => Op::Rollback(name.clone(), *generation),
                None => continue,
            },
            34..39 => Op::Batch(
                (0..3).map(|_| Op::Publish(name(rng), rng.random_range(0..500))).collect(),
            ),
            _ => Op::Compact,
        };
        if model.allows(&op) {
            return op;
        }
    }
}

/// Changes its part of the store for ever; writes to the log before and after each change.
fn be_killed(named: &str) -> ! {
    let (folder, log, part, seed): (String, String, String, u64) =
        serde_json::from_str(named).unwrap();
    let mut log = OpenOptions::new().append(true).open(log).unwrap();
    let mut note = |line: String| log.write_all(format!("{line}\n").as_bytes()).unwrap();
    let mut rng = StdRng::seed_from_u64(seed);
    let store = open(Path::new(&folder));
    let mut model = Model::default();
    // The other process may be at work, and move bytes that are being read.
    for node in store.list(&format!("{part}/"), None, usize::MAX).unwrap() {
        let version = node.version;
        let held = stored::Held {
            parent: version.parent,
            generation: version.generation,
            content_generation: version.content_generation,
            trained_on: version.trained_on,
            seed: 0,
        };
        model.nodes.insert(node.name, held);
    }
    note("ready".into());
    loop {
        let op = any_op(&model, &part, &mut rng);
        note(format!("try {}", serde_json::to_string(&op).unwrap()));
        match op.make(&store) {
            Ok(made) => {
                let first = made.unwrap_or_default() + 1 - op.generations();
                model.make(&op, first);
                note(format!("done {first}"));
            }
            // The other process has compacted: there is nothing left to go back to.
            Err(Error::Store { defect, .. })
                if matches!(*defect, StoreDefect::UnknownGeneration { .. }) =>
            {
                model.past.clear();
                note("refused".into());
            }
            Err(Error::Tree(_)) if matches!(op, Op::Rollback(..)) => {
                model.past.clear();
                note("refused".into());
            }
            Err(error) => {
                note(format!("failed {error}"));
                panic!("{error}");
            }
        }
    }
}

struct Victim {
    process: Child,
    log: std::path::PathBuf,
    part: &'static str,
}

impl Victim {
    fn start(folder: &Path, store: &Path, part: &'static str, seed: u64) -> Self {
        let log = folder.join(format!("{part}.log"));
        File::create(&log).unwrap();
        let named = serde_json::to_string(&(store, &log, part, seed)).unwrap();
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "what_a_killed_process_had_confirmed_is_there", "--nocapture"])
            .env(CHILD, named)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { process, log, part }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn wait_until_ready(&mut self) {
        while !self.log().starts_with("ready") {
            assert!(self.process.try_wait().unwrap().is_none(), "it ended: {}", self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What its part of the store may be, from what it was and the log; returns how many changes
    /// were confirmed.
    fn check(&self, before: &Model, found: &Model, alone: bool) -> usize {
        let mut model = part_of(before, self.part);
        let (mut trying, mut done): (Option<Op>, usize) = (None, 0);
        let log = self.log();
        // The last line may be half written.
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        for line in whole.lines() {
            match line.split_once(' ').unwrap_or((line, "")) {
                ("ready" | "refused", _) => trying = None,
                ("try", op) => trying = Some(serde_json::from_str(op).unwrap()),
                ("done", first) => {
                    model.make(&trying.take().unwrap(), first.parse().unwrap());
                    done += 1;
                }
                _ => panic!("{line}"),
            }
        }
        let found = part_of(found, self.part);
        let same = |model: &Model| {
            let past = if alone {
                model.past == found.past
            } else {
                // The other one may have compacted.
                found.past.iter().all(|(key, past)| model.past.get(key) == Some(past))
            };
            model.nodes == found.nodes && past
        };
        let mut after = model.clone();
        if let Some(op) = &trying {
            // Not below what was there before: the other one may have forgotten what this change
            // took away.
            let first = (found.last_generation() + 1).saturating_sub(op.generations());
            after.make(op, first.max(model.last_generation() + 1));
        }
        let log = log.lines().rev().take(6).collect::<Vec<_>>();
        assert!(
            same(&model) || same(&after),
            "{log:?}\nfound {found:#?}\ninstead of {model:#?}\nor {after:#?}"
        );
        done
    }
}

#[test]
fn what_a_killed_process_had_confirmed_is_there() {
    if let Ok(named) = std::env::var(CHILD) {
        be_killed(&named);
    }
    let kills: usize = std::env::var("PLEACH_KILLS").map_or(60, |kills| kills.parse().unwrap());
    let folder = scratch();
    let place = folder.path().join("store");
    drop(Store::create(&place, info(), lattice()).unwrap());
    // Stays open through all of it.
    let reader =
        Store::open_with(&place, &StoreOptions { read_only: true, ..StoreOptions::default() })
            .unwrap();
    let mut rng = StdRng::seed_from_u64(7);
    let (mut model, mut done, mut killed, mut round) = (Model::default(), 0, 0, 0);
    while killed < kills {
        round += 1;
        let parts: &[&'static str] = if round % 4 == 0 { &["p0", "p1"] } else { &["p0"] };
        let mut victims: Vec<Victim> = parts
            .iter()
            .map(|part| Victim::start(folder.path(), &place, part, rng.random()))
            .collect();
        // Now and then while it still opens the store, which mends what the last kill left.
        if round % 8 != 0 {
            victims.iter_mut().for_each(Victim::wait_until_ready);
        }
        std::thread::sleep(Duration::from_micros(rng.random_range(1000..40_000)));
        for victim in &mut victims {
            // SIGKILL on Unix, its like elsewhere.
            victim.process.kill().unwrap();
            assert!(!victim.process.wait().unwrap().success());
            killed += 1;
        }
        let store = open(&place);
        let mut names = all_names();
        names.extend(model.names());
        let found = look(&store, &names).unwrap();
        assert_eq!(
            look(&reader, &names).unwrap().nodes,
            found.nodes,
            "as one sees it who may only read"
        );
        done += victims
            .iter()
            .map(|victim| victim.check(&model, &found, victims.len() == 1))
            .sum::<usize>();
        if round % 50 == 0 || killed >= kills {
            verified(&store);
        }
        model = found;
    }
    assert!(done > kills, "only {done} changes in {kills} kills");
    let report = open(&place).compact(|_, _| ()).unwrap();
    assert_eq!(look(&open(&place), &all_names()).unwrap().nodes, model.nodes, "after {report:?}");
}
