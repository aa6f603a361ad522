//! Compiled deltas: what a node adds to one weight matrix, as integers on that matrix's lattice.
//!
//! A low-rank delta stays factored. With `A'` and `B'` in i16 and a shift `s_i` per row,
//!
//! ```text
//! Q_ij = ( Σ_r B'_ir · A'_rj + 2^(s_i − 1) ) >> s_i        in i32, rounding half up (no half when s_i = 0)
//! ```
//!
//! **Invariant:** `‖B'_i‖ · max_j ‖A'_j‖ < 2^30`, so by Cauchy–Schwarz every partial sum, in any
//! order, fits an i32.
//! **Invariant:** `row_max[i] ≥ max_j |Q_ij|`.

use bytemuck::Zeroable;

use super::{LANES, Lane, Sign, SignedDelta};

/// The integer delta `Q` of one node on one `rows × cols` matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct CompiledDelta {
    /// Rows (outputs).
    pub rows: usize,
    /// Columns (inputs).
    pub cols: usize,
    /// An upper bound of `max_j |Q_ij|` for every row: what the bound check adds up.
    /// [`compile`](super::compile) sets Cauchy–Schwarz's; [`tighten`](crate::device::cpu::tighten)
    /// counts.
    pub row_max: Vec<u32>,
    /// The integers.
    pub kind: DeltaKind,
}

/// The largest `|N ± Q|` in row `row`, whose integers are `integers`, if the deltas were applied.
pub fn reach(integers: &[i16], row: usize, deltas: &[SignedDelta<&CompiledDelta>]) -> u32 {
    let mut sums: Vec<i64> = integers.iter().map(|&n| n.into()).collect();
    for SignedDelta { delta, sign } in deltas {
        delta.add_row(row, *sign, &mut sums);
    }
    largest_magnitude(&sums)
}

/// The largest magnitude, as far as a u32 goes.
pub(crate) fn largest_magnitude(sums: &[i64]) -> u32 {
    sums.iter().map(|sum| u32::try_from(sum.unsigned_abs()).unwrap_or(u32::MAX)).max().unwrap_or(0)
}

/// How the integers of a delta are stored.
#[derive(Clone, Debug, PartialEq)]
pub enum DeltaKind {
    /// The sum of factored products, each of rank at most [`super::CHUNK_RANK`] and rounded on its
    /// own.
    LowRank(Vec<Factors>),
    /// Every integer, laid out as [`super::LatticeMatrix`] lays out its own.
    Dense(Vec<Lane>),
    /// Single entries by row.
    Sparse(SparseRows),
}

/// Rows in one panel of `B'`: so many pairs fill a [`Lane`].
pub const PANEL_ROWS: usize = LANES / 2;

/// Integer factors of one chunk of a low-rank delta.
#[derive(Clone, Debug, PartialEq)]
pub struct Factors {
    /// Rank components in pairs (an odd rank is padded with zeros).
    pub pairs: usize,
    /// `A'` in panels of 32 columns. Panel `c` holds, for each pair `p`, 16 even columns and then
    /// 16 odd columns, each as `(A'_{2p,j}, A'_{2p+1,j})`: lanes `(c · pairs + p) · 2` and the
    /// next. A dot-product instruction on i16 pairs then leaves even and odd columns in two
    /// registers that interleave by one shift.
    pub a: Vec<Lane>,
    /// `B'` in panels of 16 rows, those past the last zeros. Panel `c` holds, for each pair `p`,
    /// `(B'_{i,2p}, B'_{i,2p+1})` of its rows: lane `c · pairs + p`. One load then brings two ranks
    /// of 16 outputs, whose sums stay apart, and a row's next pair lies a lane further on.
    pub b: Vec<Lane>,
    /// `s_i`, one per row, at most 16.
    pub shift: Vec<u8>,
}

impl Factors {
    /// Factors whose `B'` is `b (rows, 2 · pairs)`, row-major, as files have it.
    pub fn from_rows(pairs: usize, a: Vec<Lane>, b: &[i16], shift: Vec<u8>) -> Self {
        let panels = shift.len().div_ceil(PANEL_ROWS);
        let mut factors = Self { pairs, a, b: vec![Lane::zeroed(); panels * pairs], shift };
        for (i, row) in b.chunks_exact((2 * pairs).max(1)).enumerate() {
            for (r, &value) in row.iter().enumerate() {
                factors.set_b(i, r, value);
            }
        }
        factors
    }

    /// Where `A'_{r,j}` lies in `a`: lane and place in the lane.
    fn place(&self, r: usize, j: usize) -> (usize, usize) {
        let (panel, column) = (j / LANES, j % LANES);
        ((panel * self.pairs + r / 2) * 2 + column % 2, (column / 2) * 2 + r % 2)
    }

    /// Zero factors of the given shape.
    pub(super) fn zeros(rank: usize, rows: usize, cols: usize) -> Self {
        let pairs = rank.div_ceil(2);
        Self {
            pairs,
            a: vec![Lane::zeroed(); cols.div_ceil(LANES) * pairs * 2],
            b: vec![Lane::zeroed(); rows.div_ceil(PANEL_ROWS) * pairs],
            shift: vec![0; rows],
        }
    }

    /// `A'_{r,j}`.
    pub fn a(&self, r: usize, j: usize) -> i16 {
        let (lane, at) = self.place(r, j);
        self.a[lane].0[at]
    }

    pub(super) fn set_a(&mut self, r: usize, j: usize, value: i16) {
        let (lane, at) = self.place(r, j);
        self.a[lane].0[at] = value;
    }

    /// Where `B'_{i,r}` lies in `b`: lane and place in the lane.
    fn place_of_b(&self, i: usize, r: usize) -> (usize, usize) {
        let (panel, row) = (i / PANEL_ROWS, i % PANEL_ROWS);
        (panel * self.pairs + r / 2, row * 2 + r % 2)
    }

