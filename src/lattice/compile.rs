//! Compiles a float delta to integers on a matrix's lattice, once.
//!
//! A low-rank delta `scaling · B · A` stays factored; `delta.rs` has the formula of its entries.
//!
//! 1. Ranks above 64 are split into chunks, each rounded on its own.
//! 2. Rank components are balanced by powers of two, so that each takes an equal share of both
//!    factors.
//! 3. One scale makes the largest row of `B'` and the largest column of `A'` the same norm at a
//!    shift of 16, or `A'` the largest norm that i16 holds.
//! 4. A row's shift is the largest up to 16 at which `B'_i` fits i16 and `‖B'_i‖ · max_j ‖A'_j‖ <
//!    2^30`. Both norms are counted on the rounded integers, exactly.
//!
//! **Why the shift stops at 16.** The tiles of `device/cpu/simd/` hold sums for even and odd
//! columns in two registers of i32. At a shift of 16 `Q` is the upper half of each sum as it
//! stands: one shift of the even register and one blend make 32 results in column order, with no
//! shift by row. Only a group of rows in which some row needs a smaller shift takes the longer way
//! (`full_shift` in `simd/avx512.rs`). Accuracy does not suffer, since both factors share the 16
//! bits: their rounding stays far below the half step of the final one.
//!
//! Dense deltas are integers laid out as the weights are, sparse ones compressed rows. No adapter
//! file makes them yet.
//!
//! **Invariant:** by Cauchy–Schwarz every partial sum, in any order, fits an i32.
//! **Invariant:** IEEE operations on f64 in a fixed order only: every machine compiles the same
//! integers.

use super::delta::{CompiledDelta, DeltaKind, Factors, SparseRows};
use super::{Grid, LIMIT, LatticeMatrix};
use crate::adapter::FloatDelta;
use crate::{Error, Result, WeightName};

/// Ranks above this are split into chunks, each rounded on its own: with more components the bound
/// on their norms would leave each of them fewer bits.
pub const CHUNK_RANK: usize = 64;

/// The largest shift. Sixteen leaves `Q` in the upper half of the sum, where a kernel finds it
/// without shifting, and costs no accuracy once both factors share it: the factors' rounding stays
/// far below the final half step.
const MAX_SHIFT: i32 = 16;

/// Compiles `delta` for the base matrix that `grid` describes; `weight` names it in errors.
///
/// # Errors
/// [`Error::DeltaShape`] when the factors do not have the matrix's shape; [`Error::NonFinite`] when
/// a value is NaN or infinite; [`Error::Overflow`] when the delta alone does not fit the lattice,
/// with the row that needs the most space.
pub fn compile(weight: &WeightName, delta: &FloatDelta, grid: &Grid) -> Result<CompiledDelta> {
    check_finite(weight, delta)?;
    let (rows, cols) = (grid.rows(), grid.cols);
    let check = |what: &'static str, expected: usize, found: usize| {
        if expected == found {
            return Ok(());
        }
        Err(Error::DeltaShape { weight: weight.clone(), what, expected, found })
    };
    let (kind, bounds) = match delta {
        FloatDelta::LowRank { rank, lora_a, lora_b, scaling } => {
            check("elements of lora_a", rank.saturating_mul(cols), lora_a.len())?;
            check("elements of lora_b", rank.saturating_mul(rows), lora_b.len())?;
            let mut chunks = Vec::new();
            let mut bounds = vec![0_f64; rows];
            for first in (0..*rank).step_by(CHUNK_RANK) {
                let source = Source { lora_a, lora_b, rank: *rank, scaling: *scaling, cols };
                let count = CHUNK_RANK.min(rank - first);
                chunks.push(compile_chunk(&source, first, count, &grid.steps, &mut bounds));
            }
            (DeltaKind::LowRank(chunks), bounds)
        }
        FloatDelta::Dense { values } => {
            check("elements", rows * cols, values.len())?;
            let mut lanes = LatticeMatrix::zeros(rows, cols);
            let mut bounds = vec![0_f64; rows];
            let stride = lanes.stride();
            for (i, row) in values.chunks_exact(cols).enumerate() {
                let target = &mut lanes.integers_mut()[i * stride..][..cols];
                for (n, &w) in target.iter_mut().zip(row) {
                    let q = (f64::from(w) / f64::from(grid.steps[i])).round();
                    bounds[i] = bounds[i].max(q.abs());
                    *n = saturate(q);
                }
            }
            (DeltaKind::Dense(lanes.into_lanes()), bounds)
        }
        FloatDelta::Sparse { entries } => compile_sparse(weight, entries, grid)?,
    };
    finish(weight, kind, &bounds, grid)
}

