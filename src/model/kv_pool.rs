//! Keys and values of the tokens already seen, in pages that many sequences share out among them,
//! and the memory a forward pass works in.
//!
//! **Invariant:** what the pages of a table hold was computed with the weights its owner names; a
//! forward pass under another owner is refused.

use super::kv_pages::KvPages;
use crate::arch::ModelConfig;
use crate::device::{Compute, Heads, PAGE};
use crate::{Error, Result};

/// Where a pool is too large to be addressed: 4 TiB.
const MOST_BYTES: u64 = 1 << 42;

/// A fixed number of pages of keys and values, each of all layers.
pub struct KvPool<D: Compute> {
    pub(super) layers: Vec<D::KvLayer>,
    pub(super) heads: Heads,
    pub(super) workspace: Option<super::transformer::Workspace<D>>,
    pub(super) pages: KvPages,
}

impl<D: Compute> KvPool<D> {
    /// As many pages as `bytes` hold, all allocated at once.
    ///
    /// # Errors
    /// [`Error::CacheSize`] when that is none or more than can be addressed; when the device has no
    /// memory, or cannot bind the pages of one layer at once.
    pub fn new(device: &D, config: &ModelConfig, bytes: u64) -> Result<Self> {
        let heads = super::transformer::heads(config);
        let page_bytes = page_bytes(device, config);
        let pages = bytes / page_bytes.max(1);
        if pages == 0 || bytes >= MOST_BYTES || u32::try_from(pages).is_err() {
            let most = MOST_BYTES.min(page_bytes.saturating_mul(1 << 32));
            return Err(Error::CacheSize { bytes, page_bytes, most });
        }
        let pages =
            usize::try_from(pages).map_err(|_| Error::DeviceMemory { bytes: usize::MAX })?;
        let layers = (0..config.num_hidden_layers)
            .map(|_| device.alloc_kv(heads, pages))
            .collect::<Result<_>>()?;
        Ok(Self { layers, heads, workspace: None, pages: KvPages::new(pages) })
    }

    /// Pages enough for `tokens` tokens of one sequence.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn for_tokens(device: &D, config: &ModelConfig, tokens: usize) -> Result<Self> {
        let pages = tokens.div_ceil(PAGE) as u64;
        Self::new(device, config, pages.saturating_mul(page_bytes(device, config)))
    }

    /// Which sequence holds which pages.
    pub fn pages(&self) -> &KvPages {
        &self.pages
    }

    /// The same, to open and release tables.
    pub fn pages_mut(&mut self) -> &mut KvPages {
        &mut self.pages
    }
}

/// Bytes of one page of all layers.
fn page_bytes<D: Compute>(device: &D, config: &ModelConfig) -> u64 {
    let layer = device.kv_page_bytes(super::transformer::heads(config));
    layer.saturating_mul(config.num_hidden_layers as u64)
}
