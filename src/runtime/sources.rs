//! Where weights and deltas come from: read-only, whatever the device.

use std::sync::Arc;

use crate::Result;
use crate::adapter::{AdapterDeltas, BaseShapes, Limits, PeftAdapter};
use crate::base::BaseModel;
use crate::lattice::{Grid, LatticeMatrix};
use crate::tree::{AdapterTree, NodeId, NodeSource};
use crate::weights::{EMBEDDING, HEAD, quantise_weight};
use crate::{WeightName, device::cpu::Cpu};

/// The base, the tree, and how they are read.
pub(super) struct Sources {
    pub(super) base: BaseModel,
    pub(super) shapes: BaseShapes,
    pub(super) tree: AdapterTree,
    pub(super) limits: Limits,
    pub(super) headroom: f32,
}

impl Sources {
    /// A node's float deltas, read from where the tree says, checked against the base.
    pub(super) fn float_deltas(&self, node: NodeId) -> Result<Arc<AdapterDeltas>> {
        match self.tree.source(node) {
            None => Ok(Arc::default()),
            Some(NodeSource::Memory(deltas)) => Ok(deltas.clone()),
            Some(NodeSource::Folder(dir)) => {
                let adapter = PeftAdapter::open(dir, &self.limits)?;
                adapter.check_copies(&self.base)?;
                Ok(Arc::new(adapter.deltas(&self.shapes)?))
            }
        }
    }

    /// A matrix of the base, read anew; a tied head is the embedding.
    pub(super) fn fresh_matrix(&self, name: &WeightName, host: &Cpu) -> Result<(LatticeMatrix, Grid)> {
        let tied = self.base.config().tie_word_embeddings && name.as_str() == HEAD;
        let source = if tied { &WeightName::new(EMBEDDING) } else { name };
        host.install(|| quantise_weight(&self.base, source, self.headroom))
    }
}
