//! One copy of the weights on one device, and the nodes that are applied to it.
//!
//! **Invariant:** the deltas of the nodes that are applied are held here: what was added is what
//! will be subtracted, whatever becomes of caches and files.
//! **Invariant:** here alone a device's type is named: [`Replica`] is what all others see.

mod rows;

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::SwitchReport;
#[cfg(feature = "measure")]
use super::measure::ReplicaCeilings;
use super::shared::Shared;
#[cfg(feature = "measure")]
use crate::device::Ceilings as Computing;
use crate::device::Compute;
#[cfg(not(feature = "measure"))]
use crate::device::Compute as Computing;
use crate::device::PAGE;
#[cfg(feature = "gpu")]
use crate::device::gpu::Gpu;
use crate::lattice::{LatticeMatrix, NodeDeltas, SignedDelta};
use crate::model::{Forward, KvPages, KvPool, OneSequence, Picked, TableId, Transformer};
use crate::nodes::{CacheStats, DeltaCache, NodeVersion, Way};
use crate::weights::{EMBEDDING, HEAD, MatrixId, Touched, Weights};
use crate::{Error, Result, WeightName};
use rows::Held;
pub(crate) use rows::{Pool, StepRow};

/// A copy of the weights, whatever the device.
pub(crate) trait Replica: Any + Send + Sync {
    /// What it shares with others.
    fn shared(&self) -> &Arc<Shared>;

    /// The version that the weights stand at.
    fn current(&self) -> &NodeVersion;

    /// [`Error::Unusable`] unless the weights are what [`Self::current`] says, or what the device
    /// failed of.
    fn check_usable(&self) -> Result<()>;

    /// Moves the weights to `target` in one pass over those that change. On an error they are as
    /// before, or unusable.
    fn switch(&mut self, target: &NodeVersion) -> Result<SwitchReport>;

    /// Makes ready what a switch to `target` needs.
    fn prefetch(&mut self, target: &NodeVersion) -> Result<()>;

    /// Connects to the device again and loads everything again, at the root.
    fn restore(&mut self) -> Result<()>;

    /// Room for the keys and values of `tokens` tokens that are run with the weights as they now
    /// are.
    fn kv(&self, tokens: usize) -> Result<Kv>;

    /// Runs tokens behind those in `kv`, with weights that stand where they stood when it was made.
    fn forward<'a>(&'a self, kv: &'a mut Kv) -> Result<Box<dyn Forward + 'a>>;

    /// Memory for the keys and values of many sequences, of so many bytes.
    fn pool(&self, bytes: u64) -> Result<Pool>;

    /// The same for `sequences` of so many tokens each.
    fn pool_for(&self, tokens: usize, sequences: usize) -> Result<Pool>;

    /// Names the keys and values of a version's sequences.
    fn owner(&self, version: &NodeVersion) -> [u8; 32];

    /// Makes the deltas of a version and of all above it resident and keeps them so until it is
    /// [released](Self::release) as often: what its rows need in a step wherever the weights stand.
    /// Refuses what a switch there would refuse.
    fn hold(&mut self, version: &NodeVersion) -> Result<()>;

    /// Takes one [`Self::hold`] back.
    fn release(&mut self, version: &NodeVersion);

    /// Runs the new tokens of many sequences, those of one subtree behind one another. What lies
    /// between the weights and a sequence's version, which is held, is applied to its rows alone. An
    /// error of one row is its own.
    fn step(&self, pool: &mut Pool, rows: &[StepRow<'_>]) -> Result<Vec<Result<Option<Picked>>>>;

    /// A matrix as it now is.
    fn matrix(&self, id: MatrixId) -> Result<LatticeMatrix>;

    /// BLAKE3 of the resident bits.
    fn fingerprint(&self) -> Result<blake3::Hash>;

    /// The fingerprint that weights would have whose matrices hash to `hashes`, by id.
    fn fingerprint_of(&self, hashes: &[blake3::Hash]) -> blake3::Hash;

    /// What is resident.
    fn residence(&self) -> Residence;

    /// The device, for people.
    fn device(&self) -> String;

    /// The GPU, if it is one.
    #[cfg(feature = "gpu")]
    fn gpu(&self) -> Option<&Gpu>;

    /// What it could do at best.
    #[cfg(feature = "measure")]
    fn ceilings(&mut self) -> &mut dyn ReplicaCeilings;
}

/// What a copy of the weights takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Residence {
    /// Whether embedding and head are one matrix.
    pub(super) is_tied: bool,
    /// Weights in all matrices.
    pub(super) parameters: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// Deltas on the device, where that has memory of its own.
    pub(crate) uploaded: CacheStats,
}

/// Keys and values of one sequence, on the device of one copy of the weights, at one node version.
pub(crate) struct Kv {
    pool: Box<dyn AnyPool>,
    /// The sequence's pages: all that the pool has.
    table: TableId,
    /// The version they were computed at.
    version: NodeVersion,
    owner: [u8; 32],
    /// Tokens that fit.
    pub(super) capacity: usize,
}

impl Kv {
    pub(super) fn version(&self) -> &NodeVersion {
        &self.version
    }

