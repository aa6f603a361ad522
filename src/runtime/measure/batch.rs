//! Steps of a batch whose rows belong to different nodes.

use super::time;
use crate::Result;
use crate::device::Choice;
use crate::model::{Pick, Picked, TableId};
use crate::nodes::NodeVersion;
use crate::runtime::{Pool, Runtime, StepRow};

/// Sequences that are run together, each at a node of its own.
pub struct MeasuredBatch {
    pool: Pool,
    /// In the tree's depth-first order, each with the token that it goes on with.
    rows: Vec<(NodeVersion, TableId, Vec<u32>)>,
}

impl MeasuredBatch {
    /// One sequence for each of `nodes`, with memory for `tokens` tokens each. Their deltas are
    /// held until [`Self::end`].
    ///
    /// # Errors
    /// An unknown node, and what reading its deltas or the device returns.
    pub fn new(runtime: &mut Runtime, nodes: &[String], tokens: usize) -> Result<Self> {
        let mut versions =
            nodes.iter().map(|node| runtime.version(node)).collect::<Result<Vec<_>>>()?;
        versions.sort_by_key(|version| {
            version.path().iter().map(NodeVersion::serial).collect::<Vec<_>>()
        });
        let replica = &mut runtime.replica;
        let pool = replica.pool_for(tokens, nodes.len())?;
        let mut batch = Self { pool, rows: Vec::new() };
        for version in versions {
            if let Err(error) = replica.hold(&version) {
                batch.end(runtime);
                return Err(error);
            }
            let table = batch.pool.pages().open(replica.owner(&version));
            batch.rows.push((version, table, Vec::new()));
        }
        Ok(batch)
    }

    /// Runs the same prompt in every sequence: milliseconds.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn prompt(&mut self, runtime: &Runtime, prompt: &[u32]) -> Result<f64> {
        self.rows.iter_mut().for_each(|row| row.2 = prompt.to_vec());
        self.step(runtime)
    }

    /// Runs one token in every sequence, the likeliest after the last: milliseconds.
    ///
    /// # Errors
    /// Where the weights stand at no ancestor of a row's node; what the device returns.
    pub fn step(&mut self, runtime: &Runtime) -> Result<f64> {
        let pick = Some(Pick::Token(Choice::GREEDY));
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|(version, table, tokens)| StepRow { version, table: *table, tokens, pick })
            .collect();
        let (ms, made) = time(|| runtime.replica.step(&mut self.pool, &rows));
        drop(rows);
        for ((.., tokens), made) in self.rows.iter_mut().zip(made?) {
            if let Some(Picked::Token(token)) = made? {
                *tokens = vec![token];
            }
        }
        Ok(ms)
    }

    /// The last tokens, in the order of the rows.
    pub fn last_tokens(&self) -> Vec<u32> {
        self.rows.iter().filter_map(|(.., tokens)| tokens.last().copied()).collect()
    }

    /// Lets go of the deltas.
    pub fn end(self, runtime: &mut Runtime) {
        self.rows.iter().for_each(|(version, ..)| runtime.replica.release(version));
    }
}
