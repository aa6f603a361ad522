//! `pleach store remove`, `move` and `rollback`: changes that need no adapter.

use std::path::PathBuf;

use clap::Args;
use pleach::store::Changes;

use super::{Changed, Checking, Opening};
use crate::Console;

/// Remove a node
#[derive(Args)]
pub(super) struct Remove {
    /// Folder of the store
    store: PathBuf,
    /// The node
    node: String,
    /// Remove what hangs below it, too
    #[arg(long)]
    recursive: bool,
    /// Remove it only if it is in this generation
    #[arg(long, value_name = "GENERATION")]
    expect: Option<u64>,
}

impl Remove {
    pub(super) fn run(self, console: &Console, opening: &Opening) -> anyhow::Result<()> {
        let generation =
            opening.open(&self.store)?.remove(&self.node, self.recursive, self.expect)?;
        let answer = Changed::new(&self.node, generation);
        console
            .answer(&answer, || format!("{} is removed in generation {generation}\n", answer.node))
    }
}

/// Give a node and what hangs below it another name and place
#[derive(Args)]
pub(super) struct Move {
    /// Folder of the store
    store: PathBuf,
    /// The node
    node: String,
    /// Its new name; it then hangs under the nearest node above that
    target: String,
    /// Move it only if it is in this generation
    #[arg(long, value_name = "GENERATION")]
    expect: Option<u64>,
    #[command(flatten)]
    checking: Checking,
}

impl Move {
    pub(super) fn run(self, console: &Console, opening: &Opening) -> anyhow::Result<()> {
        let (store, base) = (opening.open(&self.store)?, self.checking.base()?);
        let mut changes = Changes::new();
        changes.move_to(&self.node, &self.target, self.expect);
        self.checking.check(&store, &changes, &self.target, base.as_ref(), console)?;
        let generation = store.apply(&changes)?[0];
        let answer = Changed::new(&self.target, generation);
        let from = self.node.trim_matches('/');
        console.answer(&answer, || {
            format!("{from} is now {} in generation {generation}\n", answer.node)
        })
    }
}

/// Give a node, or one that was removed, the content of an earlier generation
#[derive(Args)]
#[command(after_help = "`pleach store history` lists the generations one can go back to.")]
pub(super) struct Rollback {
    /// Folder of the store
    store: PathBuf,
    /// The node
    node: String,
    /// The generation to go back to
    generation: u64,
    /// Change it only if it is in this generation
    #[arg(long, value_name = "GENERATION")]
    expect: Option<u64>,
    #[command(flatten)]
    checking: Checking,
}

impl Rollback {
    pub(super) fn run(self, console: &Console, opening: &Opening) -> anyhow::Result<()> {
        let (store, base) = (opening.open(&self.store)?, self.checking.base()?);
        let mut changes = Changes::new();
        changes.rollback(&self.node, self.generation, self.expect);
        self.checking.check(&store, &changes, &self.node, base.as_ref(), console)?;
        let generation = store.apply(&changes)?[0];
        let answer = Changed::new(&self.node, generation);
        console.answer(&answer, || {
            format!(
                "{} has the content of generation {} in generation {generation}\n",
                answer.node, self.generation
            )
        })
    }
}
