//! A batch of changes as it is made, inside the catalogue's transaction: each is checked against
//! the nodes as those before it left them.
//!
//! **Invariant:** every change takes the next generation, and no two versions of a node share one.
//! **Invariant:** a version that ends goes into the history in the same transaction, with the
//! generation that ended it.

use std::time::{SystemTime, UNIX_EPOCH};

use super::catalogue::{Ending, PastVersion, State, Step, Version, Writing};
use super::change::{Content, Details, Op};
use super::segment::Location;
use super::{Store, clean_name};
use crate::Error;
use crate::error::StoreDefect;
use crate::tree::{MAX_DEPTH, check_name, shown};

/// A batch that is being made.
struct Change<'a, 'w> {
    store: &'a Store,
    writing: &'a mut Writing<'w>,
    state: State,
    /// Where the contents lie, in order.
    locations: std::vec::IntoIter<Location>,
    now_ms: u64,
}

/// Makes every change of a batch in order, after writing its contents (`blobs`) to the segments.
/// Returns the generation each made.
pub(super) fn make_all(
    store: &Store,
    writing: &mut Writing<'_>,
    ops: &[Op],
    blobs: &[&[u8]],
) -> Step<Vec<u64>> {
    let mut state = writing.state()?;
    let (locations, (segment, offset)) =
        store.inner.segments.append((state.segment, state.offset), blobs)?;
    (state.segment, state.offset) = (segment, offset);
    let locations = locations.into_iter();
    let mut change = Change { store, writing, state, locations, now_ms: now_ms() };
    let generations = ops.iter().map(|op| change.make(op)).collect::<Step<Vec<_>>>()?;
    change.state.sequence += 1;
    let state = change.state;
    writing.put_state(&state)?;
    Ok(generations)
}

impl Change<'_, '_> {
    fn make(&mut self, op: &Op) -> Step<u64> {
        match op {
            Op::Publish { name, content, details } => {
                if let Some(Version { generation, .. }) = self.writing.node(name)? {
                    return self.refuse(StoreDefect::NodeExists { name: name.clone(), generation });
                }
                self.put_content(name, content, details, None)
            }
            Op::Replace { name, content, details, expected } => {
                let old = self.current(name, *expected)?;
                self.put_content(name, content, details, Some(&old))
            }
            Op::Remove { name, recursive, expected } => self.remove(name, *recursive, *expected),
            Op::Move { name, target, expected } => self.move_node(name, target, *expected),
            Op::Rollback { name, generation, expected } => {
                self.rollback(name, *generation, *expected)
            }
        }
    }

    fn remove(&mut self, name: &str, recursive: bool, expected: Option<u64>) -> Step<u64> {
        let version = self.current(name, expected)?;
        // Two are enough to say whether there are several.
        let children = self.writing.children(name, 2)?;
        if !recursive && !children.is_empty() {
            let children = match &children[..] {
                [one] => format!("a child, {one}"),
                [first, ..] => format!("children, {first} first"),
                [] => String::new(),
            };
            return self.refuse(StoreDefect::HasChildren { name: name.to_owned(), children });
        }
        let generation = self.generation();
        let mut removing = vec![(name.to_owned(), version)];
        while let Some((name, version)) = removing.pop() {
            for child in self.writing.children(&name, usize::MAX)? {
                let version = self.current(&child, None)?;
                removing.push((child, version));
            }
            self.end(&name, version, Ending::Removed, generation)?;
        }
        Ok(generation)
    }

    fn refuse<T>(&self, defect: StoreDefect) -> Step<T> {
        Err(self.store.defect(defect).into())
    }

    /// The next generation.
    fn generation(&mut self) -> u64 {
        self.state.generation += 1;
        self.state.generation
    }

