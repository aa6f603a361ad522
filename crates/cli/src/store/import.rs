//! `pleach store import`: a folder tree of PEFT adapters → a store.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use indicatif::{DecimalBytes, HumanCount};
use pleach::compile::base_lattice;
use pleach::lattice::percent;
use pleach::runtime::open_base;
use pleach::store::{ImportOptions, ImportReport, Store};
use pleach::tree::AdapterTree;
use serde::Serialize;

use super::moving;
use crate::Console;
use crate::left_out::refused_lines;

/// Remarks on nodes that are written out; a tree may have thousands of adapters.
const REMARKS_TOLD: usize = 20;

/// Make a store from a tree of PEFT adapters
#[derive(Args)]
#[command(after_help = "\
Where an entry of the tree is refused, all that are refused are named and there is no store, \
unless --skip-refused leaves them and what hangs below them out.")]
pub(super) struct Import {
    /// Folder of the tree
    tree: PathBuf,
    /// Folder of the store: it must not exist, or be empty
    store: PathBuf,
    /// Base model the store is for: a Hugging Face folder, a GGUF file, or hf:ORG/NAME[@REVISION]
    #[arg(long)]
    base: PathBuf,
    /// Space above every row's largest weight, 1 to 1024: more holds larger deltas, more coarsely
    #[arg(long, value_name = "FACTOR", default_value_t = pleach::lattice::DEFAULT_HEADROOM)]
    headroom: f32,
    /// Keep the adapters' own files, too, to be exported as they were
    #[arg(long)]
    keep_files: bool,
    /// Make a store of the rest where some entries of the tree are refused
    #[arg(long)]
    skip_refused: bool,
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
        crate::signals::tidy_up_when_told_to_end()?;
        let tree = AdapterTree::open(&self.tree)?;
        let base = open_base(&self.base)?;
        let bar = console.bar("reading the base");
        let mut on = moving(&bar);
        let lattice =
            base_lattice(&base, self.headroom, |done, total| on(done as u64, total as u64))?;
        bar.finish_and_clear();
        let bar = console.bar("compiling the adapters");
        let mut on = moving(&bar);
        let options = ImportOptions {
            keep_files: self.keep_files,
            skip_refused: self.skip_refused,
            limits: console.limits,
        };
        let report = Store::import(&self.store, &tree, &base, &lattice, options, |done, total| {
            on(done as u64, total as u64);
        })?;
        bar.finish_and_clear();
        let remarks = || {
            report
                .remarks
                .iter()
                .flat_map(|(node, remarks)| remarks.iter().map(move |text| (node, text)))
        };
        for (node, remark) in remarks().take(REMARKS_TOLD) {
            tracing::warn!("{node}: {remark}");
        }
        if let Some(more) = remarks().count().checked_sub(REMARKS_TOLD).filter(|more| *more > 0) {
            tracing::warn!("{more} more remarks on nodes; --json lists all");
        }
        let answer = Answer {
            store: self.store.display().to_string(),
            report,
            seconds: start.elapsed().as_secs_f64(),
        };
        console.answer(&answer, || answer.text())
    }
}

impl Answer {
    fn text(&self) -> String {
        let ImportReport { refused, passed_over, doubts, .. } = &self.report;
        let (nodes, bytes) = (HumanCount(self.report.nodes), DecimalBytes(self.report.bytes));
        let mut text =
            format!("{}: {nodes} nodes, {bytes}, in {:.2} s\n", self.store, self.seconds);
        if let Some(least) = self.report.kept.values().copied().reduce(f64::min) {
            text +=
                &format!("of each adapter's change the lattice keeps {} or more\n", percent(least));
        }
        for line in refused_lines(refused) {
            text += &format!("{line}\n");
        }
        if *passed_over > 0 {
            text += &format!(
                "passed over: adapters in {passed_over} folders; `pleach tree` names them\n"
            );
        }
        for doubt in doubts {
            text += &format!("doubtful: {doubt}\n");
        }
        text
    }
}
