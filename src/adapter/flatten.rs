//! The changes of a whole path as one low-rank change a weight, which is what other runtimes can
//! load.
//!
//! `Σ_k s_k · B_k · A_k = [B_1 B_2 …] · [s_1 A_1; s_2 A_2; …]`: the ranks add up, nothing is
//! approximated.
//!
//! **Source:** PEFT 0.21.2, `tuners/lora/model.py`, `add_weighted_adapter` with
//! `combination_type="cat"`.

use std::collections::BTreeMap;

use super::{AdapterDeltas, FloatDelta};
use crate::error::AdapterDefect;
use crate::{Error, Result, WeightName};

/// Sums the deltas of `path`, weight by weight, into low-rank ones with a scaling of 1: `lora_a` is
/// the levels' factors below each other, each times its scaling, `lora_b` the levels' factors side
/// by side.
///
/// The sum is exact but for one rounding to f32 of each `lora_a` whose scaling is no power of two.
/// A weight whose deltas have no rank component is left out.
///
/// # Errors
/// [`AdapterDefect::NotLowRank`] inside [`Error::Adapter`] for a dense or sparse delta;
/// [`Error::DeltaShape`] when the factors do not agree in shape.
pub fn flatten(path: &[&AdapterDeltas]) -> Result<AdapterDeltas> {
    let mut by_weight: BTreeMap<&WeightName, Vec<Level<'_>>> = BTreeMap::new();
    for (weight, delta) in path.iter().flat_map(|deltas| deltas.iter()) {
        if let Some(level) = Level::of(weight, delta)? {
            by_weight.entry(weight).or_default().push(level);
        }
    }
    by_weight
        .into_iter()
        .map(|(weight, levels)| Ok((weight.clone(), join(weight, &levels)?)))
        .collect()
}

/// One level's factors of one weight.
struct Level<'a> {
    rank: usize,
    shape: [usize; 2],
    lora_a: &'a [f32],
    lora_b: &'a [f32],
    scaling: f64,
}

impl<'a> Level<'a> {
    /// The factors of `delta`, or nothing if its rank is 0.
    fn of(weight: &WeightName, delta: &'a FloatDelta) -> Result<Option<Self>> {
        let (&rank, lora_a, lora_b, &scaling) = match delta {
            FloatDelta::LowRank { rank: 0, .. } => return Ok(None),
            FloatDelta::LowRank { rank, lora_a, lora_b, scaling } => {
                (rank, lora_a, lora_b, scaling)
            }
            FloatDelta::Dense { .. } => return Err(not_low_rank(weight, "dense")),
            FloatDelta::Sparse { .. } => return Err(not_low_rank(weight, "sparse")),
        };
        let shape = [lora_b.len() / rank, lora_a.len() / rank];
        check(weight, "elements of lora_a", rank * shape[1], lora_a.len())?;
        check(weight, "elements of lora_b", rank * shape[0], lora_b.len())?;
        Ok(Some(Self { rank, shape, lora_a, lora_b, scaling }))
    }
}

fn not_low_rank(weight: &WeightName, kind: &'static str) -> Error {
    let defect = AdapterDefect::NotLowRank { weight: weight.to_string(), kind };
    Error::adapter("from memory", defect)
}

/// The levels' factors as one pair.
fn join(weight: &WeightName, levels: &[Level<'_>]) -> Result<FloatDelta> {
    let [rows, cols] = levels[0].shape;
    for level in levels {
        check(weight, "rows of lora_b", rows, level.shape[0])?;
        check(weight, "columns of lora_a", cols, level.shape[1])?;
    }
    #[allow(
        clippy::cast_possible_truncation,
        reason = "rounding to f32 is what an adapter's file asks for"
    )]
    let scaled = |level: &Level<'_>, a: f32| (f64::from(a) * level.scaling) as f32;
    let lora_a =
        levels.iter().flat_map(|level| level.lora_a.iter().map(|&a| scaled(level, a))).collect();
    let lora_b = (0..rows).flat_map(|i| {
        levels.iter().flat_map(move |level| &level.lora_b[i * level.rank..][..level.rank])
    });
    let rank = levels.iter().map(|level| level.rank).sum();
    Ok(FloatDelta::LowRank { rank, lora_a, lora_b: lora_b.copied().collect(), scaling: 1.0 })
}

fn check(weight: &WeightName, what: &'static str, expected: usize, found: usize) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::DeltaShape { weight: weight.clone(), what, expected, found })
}