    /// The node's current version, in the generation the caller expects.
    fn current(&self, name: &str, expected: Option<u64>) -> Step<Version> {
        let Some(version) = self.writing.node(name)? else {
            return match expected {
                // Removed meanwhile.
                Some(expected) => self.refuse(StoreDefect::GenerationMismatch {
                    name: name.to_owned(),
                    expected,
                    found: 0,
                }),
                None => Err(self.store.unknown_to(self.writing, name)?.into()),
            };
        };
        match expected {
            Some(expected) if expected != version.generation => {
                let (name, found) = (name.to_owned(), version.generation);
                self.refuse(StoreDefect::GenerationMismatch { name, expected, found })
            }
            _ => Ok(version),
        }
    }

    /// The content generation of a node that is to be a parent.
    fn content_of(&self, parent: &str) -> Step<Option<u64>> {
        if parent.is_empty() {
            return Ok(Some(0));
        }
        Ok(self.writing.node(parent)?.map(|version| version.content_generation))
    }

    /// The nearest node above `name`, without those below `not_below`.
    fn parent_by_name(&self, name: &str) -> Step<(String, u64)> {
        let mut above = name;
        while let Some((parent, _)) = above.rsplit_once('/') {
            if let Some(content) = self.content_of(parent)? {
                return Ok((parent.to_owned(), content));
            }
            above = parent;
        }
        Ok((String::new(), 0))
    }

    /// The parent called `parent`, with its content generation.
    fn parent(&self, node: &str, parent: &str) -> Step<(String, u64)> {
        match self.content_of(parent)? {
            Some(content) => Ok((parent.to_owned(), content)),
            None => self.refuse(StoreDefect::UnknownParent {
                node: node.to_owned(),
                parent: shown(parent),
            }),
        }
    }

    fn depth(&self, parent: &str) -> Step<usize> {
        let (mut depth, mut at) = (0, parent.to_owned());
        while !at.is_empty() && depth <= MAX_DEPTH {
            depth += 1;
            at = self.writing.node(&at)?.map(|version| version.parent).unwrap_or_default();
        }
        Ok(depth)
    }

    fn put_content(
        &mut self,
        name: &str,
        content: &Content,
        details: &Details,
        old: Option<&Version>,
    ) -> Step<u64> {
        let (parent, parent_content) = match (&details.parent, old) {
            (Some(parent), _) => self.parent(name, &clean_name(parent))?,
            (None, Some(old)) => self.parent(name, &old.parent)?,
            (None, None) => self.parent_by_name(name)?,
        };
        if old.is_none_or(|old| old.parent != parent) {
            self.check_place(name, &parent)?;
        }
        let trained_on = details.trained_on.unwrap_or(parent_content);
        // A later content of the parent could get that number, and the node would then pass for
        // trained on it.
        if trained_on > self.state.generation {
            let (name, last) = (name.to_owned(), self.state.generation);
            return self.refuse(StoreDefect::TrainedOn { name, trained_on, last });
        }
        let generation = self.generation();
        let location = self.locations.next().expect("every content was appended");
        let original = content.original.as_ref().and_then(|_| self.locations.next());
        let labels = details.labels.clone().or_else(|| old.map(|old| old.labels.clone()));
        if let Some(old) = old {
            self.end(name, old.clone(), Ending::Replaced, generation)?;
        }
        let version = Version {
            parent,
            generation,
            content_generation: generation,
            trained_on,
            created_ms: self.now_ms,
            kind: content.kind,
            ranks: content.ranks.clone(),
            matrices: content.matrices,
            location,
            original,
            adapter_hash: content.adapter_hash,
            labels: labels.unwrap_or_default(),
        };
        self.writing.put(name, &version)?;
        Ok(generation)
    }

    /// Levels below a node, its own among them.
    fn height(&self, name: &str) -> Step<usize> {
        let (mut height, mut level) = (0, vec![name.to_owned()]);
        while !level.is_empty() {
            height += 1;
            let below = level
                .iter()
                .map(|name| self.writing.children(name, usize::MAX))
                .collect::<Step<Vec<_>>>()?;
            level = below.into_iter().flatten().collect();
        }
        Ok(height)
    }

