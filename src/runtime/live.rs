//! What lives on one device: the weights, the model bound to them, and the deltas at hand.
//!
//! **Invariant:** the compiled deltas of the current path stay in the host's memory: what was added is what will be subtracted.
//! What is on the device is a copy of them, and can be made again.

use std::collections::HashSet;
use std::sync::Arc;

use super::SwitchReport;
use super::sources::{Deltas, Sources};
use crate::device::Compute;
use crate::device::cpu::Cpu;
#[cfg(feature = "gpu")]
use crate::device::gpu::Gpu;
use crate::lattice::{NodeDeltas, Sign};
use crate::model::Llama;
use crate::store::DeltaCache;
use crate::tree::{NodeId, SwitchPlan};
use crate::weights::{EMBEDDING, HEAD, Touched, Weights};
use crate::{Error, Result};

/// The weights on one device.
pub(super) struct Live<D: Compute> {
    pub(super) device: D,
    pub(super) weights: Weights<D>,
    pub(super) model: Llama,
    /// Compiled deltas in the host's memory.
    pub(super) compiled: DeltaCache<NodeDeltas>,
    /// The same on the device, where that has memory of its own.
    pub(super) uploaded: DeltaCache<D::Deltas>,
    /// Nodes whose small share of kept change was told.
    told: HashSet<NodeId>,
}

/// The device a runtime was opened on.
pub(super) enum AnyLive {
    Cpu(Box<Live<Cpu>>),
    #[cfg(feature = "gpu")]
    Gpu(Box<Live<Gpu>>),
}

/// Runs the same code on whatever device a runtime was opened on.
macro_rules! on_device {
    ($live:expr, $name:ident => $body:expr) => {
        match $live {
            $crate::runtime::live::AnyLive::Cpu($name) => $body,
            #[cfg(feature = "gpu")]
            $crate::runtime::live::AnyLive::Gpu($name) => $body,
        }
    };
}
pub(super) use on_device;

/// One node's deltas, compiled and on the device.
pub(super) struct Resident<D: Compute> {
    node: NodeId,
    compiled: Arc<NodeDeltas>,
    on_device: Arc<D::Deltas>,
}

/// Bytes of deltas kept beside the applied ones.
#[derive(Clone, Copy)]
pub(super) struct Budgets {
    pub(super) host_bytes: usize,
    pub(super) device_bytes: usize,
}

impl<D: Compute> Live<D> {
    /// Loads every weight of the base.
    pub(super) fn load(
        device: D,
        sources: &Sources,
        host: &Cpu,
        budgets: Budgets,
        progress: impl FnMut(usize, usize) + Send,
    ) -> Result<Self> {
        let base = &sources.base;
        let weights = host.install(|| Weights::load(base, &device, sources.headroom, progress))?;
        let model = Llama::bind(&device, base.config(), &weights)?;
        let (compiled, uploaded) = (DeltaCache::new(budgets.host_bytes), DeltaCache::new(budgets.device_bytes));
        Ok(Self { device, weights, model, compiled, uploaded, told: HashSet::new() })
    }

    /// Loads everything anew, on a device connected to anew. The old weights go first: there is never room for two.
    pub(super) fn reload(&mut self, sources: &Sources, host: &Cpu) -> Result<()> {
        self.weights = Weights::unusable();
        self.compiled.clear();
        self.uploaded.clear();
        self.device.reopen()?;
        self.weights = host.install(|| Weights::load(&sources.base, &self.device, sources.headroom, |_, _| ()))?;
        self.model = Llama::bind(&self.device, sources.base.config(), &self.weights)?;
        Ok(())
    }

    /// [`Error::Unusable`] unless the weights are what the ledger says, or what the device failed of.
    pub(super) fn usable(&self) -> Result<()> {
        self.device.check()?;
        if self.weights.is_usable() { Ok(()) } else { Err(Error::Unusable) }
    }

