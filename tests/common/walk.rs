//! A walk over a store beside a model in memory, drawn from bytes: the same bytes, the same walk.
//! `tests/store_walk.rs` draws the bytes from seeds, the fuzz target `store_walk` from libFuzzer.
//!
//! The model is [`Model`], changed by the rules of `drawn.rs`. Every change must be made or refused
//! as the model has it, every answer must be the model's, and a change that fails on the way to the
//! disk must leave the store before or after it, never between.
//!
//! **Source:** the idea is redb's `fuzz_redb.rs`: a naive model, and a countdown to a failed step.

// A module of the crates that include it, where `pub` reaches no further.
#![allow(unreachable_pub, reason = "shared by a test and a fuzz target")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use pleach::error::StoreDefect;
use pleach::store::{Changes, Faults, Store, StoreOptions};
use pleach::{Error, Result};

use super::drawn::{Change, Choices, Name, make};
use super::stored::{Model, info, lattice, look, scratch, seed_of, verified};

/// So small that a walk of some twenty changes fills several segments.
const SEGMENT_BYTES: u64 = 4096;
/// A walk ends here: a fuzzer finds more in many short walks than in a long one.
const MOST_STEPS: usize = 64;

/// A model and the last generation given.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Expected {
    model: Model,
    generation: u64,
}

impl Expected {
    /// After a batch; nothing where it must be refused.
    fn after(&self, batch: &[Change]) -> Option<Self> {
        let Self { mut model, mut generation } = self.clone();
        for change in batch {
            generation += 1;
            make(&mut model, change, generation)?;
        }
        Some(Self { model, generation })
    }

    /// After a compaction.
    fn compacted(&self) -> Self {
        let mut compacted = self.clone();
        compacted.model.past.clear();
        compacted
    }
}

/// How often a walk did what: a walk that is refused everything tests nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Batches that were made.
    pub made: usize,
    /// Batches that were refused.
    pub refused: usize,
    /// Compactions.
    pub compacted: usize,
    /// Changes and compactions that a failed step broke off.
    pub broken_off: usize,
    /// Those of them that turned out to have been made.
    pub made_nevertheless: usize,
    /// Times the store was opened again.
    pub reopened: usize,
}

struct Walk {
    place: PathBuf,
    /// There but while it is opened again.
    store: Option<Store>,
    /// Open for all of the walk, and never written through.
    reader: Store,
    expected: Expected,
    /// Every name that was ever in it.
    names: BTreeSet<String>,
    tally: Tally,
}

fn options(faults: Faults) -> StoreOptions {
    StoreOptions { faults, segment_bytes: SEGMENT_BYTES, ..StoreOptions::default() }
}

fn is_unconfirmed(error: &Error) -> bool {
    matches!(error, Error::Store { defect, .. }
        if matches!(**defect, StoreDefect::Unconfirmed { .. }))
}

/// Whether an error is what a failed step may become.
fn is_of_the_disk(error: &Error) -> bool {
    matches!(error, Error::Io { .. })
        || is_unconfirmed(error)
        || matches!(error, Error::Store { defect, .. }
            if matches!(**defect, StoreDefect::Catalogue { .. }))
}

impl Walk {
    fn new(place: &Path) -> Result<Self> {
        let options = options(Faults::default());
        let store = Store::create_with(place, info(), lattice(), &options)?;
        let reader = Store::open_with(place, &StoreOptions { read_only: true, ..options })?;
        let expected = Expected { model: Model::default(), generation: 0 };
        let (names, tally) = (BTreeSet::new(), Tally::default());
        Ok(Self { place: place.to_owned(), store: Some(store), reader, expected, names, tally })
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("it is open")
    }

    /// Closes the store and opens it again, with these faults. Closed first: where the disk failed
    /// for good, what became of an unconfirmed change is settled when the handle that made it is
    /// gone and the next opens to write.
    fn reopen(&mut self, faults: Faults) -> Result<()> {
        self.tally.reopened += 1;
        self.store = None;
        self.store = Some(Store::open_with(&self.place, &options(faults))?);
        Ok(())
    }

