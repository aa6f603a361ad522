//! `pleach store publish`: a PEFT adapter becomes a node, or a node's new content.

use std::path::PathBuf;

use clap::Args;
use indicatif::DecimalBytes;
use pleach::lattice::{Kept, percent};
use pleach::store::{Changes, Details};

use super::{Changed, Checking, Opening};
use crate::Console;

/// Publish a PEFT adapter as a new node, or with --replace as a node's new content
#[derive(Args)]
pub(super) struct Publish {
    /// Folder of the store
    store: PathBuf,
    /// The node's name
    node: String,
    /// Folder of the PEFT adapter
    adapter: PathBuf,
    /// Give a node that is there new content
    #[arg(long)]
    replace: bool,
    /// Replace only if the node is in this generation
    #[arg(long, value_name = "GENERATION", requires = "replace")]
    expect: Option<u64>,
    /// The node it hangs under [default: the one it has, or else the nearest above it by name]
    #[arg(long, value_name = "NODE")]
    parent: Option<String>,
    /// The content generation of the parent that it was trained on, 0 for the base [default: the
    /// parent's now]
    #[arg(long, value_name = "CONTENT_GENERATION")]
    trained_on: Option<u64>,
    /// A label, may be given several times; without any a replaced node keeps its own
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Keep the adapter's own files, too, to be exported as they were
    #[arg(long)]
    keep_files: bool,
    #[command(flatten)]
    checking: Checking,
}

fn label(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Publish {
    pub(super) fn run(self, console: &Console, opening: &Opening) -> anyhow::Result<()> {
        let store = opening.open(&self.store)?;
        let base = self.checking.base()?;
        let compiled =
            store.compile_adapter(&self.adapter, base.as_ref(), &console.limits, self.keep_files);
        let content = compiled.map_err(|error| error.at_node(self.node.trim_matches('/')))?;
        let (bytes, share) = (content.bytes(), content.kept().and_then(Kept::share));
        let remarks = content.remarks().to_vec();
        let labels = (!self.labels.is_empty()).then(|| self.labels.into_iter().collect());
        let details = Details { parent: self.parent, trained_on: self.trained_on, labels };
        let mut changes = Changes::new();
        match self.replace {
            true => changes.replace(&self.node, content, details, self.expect),
            false => changes.publish(&self.node, content, details),
        };
        let fit = self.checking.check(&store, &changes, &self.node, base.as_ref(), console)?;
        let generation = store.apply(&changes)?[0];
        let answer = Changed {
            bytes: Some(bytes),
            kept: share,
            remarks,
            fit: Some(fit),
            ..Changed::new(&self.node, generation)
        };
        for remark in &answer.remarks {
            tracing::warn!("{}: {remark}", answer.node);
        }
        console.answer(&answer, || {
            let kept = share
                .map(|share| format!(", {} of its change kept", percent(share)))
                .unwrap_or_default();
            format!(
                "{} is published in generation {generation}: {}{kept}\n",
                answer.node,
                DecimalBytes(bytes)
            )
        })
    }
}
