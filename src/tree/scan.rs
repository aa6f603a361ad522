//! A folder → a tree: every folder with an `adapter_config.json` is a node.
//!
//! **Invariant:** every path handed on is canonical and inside the root; each folder is entered
//! once; nothing outside the root is read. What cannot be entered or served is left out with its
//! reason, and nothing else with it.

use std::collections::{HashMap, VecDeque};
use std::fs::DirEntry;
use std::path::{Path, PathBuf};

use super::assemble::{Found, Places, assemble};
use super::manifest::{Manifest, Skip};
use super::{AdapterTree, MAX_DEPTH, PassedOver, STORE_FILE, check_name, normal, shown};
use crate::adapter::{CONFIG_FILE, TENSOR_FILE};
use crate::error::{PassedOverWhy, TreeDefect};
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
    let skip = manifest.skip()?;
    let mut scan = Scan {
        root: &root,
        skip: &skip,
        seen: HashMap::new(),
        links: VecDeque::new(),
        found: Found::default(),
    };
    scan.list(&root).map_err(|source| Error::io(folder, source))?;
    scan.enter(root.clone(), String::new(), 0);
    scan.follow_links();
    assemble(folder, manifest, scan.found, &Root(&root))
}

/// The tree's folder, canonical.
struct Root<'a>(&'a Path);

impl Places for Root<'_> {
    fn resolve(&self, node: &str, adapter: &Path) -> Result<PathBuf> {
        resolve(self.0, node, &self.0.join(adapter))
    }

    fn check(&self, node: &str, folder: &Path) -> Result<()> {
        check_files(self.0, node, folder)
    }
}

/// Follows links; what they lead to must be inside the root.
fn resolve(root: &Path, node: &str, path: &Path) -> Result<PathBuf> {
    let real = path.canonicalize().map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound if path.is_symlink() => {
            TreeDefect::DanglingLink { path: path.to_owned() }.into()
        }
        std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied => {
            Error::io(path, source)
        }
        _ => TreeDefect::LinkCycle { path: path.to_owned() }.into(),
    })?;
    if real.starts_with(root) {
        return Ok(real);
    }
    Err(TreeDefect::OutsideRoot { node: shown(node), path: real }.into())
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

/// Whether there is a config: a link that leads nowhere is a node with a missing file, not no node.
fn has_config(folder: &Path) -> bool {
    folder.join(CONFIG_FILE).symlink_metadata().is_ok()
}

struct Scan<'a> {
    root: &'a Path,
    skip: &'a Skip,
    /// Folders entered (canonical), and the path they were entered by.
    seen: HashMap<PathBuf, PathBuf>,
    /// Links to follow once every real folder was entered, so that a folder is a node under its own
    /// name first.
    links: VecDeque<Link>,
    found: Found,
}

/// A link that lies in `folder`, canonical.
struct Link {
    path: PathBuf,
    folder: PathBuf,
    name: String,
    depth: usize,
}

