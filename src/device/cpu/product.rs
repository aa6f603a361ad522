//! The sums of a product's tile. Integers are converted in registers, each time they are used: a
//! copy as f32 costs more stores and cache than it saves conversions, which run beside the
//! multiply-adds. A group of [`ROWS`] weight rows stays in the L1 cache for all tokens of a pass,
//! while the rows after it are fetched from memory.
//!
//! **Invariant:** one sum is always taken in the same order (16 columns at a time, [`COLUMNS`]
//! columns to a partial sum), whatever tile, pass or block it falls in; so a token's result does not
//! depend on its neighbours.

use std::array::from_fn;
use std::hint::black_box;
use std::ops::Range;

use super::parallel::Tile;
use super::simd::{CHUNK, Simd};
use crate::lattice::LatticeMatrix;

/// Columns summed in registers before they are added to the output: 6 tokens of them fit half of a
/// 48 KiB L1 cache.
pub(super) const COLUMNS: usize = 1024;
/// Rows summed at once: each vector of x serves so many products.
pub(super) const ROWS: usize = 4;
/// Tokens that pass over a group of rows before the next group: of some 600 columns they fit an L1
/// cache beside it.
const PASS: usize = 12;
/// How far ahead integers are fetched, in whole groups and at least one: of narrow rows a group
/// passes faster than memory answers; 12 KiB are a quarter of an L1 cache.
const AHEAD: usize = 6 << 10;

/// One tile of one product: rows are tokens, columns are rows of `weight`.
pub(super) struct TileProduct<'a, 't> {
    /// `(tokens, stride)`.
    pub(super) x: &'a [f32],
    pub(super) weight: &'a LatticeMatrix,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) accumulate: bool,
    pub(super) tile: Tile<'t>,
}

impl TileProduct<'_, '_> {
    /// Sets the tile to what the product is added to.
    #[inline(always)]
    pub(super) fn start(&mut self) {
        for t in self.tile.rows.clone() {
            let cols = self.tile.cols.clone();
            let out = self.tile.row(t);
            match self.bias {
                Some(bias) if self.accumulate => {
                    out.iter_mut().zip(&bias[cols]).for_each(|(y, b)| *y += b)
                }
                Some(bias) => out.copy_from_slice(&bias[cols]),
                None if self.accumulate => {}
                None => out.fill(0.0),
            }
        }
    }

    /// Adds the products of `tokens`, some of the tile's, with `integers`, which lie as the weight's
    /// do and have its steps.
    #[inline(always)]
    pub(super) fn sweep<S: Simd>(&mut self, simd: S, integers: &[i16], tokens: Range<usize>) {
        let row_chunks = self.weight.stride() / CHUNK;
        // Blocks of nearly one size: a block of one token would convert as much for fewer products.
        let blocks = tokens.len().div_ceil(S::TOKENS);
        let (size, larger) = (tokens.len() / blocks.max(1), tokens.len() % blocks.max(1));
        let group = ROWS * self.weight.stride();
        let ahead = (AHEAD / group.max(1)).max(1) * group;
        let at = |block: usize| tokens.start + block * size + block.min(larger);
        for from in (0..row_chunks).step_by(COLUMNS / CHUNK) {
            let columns = from..row_chunks.min(from + COLUMNS / CHUNK);
            for pass in (0..blocks).step_by(PASS / S::TOKENS) {
                let pass = pass..blocks.min(pass + PASS / S::TOKENS);
                let step = CHUNK.div_ceil(S::PARTS * pass.len());
                for i in self.tile.cols.clone().step_by(ROWS) {
                    for block in pass.clone() {
                        let share = (block - pass.start) * columns.len() * S::PARTS * step;
                        let fetch = Fetch { ahead: ahead + share, step };
                        let group = Group { integers, i, columns: columns.clone(), fetch };
                        let tokens = at(block)..at(block + 1);
                        match tokens.len() {
                            6 => self.group::<S, 6>(simd, group, tokens.start),
                            5 => self.group::<S, 5>(simd, group, tokens.start),
                            4 => self.group::<S, 4>(simd, group, tokens.start),
                            3 => self.group::<S, 3>(simd, group, tokens.start),
                            2 => self.group::<S, 2>(simd, group, tokens.start),
                            _ => self.group::<S, 1>(simd, group, tokens.start),
                        }
                    }
                }
            }
        }
    }

