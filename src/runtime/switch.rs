//! A switch: resolve, plan, make every delta resident, check bounds, one pass, publish. Everything that can fail comes
//! before the pass.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;

use super::Runtime;
use super::live::{Live, Resident, on_device};
use super::sources::Sources;
use crate::Result;
use crate::device::Compute;
use crate::device::cpu::Cpu;
use crate::store::again;
use crate::tree::{NodeId, SwitchPlan};

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
    /// Nodes whose deltas were not in memory: read, and compiled unless they came from a store.
    pub compiled: Vec<String>,
    /// What share of its change the lattice keeps, 0 to 1 ([`Kept`](crate::lattice::Kept)), for every node that was compiled
    /// from floats and changes anything.
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
    /// Time of all copies of deltas, to the GPU and on it, by its own clock, in milliseconds; they may run beside the pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_upload_ms: Option<f64>,
    /// Time of the pass by the GPU's own clock, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_pass_ms: Option<f64>,
    /// Time of the whole call, in milliseconds.
    pub total_ms: f64,
}

impl Runtime {
    /// Moves the weights to `node`: subtracts what lies on the way up and adds what lies on the way down, in one pass.
    ///
    /// # Errors
    /// An unknown node, an adapter that cannot be read or does not fit, a weight that would leave the lattice: the weights
    /// and the current node are then untouched. [`crate::Error::Unusable`] after a pass that broke off.
    pub fn switch_to(&mut self, node: &str) -> Result<SwitchReport> {
        self.prune();
        // Between looking a node up and reading it a compaction may move its bytes.
        again(|| {
            let target = self.sources.resolve(node)?;
            self.switch_to_node(target)
        })
    }

    /// Like [`Self::switch_to`], by id. Of a store it goes to the version that had the id when it was looked up, whatever
    /// the node is now.
    ///
    /// # Errors
    /// As [`Self::switch_to`].
    pub fn switch_to_node(&mut self, target: NodeId) -> Result<SwitchReport> {
        let start = Instant::now();
        self.sources.check_held(target)?;
        self.sources.check_stale(target)?;
        let tree = &self.sources.tree;
        let plan = tree.plan(self.current, target);
        let names = |nodes: &[NodeId]| nodes.iter().map(|&node| tree.name(node).into()).collect();
        let mut report = SwitchReport {
            source: tree.name(plan.source).into(),
            target: tree.name(plan.target).into(),
            subtracted: names(&plan.subtract),
            added: names(&plan.add),
            ..SwitchReport::default()
        };
        let Self { sources, host, live, .. } = self;
        let touched = on_device!(live, live => {
            live.usable()?;
            let before = sources.tree.path_from_root(plan.source);
            let resident = match prepare(live, sources, host, &plan, &mut report) {
                Ok(resident) => resident,
                Err(error) => {
                    live.give_up(&before, &report);
                    return Err(error);
                }
            };
            report.prepare_ms = milliseconds(start);
            let pass = Instant::now();
            let touched = match live.apply(&plan, &resident) {
                Ok(touched) => touched,
                Err(error) => {
                    live.give_up(&before, &report);
                    return Err(error);
                }
            };
            report.pass_ms = milliseconds(pass);
            live.evict(&sources.tree.path_from_root(target));
            touched
        });
        self.current = target;
        self.generation += u64::from(!plan.is_empty());
        report.touched_matrices = touched.matrices;
        report.touched_weights = touched.weights;
        report.touched_bytes = touched.weights * 4;
        report.device_upload_ms = touched.times.upload_ms;
        report.device_pass_ms = touched.times.pass_ms;
        report.total_ms = milliseconds(start);
        Ok(report)
    }

    /// Reads, compiles and uploads what a switch to `node` would need, so that the switch itself need not. Returns when all of
    /// it is on the device. What is over a
    /// budget is dropped again, the least recently used first.
    ///
    /// # Errors
    /// As [`Self::switch_to`], but for the check of bounds and of what a node was trained on.
    pub fn prefetch(&mut self, node: &str) -> Result<()> {
        self.prune();
        again(|| {
            let target = self.sources.resolve(node)?;
            let mut report = SwitchReport::default();
            let Self { sources, host, live, .. } = self;
            on_device!(live, live => {
                live.usable()?;
                let (path, current) = (sources.tree.path_from_root(target), sources.tree.path_from_root(self.current));
                let resident = path.iter().map(|&node| live.resident(sources, host, node, &mut report));
                let uploaded =
                    resident.collect::<Result<Vec<_>>>().and_then(|resident| live.finish_uploads(&resident));
                match &uploaded {
                    Ok(()) => live.evict(&current),
                    Err(_) => live.give_up(&current, &report),
                }
                uploaded
            })
        })
    }

    /// Drops nodes of a store from the tree that are not needed any more, where there are many.
    fn prune(&mut self) {
        let Self { sources, live, current, .. } = self;
        on_device!(live, live => {
            sources.prune(live.held_count(), |tree| live.held(&tree.path_from_root(*current)));
        });
    }
}

/// Makes the deltas of every node on both paths resident, and checks bounds.
fn prepare<D: Compute>(
    live: &mut Live<D>,
    sources: &Sources,
    host: &Cpu,
    plan: &SwitchPlan,
    report: &mut SwitchReport,
) -> Result<Vec<Resident<D>>> {
    let mut nodes = sources.tree.path_from_root(plan.target);
    nodes.extend(&plan.subtract);
    let resident = nodes.into_iter().map(|node| live.resident(sources, host, node, report));
    let resident = resident.collect::<Result<Vec<_>>>()?;
    live.check_bounds(sources, host, plan, &resident)?;
    Ok(resident)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