impl Scan<'_> {
    /// Looks at a folder (canonical, inside the root) called `name`, and at those in it.
    fn enter(&mut self, folder: PathBuf, name: String, depth: usize) {
        if depth > MAX_DEPTH {
            let defect = TreeDefect::TooDeep { name: shown(&name), depth, limit: MAX_DEPTH };
            return self.found.refused.add(&name, defect, Some(&folder));
        }
        let path = self.root.join(&name);
        if let Some(first) = self.seen.get(&folder) {
            let defect = TreeDefect::FolderTwice { path, first: first.clone() };
            return self.found.refused.add(&name, defect, None);
        }
        self.seen.insert(folder.clone(), path);
        let entries = match self.list(&folder) {
            Ok(entries) => entries,
            // What is below is not known, so the node itself is not served either.
            Err(source) => {
                return self.found.refused.add(&name, Error::io(&folder, source), Some(&folder));
            }
        };
        if depth > 0 && has_config(&folder) {
            self.take(&folder, &name);
        }
        for entry in entries {
            self.look_at(&folder, &name, depth, &entry);
        }
    }

    fn list(&self, folder: &Path) -> std::io::Result<Vec<DirEntry>> {
        let mut entries: Vec<DirEntry> =
            std::fs::read_dir(folder)?.collect::<std::io::Result<_>>()?;
        entries.sort_by_key(DirEntry::file_name);
        Ok(entries)
    }

    /// Takes the folder called `name` as a node.
    fn take(&mut self, folder: &Path, name: &str) {
        let checked = check_name(name)
            .map_err(Error::from)
            .and_then(|()| check_files(self.root, name, folder));
        let refused = &mut self.found.refused;
        match checked {
            Err(error) => refused.add(name, error, Some(folder)),
            // Names of one text in two encodings. Which of them is meant nobody can know.
            Ok(()) if self.found.folders.remove(name).is_some() => {
                refused.add(name, TreeDefect::DuplicateNode { name: name.to_owned() }, None);
            }
            Ok(()) => drop(self.found.folders.insert(name.to_owned(), folder.to_owned())),
        }
    }

    /// Looks at one entry of the folder (canonical) called `name`.
    fn look_at(&mut self, folder: &Path, name: &str, depth: usize, entry: &DirEntry) {
        let path = entry.path();
        let file_name = entry.file_name().to_string_lossy().into_owned();
        let child = normal(&if name.is_empty() {
            file_name.clone()
        } else {
            format!("{name}/{file_name}")
        })
        .into_owned();
        let kind = match entry.file_type() {
            Ok(kind) => kind,
            Err(source) => return self.found.refused.add(&child, Error::io(&path, source), None),
        };
        let is_adapters = kind.is_symlink() && [CONFIG_FILE, TENSOR_FILE].contains(&&file_name[..]);
        if !kind.is_dir() && !kind.is_symlink() || is_adapters {
            return;
        }
        let why = passed_over(&file_name)
            .or_else(|| self.skip.pattern(&child).map(PassedOverWhy::Pattern));
        if let Some(why) = why {
            return self.pass_over(path, child, why, kind.is_symlink());
        }
        if file_name.starts_with('.') {
            // Hidden folders are not part of a tree; an adapter in one is more likely a mistake.
            // What a hidden link leads to is found where it lies.
            if kind.is_dir() && has_config(&path) {
                let problem = "it is hidden: its folder's name starts with a dot".to_owned();
                let defect = TreeDefect::InvalidName { name: shown(&child), problem };
                self.found.refused.add(&child, defect, Some(&path));
            }
        } else if kind.is_symlink() {
            self.links.push_back(Link {
                path,
                folder: folder.to_owned(),
                name: child,
                depth: depth + 1,
            });
        } else {
            self.enter(path, child, depth + 1);
        }
    }

    /// Enters what links lead to, and links that are found there.
    fn follow_links(&mut self) {
        while let Some(Link { path, folder, name, depth }) = self.links.pop_front() {
            match resolve(self.root, &name, &path) {
                // A file is no node, wherever it lies.
                Err(Error::Tree(defect)) if matches!(&*defect, TreeDefect::OutsideRoot { path, .. } if !path.is_dir()) =>
                    {}
                Err(error) => self.found.refused.add(&name, error, None),
                Ok(real) if folder.starts_with(&real) => {
                    self.found.refused.add(&name, TreeDefect::LinkCycle { path }, None);
                }
                Ok(real) if real.is_dir() => self.enter(real, name, depth),
                Ok(_) => {}
            }
        }
    }

    fn pass_over(&mut self, path: PathBuf, folder: String, why: PassedOverWhy, is_link: bool) {
        let adapters = if is_link { 0 } else { adapters_in(&path) };
        // Nothing is missed where a trainer's or a system's own folder holds no adapter.
        if adapters > 0 || matches!(why, PassedOverWhy::Pattern(_)) {
            self.found.passed_over.push(PassedOver { folder, why, adapters, path });
        }
    }
}

/// Folders with a config in and below `folder`; what cannot be read does not count.
fn adapters_in(folder: &Path) -> usize {
    let mut adapters = 0;
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        adapters += usize::from(has_config(&folder));
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        if depth < MAX_DEPTH {
            let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            folders.extend(below.map(|entry| (entry.path(), depth + 1)));
        }
    }
    adapters
}

/// Folders that are no nodes by their names.
fn passed_over(name: &str) -> Option<PassedOverWhy> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match name {
        "__pycache__" => Some(PassedOverWhy::Cache),
        _ if name.strip_prefix("checkpoint-").is_some_and(is_number) => {
            Some(PassedOverWhy::Checkpoint)
        }
        _ if name.starts_with("..") => Some(PassedOverWhy::Volume),
        _ => None,
    }
}
