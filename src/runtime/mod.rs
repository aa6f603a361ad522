//! The public face: one base, one tree, one live copy of the weights, moved from node to node.
//!
//! **Invariant:** [`Runtime::switch_to`] takes `&mut self` and everything that reads the weights takes `&self`: no
//! half-switched model can be read.
//! **Invariant:** a switch that returns an error left node and weights as they were, or says that they are unusable.

mod measure;
mod switch;
#[cfg(test)]
mod tests;
mod text;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub use measure::{Measured, median};
pub use switch::SwitchReport;
pub use text::{Generation, NextToken, Prompt, Scores};
pub use verify::VerifyReport;

use crate::adapter::{BaseShapes, Limits, PeftAdapter};
use crate::base::{BaseModel, WeightInfo};
use crate::device::Device;
use crate::device::cpu::{Cpu, SimdLevel};
use crate::lattice::{DEFAULT_HEADROOM, NodeDeltas};
use crate::model::{Llama, chat::ChatTemplate, tokenizer::Tokenizer};
use crate::store::{CacheStats, DeltaCache};
use crate::tree::{AdapterTree, NodeId, NodeSource};
use crate::weights::{EMBEDDING, HEAD, Weights};
use crate::{Error, Result, WeightName};

/// Bytes of compiled deltas kept beside the applied ones.
pub const DEFAULT_DELTA_BUDGET_BYTES: usize = 1 << 30;

/// A base model with a tree of adapters, live at one node.
pub struct Runtime {
    base: BaseModel,
    shapes: BaseShapes,
    tree: AdapterTree,
    device: Cpu,
    weights: Weights<Cpu>,
    model: Llama,
    cache: DeltaCache<NodeDeltas>,
    limits: Limits,
    headroom: f32,
    current: NodeId,
    /// Counts switches: a cache of keys and values belongs to one generation.
    generation: u64,
    tokenizer_file: Option<PathBuf>,
    tokenizer: OnceLock<Tokenizer>,
    chat: OnceLock<ChatTemplate>,
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
    adapter_tree: Option<AdapterTree>,
    tokenizer: Option<PathBuf>,
    threads: Option<usize>,
    simd: Option<SimdLevel>,
    headroom: f32,
    delta_budget_bytes: usize,
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

    /// The folder of adapters. Without one the tree is the root alone.
    pub fn tree(mut self, path: impl Into<PathBuf>) -> Self {
        self.tree = Some(path.into());
        self
    }

    /// A tree made in memory, in place of a folder.
    pub fn adapter_tree(mut self, tree: AdapterTree) -> Self {
        self.adapter_tree = Some(tree);
        self
    }

    /// A `tokenizer.json` in place of the base's own.
    pub fn tokenizer(mut self, path: impl Into<PathBuf>) -> Self {
        self.tokenizer = Some(path.into());
        self
    }

    /// Threads; one for every core without.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// The instruction set, in place of the widest this machine has. It changes the speed and no weight's bits.
    pub fn simd(mut self, simd: SimdLevel) -> Self {
        self.simd = Some(simd);
        self
    }

    /// Room above every row's largest weight, as a factor from 1 to 1024 (default 1.25). More room holds larger deltas and
    /// makes the lattice coarser by the same factor.
    pub fn headroom(mut self, headroom: f32) -> Self {
        self.headroom = headroom;
        self
    }

