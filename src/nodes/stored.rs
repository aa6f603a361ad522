//! The nodes of a store, as they are asked for.
//!
//! **Invariant:** a version that somebody holds is the one its name and generation resolve to; who
//! holds none leaves nothing behind but a word in a map that is swept.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rand::Rng;
use rand::rngs::StdRng;

use super::{Deltas, NodeSet, NodeVersion, Reading, Source, StalePolicy, Version};
use crate::error::StoreDefect;
use crate::store::Location;
use crate::store::{Store, StoreNode, again};
use crate::tree::AdapterTree;
use crate::{Error, Result};

/// Words kept of versions that nobody holds, before they are swept.
const UNHELD: usize = 1024;
/// Nodes looked up at a time.
const PAGE: usize = 10_000;

/// What a version is known by: its parent's serial, its name, its generation.
type Key = (u64, Arc<str>, u64);

/// A store and the versions of its nodes that somebody holds.
pub(crate) struct StoreNodes {
    store: Store,
    root: NodeVersion,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    versions: HashMap<Key, Weak<Version>>,
    /// Words at which the map is swept next.
    sweep_at: usize,
}

impl StoreNodes {
    /// The nodes of `store`. Nothing is looked up.
    pub(crate) fn new(store: Store) -> Self {
        Self { store, root: NodeVersion::root(), known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a version's bytes are now, if its node is still in that generation.
    fn found_again(&self, version: &NodeVersion) -> Result<Option<Location>> {
        let Source::Stored { generation, .. } = version.source() else { return Ok(None) };
        let now = self.store.get(version.name())?.version;
        Ok((now.generation == *generation).then_some(now.location))
    }
}

impl Known {
    /// The version of `node` under `parent`: the one that somebody holds, or a new one.
    fn version(&mut self, parent: &NodeVersion, node: StoreNode) -> NodeVersion {
        let StoreNode { name, version: stored } = node;
        let name = Arc::from(name);
        let key = (parent.serial(), Arc::clone(&name), stored.generation);
        if let Some(held) = self.versions.get(&key).and_then(Weak::upgrade) {
            if let Source::Stored { location, .. } = &held.source {
                *location.lock().unwrap_or_else(PoisonError::into_inner) = stored.location;
            }
            return NodeVersion(held);
        }
        let source = Source::Stored {
            generation: stored.generation,
            content_generation: stored.content_generation,
            trained_on: stored.trained_on,
            location: Mutex::new(stored.location),
        };
        let version = NodeVersion::new(name, Some(parent.clone()), source);
        if self.versions.len() >= self.sweep_at {
            self.versions.retain(|_, version| version.strong_count() > 0);
            self.sweep_at = 2 * self.versions.len() + UNHELD;
        }
        self.versions.insert(key, Arc::downgrade(&version.0));
        version
    }
}

/// What content a version has; 0 is the base's.
fn content_generation(version: &NodeVersion) -> u64 {
    match version.source() {
        Source::Stored { content_generation, .. } => *content_generation,
        _ => 0,
    }
}

impl NodeSet for StoreNodes {
    fn root(&self) -> &NodeVersion {
        &self.root
    }

    fn resolve(&self, name: &str) -> Result<NodeVersion> {
        let path = self.store.path(name)?;
        let mut known = self.known();
        Ok(path.into_iter().fold(self.root.clone(), |parent, node| known.version(&parent, node)))
    }

    fn children(&self, name: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>> {
        self.store.children(name, after, limit)
    }

    fn sample(&self, most: usize, rng: &mut StdRng) -> Result<Vec<String>> {
        let mut names = vec!["/".to_owned()];
        let mut after: Option<String> = None;
        let mut seen = 1;
        loop {
            let page = self.store.list("", after.as_deref(), PAGE)?;
            let Some(last) = page.last() else { return Ok(names) };
            after = Some(last.name.clone());
            for node in page {
                seen += 1;
                if names.len() < most {
                    names.push(node.name);
                } else if let Some(place) = names.get_mut(rng.random_range(0..seen)) {
                    *place = node.name;
                }
            }
        }
    }

    fn read(&self, version: &NodeVersion, _: &Reading<'_>) -> Result<Deltas> {
        let Source::Stored { location, .. } = version.source() else {
            return Ok(Deltas::Float(Arc::default()));
        };
        let at = *location.lock().unwrap_or_else(PoisonError::into_inner);
        let read = self.store.read(&at).or_else(|error| match self.found_again(version) {
            // A compaction moved its bytes.
            Ok(Some(now)) if now != at => {
                *location.lock().unwrap_or_else(PoisonError::into_inner) = now;
                self.store.read(&now)
            }
            _ => Err(error),
        });
        read.map(Deltas::Compiled)
    }

    fn check_stale(&self, version: &NodeVersion, policy: StalePolicy) -> Result<()> {
        if policy == StalePolicy::Accept {
            return Ok(());
        }
        for at in version.path() {
            let (Source::Stored { trained_on, .. }, Some(parent)) = (at.source(), at.parent())
            else {
                continue;
            };
            let (trained_on, found) = (*trained_on, content_generation(parent));
            if trained_on == found {
                continue;
            }
            let refuses = policy == StalePolicy::Refuse;
            let first = !at.0.warned_stale.swap(!refuses, Ordering::Relaxed);
            if !refuses && !first {
                continue;
            }
            let [name, parent] = [&at, parent].map(|version| version.name().to_owned());
            let trained_under = self.store.trained_under(&parent, trained_on)?;
            let defect = StoreDefect::Stale { name, parent, trained_under, trained_on, found };
            if refuses {
                return Err(Error::store(self.store.folder(), defect));
            }
            tracing::warn!("{defect}");
        }
        Ok(())
    }

    fn advised(&self, error: Error) -> Error {
        error.in_store()
    }

    fn with(&self, name: &str, work: &mut dyn FnMut(NodeVersion) -> Result<()>) -> Result<()> {
        // Between looking a node up and reading it, it may be replaced, and a compaction drop what
        // it was.
        again(|| work(self.resolve(name)?))
    }

    fn held(&self) -> usize {
        self.known().versions.values().filter(|version| version.strong_count() > 0).count() + 1
    }

    fn tree(&self) -> Option<&AdapterTree> {
        None
    }

    fn store(&self) -> Option<&Store> {
        Some(&self.store)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::{CompiledNode, compile_node};
    use crate::error::TreeDefect;
    use crate::store::Details;
    use crate::testing::store::{deltas, info, lattice};

    fn compiled(seed: u16) -> CompiledNode {
        let lattice = lattice();
        compile_node(&deltas(seed), |name| lattice.grid(name)).unwrap().0
    }

    fn replace(store: &Store, name: &str, seed: u16) {
        store
            .replace(name, store.compile(&deltas(seed)).unwrap(), Details::default(), None)
            .unwrap();
    }

    /// fr, fr/alice and fr/bob.
    fn small(folder: &std::path::Path) -> (Store, StoreNodes) {
        let store = Store::create(&folder.join("store"), info(), &lattice()).unwrap();
        for (seed, name) in [(1, "fr"), (2, "fr/alice"), (3, "fr/bob")] {
            store.publish(name, store.compile(&deltas(seed)).unwrap(), Details::default()).unwrap();
        }
        let nodes = StoreNodes::new(Store::open(store.folder()).unwrap());
        (store, nodes)
    }

    fn location(version: &NodeVersion) -> Location {
        let Source::Stored { location, .. } = version.source() else { panic!("it is stored") };
        *location.lock().unwrap()
    }

    #[test]
    fn what_changed_is_another_version_and_what_did_not_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (store, nodes) = small(folder.path());
        let [alice, bob] = ["fr/alice", "fr/bob"].map(|name| nodes.resolve(name).unwrap());
        assert_eq!(nodes.held(), 4);
        assert_eq!(nodes.resolve("/fr/alice/").unwrap(), alice);
        replace(&store, "fr/alice", 8);
        let new = nodes.resolve("fr/alice").unwrap();
        assert_ne!(new, alice);
        assert_eq!((new.parent(), nodes.resolve("fr/bob").unwrap()), (bob.parent(), bob.clone()));
        replace(&store, "fr", 8);
        let moved = nodes.resolve("fr/bob").unwrap();
        assert_ne!(moved, bob, "it hangs under another version now");
        assert_eq!(bob.path().iter().map(NodeVersion::name).collect::<Vec<_>>(), ["fr", "fr/bob"]);
        let before = location(&moved);
        store.compact(|_, _| ()).unwrap();
        assert_eq!(nodes.resolve("fr/bob").unwrap(), moved);
        assert_eq!(store.read(&location(&moved)).unwrap(), compiled(3));
        assert_ne!(location(&moved), before, "a compaction moves what lives");
        store.remove("fr/bob", false, None).unwrap();
        let unknown = nodes.resolve("fr/bob").unwrap_err();
        assert!(
            matches!(unknown, Error::Tree(defect) if matches!(*defect, TreeDefect::UnknownNode { .. }))
        );
    }

    #[test]
    fn versions_that_nobody_holds_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let (_store, nodes) = small(folder.path());
        let bob = nodes.resolve("fr/bob").unwrap();
        for _ in 0..3 * UNHELD {
            nodes.resolve("fr/alice").unwrap();
        }
        assert_eq!(nodes.held(), 3);
        assert!(nodes.known().versions.len() <= 2 * UNHELD);
        drop(bob);
        assert_eq!(nodes.held(), 1);
    }
}
