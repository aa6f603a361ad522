//! A folder tree of PEFT adapters → a store.
//!
//! **Invariant:** the store appears whole: it is made beside its place and renamed there once every
//! adapter is in it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;

use super::after::After;
use super::change::Content;
use super::{Changes, Details, NodeFit, Options, Store, StoreInfo};
use crate::adapter::{Limits, PeftAdapter};
use crate::base::BaseModel;
use crate::error::{RefusedEntry, StoreDefect, TreeDefect};
use crate::lattice::{BaseLattice, Kept};
use crate::tree::{AdapterTree, Doubt, NodeId, NodeSource};
use crate::{Error, Result};

/// Bytes published at a time, or little more.
const BYTES_AT_ONCE: u64 = 64 << 20;

/// What an import is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// Keep the adapters' own files, too.
    pub keep_files: bool,
    /// Make a store of the rest where some entries of the tree are refused.
    pub skip_refused: bool,
    /// What the files of an adapter may hold.
    pub limits: Limits,
}

/// What an import made.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ImportReport {
    /// Nodes.
    pub nodes: u64,
    /// Bytes of compiled deltas and kept files.
    pub bytes: u64,
    /// Entries of the tree that are not in the store, each with the reason.
    pub refused: Vec<RefusedEntry>,
    /// Adapters in folders that the tree passes over.
    pub passed_over: usize,
    /// Nodes that may not be what their places say.
    #[serde(rename = "doubtful")]
    pub doubts: Vec<Doubt>,
    /// What there is to say about nodes ([`Content::remarks`]), by name.
    pub remarks: BTreeMap<String, Vec<String>>,
    /// What share of its change the lattice keeps, 0 to 1 ([`Kept`](crate::lattice::Kept)), of
    /// every node that changes anything.
    pub kept: BTreeMap<String, f64>,
}

