//! Failures on demand: every write, sync, rename, new file and removal a store makes asks here first.
//!
//! **Invariant:** without a plan nothing fails and nothing is counted but an atomic that is never written.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Lets a store's steps to disk fail, for tests. Clones share one plan.
#[derive(Clone, Debug, Default)]
pub struct Faults(Option<Arc<Plan>>);

#[derive(Debug)]
struct Plan {
    /// Steps that still succeed.
    left: AtomicI64,
    /// Whether all steps after the first failure fail, too, as on a disk that is gone.
    for_good: bool,
    steps: AtomicU64,
}

impl Faults {
    /// The first `steps` succeed, the next fails, and with `for_good` all after it.
    pub fn after(steps: i64, for_good: bool) -> Self {
        Self(Some(Arc::new(Plan { left: AtomicI64::new(steps), for_good, steps: AtomicU64::new(0) })))
    }

    /// How many steps were asked for.
    pub fn steps(&self) -> u64 {
        self.0.as_ref().map_or(0, |plan| plan.steps.load(Ordering::Relaxed))
    }

    /// One step to disk.
    pub(super) fn step(&self) -> io::Result<()> {
        let Some(plan) = &self.0 else { return Ok(()) };
        plan.steps.fetch_add(1, Ordering::Relaxed);
        let left = plan.left.fetch_sub(1, Ordering::Relaxed);
        if left > 0 || (left < 0 && !plan.for_good) { Ok(()) } else { Err(io::Error::other("a failure was asked for")) }
    }

    /// A step that writes `bytes` by `write`; where it fails, half of them are written: a torn write.
    pub(super) fn write(&self, bytes: &[u8], write: impl FnOnce(&[u8]) -> io::Result<()>) -> io::Result<()> {
        match self.step() {
            Ok(()) => write(bytes),
            Err(error) => write(&bytes[..bytes.len() / 2]).and(Err(error)),
        }
    }
}
