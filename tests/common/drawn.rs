//! Changes of a store drawn from bytes, and what each does to the model: the rules as the store's
//! documentation has them, written down once more.

// A module of the crates that include it, where `pub` reaches no further.
#![allow(unreachable_pub, reason = "shared by a test and a fuzz target")]

use pleach::store::{Changes, Details, Ending};

use super::stored::{Held, Model, content, labelled};

/// Parts of names. The last has two spellings in Unicode, which are one name.
const PARTS: [&str; 3] = ["a", "b", "\u{e9}"];
/// The other spelling of the last.
const DECOMPOSED: &str = "e\u{301}";

/// Bytes that decide; zeros where they have ended.
pub struct Choices<'a>(pub &'a [u8]);

impl Choices<'_> {
    pub fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    /// A number below `count`.
    pub fn below(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count
    }

    /// True once in `count` times.
    pub fn rarely(&mut self, count: usize) -> bool {
        self.below(count) == count - 1
    }

    /// A name of one to three parts, seldom the root's; as it is given to the store, and as the
    /// store has it.
    pub fn name(&mut self) -> Name {
        let choice = self.byte();
        if choice >= 250 {
            return Name { given: "/".to_owned(), clean: String::new() };
        }
        let mut rest = usize::from(choice);
        let depth = [1, 1, 2, 2, 3][rest % 5];
        rest /= 5;
        let mut parts = Vec::new();
        for _ in 0..depth {
            parts.push(PARTS[rest % PARTS.len()]);
            rest /= PARTS.len();
        }
        let clean = parts.join("/");
        let given = match self.below(8) {
            0 => format!("/{clean}/"),
            1 => clean.replace(PARTS[2], DECOMPOSED),
            _ => clean.clone(),
        };
        Name { given, clean }
    }

    /// The generation that a change expects of a node: none, the right one, or another.
    fn expected(&mut self, model: &Model, name: &str) -> Option<u64> {
        let now = model.nodes.get(name).map_or(0, |held| held.generation);
        match self.below(16) {
            0..8 => None,
            8..15 => Some(now),
            _ => Some(now + 1),
        }
    }

    /// The name of a node there is, mostly: or a walk would be refused nearly everything.
    fn name_among<'m>(&mut self, names: impl ExactSizeIterator<Item = &'m String>) -> Name {
        let (any, count) = (self.name(), names.len());
        if count == 0 || self.rarely(4) {
            return any;
        }
        let clean = names.into_iter().nth(self.below(count)).expect("it is below their number");
        Name { given: clean.clone(), clean: clean.clone() }
    }

    pub fn change(&mut self, model: &Model) -> Change {
        let kind = self.below(8);
        let name = match kind {
            0..3 => self.name(),
            3..6 => self.name_among(model.nodes.keys()),
            _ => {
                let past: Vec<_> = model.past.keys().map(|(name, _)| name).collect();
                self.name_among(past.into_iter())
            }
        };
        match kind {
            0..3 => {
                let parent = self.rarely(4).then(|| self.name());
                Change::Publish { name, parent, seed: self.byte().into() }
            }
            3 => {
                let parent = self.rarely(4).then(|| self.name());
                let expected = self.expected(model, &name.clean);
                Change::Replace { name, parent, seed: self.byte().into(), expected }
            }
            4 => {
                let expected = self.expected(model, &name.clean);
                Change::Remove { name, recursive: self.below(2) == 0, expected }
            }
            5 => {
                let expected = self.expected(model, &name.clean);
                Change::Move { name, target: self.name(), expected }
            }
            _ => {
                let known: Vec<_> = model.past.keys().filter(|key| key.0 == name.clean).collect();
                // Mostly one that is there, or hardly any rollback would be made.
                let generation = match known.get(self.below(known.len() + 1)) {
                    Some((_, generation)) => *generation,
                    None => self.byte().into(),
                };
                let expected = self.expected(model, &name.clean);
                Change::Rollback { name, generation, expected }
            }
        }
    }
}

/// A node's name.
#[derive(Clone, Debug)]
pub struct Name {
    /// As it is given to the store.
    pub given: String,
    /// As the store has it.
    pub clean: String,
}

/// One change of one node.
#[derive(Clone, Debug)]
pub enum Change {
    Publish { name: Name, parent: Option<Name>, seed: u16 },
    Replace { name: Name, parent: Option<Name>, seed: u16, expected: Option<u64> },
    Remove { name: Name, recursive: bool, expected: Option<u64> },
    Move { name: Name, target: Name, expected: Option<u64> },
    Rollback { name: Name, generation: u64, expected: Option<u64> },
}

impl Change {
    pub fn add_to(&self, changes: &mut Changes) {
        let details = |parent: &Option<Name>, seed| Details {
            parent: parent.as_ref().map(|parent| parent.given.clone()),
            ..labelled(seed)
        };
        match self {
            Self::Publish { name, parent, seed } => {
                changes.publish(&name.given, content(*seed), details(parent, *seed))
            }
            Self::Replace { name, parent, seed, expected } => {
                changes.replace(&name.given, content(*seed), details(parent, *seed), *expected)
            }
            Self::Remove { name, recursive, expected } => {
                changes.remove(&name.given, *recursive, *expected)
            }
            Self::Move { name, target, expected } => {
                changes.move_to(&name.given, &target.given, *expected)
            }
            Self::Rollback { name, generation, expected } => {
                changes.rollback(&name.given, *generation, *expected)
            }
        };
    }