/// An adapter's files are checked where they are read; a delta made in memory is checked here.
/// Unchecked, a NaN would be 0.
fn check_finite(weight: &WeightName, delta: &FloatDelta) -> Result<()> {
    let check = |what: &str, values: &mut dyn Iterator<Item = f32>| match values
        .enumerate()
        .find(|v| !v.1.is_finite())
    {
        Some((index, value)) => {
            Err(Error::NonFinite { tensor: format!("{weight} ({what})"), index, value })
        }
        None => Ok(()),
    };
    match delta {
        FloatDelta::LowRank { lora_a, lora_b, scaling, .. } => {
            check("lora_a", &mut lora_a.iter().copied())?;
            check("lora_b", &mut lora_b.iter().copied())?;
            #[allow(
                clippy::cast_possible_truncation,
                reason = "not finite, so it stays what it is"
            )]
            let scaling = (!scaling.is_finite()).then_some(*scaling as f32);
            check("scaling", &mut scaling.into_iter())
        }
        FloatDelta::Dense { values } => check("dense", &mut values.iter().copied()),
        FloatDelta::Sparse { entries } => check("sparse", &mut entries.iter().map(|entry| entry.2)),
    }
}

/// Sets `row_max`: the bound of a low-rank delta, the exact maximum of another.
fn finish(
    weight: &WeightName,
    kind: DeltaKind,
    bounds: &[f64],
    grid: &Grid,
) -> Result<CompiledDelta> {
    // The sums of a low-rank delta are counted exactly wherever its bound does not clear a row; the
    // others are stored.
    let limit = if matches!(kind, DeltaKind::LowRank(_)) { 1 << 30 } else { LIMIT };
    let needed =
        |row: usize| headroom_for(grid.headroom, f64::from(grid.row_max[row]) + bounds[row]);
    let overflows = (0..bounds.len()).filter(|&row| bounds[row] > f64::from(limit));
    if let Some(row) = overflows.max_by(|&a, &b| needed(a).total_cmp(&needed(b))) {
        let (node, weight) = (String::new(), weight.clone());
        let headroom = grid.headroom;
        return Err(Error::Overflow {
            node,
            weight,
            row,
            needed: needed(row),
            headroom,
            in_store: false,
        });
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 2^30"
    )]
    let row_max = bounds.iter().map(|bound| bound.ceil() as u32).collect();
    Ok(CompiledDelta { rows: grid.rows(), cols: grid.cols, row_max, kind })
}

/// The headroom at which a row that reaches `reach` lattice steps at `headroom` would fit, with 2 %
/// to spare, rounded up.
pub(crate) fn headroom_for(headroom: f32, reach: f64) -> f64 {
    (f64::from(headroom) * reach / f64::from(LIMIT) * 1.02 * 100.0).ceil() / 100.0
}

/// The float factors of one delta.
struct Source<'a> {
    lora_a: &'a [f32],
    lora_b: &'a [f32],
    rank: usize,
    scaling: f64,
    cols: usize,
}

