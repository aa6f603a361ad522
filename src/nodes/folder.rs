//! The nodes of a tree: folders of adapters, or deltas in memory.

use std::path::Path;
use std::sync::OnceLock;

use rand::rngs::StdRng;

use super::{Deltas, NodeSet, NodeVersion, Reading, Source, StalePolicy};
use crate::adapter::{PeftAdapter, beside};
use crate::error::TreeDefect;
use crate::store::Store;
use crate::tree::{AdapterTree, NodeSource};
use crate::{Error, Result};

/// A tree with one version of every node, which is its version as long as the tree is held.
pub(crate) struct TreeNodes {
    tree: AdapterTree,
    /// By the nodes' indices.
    versions: Vec<NodeVersion>,
}

impl TreeNodes {
    /// The nodes of `tree`. Nothing is read.
    pub(crate) fn new(tree: AdapterTree) -> Self {
        let mut versions: Vec<NodeVersion> = Vec::with_capacity(tree.len());
        for node in tree.nodes() {
            let source = match tree.source(node) {
                None => Source::Nothing,
                Some(NodeSource::Memory(deltas)) => Source::Memory(deltas.clone()),
                Some(NodeSource::Folder(dir)) => {
                    Source::Folder { dir: dir.clone(), content: OnceLock::new() }
                }
            };
            // A parent's index is smaller than its children's.
            let parent = tree.parent(node).map(|parent| versions[parent.index()].clone());
            versions.push(NodeVersion::new(tree.name(node).into(), parent, source));
        }
        Self { tree, versions }
    }

    /// Reads the adapter of a version.
    fn read_folder(
        &self,
        version: &NodeVersion,
        dir: &Path,
        content: &OnceLock<blake3::Hash>,
        reading: &Reading<'_>,
    ) -> Result<Deltas> {
        let name = version.name();
        let adapter =
            PeftAdapter::open(dir, reading.limits).map_err(|error| match dir.exists() {
                true => error,
                false => TreeDefect::Gone { node: name.to_owned(), path: dir.to_owned() }.into(),
            })?;
        if let Some(first) = content.get().filter(|first| **first != adapter.hash()) {
            let [first, found] =
                [*first, adapter.hash()].map(|hash| hash.to_hex()[..16].to_owned());
            return Err(TreeDefect::Changed {
                node: name.to_owned(),
                path: dir.to_owned(),
                first,
                found,
            }
            .into());
        }
        adapter.check_copies(reading.base)?;
        let deltas = adapter.deltas(reading.shapes)?;
        let remarks = adapter.remarks(reading.shapes)?;
        // What is refused is no content yet: it may be mended.
        if content.set(adapter.hash()).is_ok() {
            for remark in remarks {
                tracing::warn!("{name}: {remark}");
            }
            self.warn(version, dir, reading);
        }
        Ok(Deltas::Float(deltas.into()))
    }

    /// Warns of what is doubtful about a node that was read for the first time.
    fn warn(&self, version: &NodeVersion, dir: &Path, reading: &Reading<'_>) {
        let name = version.name();
        if let Some(doubt) =
            self.tree.node(name).ok().and_then(|node| self.tree.doubt(node, reading.limits))
        {
            tracing::warn!("{doubt}");
        }
        let beside = beside(dir, reading.base);
        // What was asked for is used.
        if !beside.is_empty() && reading.tokenizer.is_none_or(|given| !given.starts_with(dir)) {
            let (beside, dir) = (beside.join(", and "), dir.display());
            tracing::warn!(
                "{name}: beside the adapter lies {beside}; the base's is used (another: --tokenizer {dir})"
            );
        }
    }
}

impl NodeSet for TreeNodes {
    fn root(&self) -> &NodeVersion {
        &self.versions[0]
    }

    fn resolve(&self, name: &str) -> Result<NodeVersion> {
        Ok(self.versions[self.tree.node(name)?.index()].clone())
    }

    fn children(&self, name: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>> {
        let children =
            self.tree.children(self.tree.node(name)?).into_iter().map(|id| self.tree.name(id));
        Ok(children
            .filter(|&name| after.is_none_or(|after| name > after))
            .take(limit)
            .map(str::to_owned)
            .collect())
    }

    fn sample(&self, _: usize, _: &mut StdRng) -> Result<Vec<String>> {
        Ok(self.versions.iter().map(|version| version.name().to_owned()).collect())
    }

    fn read(&self, version: &NodeVersion, reading: &Reading<'_>) -> Result<Deltas> {
        match version.source() {
            Source::Memory(deltas) => Ok(Deltas::Float(deltas.clone())),
            Source::Folder { dir, content } => self.read_folder(version, dir, content, reading),
            Source::Nothing | Source::Stored { .. } => Ok(Deltas::Float(std::sync::Arc::default())),
        }
    }

    fn check_stale(&self, _: &NodeVersion, _: StalePolicy) -> Result<()> {
        Ok(())
    }

    fn advised(&self, error: Error) -> Error {
        error
    }

    fn with(&self, name: &str, work: &mut dyn FnMut(NodeVersion) -> Result<()>) -> Result<()> {
        work(self.resolve(name)?)
    }

    fn held(&self) -> usize {
        self.versions.len()
    }

    fn tree(&self) -> Option<&AdapterTree> {
        Some(&self.tree)
    }

    fn store(&self) -> Option<&Store> {
        None
    }
}
