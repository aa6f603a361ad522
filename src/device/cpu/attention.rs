//! Grouped-query attention over pages laid out for it. Keys lie in blocks of 16 positions,
//! `[head_dim][16]` each, so a score of 16 positions is one multiply-add per dimension without any
//! reduction; values lie position by position. The queries of a group of heads that share their
//! keys are scored together.
//!
//! **Invariant:** a query's sums run over absolute positions in the same order whatever else is
//! computed beside it, and wherever the sequence's pages lie.

use std::cell::RefCell;
use std::ops::Range;

use super::Cpu;
use super::buffer::FloatBuffer;
use super::exp::exp;
use super::parallel::{Plane, RowBlocks};
use super::simd::{CHUNK, Kernel, Simd};
use super::tanh::tanh;
use crate::Result;
use crate::device::compute::{Attention, Heads, PAGE, Span};

/// Tokens in one task.
const TOKENS: usize = 16;
/// Queries scored at once.
const QUERIES: usize = 8;

thread_local! {
    static SCRATCH: RefCell<FloatBuffer> = RefCell::new(FloatBuffer::default());
}

/// Blocks of keys in a page.
const BLOCKS: usize = PAGE / CHUNK;

/// Keys and values of one layer.
#[derive(Debug)]
pub struct CpuKvLayer {
    pub(super) heads: Heads,
    /// `[page][kv_head][PAGE / 16][head_dim][16]`
    pub(super) keys: FloatBuffer,
    /// `[page][kv_head][PAGE][value_dim]`, padded with zeros to `value_dim`.
    pub(super) values: FloatBuffer,
}

impl CpuKvLayer {
    pub(super) fn new(heads: Heads, pages: usize) -> Result<Self> {
        let positions = pages * heads.kv_heads * PAGE;
        Ok(Self {
            heads,
            keys: FloatBuffer::try_zeros(positions * heads.head_dim)?,
            values: FloatBuffer::try_zeros(positions * heads.head_dim.next_multiple_of(CHUNK))?,
        })
    }

    pub(super) fn page_bytes(heads: Heads) -> u64 {
        let a_position = heads.head_dim + heads.head_dim.next_multiple_of(CHUNK);
        (heads.kv_heads * PAGE * a_position * size_of::<f32>()) as u64
    }

    pub(super) fn value_dim(&self) -> usize {
        self.heads.head_dim.next_multiple_of(CHUNK)
    }
}

/// One head of one sequence.
#[derive(Clone, Copy)]
struct Head<'a> {
    cache: &'a CpuKvLayer,
    pages: &'a [u32],
    kv_head: usize,
}

impl<'a> Head<'a> {
    /// The keys of positions `16 · block..`, `[head_dim][16]`.
    #[inline(always)]
    fn keys(self, block: usize) -> &'a [[f32; CHUNK]] {
        let head_dim = self.cache.heads.head_dim;
        let block = self.region(block / BLOCKS) * BLOCKS + block % BLOCKS;
        self.cache.keys[block * head_dim * CHUNK..][..head_dim * CHUNK].as_chunks().0
    }

    /// The values of positions `PAGE · page..`, `[PAGE][value_dim / 16]`.
    #[inline(always)]
    fn values(self, page: usize) -> &'a [[f32; CHUNK]] {
        let len = PAGE * self.cache.value_dim();
        self.cache.values[self.region(page) * len..][..len].as_chunks().0
    }

    #[inline(always)]
    fn region(self, page: usize) -> usize {
        self.pages[page] as usize * self.cache.heads.kv_heads + self.kv_head
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
        for (index, span) in spans.iter().enumerate() {
            for start in span.rows.clone().step_by(TOKENS) {
                let end = span.rows.end.min(start + TOKENS);
                let position = span.past + (start - span.rows.start);
                work += (end - start) * (position + 1) * width * 2;
                blocks.push(start..end);
                places.push((index, position));
            }
        }
        let plane = Plane { data: out, width, block: group * head_dim };
        self.for_tiles([plane], RowBlocks::These(&blocks), work, |mut tile| {
            let (span, position) = places[tile.row_block];
            let kv_head = tile.cols.start / (group * head_dim);
            let head = Head { cache, pages: &spans[span].pages, kv_head };
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
                        head,
                        scale,
                        soft_cap,
                        lowest,
                        end,
                        visible: |i: usize| {
                            let at = position + (picked.start + i) / group;
                            (window.map_or(0, |window| (at + 1).saturating_sub(window)), at + 1)
                        },
                        is_cold: from == 0,
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
    head: Head<'a>,
    scale: f32,
    soft_cap: Option<f32>,
    /// First position any of the queries may see, rounded down to a multiple of 16.
    lowest: usize,
    /// One past the last position any may see.
    end: usize,
    /// The positions query `i` sees, from and to.
    visible: F,
    /// Whether no other block of queries went over the keys and values before. They are then asked
    /// for ahead: the next may lie in another page, where no hardware looks.
    is_cold: bool,
    /// `(queries, (end − lowest) rounded up to 16)`
    scores: &'a mut [f32],
    /// `(queries, value_dim)`
    result: &'a mut [f32],
}

impl<F: Fn(usize) -> (usize, usize)> Kernel for QueryBlock<'_, F> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.is_cold {
            true => self.attend::<S, true>(simd),
            false => self.attend::<S, false>(simd),
        }
    }
}

