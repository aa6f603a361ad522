//! `s[t][r] = Σ_j A'_rj · x[t][j]`: the input of a product in the ranks of the deltas that are not
//! in the weights, for the rows that have them. `expand.rs` makes outputs of it. All matrices of
//! one product share one call.
//!
//! **Source:** the two halves and their names are Punica's (Chen et al., "Punica: Multi-Tenant LoRA
//! Serving", 2023).
//!
//! **Invariant:** a sum is taken panel by panel in the same order whatever other rows there are.

use std::array::from_fn;
use std::cell::RefCell;
use std::ops::Range;

use super::Cpu;
use super::buffer::FloatBuffer;
use super::parallel::{Plane, RowBlocks, Tile};
use super::simd::{CHUNK, Kernel, Simd};
use super::unmerged::{Addend, AddendKind, padded_rank};
use crate::lattice::{Factors, LANES, Lane};

/// Rows in one task.
const TASK_ROWS: usize = 8;
/// Pairs of ranks summed at once: with both members they are as many sums a token as a product's.
const PAIRS: usize = 2;

/// Cache lines of the next `A'` that are asked for beside this one's sums: all of a leaf of rank 2 at
/// some 600 inputs.
const FETCHED: usize = 40;

thread_local! {
    static HALVES: RefCell<FloatBuffer> = RefCell::new(FloatBuffer::default());
    static SUMS: RefCell<FloatBuffer> = RefCell::new(FloatBuffer::default());
}

/// The sums of every row: [`Addend`]s say which lie where. Its memory is used again by the next
/// call of this thread.
#[derive(Default)]
pub(super) struct Shrunk {
    sums: FloatBuffer,
    width: usize,
}

impl Shrunk {
    /// The sums of row `t` from `at` on, `chunks` chunks of them.
    #[inline(always)]
    pub(super) fn row(&self, t: usize, at: usize, chunks: usize) -> &[[f32; CHUNK]] {
        self.sums[t * self.width + at..][..chunks * CHUNK].as_chunks().0
    }
}

impl Drop for Shrunk {
    fn drop(&mut self) {
        // An empty one takes nobody else's away.
        if self.width > 0 {
            SUMS.set(std::mem::take(&mut self.sums));
        }
    }
}

impl Cpu {
    /// The sums that `addends` need of `x (rows, stride)`.
    pub(super) fn shrink(&self, x: &[f32], rows: usize, addends: &[Vec<Addend<'_>>]) -> Shrunk {
        let terms = || addends.iter().flatten().filter_map(Term::of);
        let width = terms().map(|term| term.at + padded_rank(term.factors)).max().unwrap_or(0);
        if width == 0 {
            return Shrunk::default();
        }
        let stride = x.len() / rows;
        // Taken out while others may use this thread: a task of another call may run on it.
        let mut sums = SUMS.take();
        if sums.len() < rows * width {
            sums = FloatBuffer::zeros((rows * width).next_power_of_two());
        }
        let work = terms().map(|term| term.rows.len() * term.factors.pairs * 2 * stride).sum();
        let plane = Plane { data: &mut sums[..rows * width], width, block: width };
        self.for_tiles([plane], RowBlocks::Every { rows, block: TASK_ROWS }, work, |tile| {
            HALVES.with_borrow_mut(|halves| {
                if halves.len() < TASK_ROWS * stride {
                    *halves = FloatBuffer::zeros(TASK_ROWS * stride);
                }
                let terms = terms();
                self.simd.run(Shrink { x, stride, terms, halves: &mut halves[..], tile });
            });
        });
        Shrunk { sums, width }
    }
}

/// A chunk of factors, its rows, and where its sums lie in each.
struct Term<'a> {
    rows: &'a Range<usize>,
    factors: &'a Factors,
    at: usize,
}

impl<'a> Term<'a> {
    fn of(addend: &'a Addend<'_>) -> Option<Self> {
        match addend.kind {
            AddendKind::Factors { factors, at } => Some(Self { rows: &addend.rows, factors, at }),
            _ => None,
        }
    }
}

struct Shrink<'a, 't, I> {
    /// `(rows, stride)`
    x: &'a [f32],
    stride: usize,
    terms: I,
    /// Memory for the rows of the tile, the columns in the order of `A'`.
    halves: &'a mut [f32],
    tile: Tile<'t>,
}

