//! Switches by name.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Runtime;
use crate::Result;
use crate::nodes::NodeVersion;

/// What a switch did and cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SwitchReport {
    /// Node before.
    pub source: String,
    /// Node after.
    pub target: String,
    /// Nodes subtracted, leaf upwards.
    pub subtracted: Vec<String>,
    /// Nodes added, downwards.
    pub added: Vec<String>,
    /// Nodes whose deltas were not in memory: compiled from an adapter's floats or, of a store, only
    /// read. `kept` names those that were compiled.
    pub compiled: Vec<String>,
    /// What share of its change the lattice keeps, 0 to 1 ([`Kept`](crate::lattice::Kept)), for
    /// every node that was compiled from floats and changes anything.
    pub kept: BTreeMap<String, f64>,
    /// Matrices read and written.
    pub touched_matrices: usize,
    /// Weights in them.
    pub touched_weights: u64,
    /// Bytes of weights read and written: four for every touched weight.
    pub touched_bytes: u64,
    /// Nodes whose deltas were not on the GPU and had to be copied there.
    pub uploaded: Vec<String>,
    /// Time to read, compile and check, in milliseconds.
    pub prepare_ms: f64,
    /// Time of the pass over the weights, in milliseconds.
    pub pass_ms: f64,
    /// Time of all copies of deltas, to the GPU and on it, by its own clock, in milliseconds; they
    /// may run beside the pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_upload_ms: Option<f64>,
    /// Time of the pass by the GPU's own clock, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_pass_ms: Option<f64>,
    /// Time of the whole call, in milliseconds.
    pub total_ms: f64,
}

impl Runtime {
    /// Moves the weights to `node`: subtracts what lies on the way up and adds what lies on the way
    /// down, in one pass.
    ///
    /// # Errors
    /// An unknown node, an adapter that cannot be read or does not fit, a weight that would leave
    /// the lattice: the weights and the current node are then untouched.
    /// [`Error::Unusable`](crate::Error::Unusable) after a pass that broke off.
    pub fn switch_to(&mut self, node: &str) -> Result<SwitchReport> {
        let (mut report, replica) = (SwitchReport::default(), &mut self.replica);
        self.shared.nodes.with(node, &mut |version| {
            report = replica.switch(&version)?;
            Ok(())
        })?;
        Ok(report)
    }

    /// The version that `node` has now: a value to compare, to hold and to come back to.
    ///
    /// # Errors
    /// An unknown node, and what reading a store returns.
    pub fn version(&self, node: &str) -> Result<NodeVersion> {
        self.shared.nodes.resolve(node)
    }

    /// Like [`Self::switch_to`], to a version of this runtime, whatever its node has become
    /// meanwhile.
    ///
    /// # Errors
    /// As [`Self::switch_to`]; also where a compaction has dropped a version that was replaced.
    pub fn switch_to_version(&mut self, version: &NodeVersion) -> Result<SwitchReport> {
        self.replica.switch(version)
    }

    /// Reads, compiles and uploads what a switch to `node` would need, so that the switch itself
    /// need not. Returns when all of it is on the device. What is over a budget is dropped again,
    /// the least recently used first.
    ///
    /// # Errors
    /// As [`Self::switch_to`], but for the check of bounds and of what a node was trained on.
    pub fn prefetch(&mut self, node: &str) -> Result<()> {
        let replica = &mut self.replica;
        self.shared.nodes.with(node, &mut |version| replica.prefetch(&version))
    }
}
