//! Grouped-query attention over a cache laid out for it. Keys lie in blocks of 16 positions,
//! `[head_dim][16]` each, so a score of 16 positions is one multiply-add per dimension without any
//! reduction; values lie position by position. The queries of a group of heads that share their
//! keys are scored together.
//!
//! **Invariant:** a query's sums run over absolute positions in the same order whatever else is
//! computed beside it.

use std::cell::RefCell;

use super::Cpu;
use super::buffer::FloatBuffer;
use super::exp::exp;
use super::parallel::{Plane, RowBlocks};
use super::simd::{CHUNK, Kernel, Simd};
use super::tanh::tanh;
use crate::Result;
use crate::device::compute::{Attention, Heads, Span};

/// Tokens in one task.
const TOKENS: usize = 16;
/// Queries scored at once.
const QUERIES: usize = 8;

thread_local! {
    static SCRATCH: RefCell<FloatBuffer> = RefCell::new(FloatBuffer::default());
}

/// Keys and values of one layer.
#[derive(Debug)]
pub struct CpuKvLayer {
    pub(super) heads: Heads,
    /// Positions a slot can hold, a multiple of 16.
    pub(super) capacity: usize,
    /// `[slot][kv_head][capacity / 16][head_dim][16]`
    pub(super) keys: FloatBuffer,
    /// `[slot][kv_head][capacity][value_dim]`, padded with zeros to `value_dim`.
    pub(super) values: FloatBuffer,
}

impl CpuKvLayer {
    /// Room for `slots` sequences of `capacity` tokens.
    pub(super) fn new(heads: Heads, slots: usize, capacity: usize) -> Result<Self> {
        let capacity = capacity.next_multiple_of(CHUNK);
        let positions = slots * heads.kv_heads * capacity;
        Ok(Self {
            heads,
            capacity,
            keys: FloatBuffer::try_zeros(positions * heads.head_dim)?,
            values: FloatBuffer::try_zeros(positions * heads.head_dim.next_multiple_of(CHUNK))?,
        })
    }

    pub(super) fn value_dim(&self) -> usize {
        self.heads.head_dim.next_multiple_of(CHUNK)
    }
}

impl Cpu {
    /// [`crate::device::Compute::attention`].
    pub(super) fn attend(&self, attention: Attention<'_, Self>, spans: &[Span]) {
        let Attention { queries, cache, heads, scale, soft_cap, window, out } = attention;
        assert_eq!(cache.heads, heads, "a cache of other heads");
        let Heads { kv_heads, head_dim, .. } = heads;
        let (width, group) = (heads.heads * head_dim, heads.heads / kv_heads);
        let mut blocks = Vec::new();
        let mut places = Vec::new();
        let mut work = 0;
        for span in spans {
            for start in span.rows.clone().step_by(TOKENS) {
                let end = span.rows.end.min(start + TOKENS);
                let position = span.past + (start - span.rows.start);
                work += (end - start) * (position + 1) * width * 2;
                blocks.push(start..end);
                places.push((span.slot, position));
            }
        }
        let plane = Plane { data: out, width, block: group * head_dim };
        self.for_tiles([plane], RowBlocks::These(&blocks), work, |mut tile| {
            let (slot, position) = places[tile.row_block];
            let kv_head = tile.cols.start / (group * head_dim);
            let region = slot * kv_heads + kv_head;
            let keys =
                &cache.keys[region * cache.capacity * head_dim..][..cache.capacity * head_dim];
            let per_value = cache.capacity * cache.value_dim();
            let values = &cache.values[region * per_value..][..per_value];
            let (first_row, first_column) = (tile.rows.start, tile.cols.start);
            let row = |query: usize| (first_row + query / group, query % group * head_dim);
            let count = tile.rows.len() * group;
            for from in (0..count).step_by(QUERIES) {
                let picked = from..count.min(from + QUERIES);
                let (first, last) = (picked.start / group, (picked.end - 1) / group);
                let lowest =
                    window.map_or(0, |window| (position + first + 1).saturating_sub(window));
                let lowest = lowest / CHUNK * CHUNK;
                let end = position + last + 1;
                SCRATCH.with_borrow_mut(|scratch| {
                    let room = QUERIES
                        * (head_dim + cache.value_dim() + (end - lowest).next_multiple_of(CHUNK));
                    if scratch.len() < room {
                        *scratch = FloatBuffer::zeros(room.next_power_of_two());
                    }
                    let (input, rest) = scratch.split_at_mut(QUERIES * head_dim);
                    let (result, scores) = rest.split_at_mut(QUERIES * cache.value_dim());
                    for (i, query) in picked.clone().enumerate() {
                        let (token, offset) = row(query);
                        let from = token * width + first_column + offset;
                        input[i * head_dim..][..head_dim]
                            .copy_from_slice(&queries[from..][..head_dim]);
                    }
                    self.simd.run(QueryBlock {
                        input: &input[..picked.len() * head_dim],
                        keys,
                        values,
                        head_dim,
                        scale,
                        soft_cap,
                        lowest,
                        end,
                        visible: |i: usize| {
                            let at = position + (picked.start + i) / group;
                            (window.map_or(0, |window| (at + 1).saturating_sub(window)), at + 1)
                        },
                        scores,
                        result,
                    });
                    for (result, query) in
                        result.chunks_exact(cache.value_dim()).zip(picked.clone())
                    {
                        let (token, offset) = row(query);
                        tile.row(token)[offset..][..head_dim].copy_from_slice(&result[..head_dim]);
                    }
                });
            }
        });
    }
}

