//! The public face: one base, one tree, one live copy of the weights, moved from node to node.
//!
//! `shared.rs` has what all copies of the weights share, `replica.rs` one copy and what is applied
//! to it, `switch.rs` the way from node to node.
//!
//! **Nodes.** A folder tree's node is one content for the runtime's life: the hash of its files is
//! kept when they are first read, others are refused (`TreeDefect::Changed`). Of a store the path
//! is looked up in one committed state when a name is resolved, so a change is taken at the next
//! switch.
//!
//! **Copies.** `Runtime::replica` loads another copy of the weights of the same base: base,
//! nodes, compiled deltas, tokenizer and templates are shared, and a version is compiled once. The
//! deltas that a copy has applied are pinned and count for no budget; the budget is for the
//! others, and holds after a switch, not within it.
//!
//! **Failures.** If a device's error or a panic breaks off a pass, `switch_to`, `generate`,
//! `score` and `fingerprint` return `Error::Unusable` until `Runtime::restore` connects to the
//! device again and loads the weights from the base, at the root. A GPU's error that comes at any
//! other time is kept, too, and returned by every later call (`Error::DeviceFailed`).
//!
//! **Keys and values** are owned by 32 bytes that name the weights, and a forward pass under
//! another owner is refused (`model/kv_pool.rs`). Here those are the version and the load of the
//! replica that they were computed on: hashing the weights would cost more than the switch.
//!
//! **Sequences** (`sequence.rs`): tokens, sampler, keys and values, and the version they belong
//! to. `Runtime::step` chooses one token; `generate` is a loop over it. The weights may move
//! between two steps: back at the version, the sequence goes on and computes nothing again; keys
//! and values that are lost (another load, another copy) are computed again from its tokens.
//!
//! **Invariant:** [`Runtime::switch_to`] takes `&mut self` and everything that reads the weights
//! takes `&self`: no half-switched model can be read.
//! **Invariant:** a switch that returns an error left node and weights as they were, or says that
//! they are unusable.

mod below;
mod choice;
#[cfg(feature = "measure")]
pub mod measure;
mod replica;
mod script;
mod sequence;
mod shared;
mod switch;
#[cfg(test)]
mod tests;
mod text;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

#[cfg(feature = "gpu")]
pub use crate::device::gpu::{GpuChoice, GpuInfo, GpuOptions};
pub use choice::DeviceChoice;
pub use sequence::{Sequence, Step};
pub use switch::SwitchReport;
pub use text::{Generation, NextToken, Prompt, Scores};
pub use verify::VerifyReport;

#[cfg(feature = "gpu")]
use crate::Error;
use crate::adapter::{BaseShapes, Limits};
use crate::base::{BaseModel, WeightInfo};
use crate::device::cpu::{Cpu, SimdLevel};
#[cfg(feature = "gpu")]
use crate::device::gpu::Gpu;
use crate::lattice::{DEFAULT_HEADROOM, LatticeMatrix};
pub use crate::nodes::{CacheStats, NodeVersion, Nodes, StalePolicy};
use crate::nodes::{DeltaCache, NodeSet, StoreNodes, TreeNodes};
use crate::store::{Store, StoreStats};
use crate::tree::AdapterTree;
use crate::weights::{EMBEDDING, HEAD};
use crate::{Result, WeightName};
use replica::DeviceReplica;
pub(crate) use replica::{Pool, Replica, StepRow};
pub(crate) use script::Script;
use shared::Making;
pub(crate) use shared::Shared;

/// Bytes of compiled deltas kept beside the applied ones.
pub const DEFAULT_DELTA_BUDGET_BYTES: usize = 1 << 30;

/// A base model with a tree of adapters, live at one node.
pub struct Runtime {
    pub(crate) shared: Arc<Shared>,
    pub(crate) replica: Box<dyn Replica>,
}

/// Bytes of deltas kept beside the applied ones.
#[derive(Clone, Copy)]
struct Budgets {
    host_bytes: usize,
    device_bytes: usize,
}

/// Where the base comes from.
enum Source {
    Path(PathBuf),
    Model(Box<BaseModel>),
}

/// How to open a [`Runtime`].
pub struct RuntimeBuilder {
    base: Source,
    tree: Option<PathBuf>,
    nodes: Option<Nodes>,
    stale: StalePolicy,
    tokenizer: Option<PathBuf>,
    device: DeviceChoice,
    threads: Option<usize>,
    simd: Option<SimdLevel>,
    headroom: Option<f32>,
    budgets: Budgets,
    limits: Limits,
}

impl RuntimeBuilder {
    /// The base: a Hugging Face folder, a GGUF file, or `hf:ORG/NAME[@revision]`.
    pub fn base(mut self, path: impl Into<PathBuf>) -> Self {
        self.base = Source::Path(path.into());
        self
    }

