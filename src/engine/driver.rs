//! The thread that owns the weights: it asks the scheduler for a plan and carries it out, step after
//! step.
//!
//! **Failures.** A row's own error ends its request. A step that fails as a whole, but leaves the
//! weights usable, is run again row by row, so that whoever is to blame ends alone. Where the
//! weights or the device are lost everything is loaded again and every sequence is run again from
//! its tokens; after [`MOST_RESTORES`] in a row without a step between them all requests end.
//!
//! **Invariant:** a request that was taken ends exactly once: with a step that says why, or an error.

mod step;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::handle::EngineOptions;
use super::job::{Job, JobId, Options};
use super::nodes::{NodeCost, NodePath, NodeTable, Serial};
use super::request::{Command, WaitingBytes, WaitingDeltas, Work};
use super::status::Status;
use super::{CostConstants, CostModel, Scheduler};
use crate::contain::contained;
use crate::device::PAGE;
use crate::error::EngineDefect;
use crate::lattice::{CompiledDelta, NodeDeltas};
use crate::model::{Pick, StopReason, TableId};
use crate::nodes::NodeVersion;
use crate::runtime::{Pool, Runtime, Shared};
use crate::{Error, Result};

/// How often the weights are loaded again without a step between.
const MOST_RESTORES: usize = 3;
/// How long it waits, with requests but nothing to run, before it looks at the clock again.
const IDLE: Duration = Duration::from_millis(20);

/// A request that runs or waits for its turn.
struct Active {
    work: Box<Work>,
    /// Its pages. Its deltas are held as long as it has a table.
    table: Option<TableId>,
    /// How its next token is chosen, from when that was first tried: however often a step fails,
    /// a random number is drawn once.
    pick: Option<Pick>,
}

pub(super) struct Driver {
    runtime: Runtime,
    shared: Arc<Shared>,
    kv_bytes: u64,
    /// Where keys and values are; none while there is no memory for them.
    pool: Option<Pool>,
    scheduler: Scheduler,
    active: HashMap<JobId, Active>,
    /// Versions that requests speak of, or that are applied, and how many speak of them.
    versions: BTreeMap<Serial, (NodeVersion, usize)>,
    commands: Receiver<Command>,
    waiting: Arc<WaitingBytes>,
    start: Instant,
    restores: usize,
    status: Arc<Mutex<Status>>,
}

impl Driver {
    pub(super) fn new(
        runtime: Runtime,
        options: &EngineOptions,
        start: Instant,
        commands: Receiver<Command>,
        waiting: Arc<WaitingBytes>,
    ) -> Result<Self> {
        let shared = runtime.shared.clone();
        let mut pool = runtime.replica.pool(options.kv_bytes)?;
        let stand = runtime.replica.current().clone();
        let pages = pool.pages().total();
        let bounds = options.scheduler.clone();
        // Whoever was given a place is not refused because those that could run have not begun to.
        let max_waiting = bounds.max_running.saturating_add(bounds.max_waiting);
        let scheduler = Options { pages, page_positions: PAGE, max_waiting, ..bounds };
        let grids = shared.grids();
        // Two bytes read and two written of each weight.
        let mut bytes: Vec<(usize, u64)> = grids
            .names()
            .map(|(_, id)| (id.0, (grids.grid(id).rows() * grids.grid(id).cols * 4) as u64))
            .collect();
        bytes.sort_unstable();
        let table = NodeTable::new(bytes.into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>());
        let cost = CostModel::new(&CostConstants::default());
        let scheduler = Scheduler::new(scheduler, cost, table)?;
        let mut driver = Self {
            runtime,
            shared,
            kv_bytes: options.kv_bytes,
            pool: Some(pool),
            scheduler,
            active: HashMap::new(),
            versions: BTreeMap::new(),
            commands,
            waiting,
            start,
            restores: 0,
            status: Arc::default(),
        };
        // What the weights leave when they first move.
        let applied = driver.shared.loaded(&stand).expect("what is applied is kept");
        driver.add_versions(&stand, &applied, 0);
        driver.note(false);
        Ok(driver)
    }

    pub(super) fn status(&self) -> Arc<Mutex<Status>> {
        self.status.clone()
    }

    fn now_ms(&self) -> f64 {
        self.start.elapsed().as_secs_f64() * 1e3
    }

