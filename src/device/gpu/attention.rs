//! Attention and its cache. Twin: `device/cpu/attention.rs`; shaders `rotate_append` and
//! `attention`.
//!
//! **Invariant:** a query's sums run over blocks of absolute positions in the same order whatever
//! else is computed beside it, and whether one workgroup goes over them or many.

use wgpu::BufferUsages;

use super::context::Slice;
use super::params::{AttentionParams, RotateAppendParams};
use super::pipeline::Kernel;
use super::{Gpu, lock, word};
use crate::device::compute::{Attention, Heads, Span};
use crate::{Error, Result};

/// Positions whose keys lie side by side.
const LANES: usize = 32;
/// Positions of a block.
const BLOCK: usize = 128;
/// Values in the longest head: those of four queries fill a workgroup's memory.
const LONGEST_HEAD: usize = 256;
/// Queries of a workgroup.
const QUERIES: usize = 4;
/// The positions of a query are shared out where fewer workgroups than this would be at work.
const BUSY: usize = 512;

/// Keys and values of one layer.
pub struct GpuKvLayer {
    heads: Heads,
    /// Positions a slot can hold, a multiple of 32.
    capacity: usize,
    /// `[slot][kv_head][position / 32][head_dim / 4][32]`, four dimensions each, the head padded
    /// with zeros.
    keys: wgpu::Buffer,
    /// `[slot][kv_head][position][head_dim / 4]`, likewise.
    values: wgpu::Buffer,
    partials: wgpu::Buffer,
}

/// Bytes that `quads` leave for `combine` when each is shared out over `parts` workgroups.
fn partials_bytes(heads: Heads, quads: usize, parts: usize) -> u64 {
    (quads * heads.kv_heads * parts * QUERIES * (heads.head_dim.div_ceil(4) + 1) * 16) as u64
}

impl GpuKvLayer {
    pub(super) fn new(gpu: &Gpu, heads: Heads, slots: usize, capacity: usize) -> Result<Self> {
        let context = &gpu.context;
        if heads.head_dim > LONGEST_HEAD {
            let (bytes, limit) = (heads.head_dim as u64 * 4, LONGEST_HEAD as u64 * 4);
            return Err(Error::DeviceLimit {
                what: "a head of attention".to_owned(),
                bytes,
                limit,
            });
        }
        let capacity = capacity.next_multiple_of(LANES);
        let bytes =
            (slots * heads.kv_heads * capacity) as u64 * heads.head_dim.div_ceil(4) as u64 * 16;
        let keys = context.bound_buffer("the keys of one layer", bytes, BufferUsages::STORAGE)?;
        let values =
            context.bound_buffer("the values of one layer", bytes, BufferUsages::STORAGE)?;
        // Enough for a token of every slot at the end of its context.
        let quads = slots * (heads.heads / heads.kv_heads).div_ceil(QUERIES);
        let limit = context.device.limits().max_storage_buffer_binding_size;
        let wanted = partials_bytes(heads, quads, capacity.div_ceil(BLOCK)).min(limit);
        let mut partials = lock(&gpu.partials);
        let partials = match &*partials {
            Some(there) if there.size() >= wanted => there.clone(),
            _ => partials
                .insert(context.bound_buffer("partial sums", wanted, BufferUsages::STORAGE)?)
                .clone(),
        };
        Ok(Self { heads, capacity, keys, values, partials })
    }
}

impl Gpu {
    /// [`crate::device::Compute::attention`].
    pub(super) fn attend(&self, attention: Attention<'_, Self>, spans: &[Span]) {
        let Attention { queries, keys, values, angles, cache, heads, window, out } = attention;
        assert_eq!(cache.heads, heads, "a cache of other heads");
        let Heads { heads: query_heads, kv_heads, head_dim } = heads;
        let group = query_heads / kv_heads;
        let rows = spans.last().map_or(0, |span| span.rows.end);
        let context = &self.context;

        // Slot and position of every row, then the quads.
        let mut words = vec![0; 2 * rows];
        let mut blocks = 0;
        for Span { slot, rows, past } in spans {
            for (position, row) in (*past..).zip(rows.clone()) {
                words[2 * row..][..2].copy_from_slice(&[word(*slot), word(position)]);
            }
            let count = rows.len() * group;
            for first in (0..count).step_by(QUERIES) {
                words.extend([*slot, *past, rows.start, first, count].map(word));
                let lowest = past + first / group + 1;
                let lowest = lowest - window.map_or(lowest, |window| window.min(lowest));
                let highest = past + (first + QUERIES).min(count).div_ceil(group) - 1;
                blocks = blocks.max(highest / BLOCK - lowest / BLOCK + 1);
            }
        }
        let quads = (words.len() - 2 * rows) / 5;
        let workgroups = quads * kv_heads;
        let shared_out =
            workgroups < BUSY && partials_bytes(heads, quads, blocks) <= cache.partials.size();
        let parts = if shared_out { blocks } else { 1 };

        let mut pending = self.pending();
        let at = pending.shared_words(&words);
        let rotate_append = RotateAppendParams {
            words: at,
            rows: word(rows),
            heads: word(query_heads),
            kv_heads: word(kv_heads),
            head_dim: word(head_dim),
            capacity: word(cache.capacity),
        };
        let (k, v) = (Slice::whole(&cache.keys), Slice::whole(&cache.values));
        let buffers =
            [queries.slice(), keys.slice(), values.slice(), angles.slice(), k.clone(), v.clone()];
        let items = rows * (query_heads * head_dim / 2 + 2 * kv_heads * head_dim.div_ceil(4));
        let grid = context.workgroups(items.div_ceil(64));
        pending.dispatch(context, &Kernel::new("rotate_append"), buffers, &rotate_append, grid);

        #[allow(clippy::cast_precision_loss, reason = "a head has at most 256 values")]
        let scale = 1.0 / (head_dim as f32).sqrt();
        let attend = AttentionParams {
            words: at + word(2 * rows),
            quads: word(quads),
            parts: word(parts),
            heads: word(query_heads),
            kv_heads: word(kv_heads),
            head_dim: word(head_dim),
            capacity: word(cache.capacity),
            window: window.map_or(u32::MAX, |window| u32::try_from(window).unwrap_or(u32::MAX)),
            scale,
        };
        let buffers = [queries.slice(), k, v, Slice::whole(&cache.partials), out.slice()];
        let kernel = Kernel::new("attention");
        pending.dispatch(
            context,
            &kernel,
            buffers.clone(),
            &attend,
            context.workgroups(workgroups * parts),
        );
        if parts > 1 {
            pending.dispatch(
                context,
                &kernel.entry("combine"),
                buffers,
                &attend,
                context.workgroups(workgroups),
            );
        }
    }
}
