//! Failures on demand, and a store opened with them: for tests, and compiled only with the feature
//! `testing`. Every step to disk that a store makes ([`Disk`]) asks here first, and a test may
//! watch.
//!
//! **Invariant:** without a plan nothing fails and nothing is counted.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use super::disk::Disk;
use super::{Options, SEGMENT_BYTES, Store, StoreInfo};
use crate::Result;
use crate::lattice::BaseLattice;

/// Lets a store's steps to disk fail, for tests. Clones share one plan.
#[derive(Clone, Debug, Default)]
pub struct Faults(Option<Arc<Plan>>);

struct Plan {
    /// Steps that still succeed.
    left: AtomicI64,
    /// Whether all steps after the first failure fail, too, as on a disk that is gone.
    for_good: bool,
    steps: AtomicU64,
    /// What a failure is.
    kind: io::ErrorKind,
    /// Is called before each step, with its number.
    watcher: Option<Watcher>,
}

type Watcher = Box<dyn Fn(u64) + Send + Sync>;

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan")
            .field("left", &self.left)
            .field("steps", &self.steps)
            .finish_non_exhaustive()
    }
}

impl Faults {
    /// The first `steps` succeed, the next fails, and with `for_good` all after it.
    pub fn after(steps: i64, for_good: bool) -> Self {
        Self::plan(steps, for_good, io::ErrorKind::Other, None)
    }

    /// The first `steps` succeed, the next finds the disk full.
    pub fn no_space_after(steps: i64) -> Self {
        Self::plan(steps, false, io::ErrorKind::StorageFull, None)
    }

    /// Nothing fails; `watcher` is called before each step with its number, from 0 on.
    pub fn watched(watcher: impl Fn(u64) + Send + Sync + 'static) -> Self {
        Self::plan(i64::MAX, false, io::ErrorKind::Other, Some(Box::new(watcher)))
    }

    fn plan(left: i64, for_good: bool, kind: io::ErrorKind, watcher: Option<Watcher>) -> Self {
        let (left, steps) = (AtomicI64::new(left), AtomicU64::new(0));
        Self(Some(Arc::new(Plan { left, for_good, steps, kind, watcher })))
    }

    /// How many steps were asked for.
    pub fn steps(&self) -> u64 {
        self.0.as_ref().map_or(0, |plan| plan.steps.load(Ordering::Relaxed))
    }

    /// One step to disk.
    pub(super) fn step(&self) -> io::Result<()> {
        let Some(plan) = &self.0 else { return Ok(()) };
        let step = plan.steps.fetch_add(1, Ordering::Relaxed);
        if let Some(watcher) = &plan.watcher {
            watcher(step);
        }
        let left = plan.left.fetch_sub(1, Ordering::Relaxed);
        let succeeds = left > 0 || (left < 0 && !plan.for_good);
        if succeeds { Ok(()) } else { Err(io::Error::new(plan.kind, "a failure was asked for")) }
    }
}

/// How a store is opened by a test.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// What fails.
    pub faults: Faults,
    /// Longest segment, in bytes.
    pub segment_bytes: u64,
    /// Only to be read, also where it could be written.
    pub read_only: bool,
    /// Longest wait for another process.
    pub wait_limit: Option<Duration>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            faults: Faults::default(),
            segment_bytes: SEGMENT_BYTES,
            read_only: false,
            wait_limit: None,
        }
    }
}

impl From<&StoreOptions> for Options {
    fn from(options: &StoreOptions) -> Self {
        let StoreOptions { faults, segment_bytes, read_only, wait_limit } = options.clone();
        Self { disk: Disk { faults }, segment_bytes, read_only, wait_limit }
    }
}

impl Store {
    /// [`Self::create`] with options.
    ///
    /// # Errors
    /// As [`Self::create`].
    #[doc(hidden)]
    pub fn create_with(
        folder: &Path,
        info: StoreInfo,
        lattice: &BaseLattice,
        options: &StoreOptions,
    ) -> Result<Self> {
        Self::create_by(folder, info, lattice, &options.into())
    }

    /// [`Self::open`] with options.
    ///
    /// # Errors
    /// As [`Self::open`].
    #[doc(hidden)]
    pub fn open_with(folder: &Path, options: &StoreOptions) -> Result<Self> {
        Self::open_by(folder, &options.into())
    }
}