impl<'a, I: Iterator<Item = Term<'a>>> Kernel for Shrink<'_, '_, I> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, stride, terms, halves, mut tile } = self;
        let first = tile.rows.start;
        for t in tile.rows.clone() {
            part_columns(&x[t * stride..][..stride], &mut halves[(t - first) * stride..][..stride]);
            tile.row(t).fill(0.0);
        }
        let halves = &*halves;
        let row = |t: usize| halves[(t - first) * stride..][..stride].as_chunks::<CHUNK>().0;
        let mut terms = terms.peekable();
        while let Some(term) = terms.next() {
            let mut t = term.rows.start.max(tile.rows.start);
            let end = term.rows.end.min(tile.rows.end);
            if let Some(next) =
                terms.peek().filter(|next| t < end && next.rows.start < tile.rows.end)
            {
                fetch(simd, &next.factors.a);
            }
            while t < end {
                let tokens = (end - t).min(S::TOKENS);
                match tokens {
                    6 => sums::<S, 6>(simd, &term, t, row, &mut tile),
                    5 => sums::<S, 5>(simd, &term, t, row, &mut tile),
                    4 => sums::<S, 4>(simd, &term, t, row, &mut tile),
                    3 => sums::<S, 3>(simd, &term, t, row, &mut tile),
                    2 => sums::<S, 2>(simd, &term, t, row, &mut tile),
                    _ => sums::<S, 1>(simd, &term, t, row, &mut tile),
                }
                t += tokens;
            }
        }
    }
}

/// Asks for the start of another delta's `A'`, from which on the processor sees where it leads.
#[inline(always)]
fn fetch<S: Simd>(simd: S, a: &[Lane]) {
    for lane in a.iter().take(FETCHED) {
        simd.prefetch(lane.0.first_chunk().expect("a lane is two chunks"), 0);
    }
}

/// Puts the even columns of every panel before its odd ones, as `A'` has them.
#[inline(always)]
fn part_columns(x: &[f32], out: &mut [f32]) {
    let ((x, _), (out, _)) = (x.as_chunks::<LANES>(), out.as_chunks_mut::<LANES>());
    for (x, out) in x.iter().zip(out) {
        let (even, odd) = out.split_at_mut(LANES / 2);
        for m in 0..LANES / 2 {
            even[m] = x[2 * m];
            odd[m] = x[2 * m + 1];
        }
    }
}

/// All ranks of one chunk of factors, for the `T` tokens from `t` on.
#[inline(always)]
fn sums<'x, S: Simd, const T: usize>(
    simd: S,
    term: &Term<'_>,
    t: usize,
    row: impl Fn(usize) -> &'x [[f32; CHUNK]],
    tile: &mut Tile<'_>,
) {
    let x: [_; T] = from_fn(|k| row(t + k));
    let pairs = term.factors.pairs;
    for first in (0..pairs).step_by(PAIRS) {
        // A last pair that stands alone is summed twice; its second sums are not used.
        let picked = from_fn(|k| (first + k).min(pairs - 1));
        let ranks = 2 * PAIRS.min(pairs - first);
        for (k, sums) in ranks_of(simd, &term.factors.a, pairs, picked, x).iter().enumerate() {
            tile.row(t + k)[term.at + 2 * first..][..ranks].copy_from_slice(&sums[..ranks]);
        }
    }
}

/// The sums of the ranks of `picked` pairs.
#[inline(always)]
fn ranks_of<S: Simd, const T: usize>(
    simd: S,
    a: &[Lane],
    pairs: usize,
    picked: [usize; PAIRS],
    x: [&[[f32; CHUNK]]; T],
) -> [[f32; 2 * PAIRS]; T] {
    let mut sums = [[simd.splat(0.0); 2 * PAIRS]; T];
    for (panel, lanes) in a.chunks_exact(2 * pairs).enumerate() {
        for parity in 0..2 {
            for part in 0..S::PARTS {
                let mut wide = [simd.splat(0.0); 2 * PAIRS];
                for (k, pair) in picked.iter().enumerate() {
                    let both = simd.load_pairs(&lanes[2 * pair + parity].0, part);
                    [wide[2 * k], wide[2 * k + 1]] = both;
                }
                for t in 0..T {
                    let x = simd.load(&x[t][2 * panel + parity], part);
                    for r in 0..2 * PAIRS {
                        sums[t][r] = simd.fma(wide[r], x, sums[t][r]);
                    }
                }
            }
        }
    }
    sums.map(|sums| simd.sum4(sums))
}