impl Store {
    /// Makes a store in `folder` from a tree of PEFT adapters, compiled for `base` on `lattice`
    /// ([`base_lattice`](crate::compile::base_lattice)). `progress` is called with how many of how
    /// many adapters are looked at.
    ///
    /// # Errors
    /// As [`Store::create`]; and [`StoreDefect::Refused`] with all entries that are refused, those
    /// among them whose path does not fit the lattice, unless the options let a store be made of
    /// the rest. There is no store then.
    pub fn import(
        folder: &Path,
        tree: &AdapterTree,
        base: &BaseModel,
        lattice: &BaseLattice,
        options: ImportOptions,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<ImportReport> {
        if let Some(pin) = tree.base() {
            pin.check(base)?;
        }
        if let Some(conflict) = tree.conflicting_bases(base, &options.limits) {
            tracing::warn!("{conflict}");
        }
        // What is exported names the base as its adapters do, or programs that load it do not find
        // the base.
        let pinned = || tree.base().and_then(|pin| pin.name.clone());
        let base_name = tree.agreed_base(&options.limits).or_else(pinned);
        let file_name =
            || base.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let info = StoreInfo {
            base_name: base_name.unwrap_or_else(file_name),
            base_hash: base.content_hash().to_owned(),
            tree_name: tree.tree_name().map(str::to_owned),
            levels: (1..).map_while(|depth| tree.level_name(depth).map(str::to_owned)).collect(),
        };
        let made = Self::make(folder, info, lattice, &Options::default(), |store| {
            let passed_over = tree.passed_over().iter().map(|passed| passed.adapters).sum();
            let refused = tree.refused().to_vec();
            let mut report = ImportReport { passed_over, refused, ..ImportReport::default() };
            let nodes: Vec<NodeId> = tree.nodes().skip(1).collect();
            let (mut changes, mut waiting_bytes, mut done) = (Changes::new(), 0, 0);
            let (mut left_out, mut bytes) = (HashSet::new(), HashMap::new());
            // As many at a time as there are threads: adapters may be large.
            for part in nodes.chunks(rayon::current_num_threads().max(1)) {
                let compiled =
                    part.par_iter().map(|&node| store.compile_source(tree, node, base, options));
                let compiled: Vec<_> = compiled.collect();
                for (&node, content) in part.iter().zip(compiled) {
                    let name = tree.name(node);
                    let parent = tree.parent(node).filter(|parent| left_out.contains(parent));
                    let content = match (parent.map(|parent| tree.name(parent).to_owned()), content)
                    {
                        (None, content @ Err(Error::Store { .. })) => content?,
                        (None, Ok(content)) => content,
                        (parent, content) => {
                            let below = parent.map(|parent| TreeDefect::BelowRefused {
                                node: name.to_owned(),
                                parent,
                            });
                            let reason = below.map(Error::from).or(content.err());
                            report
                                .refused
                                .extend(reason.map(|reason| RefusedEntry::new(name, reason)));
                            left_out.insert(node);
                            continue;
                        }
                    };
                    report.doubts.extend(tree.doubt(node, &options.limits));
                    let share = content.kept().and_then(Kept::share);
                    report.kept.extend(share.map(|share| (name.to_owned(), share)));
                    if !content.remarks().is_empty() {
                        report.remarks.insert(name.to_owned(), content.remarks().to_vec());
                    }
                    waiting_bytes += content.bytes();
                    bytes.insert(name.to_owned(), content.bytes());
                    report.bytes += content.bytes();
                    report.nodes += 1;
                    let parent = tree.parent(node).map(|parent| tree.name(parent).to_owned());
                    let labels = tree
                        .label(node)
                        .map(|label| BTreeMap::from([("label".to_owned(), label.to_owned())]));
                    changes.publish(name, content, Details { parent, labels, trained_on: None });
                }
                done += part.len();
                if waiting_bytes > BYTES_AT_ONCE {
                    store.apply(&std::mem::take(&mut changes))?;
                    waiting_bytes = 0;
                }
                progress(done, nodes.len());
            }
            store.apply(&changes)?;
            store.leave_out_unreachable(base, options.skip_refused, &bytes, &mut report)?;
            report.refused.sort_by(|a, b| a.name.cmp(&b.name));
            if !report.refused.is_empty() && (!options.skip_refused || report.nodes == 0) {
                return Err(Error::store(folder, StoreDefect::Refused { refused: report.refused }));
            }
            Ok(report)
        });
        made.map(|(_, report)| report)
    }

    /// Refuses the nodes whose path does not fit the lattice, and with `skip` takes them out of the
    /// store again, with what hangs below them.
    fn leave_out_unreachable(
        &self,
        base: &BaseModel,
        skip: bool,
        bytes: &HashMap<String, u64>,
        report: &mut ImportReport,
    ) -> Result<()> {
        let mut left_out = BTreeSet::new();
        loop {
            let found = self.all_fits(Some(base), usize::MAX, |_, _| ())?.unreachable;
            for NodeFit { node, .. } in &found {
                if let Err(reason) = self.check_fit(node, Some(base)) {
                    report.refused.push(RefusedEntry::new(node, reason));
                }
            }
            if !skip || found.is_empty() {
                break;
            }
            let refused: BTreeSet<&String> = found.iter().map(|found| &found.node).collect();
            for &node in &refused {
                let below = After::unchanged(self).subtree(node)?;
                // Nothing where it went with a node above it.
                for (name, planned) in &below {
                    if !refused.contains(name) {
                        let (node, parent) = (name.clone(), planned.parent.clone());
                        report.refused.push(RefusedEntry::new(
                            name,
                            TreeDefect::BelowRefused { node, parent },
                        ));
                    }
                    left_out.insert(name.clone());
                }
                if !below.is_empty() {
                    self.remove(node, true, None)?;
                }
            }
        }
        report.nodes -= left_out.len() as u64;
        report.bytes -= left_out.iter().filter_map(|name| bytes.get(name)).sum::<u64>();
        report.kept.retain(|name, _| !left_out.contains(name));
        report.remarks.retain(|name, _| !left_out.contains(name));
        report.doubts.retain(|doubt| !left_out.contains(&doubt.node));
        if !left_out.is_empty() {
            // Nobody shall roll back to them.
            self.compact(|_, _| ())?;
        }
        Ok(())
    }

    /// Compiles what a node of a tree holds.
    fn compile_source(
        &self,
        tree: &AdapterTree,
        node: NodeId,
        base: &BaseModel,
        options: ImportOptions,
    ) -> Result<Content> {
        match tree.source(node) {
            Some(NodeSource::Folder(dir)) => self.compile_opened(
                &PeftAdapter::open(dir, &options.limits)?,
                Some(base),
                options.keep_files,
            ),
            Some(NodeSource::Memory(deltas)) => self.compile(deltas),
            None => self.compile(&BTreeMap::new()),
        }
    }
}