    /// Opens the store again with a fault under way; false where opening itself runs into it: it
    /// tidies up what a handle left that could not close.
    fn reopen_failing(&mut self, fault: Fault) -> Result<bool> {
        match self.reopen(fault.faults()) {
            Err(error) if is_of_the_disk(&error) => {
                self.tally.broken_off += 1;
                self.reopen(Faults::default()).map(|()| false)
            }
            opened => opened.map(|()| true),
        }
    }

    fn step(&mut self, choices: &mut Choices<'_>) -> Result<()> {
        match choices.below(16) {
            0..10 => {
                let change = [choices.change(&self.expected.model)];
                self.apply(&change, None)
            }
            10 => {
                let batch = self.batch(choices);
                self.apply(&batch, None)
            }
            11 => self.reopen(Faults::default()),
            12 => self.compact(None),
            13 => {
                let fault = Fault::drawn(choices);
                self.compact(Some(fault))
            }
            _ => {
                let fault = Fault::drawn(choices);
                let batch = self.batch(choices);
                self.apply(&batch, Some(fault))
            }
        }?;
        self.compare(choices)
    }

    /// One to four changes, each drawn for what those before it would leave.
    fn batch(&self, choices: &mut Choices<'_>) -> Vec<Change> {
        let mut batch = Vec::new();
        let mut then = self.expected.model.clone();
        for at in 0..=choices.below(4) {
            let change = choices.change(&then);
            let mut made = then.clone();
            if make(&mut made, &change, self.expected.generation + 1 + at as u64).is_some() {
                then = made;
            }
            batch.push(change);
        }
        batch
    }

    /// Makes a batch, with a fault under way if there is one.
    fn apply(&mut self, batch: &[Change], fault: Option<Fault>) -> Result<()> {
        let mut changes = Changes::new();
        batch.iter().for_each(|change| change.add_to(&mut changes));
        let after = self.expected.after(batch);
        if let Some(fault) = fault {
            if !self.reopen_failing(fault)? {
                return Ok(());
            }
            let applied = self.store().apply(&changes).map(drop);
            return self.settle(applied, after, fault);
        }
        let first = self.expected.generation + 1;
        match (self.store().apply(&changes), after) {
            (Ok(made), Some(after)) => {
                assert_eq!(made, (first..=after.generation).collect::<Vec<_>>(), "{batch:?}");
                self.tally.made += 1;
                self.take(after);
            }
            (Err(error), None) => {
                let is_refusal = matches!(error, Error::Store { .. } | Error::Tree(_));
                assert!(is_refusal && !is_of_the_disk(&error), "{batch:?}: {error}");
                self.tally.refused += 1;
            }
            (Ok(made), None) => panic!("{batch:?} must be refused, made {made:?}"),
            (Err(error), Some(_)) => panic!("{batch:?}: {error}"),
        }
        Ok(())
    }

    fn compact(&mut self, fault: Option<Fault>) -> Result<()> {
        let compact = |store: &Store| {
            store.compact(|_, _| ())?;
            store.compact_catalogue()
        };
        let after = self.expected.compacted();
        let Some(fault) = fault else {
            compact(self.store())?;
            self.tally.compacted += 1;
            self.take(after);
            return Ok(());
        };
        if !self.reopen_failing(fault)? {
            return Ok(());
        }
        let compacted = compact(self.store());
        self.settle(compacted, Some(after), fault)
    }

