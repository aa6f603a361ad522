//! What `tree.toml` says and what the folders hold → a tree.
//!
//! **Invariant:** an entry that is refused takes nothing but what hangs below it along: that would
//! be another model under another parent.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Component, Path, PathBuf};

use super::build::{Spec, TreeBuilder};
use super::manifest::{Manifest, NodeEntry};
use super::{AdapterTree, NodeSource, PassedOver, check_name, normal, shown};
use crate::error::{RefusedEntry, TreeDefect};
use crate::suggest::nearest;
use crate::{Error, Result};

/// What a scan of the folders found.
#[derive(Default)]
pub(super) struct Found {
    /// Folders with an adapter by the names they would have as nodes.
    pub(super) folders: BTreeMap<String, PathBuf>,
    pub(super) refused: Refused,
    pub(super) passed_over: Vec<PassedOver>,
}

/// What is refused, by name; the first reason counts.
#[derive(Default)]
pub(super) struct Refused(BTreeMap<String, (RefusedEntry, Option<PathBuf>)>);

impl Refused {
    /// Refuses what is called `name`; `folder` is where its adapter lies, as far as that is known.
    pub(super) fn add(&mut self, name: &str, reason: impl Into<Error>, folder: Option<&Path>) {
        let entry = || (RefusedEntry::new(shown(name), reason), folder.map(Path::to_owned));
        self.0.entry(name.to_owned()).or_insert_with(entry);
    }

    fn holds(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

/// How an entry's `adapter` becomes a folder.
pub(super) trait Places {
    /// The folder, canonical and inside the root.
    fn resolve(&self, node: &str, adapter: &Path) -> Result<PathBuf>;
    /// Refuses files of the adapter in `folder` that lie outside the root.
    fn check(&self, node: &str, folder: &Path) -> Result<()>;
}

/// Puts a tree together; `root` is the folder as it was asked for.
pub(super) fn assemble(
    root: &Path,
    manifest: Manifest,
    found: Found,
    places: &impl Places,
) -> Result<AdapterTree> {
    let Found { mut folders, mut refused, mut passed_over } = found;
    let mut entries: BTreeMap<String, NodeEntry> = BTreeMap::new();
    for (name, entry) in manifest.nodes {
        let name = normal(&name).into_owned();
        if entries.insert(name.clone(), entry).is_some() {
            refused.add(&name, TreeDefect::DuplicateNode { name: name.clone() }, None);
        }
    }
    let mut specs = Vec::new();
    // Entries with files of their own first: a folder they claim is a node under their name only,
    // also if that is refused.
    let mut claimed = HashSet::new();
    let (own, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
        entries.into_iter().partition(|(_, entry)| entry.adapter.is_some());
    for (name, entry) in own {
        let adapter = entry.adapter.as_deref().unwrap_or_default();
        match resolved(&name, adapter, places, &mut claimed) {
            Ok(path) => specs.push(Spec::of_folder(name, Some(&entry), path)),
            Err(error) => refused.add(&name, error, None),
        }
    }
    folders.retain(|_, path| !claimed.contains(path));
    refused
        .0
        .retain(|_, (_, folder)| folder.as_ref().is_none_or(|folder| !claimed.contains(folder)));
    unless_claimed(&mut passed_over, &claimed);
    for (name, entry) in others {
        match folders.remove(&name) {
            Some(path) => specs.push(Spec::of_folder(name, Some(&entry), path)),
            None if refused.holds(&name) => {}
            None => refused.add(&name, without_files(&name, &folders, &passed_over), None),
        }
    }
    specs.extend(folders.into_iter().map(|(name, path)| Spec::of_folder(name, None, path)));
    let left_out: BTreeSet<String> = refused.0.keys().cloned().collect();
    let (name, levels, base) = (manifest.tree.name, manifest.tree.levels, manifest.base);
    let builder = TreeBuilder { nodes: specs, name, levels, base };
    let mut tree = builder.build_without(left_out, |name, defect| {
        refused.add(name, defect, None);
        Ok(())
    })?;
    tree.refused = refused.0.into_values().map(|(entry, _)| entry).collect();
    passed_over.sort_by(|a, b| a.folder.cmp(&b.folder));
    tree.passed_over = passed_over;
    if tree.is_empty() {
        return Err(TreeDefect::Empty { path: root.to_owned(), refused: tree.refused }.into());
    }
    Ok(tree)
}

impl Spec {
    fn of_folder(name: String, entry: Option<&NodeEntry>, path: PathBuf) -> Self {
        let (parent, label) =
            entry.map(|entry| (entry.parent.clone(), entry.label.clone())).unwrap_or_default();
        Self { name, parent, label, source: NodeSource::Folder(path) }
    }
}

/// The folder that the entry `name` claims with `adapter`.
fn resolved(
    name: &str,
    adapter: &str,
    places: &impl Places,
    claimed: &mut HashSet<PathBuf>,
) -> Result<PathBuf> {
    let relative = Path::new(adapter);
    if !relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(TreeDefect::OutsideRoot { node: shown(name), path: relative.to_owned() }.into());
    }
    let path = places.resolve(name, relative)?;
    claimed.insert(path.clone());
    check_name(name)?;
    places.check(name, &path)?;
    Ok(path)
}

/// Takes claimed folders out of the count of those passed over.
fn unless_claimed(passed_over: &mut Vec<PassedOver>, claimed: &HashSet<PathBuf>) {
    for passed in passed_over.iter_mut() {
        let served = claimed.iter().filter(|path| path.starts_with(&passed.path)).count();
        if served > 0 && served >= passed.adapters {
            passed.path = PathBuf::new();
        }
        passed.adapters = passed.adapters.saturating_sub(served);
    }
    passed_over.retain(|passed| !passed.path.as_os_str().is_empty());
}

/// Why an entry without `adapter` is no node.
fn without_files(
    name: &str,
    folders: &BTreeMap<String, PathBuf>,
    passed_over: &[PassedOver],
) -> TreeDefect {
    let is_above = |above: &str| {
        name.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    match passed_over.iter().find(|passed| is_above(&passed.folder)) {
        Some(PassedOver { folder, why, .. }) => {
            TreeDefect::PassedOver { name: shown(name), folder: folder.clone(), why: why.clone() }
        }
        None => {
            let nearest = nearest(name, '/', folders.keys().map(String::as_str));
            TreeDefect::NodeWithoutFiles { name: shown(name), nearest }
        }
    }
}

/// Reads any bytes as a `tree.toml` over made folders.
#[cfg(feature = "testing")]
pub(crate) fn read_manifest_bytes(bytes: &[u8]) -> Result<AdapterTree> {
    struct Made;
    impl Places for Made {
        fn resolve(&self, node: &str, adapter: &Path) -> Result<PathBuf> {
            let path = Path::new("/made").join(adapter);
            let missing = TreeDefect::OutsideRoot { node: shown(node), path: path.clone() };
            if path.components().count() < 5 { Ok(path) } else { Err(missing.into()) }
        }
        fn check(&self, _: &str, _: &Path) -> Result<()> {
            Ok(())
        }
    }
    let manifest = Manifest::parse(Path::new("tree.toml"), bytes)?;
    let skip = manifest.skip()?;
    let names = ["de", "fr", "fr/alice", "fr/alice/best", "fr/médecine", "store/med"];
    let served = names.into_iter().filter(|name| skip.pattern(name).is_none());
    let folders = served.map(|name| (name.to_owned(), Path::new("/made").join(name))).collect();
    assemble(Path::new("/made"), manifest, Found { folders, ..Found::default() }, &Made)
}
