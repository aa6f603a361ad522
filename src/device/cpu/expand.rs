//! `y[t][i] += u_i · 2^(−s_i) · Σ_r B'_ir · s[t][r]`: what deltas that are not in the weights add to
//! a tile of a product, for the rows that have them, from the sums of `shrink.rs`; and the dense and
//! sparse ones among them, which are multiplied by the inputs themselves.
//!
//! **Invariant:** a row's addends follow one another from the top of its path down, each sum in the
//! same order whatever tile it falls in.

use std::array::from_fn;
use std::ops::Range;

use super::product::TileProduct;
use super::shrink::Shrunk;
use super::simd::{CHUNK, Simd};
use super::unmerged::{Addend, AddendKind};
use crate::lattice::{Factors, LANES, Lane, PANEL_ROWS, SparseRows};

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
        match *kind {
            AddendKind::Factors { factors, at } => {
                fetch_next(simd, factors, product.tile.cols.clone());
                low_rank(simd, product, tokens, factors, |t| shrunk.row(t, at, factors.pairs));
            }
            AddendKind::Dense(lanes) => product.sweep(simd, bytemuck::cast_slice(lanes), tokens),
            AddendKind::Sparse(entries) => sparse(simd, product, tokens, entries),
        }
    }
}

/// Asks for the panels of `B'` that the next tile needs, as many as this one: a leaf's are too few
/// for the processor to see where they lead, and there are as many leaves as users.
#[inline(always)]
fn fetch_next<S: Simd>(simd: S, factors: &Factors, outputs: Range<usize>) {
    let panels = outputs.start / PANEL_ROWS..outputs.end.div_ceil(PANEL_ROWS);
    let here = &factors.b[panels.start * factors.pairs..panels.end * factors.pairs];
    for lane in here {
        let chunk = lane.0.first_chunk::<CHUNK>().expect("a lane is two chunks");
        simd.prefetch(chunk, here.len() * LANES);
    }
}

/// A panel of `B'` at a time: its outputs are the elements of a vector, so nothing is summed across
/// one.
#[inline(always)]
fn low_rank<'s, S: Simd>(
    simd: S,
    product: &mut TileProduct<'_, '_>,
    tokens: Range<usize>,
    factors: &Factors,
    sums: impl Fn(usize) -> &'s [[f32; 2]],
) {
    let cols = product.tile.cols.clone();
    for panel in cols.start / PANEL_ROWS..cols.end.div_ceil(PANEL_ROWS) {
        let panel = Panel::of(product, factors, panel);
        let mut t = tokens.start;
        while t < tokens.end {
            let count = (tokens.end - t).min(8);
            match count {
                8 => panel.add::<S, 8>(simd, product, t, &sums),
                7 => panel.add::<S, 7>(simd, product, t, &sums),
                6 => panel.add::<S, 6>(simd, product, t, &sums),
                5 => panel.add::<S, 5>(simd, product, t, &sums),
                4 => panel.add::<S, 4>(simd, product, t, &sums),
                3 => panel.add::<S, 3>(simd, product, t, &sums),
                2 => panel.add::<S, 2>(simd, product, t, &sums),
                _ => panel.add::<S, 1>(simd, product, t, &sums),
            }
            t += count;
        }
    }
}

/// One panel of `B'` as a tile sees it.
struct Panel<'a> {
    /// A lane for each pair of ranks.
    b: &'a [Lane],
    /// The panel's outputs that lie in the tile, counted from the panel's first.
    inside: Range<usize>,
    /// The same, counted from the tile's first.
    of_tile: Range<usize>,
    /// `u_i · 2^(−s_i)` of every output inside: exact, as a step is far from the smallest normal
    /// number.
    scales: [f32; PANEL_ROWS],
}

impl<'a> Panel<'a> {
    #[inline(always)]
    fn of(product: &TileProduct<'_, '_>, factors: &'a Factors, panel: usize) -> Self {
        let (cols, first) = (&product.tile.cols, panel * PANEL_ROWS);
        let outputs = first.max(cols.start)..(first + PANEL_ROWS).min(cols.end);
        let inside = outputs.start - first..outputs.end - first;
        let mut scales = [0.0; PANEL_ROWS];
        let steps = &product.weight.steps()[outputs.clone()];
        let shifts = &factors.shift[outputs.clone()];
        for ((scale, step), shift) in scales[inside.clone()].iter_mut().zip(steps).zip(shifts) {
            *scale = step * f32::from_bits((127 - u32::from(*shift)) << 23);
        }
        Self {
            b: &factors.b[panel * factors.pairs..][..factors.pairs],
            inside,
            of_tile: outputs.start - cols.start..outputs.end - cols.start,
            scales,
        }
    }

    /// Adds to the outputs of the `T` tokens from `t` on.
    #[inline(always)]
    fn add<'s, S: Simd, const T: usize>(
        &self,
        simd: S,
        product: &mut TileProduct<'_, '_>,
        t: usize,
        sums: &impl Fn(usize) -> &'s [[f32; 2]],
    ) {
        let x: [_; T] = from_fn(|k| &sums(t + k)[..self.b.len()]);
        for part in 0..S::PARTS {
            let mut total = [simd.splat(0.0); T];
            for (pair, lane) in self.b.iter().enumerate() {
                let [low, high] = simd.load_pairs(&lane.0, part);
                for k in 0..T {
                    let [first, second] = x[k][pair].map(|x| simd.splat(x));
                    total[k] = simd.fma(high, second, simd.fma(low, first, total[k]));
                }
            }
            let scale = simd.load(&self.scales, part);
            for (k, total) in total.into_iter().enumerate() {
                let out = &mut product.tile.row(t + k)[self.of_tile.clone()];
                let add = |y: &mut [f32; CHUNK]| {
                    simd.store(simd.fma(scale, total, simd.load(y, part)), y, part);
                };
                if let Ok(whole) = out.try_into() {
                    add(whole);
                    continue;
                }
                let mut spare = [0.0; CHUNK];
                spare[self.inside.clone()].copy_from_slice(out);
                add(&mut spare);
                out.copy_from_slice(&spare[self.inside.clone()]);
            }
        }
    }
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