    /// Serves until it is to stop.
    pub(super) fn run(mut self) -> Runtime {
        let mut has_work = true;
        loop {
            match self.next_command(has_work) {
                Ok(Some(Command::Run(work))) => self.take(work),
                Ok(Some(Command::Cancel(id))) => self.cancel(id),
                Ok(None) => {
                    has_work = self.step();
                    continue;
                }
                Ok(Some(Command::Stop)) | Err(()) => break,
            }
            has_work = true;
        }
        let ids: Vec<JobId> = self.active.keys().copied().collect();
        ids.into_iter().for_each(|id| self.end(id, Ok(StopReason::Cancelled)));
        self.runtime
    }

    /// The next command, if one has come. Without work it waits: for a command alone if there is no
    /// request, otherwise until it is time to look at deadlines again. An error: nobody is left who
    /// could send any.
    fn next_command(&self, has_work: bool) -> Result<Option<Command>, ()> {
        if has_work {
            return match self.commands.try_recv() {
                Err(TryRecvError::Disconnected) => Err(()),
                command => Ok(command.ok()),
            };
        }
        if self.active.is_empty() {
            return self.commands.recv().map(Some).map_err(drop);
        }
        match self.commands.recv_timeout(IDLE) {
            Err(RecvTimeoutError::Disconnected) => Err(()),
            command => Ok(command.ok()),
        }
    }

    /// Takes a request whose deltas are in memory.
    fn take(&mut self, mut work: Box<Work>) {
        if work.progress.is_cancelled() {
            work.script.decoding.end(StopReason::Cancelled);
        }
        if work.script.decoding.end_at_limits() {
            return self.say_end(work);
        }
        let is_lost = self.pool.is_none() || self.runtime.replica.check_usable().is_err();
        if is_lost && let Err(error) = self.restore() {
            return work.finish(Err(error));
        }
        let (id, version) = (work.id, work.version.clone());
        work.progress.begin(&version);
        let WaitingDeltas { path, .. } = work.deltas.as_ref().expect("they were brought along");
        self.add_versions(&version, path, 1);
        let job = Job {
            id,
            path: path_of(&version),
            prompt_tokens: work.script.decoding.prompt_tokens(),
            max_tokens: work.max_tokens,
            merge: work.merge,
            deadline_ms: work.deadline_ms,
        };
        self.active.insert(id, Active { work, table: None, pick: None });
        if let Err(error) = self.scheduler.submit(self.now_ms(), job) {
            self.end(id, Err(error));
        }
    }

    /// Counts `holders` more of a version and of all above it, whose deltas are `path`.
    fn add_versions(&mut self, version: &NodeVersion, path: &[Arc<NodeDeltas>], holders: usize) {
        for (version, deltas) in version.path().into_iter().zip(path) {
            let serial = Serial(version.serial());
            match self.versions.entry(serial) {
                Entry::Occupied(entry) => entry.into_mut().1 += holders,
                Entry::Vacant(entry) => {
                    self.scheduler.nodes().insert(serial, &cost_of(deltas));
                    entry.insert((version, holders));
                }
            }
        }
    }

    fn cancel(&mut self, id: JobId) {
        if self.active.contains_key(&id) {
            self.scheduler.cancel(id);
            self.end(id, Ok(StopReason::Cancelled));
        }
    }

    /// Ends a request and frees what it held.
    fn end(&mut self, id: JobId, why: Result<StopReason>) {
        if let Some(work) = self.remove(id) {
            self.say(work, why);
        }
    }

    /// Frees what a request held.
    fn remove(&mut self, id: JobId) -> Option<Box<Work>> {
        let Active { work, table, .. } = self.active.remove(&id)?;
        self.scheduler.cancel(id);
        work.progress.set_running(false);
        if let (Some(table), Some(pool)) = (table, &mut self.pool) {
            pool.pages().release(table);
            self.runtime.replica.release(&work.version);
        }
        for version in work.version.path() {
            if let Some((_, count)) = self.versions.get_mut(&Serial(version.serial())) {
                *count -= 1;
            }
        }
        self.forget_versions();
        Some(work)
    }

    /// Sends a request's last event.
    fn say(&self, mut work: Box<Work>, why: Result<StopReason>) {
        match why {
            Ok(reason) => {
                work.script.decoding.end(reason);
                self.say_end(work);
            }
            Err(error) => work.finish(Err(error)),
        }
    }

