//! Keys and values of the tokens already seen, for several sequences, and the room a forward pass
//! works in.
//!
//! **Invariant:** everything in the cache was computed with the weights its owner names; a forward
//! pass under another owner is refused, and claiming the cache for another owner empties it.

use crate::arch::ModelConfig;
use crate::device::{Compute, Heads};
use crate::{Error, Result};

/// Keys and values of every layer, in a fixed number of slots of fixed capacity.
pub struct KvCache<D: Compute> {
    pub(super) layers: Vec<D::KvLayer>,
    pub(super) lengths: Vec<usize>,
    pub(super) heads: Heads,
    pub(super) workspace: Option<super::transformer::Workspace<D>>,
    capacity: usize,
    owner: [u8; 32],
}

impl<D: Compute> KvCache<D> {
    /// Room for `slots` sequences of `capacity` tokens (at most the model's context), owned by the
    /// weights `owner`.
    ///
    /// # Errors
    /// When the size is 0 or cannot be addressed, or the device has no room.
    pub fn new(
        device: &D,
        config: &ModelConfig,
        slots: usize,
        capacity: usize,
        owner: [u8; 32],
    ) -> Result<Self> {
        let capacity = capacity.min(config.max_position_embeddings);
        let heads = super::transformer::heads(config);
        // Padding at most doubles a head and adds 16 positions; 2^40 values are 4 TiB.
        let values = [slots, capacity + 16, heads.kv_heads, 2 * heads.head_dim];
        let total = values.into_iter().try_fold(1usize, |total, n| total.checked_mul(n));
        if capacity == 0 || slots == 0 || total.is_none_or(|total| total > 1 << 40) {
            return Err(Error::CacheSize { slots, capacity });
        }
        let layers = (0..config.num_hidden_layers)
            .map(|_| device.alloc_kv(heads, slots, capacity))
            .collect::<Result<_>>()?;
        Ok(Self { layers, lengths: vec![0; slots], heads, workspace: None, capacity, owner })
    }

    /// Sequences there is room for.
    pub fn slots(&self) -> usize {
        self.lengths.len()
    }

    /// Tokens there is room for in each slot.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Tokens held in `slot`.
    pub fn len(&self, slot: usize) -> usize {
        self.lengths[slot]
    }

    /// Whether every slot is empty.
    pub fn is_empty(&self) -> bool {
        self.lengths.iter().all(|&len| len == 0)
    }

    /// Names the weights that made the contents, such as their fingerprint or a count of switches.
    pub fn owner(&self) -> [u8; 32] {
        self.owner
    }

    /// Makes `owner` the owner; the contents are dropped if it was another.
    pub fn claim(&mut self, owner: [u8; 32]) {
        if self.owner != owner {
            self.clear();
            self.owner = owner;
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.lengths.fill(0);
    }

    /// Drops one sequence.
    pub fn clear_slot(&mut self, slot: usize) {
        self.lengths[slot] = 0;
    }
}
