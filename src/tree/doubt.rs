//! Nodes that may be another state of their parent's adapter rather than a change on top of it.
//!
//! A trainer's output folder holds the adapter and, in folders below it, the best one, the last
//! one, a converted one: read as a tree they are a stack, and each is added to the one above.
//! Nothing in an adapter says which is meant, so it is asked.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Serialize;
use serde::ser::SerializeStruct;

use super::{AdapterTree, NodeId, NodeSource};
use crate::Result;
use crate::adapter::{Limits, PeftHeader, TENSOR_FILE};
use crate::file::open_limited;

/// Words that the folders of a training run are called by, alone, together or with numbers.
const RUN_WORDS: [&str; 34] = [
    "adapter",
    "backup",
    "bak",
    "best",
    "checkpoint",
    "checkpoints",
    "ckpt",
    "converted",
    "copy",
    "ema",
    "epoch",
    "epochs",
    "export",
    "final",
    "global",
    "hf",
    "iter",
    "iteration",
    "last",
    "latest",
    "lora",
    "model",
    "old",
    "out",
    "output",
    "peft",
    "ref",
    "reference",
    "run",
    "safetensors",
    "step",
    "steps",
    "tmp",
    "weights",
];

/// A node that may not be what its place says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// The node.
    pub node: String,
    /// Its parent.
    pub parent: String,
    /// What speaks for it.
    pub why: DoubtWhy,
    /// What its parent hangs under, `/` for the root.
    above: String,
}

/// What speaks for a node being another state of its parent's adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoubtWhy {
    /// It holds its parent's tensors, byte for byte.
    SameTensors,
    /// It has its parent's targets and ranks, and a name as folders of training runs have it.
    RunFolder,
}

impl std::fmt::Display for Doubt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { node, parent, why, above } = self;
        let why = match why {
            DoubtWhy::SameTensors => "holds the same tensors as",
            DoubtWhy::RunFolder => "has a training run's name, and the same targets and ranks as",
        };
        write!(
            f,
            "{node} {why} its parent {parent}, and is added on top of it; if it is another state of that adapter, pass it \
             over in tree.toml ([tree] skip = [{node:?}]) or say what it hangs under ([nodes.{node:?}] parent = {above:?}; \
             {parent:?} keeps it there and ends this warning)"
        )
    }
}

impl Serialize for Doubt {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut doubt = serializer.serialize_struct("Doubt", 3)?;
        doubt.serialize_field("node", &self.node)?;
        doubt.serialize_field("parent", &self.parent)?;
        doubt.serialize_field("warning", &self.to_string())?;
        doubt.end()
    }
}

impl AdapterTree {
    /// Whether the node may be another state of its parent's adapter; none where `tree.toml` names
    /// its parent, and where one of the two cannot be read. Reads the headers of both, and their
    /// tensors as far as these agree.
    pub fn doubt(&self, node: NodeId, limits: &Limits) -> Option<Doubt> {
        let parent = self.parent(node)?;
        let (Some(NodeSource::Folder(own)), Some(NodeSource::Folder(above))) =
            (self.source(node), self.source(parent))
        else {
            return None;
        };
        if self.get(node).is_placed {
            return None;
        }
        let why = if same_tensors(own, above, limits).unwrap_or(false) {
            DoubtWhy::SameTensors
        } else if self.is_called_as_runs_are(node, parent)
            && same_form(own, above, limits).unwrap_or(false)
        {
            DoubtWhy::RunFolder
        } else {
            return None;
        };
        let name = |id: NodeId| self.name(id).to_owned();
        Some(Doubt {
            node: name(node),
            parent: name(parent),
            why,
            above: self.parent(parent).map_or("/".into(), name),
        })
    }

    /// Whether a part of the node's name below its parent's is of a training run.
    fn is_called_as_runs_are(&self, node: NodeId, parent: NodeId) -> bool {
        let name = self.name(node);
        let below = name.strip_prefix(self.name(parent)).and_then(|rest| rest.strip_prefix('/'));
        below.unwrap_or_else(|| name.rsplit('/').next().unwrap_or(name)).split('/').any(is_run_name)
    }
}

/// Whether all words of a folder's name are those of training runs: `best`, `epoch_3`,
/// `tmp-checkpoint-500`, `final-v2`.
fn is_run_name(part: &str) -> bool {
    let words = part.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let mut known = 0;
    let all = words.map(str::to_ascii_lowercase).all(|word| {
        let letters = word.trim_end_matches(|c: char| c.is_ascii_digit());
        let is_word = RUN_WORDS.contains(&letters);
        known += usize::from(is_word);
        is_word || letters.is_empty() || letters == "v" || letters == "e"
    });
    all && known > 0
}

/// Whether both change the same weights, each by the same rank.
fn same_form(own: &Path, above: &Path, limits: &Limits) -> Result<bool> {
    let (own, above) = (PeftHeader::open(own, limits)?, PeftHeader::open(above, limits)?);
    let form = |header: &PeftHeader| -> Vec<_> {
        header.targets().iter().map(|(weight, module)| (weight.clone(), module.rank)).collect()
    };
    Ok(form(&own) == form(&above))
}

/// Whether both tensor files hold the same bytes.
fn same_tensors(own: &Path, above: &Path, limits: &Limits) -> Result<bool> {
    let open = |folder: &Path| open_limited(&folder.join(TENSOR_FILE), limits.file_bytes);
    let ((mut own, own_bytes), (mut above, above_bytes)) = (open(own)?, open(above)?);
    if own_bytes != above_bytes {
        return Ok(false);
    }
    let mut buffers = [vec![0; 1 << 16], vec![0; 1 << 16]];
    let mut left = own_bytes;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(1 << 16);
        let mut fill =
            |file: &mut File, at: usize| file.read_exact(&mut buffers[at][..length]).is_ok();
        if !fill(&mut own, 0)
            || !fill(&mut above, 1)
            || buffers[0][..length] != buffers[1][..length]
        {
            return Ok(false);
        }
        left -= length as u64;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::is_run_name;

    #[test]
    fn names_of_runs_are_told_from_names_of_tasks_and_people() {
        for name in [
            "best",
            "final",
            "epoch_3",
            "epoch3",
            "ref",
            "tmp-checkpoint-500",
            "Final-v2",
            "global_step500",
        ] {
            assert!(is_run_name(name), "{name}");
        }
        for name in
            ["alice", "finally", "best-sellers", "v2", "500", "legal-final-review", "réf", "-"]
        {
            assert!(!is_run_name(name), "{name}");
        }
    }
}
