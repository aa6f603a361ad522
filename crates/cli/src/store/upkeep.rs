//! `pleach store verify` and `compact`: whether a store is whole, and space freed.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use indicatif::{DecimalBytes, HumanCount};
use pleach::base::BaseModel;
use pleach::compile::base_lattice;
use pleach::runtime::open_base;
use pleach::store::{FitReport, NodeFit, Store, StoreReport};
use serde::Serialize;

use super::{Opening, moving, warn_open};
use crate::Console;

/// Check every record and every byte of a store
#[derive(Args)]
#[command(after_help = "\
Exit status 1 if anything is wrong, with --deep also if a switch could not reach a node, because \
a weight would leave the lattice. Without --base some nodes may stay open, which is reported and \
is no fault. Nobody can change the store while the catalogue's pages are looked at; where they \
are damaged the database mends them if it can, and that is reported as a problem. A store that \
may only be read is checked, too, all but the catalogue's account of its free pages.")]
pub(super) struct Verify {
    /// Folder of the store
    store: PathBuf,
    /// Count again, too, how far each row's integers reach, and check that a switch could reach
    /// every node
    #[arg(long)]
    deep: bool,
    /// The store's base: checks that its lattice is the store's, and decides exactly whether every
    /// node fits it
    #[arg(long, requires = "deep")]
    base: Option<PathBuf>,
}

/// The answer as JSON.
#[derive(Serialize)]
struct Answer {
    clean: bool,
    #[serde(flatten)]
    report: StoreReport,
    /// Which nodes a switch could not reach; null without --deep.
    fit: Option<FitReport>,
}

impl Verify {
    pub(super) fn run(self, console: &Console, opening: &Opening) -> anyhow::Result<ExitCode> {
        let bar = console.bar("checking");
        let store = opening.open(&self.store)?;
        let base = self.base.as_deref().map(open_base).transpose()?;
        let report = store.verify(self.deep, moving(&bar))?;
        bar.finish_and_clear();
        // A damaged store has no paths to follow.
        let fit = (self.deep && report.is_clean())
            .then(|| check_fit(&store, base.as_ref(), console))
            .transpose()?;
        let clean = report.is_clean() && fit.as_ref().is_none_or(|fit| fit.unreachable_count == 0);
        let answer = Answer { clean, report, fit };
        console.answer(&answer, || answer.text())?;
        Ok(if answer.clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Checks that a switch could reach every node of a store, and warns of what only the base decides.
pub(crate) fn check_fit(
    store: &Store,
    base: Option<&BaseModel>,
    console: &Console,
) -> anyhow::Result<FitReport> {
    if let Some(base) = base {
        store.check_base(base)?;
        let bar = console.bar("reading the base");
        let mut on = moving(&bar);
        let lattice =
            base_lattice(base, store.headroom(), |done, total| on(done as u64, total as u64))?;
        store.check_lattice(&lattice)?;
        bar.finish_and_clear();
    }
    let bar = console.bar("checking what fits");
    let report = store.check_all_fit(base, moving(&bar))?;
    bar.finish_and_clear();
    warn_open(&report);
    Ok(report)
}

impl Answer {
    fn text(&self) -> String {
        let report = &self.report;
        let mut text = format!(
            "nodes            {}\npast_versions    {}\nbytes            {}\nunused_segments  {}\nproblems         {}\n",
            report.nodes,
            report.past_versions,
            report.bytes,
            report.unused_segments,
            report.problem_count
        );
        if !report.free_pages_checked {
            text += "free_pages       not checked: the store may only be read here\n";
        }
        for problem in &report.problems {
            text += &format!("problem          {problem}\n");
        }
        if let Some(fit) = &self.fit {
            text += &format!("unreachable      {}\n", fit.unreachable_count);
            for NodeFit { problem, .. } in &fit.unreachable {
                text += &format!("problem          {problem}\n");
            }
        }
        text
    }
}

/// Forget past versions and free the space of what nothing refers to
#[derive(Args)]
#[command(
    after_help = "Nothing can be rolled back to what was there before. The store may be read and changed meanwhile."
)]
pub(super) struct Compact {
    /// Folder of the store
    store: PathBuf,
    /// Shrink the catalogue's file, too: whoever reads the store waits meanwhile
    #[arg(long)]
    catalogue: bool,
}

impl Compact {
    pub(super) fn run(self, console: &Console, opening: &Opening) -> anyhow::Result<()> {
        let bar = console.bar("compacting");
        let mut on = moving(&bar);
        let store = opening.open(&self.store)?;
        let mut report = store.compact(|done, total| on(done as u64, total as u64))?;
        if self.catalogue {
            store.compact_catalogue()?;
            let now = store.stats()?;
            report.bytes_after = now.segment_bytes + now.catalogue_bytes;
        }
        bar.finish_and_clear();
        console.answer(&report, || {
            let left = match report.left_bytes {
                0 => String::new(),
                bytes => format!(
                    "for want of space to copy what lives beside them, {} of dead bytes are left as holes in their files; \
                     compact again when there is some\n",
                    DecimalBytes(bytes)
                ),
            };
            format!(
                "past versions forgotten: {}; segments removed: {}; {} before, {} after\n{left}",
                HumanCount(report.forgotten_versions),
                HumanCount(report.removed_segments),
                DecimalBytes(report.bytes_before),
                DecimalBytes(report.bytes_after)
            )
        })
    }
}