    /// A node may hang under `parent` if that is not below it, and neither it nor what hangs below
    /// it gets too deep.
    fn check_place(&self, name: &str, parent: &str) -> Step<()> {
        let depth = self.depth(parent)? + self.height(name)?;
        if depth > MAX_DEPTH {
            let name = name.to_owned();
            return Err(Error::from(crate::error::TreeDefect::TooDeep {
                name,
                depth,
                limit: MAX_DEPTH,
            })
            .into());
        }
        let mut at = parent.to_owned();
        while !at.is_empty() {
            if at == name {
                return self.refuse(StoreDefect::BelowItself {
                    name: name.to_owned(),
                    target: format!("below {parent}"),
                });
            }
            at = self.writing.node(&at)?.map(|version| version.parent).unwrap_or_default();
        }
        Ok(())
    }

    /// Moves the current version into the history.
    fn end(&mut self, name: &str, version: Version, ending: Ending, generation: u64) -> Step<()> {
        self.writing.take(name, &version)?;
        self.writing.put_past(name, &PastVersion { version, ending, ended: generation })
    }

    fn move_node(&mut self, name: &str, target: &str, expected: Option<u64>) -> Step<u64> {
        let version = self.current(name, expected)?;
        if target == name || target.strip_prefix(name).is_some_and(|rest| rest.starts_with('/')) {
            return self.refuse(StoreDefect::BelowItself {
                name: name.to_owned(),
                target: target.to_owned(),
            });
        }
        let (parent, _) = self.parent_by_name(target)?;
        self.check_place(name, &parent)?;
        let generation = self.generation();
        let (from, to) = (format!("{name}/"), format!("{target}/"));
        let mut moving = vec![(name.to_owned(), target.to_owned(), parent, version)];
        let mut moved = Vec::new();
        while let Some((old, new, parent, version)) = moving.pop() {
            for child in self.writing.children(&old, usize::MAX)? {
                // A child whose name does not begin with the node's keeps it.
                let renamed = child
                    .strip_prefix(&from)
                    .map_or_else(|| child.clone(), |rest| format!("{to}{rest}"));
                check_name(&renamed).map_err(Error::from)?;
                let version = self.current(&child, None)?;
                moving.push((child, renamed, new.clone(), version));
            }
            self.end(&old, version.clone(), Ending::Moved, generation)?;
            moved.push((new, parent, version));
        }
        // Once all have left: one may take the name that another had.
        for (new, parent, version) in moved {
            if let Some(Version { generation, .. }) = self.writing.node(&new)? {
                return self.refuse(StoreDefect::NodeExists { name: new, generation });
            }
            self.writing
                .put(&new, &Version { parent, generation, created_ms: self.now_ms, ..version })?;
        }
        Ok(generation)
    }

    fn rollback(&mut self, name: &str, wanted: u64, expected: Option<u64>) -> Step<u64> {
        let now = match self.writing.node(name)? {
            None if expected.is_none() => None,
            _ => Some(self.current(name, expected)?),
        };
        let past = self.writing.history(name)?;
        let Some(old) = past.iter().find(|past| past.version.generation == wanted) else {
            if past.is_empty() && now.is_none() {
                return Err(self.store.unknown_to(self.writing, name)?.into());
            }
            let known = past.iter().map(|past| past.version.generation).collect();
            let name = name.to_owned();
            return self.refuse(StoreDefect::UnknownGeneration { name, generation: wanted, known });
        };
        let old = old.version.clone();
        let parent = now.as_ref().map_or(&old.parent, |now| &now.parent);
        let (parent, _) = self.parent(name, parent)?;
        if now.is_none() {
            self.check_place(name, &parent)?;
        }
        let generation = self.generation();
        if let Some(now) = now {
            self.end(name, now, Ending::Replaced, generation)?;
        }
        self.writing.put(name, &Version { parent, generation, created_ms: self.now_ms, ..old })?;
        Ok(generation)
    }
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