    /// Drops every token.
    pub(super) fn clear(&mut self) {
        self.pool.pages_mut().clear(self.table);
    }
}

/// A [`KvPool`] of some device.
trait AnyPool: Any + Send + Sync {
    fn pages_mut(&mut self) -> &mut KvPages;
}

impl<D: Compute + 'static> AnyPool for KvPool<D> {
    fn pages_mut(&mut self) -> &mut KvPages {
        KvPool::pages_mut(self)
    }
}

/// One node's deltas, compiled and on the device.
struct Resident<D: Computing> {
    version: NodeVersion,
    compiled: Arc<NodeDeltas>,
    on_device: Arc<D::Deltas>,
}

/// A copy of the weights on a device of type `D`.
pub(super) struct DeviceReplica<D: Computing> {
    shared: Arc<Shared>,
    pub(super) device: D,
    pub(super) weights: Weights<D>,
    model: Transformer,
    /// The nodes that are applied, from the top down.
    applied: Vec<Resident<D>>,
    current: NodeVersion,
    /// Deltas on the device, where that has memory of its own.
    pub(super) uploaded: DeltaCache<D::Deltas>,
    /// The nodes that may be applied unmerged.
    held: HashMap<NodeVersion, Held<D>>,
    /// Another whenever the weights are loaded: keys and values from before are lost.
    load: u64,
}

fn next_load() -> u64 {
    static LOADS: AtomicU64 = AtomicU64::new(0);
    LOADS.fetch_add(1, Ordering::Relaxed)
}

impl<D: Computing + 'static> DeviceReplica<D> {
    /// Loads every weight of the base, at the root.
    pub(super) fn load(
        shared: Arc<Shared>,
        device: D,
        device_delta_bytes: usize,
        progress: impl FnMut(usize, usize) + Send,
    ) -> Result<Self> {
        let (weights, model) = load(&shared, &device, progress)?;
        let (current, uploaded) =
            (shared.nodes.root().clone(), DeltaCache::new(device_delta_bytes));
        Ok(Self {
            shared,
            device,
            weights,
            model,
            applied: Vec::new(),
            current,
            uploaded,
            held: HashMap::new(),
            load: next_load(),
        })
    }

    /// One version's deltas, read, compiled and moved to the device as far as they are not there.
    fn resident(
        &mut self,
        version: &NodeVersion,
        report: &mut SwitchReport,
    ) -> Result<Resident<D>> {
        let compiled = self.shared.deltas(version, &self.shared.host, report)?;
        let version = version.clone();
        let device = &self.device;
        if D::HOST_MEMORY {
            let on_device = Arc::new(device.upload_deltas(&compiled)?);
            return Ok(Resident { version, compiled, on_device });
        }
        if !self.uploaded.contains(&version) {
            report.uploaded.push(version.name().into());
        }
        let upload = |uploaded: &mut DeltaCache<D::Deltas>| {
            uploaded.get(&version, || {
                let deltas = device.upload_deltas(&compiled)?;
                let bytes = device.deltas_bytes(&deltas);
                Ok((Arc::new(deltas), bytes))
            })
        };
        let on_device = match upload(&mut self.uploaded) {
            // The budget is more than the device has: what is not in use goes.
            Err(Error::DeviceMemory { .. }) => {
                self.uploaded.evict_to(0);
                upload(&mut self.uploaded)?
            }
            result => result?,
        };
        Ok(Resident { version, compiled, on_device })
    }

    /// Makes the deltas of every one of `versions` resident, and gives a tied head a matrix of its
    /// own before the first of them that touches head or embedding is added.
    fn residents(
        &mut self,
        versions: &[NodeVersion],
        report: &mut SwitchReport,
    ) -> Result<Vec<Resident<D>>> {
        let residents = versions
            .iter()
            .map(|version| self.resident(version, report))
            .collect::<Result<Vec<_>>>()?;
        let ids = [EMBEDDING, HEAD].map(|name| self.weights.matrix_id(&WeightName::new(name)));
        let touches = |resident: &Resident<D>| {
            ids.iter().flatten().any(|id| resident.compiled.delta(*id).is_some())
        };
        if self.weights.is_tied() && residents.iter().any(touches) {
            self.weights.untie(&self.device)?;
        }
        Ok(residents)
    }

    /// Drops what is over the budgets.
    fn evict(&mut self) {
        self.shared.compiled().evict();
        self.uploaded.evict();
    }

    /// The same after something broke off. What was uploaded for it may still hold staging memory,
    /// so of that nothing stays but what is applied.
    fn give_up(&mut self, report: &SwitchReport) {
        self.evict();
        if !report.uploaded.is_empty() {
            self.uploaded.evict_to(0);
        }
    }

    /// Makes ready, checks and moves; `common` of the nodes that are applied stay.
    fn make(
        &mut self,
        target: &NodeVersion,
        common: usize,
        entered: &[NodeVersion],
        report: &mut SwitchReport,
    ) -> Result<(Touched, Vec<Resident<D>>)> {
        let start = Instant::now();
        let entered = self.residents(entered, report)?;
        let path =
            self.applied[..common].iter().chain(&entered).map(|resident| &*resident.compiled);
        let left = || self.applied[common..].iter().rev();
        let moved =
            || left().map(SignedDelta::subtracted).chain(entered.iter().map(SignedDelta::added));
        let compiled: Vec<_> = moved().map(|node| node.with(&*node.delta.compiled)).collect();
        let shared = &self.shared;
        let checked = self.weights.check_bounds(
            &self.device,
            &shared.host,
            target.name(),
            &path.collect::<Vec<_>>(),
            &compiled,
        );
        checked.map_err(|error| shared.nodes.advised(error))?;
        report.prepare_ms += milliseconds(start);
        let start = Instant::now();
        let on_device: Vec<_> = moved().map(|node| node.with(&*node.delta.on_device)).collect();
        let touched = self.weights.apply(&self.device, &compiled, &on_device)?;
        report.pass_ms = milliseconds(start);
        Ok((touched, entered))
    }

    fn pin(&mut self, versions: &[NodeVersion]) {
        let mut compiled = self.shared.compiled();
        for version in versions {
            compiled.pin(version);
            self.uploaded.pin(version);
        }
    }

    fn unpin(&mut self, versions: &[NodeVersion]) {
        let mut compiled = self.shared.compiled();
        for version in versions {
            compiled.unpin(version);
            self.uploaded.unpin(version);
        }
    }
}

