//! `pleach verify`: a random walk over the tree, every arrival compared with a fresh load of the
//! node.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use pleach::error::RefusedEntry;
use pleach::runtime::{Nodes, VerifyReport};
use serde::Serialize;

use super::Console;
use super::left_out::refused_lines;
use super::model::Loading;

/// Walk the tree at random, comparing every node with a fresh load of it
#[derive(Args)]
#[command(after_help = "\
At every arrival the fingerprint is compared with that of the base read again with the node's \
path added. At the end, back at the root, every bit is compared with the base. Entries of the \
tree that are refused, and what hangs below them, are left out and listed. Exit status 1 if \
anything differs, or if something is refused and not left out with --skip-refused.")]
pub(crate) struct Verify {
    /// Base model: a Hugging Face folder, a GGUF file, or hf:ORG/NAME[@REVISION]
    #[arg(long)]
    base: PathBuf,
    /// Folder of the tree of adapters, or a store
    #[arg(long)]
    tree: PathBuf,
    /// Switches to make
    #[arg(long, value_name = "N", default_value_t = 1000)]
    switches: usize,
    /// Seed of the walk
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Compare the fingerprint at every Nth arrival, and at the last
    #[arg(long, value_name = "N", default_value = "1")]
    every: NonZeroUsize,
    /// Do not fail because some entries of the tree are refused
    #[arg(long)]
    skip_refused: bool,
    #[command(flatten)]
    loading: Loading,
}

/// The answer as JSON.
#[derive(Serialize)]
struct Answer {
    switches: usize,
    nodes_visited: usize,
    compared: usize,
    mismatched_nodes: usize,
    /// Their names.
    mismatched: Vec<String>,
    differing_bits: u64,
    root_fingerprint: String,
    /// What was left out, each with its reason.
    refused: Vec<RefusedEntry>,
}

impl Verify {
    pub(crate) fn run(self, console: &Console) -> anyhow::Result<ExitCode> {
        let nodes = Nodes::open(&self.tree)?;
        let (mut runtime, _) = self.loading.open(&self.base, nodes, None, console)?;
        let bar = console.bar("switching");
        bar.set_length(self.switches as u64);
        let report = runtime.verify(self.switches, self.every.get(), self.seed, |switches| {
            bar.set_position(switches as u64)
        })?;
        bar.finish_and_clear();
        let status = status(&report, self.skip_refused);
        let answer = Answer::from(report);
        console.answer(&answer, || answer.text())?;
        Ok(status)
    }
}

fn status(report: &VerifyReport, skip_refused: bool) -> ExitCode {
    let is_good = report.is_clean() && (skip_refused || report.refused.is_empty());
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl From<VerifyReport> for Answer {
    fn from(report: VerifyReport) -> Self {
        Self {
            switches: report.switches,
            nodes_visited: report.nodes_visited,
            compared: report.compared,
            mismatched_nodes: report.mismatched_nodes.len(),
            mismatched: report.mismatched_nodes,
            differing_bits: report.differing_bits,
            root_fingerprint: report.root_fingerprint,
            refused: report.refused,
        }
    }
}

impl Answer {
    fn text(&self) -> String {
        let mut text = format!(
            "switches          {}\nnodes_visited     {}\ncompared          {}\nmismatched_nodes  {}\ndiffering_bits    {}\n",
            self.switches,
            self.nodes_visited,
            self.compared,
            self.mismatched_nodes,
            self.differing_bits
        );
        for node in &self.mismatched {
            text += &format!("mismatch          {node}\n");
        }
        text += &format!("root_fingerprint  {}\n", self.root_fingerprint);
        for line in refused_lines(&self.refused) {
            text += &format!("{line}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anything_that_differs_fails_the_verification() {
        let clean = VerifyReport { switches: 3, ..VerifyReport::default() };
        let node = VerifyReport { mismatched_nodes: vec!["fr".into()], ..clean.clone() };
        let bits = VerifyReport { differing_bits: 1, ..clean.clone() };
        assert_eq!(status(&clean, false), ExitCode::SUCCESS);
        for skip_refused in [false, true] {
            assert_eq!(
                [&node, &bits].map(|report| status(report, skip_refused)),
                [ExitCode::FAILURE; 2]
            );
        }
        let text = Answer::from(node).text();
        assert!(
            text.contains("mismatched_nodes  1\n") && text.contains("mismatch          fr\n"),
            "{text}"
        );
    }
}
