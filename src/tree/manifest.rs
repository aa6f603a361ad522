//! `tree.toml`: what a tree's files cannot say.
//!
//! **Invariant:** an unknown key is an error; nothing in the file names a place outside the tree's
//! folder.

use std::collections::BTreeMap;
use std::path::Path;

use glob::{MatchOptions, Pattern};
use serde::Deserialize;

use crate::base::BaseModel;
use crate::error::TreeDefect;
use crate::file::read_limited;
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
    /// The BLAKE3 hash of the base's content, 64 lower-case hexadecimal digits; another base is
    /// then refused.
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
    #[serde(default)]
    skip: Vec<String>,
}

/// Folders that are passed over, with all below them: patterns of shells. One without a slash is of
/// a folder's own name, wherever it lies; one with a slash is of its path from the tree's folder,
/// where `*` stops at slashes and `**` does not.
#[derive(Debug, Default)]
pub(super) struct Skip(Vec<Pattern>);

impl Skip {
    fn parse(patterns: &[String]) -> Result<Self, TreeDefect> {
        let parse = |pattern: &String| {
            Pattern::new(pattern.trim_matches('/')).map_err(|error| {
                let pattern = pattern.chars().take(200).collect();
                TreeDefect::BadPattern {
                    pattern,
                    reason: format!("{} at character {}", error.msg, error.pos),
                }
            })
        };
        patterns.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// The pattern that `folder`, a path from the tree's folder, is passed over by.
    pub(super) fn pattern(&self, folder: &str) -> Option<String> {
        let options = MatchOptions { require_literal_separator: true, ..MatchOptions::new() };
        let name = folder.rsplit('/').next().unwrap_or(folder);
        let of = |pattern: &&Pattern| if pattern.as_str().contains('/') { folder } else { name };
        let found = self.0.iter().find(|pattern| pattern.matches_with(of(pattern), options));
        found.map(|pattern| pattern.as_str().to_owned())
    }
}

/// `[nodes."fr/medical"]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NodeEntry {
    /// The adapter's folder, relative to the tree's folder; left out for a node that is a folder of
    /// the tree.
    pub(super) adapter: Option<String>,
    /// Its parent; the nearest node above it by name if left out.
    pub(super) parent: Option<String>,
    /// What people call it.
    pub(super) label: Option<String>,
}

impl Manifest {
    /// Reads `tree.toml` in `root` (canonical), or returns an empty manifest if there is none.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let path = root.join(MANIFEST_FILE);
        let real = match path.canonicalize() {
            Ok(real) => real,
            // A link that leads nowhere is a manifest that is lost, not none.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !path.is_symlink() => {
                return Ok(Self::default());
            }
            Err(source) => return Err(Error::io(path, source)),
        };
        if !real.starts_with(root) {
            return Err(
                TreeDefect::OutsideRoot { node: MANIFEST_FILE.to_owned(), path: real }.into()
            );
        }
        match read_limited(&path, MAX_BYTES) {
            Ok(bytes) => Self::parse(&path, &bytes),
            Err(Error::FileTooLarge { path, bytes, limit }) => {
                Err(TreeDefect::ManifestTooLarge { path, bytes, limit }.into())
            }
            Err(error) => Err(error),
        }
    }

    /// Parses the bytes of `tree.toml`, read from `path`.
    pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(bytes).map_err(|error| {
            Error::io(path, std::io::Error::new(std::io::ErrorKind::InvalidData, error))
        })?;
        let mut manifest: Self = toml::from_str(text).map_err(|source| TreeDefect::Manifest {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        if let Some(hash) = manifest.base.as_mut().and_then(|base| base.blake3.as_mut()) {
            if hash.len() != 64 || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(TreeDefect::BadHash { found: hash.chars().take(80).collect() }.into());
            }
            hash.make_ascii_lowercase();
        }
        Ok(manifest)
    }

    /// The folders to pass over.
    pub(super) fn skip(&self) -> Result<Skip> {
        Ok(Skip::parse(&self.tree.skip)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_of_a_folders_name_or_of_its_whole_path() {
        let patterns =
            ["final", "epoch_*", "fr/*/ref", "**/old/x?", "/de/", "[ab]c"].map(str::to_owned);
        let skip = Skip::parse(&patterns).unwrap();
        for folder in [
            "final",
            "a/b/final",
            "a/epoch_12",
            "fr/alice/ref",
            "a/b/old/x1",
            "old/x2",
            "de",
            "x/de",
            "bc",
        ] {
            assert!(skip.pattern(folder).is_some(), "{folder}");
        }
        for folder in
            ["finale", "final/x", "fr/ref", "fr/a/b/ref", "old/x", "old/x12", "Final", "cc"]
        {
            assert_eq!(skip.pattern(folder), None, "{folder}");
        }
        for bad in ["[a", "a**", "***"] {
            assert!(
                matches!(Skip::parse(&[bad.to_owned()]), Err(TreeDefect::BadPattern { .. })),
                "{bad}"
            );
        }
    }
}