    /// A base that is open already.
    pub fn base_model(mut self, base: BaseModel) -> Self {
        self.base = Source::Model(Box::new(base));
        self
    }

    /// The folder of adapters, or a [`Store`]. Without one the tree is the root alone.
    pub fn tree(mut self, path: impl Into<PathBuf>) -> Self {
        self.tree = Some(path.into());
        self
    }

    /// A tree made in memory, in place of a folder.
    pub fn adapter_tree(self, tree: AdapterTree) -> Self {
        self.nodes(tree)
    }

    /// A tree or a store that is open already, in place of a folder.
    pub fn nodes(mut self, nodes: impl Into<Nodes>) -> Self {
        self.nodes = Some(nodes.into());
        self
    }

    /// What becomes of a switch to a node of a store that was trained on other content of its
    /// parent than there is now (default: a warning).
    pub fn stale_policy(mut self, policy: StalePolicy) -> Self {
        self.stale = policy;
        self
    }

    /// A `tokenizer.json` in place of the base's own, or a folder, such as an adapter's: its
    /// `tokenizer.json` and its chat templates, of the two what there is.
    pub fn tokenizer(mut self, path: impl Into<PathBuf>) -> Self {
        self.tokenizer = Some(path.into());
        self
    }

    /// What to compute on (default: the CPU).
    pub fn device(mut self, device: DeviceChoice) -> Self {
        self.device = device;
        self
    }

    /// Threads; one for every core without.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// The instruction set, in place of the widest this machine has. It changes the speed and no
    /// weight's bits.
    pub fn simd(mut self, simd: SimdLevel) -> Self {
        self.simd = Some(simd);
        self
    }

    /// Space above every row's largest weight, as a factor from 1 to 1024 (default 1.25). More
    /// space holds larger deltas and makes the lattice coarser by the same factor. A store has its
    /// own: another is refused.
    pub fn headroom(mut self, headroom: f32) -> Self {
        self.headroom = Some(headroom);
        self
    }

    /// Bytes of compiled deltas kept in memory beside those that are applied or, in an engine, of
    /// requests that run (default 1 GiB). As many again may be those of an engine's requests that wait.
    pub fn delta_budget_bytes(mut self, bytes: usize) -> Self {
        self.budgets.host_bytes = bytes;
        self
    }

    /// Bytes of compiled deltas kept in a GPU's memory beside those that are applied or, in an
    /// engine, of requests that run (default 1 GiB).
    /// Those in excess stay in the host's memory, from where a switch uploads them.
    pub fn device_delta_budget_bytes(mut self, bytes: usize) -> Self {
        self.budgets.device_bytes = bytes;
        self
    }

    /// Limits on what an adapter's files may hold.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Loads the base once and stands at the root.
    ///
    /// # Errors
    /// When base or tree cannot be read or do not belong together.
    pub fn open(self) -> Result<Runtime> {
        self.open_with(|_, _| ())
    }

    /// Like [`Self::open`], which reports how many of how many weights are loaded.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(self, mut progress: impl FnMut(usize, usize) + Send) -> Result<Runtime> {
        let host = Cpu::with_simd(self.threads, self.simd.unwrap_or_else(SimdLevel::detect))?;
        #[cfg(feature = "gpu")]
        let gpu = open_gpu(self.device)?;
        let base = match self.base {
            Source::Path(path) => open_base(&path)?,
            Source::Model(model) => *model,
        };
        let nodes = match (self.nodes, &self.tree) {
            (Some(nodes), _) => nodes,
            (None, Some(path)) => Nodes::open(path)?,
            (None, None) => AdapterTree::builder().build()?.into(),
        };
        let limits = self.limits;
        let (nodes, headroom): (Box<dyn NodeSet>, f32) = match nodes {
            Nodes::Tree(tree) => {
                tree.base().map_or(Ok(()), |pin| pin.check(&base))?;
                tree.warn_of_refused();
                if let Some(conflict) = tree.conflicting_bases(&base, &limits) {
                    tracing::warn!("{conflict}");
                }
                (Box::new(TreeNodes::new(*tree)), self.headroom.unwrap_or(DEFAULT_HEADROOM))
            }
            Nodes::Store(store) => {
                store.check_base(&base)?;
                let headroom = store.check_headroom(self.headroom)?;
                (Box::new(StoreNodes::new(store)), headroom)
            }
        };
        let shared = Arc::new(Shared {
            shapes: shapes(&base),
            base,
            nodes,
            stale: self.stale,
            limits,
            headroom,
            host: host.clone(),
            given_tokenizer: self.tokenizer.map(|path| path.canonicalize().unwrap_or(path)),
            tokenizer: OnceLock::new(),
            chat: OnceLock::new(),
            grids: OnceLock::new(),
            compiled: Mutex::new(DeltaCache::new(self.budgets.host_bytes)),
            making: Making::default(),
        });
        let device_bytes = self.budgets.device_bytes;
        #[cfg(feature = "gpu")]
        let replica = match gpu {
            Some((gpu, or_cpu)) => {
                match DeviceReplica::load(shared.clone(), gpu, device_bytes, &mut progress) {
                    Ok(replica) => Some(Box::new(replica) as Box<dyn Replica>),
                    Err(
                        error @ (Error::DeviceMemory { .. }
                        | Error::DeviceLimit { .. }
                        | Error::DeviceFailed { .. }),
                    ) if or_cpu => {
                        tracing::warn!(
                            "the GPU does not hold the model, so the CPU computes: {error}"
                        );
                        None
                    }
                    Err(error) => return Err(error),
                }
            }
            None => None,
        };
        #[cfg(not(feature = "gpu"))]
        let replica: Option<Box<dyn Replica>> = None;
        let replica = match replica {
            Some(replica) => replica,
            None => {
                Box::new(DeviceReplica::load(shared.clone(), host, device_bytes, &mut progress)?)
            }
        };
        if let Some(store) = shared.nodes.store() {
            store.check_lattice(&shared.grids().lattice(headroom))?;
        }
        Ok(Runtime { shared, replica })
    }
}