impl<F: Fn(usize) -> (usize, usize)> QueryBlock<'_, F> {
    #[inline(always)]
    fn attend<S: Simd, const COLD: bool>(self, simd: S) {
        let Self { input, head, lowest, end, scores, result, .. } = self;
        let width = (end - lowest).next_multiple_of(CHUNK);
        let (head_dim, value_dim) = (head.cache.heads.head_dim, head.cache.value_dim());
        let queries = input.len() / head_dim;
        let first = lowest / CHUNK;
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
                8 => score::<S, 8, COLD>(simd, input, head, first, scores),
                4 => score::<S, 4, COLD>(simd, input, head, first, scores),
                3 => score::<S, 3, COLD>(simd, input, head, first, scores),
                2 => score::<S, 2, COLD>(simd, input, head, first, scores),
                _ => score::<S, 1, COLD>(simd, input, head, first, scores),
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
                8 => weigh::<S, 8, COLD>(simd, scores, head, lowest..end, &inverse, result),
                4 => weigh::<S, 4, COLD>(simd, scores, head, lowest..end, &inverse, result),
                3 => weigh::<S, 3, COLD>(simd, scores, head, lowest..end, &inverse, result),
                2 => weigh::<S, 2, COLD>(simd, scores, head, lowest..end, &inverse, result),
                _ => weigh::<S, 1, COLD>(simd, scores, head, lowest..end, &inverse, result),
            }
            i += count;
        }
    }
}

/// `scores[q][position] = input[q] · key[position]`, from block `first` on.
#[inline(always)]
fn score<S: Simd, const Q: usize, const COLD: bool>(
    simd: S,
    input: &[f32],
    head: Head<'_>,
    first: usize,
    scores: &mut [f32],
) {
    let head_dim = input.len() / Q;
    let width = scores.len() / Q;
    let mut rows = [input; Q];
    for q in 0..Q {
        rows[q] = &input[q * head_dim..][..head_dim];
    }
    let blocks = width / CHUNK;
    let mut next = head.keys(first);
    for block in 0..blocks {
        let keys = next;
        next = head.keys(first + (block + 1).min(blocks - 1));
        for part in 0..S::PARTS {
            let mut sums = [simd.splat(0.0); Q];
            for (d, (key, ahead)) in keys.iter().zip(next).enumerate() {
                if COLD && part == 0 {
                    simd.prefetch(ahead, 0);
                }
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
fn weigh<S: Simd, const Q: usize, const COLD: bool>(
    simd: S,
    scores: &[f32],
    head: Head<'_>,
    positions: Range<usize>,
    inverse: &[f32; QUERIES],
    result: &mut [f32],
) {
    let (width, value_dim) = (scores.len() / Q, result.len() / Q);
    let (result, _) = result.as_chunks_mut::<CHUNK>();
    let chunks = value_dim / CHUNK;
    let last = (positions.end - 1) / PAGE;
    for chunk in 0..chunks {
        for part in 0..S::PARTS {
            let mut sums = [simd.splat(0.0); Q];
            let mut at = positions.start;
            while at < positions.end {
                let (page, place) = (at / PAGE, at % PAGE);
                let count = (PAGE - place).min(positions.end - at);
                let values = &head.values(page)[place * chunks..][..count * chunks];
                let next = head.values((page + 1).min(last));
                let mut rows = [scores; Q];
                for q in 0..Q {
                    rows[q] = &scores[q * width + at - positions.start..][..count];
                }
                for i in 0..count {
                    if COLD && (chunk, part) == (0, 0) {
                        let lines = &next[(place + i) * chunks..][..chunks];
                        lines.iter().for_each(|line| simd.prefetch(line, 0));
                    }
                    let value = simd.load(&values[i * chunks + chunk], part);
                    for q in 0..Q {
                        sums[q] = simd.fma(simd.splat(rows[q][i]), value, sums[q]);
                    }
                }
                at += count;
            }
            for q in 0..Q {
                let scaled = simd.fma(sums[q], simd.splat(inverse[q]), simd.splat(0.0));
                simd.store(scaled, &mut result[q * chunks + chunk], part);
            }
        }
    }
}
