//! `pleach store list` and `history`: nodes and the versions one can roll back to, printed page by
//! page.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use indicatif::DecimalBytes;
use pleach::Error;
use pleach::error::TreeDefect;
use pleach::store::{Ending, NodeKind, Store, StoreNode, Version};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Opening, date};
use crate::Console;

/// Nodes read and printed at a time.
const PAGE: usize = 1000;

/// List nodes in the order of their names
#[derive(Args)]
pub(super) struct List {
    /// Folder of the store
    store: PathBuf,
    /// Only nodes whose names begin so; with --children the node whose children are listed
    #[arg(default_value = "", hide_default_value = true)]
    prefix: String,
    /// Only children of a node
    #[arg(long)]
    children: bool,
    /// Most nodes to list; 0 is all
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
    /// Start after this name
    #[arg(long, value_name = "NAME")]
    after: Option<String>,
}

/// A version of a node, as JSON.
#[derive(Serialize)]
struct Row {
    node: String,
    generation: u64,
    content_generation: u64,
    /// `/` is the root.
    parent: String,
    trained_on: u64,
    kind: NodeKind,
    ranks: Vec<u32>,
    matrices: u32,
    /// Of the compiled deltas.
    bytes: u64,
    /// Of the adapter's files, if they were kept.
    kept_bytes: Option<u64>,
    created: String,
    adapter_hash: Option<String>,
    labels: BTreeMap<String, String>,
}

impl List {
    pub(super) fn run(self, console: &Console, opening: &Opening) -> anyhow::Result<()> {
        let store = opening.open(&self.store)?;
        let mut left = if self.limit == 0 { usize::MAX } else { self.limit };
        let mut after = self.after.clone();
        let mut before = format!(
            "{{\"store\":{},\"nodes\":[",
            serde_json::to_string(&self.store.display().to_string())?
        );
        // With nothing left it only looks whether more follow.
        let more = loop {
            let (last, nodes) = self.page(&store, after.as_deref(), left.clamp(1, PAGE))?;
            let Some(last) = last else { break false };
            if left == 0 {
                break true;
            }
            left -= nodes.len();
            after = Some(last);
            let mut text = String::new();
            for row in nodes.into_iter().map(|node| Row::new(node.name, node.version)) {
                match console.json {
                    true => text += &format!("{before}{}", serde_json::to_string(&row)?),
                    false => text += &format!("{}\n", row.text()),
                }
                before = ",".to_owned();
            }
            console.print(&text)?;
        };
        if console.json {
            let before = if before == "," { "" } else { &before };
            console.print(&format!("{before}],\"more\":{more}}}\n"))?;
        } else if more {
            let last = after.unwrap_or_default();
            console.note(&format!(
                "more follow: go on with --after {last}, or list all with --limit 0"
            ));
        }
        Ok(())
    }

    /// The next nodes, at most `limit`, and the last name looked at; none at the end.
    fn page(
        &self,
        store: &Store,
        after: Option<&str>,
        limit: usize,
    ) -> pleach::Result<(Option<String>, Vec<StoreNode>)> {
        let nodes = match self.children {
            false => store.list(&self.prefix, after, limit)?,
            true => {
                let names = store.children(&self.prefix, after, limit)?;
                let nodes = names.iter().filter_map(|name| present(store.get(name)).transpose());
                return Ok((names.last().cloned(), nodes.collect::<pleach::Result<_>>()?));
            }
        };
        Ok((nodes.last().map(|node| node.name.clone()), nodes))
    }
}

/// What was found, or nothing if it was removed since it was listed.
pub(crate) fn present<T>(found: pleach::Result<T>) -> pleach::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Error::Tree(defect)) if matches!(*defect, TreeDefect::UnknownNode { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// List the versions of a node, or of one that was removed, that it can be rolled back to, oldest
/// first
#[derive(Args)]
pub(super) struct History {
    /// Folder of the store
    store: PathBuf,
    /// The node
    node: String,
}

/// The answer as JSON.
#[derive(Serialize)]
struct Past {
    node: String,
    versions: Vec<PastRow>,
}

#[derive(Serialize)]
struct PastRow {
    #[serde(flatten)]
    row: Row,
    ending: Ending,
    /// The generation that ended it.
    ended: u64,
}

impl History {
    pub(super) fn run(self, console: &Console, opening: &Opening) -> anyhow::Result<()> {
        let node = self.node.trim_matches('/').to_owned();
        let past = opening.open(&self.store)?.history(&node)?;
        let versions = past.into_iter().map(|past| PastRow {
            row: Row::new(node.clone(), past.version),
            ending: past.ending,
            ended: past.ended,
        });
        let answer = Past { versions: versions.collect(), node: node.clone() };
        console.answer(&answer, || {
            let line = |past: &PastRow| {
                let how = match past.ending {
                    Ending::Replaced => "replaced",
                    Ending::Removed => "removed",
                    Ending::Moved => "moved",
                };
                format!("{}, {how} in generation {}\n", past.row.text(), past.ended)
            };
            answer.versions.iter().map(line).collect()
        })
    }
}

impl Row {
    fn new(node: String, version: Version) -> Self {
        Self {
            node,
            generation: version.generation,
            content_generation: version.content_generation,
            parent: if version.parent.is_empty() { "/".to_owned() } else { version.parent },
            trained_on: version.trained_on,
            kind: version.kind,
            ranks: version.ranks,
            matrices: version.matrices,
            bytes: version.location.length,
            kept_bytes: version.original.map(|original| original.length),
            created: date(version.created_ms),
            adapter_hash: hex(&version.adapter_hash),
            labels: version.labels,
        }
    }

    fn text(&self) -> String {
        format!("{}  generation {}, {}", self.node, self.generation, self.what())
    }

    /// Kind, ranks, bytes, date and labels.
    fn what(&self) -> String {
        let kind = match self.kind {
            NodeKind::Empty => "empty",
            NodeKind::LowRank => "low-rank",
            NodeKind::Dense => "dense",
            NodeKind::Sparse => "sparse",
            NodeKind::Mixed => "mixed",
        };
        let ranks: String = self.ranks.iter().map(|rank| format!(" {rank}")).collect();
        let labels: String =
            self.labels.iter().map(|(key, value)| format!(", {key}={value:?}")).collect();
        format!("{kind}{ranks}, {}, {}{labels}", DecimalBytes(self.bytes), self.created)
    }
}

/// What a node of a store is, in a line, for pictures.
pub(crate) fn what(node: StoreNode) -> String {
    Row::new(node.name, node.version).what()
}

/// The same as JSON.
pub(crate) fn what_json(node: StoreNode) -> Value {
    json!(Row::new(node.name, node.version))
}

/// Hexadecimal digits of a hash; nothing for zeros.
fn hex(hash: &[u8; 32]) -> Option<String> {
    (hash != &[0; 32]).then(|| hash.iter().map(|byte| format!("{byte:02x}")).collect())
}