    /// Bytes of compiled deltas kept beside the applied ones (default 1 GiB).
    pub fn delta_budget_bytes(mut self, bytes: usize) -> Self {
        self.delta_budget_bytes = bytes;
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

    /// Like [`Self::open`], told how many of how many weights are loaded.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(self, progress: impl FnMut(usize, usize) + Send) -> Result<Runtime> {
        let device = Cpu::with_simd(self.threads, self.simd.unwrap_or_else(SimdLevel::detect))?;
        let base = match self.base {
            Source::Path(path) => open_base(&path)?,
            Source::Model(model) => *model,
        };
        let tree = match (self.adapter_tree, &self.tree) {
            (Some(tree), _) => tree,
            (None, Some(folder)) => AdapterTree::open(folder)?,
            (None, None) => AdapterTree::builder().build()?,
        };
        if let Some(pin) = tree.base().and_then(|pin| pin.blake3.as_deref()) {
            let found = base.content_hash();
            if !pin.eq_ignore_ascii_case(found) {
                return Err(Error::WrongBase {
                    base: base.path().into(),
                    expected: pin.to_owned(),
                    found: found.to_owned(),
                });
            }
        }
        let weights = device.install(|| Weights::load(&base, &device, self.headroom, progress))?;
        let model = Llama::bind(&device, base.config(), &weights)?;
        Ok(Runtime {
            shapes: shapes(&base),
            current: tree.root(),
            cache: DeltaCache::new(self.delta_budget_bytes),
            base,
            tree,
            device,
            weights,
            model,
            limits: self.limits,
            headroom: self.headroom,
            generation: 0,
            tokenizer_file: self.tokenizer,
            tokenizer: OnceLock::new(),
            chat: OnceLock::new(),
        })
    }
}

/// Opens a base: a Hugging Face folder, a GGUF file, or `hf:ORG/NAME[@revision]`, which is downloaded first.
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
    let tied = embedding.as_ref().filter(|_| base.config().tie_word_embeddings).map(|info| (&head, info));
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
            adapter_tree: None,
            tokenizer: None,
            threads: None,
            simd: None,
            headroom: DEFAULT_HEADROOM,
            delta_budget_bytes: DEFAULT_DELTA_BUDGET_BYTES,
            limits: Limits::default(),
        }
    }

    /// The node the weights stand at, such as `fr/sysadmin`; the root is `/`.
    pub fn current(&self) -> &str {
        self.tree.name(self.current)
    }

    /// The tree.
    pub fn tree(&self) -> &AdapterTree {
        &self.tree
    }

    /// The base.
    pub fn base(&self) -> &BaseModel {
        &self.base
    }

    /// The device the weights live on.
    pub fn device(&self) -> &Cpu {
        &self.device
    }

    /// The live weights.
    pub fn weights(&self) -> &Weights<Cpu> {
        &self.weights
    }

    /// The forward pass over them.
    pub fn model(&self) -> &Llama {
        &self.model
    }

    /// What the cache of compiled deltas holds.
    pub fn cache_stats(&self) -> CacheStats {
        self.cache.stats()
    }

    /// BLAKE3 of the resident bits. Only matrices touched since the last call are hashed anew.
    ///
    /// # Errors
    /// [`Error::Unusable`] after a pass that broke off, and what the device returns.
    pub fn fingerprint(&self) -> Result<blake3::Hash> {
        self.usable()?;
        self.weights.fingerprint(&self.device)
    }

    /// Loads the weights anew from the base and stands at the root: the way out of [`Error::Unusable`].
    ///
    /// # Errors
    /// When the base cannot be read any more.
    pub fn restore(&mut self) -> Result<()> {
        let Self { base, device, headroom, .. } = self;
        self.weights = device.install(|| Weights::load(base, device, *headroom, |_, _| ()))?;
        self.model = Llama::bind(&self.device, self.base.config(), &self.weights)?;
        self.cache.clear();
        self.current = self.tree.root();
        self.generation += 1;
        Ok(())
    }

    fn usable(&self) -> Result<()> {
        if self.weights.is_usable() { Ok(()) } else { Err(Error::Unusable) }
    }

    /// A node's float deltas, read from where the tree says, checked against the base.
    fn float_deltas(&self, node: NodeId) -> Result<std::sync::Arc<crate::adapter::AdapterDeltas>> {
        match self.tree.source(node) {
            None => Ok(std::sync::Arc::default()),
            Some(NodeSource::Memory(deltas)) => Ok(deltas.clone()),
            Some(NodeSource::Folder(dir)) => {
                let adapter = PeftAdapter::open(dir, &self.limits)?;
                adapter.check_copies(&self.base)?;
                Ok(std::sync::Arc::new(adapter.deltas(&self.shapes)?))
            }
        }
    }
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime")
            .field("base", &self.base.path())
            .field("device", &self.device.describe())
            .field("current", &self.current())
            .finish_non_exhaustive()
    }
}
