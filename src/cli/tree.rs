//! `pleach tree`: a tree's picture.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use pleach::adapter::{AdapterSummary, Limits, PeftHeader};
use pleach::tree::{AdapterTree, NodeId, NodeSource, render};
use serde_json::{Value, json};

use super::Console;

/// Draw a tree, with what each adapter is
#[derive(Args)]
pub(crate) struct Tree {
    /// Folder of the tree
    tree: PathBuf,
    /// text, dot (Graphviz) or json; --json is json
    #[arg(long, value_enum, default_value = "text", hide_possible_values = true)]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Dot,
    Json,
}

impl Tree {
    pub(crate) fn run(self, console: &Console) -> anyhow::Result<ExitCode> {
        let tree = AdapterTree::open(&self.tree)?;
        let format = if console.json { Format::Json } else { self.format };
        console.print(&match format {
            Format::Text => render::text(&tree, |node| note(&tree, node)),
            Format::Dot => render::dot(&tree, |node| note(&tree, node)),
            Format::Json => format!("{}\n", render::json(&tree, |node| json_note(&tree, node))),
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// What the node's adapter is by its header; `None` for the root.
pub(crate) fn summary(tree: &AdapterTree, node: NodeId) -> Option<pleach::Result<AdapterSummary>> {
    match tree.source(node)? {
        NodeSource::Folder(folder) => Some(PeftHeader::open(folder, &Limits::default()).map(|header| header.summary())),
        NodeSource::Memory(_) => None,
    }
}

/// A line about the node; an adapter that is refused is shown with the reason.
pub(crate) fn note(tree: &AdapterTree, node: NodeId) -> Option<String> {
    Some(match summary(tree, node)? {
        Ok(summary) => summary.to_string(),
        Err(error) => format!("refused: {error}"),
    })
}

fn json_note(tree: &AdapterTree, node: NodeId) -> Option<Value> {
    Some(match summary(tree, node)? {
        Ok(summary) => json!(summary),
        Err(error) => json!({ "refusal": error.to_string() }),
    })
}
