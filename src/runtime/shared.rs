//! What all copies of the weights share: the base, the nodes, the compiled deltas, tokenizer and
//! chat templates.
//!
//! **Invariant:** a node version is compiled once, however many copies it is added to.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

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
pub(crate) struct Shared {
    pub(crate) base: BaseModel,
    pub(crate) shapes: BaseShapes,
    pub(crate) nodes: Box<dyn NodeSet>,
    pub(crate) stale: StalePolicy,
    pub(crate) limits: Limits,
    pub(crate) headroom: f32,
    /// The CPU, for what the host does whatever the device.
    pub(crate) host: Cpu,
    /// What was given in place of the base's tokenizer and chat templates: a file or a folder.
    pub(crate) given_tokenizer: Option<PathBuf>,
    pub(crate) tokenizer: OnceLock<Tokenizer>,
    pub(crate) chat: OnceLock<ChatTemplate>,
    /// Set by the copy that is loaded first.
    pub(crate) grids: OnceLock<Arc<MatrixGrids>>,
    pub(crate) compiled: Mutex<DeltaCache<NodeDeltas>>,
    pub(crate) making: Making,
}

/// The versions whose deltas somebody is making.
#[derive(Default)]
pub(crate) struct Making {
    versions: Mutex<HashSet<NodeVersion>>,
    one_less: Condvar,
}

/// Leave to make one version's deltas, which nobody else has.
struct Maker<'a> {
    making: &'a Making,
    version: NodeVersion,
}

impl Making {
    fn versions(&self) -> MutexGuard<'_, HashSet<NodeVersion>> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody else makes the version's deltas.
    fn enter(&self, version: &NodeVersion) -> Maker<'_> {
        let mut versions = self.versions();
        while !versions.insert(version.clone()) {
            versions = self.one_less.wait(versions).unwrap_or_else(PoisonError::into_inner);
        }
        Maker { making: self, version: version.clone() }
    }
}

impl Drop for Maker<'_> {
    fn drop(&mut self) {
        self.making.versions().remove(&self.version);
        self.making.one_less.notify_all();
    }
}

impl Shared {
    /// The cache of compiled deltas.
    pub(crate) fn compiled(&self) -> MutexGuard<'_, DeltaCache<NodeDeltas>> {
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The base's matrices.
    pub(crate) fn grids(&self) -> &Arc<MatrixGrids> {
        self.grids.get().expect("a copy of the weights was loaded")
    }

    /// What adapters are read against.
    pub(crate) fn reading(&self) -> Reading<'_> {
        let Self { base, shapes, limits, given_tokenizer, .. } = self;
        Reading { base, shapes, limits, tokenizer: given_tokenizer.as_deref() }
    }

    /// A version's deltas, read and compiled, by the threads of `host`, if they are not at hand. The
    /// cache is free meanwhile for those who need other deltas; who needs the same waits for them.
    pub(crate) fn deltas(
        &self,
        version: &NodeVersion,
        host: &Cpu,
        report: &mut SwitchReport,
    ) -> Result<Arc<NodeDeltas>> {
        // Who finds them waits for nobody.
        if let Some(deltas) = self.compiled().find(version) {
            return Ok(deltas);
        }
        let _making = self.making.enter(version);
        if let Some(deltas) = self.compiled().find(version) {
            return Ok(deltas);
        }
        report.compiled.push(version.name().into());
        let deltas = Arc::new(self.make_deltas(version, host, report)?);
        Ok(self.put_back(version, deltas))
    }

    /// The deltas of a version's path, if all of them are in memory.
    pub(crate) fn loaded(&self, version: &NodeVersion) -> Option<Vec<Arc<NodeDeltas>>> {
        let mut compiled = self.compiled();
        version.path().iter().map(|version| compiled.find(version)).collect()
    }

    /// Puts a version's deltas into the cache, unless they are there: those that are from now on.
    pub(crate) fn put_back(
        &self,
        version: &NodeVersion,
        deltas: Arc<NodeDeltas>,
    ) -> Arc<NodeDeltas> {
        let bytes = deltas.bytes();
        let there = self.compiled().get(version, || Ok((deltas, bytes)));
        there.expect("nothing is made here")
    }

    fn make_deltas(
        &self,
        version: &NodeVersion,
        host: &Cpu,
        report: &mut SwitchReport,
    ) -> Result<NodeDeltas> {
        let grids = self.grids();
        let float = match self.nodes.read(version, &self.reading())? {
            Deltas::Compiled(node) => return grids.place(node),
            Deltas::Float(float) => float,
        };
        let compile = || compile_node(&float, |name| Some(grids.grid(grids.id(name)?)));
        let compiled = host.install(compile);
        let (node, kept) = compiled.map_err(|error| error.at_node(version.name()))?;
        report.kept.extend(kept.share().map(|share| (version.name().to_owned(), share)));
        if kept.is_low() && version.warns_of_kept() {
            tracing::warn!("{}: {}", version.name(), kept.warning(false));
        }
        grids.place(node)
    }

    /// A matrix of the base, read again; a tied head is the embedding.
    pub(crate) fn fresh_matrix(&self, name: &WeightName) -> Result<(LatticeMatrix, Grid)> {
        let tied = self.base.config().tie_word_embeddings && name.as_str() == HEAD;
        let source = if tied { &WeightName::new(EMBEDDING) } else { name };
        self.host.install(|| quantise_weight(&self.base, source, self.headroom))
    }

    /// The tokenizer of the base, or what was given in its place; read on first use.
    pub(crate) fn tokenizer(&self) -> Result<&Tokenizer> {
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
    pub(crate) fn chat(&self) -> Result<&ChatTemplate> {
        if let Some(templates) = self.chat.get() {
            return Ok(templates);
        }
        let folder = self.given_tokenizer.as_deref().filter(|path| path.is_dir());
        let own = folder.map_or(Ok(None), |folder| ChatTemplate::in_folder(folder, &self.base))?;
        let templates = own.map_or_else(|| ChatTemplate::for_base(&self.base), Ok)?;
        Ok(self.chat.get_or_init(|| templates))
    }

    /// Id of the matrix called `name`.
    pub(crate) fn matrix_id(&self, name: &WeightName) -> Result<MatrixId> {
        self.grids().id(name).ok_or_else(|| Error::NoSuchMatrix { weight: name.clone() })
    }
}
