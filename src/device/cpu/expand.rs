//! `y[t][i] += u_i · 2^(−s_i) · Σ_r B'_ir · s[t][r]`: what deltas that are not in the weights add to
//! a tile of a product, for the rows that have them, from the sums of `shrink.rs`; and the dense and
//! sparse ones among them, which are multiplied by the inputs themselves.
//!
//! **Invariant:** a row's addends follow one another from the top of its path down, each sum in the
//! same order whatever tile it falls in.

use std::array::from_fn;
use std::ops::Range;

use super::product::{Fetch, ROWS, TileProduct, add, dot};
use super::shrink::Shrunk;
use super::simd::{CHUNK, Simd};
use super::unmerged::{Addend, AddendKind, padded_rank};
use crate::lattice::{CHUNK_RANK, Factors, SparseRows};

/// Adds to a tile of a product.
#[inline(always)]
pub(super) fn expand<S: Simd>(
    simd: S,
    product: &mut TileProduct<'_, '_>,
    addends: &[Addend<'_>],
    shrunk: &Shrunk,
) {
    for Addend { rows, kind } in addends {
        let tokens = rows.start.max(product.tile.rows.start)..rows.end.min(product.tile.rows.end);
        if tokens.is_empty() {
            continue;
        }
        if let AddendKind::Factors { factors, .. } = kind {
            fetch_next(simd, factors, product.tile.cols.clone());
        }
        match *kind {
            AddendKind::Factors { factors, at } if factors.pairs == 1 => {
                one_pair(simd, product, tokens, factors, |t| shrunk.row(t, at, 1));
            }
            AddendKind::Factors { factors, at } => {
                let chunks = padded_rank(factors) / CHUNK;
                many_pairs(simd, product, tokens, factors, |t| shrunk.row(t, at, chunks));
            }
            AddendKind::Dense(lanes) => product.sweep(simd, bytemuck::cast_slice(lanes), tokens),
            AddendKind::Sparse(entries) => sparse(simd, product, tokens, entries),
        }
    }
}

/// Asks for the rows of `B'` that the next tile needs, as many as this one: a leaf's are too few for
/// the processor to see where they lead, and there are as many leaves as users.
#[inline(always)]
fn fetch_next<S: Simd>(simd: S, factors: &Factors, outputs: Range<usize>) {
    let rank = 2 * factors.pairs;
    let (here, _) = factors.b[outputs.start * rank..outputs.end * rank].as_chunks::<CHUNK>();
    // Two chunks are one cache line.
    for chunk in here.iter().step_by(2) {
        simd.prefetch(chunk, here.len() * CHUNK);
    }
}

/// `u_i · 2^(−s_i)`: exact, as a step is far from the smallest normal number.
#[inline(always)]
fn scale(product: &TileProduct<'_, '_>, factors: &Factors, i: usize) -> f32 {
    product.weight.steps()[i] * f32::from_bits((127 - u32::from(factors.shift[i])) << 23)
}

/// Rank 2, what a user's own leaf often is: 16 outputs at a time, without a sum over lanes.
#[inline(always)]
fn one_pair<'s, S: Simd>(
    simd: S,
    product: &mut TileProduct<'_, '_>,
    tokens: Range<usize>,
    factors: &Factors,
    sums: impl Fn(usize) -> &'s [[f32; CHUNK]],
) {
    let cols = product.tile.cols.clone();
    for from in cols.clone().step_by(CHUNK) {
        let count = CHUNK.min(cols.end - from);
        let mut pairs = [0; 2 * CHUNK];
        pairs[..2 * count].copy_from_slice(&factors.b[2 * from..][..2 * count]);
        let mut scales = [0.0; CHUNK];
        for (k, value) in scales[..count].iter_mut().enumerate() {
            *value = scale(product, factors, from + k);
        }
        for t in tokens.clone() {
            let [low, high] = [0, 1].map(|r| simd.splat(sums(t)[0][r]));
            let mut added = [0.0; CHUNK];
            for part in 0..S::PARTS {
                let [b_low, b_high] = simd.load_pairs(&pairs, part);
                let sum = simd.fma(b_high, high, simd.fma(b_low, low, simd.splat(0.0)));
                simd.store(sum, &mut added, part);
            }
            let out = &mut product.tile.row(t)[from - cols.start..][..count];
            for ((y, scale), sum) in out.iter_mut().zip(scales).zip(added) {
                *y = simd.fma1(scale, sum, *y);
            }
        }
    }
}

