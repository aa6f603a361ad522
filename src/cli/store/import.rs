//! `pleach store import`: a folder tree of PEFT adapters → a store.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use indicatif::{DecimalBytes, HumanCount};
use pleach::runtime::open_base;
use pleach::store::{ImportReport, Store};
use pleach::tree::AdapterTree;
use pleach::weights::base_lattice;
use serde::Serialize;

use super::moving;
use crate::cli::Console;

/// Make a store from a tree of PEFT adapters
#[derive(Args)]
pub(super) struct Import {
    /// Folder of the tree
    tree: PathBuf,
    /// Folder of the store: it must not exist, or be empty
    store: PathBuf,
    /// Base model the store is for: a Hugging Face folder, a GGUF file, or hf:ORG/NAME[@REVISION]
    #[arg(long)]
    base: PathBuf,
    /// Room above every row's largest weight, 1 to 1024: more holds larger deltas, more coarsely
    #[arg(long, value_name = "FACTOR", default_value_t = pleach::lattice::DEFAULT_HEADROOM)]
    headroom: f32,
    /// Keep the adapters' own files, too, to be exported as they were
    #[arg(long)]
    keep_files: bool,
}

/// The answer as JSON.
#[derive(Serialize)]
struct Answer {
    store: String,
    #[serde(flatten)]
    report: ImportReport,
    seconds: f64,
}

impl Import {
    pub(super) fn run(self, console: &Console) -> anyhow::Result<()> {
        let start = Instant::now();
        let tree = AdapterTree::open(&self.tree)?;
        let base = open_base(&self.base)?;
        let bar = console.bar("reading the base");
        let mut on = moving(&bar);
        let lattice = base_lattice(&base, self.headroom, |done, total| on(done as u64, total as u64))?;
        bar.finish_and_clear();
        let bar = console.bar("compiling the adapters");
        let mut on = moving(&bar);
        let report = Store::import(&self.store, &tree, &base, &lattice, self.keep_files, |done, total| {
            on(done as u64, total as u64);
        })?;
        bar.finish_and_clear();
        let answer = Answer { store: self.store.display().to_string(), report, seconds: start.elapsed().as_secs_f64() };
        console.answer(&answer, || {
            let (nodes, bytes) = (HumanCount(report.nodes), DecimalBytes(report.bytes));
            format!("{}: {nodes} nodes, {bytes}, in {:.2} s\n", answer.store, answer.seconds)
        })
    }
}
