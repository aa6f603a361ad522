//! A switch: resolve, plan, make every delta resident, check bounds, one pass, publish. Everything that can fail comes
//! before the pass.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::Runtime;
use crate::adapter::AdapterDeltas;
use crate::lattice::{NodeDeltas, Sign};
use crate::model::Llama;
use crate::tree::{NodeId, SwitchPlan};
use crate::weights::{EMBEDDING, HEAD};
use crate::{Error, Result};

/// What a switch did and cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SwitchReport {
    /// Node before.
    pub source: String,
    /// Node after.
    pub target: String,
    /// Nodes subtracted, leaf upwards.
    pub subtracted: Vec<String>,
    /// Nodes added, downwards.
    pub added: Vec<String>,
    /// Nodes that had to be read and compiled first.
    pub compiled: Vec<String>,
    /// Matrices read and written.
    pub touched_matrices: usize,
    /// Weights in them.
    pub touched_weights: u64,
    /// Bytes of weights read and written: four for every touched weight.
    pub touched_bytes: u64,
    /// Time to read, compile and check, in milliseconds.
    pub prepare_ms: f64,
    /// Time of the pass over the weights, in milliseconds.
    pub pass_ms: f64,
    /// Time of the whole call, in milliseconds.
    pub total_ms: f64,
}

impl Runtime {
    /// Moves the weights to `node`: subtracts what lies on the way up and adds what lies on the way down, in one pass.
    ///
    /// # Errors
    /// An unknown node, an adapter that cannot be read or does not fit, a weight that would leave the lattice: the weights
    /// and the current node are then untouched. [`Error::Unusable`] after a pass that broke off.
    pub fn switch_to(&mut self, node: &str) -> Result<SwitchReport> {
        let target = self.tree.node(node)?;
        self.switch_to_node(target)
    }

    /// Like [`Self::switch_to`], by id.
    ///
    /// # Errors
    /// As [`Self::switch_to`].
    pub fn switch_to_node(&mut self, target: NodeId) -> Result<SwitchReport> {
        let start = Instant::now();
        self.usable()?;
        let plan = self.tree.plan(self.current, target);
        let mut report = SwitchReport {
            source: self.tree.name(plan.source).into(),
            target: self.tree.name(plan.target).into(),
            subtracted: plan.subtract.iter().map(|&node| self.tree.name(node).into()).collect(),
            added: plan.add.iter().map(|&node| self.tree.name(node).into()).collect(),
            compiled: Vec::new(),
            touched_matrices: 0,
            touched_weights: 0,
            touched_bytes: 0,
            prepare_ms: 0.0,
            pass_ms: 0.0,
            total_ms: 0.0,
        };
        let prepared = self.make_resident(&plan, &mut report.compiled).and_then(|resident| {
            let movement = movement(&plan, &resident);
            let path: Vec<_> = self.tree.path_from_root(target).iter().map(|&node| find(&resident, node)).collect();
            self.weights.check_bounds(&self.device, &report.target, &path, &movement)?;
            Ok(resident)
        });
        let resident = match prepared {
            Ok(resident) => resident,
            Err(error) => {
                self.cache.evict(&self.tree.path_from_root(plan.source));
                return Err(error);
            }
        };
        report.prepare_ms = milliseconds(start);

        let pass = Instant::now();
        let arcs = |nodes: &[NodeId], sign| {
            let found = nodes.iter().map(|node| resident.iter().find(|(found, _)| found == node).expect("resident"));
            found.map(|(_, deltas)| (deltas, sign)).collect::<Vec<_>>()
        };
        let on_device = [arcs(&plan.subtract, Sign::Subtract), arcs(&plan.add, Sign::Add)].concat();
        let touched = self.weights.apply(&self.device, &movement(&plan, &resident), &on_device)?;
        self.current = target;
        self.generation += u64::from(!plan.is_empty());
        report.pass_ms = milliseconds(pass);

        self.cache.evict(&self.tree.path_from_root(target));
        report.touched_matrices = touched.matrices;
        report.touched_weights = touched.weights;
        report.touched_bytes = touched.weights * 4;
        report.total_ms = milliseconds(start);
        Ok(report)
    }

    /// The compiled deltas of every node on both paths.
    fn make_resident(&mut self, plan: &SwitchPlan, compiled: &mut Vec<String>) -> Result<Vec<Resident>> {
        let mut nodes = self.tree.path_from_root(plan.target);
        nodes.extend(&plan.subtract);
        let mut resident = Vec::with_capacity(nodes.len());
        for node in nodes {
            if !self.cache.contains(node) {
                compiled.push(self.tree.name(node).into());
            }
            resident.push((node, self.compile_cached(node)?));
        }
        Ok(resident)
    }

    fn compile_cached(&mut self, node: NodeId) -> Result<Arc<NodeDeltas>> {
        if !self.cache.contains(node) {
            let deltas = self.float_deltas(node)?;
            self.untie_for(&deltas)?;
            let Self { cache, weights, device, tree, .. } = self;
            return cache.get(node, || {
                let compiled =
                    device.install(|| weights.compile(&deltas)).map_err(|error| at(error, tree.name(node)))?;
                let bytes = compiled.bytes();
                Ok((Arc::new(compiled), bytes))
            });
        }
        self.cache.get(node, || unreachable!("the cache contains the node"))
    }

    /// A tied head gets its own copy of the embedding the first time an adapter touches one of the two.
    fn untie_for(&mut self, deltas: &AdapterDeltas) -> Result<()> {
        let touches = deltas.keys().any(|name| [EMBEDDING, HEAD].contains(&name.as_str()));
        if touches && self.weights.is_tied() {
            self.weights.untie(&self.device)?;
            self.model = Llama::bind(&self.device, self.base.config(), &self.weights)?;
        }
        Ok(())
    }
}

type Resident = (NodeId, Arc<NodeDeltas>);

fn find(resident: &[Resident], node: NodeId) -> &NodeDeltas {
    &resident.iter().find(|(found, _)| *found == node).expect("every node of the plan was made resident").1
}

fn movement<'a>(plan: &SwitchPlan, resident: &'a [Resident]) -> Vec<(&'a NodeDeltas, Sign)> {
    let left = plan.subtract.iter().map(|&node| (find(resident, node), Sign::Subtract));
    let entered = plan.add.iter().map(|&node| (find(resident, node), Sign::Add));
    left.chain(entered).collect()
}

/// Says which node a delta that does not fit belongs to.
fn at(error: Error, name: &str) -> Error {
    match error {
        Error::Overflow { weight, row, needed, headroom, .. } => {
            Error::Overflow { node: name.to_owned(), weight, row, needed, headroom }
        }
        other => other,
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
