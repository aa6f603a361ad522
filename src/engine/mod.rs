//! Many users at once on one copy of the weights: who runs next, and where the weights stand.
//!
//! `Scheduler` is a pure function of what it was given and the caller's clock: it reads no clock,
//! draws no chance and knows no model, only numbers. Each `Plan` is one step: sequences to
//! preempt, a place to stand, rows to run. Whoever carries it out says what it took, and the
//! `CostModel` that chose it learns from that.
//!
//! `Engine` is what people hold: it takes requests from any thread. Its driver alone owns the
//! weights and carries the plans out; a loader reads and compiles what is not in memory meanwhile.
//!
//! The weights stand at one node. A sequence whose node is there or below can run: what lies
//! between is applied to its rows in factored form, each node once to all rows below it. All others
//! wait until the weights move. Where to stand is a question of cost alone (`Cover`).
//!
//! **Invariant:** if any sequence can run, a plan has rows.
//! **Invariant:** no row runs where it does not belong: the weights stand on its path, at its merge
//! point if that is fixed, and every node of the path is ready.
//! **Invariant:** a running sequence makes a step within `stall_ms` and, beyond that, `max_running`
//! times the longest step with its switch. Once it is overdue, every step is for it or for one that
//! is overdue longer.
//! **Invariant:** while a tenant has a job waiting that fits, every other is admitted for at most as
//! much work as it, and one job and what holds a place beside; a job that does not fit is passed
//! over for `stall_ms` at most (`Scheduler::submit`).
//! **Invariant:** only the youngest lose their pages, never the oldest that runs; they come back
//! before anything new and in their order: a job is preempted a finite number of times.
//!
//! A request that runs holds its deltas; those of requests that wait are kept in memory as far as the
//! cache's budget goes, and where that is used up the loader reads no further.
//!
//! Pages are not held for the longest possible answer: few answers are that long, and without a
//! limit it is the whole context. A sequence is admitted with pages for its prompt and grows.

mod cost;
mod cover;
mod driver;
mod fit;
mod handle;
mod job;
mod loader;
mod nodes;
mod plan;
mod request;
mod scheduler;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod simulate;
mod status;
mod tenants;

pub use cost::{CostConstants, CostModel, Features, Measured, Prediction};
pub use cover::{Choice, Choose, Cover, Member, Scene};
pub use handle::{Engine, EngineOptions};
pub use job::{Job, JobId, Merge, Options};
pub use nodes::{NodeCost, NodePath, NodeTable, Serial};
pub use plan::{Outcome, Plan, Row, World};
pub use request::{Answer, Progress, Request};
pub use scheduler::Scheduler;
pub use status::{RecentSwitch, Status};
