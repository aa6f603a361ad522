//! `tree.toml`: what a tree's files cannot say.
//!
//! **Invariant:** an unknown key is an error; nothing in the file names a place outside the tree's folder.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use crate::base::BaseModel;
use crate::error::TreeDefect;
use crate::{Error, Result};

/// The manifest's file name.
pub(super) const MANIFEST_FILE: &str = "tree.toml";
const MAX_BYTES: u64 = 64 << 20;

/// The base a tree was made for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BasePin {
    /// Its name, for people.
    pub name: Option<String>,
    /// The BLAKE3 hash of the base's content, 64 lower-case hexadecimal digits; another base is then refused.
    pub blake3: Option<String>,
}

impl BasePin {
    /// Refuses another base than the one the hash names.
    ///
    /// # Errors
    /// [`Error::WrongBase`].
    pub fn check(&self, base: &BaseModel) -> Result<()> {
        match &self.blake3 {
            Some(expected) if !expected.eq_ignore_ascii_case(base.content_hash()) => {
                let (base, found) = (base.path().into(), base.content_hash().to_owned());
                Err(Error::WrongBase { base, expected: expected.clone(), found })
            }
            _ => Ok(()),
        }
    }
}

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    #[serde(default)]
    pub(super) tree: TreeSection,
    pub(super) base: Option<BasePin>,
    #[serde(default)]
    pub(super) nodes: BTreeMap<String, NodeEntry>,
}

/// `[tree]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TreeSection {
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) levels: Vec<String>,
}

/// `[nodes."fr/medical"]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NodeEntry {
    /// The adapter's folder, relative to the tree's folder; left out for a node that is a folder of the tree.
    pub(super) adapter: Option<String>,
    /// Its parent; the nearest node above it by name if left out.
    pub(super) parent: Option<String>,
    /// What people call it.
    pub(super) label: Option<String>,
}

impl Manifest {
    /// Reads `tree.toml` in `root`, or gives an empty manifest if there is none.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let path = root.join(MANIFEST_FILE);
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(Error::io(path, source)),
        };
        let mut text = String::new();
        let bytes = file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|source| Error::io(&path, source))?;
        if bytes as u64 > MAX_BYTES {
            return Err(TreeDefect::ManifestTooLarge { path, bytes: bytes as u64, limit: MAX_BYTES }.into());
        }
        let mut manifest: Self =
            toml::from_str(&text).map_err(|source| TreeDefect::Manifest { path, source: Box::new(source) })?;
        if let Some(hash) = manifest.base.as_mut().and_then(|base| base.blake3.as_mut()) {
            if hash.len() != 64 || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(TreeDefect::BadHash { found: hash.chars().take(80).collect() }.into());
            }
            hash.make_ascii_lowercase();
        }
        Ok(manifest)
    }
}
