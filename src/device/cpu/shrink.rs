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
use super::unmerged::{Addend, AddendKind};
use crate::lattice::{Factors, LANES, Lane};

/// Rows in one task.
const TASK_ROWS: usize = 8;
/// Lanes of `A'` that are asked for ahead of their sums: 8 KiB, some microseconds of memory.
const AHEAD: usize = 128;

thread_local! {
    static HALVES: RefCell<FloatBuffer> = RefCell::new(FloatBuffer::default());
    static SUMS: RefCell<FloatBuffer> = RefCell::new(FloatBuffer::default());
}

/// The sums of every row: [`Addend`]s say which lie where. Its memory is used again by the next
/// call of this thread.
#[derive(Default)]
pub(super) struct Shrunk {
    sums: FloatBuffer,
    /// Pairs of ranks in a row.
    width: usize,
}

impl Shrunk {
    /// The sums of row `t` for `pairs` pairs of ranks from pair `at` on.
    #[inline(always)]
    pub(super) fn row(&self, t: usize, at: usize, pairs: usize) -> &[[f32; 2]] {
        &self.sums.as_chunks().0[t * self.width + at..][..pairs]
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
        let width = terms().map(|term| term.at + term.factors.pairs).max().unwrap_or(0);
        if width == 0 {
            return Shrunk::default();
        }
        let stride = x.len() / rows;
        // Taken out while others may use this thread: a task of another call may run on it.
        let mut sums = SUMS.take();
        let len = rows * 2 * width;
        if sums.len() < len {
            sums = FloatBuffer::zeros(len.next_power_of_two());
        }
        let work = terms().map(|term| term.rows.len() * term.factors.pairs * 2 * stride).sum();
        let plane = Plane { data: &mut sums[..len], width: 2 * width, block: 2 * width };
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

impl<'a, I: Iterator<Item = Term<'a>> + Clone> Kernel for Shrink<'_, '_, I> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, stride, terms, halves, mut tile } = self;
        let rows = tile.rows.clone();
        let terms = terms.filter(|term| term.rows.start < rows.end && rows.start < term.rows.end);
        // There are as many leaves as users, each too small for the processor to see where it leads.
        let mut ahead = terms.clone().flat_map(|term| &term.factors.a);
        fetch(simd, &mut ahead, AHEAD);
        for t in rows.clone() {
            let out = &mut halves[(t - rows.start) * stride..][..stride];
            part_columns(&x[t * stride..][..stride], out);
        }
        let halves = &*halves;
        let row = |t: usize| halves[(t - rows.start) * stride..][..stride].as_chunks::<CHUNK>().0;
        for term in terms {
            fetch(simd, &mut ahead, term.factors.a.len());
            let mut t = term.rows.start.max(rows.start);
            let end = term.rows.end.min(rows.end);
            while t < end {
                let tokens = (end - t).min(2 * S::TOKENS).min(TASK_ROWS);
                match tokens {
                    8 => sums::<S, 8, 1>(simd, &term, t, row, &mut tile),
                    7 => sums::<S, 7, 1>(simd, &term, t, row, &mut tile),
                    6 => sums::<S, 6, 1>(simd, &term, t, row, &mut tile),
                    5 => sums::<S, 5, 1>(simd, &term, t, row, &mut tile),
                    4 => sums::<S, 4, 1>(simd, &term, t, row, &mut tile),
                    3 => sums::<S, 3, 1>(simd, &term, t, row, &mut tile),
                    2 => sums::<S, 2, 2>(simd, &term, t, row, &mut tile),
                    _ => sums::<S, 1, 2>(simd, &term, t, row, &mut tile),
                }
                t += tokens;
            }
        }
    }
}

/// Asks for the next `count` lanes.
#[inline(always)]
fn fetch<'a, S: Simd>(simd: S, lanes: &mut impl Iterator<Item = &'a Lane>, count: usize) {
    for lane in lanes.take(count) {
        simd.prefetch(lane.0.first_chunk::<CHUNK>().expect("a lane is two chunks"), 0);
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

/// All ranks of one chunk of factors, `P` pairs at a time, for the `T` tokens from `t` on.
#[inline(always)]
fn sums<'x, S: Simd, const T: usize, const P: usize>(
    simd: S,
    term: &Term<'_>,
    t: usize,
    row: impl Fn(usize) -> &'x [[f32; CHUNK]],
    tile: &mut Tile<'_>,
) {
    let x: [_; T] = from_fn(|k| row(t + k));
    let whole = term.factors.pairs / P * P;
    for first in (0..whole).step_by(P) {
        pairs_from::<S, T, P>(simd, term, first, x, (t, tile));
    }
    for first in whole..term.factors.pairs {
        pairs_from::<S, T, 1>(simd, term, first, x, (t, tile));
    }
}

/// The ranks of the `P` pairs from `first` on.
#[inline(always)]
fn pairs_from<S: Simd, const T: usize, const P: usize>(
    simd: S,
    term: &Term<'_>,
    first: usize,
    x: [&[[f32; CHUNK]]; T],
    (t, tile): (usize, &mut Tile<'_>),
) {
    let mut sums = [[[simd.splat(0.0); 2]; T]; P];
    for (panel, lanes) in term.factors.a.chunks_exact(2 * term.factors.pairs).enumerate() {
        let lanes = &lanes[2 * first..][..2 * P];
        for parity in 0..2 {
            for part in 0..S::PARTS {
                let x: [_; T] = from_fn(|k| simd.load(&x[k][2 * panel + parity], part));
                for (pair, sums) in sums.iter_mut().enumerate() {
                    let a = simd.load_pairs(&lanes[2 * pair + parity].0, part);
                    for k in 0..T {
                        sums[k] = from_fn(|member| simd.fma(a[member], x[k], sums[k][member]));
                    }
                }
            }
        }
    }
    for (pair, sums) in sums.iter().enumerate() {
        let at = 2 * (term.at + first + pair);
        // Two tokens at once.
        for k in (0..T).step_by(2) {
            let [[a, b], [c, d]] = [sums[k], sums[(k + 1).min(T - 1)]];
            let [a, b, c, d] = simd.sum4([a, b, c, d]);
            tile.row(t + k)[at..][..2].copy_from_slice(&[a, b]);
            if k + 1 < T {
                tile.row(t + k + 1)[at..][..2].copy_from_slice(&[c, d]);
            }
        }
    }
}
