//! Whether a matrix stays on the lattice with the deltas of a path: one arithmetic for a switch
//! and for every check before.
//!
//! `row_max[i]` bounds `max_j |Q_ij|`: `compile` has it from Cauchy–Schwarz, `tighten_and_count`
//! (`device/cpu/delta_apply/mod.rs`, called by `compile.rs`) replaces it by the counted maximum,
//! with the switch's own kernel on rows of zeros, or in i64 where those could wrap.
//!
//! A row is clear where the base's largest integer and the deltas' largest ones sum to at most
//! 32767. The others are counted: exactly, in i64, where the row's integers are at hand; where
//!        they are not, from what the deltas alone add up to. To refuse by the sum of the maxima
//!        alone would refuse paths that fit, since the largest entries of a row seldom meet in one
//!        column.
//!
//! Whether a node fits depends on its path alone, so a switch counts it once: `NodeDeltas`
//! remembers the path it was found to fit with, by serial numbers that no second compilation has.
//! `store::check_path` asks the same of a path before a change; `store/after.rs` says what the
//! nodes will then be. `Store::apply` itself does not ask.

use rayon::prelude::*;

use super::quantise::round_values;
use super::{
    CompiledDelta, Grid, LIMIT, Sign, SignedDelta, headroom_for, largest_magnitude, reach,
};
use crate::base::BaseModel;
use crate::name::{EMBEDDING, HEAD};
use crate::{Error, Result, WeightName};

/// Refuses a delta of another shape than its matrix.
pub(crate) fn check_shape(weight: &WeightName, grid: &Grid, delta: &CompiledDelta) -> Result<()> {
    for (what, expected, found) in
        [("rows", grid.rows(), delta.rows), ("columns", grid.cols, delta.cols)]
    {
        if expected != found {
            return Err(Error::DeltaShape { weight: weight.clone(), what, expected, found });
        }
    }
    Ok(())
}

/// Rows that the largest integers of base and deltas do not clear.
pub(crate) fn close_rows(grid: &Grid, deltas: &[&CompiledDelta]) -> Vec<usize> {
    let bound = |row: usize| {
        deltas
            .iter()
            .fold(u32::from(grid.row_max[row]), |sum, delta| sum.saturating_add(delta.row_max[row]))
    };
    (0..grid.rows()).filter(|&row| bound(row) > LIMIT).collect()
}

/// Counts those rows with their integers, `cols` each one after the other, to which `deltas` are
/// applied.
///
/// # Errors
/// [`Error::Overflow`], without a node's name, of the row that needs the most headroom.
pub(crate) fn check_rows(
    weight: &WeightName,
    grid: &Grid,
    rows: &[usize],
    integers: &[i16],
    deltas: &[SignedDelta<&CompiledDelta>],
) -> Result<()> {
    let integers = integers.par_chunks_exact(grid.cols.max(1));
    let reaches =
        rows.par_iter().zip(integers).map(|(&row, integers)| (row, reach(integers, row, deltas)));
    match reaches.max_by_key(|&(row, reach)| (reach, std::cmp::Reverse(row))) {
        Some((row, reach)) if reach > LIMIT => Err(overflow(weight, grid, row, reach)),
        _ => Ok(()),
    }
}

/// Counts those rows without their integers, of which only the largest magnitude is known: returns a
/// row that may leave the lattice, and the headroom at which it surely does not, if there is one.
///
/// # Errors
/// [`Error::Overflow`] where a row leaves the lattice whatever its integers are.
pub(crate) fn guess_rows(
    weight: &WeightName,
    grid: &Grid,
    rows: &[usize],
    deltas: &[&CompiledDelta],
) -> Result<Option<(usize, f64)>> {
    let sum = |&row: &usize| {
        let mut sums = vec![0; grid.cols];
        deltas.iter().for_each(|delta| delta.add_row(row, Sign::Add, &mut sums));
        let base = u32::from(grid.row_max[row]);
        let sum = largest_magnitude(&sums);
        (sum.saturating_add(base), sum.saturating_sub(base), row)
    };
    let sums: Vec<(u32, u32, usize)> = rows.par_iter().map(sum).collect();
    let furthest = sums.iter().max_by_key(|&&(most, _, row)| (most, std::cmp::Reverse(row)));
    match furthest {
        Some(&(most, _, row)) if sums.iter().any(|&(_, least, _)| least > LIMIT) => {
            Err(overflow(weight, grid, row, most))
        }
        Some(&(most, _, row)) if most > LIMIT => {
            Ok(Some((row, headroom_for(grid.headroom, most.into()))))
        }
        _ => Ok(None),
    }
}

fn overflow(weight: &WeightName, grid: &Grid, row: usize, reach: u32) -> Error {
    let (needed, headroom) = (headroom_for(grid.headroom, reach.into()), grid.headroom);
    Error::Overflow {
        node: String::new(),
        weight: weight.clone(),
        row,
        needed,
        headroom,
        in_store: false,
    }
}

/// Integers of some rows of a base matrix, one after the other, as [`quantise`](super::quantise())
/// makes them.
///
/// # Errors
/// What reading the base returns.
pub(crate) fn base_rows(
    base: &BaseModel,
    weight: &WeightName,
    grid: &Grid,
    rows: &[usize],
) -> Result<Vec<i16>> {
    let tied = base.config().tie_word_embeddings && weight.as_str() == HEAD;
    let source = if tied { &WeightName::new(EMBEDDING) } else { weight };
    let mut integers = vec![0; rows.len() * grid.cols];
    let targets = integers.par_chunks_exact_mut(grid.cols.max(1));
    targets.zip(rows).try_for_each(|(target, &row)| {
        let mut values = vec![0.0; grid.cols];
        base.read_rows(source, row..row + 1, &mut values)?;
        round_values(&values, grid.steps[row], target);
        Ok::<_, Error>(())
    })?;
    Ok(integers)
}

#[cfg(test)]
#[path = "fits_tests.rs"]
mod tests;