struct QueryBlock<'a, F> {
    /// `(queries, head_dim)`, at most 8 queries.
    input: &'a [f32],
    /// One head of one sequence: `[position / 16][head_dim][16]`.
    keys: &'a [f32],
    /// The same head: `[position][value_dim]`.
    values: &'a [f32],
    head_dim: usize,
    scale: f32,
    soft_cap: Option<f32>,
    /// First position any of the queries may see, rounded down to a multiple of 16.
    lowest: usize,
    /// One past the last position any may see.
    end: usize,
    /// The positions query `i` sees, from and to.
    visible: F,
    /// `(queries, (end − lowest) rounded up to 16)`
    scores: &'a mut [f32],
    /// `(queries, value_dim)`
    result: &'a mut [f32],
}

impl<F: Fn(usize) -> (usize, usize)> Kernel for QueryBlock<'_, F> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { input, keys, values, head_dim, lowest, end, scores, result, .. } = self;
        let width = (end - lowest).next_multiple_of(CHUNK);
        let value_dim = head_dim.next_multiple_of(CHUNK);
        let queries = input.len() / head_dim;
        let (keys, _) = keys[lowest * head_dim..].as_chunks::<CHUNK>();
        let keys = &keys[..width / CHUNK * head_dim];
        let values = &values[lowest * value_dim..end * value_dim];
        // Capped scores are scaled already; others are where their largest is taken off.
        let scale = if self.soft_cap.is_some() { 1.0 } else { self.scale };

        let mut i = 0;
        while i < queries {
            let count = match queries - i {
                8.. => 8,
                n @ 4..8 => n.min(4),
                n => n,
            };
            let input = &input[i * head_dim..][..count * head_dim];
            let scores = &mut scores[i * width..][..count * width];
            match count {
                8 => score::<S, 8>(simd, input, keys, scores),
                4 => score::<S, 4>(simd, input, keys, scores),
                3 => score::<S, 3>(simd, input, keys, scores),
                2 => score::<S, 2>(simd, input, keys, scores),
                _ => score::<S, 1>(simd, input, keys, scores),
            }
            if let Some(cap) = self.soft_cap {
                soft_cap(simd, scores, self.scale, cap);
            }
            let mut inverse = [0.0; QUERIES];
            for (k, scores) in scores.chunks_exact_mut(width).enumerate() {
                let (from, to) = (self.visible)(i + k);
                inverse[k] = softmax(simd, scores, scale, from - lowest, to - lowest);
            }
            let result = &mut result[i * value_dim..][..count * value_dim];
            match count {
                8 => weigh::<S, 8>(simd, scores, values, &inverse, result),
                4 => weigh::<S, 4>(simd, scores, values, &inverse, result),
                3 => weigh::<S, 3>(simd, scores, values, &inverse, result),
                2 => weigh::<S, 2>(simd, scores, values, &inverse, result),
                _ => weigh::<S, 1>(simd, scores, values, &inverse, result),
            }
            i += count;
        }
    }
}

