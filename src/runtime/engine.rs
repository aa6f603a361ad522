//! What all copies of the weights share: the base, the nodes, the compiled deltas, tokenizer and
//! chat templates.
//!
//! **Invariant:** a node version is compiled once, however many copies it is added to.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::SwitchReport;
use crate::adapter::{BaseShapes, Limits};
use crate::base::BaseModel;
use crate::compile::{compile_node, quantise_weight};
use crate::device::cpu::Cpu;
use crate::lattice::{Grid, LatticeMatrix, NodeDeltas};
use crate::model::{chat::ChatTemplate, tokenizer::Tokenizer};
use crate::nodes::{DeltaCache, Deltas, NodeSet, NodeVersion, Reading, StalePolicy};
use crate::weights::{EMBEDDING, HEAD, MatrixGrids, MatrixId};
use crate::{Error, Result, WeightName};

/// A base with its nodes, shared by every copy of the weights.
pub(super) struct Engine {
    pub(super) base: BaseModel,
    pub(super) shapes: BaseShapes,
    pub(super) nodes: Box<dyn NodeSet>,
    pub(super) stale: StalePolicy,
    pub(super) limits: Limits,
    pub(super) headroom: f32,
    /// The CPU, for what the host does whatever the device.
    pub(super) host: Cpu,
    /// What was given in place of the base's tokenizer and chat templates: a file or a folder.
    pub(super) given_tokenizer: Option<PathBuf>,
    pub(super) tokenizer: OnceLock<Tokenizer>,
    pub(super) chat: OnceLock<ChatTemplate>,
    /// Set by the copy that is loaded first.
    pub(super) grids: OnceLock<Arc<MatrixGrids>>,
    pub(super) compiled: Mutex<DeltaCache<NodeDeltas>>,
}

impl Engine {
    /// The cache of compiled deltas.
    pub(super) fn compiled(&self) -> MutexGuard<'_, DeltaCache<NodeDeltas>> {
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The base's matrices.
    pub(super) fn grids(&self) -> &Arc<MatrixGrids> {
        self.grids.get().expect("a copy of the weights was loaded")
    }

    /// What adapters are read against.
    pub(super) fn reading(&self) -> Reading<'_> {
        let Self { base, shapes, limits, given_tokenizer, .. } = self;
        Reading { base, shapes, limits, tokenizer: given_tokenizer.as_deref() }
    }

    /// A version's deltas, read and compiled if they are not at hand.
    pub(super) fn deltas(
        &self,
        version: &NodeVersion,
        report: &mut SwitchReport,
    ) -> Result<Arc<NodeDeltas>> {
        // Held while it compiles: who needs the same deltas waits for them.
        let mut cache = self.compiled();
        if !cache.contains(version) {
            report.compiled.push(version.name().into());
        }
        cache.get(version, || {
            let deltas = match self.nodes.read(version, &self.reading())? {
                Deltas::Compiled(node) => self.grids().place(node)?,
                Deltas::Float(float) => {
                    let grids = self.grids();
                    let compile = || compile_node(&float, |name| Some(grids.grid(grids.id(name)?)));
                    let (node, kept) = self
                        .host
                        .install(compile)
                        .map_err(|error| error.at_node(version.name()))?;
                    report
                        .kept
                        .extend(kept.share().map(|share| (version.name().to_owned(), share)));
                    if kept.is_low() && version.warns_of_kept() {
                        tracing::warn!("{}: {}", version.name(), kept.warning(false));
                    }
                    grids.place(node)?
                }
            };
            let bytes = deltas.bytes();
            Ok((Arc::new(deltas), bytes))
        })
    }

    /// A matrix of the base, read again; a tied head is the embedding.
    pub(super) fn fresh_matrix(&self, name: &WeightName) -> Result<(LatticeMatrix, Grid)> {
        let tied = self.base.config().tie_word_embeddings && name.as_str() == HEAD;
        let source = if tied { &WeightName::new(EMBEDDING) } else { name };
        self.host.install(|| quantise_weight(&self.base, source, self.headroom))
    }

    /// The tokenizer of the base, or what was given in its place; read on first use.
    pub(super) fn tokenizer(&self) -> Result<&Tokenizer> {
        if let Some(tokenizer) = self.tokenizer.get() {
            return Ok(tokenizer);
        }
        let mut given = self.given_tokenizer.as_deref();
        if let Some(folder) = given.filter(|path| path.is_dir())
            && !Tokenizer::lies_in(folder)
            && ChatTemplate::in_folder(folder, &self.base)?.is_some()
        {
            given = None;
        }
        let tokenizer = Tokenizer::for_base(&self.base, given)?;
        Ok(self.tokenizer.get_or_init(|| tokenizer))
    }

    /// The chat templates of the base, or those of what was given in its place; read on first use.
    pub(super) fn chat(&self) -> Result<&ChatTemplate> {
        if let Some(templates) = self.chat.get() {
            return Ok(templates);
        }
        let folder = self.given_tokenizer.as_deref().filter(|path| path.is_dir());
        let own = folder.map_or(Ok(None), |folder| ChatTemplate::in_folder(folder, &self.base))?;
        let templates = own.map_or_else(|| ChatTemplate::for_base(&self.base), Ok)?;
        Ok(self.chat.get_or_init(|| templates))
    }

    /// Id of the matrix called `name`.
    pub(super) fn matrix_id(&self, name: &WeightName) -> Result<MatrixId> {
        self.grids().id(name).ok_or_else(|| Error::NoSuchMatrix { weight: name.clone() })
    }
}