/// The GPU that `device` means, if it means one, and whether the CPU would do as well.
#[cfg(feature = "gpu")]
fn open_gpu(device: DeviceChoice) -> Result<Option<(Gpu, bool)>> {
    match device {
        DeviceChoice::Cpu => Ok(None),
        DeviceChoice::Gpu(options) => Ok(Some((Gpu::open(&options)?, false))),
        DeviceChoice::Auto => {
            match Gpu::open(&GpuOptions { choice: GpuChoice::Hardware, ..GpuOptions::default() }) {
                Ok(gpu) => Ok(Some((gpu, true))),
                Err(Error::NoSuchDevice { .. }) => Ok(None),
                Err(error) => {
                    tracing::warn!("the GPU cannot be used, so the CPU computes: {error}");
                    Ok(None)
                }
            }
        }
    }
}

/// Opens a base: a Hugging Face folder, a GGUF file, or `hf:ORG/NAME[@revision]`, which is
/// downloaded first.
///
/// # Errors
/// As [`BaseModel::open`] and [`HubModel::fetch`](crate::file::hub::HubModel::fetch).
pub fn open_base(base: &Path) -> Result<BaseModel> {
    match base.to_str().and_then(|text| text.strip_prefix("hf:")) {
        Some(name) => BaseModel::open(&crate::file::hub::HubModel::parse(name)?.fetch()?),
        None => BaseModel::open(base),
    }
}

/// Names and shapes an adapter can land on; a tied head counts, since an adapter may target it.
pub fn shapes(base: &BaseModel) -> BaseShapes {
    let head = WeightName::new(HEAD);
    let embedding: Option<WeightInfo> =
        base.weights().find(|(name, _)| name.as_str() == EMBEDDING).map(|(_, info)| info.clone());
    let tied =
        embedding.as_ref().filter(|_| base.config().tie_word_embeddings).map(|info| (&head, info));
    BaseShapes::new(base.path().display().to_string(), base.weights().chain(tied))
}

impl Runtime {
    /// Starts to describe a runtime.
    ///
    /// ```no_run
    /// use pleach::Runtime;
    ///
    /// let mut runtime = Runtime::builder().base("SmolLM2-135M-Instruct.Q4_1.gguf").tree("trees/smollm2").open()?;
    /// let report = runtime.switch_to("fr/sysadmin/name-line/alice")?;
    /// println!("{} weights touched in {:.1} ms", report.touched_weights, report.total_ms);
    /// # Ok::<(), pleach::Error>(())
    /// ```
    pub fn builder() -> RuntimeBuilder {
        RuntimeBuilder {
            base: Source::Path(PathBuf::new()),
            tree: None,
            nodes: None,
            stale: StalePolicy::default(),
            tokenizer: None,
            device: DeviceChoice::default(),
            threads: None,
            simd: None,
            headroom: None,
            budgets: Budgets {
                host_bytes: DEFAULT_DELTA_BUDGET_BYTES,
                device_bytes: DEFAULT_DELTA_BUDGET_BYTES,
            },
            limits: Limits::default(),
        }
    }

    /// The node the weights stand at, such as `fr/sysadmin`; the root is `/`.
    pub fn current(&self) -> &str {
        self.replica.current().name()
    }

