//! `pleach tree`: a tree's picture.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use pleach::adapter::{AdapterSummary, Limits, PeftHeader};
use pleach::error::TreeDefect;
use pleach::store::{Store, StoreNode};
use pleach::tree::{AdapterTree, NodeId, NodeSource, render};
use serde_json::{Value, json};

use super::left_out::LeftOut;
use super::{Console, store};

/// Draw a tree, with what each adapter is, and what is left out of it
#[derive(Args)]
#[command(after_help = "\
Below the picture stand the entries that are not served (refused), the folders that are not \
entered (passed over), and nodes that may be another state of their parent's adapter (doubtful); \
tree.toml settles the last: skip and parent.")]
pub(crate) struct Tree {
    /// Folder of the tree, or a store
    tree: PathBuf,
    /// text, dot (Graphviz) or json; --json is json
    #[arg(long, value_enum, default_value = "text", hide_possible_values = true)]
    format: Format,
    /// Most nodes of a store to draw, those near the root first; 0 is all
    #[arg(long, value_name = "N", default_value_t = 200)]
    limit: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Dot,
    Json,
}

impl Tree {
    pub(crate) fn run(self, console: &Console) -> anyhow::Result<ExitCode> {
        let format = if console.json { Format::Json } else { self.format };
        if Store::is_store(&self.tree) {
            self.draw_store(format, console)?;
            return Ok(ExitCode::SUCCESS);
        }
        let tree = AdapterTree::open(&self.tree)?;
        let (adapters, left_out) =
            (Adapters::of(&tree, &console.limits), LeftOut::of(&tree, &console.limits));
        console.print(&match format {
            Format::Text => render::text(&tree, |node| adapters.note(node)) + &left_out.text(),
            Format::Dot => {
                let comments: String =
                    left_out.lines().iter().map(|line| format!("// {line}\n")).collect();
                comments + &render::dot(&tree, |node| adapters.note(node))
            }
            Format::Json => {
                let mut json = render::json(&tree, |node| adapters.json(node));
                left_out.json().into_iter().for_each(|(field, value)| json[field] = value);
                format!("{json}\n")
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }

    fn draw_store(&self, format: Format, console: &Console) -> anyhow::Result<()> {
        let store = Store::open(&self.tree)?;
        let limit = if self.limit == 0 { usize::MAX } else { self.limit };
        let (tree, nodes) = top(&store, limit)?;
        let more = store.len()?.saturating_sub(nodes.len() as u64);
        let what = |id| nodes.get(tree.name(id)).cloned();
        let rest = match more {
            0 => String::new(),
            _ => format!("{more} more: --limit, or `pleach store list`\n"),
        };
        console.print(&match format {
            Format::Text => render::text(&tree, |id| what(id).map(store::what)) + &rest,
            Format::Dot => {
                let rest = if rest.is_empty() { rest } else { format!("// {rest}") };
                rest + &render::dot(&tree, |id| what(id).map(store::what))
            }
            Format::Json => {
                let mut json = render::json(&tree, |id| what(id).map(store::what_json));
                json["more"] = json!(more);
                format!("{json}\n")
            }
        })
    }
}

/// The part of a store's tree next to the root, level by level, and its nodes by name.
fn top(store: &Store, limit: usize) -> pleach::Result<(AdapterTree, HashMap<String, StoreNode>)> {
    const PAGE: usize = 1000;
    let info = store.info();
    let mut builder = AdapterTree::builder().named(info.tree_name).levels(info.levels);
    let mut nodes = HashMap::new();
    let mut parents = VecDeque::from([String::new()]);
    while let Some(parent) = parents.pop_front() {
        let mut after: Option<String> = None;
        while nodes.len() < limit {
            let names = store::present(store.children(
                &parent,
                after.as_deref(),
                PAGE.min(limit - nodes.len()),
            ))?;
            let Some(last) = names.as_ref().and_then(|names| names.last()) else { break };
            after = Some(last.clone());
            for name in names.into_iter().flatten() {
                // One that was removed or moved while this goes on is there at most once.
                let Some(node) = store::present(store.get(&name))? else { continue };
                if nodes.contains_key(&name) {
                    continue;
                }
                // What its deltas are is not drawn.
                builder = builder.node(&name, &parent, NodeSource::Memory(Arc::default()));
                parents.push_back(name.clone());
                nodes.insert(name, node);
            }
        }
    }
    Ok((builder.build()?, nodes))
}

/// What the node's adapter is by its header; `None` for the root.
pub(crate) fn summary(
    tree: &AdapterTree,
    node: NodeId,
    limits: &Limits,
) -> Option<pleach::Result<AdapterSummary>> {
    match tree.source(node)? {
        NodeSource::Folder(folder) => {
            Some(PeftHeader::open(folder, limits).map(|header| header.summary()))
        }
        NodeSource::Memory(_) => None,
    }
}

/// What each node's adapter is by its header, or why it is refused.
pub(crate) struct Adapters(HashMap<NodeId, Result<AdapterSummary, String>>);

impl Adapters {
    /// Reads the headers of all adapters of a tree. What hangs below a refused one is refused with
    /// it.
    pub(crate) fn of(tree: &AdapterTree, limits: &Limits) -> Self {
        let mut adapters = HashMap::new();
        // Parents come first.
        for node in tree.nodes() {
            let Some(summary) = summary(tree, node, limits) else { continue };
            let above =
                tree.parent(node).filter(|parent| matches!(adapters.get(parent), Some(Err(_))));
            let adapter = match above {
                Some(parent) => {
                    let [node, parent] = [node, parent].map(|id| tree.name(id).to_owned());
                    Err(TreeDefect::BelowRefused { node, parent }.to_string())
                }
                None => summary.map_err(|error| error.to_string()),
            };
            adapters.insert(node, adapter);
        }
        Self(adapters)
    }

    /// A line about the node.
    pub(crate) fn note(&self, node: NodeId) -> Option<String> {
        Some(match self.0.get(&node)? {
            Ok(summary) => summary.to_string(),
            Err(refusal) => format!("refused: {refusal}"),
        })
    }

    fn json(&self, node: NodeId) -> Option<Value> {
        Some(match self.0.get(&node)? {
            Ok(summary) => json!(summary),
            Err(refusal) => json!({ "refusal": refusal }),
        })
    }
}