/// Compiles rank components `first .. first + count`; adds each row's bound of `|Q_ij|` to `bounds`
/// (infinite where even a shift of 0 does not hold the row).
fn compile_chunk(
    source: &Source,
    first: usize,
    count: usize,
    steps: &[f32],
    bounds: &mut [f64],
) -> Factors {
    let Source { lora_a, lora_b, rank, scaling, cols } = *source;
    let a = |r: usize, j: usize| f64::from(lora_a[(first + r) * cols + j]);
    let b = |i: usize, r: usize| {
        f64::from(lora_b[i * rank + first + r]) * scaling / f64::from(steps[i])
    };
    let mut factors = Factors::zeros(count, steps.len(), cols);

    let balance: Vec<f64> = (0..count)
        .map(|r| {
            let largest_a = (0..cols).fold(0_f64, |m, j| m.max(a(r, j).abs()));
            let largest_b = (0..steps.len()).fold(0_f64, |m, i| m.max(b(i, r).abs()));
            if largest_a == 0.0 || largest_b == 0.0 {
                return 0.0;
            }
            power_of_two((exponent(largest_b) - exponent(largest_a)) / 2)
        })
        .collect();
    let rows: Vec<f64> = (0..steps.len() * count)
        .map(|k| {
            if balance[k % count] == 0.0 {
                0.0
            } else {
                b(k / count, k % count) / balance[k % count]
            }
        })
        .collect();
    let largest_row =
        rows.chunks_exact(count).fold(0_f64, |m, row| m.max(norm(row.iter().copied())));
    let largest_column =
        (0..cols).fold(0_f64, |m, j| m.max(norm((0..count).map(|r| a(r, j) * balance[r]))));
    if largest_row == 0.0 || largest_column == 0.0 {
        return factors;
    }
    // The largest row of B' and the largest column of A' get the same norm at the full shift, or A'
    // the largest that fits. Rounding adds at most half a unit to each component.
    let reach = 32767.0 - 0.5 * (count as f64).sqrt();
    let scale =
        (largest_row / largest_column * power_of_two(MAX_SHIFT)).sqrt().min(reach / largest_column);
    let mut largest_square = 0_u64;
    for j in 0..cols {
        let mut square = 0_u64;
        for (r, &balance) in balance.iter().enumerate() {
            let value = saturate((a(r, j) * balance * scale).round());
            factors.set_a(r, j, value);
            square += u64::from(value.unsigned_abs()).pow(2);
        }
        largest_square = largest_square.max(square);
    }
    for (i, (row, bound)) in rows.chunks_exact(count).zip(bounds).enumerate() {
        *bound += compile_row(row, scale, largest_square, i, &mut factors);
    }
    factors
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

/// Writes row `i` of `B'`, which is `row / scale` at a shift of 0, and its shift; returns the bound
/// of `|Q_ij|`.
fn compile_row(
    row: &[f64],
    scale: f64,
    largest_square: u64,
    i: usize,
    factors: &mut Factors,
) -> f64 {
    if row.iter().all(|&v| v == 0.0) {
        factors.shift[i] = u8::try_from(MAX_SHIFT).expect("at most 16");
        return 0.0;
    }
    for shift in (0..=MAX_SHIFT).rev() {
        let scaled = |v: &f64| (v / scale * power_of_two(shift)).round();
        // Exact: a sum of at most 64 squares of integers below 2^15.
        let square: f64 = row.iter().map(|v| scaled(v).powi(2)).sum();
        let fits = row.iter().all(|v| scaled(v).abs() <= f64::from(i16::MAX)) && {
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "below 2^37"
            )]
            let square = square as u128;
            square * u128::from(largest_square) < 1 << 60
        };
        if fits {
            for (r, v) in row.iter().enumerate() {
                factors.set_b(i, r, saturate(scaled(v)));
            }
            factors.shift[i] = u8::try_from(shift).expect("at most 16");
            return square.sqrt() * (largest_square as f64).sqrt() / power_of_two(shift) + 1.0;
        }
    }
    f64::INFINITY
}

/// Compiles single entries to compressed rows.
fn compile_sparse(
    weight: &WeightName,
    entries: &[(u32, u32, f32)],
    grid: &Grid,
) -> Result<(DeltaKind, Vec<f64>)> {
    let mut bounds = vec![0_f64; grid.rows()];
    let mut sparse =
        SparseRows { row_start: vec![0; grid.rows() + 1], cols: Vec::new(), values: Vec::new() };
    let mut last = None;
    for &(i, j, value) in entries {
        if i as usize >= grid.rows() || j as usize >= grid.cols || last >= Some((i, j)) {
            return Err(Error::SparseEntry { weight: weight.clone(), row: i, column: j });
        }
        last = Some((i, j));
        let q = (f64::from(value) / f64::from(grid.steps[i as usize])).round();
        bounds[i as usize] = bounds[i as usize].max(q.abs());
        sparse.row_start[i as usize + 1] += 1;
        sparse.cols.push(j);
        sparse.values.push(saturate(q));
    }
    for i in 0..grid.rows() {
        sparse.row_start[i + 1] += sparse.row_start[i];
    }
    Ok((DeltaKind::Sparse(sparse), bounds))
}

/// An integer-valued f64 as i16; values outside are refused by their bound before they are used.
#[allow(clippy::cast_possible_truncation, reason = "`as` saturates")]
fn saturate(value: f64) -> i16 {
    value as i16
}

/// The binary exponent of a positive finite number: `2^e ≤ x < 2^(e+1)`.
pub(crate) fn exponent(x: f64) -> i32 {
    let bits = x.to_bits() >> 52 & 0x7ff;
    if bits == 0 {
        exponent(x * power_of_two(64)) - 64
    } else {
        i32::try_from(bits).expect("11 bits") - 1023
    }
}

/// `2^e`, exactly; `e` clamped to the normal numbers.
pub(crate) fn power_of_two(e: i32) -> f64 {
    f64::from_bits(u64::try_from(e.clamp(-1022, 1023) + 1023).expect("not negative") << 52)
}
