//! Work split into tiles of the output, handed out to the pool's threads one by one, so that a core
//! busy elsewhere holds nobody up. No allocation, one barrier a call.
//!
//! **Invariant:** every tile is written by one task alone and no task depends on another, so the
//! result does not depend on the number of threads.

#![allow(
    unsafe_code,
    reason = "tiles of one matrix written by several threads; the partition is made and checked here"
)]

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Cpu;

/// Below this many multiply-adds (or values touched) a call stays on one thread: vectors do them
/// within about a microsecond, and to wake another thread takes some.
const SERIAL: usize = 1 << 15;
/// Rows in one task of [`Cpu::for_rows`].
const ROWS_A_TASK: usize = 8;
/// Most threads one call is spread over: their counters lie on the caller's stack, so that a call
/// allocates nothing.
const MAX_WORKERS: usize = 64;

/// A row-major matrix to be written, cut every `block` columns.
pub(crate) struct Plane<'a> {
    /// The values, `rows × width`.
    pub data: &'a mut [f32],
    /// Columns.
    pub width: usize,
    /// Columns in one tile.
    pub block: usize,
}

/// How the rows of every plane are cut.
#[derive(Clone, Copy)]
pub(crate) enum RowBlocks<'a> {
    /// `rows` rows, cut every `block`.
    Every {
        /// All rows.
        rows: usize,
        /// Rows in one tile.
        block: usize,
    },
    /// These ranges, ascending and disjoint.
    These(&'a [Range<usize>]),
}

impl RowBlocks<'_> {
    fn count(self) -> usize {
        match self {
            Self::Every { rows, block } => rows.div_ceil(block),
            Self::These(ranges) => ranges.len(),
        }
    }

    fn get(self, i: usize) -> Range<usize> {
        match self {
            Self::Every { rows, block } => i * block..rows.min((i + 1) * block),
            Self::These(ranges) => ranges[i].clone(),
        }
    }

    /// One past the last row. Panics unless the ranges ascend.
    fn end(self) -> usize {
        match self {
            Self::Every { rows, .. } => rows,
            Self::These(ranges) => ranges.iter().fold(0, |end, range| {
                assert!(range.start >= end && range.end >= range.start, "row blocks overlap");
                range.end
            }),
        }
    }
}

/// A rectangle of one plane, owned by one task.
pub(crate) struct Tile<'a> {
    /// Which of the planes.
    pub plane: usize,
    /// Which of the row blocks.
    pub row_block: usize,
    /// Its rows.
    pub rows: Range<usize>,
    /// Its columns.
    pub cols: Range<usize>,
    data: *mut f32,
    width: usize,
    plane_is_borrowed: PhantomData<&'a mut [f32]>,
}

impl Tile<'_> {
    /// The tile's part of row `row`.
    #[inline(always)]
    pub(crate) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(self.rows.contains(&row), "row outside its tile");
        // SAFETY: `for_tiles` checked that the plane holds every row block and column; the
        // rectangle is this tile's alone, and `&mut self` keeps its rows from being borrowed twice.
        unsafe {
            let start = self.data.add(row * self.width + self.cols.start);
            std::slice::from_raw_parts_mut(start, self.cols.len())
        }
    }
}

struct Shared {
    data: *mut f32,
    width: usize,
    block: usize,
}

// SAFETY: only `Tile`s look through the pointer, each at its own rectangle.
unsafe impl Sync for Shared {}

impl Cpu {
    /// Calls `task` with every row of `out (rows, width)` and its index.
    pub(crate) fn for_rows(
        &self,
        out: &mut [f32],
        rows: usize,
        width: usize,
        task: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let plane = Plane { data: out, width, block: width.max(1) };
        self.for_tiles(
            [plane],
            RowBlocks::Every { rows, block: ROWS_A_TASK },
            rows * width,
            |mut tile| {
                for row in tile.rows.clone() {
                    task(row, tile.row(row));
                }
            },
        );
    }

    /// Runs `task` once for every tile of every plane, all tiles of one row block before the next.
    /// `work` is the multiply-adds of the whole call; a small call is not spread over threads.
    pub(crate) fn for_tiles<const N: usize>(
        &self,
        planes: [Plane<'_>; N],
        rows: RowBlocks<'_>,
        work: usize,
        task: impl Fn(Tile<'_>) + Sync,
    ) {
        let end = rows.end();
        let planes = planes.map(|plane| {
            assert!(
                plane.block > 0 && plane.data.len() >= end * plane.width,
                "plane too small for its rows"
            );
            Shared { data: plane.data.as_mut_ptr(), width: plane.width, block: plane.block }
        });
        let per_row_block: usize =
            planes.iter().map(|plane| plane.width.div_ceil(plane.block)).sum();
        let count = rows.count() * per_row_block;
        let run = |i: usize| {
            let (row_block, mut column_block) = (i / per_row_block, i % per_row_block);
            for (index, plane) in planes.iter().enumerate() {
                let blocks = plane.width.div_ceil(plane.block);
                if column_block < blocks {
                    let cols = column_block * plane.block
                        ..plane.width.min((column_block + 1) * plane.block);
                    let rows = rows.get(row_block);
                    return task(Tile {
                        plane: index,
                        row_block,
                        rows,
                        cols,
                        data: plane.data,
                        width: plane.width,
                        plane_is_borrowed: PhantomData,
                    });
                }
                column_block -= blocks;
            }
        };
        if work < SERIAL || count < 2 || self.threads() < 2 {
            return (0..count).for_each(run);
        }
        // Each worker walks its own stretch of tasks, so that it streams through consecutive
        // memory, then helps the others.
        let workers = self.threads().min(count).min(MAX_WORKERS);
        let stretch = |worker: usize| worker * count / workers..(worker + 1) * count / workers;
        let next: [AtomicUsize; MAX_WORKERS] =
            std::array::from_fn(|worker| AtomicUsize::new(stretch(worker.min(workers)).start));
        let work = |worker: usize| {
            for owner in (worker..workers).chain(0..worker) {
                loop {
                    let i = next[owner].fetch_add(1, Ordering::Relaxed);
                    if i >= stretch(owner).end {
                        break;
                    }
                    run(i);
                }
            }
        };
        self.install(|| fan_out(0..workers, &work));
    }
}

/// Calls `work` with every number of `workers`, on as many threads as are free.
fn fan_out(workers: Range<usize>, work: &(impl Fn(usize) + Sync)) {
    if workers.len() <= 1 {
        return work(workers.start);
    }
    let middle = workers.start + workers.len() / 2;
    rayon::join(|| fan_out(workers.start..middle, work), || fan_out(middle..workers.end, work));
}