    /// Finds out what a change did that a failed step may have broken off.
    fn settle(&mut self, done: Result<()>, after: Option<Expected>, fault: Fault) -> Result<()> {
        let before = self.expected.clone();
        match (done, after) {
            (Ok(()), Some(after)) => self.take(after),
            (Ok(()), None) => panic!("made what must be refused"),
            (Err(error), after) if is_of_the_disk(&error) => {
                self.tally.broken_off += 1;
                // Where the disk works again, so does the store that was open.
                if fault.for_good {
                    self.reopen(Faults::default())?;
                }
                let names: BTreeSet<_> = after
                    .iter()
                    .flat_map(|after| after.model.names())
                    .chain(self.names.iter().cloned())
                    .collect();
                let found = look(self.store(), &names)?;
                if found != before.model {
                    let after = after.filter(|after| found == after.model);
                    let after = after
                        .unwrap_or_else(|| panic!("{error}: neither before nor after, {found:#?}"));
                    self.tally.made_nevertheless += 1;
                    self.take(after);
                }
                verified(self.store());
            }
            (Err(error), Some(_)) => panic!("{error}"),
            (Err(_), None) => {}
        }
        self.reopen(Faults::default())
    }

    fn take(&mut self, after: Expected) {
        self.names.extend(after.model.names());
        self.expected = after;
    }

    /// Holds every answer of the store, and of one that was open all the time, against the model.
    fn compare(&self, choices: &mut Choices<'_>) -> Result<()> {
        let Expected { model, generation } = &self.expected;
        let (path, prefix) = (choices.name(), choices.name());
        for store in [self.store(), &self.reader] {
            assert_eq!(look(store, &self.names)?, *model);
            assert_eq!(store.stats()?.generation, *generation);
            self.compare_path(store, &path)?;
            self.compare_list(store, &prefix.clean)?;
        }
        Ok(())
    }

    /// What a switch to a node resolves, and the bytes it reads.
    fn compare_path(&self, store: &Store, name: &Name) -> Result<()> {
        let nodes = &self.expected.model.nodes;
        let mut expected = Vec::new();
        let mut at = &name.clean;
        while let Some(held) = nodes.get(at) {
            expected.push((at.clone(), held.generation));
            at = &held.parent;
        }
        expected.reverse();
        match store.path(&name.given) {
            Ok(path) => {
                let found: Vec<_> =
                    path.iter().map(|node| (node.name.clone(), node.version.generation)).collect();
                assert_eq!(found, expected);
                for node in &path {
                    let seed = seed_of(store, &node.version)?;
                    assert_eq!(seed, nodes[&node.name].seed);
                }
            }
            Err(Error::Tree(_)) => assert!(expected.is_empty(), "{name:?} is there"),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Names that begin alike, page by page.
    fn compare_list(&self, store: &Store, prefix: &str) -> Result<()> {
        let nodes = &self.expected.model.nodes;
        let expected: Vec<_> = nodes.keys().filter(|name| name.starts_with(prefix)).collect();
        let mut found = Vec::new();
        loop {
            let page = store.list(prefix, found.last().map(String::as_str), 2)?;
            if page.is_empty() {
                break;
            }
            found.extend(page.into_iter().map(|node| node.name));
        }
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "names that begin with {prefix:?}");
        Ok(())
    }
}

/// A failure of one step to disk, once or for good.
#[derive(Clone, Copy, Debug)]
struct Fault {
    after: i64,
    for_good: bool,
    full: bool,
}

impl Fault {
    fn drawn(choices: &mut Choices<'_>) -> Self {
        // A change takes some thirty steps, a compaction more.
        let after = i64::from(choices.byte() % 80);
        Self { after, for_good: choices.below(2) == 0, full: choices.rarely(4) }
    }

    fn faults(self) -> Faults {
        match self.full && !self.for_good {
            true => Faults::no_space_after(self.after),
            false => Faults::after(self.after, self.for_good),
        }
    }
}

/// Takes the walk that `bytes` decide.
///
/// # Panics
/// Where the store is not what the model says.
pub fn walk(bytes: &[u8]) -> Tally {
    let folder = scratch();
    let mut walk = Walk::new(&folder.path().join("store")).unwrap();
    let mut choices = Choices(bytes);
    for _ in 0..MOST_STEPS {
        if choices.0.is_empty() {
            break;
        }
        walk.step(&mut choices).unwrap();
    }
    walk.reopen(Faults::default()).unwrap();
    walk.compare(&mut choices).unwrap();
    verified(walk.store());
    walk.tally
}