    /// `B'_{i,r}`.
    pub fn b(&self, i: usize, r: usize) -> i16 {
        let (lane, at) = self.place_of_b(i, r);
        self.b[lane].0[at]
    }

    pub(super) fn set_b(&mut self, i: usize, r: usize, value: i16) {
        let (lane, at) = self.place_of_b(i, r);
        self.b[lane].0[at] = value;
    }

    /// The lanes that hold the pairs of `B'_i`, and the two places of each pair in its lane.
    pub(crate) fn b_lanes(&self, i: usize) -> (&[Lane], [usize; 2]) {
        let (first, at) = self.place_of_b(i, 0);
        (&self.b[first..][..self.pairs], [at, at + 1])
    }

    /// `B'_i`, `2 · pairs` integers.
    pub fn b_row(&self, i: usize) -> impl Iterator<Item = i16> {
        let (lanes, at) = self.b_lanes(i);
        lanes.iter().flat_map(move |lane| at.map(|at| lane.0[at]))
    }
}

/// Entries of a sparse delta in compressed rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SparseRows {
    /// Where each row's entries start; `rows + 1` values.
    pub row_start: Vec<u32>,
    /// Column of each entry, ascending within a row.
    pub cols: Vec<u32>,
    /// Integer of each entry.
    pub values: Vec<i16>,
}

impl CompiledDelta {
    /// `Q_ij` by the definition.
    pub fn q(&self, i: usize, j: usize) -> i32 {
        match &self.kind {
            DeltaKind::LowRank(chunks) => chunks.iter().map(|f| f.q(i, j)).sum(),
            DeltaKind::Dense(lanes) => {
                lanes[i * self.cols.div_ceil(LANES) + j / LANES].0[j % LANES].into()
            }
            DeltaKind::Sparse(s) => {
                let range = s.row_start[i] as usize..s.row_start[i + 1] as usize;
                s.cols[range.clone()]
                    .iter()
                    .position(|&c| c as usize == j)
                    .map_or(0, |k| s.values[range][k].into())
            }
        }
    }

    /// Adds or subtracts row `i` of `Q`, exactly.
    pub fn add_row(&self, i: usize, sign: Sign, sums: &mut [i64]) {
        let mut add = |j: usize, q: i32| match sign {
            Sign::Add => sums[j] += i64::from(q),
            Sign::Subtract => sums[j] -= i64::from(q),
        };
        match &self.kind {
            DeltaKind::LowRank(chunks) => {
                for factors in chunks {
                    for first in (0..self.cols).step_by(LANES) {
                        let q = factors.q_panel(i, first / LANES);
                        (first..self.cols).zip(q).for_each(|(j, q)| add(j, q));
                    }
                }
            }
            DeltaKind::Dense(lanes) => {
                let stride = self.cols.div_ceil(LANES);
                let row: &[i16] = bytemuck::cast_slice(&lanes[i * stride..][..stride]);
                row[..self.cols].iter().enumerate().for_each(|(j, &q)| add(j, q.into()));
            }
            DeltaKind::Sparse(s) => {
                let range = s.row_start[i] as usize..s.row_start[i + 1] as usize;
                s.cols[range.clone()]
                    .iter()
                    .zip(&s.values[range])
                    .for_each(|(&j, &q)| add(j as usize, q.into()));
            }
        }
    }

    /// Bytes held in memory.
    pub fn bytes(&self) -> usize {
        let kind = match &self.kind {
            DeltaKind::LowRank(chunks) => chunks
                .iter()
                .map(|f| size_of_val(&f.a[..]) + size_of_val(&f.b[..]) + f.shift.len())
                .sum(),
            DeltaKind::Dense(lanes) => size_of_val(&lanes[..]),
            DeltaKind::Sparse(s) => {
                size_of_val(&s.row_start[..])
                    + size_of_val(&s.cols[..])
                    + size_of_val(&s.values[..])
            }
        };
        kind + size_of_val(&self.row_max[..])
    }

    /// Summed rank of the factors, padded to pairs; 0 for a dense or sparse delta.
    pub fn rank(&self) -> usize {
        match &self.kind {
            DeltaKind::LowRank(chunks) => chunks.iter().map(|f| f.pairs * 2).sum(),
            _ => 0,
        }
    }
}

impl Factors {
    /// `Q_ij` of this chunk by the definition.
    pub fn q(&self, i: usize, j: usize) -> i32 {
        let sum: i32 =
            self.b_row(i).enumerate().map(|(r, b)| i32::from(b) * i32::from(self.a(r, j))).sum();
        let shift = self.shift[i];
        let half = if shift == 0 { 0 } else { 1 << (shift - 1) };
        (sum + half) >> shift
    }

    /// `Q_ij` of this chunk for the 32 columns of one panel, in column order.
    pub fn q_panel(&self, i: usize, panel: usize) -> [i32; LANES] {
        let shift = self.shift[i];
        let half = (1_i32 << shift) >> 1;
        let mut sums = [[half; LANES / 2]; 2];
        let a = &self.a[panel * self.pairs * 2..][..self.pairs * 2];
        let (b, at) = self.b_lanes(i);
        for (lanes, b) in a.chunks_exact(2).zip(b) {
            let b = at.map(|at| i32::from(b.0[at]));
            for (sums, lane) in sums.iter_mut().zip(lanes) {
                for (m, sum) in sums.iter_mut().enumerate() {
                    *sum += i32::from(lane.0[2 * m]) * b[0] + i32::from(lane.0[2 * m + 1]) * b[1];
                }
            }
        }
        std::array::from_fn(|j| sums[j % 2][j / 2] >> shift)
    }
}