    fn name(&self) -> &str {
        match self {
            Self::Publish { name, .. }
            | Self::Replace { name, .. }
            | Self::Remove { name, .. }
            | Self::Move { name, .. }
            | Self::Rollback { name, .. } => &name.clean,
        }
    }

    /// Names the root, which no change may.
    fn is_of_the_root(&self) -> bool {
        let target = match self {
            Self::Move { target, .. } => &target.clean,
            _ => self.name(),
        };
        self.name().is_empty() || target.is_empty()
    }
}

/// Whether `name` is `above`, or lies below it by name.
fn is_inside(name: &str, above: &str) -> bool {
    name.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The nearest node above `name`, by name; the root's is empty.
fn parent_by_name(model: &Model, name: &str) -> String {
    let above = name.match_indices('/').rev().map(|(at, _)| &name[..at]);
    above.into_iter().find(|above| model.nodes.contains_key(*above)).unwrap_or_default().to_owned()
}

/// A node and all that hang below it.
fn below(model: &Model, name: &str) -> Vec<String> {
    let mut found = vec![name.to_owned()];
    let mut at = 0;
    while let Some(above) = found.get(at).cloned() {
        let children = model.nodes.iter().filter(|(_, held)| held.parent == above);
        found.extend(children.map(|(name, _)| name.clone()));
        at += 1;
    }
    found
}

/// The node as it is, if it is in the generation that a change expects.
fn current(model: &Model, name: &str, expected: Option<u64>) -> Option<Held> {
    let held = model.nodes.get(name)?;
    expected.is_none_or(|expected| expected == held.generation).then(|| held.clone())
}

/// The content generation of a parent; nothing where there is no such node.
fn content_of(model: &Model, parent: &str) -> Option<u64> {
    if parent.is_empty() {
        return Some(0);
    }
    model.nodes.get(parent).map(|held| held.content_generation)
}

fn end(model: &mut Model, name: &str, ending: Ending, ended: u64) {
    let held = model.nodes.remove(name).expect("it was looked up");
    model.past.insert((name.to_owned(), held.generation), (held, ending, ended));
}

/// Puts content into a node, new or not.
fn put_content(
    model: &mut Model,
    name: &str,
    parent: Option<&Name>,
    seed: u16,
    generation: u64,
) -> Option<()> {
    let old = model.nodes.get(name).cloned();
    let parent = match (parent, &old) {
        (Some(parent), _) => parent.clean.clone(),
        (None, Some(old)) => old.parent.clone(),
        (None, None) => parent_by_name(model, name),
    };
    let trained_on = content_of(model, &parent)?;
    if old.is_some() && below(model, name).contains(&parent) {
        return None;
    }
    if old.is_some() {
        end(model, name, Ending::Replaced, generation);
    }
    let held = Held { parent, generation, content_generation: generation, trained_on, seed };
    model.nodes.insert(name.to_owned(), held);
    Some(())
}

fn move_node(
    model: &mut Model,
    name: &str,
    target: &str,
    expected: Option<u64>,
    generation: u64,
) -> Option<()> {
    current(model, name, expected)?;
    let (moving, parent) = (below(model, name), parent_by_name(model, target));
    if is_inside(target, name) || moving.contains(&parent) {
        return None;
    }
    // A node that hangs below without lying below by name keeps its name.
    let renamed = |old: &str| match is_inside(old, name) {
        true => format!("{target}{}", &old[name.len()..]),
        false => old.to_owned(),
    };
    let mut moved = Vec::new();
    for old in &moving {
        let held = model.nodes[old].clone();
        let parent = if old == name { parent.clone() } else { renamed(&held.parent) };
        end(model, old, Ending::Moved, generation);
        moved.push((renamed(old), Held { parent, generation, ..held }));
    }
    for (new, held) in moved {
        if model.nodes.insert(new, held).is_some() {
            return None;
        }
    }
    Some(())
}

/// Makes a change, the `generation`th; nothing where it must be refused. What is left of the model
/// is then of no use.
pub fn make(model: &mut Model, change: &Change, generation: u64) -> Option<()> {
    let name = change.name();
    if change.is_of_the_root() {
        return None;
    }
    match change {
        Change::Publish { parent, seed, .. } => {
            if model.nodes.contains_key(name) {
                return None;
            }
            put_content(model, name, parent.as_ref(), *seed, generation)
        }
        Change::Replace { parent, seed, expected, .. } => {
            current(model, name, *expected)?;
            put_content(model, name, parent.as_ref(), *seed, generation)
        }
        Change::Remove { recursive, expected, .. } => {
            current(model, name, *expected)?;
            let removed = below(model, name);
            if !recursive && removed.len() > 1 {
                return None;
            }
            removed.iter().for_each(|name| end(model, name, Ending::Removed, generation));
            Some(())
        }
        Change::Move { target, expected, .. } => {
            move_node(model, name, &target.clean, *expected, generation)
        }
        Change::Rollback { generation: wanted, expected, .. } => {
            let is_there = model.nodes.contains_key(name);
            if is_there || expected.is_some() {
                current(model, name, *expected)?;
            }
            let (old, ..) = model.past.get(&(name.to_owned(), *wanted))?.clone();
            let parent = model.nodes.get(name).map_or(&old.parent, |now| &now.parent).clone();
            content_of(model, &parent)?;
            if is_there {
                end(model, name, Ending::Replaced, generation);
            }
            model.nodes.insert(name.to_owned(), Held { parent, generation, ..old });
            Some(())
        }
    }
}
