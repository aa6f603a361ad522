//! Rotary position embedding, which rotates each head's halves against each other, and the append to
//! the cache, laid out as [`CpuKvLayer`] says.
//!
//! **Source:** Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.

use super::parallel::{Plane, RowBlocks};
use super::simd::{CHUNK, Kernel, Simd};
use super::{Cpu, CpuKvLayer};
use crate::device::compute::{Heads, RotateAppend, Span};

impl Cpu {
    /// [`crate::device::Compute::rotate_append`].
    pub(super) fn rotate_and_append(&self, what: RotateAppend<'_, Self>, spans: &[Span]) {
        let RotateAppend { queries, keys, values, angles, cache, heads } = what;
        assert_eq!(cache.heads, heads, "a cache of other heads");
        let rows = spans.last().map_or(0, |span| span.rows.end);
        self.rotate_rows(queries, heads.heads, heads.head_dim, angles, rows);
        self.rotate_rows(keys, heads.kv_heads, heads.head_dim, angles, rows);
        self.append(keys, values, cache, spans);
    }

    /// Rotates every head of `x (rows, heads × head_dim)`.
    pub(super) fn rotate_rows(
        &self,
        x: &mut [f32],
        heads: usize,
        head_dim: usize,
        angles: &[f32],
        rows: usize,
    ) {
        self.for_rows(x, rows, heads * head_dim, |row, x| {
            self.simd.run(Rotate { x, head_dim, angles: &angles[row * head_dim..][..head_dim] });
        });
    }

    /// Writes the new keys and values behind those of their sequences.
    fn append(&self, keys: &[f32], values: &[f32], cache: &mut CpuKvLayer, spans: &[Span]) {
        let Heads { kv_heads, head_dim, .. } = cache.heads;
        let (width, value_dim, capacity) = (kv_heads * head_dim, cache.value_dim(), cache.capacity);
        let Some(last) = spans.last() else { return };
        let regions = (last.slot + 1) * kv_heads;
        let planes = [
            Plane { data: &mut cache.keys, width: capacity * head_dim, block: capacity * head_dim },
            Plane {
                data: &mut cache.values,
                width: capacity * value_dim,
                block: capacity * value_dim,
            },
        ];
        let work = spans.iter().map(|span| span.rows.len()).sum::<usize>() * width * 2;
        self.for_tiles(planes, RowBlocks::Every { rows: regions, block: 1 }, work, |mut tile| {
            let region = tile.rows.start;
            let (slot, kv_head) = (region / kv_heads, region % kv_heads);
            let Ok(span) = spans.binary_search_by_key(&slot, |span| span.slot) else { return };
            let span = &spans[span];
            let plane = tile.plane;
            let out = tile.row(region);
            for (position, row) in (span.past..).zip(span.rows.clone()) {
                let from = row * width + kv_head * head_dim;
                if plane == 0 {
                    let block = &mut out[position / CHUNK * CHUNK * head_dim..][..CHUNK * head_dim];
                    for (key, lanes) in
                        keys[from..][..head_dim].iter().zip(block.as_chunks_mut::<CHUNK>().0)
                    {
                        lanes[position % CHUNK] = *key;
                    }
                } else {
                    out[position * value_dim..][..head_dim]
                        .copy_from_slice(&values[from..][..head_dim]);
                }
            }
        });
    }
}

struct Rotate<'a> {
    x: &'a mut [f32],
    head_dim: usize,
    angles: &'a [f32],
}

impl Kernel for Rotate<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (cosines, sines) = self.angles.split_at(self.head_dim / 2);
        for head in self.x.chunks_exact_mut(self.head_dim) {
            let (low, high) = head.split_at_mut(self.head_dim / 2);
            for (((low, high), &cos), &sin) in low.iter_mut().zip(high).zip(cosines).zip(sines) {
                let (x, y) = (*low, *high);
                *low = simd.fma1(x, cos, -y * sin);
                *high = simd.fma1(y, cos, x * sin);
            }
        }
    }
}