/// Loads every weight of the base onto `device`.
fn load<D: Computing>(
    shared: &Shared,
    device: &D,
    progress: impl FnMut(usize, usize) + Send,
) -> Result<(Weights<D>, Transformer)> {
    let weights =
        shared.host.install(|| Weights::load(&shared.base, device, shared.headroom, progress))?;
    // The first copy's: those of another are equal.
    let grids = shared.grids.get_or_init(|| weights.grids().clone());
    debug_assert!(grids == weights.grids(), "a base has one lattice at one headroom");
    let model = Transformer::bind(device, shared.base.config(), &weights)?;
    Ok((weights, model))
}

impl<D: Computing + 'static> Replica for DeviceReplica<D> {
    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn current(&self) -> &NodeVersion {
        &self.current
    }

    fn check_usable(&self) -> Result<()> {
        self.device.check()?;
        if self.weights.is_usable() { Ok(()) } else { Err(Error::Unusable) }
    }

    fn switch(&mut self, target: &NodeVersion) -> Result<SwitchReport> {
        let start = Instant::now();
        let shared = self.shared.clone();
        shared.nodes.check_stale(target, shared.stale)?;
        let Way { left, entered } = self.current.way_to(target);
        let common = self.applied.len() - left.len();
        let mut report = SwitchReport {
            source: self.current.name().into(),
            target: target.name().into(),
            subtracted: left.iter().map(|version| version.name().into()).collect(),
            added: entered.iter().map(|version| version.name().into()).collect(),
            ..SwitchReport::default()
        };
        self.check_usable()?;
        report.prepare_ms = milliseconds(start);
        let (touched, added) = match self.make(target, common, &entered, &mut report) {
            Ok(made) => made,
            Err(error) => {
                self.give_up(&report);
                return Err(error);
            }
        };
        self.applied.truncate(common);
        self.applied.extend(added);
        self.pin(&entered);
        self.unpin(&left);
        self.current = target.clone();
        self.evict();
        report.touched_matrices = touched.matrices;
        report.touched_weights = touched.weights;
        report.touched_bytes = touched.weights * 4;
        report.device_upload_ms = touched.times.upload_ms;
        report.device_pass_ms = touched.times.pass_ms;
        report.total_ms = milliseconds(start);
        Ok(report)
    }

    fn prefetch(&mut self, target: &NodeVersion) -> Result<()> {
        self.check_usable()?;
        let mut report = SwitchReport::default();
        let uploaded = self.residents(&target.path(), &mut report).and_then(|residents| {
            let deltas: Vec<_> = residents.iter().map(|resident| &*resident.on_device).collect();
            self.device.finish_uploads(&deltas)
        });
        match &uploaded {
            Ok(()) => self.evict(),
            Err(_) => self.give_up(&report),
        }
        uploaded
    }

    fn restore(&mut self) -> Result<()> {
        // The old weights go first: there is never memory for two.
        self.weights = Weights::unusable();
        self.applied.clear();
        self.unpin(&self.current.path());
        let held: Vec<_> = self.held.drain().map(|(version, _)| version).collect();
        self.unpin(&held);
        self.shared.compiled().evict();
        self.uploaded.clear();
        self.current = self.shared.nodes.root().clone();
        self.device.reopen()?;
        (self.weights, self.model) = load(&self.shared, &self.device, |_, _| ())?;
        self.load = next_load();
        Ok(())
    }

    fn kv(&self, tokens: usize) -> Result<Kv> {
        let config = self.shared.base.config();
        let capacity = tokens.clamp(1, config.max_position_embeddings);
        let (version, owner) = (self.current.clone(), self.owner(&self.current));
        let mut pool = Box::new(KvPool::for_tokens(&self.device, config, capacity)?);
        let table = pool.pages_mut().open(owner);
        Ok(Kv { pool, table, version, owner, capacity })
    }

    fn forward<'a>(&'a self, kv: &'a mut Kv) -> Result<Box<dyn Forward + 'a>> {
        self.check_usable()?;
        let (owner, found, table) = (self.owner(&self.current), kv.owner, kv.table);
        let pool =
            (&mut *kv.pool as &mut dyn Any).downcast_mut::<KvPool<D>>().filter(|_| owner == found);
        let pool = pool.ok_or(Error::CacheOwner { expected: owner, found })?;
        let Self { model, device, weights, .. } = self;
        Ok(Box::new(OneSequence { model, device, weights, pool, table, owner }))
    }

    fn pool(&self, bytes: u64) -> Result<Pool> {
        Ok(Pool(Box::new(KvPool::new(&self.device, self.shared.base.config(), bytes)?)))
    }

    fn pool_for(&self, tokens: usize, sequences: usize) -> Result<Pool> {
        let tokens = tokens.next_multiple_of(PAGE).saturating_mul(sequences);
        let pool = KvPool::for_tokens(&self.device, self.shared.base.config(), tokens.max(1))?;
        Ok(Pool(Box::new(pool)))
    }

    fn owner(&self, version: &NodeVersion) -> [u8; 32] {
        let mut owner = [0; 32];
        owner[..8].copy_from_slice(&version.serial().to_le_bytes());
        owner[8..16].copy_from_slice(&self.load.to_le_bytes());
        owner
    }

    fn hold(&mut self, version: &NodeVersion) -> Result<()> {
        self.hold_path(version)
    }

    fn release(&mut self, version: &NodeVersion) {
        version.path().iter().for_each(|version| self.release_one(version));
        self.evict();
    }

    fn step(&self, pool: &mut Pool, rows: &[StepRow<'_>]) -> Result<Vec<Result<Option<Picked>>>> {
        self.step_rows(pool, rows)
    }

    fn matrix(&self, id: MatrixId) -> Result<LatticeMatrix> {
        self.check_usable()?;
        self.device.read_matrix(self.weights.matrix(id))
    }

    fn fingerprint(&self) -> Result<blake3::Hash> {
        self.check_usable()?;
        self.weights.fingerprint(&self.device)
    }

    fn fingerprint_of(&self, hashes: &[blake3::Hash]) -> blake3::Hash {
        self.weights.fingerprint_of(hashes)
    }

    fn residence(&self) -> Residence {
        Residence {
            is_tied: self.weights.is_tied(),
            parameters: self.weights.parameters(),
            bytes: self.weights.resident_bytes(),
            uploaded: self.uploaded.stats(),
        }
    }

    fn device(&self) -> String {
        self.device.describe()
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self) -> Option<&Gpu> {
        (&self.device as &dyn Any).downcast_ref()
    }

    #[cfg(feature = "measure")]
    fn ceilings(&mut self) -> &mut dyn ReplicaCeilings {
        self
    }
}

impl<D: Computing> Drop for DeviceReplica<D> {
    fn drop(&mut self) {
        let mut compiled = self.shared.compiled();
        self.applied.iter().for_each(|resident| compiled.unpin(&resident.version));
        self.held.keys().for_each(|version| compiled.unpin(version));
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
