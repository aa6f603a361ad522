//! Rotary position embedding, which rotates each head's halves against each other, and the append to
//! the pages, laid out as [`CpuKvLayer`] says.
//!
//! **Source:** Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.

use super::parallel::{Plane, RowBlocks};
use super::simd::{CHUNK, Kernel, Simd};
use super::{Cpu, CpuKvLayer};
use crate::device::compute::{Heads, PAGE, Piece, RotateAppend, Span};

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

    /// Writes the new keys and values to their pages, a tile a page and head.
    fn append(&self, keys: &[f32], values: &[f32], cache: &mut CpuKvLayer, spans: &[Span]) {
        let Heads { kv_heads, head_dim, .. } = cache.heads;
        let (width, value_dim) = (kv_heads * head_dim, cache.value_dim());
        let mut pieces: Vec<Piece> = spans.iter().flat_map(Span::pieces).collect();
        pieces.sort_unstable_by_key(|piece| piece.page);
        let page = |piece: &Piece| piece.page as usize..piece.page as usize + 1;
        let pages: Vec<_> = pieces.iter().map(page).collect();
        let plane = |data, dim| Plane { data, width: kv_heads * PAGE * dim, block: PAGE * dim };
        let planes = [plane(&mut cache.keys, head_dim), plane(&mut cache.values, value_dim)];
        let work = spans.iter().map(|span| span.rows.len()).sum::<usize>() * width * 2;
        self.for_tiles(planes, RowBlocks::These(&pages), work, |mut tile| {
            let Piece { page, rows, first } = &pieces[tile.row_block];
            let head = tile.cols.start / tile.cols.len() * head_dim;
            let plane = tile.plane;
            let out = tile.row(*page as usize);
            for (place, row) in (*first..).zip(rows.clone()) {
                let from = row * width + head;
                if plane == 0 {
                    let block = &mut out[place / CHUNK * CHUNK * head_dim..][..CHUNK * head_dim];
                    for (key, lanes) in
                        keys[from..][..head_dim].iter().zip(block.as_chunks_mut::<CHUNK>().0)
                    {
                        lanes[place % CHUNK] = *key;
                    }
                } else {
                    out[place * value_dim..][..head_dim]
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