/// `scores[q][position] = input[q] · key[position]`.
#[inline(always)]
fn score<S: Simd, const Q: usize>(
    simd: S,
    input: &[f32],
    keys: &[[f32; CHUNK]],
    scores: &mut [f32],
) {
    let head_dim = input.len() / Q;
    let width = scores.len() / Q;
    let mut rows = [input; Q];
    for q in 0..Q {
        rows[q] = &input[q * head_dim..][..head_dim];
    }
    for (block, keys) in keys.chunks_exact(head_dim).enumerate() {
        for part in 0..S::PARTS {
            let mut sums = [simd.splat(0.0); Q];
            for (d, key) in keys.iter().enumerate() {
                let key = simd.load(key, part);
                for q in 0..Q {
                    sums[q] = simd.fma(simd.splat(rows[q][d]), key, sums[q]);
                }
            }
            for q in 0..Q {
                let (chunks, _) = scores[q * width..][..width].as_chunks_mut::<CHUNK>();
                simd.store(sums[q], &mut chunks[block], part);
            }
        }
    }
}

/// Replaces the products by `cap · tanh(scale · product / cap)`.
#[inline(always)]
fn soft_cap<S: Simd>(simd: S, products: &mut [f32], scale: f32, cap: f32) {
    let within = scale / cap;
    for x in products {
        *x = cap * tanh(simd, *x * within);
    }
}

/// Replaces the scores by `exp(scale · (score − largest))`, 0 outside `from..to`; returns 1 ÷ their
/// sum.
#[inline(always)]
fn softmax<S: Simd>(simd: S, scores: &mut [f32], scale: f32, from: usize, to: usize) -> f32 {
    scores[..from].fill(f32::NEG_INFINITY);
    scores[to..].fill(f32::NEG_INFINITY);
    let (chunks, _) = scores.as_chunks_mut::<CHUNK>();
    let mut largest = [f32::NEG_INFINITY; CHUNK];
    for chunk in &*chunks {
        for (max, &x) in largest.iter_mut().zip(chunk) {
            *max = if x > *max { x } else { *max };
        }
    }
    let largest = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = simd.splat(0.0);
    for chunk in chunks {
        for x in chunk.iter_mut() {
            *x = exp(simd, (*x - largest) * scale);
        }
        for part in 0..S::PARTS {
            sums = simd.add(sums, simd.load(chunk, part));
        }
    }
    1.0 / simd.sum(sums)
}

/// `result[q] = Σ_position scores[q][position] · value[position] · inverse[q]`.
#[inline(always)]
fn weigh<S: Simd, const Q: usize>(
    simd: S,
    scores: &[f32],
    values: &[f32],
    inverse: &[f32; QUERIES],
    result: &mut [f32],
) {
    let (width, value_dim) = (scores.len() / Q, result.len() / Q);
    let (values, _) = values.as_chunks::<CHUNK>();
    let (result, _) = result.as_chunks_mut::<CHUNK>();
    let chunks = value_dim / CHUNK;
    let positions = values.len() / chunks;
    let mut rows = [scores; Q];
    for q in 0..Q {
        rows[q] = &scores[q * width..][..positions];
    }
    for chunk in 0..chunks {
        for part in 0..S::PARTS {
            let mut sums = [simd.splat(0.0); Q];
            for position in 0..positions {
                let value = simd.load(&values[position * chunks + chunk], part);
                for q in 0..Q {
                    sums[q] = simd.fma(simd.splat(rows[q][position]), value, sums[q]);
                }
            }
            for q in 0..Q {
                let scaled = simd.fma(sums[q], simd.splat(inverse[q]), simd.splat(0.0));
                simd.store(scaled, &mut result[q * chunks + chunk], part);
            }
        }
    }
}
