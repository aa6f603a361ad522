//! Attention and the pages it reads. Twin: `device/cpu/attention.rs`; shader `attention`.
//!
//! **Invariant:** a query's sums run over blocks of absolute positions in the same order whatever
//! else is computed beside it, whether one workgroup goes over them or many, and wherever the
//! sequence's pages lie.

use wgpu::BufferUsages;

use super::context::Slice;
use super::params::{AttentionParams, AttentionQuad};
use super::pipeline::Kernel;
use super::{Gpu, lock, word};
use crate::device::compute::{Attention, Heads, PAGE, Span};
use crate::{Error, Result};

/// Positions of a block, and invocations of its workgroup; whole pages.
const BLOCK: usize = 128;
/// Values in the longest head: those of four queries fill a workgroup's memory.
const LONGEST_HEAD: usize = 256;
/// Queries of a workgroup: one in each part of a vector.
const QUERIES: usize = 4;
/// Most bytes for what workgroups leave for `combine`.
const MOST_PARTIALS: u64 = 64 << 20;
/// The positions of a query are shared out where fewer workgroups than this would be at work.
const BUSY: usize = 512;

/// Keys and values of one layer.
pub struct GpuKvLayer {
    pub(super) heads: Heads,
    /// `[page][kv_head][head_dim / 4][PAGE]`, four dimensions each, the head padded with zeros.
    pub(super) keys: wgpu::Buffer,
    /// `[page][kv_head][PAGE][head_dim / 4]`, likewise.
    pub(super) values: wgpu::Buffer,
    partials: wgpu::Buffer,
}

/// Bytes that `quads` leave for `combine` when each is shared out over `parts` workgroups.
fn partials_bytes(heads: Heads, quads: usize, parts: usize) -> u64 {
    (quads * heads.kv_heads * parts * QUERIES * (heads.head_dim.div_ceil(4) + 1) * 16) as u64
}

impl GpuKvLayer {
    pub(super) fn new(gpu: &Gpu, heads: Heads, pages: usize) -> Result<Self> {
        let context = &gpu.context;
        if heads.head_dim > LONGEST_HEAD {
            let (bytes, limit) = (heads.head_dim as u64 * 4, LONGEST_HEAD as u64 * 4);
            return Err(Error::DeviceLimit {
                what: "a head of attention".to_owned(),
                bytes,
                limit,
            });
        }
        let bytes = pages as u64 * Self::page_bytes(heads);
        let keys = context.bound_buffer("the keys of one layer", bytes, BufferUsages::STORAGE)?;
        let values =
            context.bound_buffer("the values of one layer", bytes, BufferUsages::STORAGE)?;
        // Enough for a token each of as many sequences as share the pages out evenly, but where
        // that is out of proportion: those go over their positions one after another.
        let quads = (heads.heads / heads.kv_heads).div_ceil(QUERIES);
        let limit = context.device.limits().max_storage_buffer_binding_size;
        let wanted = partials_bytes(heads, quads, pages).min(limit).min(MOST_PARTIALS);
        let mut partials = lock(&gpu.partials);
        let partials = match &*partials {
            Some(there) if there.size() >= wanted => there.clone(),
            _ => partials
                .insert(context.bound_buffer("partial sums", wanted, BufferUsages::STORAGE)?)
                .clone(),
        };
        Ok(Self { heads, keys, values, partials })
    }

    /// Bytes of a page's keys, and of its values.
    pub(super) fn page_bytes(heads: Heads) -> u64 {
        (heads.kv_heads * PAGE * heads.head_dim.div_ceil(4) * 16) as u64
    }
}

/// The quads of every span, whose pages lie one after another from word `pages` on, and the most
/// blocks that one of them goes over.
fn quads(
    spans: &[Span],
    mut pages: u32,
    group: usize,
    window: Option<usize>,
) -> (Vec<AttentionQuad>, usize) {
    let (mut quads, mut blocks) = (Vec::new(), 0);
    for Span { rows, past, pages: of_span } in spans {
        let count = rows.len() * group;
        for first in (0..count).step_by(QUERIES) {
            quads.push(AttentionQuad {
                pages,
                past: word(*past),
                row: word(rows.start),
                first: word(first),
                end: word(count),
            });
            let lowest = past + first / group + 1;
            let lowest = lowest - window.map_or(lowest, |window| window.min(lowest));
            let highest = past + (first + QUERIES).min(count).div_ceil(group) - 1;
            blocks = blocks.max(highest / BLOCK - lowest / BLOCK + 1);
        }
        pages += word(of_span.len());
    }
    (quads, blocks)
}

impl Gpu {
    /// [`crate::device::Compute::attention`].
    pub(super) fn attend(&self, attention: Attention<'_, Self>, spans: &[Span]) {
        let Attention { queries, cache, heads, scale, soft_cap, window, out } = attention;
        assert_eq!(cache.heads, heads, "a cache of other heads");
        let context = &self.context;
        let mut pending = self.pending();
        let table: Vec<u32> = spans.iter().flat_map(|span| &span.pages).copied().collect();
        let table = pending.shared_records(&table);
        let (quads, blocks) = quads(spans, table, heads.heads / heads.kv_heads, window);
        let workgroups = quads.len() * heads.kv_heads;
        let shared_out = workgroups < BUSY
            && partials_bytes(heads, quads.len(), blocks) <= cache.partials.size();
        let parts = if shared_out { blocks } else { 1 };

        let params = AttentionParams {
            first_quad: pending.shared_records(&quads),
            quads: word(quads.len()),
            parts: word(parts),
            heads: word(heads.heads),
            kv_heads: word(heads.kv_heads),
            head_dim: word(heads.head_dim),
            window: window.map_or(u32::MAX, |window| u32::try_from(window).unwrap_or(u32::MAX)),
            scale,
            soft_cap: soft_cap.unwrap_or_default(),
        };
        let buffers = [
            queries.slice(),
            Slice::whole(&cache.keys),
            Slice::whole(&cache.values),
            Slice::whole(&cache.partials),
            out.slice(),
        ];
        let kernel = Kernel::new("attention")
            .constant("THREADS", word(BLOCK))
            .constant("PAGE", word(PAGE))
            .constant("LONGEST_HEAD", word(LONGEST_HEAD))
            .constant("SOFT_CAP", soft_cap.is_some().into());
        let grid = context.workgroups(workgroups * parts);
        pending.dispatch(context, &kernel, buffers.clone(), &params, grid);
        if parts > 1 {
            let grid = context.workgroups(workgroups);
            pending.dispatch(context, &kernel.entry("combine"), buffers, &params, grid);
        }
    }
}
