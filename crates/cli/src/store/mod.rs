//! `pleach store`: a tree's compiled deltas on disk, made, changed, looked at and looked after.

mod change;
mod export;
mod import;
mod list;
mod publish;
mod stat;
mod upkeep;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use jiff::Timestamp;
use pleach::base::BaseModel;
use pleach::runtime::open_base;
use pleach::store::{Changes, FitReport};
use serde::Serialize;

use super::Console;

pub(super) use list::{present, what, what_json};
pub(super) use stat::Summary;
pub(super) use upkeep::check_fit;

/// Nodes that may not fit, warned about one by one.
const OPEN_TOLD: usize = 10;

/// Keep a tree's compiled adapters in a store, and change it while it is served
#[derive(Args)]
#[command(after_help = "\
A store belongs to one base and opens at once however many nodes it has. Every change is on disk \
when the command ends and makes a new generation of its node; with --expect it is made only if \
nobody changed the node before. What a change takes away can be brought back with rollback until \
compact drops it.")]
pub(crate) struct Store {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    opening: Opening,
}

/// How a store is opened.
#[derive(Args)]
struct Opening {
    /// Longest wait for a program that has the store locked [default: as long as it takes]
    #[arg(long, global = true, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
}

impl Opening {
    fn open(&self, folder: &Path) -> pleach::Result<pleach::store::Store> {
        match self.timeout {
            Some(limit) => pleach::store::Store::open_within(folder, limit),
            None => pleach::store::Store::open(folder),
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

#[derive(Subcommand)]
enum Command {
    Import(import::Import),
    Publish(publish::Publish),
    Remove(change::Remove),
    Move(change::Move),
    Rollback(change::Rollback),
    List(list::List),
    History(list::History),
    Stat(stat::Stat),
    Verify(upkeep::Verify),
    Compact(upkeep::Compact),
    Export(export::Export),
}

impl Store {
    pub(crate) fn run(self, console: &Console) -> anyhow::Result<ExitCode> {
        if let Some(threads) = console.threads {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build_global()
                .context("--threads")?;
        }
        let opening = &self.opening;
        match self.command {
            Command::Import(import) => import.run(console)?,
            Command::Publish(publish) => publish.run(console, opening)?,
            Command::Remove(remove) => remove.run(console, opening)?,
            Command::Move(to) => to.run(console, opening)?,
            Command::Rollback(rollback) => rollback.run(console, opening)?,
            Command::List(list) => list.run(console, opening)?,
            Command::History(history) => history.run(console, opening)?,
            Command::Stat(stat) => stat.run(console, opening)?,
            Command::Verify(verify) => return verify.run(console, opening),
            Command::Compact(compact) => compact.run(console, opening)?,
            Command::Export(export) => export.run(console, opening)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The answer about a change, as JSON.
#[derive(Serialize)]
struct Changed {
    node: String,
    generation: u64,
    /// Bytes that were published.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    /// What share of the adapter's change the lattice keeps, 0 to 1; none where it changes nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<f64>,
    /// What there is to say about the adapter.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    remarks: Vec<String>,
    /// What was found out about the paths that change.
    #[serde(skip_serializing_if = "Option::is_none")]
    fit: Option<FitReport>,
}

impl Changed {
    fn new(node: &str, generation: u64) -> Self {
        let node = node.trim_matches('/').to_owned();
        Self { node, generation, bytes: None, kept: None, remarks: Vec::new(), fit: None }
    }
}

/// How a change is checked before it is made.
#[derive(Args)]
struct Checking {
    /// Make the change without looking whether the nodes below it, all of which are read, still fit
    #[arg(long)]
    accept_unreachable: bool,
    /// The store's base: decides exactly what fits, and compares an adapter's copies of the
    /// embedding or head
    #[arg(long)]
    base: Option<PathBuf>,
}

impl Checking {
    fn base(&self) -> anyhow::Result<Option<BaseModel>> {
        Ok(self.base.as_deref().map(open_base).transpose()?)
    }

    /// Checks what a switch would check at `name` and below it once `changes` are made.
    fn check(
        &self,
        store: &pleach::store::Store,
        changes: &Changes,
        name: &str,
        base: Option<&BaseModel>,
        console: &Console,
    ) -> anyhow::Result<FitReport> {
        let bar = console.bar("checking what hangs below");
        let report = store.check_fits(changes, base, !self.accept_unreachable, moving(&bar))?;
        bar.finish_and_clear();
        warn_open(&report);
        store.unreachable(name, &report).map_or(Ok(report), |refusal| Err(refusal.into()))
    }
}

/// Warns of nodes that may not fit.
fn warn_open(report: &FitReport) {
    for found in report.open.iter().take(OPEN_TOLD) {
        tracing::warn!("{}: {}", found.node, found.problem);
    }
    let more = report.open_count.saturating_sub(OPEN_TOLD as u64);
    if more > 0 {
        tracing::warn!("{more} more nodes may not fit; name the base (--base)");
    }
}

/// Moves `bar` as the library says.
pub(super) fn moving(bar: &ProgressBar) -> impl FnMut(u64, u64) + Send + '_ {
    |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    }
}

/// Milliseconds since 1970 as RFC 3339 has them, to the second; beyond the year 9999, which it has
/// not, as they are.
fn date(ms: u64) -> String {
    let seconds =
        i64::try_from(ms / 1000).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    seconds.map_or_else(|| format!("{ms} ms after 1970"), |date| date.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_735_689_600, "2025-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(date(seconds * 1000 + 999), text);
        }
        assert_eq!(date(u64::MAX), format!("{} ms after 1970", u64::MAX));
    }
}