/// Any rank: a row of `B'` at a time, as a product's rows are.
#[inline(always)]
fn many_pairs<'s, S: Simd>(
    simd: S,
    product: &mut TileProduct<'_, '_>,
    tokens: Range<usize>,
    factors: &Factors,
    sums: impl Fn(usize) -> &'s [[f32; CHUNK]],
) {
    let mut t = tokens.start;
    while t < tokens.end {
        let count = (tokens.end - t).min(S::TOKENS);
        match count {
            6 => rows_of_b::<S, 6>(simd, product, t, factors, &sums),
            5 => rows_of_b::<S, 5>(simd, product, t, factors, &sums),
            4 => rows_of_b::<S, 4>(simd, product, t, factors, &sums),
            3 => rows_of_b::<S, 3>(simd, product, t, factors, &sums),
            2 => rows_of_b::<S, 2>(simd, product, t, factors, &sums),
            _ => rows_of_b::<S, 1>(simd, product, t, factors, &sums),
        }
        t += count;
    }
}

/// All outputs of the tile for the `T` tokens from `t` on.
#[inline(always)]
fn rows_of_b<'s, S: Simd, const T: usize>(
    simd: S,
    product: &mut TileProduct<'_, '_>,
    t: usize,
    factors: &Factors,
    sums: &impl Fn(usize) -> &'s [[f32; CHUNK]],
) {
    let x: [_; T] = from_fn(|k| sums(t + k));
    let (cols, rank) = (product.tile.cols.clone(), 2 * factors.pairs);
    for from in cols.clone().step_by(ROWS) {
        let count = ROWS.min(cols.end - from);
        let mut spare = [[[0; CHUNK]; CHUNK_RANK / CHUNK]; ROWS];
        let mut k = 0;
        let rows = spare.each_mut().map(|spare| {
            // A last group of fewer rows repeats one; its sums are not used.
            let i = from + k.min(count - 1);
            k += 1;
            row_of_b(&factors.b[i * rank..], rank, x[0].len(), spare)
        });
        let fetch = Fetch { ahead: ROWS * rank, step: CHUNK };
        let sums = dot(simd, rows, x, fetch);
        let scales: [f32; ROWS] = from_fn(|k| scale(product, factors, from + k.min(count - 1)));
        for (k, sums) in sums.into_iter().enumerate() {
            add(simd, &scales, sums, &mut product.tile.row(t + k)[from - cols.start..]);
        }
    }
}

/// The `rank` integers at the start of `b` in whole chunks. What follows them there, the next row's,
/// meets sums of zero; behind the last row there is nothing, so that is copied.
#[inline(always)]
fn row_of_b<'b>(
    b: &'b [i16],
    rank: usize,
    chunks: usize,
    spare: &'b mut [[i16; CHUNK]; CHUNK_RANK / CHUNK],
) -> &'b [[i16; CHUNK]] {
    if b.len() < chunks * CHUNK {
        spare.as_flattened_mut()[..rank].copy_from_slice(&b[..rank]);
        return &spare[..chunks];
    }
    &b.as_chunks().0[..chunks]
}

/// The entries there are, each times its input.
#[inline(always)]
fn sparse<S: Simd>(
    simd: S,
    product: &mut TileProduct<'_, '_>,
    tokens: Range<usize>,
    entries: &SparseRows,
) {
    let (cols, stride) = (product.tile.cols.clone(), product.weight.stride());
    for i in cols.clone() {
        let range = entries.row_start[i] as usize..entries.row_start[i + 1] as usize;
        if range.is_empty() {
            continue;
        }
        let step = product.weight.steps()[i];
        for t in tokens.clone() {
            let x = &product.x[t * stride..][..stride];
            let mut sum = 0.0;
            for (&j, &q) in entries.cols[range.clone()].iter().zip(&entries.values[range.clone()]) {
                sum = simd.fma1(f32::from(q), x[j as usize], sum);
            }
            let y = &mut product.tile.row(t)[i - cols.start];
            *y = simd.fma1(step, sum, *y);
        }
    }
}
