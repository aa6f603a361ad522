//! A folder → a tree: every folder with an `adapter_config.json` is a node.
//!
//! **Invariant:** every path handed on is canonical and inside the root; each folder is entered once.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

use super::build::{Spec, TreeBuilder};
use super::manifest::Manifest;
use super::{AdapterTree, MAX_DEPTH, NodeSource, STORE_FILE, check_name};
use crate::adapter::{CONFIG_FILE, TENSOR_FILE};
use crate::error::TreeDefect;
use crate::suggest::nearest;
use crate::{Error, Result};

pub(super) fn open(folder: &Path) -> Result<AdapterTree> {
    let root = folder.canonicalize().map_err(|source| Error::io(folder, source))?;
    if root.join(CONFIG_FILE).exists() {
        return Err(TreeDefect::RootIsAdapter { path: folder.to_owned() }.into());
    }
    if root.join(STORE_FILE).exists() {
        return Err(TreeDefect::IsStore { path: folder.to_owned() }.into());
    }
    let manifest = Manifest::read(&root)?;
    let mut scan = Scan { root: &root, seen: HashMap::new(), found: BTreeMap::new() };
    scan.enter(&root, "", 0)?;
    let mut folders = scan.found;
    let mut specs = Vec::new();
    // Entries with files of their own first: a folder they claim is a node under their name only.
    for (name, entry) in &manifest.nodes {
        let Some(adapter) = &entry.adapter else { continue };
        check_name(name)?;
        let path = inside(&root, name, adapter)?;
        if folders.contains_key(name) {
            return Err(TreeDefect::DuplicateNode { name: name.clone() }.into());
        }
        specs.push(Spec {
            name: name.clone(),
            parent: entry.parent.clone(),
            label: entry.label.clone(),
            source: NodeSource::Folder(path),
        });
    }
    let claimed: Vec<PathBuf> = specs.iter().filter_map(|spec| folder_of(&spec.source)).collect();
    folders.retain(|_, path| !claimed.contains(path));
    for (name, entry) in manifest.nodes.iter().filter(|(_, entry)| entry.adapter.is_none()) {
        let Some(path) = folders.remove(name) else {
            let nearest = nearest(name, '/', folders.keys().map(String::as_str));
            return Err(TreeDefect::NodeWithoutFiles { name: name.clone(), nearest }.into());
        };
        let (parent, label) = (entry.parent.clone(), entry.label.clone());
        specs.push(Spec { name: name.clone(), parent, label, source: NodeSource::Folder(path) });
    }
    specs.extend(folders.into_iter().map(|(name, path)| Spec {
        name,
        parent: None,
        label: None,
        source: NodeSource::Folder(path),
    }));
    if specs.is_empty() {
        return Err(TreeDefect::Empty { path: folder.to_owned() }.into());
    }
    let (name, levels, base) = (manifest.tree.name, manifest.tree.levels, manifest.base);
    TreeBuilder { nodes: specs, name, levels, base }.build()
}

fn folder_of(source: &NodeSource) -> Option<PathBuf> {
    match source {
        NodeSource::Folder(path) => Some(path.clone()),
        NodeSource::Memory(_) | NodeSource::Stored(_) => None,
    }
}

/// The folder `adapter` names, if it and its files are inside the root.
fn inside(root: &Path, node: &str, adapter: &str) -> Result<PathBuf> {
    let relative = Path::new(adapter);
    if !relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(TreeDefect::OutsideRoot { node: node.to_owned(), path: relative.to_owned() }.into());
    }
    let path = resolve(root, node, &root.join(relative))?;
    check_files(root, node, &path)?;
    Ok(path)
}

/// Follows links; what they lead to must be inside the root.
fn resolve(root: &Path, node: &str, path: &Path) -> Result<PathBuf> {
    let real = path.canonicalize().map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied => Error::io(path, source),
        _ => TreeDefect::LinkCycle { path: path.to_owned() }.into(),
    })?;
    if real.starts_with(root) {
        return Ok(real);
    }
    Err(TreeDefect::OutsideRoot { node: node.to_owned(), path: real }.into())
}

/// The adapter's files may be links, but not out of the root.
fn check_files(root: &Path, node: &str, folder: &Path) -> Result<()> {
    for file in [CONFIG_FILE, TENSOR_FILE] {
        let path = folder.join(file);
        if path.is_symlink() {
            resolve(root, node, &path)?;
        }
    }
    Ok(())
}

struct Scan<'a> {
    root: &'a Path,
    /// Folders entered (canonical), and the path they were entered by.
    seen: HashMap<PathBuf, PathBuf>,
    /// Nodes by name.
    found: BTreeMap<String, PathBuf>,
}

impl Scan<'_> {
    /// Looks at a folder (canonical, inside the root) called `name`, and at those in it.
    fn enter(&mut self, folder: &Path, name: &str, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(TreeDefect::TooDeep { name: name.to_owned(), depth, limit: MAX_DEPTH }.into());
        }
        let path = self.root.join(name);
        if let Some(first) = self.seen.insert(folder.to_owned(), path.clone()) {
            return Err(TreeDefect::FolderTwice { path, first }.into());
        }
        // `symlink_metadata`: a link that leads nowhere is a node with a missing file, not no node.
        if depth > 0 && folder.join(CONFIG_FILE).symlink_metadata().is_ok() {
            check_name(name)?;
            check_files(self.root, name, folder)?;
            self.found.insert(name.to_owned(), folder.to_owned());
        }
        let mut entries: Vec<_> =
            std::fs::read_dir(folder).and_then(Iterator::collect).map_err(|source| Error::io(folder, source))?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let kind = entry.file_type().map_err(|source| Error::io(&path, source))?;
            let file_name = entry.file_name().to_string_lossy().into_owned();
            if !kind.is_dir() && !kind.is_symlink() || is_clutter(&file_name) {
                continue;
            }
            let child = if name.is_empty() { file_name.clone() } else { format!("{name}/{file_name}") };
            if file_name.starts_with('.') {
                // Hidden folders are not part of a tree; an adapter in one is more likely a mistake.
                if path.join(CONFIG_FILE).exists() {
                    return Err(TreeDefect::InvalidName { name: child }.into());
                }
                continue;
            }
            let real = if kind.is_symlink() { resolve(self.root, &child, &path)? } else { path.clone() };
            if kind.is_symlink() && folder.starts_with(&real) {
                return Err(TreeDefect::LinkCycle { path }.into());
            }
            if real.is_dir() {
                self.enter(&real, &child, depth + 1)?;
            }
        }
        Ok(())
    }
}

/// Folders that trainers leave beside an adapter: earlier states of the same adapter.
fn is_clutter(name: &str) -> bool {
    name == "__pycache__"
        || name
            .strip_prefix("checkpoint-")
            .is_some_and(|step| !step.is_empty() && step.bytes().all(|b| b.is_ascii_digit()))
}