    /// One node's deltas, read, compiled and moved to the device as far as they are not there.
    pub(super) fn resident(
        &mut self,
        sources: &Sources,
        host: &Cpu,
        node: NodeId,
        report: &mut SwitchReport,
    ) -> Result<Resident<D>> {
        let name = sources.tree.name(node);
        let mut deltas = Deltas::Float(Arc::default());
        if !self.compiled.contains(node) {
            report.compiled.push(name.into());
            deltas = sources.deltas(node)?;
            self.untie_for(&deltas, sources)?;
        }
        let Self { device, weights, compiled, uploaded, told, .. } = self;
        let compiled = compiled.get(node, || {
            let deltas = match deltas {
                Deltas::Float(float) => {
                    let compiled = host.install(|| weights.compile(&float));
                    let (deltas, kept) = compiled.map_err(|error| error.at_node(name))?;
                    report.kept.extend(kept.share().map(|share| (name.to_owned(), share)));
                    if kept.is_low() && told.insert(node) {
                        tracing::warn!("{name}: {}", kept.warning(false));
                    }
                    deltas
                }
                Deltas::Compiled(node) => weights.place(node)?,
            };
            let bytes = deltas.bytes();
            Ok((Arc::new(deltas), bytes))
        })?;
        if D::HOST_MEMORY {
            let on_device = Arc::new(device.upload_deltas(&compiled)?);
            return Ok(Resident { node, compiled, on_device });
        }
        if !uploaded.contains(node) {
            report.uploaded.push(name.into());
        }
        let upload = |uploaded: &mut DeltaCache<D::Deltas>| {
            uploaded.get(node, || {
                let deltas = device.upload_deltas(&compiled)?;
                let bytes = device.deltas_bytes(&deltas);
                Ok((Arc::new(deltas), bytes))
            })
        };
        let on_device = match upload(uploaded) {
            // The budget is more than the device has: what is not in use makes room.
            Err(Error::DeviceMemory { .. }) => {
                uploaded.evict_to(0, &[]);
                upload(uploaded)?
            }
            result => result?,
        };
        Ok(Resident { node, compiled, on_device })
    }

    /// Moves deltas to the device ahead of the switch that needs them.
    pub(super) fn finish_uploads(&self, nodes: &[Resident<D>]) -> Result<()> {
        self.device.finish_uploads(&nodes.iter().map(|node| &*node.on_device).collect::<Vec<_>>())
    }

    /// Checks that the weights stay on the lattice at the end of `plan`.
    pub(super) fn check_bounds(
        &self,
        sources: &Sources,
        host: &Cpu,
        plan: &SwitchPlan,
        resident: &[Resident<D>],
    ) -> Result<()> {
        let path = sources.tree.path_from_root(plan.target);
        let path: Vec<_> = path.iter().map(|&node| &*find(resident, node).compiled).collect();
        let movement = terms(plan, resident, |node| &*node.compiled);
        let checked = self.weights.check_bounds(&self.device, host, sources.tree.name(plan.target), &path, &movement);
        checked.map_err(|error| if sources.store.is_some() { error.in_store() } else { error })
    }

    /// The pass over the weights.
    pub(super) fn apply(&mut self, plan: &SwitchPlan, resident: &[Resident<D>]) -> Result<Touched> {
        let (movement, on_device) =
            (terms(plan, resident, |node| &*node.compiled), terms(plan, resident, |node| &*node.on_device));
        self.weights.apply(&self.device, &movement, &on_device)
    }

    /// How many nodes' deltas are at hand, in memory and on the device.
    pub(super) fn held_count(&self) -> usize {
        self.compiled.stats().nodes + self.uploaded.stats().nodes
    }

    /// Nodes whose deltas are at hand, and those of `path`.
    pub(super) fn held(&self, path: &[NodeId]) -> HashSet<NodeId> {
        self.compiled.nodes().chain(self.uploaded.nodes()).chain(path.iter().copied()).collect()
    }

    /// Drops what is over the budgets; `path` stays.
    pub(super) fn evict(&mut self, path: &[NodeId]) {
        self.compiled.evict(path);
        self.uploaded.evict(path);
    }

    /// The same after something broke off. What was uploaded for it may still hold staging memory, so of that nothing stays
    /// but `path`.
    pub(super) fn give_up(&mut self, path: &[NodeId], report: &SwitchReport) {
        self.evict(path);
        if !report.uploaded.is_empty() {
            self.uploaded.evict_to(0, path);
        }
    }

    /// A tied head gets its own copy of the embedding the first time an adapter touches one of the two.
    fn untie_for(&mut self, deltas: &Deltas, sources: &Sources) -> Result<()> {
        let touches = deltas.weights().iter().any(|name| [EMBEDDING, HEAD].contains(&name.as_str()));
        if touches && self.weights.is_tied() {
            self.weights.untie(&self.device)?;
            self.model = Llama::bind(&self.device, sources.base.config(), &self.weights)?;
        }
        Ok(())
    }
}

fn find<D: Compute>(resident: &[Resident<D>], node: NodeId) -> &Resident<D> {
    resident.iter().find(|found| found.node == node).expect("every node of the plan was made resident")
}

/// What a plan moves, with its sign.
fn terms<'a, D: Compute, T>(
    plan: &SwitchPlan,
    resident: &'a [Resident<D>],
    of: impl Fn(&'a Resident<D>) -> &'a T,
) -> Vec<(&'a T, Sign)> {
    let left = plan.subtract.iter().map(|&node| (of(find(resident, node)), Sign::Subtract));
    let entered = plan.add.iter().map(|&node| (of(find(resident, node)), Sign::Add));
    left.chain(entered).collect()
}
