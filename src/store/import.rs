//! A folder tree of PEFT adapters → a store.
//!
//! **Invariant:** the store appears whole: it is made beside its place and renamed there once every adapter is in it.

use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;

use super::{Changes, Details, Store, StoreInfo, StoreOptions};
use crate::Result;
use crate::adapter::Limits;
use crate::base::BaseModel;
use crate::error::StoreDefect;
use crate::lattice::BaseLattice;
use crate::tree::{AdapterTree, NodeId, NodeSource};

/// Bytes published at a time, or little more.
const BYTES_AT_ONCE: u64 = 64 << 20;

/// What an import made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ImportReport {
    /// Nodes.
    pub nodes: u64,
    /// Bytes of compiled deltas and kept files.
    pub bytes: u64,
}

impl Store {
    /// Makes a store in `folder` from a tree of PEFT adapters, compiled for `base` on `lattice`
    /// ([`base_lattice`](crate::weights::base_lattice)). With `keep_files` the adapters' own files are kept, too.
    /// `progress` is told how many of how many adapters are in it.
    ///
    /// # Errors
    /// As [`Store::create`]; and [`Error::Adapter`] for the first adapter that is refused. There is no store then.
    pub fn import(
        folder: &Path,
        tree: &AdapterTree,
        base: &BaseModel,
        lattice: &BaseLattice,
        keep_files: bool,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<ImportReport> {
        if let Some(pin) = tree.base() {
            pin.check(base)?;
        }
        let base_name = tree.base().and_then(|pin| pin.name.clone());
        let file_name = || base.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let info = StoreInfo {
            base_name: base_name.unwrap_or_else(file_name),
            base_hash: base.content_hash().to_owned(),
            tree_name: tree.tree_name().map(str::to_owned),
            levels: (1..).map_while(|depth| tree.level_name(depth).map(str::to_owned)).collect(),
        };
        Self::make(folder, info, lattice, &StoreOptions::default(), |store| {
            let mut report = ImportReport::default();
            let nodes: Vec<NodeId> = tree.nodes().skip(1).collect();
            let mut changes = Changes::new();
            let mut waiting_bytes = 0;
            // As many at a time as there are threads: adapters may be large.
            for part in nodes.chunks(rayon::current_num_threads().max(1)) {
                let compiled = part.par_iter().map(|&node| match tree.source(node) {
                    Some(NodeSource::Folder(dir)) => {
                        store.compile_adapter(dir, Some(base), &Limits::default(), keep_files)
                    }
                    Some(NodeSource::Memory(deltas)) => store.compile(deltas),
                    Some(NodeSource::Stored(_)) => {
                        Err(store.defect(StoreDefect::OfAStore { name: tree.name(node).to_owned() }))
                    }
                    None => store.compile(&BTreeMap::new()),
                });
                for (&node, content) in part.iter().zip(compiled.collect::<Result<Vec<_>>>()?) {
                    waiting_bytes += content.bytes();
                    report.bytes += content.bytes();
                    let parent = tree.parent(node).map(|parent| tree.name(parent).to_owned());
                    let labels = tree.label(node).map(|label| BTreeMap::from([("label".to_owned(), label.to_owned())]));
                    changes.publish(tree.name(node), content, Details { parent, labels, trained_on: None });
                }
                report.nodes += part.len() as u64;
                if waiting_bytes > BYTES_AT_ONCE {
                    store.apply(&std::mem::take(&mut changes))?;
                    waiting_bytes = 0;
                }
                progress(usize::try_from(report.nodes).unwrap_or(usize::MAX), nodes.len());
            }
            store.apply(&changes)?;
            Ok(report)
        })
    }
}
