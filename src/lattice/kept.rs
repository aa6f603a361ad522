//! What share of a node's change the lattice keeps: one figure a node, over every entry of every
//! matrix it touches.
//!
//! With `D` the change in floats and `Q_ij · u_i` what the lattice adds,
//!
//! ```text
//! kept = 1 − ‖Q·u − D‖ / ‖D‖        Frobenius norms over all matrices of the node, at least 0
//! ```
//!
//! It is 1 where every entry is a whole number of steps, 0 where all lie below half a step and
//! nothing is left, and its distance from 1 is the relative error of what a layer adds to an input
//! of no preferred direction. A change whose entries are 5 steps on average keeps about 94 %, one
//! of half a step about half. [`tighten_and_count`](crate::device::cpu::tighten_and_count) counts
//! it while an adapter is compiled; [`row_squares`] is the definition. The integers do not depend
//! on it.

use super::{CompiledDelta, Grid, Sign, headroom_for};
use crate::WeightName;
use crate::adapter::FloatDelta;

/// A node that keeps less is warned about.
pub const KEPT_ENOUGH: f64 = 0.99;

/// The smallest headroom that is of any use: at 1 a row's largest weight cannot grow.
const LEAST_HEADROOM: f64 = 1.01;

/// A smaller headroom is advised where it makes the steps this much finer, or keeps enough.
const MUCH_FINER: f64 = 0.7;

/// Squares of Frobenius norms of one matrix, in the unit of weights.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Squares {
    /// `‖D‖²`.
    pub change: f64,
    /// `‖Q·u − D‖²`.
    pub lost: f64,
}

impl Squares {
    /// The share that is kept; none where there is no change.
    pub fn kept(&self) -> Option<f64> {
        (self.change > 0.0).then(|| (1.0 - (self.lost / self.change).sqrt()).max(0.0))
    }
}

impl std::ops::AddAssign for Squares {
    fn add_assign(&mut self, other: Self) {
        self.change += other.change;
        self.lost += other.lost;
    }
}

/// What share of a node's change the lattice keeps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Kept {
    total: Squares,
    /// The matrix that loses most, what it loses and the share it keeps.
    worst: Option<(WeightName, f64, f64)>,
    headroom: f64,
    /// The headroom at which the node alone fits, as far as the largest integers of its rows show.
    needed: f64,
}

impl Kept {
    /// Adds a matrix.
    pub fn add(
        &mut self,
        weight: &WeightName,
        squares: Squares,
        delta: &CompiledDelta,
        grid: &Grid,
    ) {
        self.total += squares;
        let reach = grid
            .row_max
            .iter()
            .zip(&delta.row_max)
            .map(|(&base, &q)| u64::from(base) + u64::from(q))
            .max();
        self.headroom = grid.headroom.into();
        #[allow(clippy::cast_precision_loss, reason = "below 2^33")]
        let needed = headroom_for(grid.headroom, reach.unwrap_or(0) as f64);
        self.needed = self.needed.max(needed);
        if let Some(kept) = squares.kept()
            && self.worst.as_ref().is_none_or(|(_, lost, _)| squares.lost > *lost)
        {
            self.worst = Some((weight.clone(), squares.lost, kept));
        }
    }

    /// The share, 0 to 1; none where the node changes nothing.
    pub fn share(&self) -> Option<f64> {
        self.total.kept()
    }

    /// Whether so much is lost that it should be reported: less than [`KEPT_ENOUGH`] is kept.
    pub fn is_low(&self) -> bool {
        self.share().is_some_and(|share| share < KEPT_ENOUGH)
    }

    /// The matrix that loses most of the change, and the share it keeps.
    pub fn worst(&self) -> Option<(&WeightName, f64)> {
        self.worst.as_ref().map(|(weight, _, kept)| (weight, *kept))
    }

    /// The smaller headroom at which the node alone would fit, if there is one that helps, and the
    /// share that it would keep, about: what is lost shrinks with the step where entries are larger
    /// than that.
    pub fn smaller_headroom(&self) -> Option<(f64, f64)> {
        let headroom = self.needed.max(LEAST_HEADROOM);
        let share = 1.0 - (1.0 - self.share()?) * headroom / self.headroom;
        let helps = headroom <= self.headroom * MUCH_FINER
            || (headroom < self.headroom && share >= KEPT_ENOUGH);
        helps.then_some((headroom, share))
    }

    /// What to say of a share that is low: `the lattice keeps 46.1 % of its change …`, and what
    /// can be done about it, `in_store` or where the base is opened.
    pub fn warning(&self, in_store: bool) -> String {
        let share = percent(self.share().unwrap_or(1.0));
        let worst = self.worst().map(|(weight, kept)| {
            format!("; most is lost in {weight}, which keeps {}", percent(kept))
        });
        let advice = match self.smaller_headroom() {
            Some((headroom, share)) => {
                let how = if in_store { "import again with" } else { "open the base with" };
                let share = percent(share);
                format!(
                    "{how} a headroom of {headroom} (--headroom {headroom}), which holds it alone and keeps about {share}"
                )
            }
            None => "no smaller headroom would help much, a larger change would: train it further, or raise alpha"
                .to_owned(),
        };
        let worst = worst.unwrap_or_default();
        format!(
            "the lattice keeps {share} of its change, since much of that lies below half a step{worst}; {advice}"
        )
    }
}

/// A share for people: rounded down, so that 100 % is nothing but all.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", (share * 1000.0).floor() / 10.0)
}

/// Row `i` of the change, in weights, in f64.
pub fn change_row(float: &FloatDelta, i: usize, row: &mut [f64]) {
    row.fill(0.0);
    match float {
        FloatDelta::LowRank { rank, lora_a, lora_b, scaling } => {
            for (&b, a) in
                lora_b[i * rank..][..*rank].iter().zip(lora_a.chunks_exact(row.len().max(1)))
            {
                let b = f64::from(b) * scaling;
                row.iter_mut().zip(a).for_each(|(d, &a)| *d += b * f64::from(a));
            }
        }
        FloatDelta::Dense { values } => {
            let cols = row.len();
            row.iter_mut().zip(&values[i * cols..]).for_each(|(d, &value)| *d = value.into());
        }
        FloatDelta::Sparse { entries } => {
            let start = entries.partition_point(|entry| (entry.0 as usize) < i);
            let of_row = entries[start..].iter().take_while(|entry| entry.0 as usize == i);
            of_row.for_each(|&(_, j, value)| row[j as usize] = value.into());
        }
    }
}

/// The squares of row `i`, by the definition.
pub fn row_squares(float: &FloatDelta, delta: &CompiledDelta, grid: &Grid, i: usize) -> Squares {
    let mut change = vec![0.0; grid.cols];
    change_row(float, i, &mut change);
    let mut integers = vec![0; grid.cols];
    delta.add_row(i, Sign::Add, &mut integers);
    let step = f64::from(grid.steps[i]);
    let mut squares = Squares::default();
    for (d, q) in change.into_iter().zip(integers) {
        #[allow(clippy::cast_precision_loss, reason = "at most 9 chunks of below 2^31")]
        let lost = q as f64 * step - d;
        squares += Squares { change: d * d, lost: lost * lost };
    }
    squares
}
