//! What a switch will do: plain data, to be printed, tested, or run on any device.
//!
//! **Invariant:** subtracting `subtract` and adding `add` turns the sum of the source's path into
//! the target's.

use std::fmt;

use serde::Serialize;

use super::{AdapterTree, NodeId};

/// The nodes whose deltas a switch takes away and adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchPlan {
    /// Where the switch starts.
    pub source: NodeId,
    /// Where it leads.
    pub target: NodeId,
    /// Nodes to subtract, from the source upwards.
    pub subtract: Vec<NodeId>,
    /// Nodes to add, downwards to the target.
    pub add: Vec<NodeId>,
}

/// A plan with names instead of ids, for `--json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlanSummary {
    /// Where the switch starts.
    pub source: String,
    /// Where it leads.
    pub target: String,
    /// Nodes to subtract, from the source upwards.
    pub subtract: Vec<String>,
    /// Nodes to add, downwards to the target.
    pub add: Vec<String>,
}

impl AdapterTree {
    /// The shortest way from `source` to `target`: up to their lowest common ancestor and down
    /// again.
    pub fn plan(&self, source: NodeId, target: NodeId) -> SwitchPlan {
        let top = self.lowest_common_ancestor(source, target);
        let mut add = self.path_up(target, top);
        add.reverse();
        SwitchPlan { source, target, subtract: self.path_up(source, top), add }
    }
}

impl SwitchPlan {
    /// The way back.
    #[must_use]
    pub fn reversed(&self) -> Self {
        let reverse = |nodes: &[NodeId]| nodes.iter().rev().copied().collect();
        Self {
            source: self.target,
            target: self.source,
            subtract: reverse(&self.add),
            add: reverse(&self.subtract),
        }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.subtract.is_empty() && self.add.is_empty()
    }

    /// The plan with names.
    pub fn summary(&self, tree: &AdapterTree) -> PlanSummary {
        let name = |id: &NodeId| tree.name(*id).to_owned();
        PlanSummary {
            source: name(&self.source),
            target: name(&self.target),
            subtract: self.subtract.iter().map(name).collect(),
            add: self.add.iter().map(name).collect(),
        }
    }

    /// One readable line: `fr/alice → fr/bob: − fr/alice  + fr/bob`.
    pub fn display(&self, tree: &AdapterTree) -> impl fmt::Display + use<> {
        self.summary(tree)
    }
}

impl fmt::Display for PlanSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {}: ", self.source, self.target)?;
        let signed = |sign: &'static str, names: &[String]| {
            names.iter().map(|name| format!("{sign} {name}")).collect()
        };
        let mut steps: Vec<String> = signed("−", &self.subtract);
        steps.extend::<Vec<String>>(signed("+", &self.add));
        if steps.is_empty() { f.write_str("nothing to do") } else { f.write_str(&steps.join("  ")) }
    }
}
