//! A made machine that carries out plans by numbers, traces drawn from seeds, and other ways to
//! choose where to stand: what the scheduler is tested and compared with.
//!
//! **Invariant:** the machine trusts no plan: it checks each against what it knows itself, and
//! panics where one breaks a rule.
//! **Invariant:** equal seeds give equal runs.

#![allow(clippy::missing_panics_doc, reason = "only tests run this: it may panic")]
#![allow(clippy::cast_possible_truncation, reason = "what is counted here is far below 2^53")]

mod draw;
mod machine;
mod report;
mod rivals;
mod run;
mod trace;

pub use machine::{Machine, Speeds};
pub use report::{Report, percentile};
pub use rivals::{FixedDepth, MergedOrNot};
pub use run::{Run, run};
pub use trace::{Arrival, Kind, Trace};
