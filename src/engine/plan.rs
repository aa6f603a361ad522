//! What the scheduler answers: plain data, to be carried out by others.

use std::fmt;

use super::cost::{Features, Prediction};
use super::job::JobId;
use super::nodes::{NodePath, NodeTable, Serial};

/// What the scheduler cannot know by itself.
#[derive(Clone, Debug)]
pub struct World {
    /// Where the weights stand.
    pub stand: NodePath,
    /// Pages that nobody holds.
    pub free_pages: usize,
}

/// A sequence's part in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The job.
    pub id: JobId,
    /// Positions it has in the cache already.
    pub from: usize,
    /// Tokens to run behind them.
    pub tokens: usize,
    /// Pages it holds from now on: those that it lacks are to be given to it before the step.
    pub pages: usize,
    /// Whether the next token is chosen behind these: the last of them is the last there is.
    pub is_last: bool,
}

/// One step: what to free, where to stand, what to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Jobs whose deadline has passed: they are forgotten, their pages free.
    pub expired: Vec<JobId>,
    /// Sequences that lose their pages and wait again: all their tokens, made ones, too, will be
    /// run again.
    pub preempted: Vec<JobId>,
    /// Where the weights are to stand for the rows.
    pub stand: NodePath,
    /// Bytes that the switch there reads and writes.
    pub switch_bytes: f64,
    /// The rows, in the tree's depth-first order. None: there is nothing to do.
    pub rows: Vec<Row>,
    /// What the rows are.
    pub features: Features,
    /// What all of it is expected to take.
    pub predicted: Prediction,
}

impl Plan {
    /// Tokens of the step.
    pub fn tokens(&self) -> usize {
        self.rows.iter().map(|row| row.tokens).sum()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows, {} tokens at /", self.rows.len(), self.tokens())?;
        for (k, node) in self.stand.iter().enumerate() {
            write!(f, "{}{}", if k > 0 { "/" } else { "" }, node.0)?;
        }
        write!(f, "; {}", self.predicted)
    }
}

/// What became of a plan.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Milliseconds of the switch, if there was one.
    pub switch_ms: Option<f64>,
    /// Milliseconds of the step behind it; none where what ran was not the plan's rows in one pass,
    /// so that there is nothing to learn.
    pub step_ms: Option<f64>,
    /// Jobs that chose their last token in it, before their `max_tokens`.
    pub ended: Vec<JobId>,
}

/// A part of a step as the cost model sees it.
pub(super) struct Part<'a> {
    pub(super) path: &'a [Serial],
    pub(super) from: usize,
    pub(super) tokens: usize,
}

/// The features of parts in depth-first order when the weights stand at depth `depth` of all their
/// paths: a node below is applied once to each range of rows that it heads.
pub(super) fn features<'a>(
    table: &NodeTable,
    depth: usize,
    parts: impl IntoIterator<Item = Part<'a>>,
) -> Features {
    let mut features = Features::default();
    let mut before: Option<&[Serial]> = None;
    for Part { path, from, tokens } in parts {
        let count = tokens as f64;
        match tokens {
            1 => features.rows += 1.0,
            _ => features.prompt_tokens += count,
        }
        features.positions += count * (from as f64 + (count + 1.0) / 2.0);
        let shared = before.map_or(0, |before| super::nodes::common_depth(before, path));
        for (k, node) in path.iter().enumerate().skip(depth) {
            let factors = table.factors(*node);
            features.factored += count * factors;
            if k >= shared {
                features.loaded += factors;
                features.ranges += 1.0;
            }
        }
        before = Some(path);
    }
    features
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::NodeCost;

    #[test]
    fn a_shared_node_is_applied_once_to_all_its_rows() {
        let mut table = NodeTable::new([4u64]);
        for (node, factors) in [(1, 1000), (2, 100), (3, 10)] {
            table.insert(Serial(node), &NodeCost { matrices: vec![0], factors });
        }
        let paths = [vec![1, 2], vec![1, 2], vec![1, 3]];
        let paths = paths.map(|path| path.into_iter().map(Serial).collect::<Vec<_>>());
        let parts = || {
            let tokens = [1, 1, 8];
            paths.iter().zip(tokens).map(|(path, tokens)| Part { path, from: 4, tokens })
        };
        let root = features(&table, 0, parts());
        assert_eq!((root.rows, root.prompt_tokens, root.ranges), (2.0, 8.0, 3.0));
        assert_eq!(root.positions, 5.0 + 5.0 + 8.0 * 8.5);
        assert_eq!(root.loaded, 1110.0);
        assert_eq!(root.factored, 10.0 * 1000.0 + 2.0 * 100.0 + 8.0 * 10.0);
        let below = features(&table, 1, parts());
        assert_eq!((below.ranges, below.loaded, below.factored), (2.0, 110.0, 280.0));
    }
}
