//! `pleach store stat`: what a store is for and what it holds.

use std::path::PathBuf;

use clap::Args;
use indicatif::{DecimalBytes, HumanCount};
use pleach::store::{Store, StoreStats};
use serde::Serialize;

use super::Opening;
use crate::Console;
use crate::inspect::line;

/// Report what a store is for and what it holds
#[derive(Args)]
pub(super) struct Stat {
    /// Folder of the store
    store: PathBuf,
}

/// A store in short, as JSON.
#[derive(Serialize)]
pub(crate) struct Summary {
    path: String,
    name: Option<String>,
    levels: Vec<String>,
    base_name: String,
    base_hash: String,
    headroom: f32,
    #[serde(flatten)]
    stats: StoreStats,
}

impl Stat {
    pub(super) fn run(self, console: &Console, opening: &Opening) -> anyhow::Result<()> {
        let answer = Summary::of(&opening.open(&self.store)?)?;
        console.answer(&answer, || answer.text())
    }
}

impl Summary {
    pub(crate) fn of(store: &Store) -> anyhow::Result<Self> {
        let info = store.info();
        Ok(Self {
            path: store.folder().display().to_string(),
            name: info.tree_name,
            levels: info.levels,
            base_name: info.base_name,
            base_hash: info.base_hash,
            headroom: store.headroom(),
            stats: store.stats()?,
        })
    }

    pub(crate) fn text(&self) -> String {
        let stats = &self.stats;
        let (nodes, past) = (HumanCount(stats.nodes), HumanCount(stats.past_versions));
        [
            line("store", &self.path),
            line("name", self.name.as_deref().unwrap_or("none")),
            line("nodes", format!("{nodes}, and {past} past versions to roll back to")),
            line(
                "levels",
                if self.levels.is_empty() { "unnamed".to_owned() } else { self.levels.join(", ") },
            ),
            line("generation", stats.generation),
            line("commits", HumanCount(stats.commits)),
            line(
                "segments",
                format!("{}, {}", HumanCount(stats.segments), DecimalBytes(stats.segment_bytes)),
            ),
            line("catalogue", DecimalBytes(stats.catalogue_bytes)),
            line("headroom", self.headroom),
            line("made for", &self.base_name),
            line("base hash", &self.base_hash),
        ]
        .concat()
    }
}
