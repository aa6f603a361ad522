//! Bits rot, and files are cut short by copies that never ended; a database that does not look
//! answers from what is left. Here every byte of a small store is changed and every file is cut at
//! every length: each question is answered rightly or refused with a typed error. Nothing is
//! missing without a word, and no panic gets out.

#[path = "common/stored.rs"]
mod stored;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use pleach::error::TreeDefect;
use pleach::store::Store;
use pleach::{Error, Result};
use stored::{Op, compiled, content, info, labelled, lattice, scratch, seed_of, verified};

/// Panics of the database, caught on their way.
static PANICS: AtomicUsize = AtomicUsize::new(0);

const NAMES: [&str; 7] = ["de", "de/eva", "fr", "fr/alice", "fr/bob", "fr/bob/late", "it"];

/// Half a dozen nodes, some with a past.
fn small_store(folder: &Path) {
    let store = Store::create(folder, info(), lattice()).unwrap();
    for (seed, name) in (1..).zip(["fr", "fr/alice", "fr/bob", "de", "de/eva", "it"]) {
        store.publish(name, content(seed), labelled(seed)).unwrap();
    }
    for op in [
        Op::Replace("fr/alice".into(), 7),
        Op::Remove("it".into()),
        Op::Publish("fr/bob/late".into(), 8),
        Op::Replace("de".into(), 9),
    ] {
        op.make(&store).unwrap();
    }
    verified(&store);
}

/// What is asked of a store, each question with its answer.
fn ask(store: &Store) -> Vec<(String, Result<String>)> {
    let mut answers = vec![
        ("lattice".to_owned(), store.lattice().map(|found| (*found == *lattice()).to_string())),
        ("len".to_owned(), store.len().map(|found| found.to_string())),
    ];
    for prefix in ["", "fr", "de/"] {
        answers.push((
            format!("list {prefix}"),
            store.list(prefix, None, 100).map(|found| format!("{found:?}")),
        ));
    }
    let after = store.list("", Some("fr"), 2).map(|found| format!("{found:?}"));
    answers.push(("list after".to_owned(), after));
    for name in NAMES.into_iter().chain(["/", "de/nobody"]) {
        let got = || -> Result<String> {
            let node = store.get(name)?;
            let seed = seed_of(store, &node.version)?;
            Ok(format!("{seed} {} {node:?}", compiled(seed).len()))
        };
        if name != "/" {
            answers.push((format!("get {name}"), got()));
            answers
                .push((format!("path {name}"), store.path(name).map(|found| format!("{found:?}"))));
            let past = || -> Result<String> {
                let past = store.history(name)?;
                let seeds = past
                    .iter()
                    .map(|past| seed_of(store, &past.version))
                    .collect::<Result<Vec<_>>>()?;
                Ok(format!("{seeds:?} {past:?}"))
            };
            answers.push((format!("history {name}"), past()));
        }
        answers.push((
            format!("children {name}"),
            store.children(name, None, 9).map(|found| format!("{found:?}")),
        ));
    }
    answers
}

/// An answer to hold others against: what was found, that there is no such node, or that it was
/// refused.
fn answered(answer: Result<String>) -> String {
    match answer {
        Ok(found) => found,
        Err(Error::Tree(defect)) if matches!(*defect, TreeDefect::UnknownNode { .. }) => {
            "unknown".into()
        }
        Err(Error::Store { .. } | Error::Io { .. }) => "refused".into(),
        Err(error) => panic!("{error:?}"),
    }
}

/// What many damaged stores answered.
#[derive(Debug, Default)]
struct Census {
    /// All answers were right.
    harmless: usize,
    /// Some questions were refused.
    refused: usize,
    /// The store did not open.
    unopened: usize,
    /// What was answered wrongly.
    wrong: Vec<String>,
    /// Wrong answers by question.
    by_question: BTreeMap<String, usize>,
    /// A verification found nothing, and yet something was refused or wrong.
    missed: Vec<String>,
}

