//! A plain model of a store, and what a store on disk looks like beside it.

// Each test file compiles this for itself and uses a part of it.
#![allow(dead_code, unreachable_pub, reason = "shared by test files that use different parts")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{LazyLock, Mutex};

use pleach::compile::{CompiledNode, compile_node};
use pleach::error::TreeDefect;
use pleach::lattice::BaseLattice;
use pleach::store::{Changes, Content, Details, Ending, Store, Version};
use pleach::testing::store as made;
pub use pleach::testing::store::info;
use pleach::{Error, Result};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

/// The label that says what a version's content was made from.
const SEED: &str = "seed";

static LATTICE: LazyLock<BaseLattice> = LazyLock::new(made::lattice);

/// A lattice of two small matrices.
pub fn lattice() -> &'static BaseLattice {
    &LATTICE
}

/// An empty folder in memory where there is such a thing: what is tested is the order of steps, not
/// the disk.
pub fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Compiled deltas made from `seed`.
pub fn compiled(seed: u16) -> CompiledNode {
    static MADE: LazyLock<Mutex<HashMap<u16, CompiledNode>>> = LazyLock::new(Mutex::default);
    let make = || compile_node(&made::deltas(seed), |name| LATTICE.grid(name)).unwrap().0;
    MADE.lock().unwrap().entry(seed).or_insert_with(make).clone()
}

pub fn content(seed: u16) -> Content {
    Content::new(&compiled(seed), lattice().hash())
}

/// Labels that name `seed`.
pub fn labelled(seed: u16) -> Details {
    Details {
        labels: Some(BTreeMap::from([(SEED.to_owned(), seed.to_string())])),
        ..Details::default()
    }
}

/// Reads a version's deltas and holds them against its label; returns the seed.
pub fn seed_of(store: &Store, version: &Version) -> Result<u16> {
    let Version { generation, location, .. } = *version;
    let read = store.read(&location)?;
    let seed = version.labels[SEED].parse().unwrap();
    assert!(
        read == compiled(seed),
        "generation {generation} says seed {seed}, its content says otherwise"
    );
    Ok(seed)
}

/// One change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Op {
    Publish(String, u16),
    Replace(String, u16),
    Remove(String),
    Move(String, String),
    Rollback(String, u64),
    Batch(Vec<Op>),
    Compact,
}

impl Op {
    /// Makes the change; returns the last generation it made, if it makes any.
    pub fn make(&self, store: &Store) -> Result<Option<u64>> {
        if let Self::Compact = self {
            store.compact(|_, _| ())?;
            return store.compact_catalogue().map(|()| None);
        }
        let mut changes = Changes::new();
        self.add_to(&mut changes);
        store.apply(&changes).map(|generations| generations.last().copied())
    }

    fn add_to(&self, changes: &mut Changes) {
        match self {
            Self::Publish(name, seed) => changes.publish(name, content(*seed), labelled(*seed)),
            Self::Replace(name, seed) => {
                changes.replace(name, content(*seed), labelled(*seed), None)
            }
            Self::Remove(name) => changes.remove(name, true, None),
            Self::Move(name, target) => changes.move_to(name, target, None),
            Self::Rollback(name, generation) => changes.rollback(name, *generation, None),
            Self::Batch(ops) => ops.iter().fold(changes, |changes, op| {
                op.add_to(changes);
                changes
            }),
            Self::Compact => panic!("a compaction is no part of a batch"),
        };
    }

    /// Generations it makes.
    pub fn generations(&self) -> u64 {
        match self {
            Self::Batch(ops) => ops.len() as u64,
            Self::Compact => 0,
            _ => 1,
        }
    }
}

/// A version as the model knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub parent: String,
    pub generation: u64,
    pub content_generation: u64,
    pub trained_on: u64,
    pub seed: u16,
}

/// A past version: how and when it ended.
pub type Past = (Held, Ending, u64);

/// What a store should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    pub nodes: BTreeMap<String, Held>,
    pub past: BTreeMap<(String, u64), Past>,
}

impl Model {
    /// The largest generation that anything in it began or ended with.
    pub fn last_generation(&self) -> u64 {
        let current = self.nodes.values().map(|held| held.generation);
        current.chain(self.past.values().map(|(_, _, ended)| *ended)).max().unwrap_or(0)
    }

    /// Every name that it holds or held.
    pub fn names(&self) -> BTreeSet<String> {
        self.nodes.keys().chain(self.past.keys().map(|(name, _)| name)).cloned().collect()
    }

    /// Whether the change can be made.
    pub fn allows(&self, op: &Op) -> bool {
        let inside =
            |name: &str, above: &str| name == above || name.starts_with(&format!("{above}/"));
        match op {
            Op::Publish(name, _) => !self.nodes.contains_key(name),
            Op::Replace(name, _) | Op::Remove(name) => self.nodes.contains_key(name),
            Op::Move(name, target) => {
                let free = !self.nodes.keys().any(|node| inside(node, target));
                self.nodes.contains_key(name) && free && !inside(target, name)
            }
            Op::Rollback(name, generation) => {
                let Some((past, ..)) = self.past.get(&(name.clone(), *generation)) else {
                    return false;
                };
                let parent = self.nodes.get(name).map_or(&past.parent, |now| &now.parent);
                parent.is_empty() || self.nodes.contains_key(parent)
            }
            Op::Batch(ops) => {
                let mut then = self.clone();
                ops.iter().all(|op| {
                    let allowed = then.allows(op);
                    if allowed {
                        then.make(op, 1);
                    }
                    allowed
                })
            }
            Op::Compact => true,
        }
    }