    /// The version the weights stand at.
    pub fn current_version(&self) -> &NodeVersion {
        self.replica.current()
    }

    /// Another copy of the weights on `device`, at the root, with everything shared that can be:
    /// base, nodes, compiled deltas, tokenizer. Each is switched on its own.
    ///
    /// # Errors
    /// When the base cannot be read any more, and what the device returns.
    pub fn replica(&self, device: DeviceChoice) -> Result<Self> {
        let shared = self.shared.clone();
        let device_bytes = DEFAULT_DELTA_BUDGET_BYTES;
        #[cfg(feature = "gpu")]
        if let Some((gpu, _)) = open_gpu(device)? {
            let replica = DeviceReplica::load(shared.clone(), gpu, device_bytes, |_, _| ())?;
            return Ok(Self { shared, replica: Box::new(replica) });
        }
        #[cfg(not(feature = "gpu"))]
        let _ = device;
        let replica =
            DeviceReplica::load(shared.clone(), shared.host.clone(), device_bytes, |_, _| ())?;
        Ok(Self { shared, replica: Box::new(replica) })
    }

    /// The tree, where the nodes are those of one.
    pub fn tree(&self) -> Option<&AdapterTree> {
        self.shared.nodes.tree()
    }

    /// The store, where the nodes are those of one.
    pub fn store(&self) -> Option<&Store> {
        self.shared.nodes.store()
    }

    /// Node versions in memory: of a tree all, of a store those that are applied, cached or held by
    /// somebody.
    pub fn held_versions(&self) -> usize {
        self.shared.nodes.held()
    }

    /// Names of the children of `node` in order, those after `after`, at most `limit`.
    ///
    /// # Errors
    /// An unknown node, and what reading a store returns.
    pub fn children(&self, node: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>> {
        self.shared.nodes.children(node, after, limit)
    }

    /// The base.
    pub fn base(&self) -> &BaseModel {
        &self.shared.base
    }

    /// The device the weights live on, for people.
    pub fn device(&self) -> String {
        self.replica.device()
    }

    /// The GPU the weights live on, if it is one.
    #[cfg(feature = "gpu")]
    pub fn gpu(&self) -> Option<&Gpu> {
        self.replica.gpu()
    }

    /// Names of all matrices; a tied head appears beside the embedding.
    pub fn matrix_names(&self) -> impl Iterator<Item = &WeightName> {
        self.shared.grids().names().map(|(name, _)| name)
    }

    /// A copy of a matrix as it now is: integers and steps.
    ///
    /// # Errors
    /// [`Error::NoSuchMatrix`], [`Error::Unusable`] after a pass that broke off, and what the
    /// device returns.
    pub fn matrix(&self, name: &WeightName) -> Result<LatticeMatrix> {
        self.replica.matrix(self.shared.matrix_id(name)?)
    }

    /// Whether embedding and head are one matrix.
    pub fn is_tied(&self) -> bool {
        self.replica.residence().is_tied
    }

    /// Weights in all matrices, a parted head counted.
    pub fn resident_parameters(&self) -> u64 {
        self.replica.residence().parameters
    }

    /// Bytes of all matrices as they are resident.
    pub fn resident_bytes(&self) -> u64 {
        self.replica.residence().bytes
    }

    /// What the cache of compiled deltas in the host's memory holds; all copies of the weights
    /// share it.
    pub fn cache_stats(&self) -> CacheStats {
        self.shared.compiled().stats()
    }

    /// What the cache of compiled deltas in a GPU's memory holds; nothing on the CPU.
    pub fn device_cache_stats(&self) -> CacheStats {
        self.replica.residence().uploaded
    }

    /// What the store holds and how much of it was read; `None` without a store.
    ///
    /// # Errors
    /// What reading the store's catalogue and folder returns.
    pub fn store_stats(&self) -> Result<Option<StoreStats>> {
        self.store().map(Store::stats).transpose()
    }

    /// BLAKE3 of the resident bits. Only matrices touched since the last call are hashed again.
    ///
    /// # Errors
    /// [`Error::Unusable`] after a pass that broke off, and what the device returns.
    pub fn fingerprint(&self) -> Result<blake3::Hash> {
        self.replica.fingerprint()
    }

    /// Connects to the device again, loads the weights again from the base and stands at the root:
    /// the way out of [`Error::Unusable`] and [`Error::DeviceFailed`].
    ///
    /// # Errors
    /// When the base cannot be read any more, or the device does not come back; the weights then
    /// stay unusable.
    pub fn restore(&mut self) -> Result<()> {
        self.replica.restore()
    }
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime")
            .field("base", &self.base().path())
            .field("device", &self.device())
            .field("current", &self.current())
            .finish_non_exhaustive()
    }
}