impl Census {
    fn take(&mut self, what: &str, folder: &Path, truth: &[(String, String)], verify: bool) {
        let store = match Store::open(folder) {
            Ok(store) => store,
            Err(error) => {
                assert_eq!(answered(Err(error)), "refused");
                self.unopened += 1;
                return;
            }
        };
        let (mut right, mut refused) = (true, false);
        for ((question, found), (_, truth)) in ask(&store).into_iter().zip(truth) {
            let found = answered(found);
            if found == "refused" {
                refused = true;
            } else if found != *truth {
                right = false;
                self.wrong.push(format!("{what}: {question}: {found} instead of {truth}"));
                *self.by_question.entry(question).or_default() += 1;
            }
        }
        if right {
            *(if refused { &mut self.refused } else { &mut self.harmless }) += 1;
        }
        if (verify || !right)
            && store.verify(true, |_, _| ()).is_ok_and(|report| report.is_clean())
            && (refused || !right)
        {
            self.missed.push(what.to_owned());
        }
    }
}

struct Damaged {
    _folder: tempfile::TempDir,
    store: PathBuf,
    truth: Vec<(String, String)>,
}

fn damaged() -> Damaged {
    let folder = scratch();
    let store = folder.path().join("store");
    small_store(&store);
    let truth = ask(&Store::open(&store).unwrap())
        .into_iter()
        .map(|(question, found)| (question, answered(found)));
    let truth: Vec<_> = truth.collect();
    assert!(truth.iter().all(|(_, found)| found != "refused"));
    std::panic::set_hook(Box::new(|info| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        // Those of the database are caught.
        if info.location().is_some_and(|at| at.file().contains("store_damage")) {
            let _ = std::io::stderr().write_all(format!("{info}\n").as_bytes());
        }
    }));
    Damaged { _folder: folder, store, truth }
}

fn end(name: &str, census: &Census) {
    let _ = std::panic::take_hook();
    let Census { harmless, refused, unopened, wrong, by_question, missed } = census;
    let printed = format!(
        "{name}: {harmless} harmless, {refused} refused, {unopened} not opened, {} wrong answers {by_question:?}, {} missed by \
         verification, {} panics caught\n",
        wrong.len(),
        missed.len(),
        PANICS.load(Ordering::Relaxed)
    );
    std::io::stderr().write_all(printed.as_bytes()).unwrap();
    assert_eq!(PANICS.load(Ordering::Relaxed), 0, "{printed}");
    assert!(
        wrong.is_empty() && missed.is_empty(),
        "{printed}{}",
        wrong[..wrong.len().min(20)].join("\n")
    );
}

/// Every how many-th byte is looked at; 1 takes minutes.
fn stride() -> usize {
    std::env::var("PLEACH_DAMAGE_STRIDE").map_or(37, |stride| stride.parse().unwrap())
}

/// Changes byte after byte of `file` and asks the store each time.
fn change_bytes(name: &str, file: &str) -> Census {
    let Damaged { _folder, store, truth } = damaged();
    let path = store.join(file);
    let whole = std::fs::read(&path).unwrap();
    let mut census = Census::default();
    for at in (0..whole.len()).step_by(stride()) {
        for by in [0x01, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= by;
            std::fs::write(&path, &bytes).unwrap();
            census.take(&format!("byte {at} ^ {by}"), &store, &truth, at % 64 == 0);
        }
    }
    end(name, &census);
    census
}

#[test]
fn a_changed_byte_of_the_catalogue_is_told_or_harmless() {
    change_bytes("catalogue bytes", "catalogue.db");
}

#[test]
fn a_changed_byte_of_a_segment_is_told_or_harmless() {
    let census = change_bytes("segment bytes", "segments/00000001.seg");
    assert_eq!(census.unopened, 0, "opening reads the catalogue only");
}

#[test]
fn a_file_cut_short_is_told_or_harmless() {
    let Damaged { _folder, store, truth } = damaged();
    for (file, step) in [("segments/00000001.seg", stride()), ("catalogue.db", 16 * stride())] {
        let path = store.join(file);
        let whole = std::fs::read(&path).unwrap();
        let mut census = Census::default();
        let edges =
            (0..whole.len()).filter(|at| matches!(at % 4096, 0 | 1 | 4095) || at % step == 0);
        for at in edges {
            std::fs::write(&path, &whole[..at]).unwrap();
            census.take(&format!("{file} cut at {at}"), &store, &truth, at % 64 == 0);
        }
        std::fs::write(&path, &whole).unwrap();
        end(&format!("cut {}", &file[..3]), &census);
    }
}
