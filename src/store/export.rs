//! A node of a store → a PEFT adapter: its kept files as they were, or one made from its compiled
//! deltas.
//!
//! **Invariant:** what is exported is one committed state, of a flattened path, too.

use std::path::Path;

use serde::Serialize;

use super::blob::decode_kept;
use super::segment::{Blob, Location};
use super::{Store, StoreNode, again};
use crate::Result;
use crate::adapter::{AdapterDeltas, FloatDelta, PeftOptions, flatten, write_files, write_peft};
use crate::lattice::decompile;

/// What an export wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExportReport {
    /// The nodes whose deltas are in it, from the top down.
    pub nodes: Vec<String>,
    /// The generation of the last of them.
    pub generation: u64,
    /// Whether these are the files that were published, byte for byte.
    pub original: bool,
    /// The names of those files; empty where the adapter was made.
    pub files: Vec<String>,
    /// Largest rank; 0 if these are the files that were published.
    pub rank: usize,
}

impl Store {
    /// Writes the node called `name` as a PEFT adapter into the folder `dir`, which must not exist
    /// or be empty. Kept files are written as they were; otherwise the adapter is made from the
    /// compiled deltas, rounded once more. With `flatten_path` it is one adapter that sums the node
    /// and all above it, of one rank throughout, for programs that load one adapter at a time.
    ///
    /// # Errors
    /// As [`Store::get`] and [`write_peft`], and when a segment is gone or damaged.
    pub fn export(&self, name: &str, dir: &Path, flatten_path: bool) -> Result<ExportReport> {
        again(|| self.export_once(name, dir, flatten_path))
    }

    fn export_once(&self, name: &str, dir: &Path, flatten_path: bool) -> Result<ExportReport> {
        // Refuses the root, too.
        let node = self.get(name)?;
        let path = if flatten_path { self.path(name)? } else { vec![node] };
        let mut report = ExportReport {
            nodes: path.iter().map(|node| node.name.clone()).collect(),
            generation: path.last().map_or(0, |node| node.version.generation),
            ..ExportReport::default()
        };
        if !flatten_path
            && let [StoreNode { version, .. }] = &path[..]
            && let Some(original) = &version.original
        {
            let blob = self.blob(original)?;
            let files = self.kept_files(original, &blob)?;
            write_files(dir, &files)?;
            report.files = files.into_iter().map(|(name, _)| name.to_owned()).collect();
            return Ok(ExportReport { original: true, ..report });
        }
        let levels = path.iter().map(|node| self.floats(node)).collect::<Result<Vec<_>>>()?;
        let deltas = flatten(&levels.iter().collect::<Vec<_>>())?;
        let rank_of = |delta: &FloatDelta| {
            if let FloatDelta::LowRank { rank, .. } = delta { *rank } else { 0 }
        };
        report.rank = deltas.values().map(rank_of).max().unwrap_or(0);
        let options =
            PeftOptions { base_model: Some(self.info().base_name), uniform_rank: flatten_path };
        write_peft(dir, &deltas, &options)?;
        Ok(report)
    }

    /// The files in a blob of kept ones, by name.
    pub(super) fn kept_files<'a>(
        &self,
        at: &Location,
        blob: &'a Blob,
    ) -> Result<Vec<(&'a str, &'a [u8])>> {
        decode_kept(blob.bytes()).map_err(|problem| self.inner.segments.undecoded(at, problem))
    }

    /// A node's deltas as floats again.
    fn floats(&self, node: &StoreNode) -> Result<AdapterDeltas> {
        let lattice = self.lattice()?;
        let floats = self.read(&node.version.location)?.into_iter().map(|(weight, delta)| {
            match lattice
                .grid(&weight)
                .filter(|grid| (grid.rows(), grid.cols) == (delta.rows, delta.cols))
            {
                Some(grid) => Ok((weight, decompile(&delta, grid))),
                None => {
                    Err(self.damaged(node.name.clone(), &format!("{weight} is not the base's")))
                }
            }
        });
        floats.collect()
    }
}