    /// Says how a text ended.
    fn say_end(&self, mut work: Box<Work>) {
        let said = self.shared.tokenizer().and_then(|tokenizer| work.script.step(tokenizer, None));
        work.finish(said);
    }

    /// Forgets versions that no request speaks of and that are not applied.
    fn forget_versions(&mut self) {
        let applied = path_of(self.runtime.replica.current());
        let gone = |(serial, (_, count)): (&Serial, &(NodeVersion, usize))| {
            (*count == 0 && !applied.contains(serial)).then_some(*serial)
        };
        let gone: Vec<Serial> = self.versions.iter().filter_map(gone).collect();
        for serial in gone {
            self.versions.remove(&serial);
            self.scheduler.nodes().remove(serial);
        }
    }

    /// A sequence loses its pages: it is run again from its tokens.
    fn drop_pages(&mut self, id: JobId) {
        let Some(Active { work, table, .. }) = self.active.get_mut(&id) else { return };
        work.script.decoding.restart();
        let Some(table) = table.take() else { return };
        work.progress.set_running(false);
        if let Some(pool) = &mut self.pool {
            pool.pages().release(table);
        }
        // For when it runs again.
        work.deltas = self.shared.loaded(&work.version).map(|path| self.waiting.keep(path));
        self.runtime.replica.release(&work.version);
        self.noting().preempted += 1;
    }

    /// The weights or the device are lost: loads everything again, or ends all requests.
    fn lost(&mut self) {
        if let Err(error) = self.runtime.replica.check_usable() {
            tracing::warn!("the weights are loaded again: {error}");
        }
        if let Err(error) = self.restore() {
            tracing::error!("the weights are lost: {error}");
        }
    }

    /// Loads everything again. All sequences are run again, or end where that cannot be.
    fn restore(&mut self) -> Result<()> {
        let ids: Vec<JobId> = self.active.keys().copied().collect();
        // What they hold is lost with the weights; until then it is kept for when they run again.
        ids.iter().for_each(|id| self.drop_pages(*id));
        ids.iter().for_each(|id| self.scheduler.restart(*id));
        self.restores += 1;
        let loaded =
            if self.restores > MOST_RESTORES { Err(Error::Unusable) } else { self.load_again() };
        if loaded.is_err() {
            ids.into_iter().for_each(|id| self.end(id, Err(Error::Unusable)));
            // Whoever comes next is worth another try.
            (self.restores, self.pool) = (0, None);
        }
        loaded
    }

    /// Loads weights and memory for keys and values. The old memory goes first: there is never
    /// enough for two.
    fn load_again(&mut self) -> Result<()> {
        self.pool = None;
        let replica = &mut self.runtime.replica;
        contained(|| replica.restore()).unwrap_or_else(panicked)?;
        self.pool = Some(self.runtime.replica.pool(self.kv_bytes)?);
        self.forget_versions();
        Ok(())
    }

    /// What it does, to be changed.
    fn noting(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&mut self, has_run: bool) {
        let pages = self.pool.as_mut().map_or((0, 0), |pool| {
            let pages = pool.pages();
            (pages.free(), pages.total())
        });
        let mut status = self.noting();
        self.runtime.replica.current().name().clone_into(&mut status.node);
        (status.running, status.waiting) = (self.scheduler.running(), self.scheduler.waiting());
        status.pages = pages;
        status.steps += u64::from(has_run);
        if status.steps % 64 == 1 {
            status.cost = self.scheduler.cost().to_string();
        }
    }
}

/// What a node costs.
fn cost_of(deltas: &NodeDeltas) -> NodeCost {
    let factors = |delta: &CompiledDelta| (delta.rank() * (delta.rows + delta.cols)) as u64;
    NodeCost {
        matrices: deltas.iter().map(|(id, _)| id.0).collect(),
        factors: deltas.iter().map(|(_, delta)| factors(delta)).sum(),
    }
}

fn panicked<T>(panic: String) -> Result<T> {
    Err(EngineDefect::Panicked { panic }.into())
}

fn path_of(version: &NodeVersion) -> NodePath {
    version.path().iter().map(|version| Serial(version.serial())).collect()
}