    /// Makes the change; `generation` is the first it makes.
    pub fn make(&mut self, op: &Op, generation: u64) {
        match op {
            Op::Publish(name, seed) => {
                let above = name.match_indices('/').rev().map(|(at, _)| &name[..at]);
                let parent = above
                    .into_iter()
                    .find(|above| self.nodes.contains_key(*above))
                    .unwrap_or_default();
                self.put(name, parent.to_owned(), *seed, generation);
            }
            Op::Replace(name, seed) => {
                let parent = self.end(name, Ending::Replaced, generation).parent;
                self.put(name, parent, *seed, generation);
            }
            Op::Remove(name) => {
                for name in self.below(name) {
                    self.end(&name, Ending::Removed, generation);
                }
            }
            Op::Move(name, target) => {
                let moving = self.below(name);
                let above = target.match_indices('/').rev().map(|(at, _)| &target[..at]);
                let place = above
                    .into_iter()
                    .find(|above| self.nodes.contains_key(*above))
                    .unwrap_or_default();
                let (place, renamed) =
                    (place.to_owned(), |old: &str| format!("{target}{}", &old[name.len()..]));
                for old in &moving {
                    let held = self.end(old, Ending::Moved, generation);
                    let parent = if old == name { place.clone() } else { renamed(&held.parent) };
                    self.nodes.insert(renamed(old), Held { parent, generation, ..held });
                }
            }
            Op::Rollback(name, wanted) => {
                let (old, ..) = self.past[&(name.clone(), *wanted)].clone();
                let now = self
                    .nodes
                    .contains_key(name)
                    .then(|| self.end(name, Ending::Replaced, generation));
                let parent = now.map_or(old.parent.clone(), |now| now.parent);
                self.nodes.insert(name.clone(), Held { parent, generation, ..old });
            }
            Op::Batch(ops) => {
                (generation..).zip(ops).for_each(|(generation, op)| self.make(op, generation))
            }
            Op::Compact => self.past.clear(),
        }
    }

    fn put(&mut self, name: &str, parent: String, seed: u16, generation: u64) {
        let trained_on = self.nodes.get(&parent).map_or(0, |parent| parent.content_generation);
        let held = Held { parent, generation, content_generation: generation, trained_on, seed };
        self.nodes.insert(name.to_owned(), held);
    }

    fn end(&mut self, name: &str, ending: Ending, ended: u64) -> Held {
        let held = self.nodes.remove(name).unwrap();
        self.past.insert((name.to_owned(), held.generation), (held.clone(), ending, ended));
        held
    }

    /// The node and those that hang below it.
    fn below(&self, name: &str) -> Vec<String> {
        let mut found = vec![name.to_owned()];
        for at in 0.. {
            let Some(above) = found.get(at).cloned() else { break };
            found.extend(
                self.nodes
                    .iter()
                    .filter(|(_, held)| held.parent == above)
                    .map(|(name, _)| name.clone()),
            );
        }
        found
    }
}

/// Everything the store holds, read through; `names` are those that may have a past.
pub fn look(store: &Store, names: &BTreeSet<String>) -> Result<Model> {
    let held = |version: &Version| -> Result<Held> {
        let Version { generation, content_generation, trained_on, .. } = *version;
        let seed = seed_of(store, version)?;
        Ok(Held {
            parent: version.parent.clone(),
            generation,
            content_generation,
            trained_on,
            seed,
        })
    };
    let mut found = Model::default();
    for node in store.list("", None, usize::MAX)? {
        assert_eq!(store.get(&node.name)?, node);
        let held = held(&node.version)?;
        found.nodes.insert(node.name, held);
    }
    for name in found.names().iter().map(String::as_str).chain(["/"]) {
        let parent = name.trim_matches('/');
        let children = found
            .nodes
            .iter()
            .filter(|(_, held)| held.parent == parent)
            .map(|(name, _)| name.clone());
        assert_eq!(
            store.children(name, None, usize::MAX)?,
            children.collect::<Vec<_>>(),
            "children of {name}"
        );
    }
    for name in names.iter().chain(&found.names()).collect::<BTreeSet<_>>() {
        let past = match store.history(name) {
            Err(Error::Tree(defect)) if matches!(*defect, TreeDefect::UnknownNode { .. }) => {
                continue;
            }
            past => past?,
        };
        for past in past {
            let key = (name.clone(), past.version.generation);
            found.past.insert(key, (held(&past.version)?, past.ending, past.ended));
        }
    }
    let stats = store.stats()?;
    assert_eq!(
        (stats.nodes, stats.past_versions),
        (found.nodes.len() as u64, found.past.len() as u64)
    );
    Ok(found)
}

/// Checks every page, record and byte.
pub fn verified(store: &Store) {
    let report = store.verify(true, |_, _| ()).unwrap();
    assert!(report.is_clean(), "{:?}", report.problems);
}
