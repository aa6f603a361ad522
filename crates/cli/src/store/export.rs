//! `pleach store export`: a node as a PEFT adapter.

use std::path::PathBuf;

use clap::Args;
use pleach::store::ExportReport;
use serde::Serialize;

use super::Opening;
use crate::Console;

/// Write a node as a standard PEFT adapter
#[derive(Args)]
#[command(after_help = "\
Without --flatten, files that were kept are written as they were. Otherwise the adapter is made \
from the compiled deltas, in F32, and differs from what was published by their rounding.")]
pub(super) struct Export {
    /// Folder of the store
    store: PathBuf,
    /// The node
    node: String,
    /// Folder of the adapter to be: it must not exist, or be empty
    dir: PathBuf,
    /// Sum the node and all above it in one adapter, for programs that load one at a time
    #[arg(long)]
    flatten: bool,
}

/// The answer as JSON.
#[derive(Serialize)]
struct Answer {
    adapter: String,
    #[serde(flatten)]
    report: ExportReport,
}

impl Export {
    pub(super) fn run(self, console: &Console, opening: &Opening) -> anyhow::Result<()> {
        let report = opening.open(&self.store)?.export(&self.node, &self.dir, self.flatten)?;
        let (rank, limit) = (report.rank, console.limits.rank);
        if rank > limit {
            console
                .note(&format!("rank {rank}: programs that take up to a rank, this one up to {limit}, will refuse it"));
        }
        let answer = Answer { adapter: self.dir.display().to_string(), report };
        console.answer(&answer, || {
            let report = &answer.report;
            let what = match report.original {
                true => format!("the files that were published: {}", report.files.join(", ")),
                false => format!("made from the compiled deltas, rank up to {}", report.rank),
            };
            format!("{}: {}, {what}\n", answer.adapter, report.nodes.join(" + "))
        })
    }
}