    /// Adds the products of a group with the `T` tokens from `t` on.
    #[inline(always)]
    fn group<S: Simd, const T: usize>(&mut self, simd: S, group: Group<'_>, t: usize) {
        let Group { integers, i, columns, fetch } = group;
        let row_chunks = self.weight.stride() / CHUNK;
        let (x, _) = self.x.as_chunks::<CHUNK>();
        // Hidden, or the compiler computes the address of every row of x in the innermost loop.
        let x: [_; T] = black_box(from_fn(|k| &x[(t + k) * row_chunks..][columns.clone()]));
        let (integers, _) = integers.as_chunks::<CHUNK>();
        let cols = self.tile.cols.clone();
        // A last group of fewer rows repeats one; its sums are not used.
        let w: [_; ROWS] =
            from_fn(|r| &integers[(i + r).min(cols.end - 1) * row_chunks..][columns.clone()]);
        let sums = dot(simd, w, x, fetch);
        let steps = &self.weight.steps()[i..cols.end];
        for (k, sums) in sums.into_iter().enumerate() {
            add(simd, steps, sums, &mut self.tile.row(t + k)[i - cols.start..]);
        }
    }
}

/// Some columns of up to [`ROWS`] rows of integers.
struct Group<'w> {
    /// All rows.
    integers: &'w [i16],
    /// The first row.
    i: usize,
    /// The columns, in chunks.
    columns: Range<usize>,
    fetch: Fetch,
}

/// What of a later group is asked for beside a group's sums: every block of a pass takes its share,
/// so that memory works all the time.
#[derive(Clone, Copy)]
struct Fetch {
    /// Integers from each row's first to the first of the share.
    ahead: usize,
    /// Integers from one vector to the next.
    step: usize,
}

/// Adds `steps · sums` to the start of `out`, of which a last group needs fewer.
#[inline(always)]
fn add<S: Simd>(simd: S, steps: &[f32], sums: [f32; ROWS], out: &mut [f32]) {
    if let (Some(steps), Some(out)) = (steps.first_chunk::<ROWS>(), out.first_chunk_mut::<ROWS>()) {
        *out = from_fn(|r| simd.fma1(steps[r], sums[r], out[r]));
        return;
    }
    for ((y, step), sum) in out.iter_mut().zip(steps).zip(sums) {
        *y = simd.fma1(*step, sum, *y);
    }
}

/// `Σ_j w[r][j] · x[t][j]` for `ROWS` rows and `T` tokens.
#[inline(always)]
fn dot<S: Simd, const T: usize>(
    simd: S,
    w: [&[[i16; CHUNK]]; ROWS],
    x: [&[[f32; CHUNK]]; T],
    fetch: Fetch,
) -> [[f32; ROWS]; T] {
    let chunks = w[0].len();
    let w: [_; ROWS] = from_fn(|r| &w[r][..chunks]);
    let x: [_; T] = from_fn(|t| &x[t][..chunks]);
    let mut sums = [[simd.splat(0.0); ROWS]; T];
    // Vector by vector, with x in registers and one w at a time: with the parts of a chunk in an
    // inner loop the compiler works at both at once, and lacks registers.
    for v in 0..chunks * S::PARTS {
        let (c, part) = (v / S::PARTS, v % S::PARTS);
        let x: [_; T] = from_fn(|t| simd.load(&x[t][c], part));
        for r in 0..ROWS {
            let w = simd.load_i16(&w[r][c], part);
            for t in 0..T {
                sums[t][r] = simd.fma(w, x[t], sums[t][r]);
            }
        }
        // The same turns for every share: others the processor would not foresee.
        if v % (2 * S::PARTS) == 0 {
            for w in w {
                simd.prefetch(&w[0], fetch.ahead + v * fetch.step);
            }
        }
    }
    let mut total = [[0.0; ROWS]; T];
    for t in 0..T {
        total[t] = simd.sum4(sums[t]);
    }
    total
}
