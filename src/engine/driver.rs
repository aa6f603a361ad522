//! The thread that owns the weights: it asks the scheduler for a plan and carries it out, step after
//! step.
//!
//! **Failures.** A row's own error ends its request. A step that fails as a whole, but leaves the
//! weights usable, is run again row by row, so that whoever is to blame ends alone. Where the
//! weights or the device are lost everything is loaded again and every sequence is run again from
//! its tokens; after [`MOST_RESTORES`] in a row without a step between them all requests end.
//!
//! **Invariant:** a request that was taken ends exactly once: with a step that says why, or an error.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::handle::EngineOptions;
use super::job::{Job, JobId, Options};
use super::nodes::{NodeCost, NodePath, NodeTable, Serial};
use super::plan::{Outcome, Plan, Row, World};
use super::request::{Command, WaitingBytes, WaitingDeltas, Work};
use super::{CostConstants, CostModel, Scheduler};
use crate::contain::contained;
use crate::device::PAGE;
use crate::error::EngineDefect;
use crate::lattice::{CompiledDelta, NodeDeltas};
use crate::model::{Pick, Picked, StopReason, TableId};
use crate::nodes::NodeVersion;
use crate::runtime::{Pool, Runtime, Shared, StepRow};
use crate::{Error, Result};

/// How often the weights are loaded again without a step between.
const MOST_RESTORES: usize = 3;
/// How long it waits, with requests but nothing to run, before it looks at the clock again.
const IDLE: Duration = Duration::from_millis(20);

/// What an engine does.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Node where the weights stand.
    pub node: String,
    /// Sequences that hold pages.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Pages of keys and values that nobody holds, and all.
    pub pages: (usize, usize),
    /// Steps so far.
    pub steps: u64,
    /// Tokens that were run, those of prompts too.
    pub tokens: u64,
    /// Switches so far.
    pub switches: u64,
    /// Sequences that lost their pages and were run again.
    pub preempted: u64,
    /// What things are expected to take, a line a term.
    pub cost: String,
}

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
    /// Tokens that were run since the status was last written.
    run_tokens: usize,
    status: Arc<Mutex<Status>>,
}

/// What a row came to.
type Made = (JobId, Result<Option<Picked>>);

/// What the rows of a step came to.
#[derive(Default)]
struct Ran {
    made: Vec<Made>,
    /// Tokens that were run.
    tokens: usize,
    /// Passes of the model.
    passes: usize,
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
            run_tokens: 0,
            status: Arc::default(),
        };
        // What the weights leave when they first move.
        let applied = driver.shared.loaded(&stand).expect("what is applied is kept");
        driver.add_versions(&stand, &applied, 0);
        driver.note(false, false);
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
        if work.is_cancelled.load(Ordering::Acquire) {
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

    /// Plans one step and carries it out; whether there was anything to do.
    fn step(&mut self) -> bool {
        let stand = path_of(self.runtime.replica.current());
        let free_pages = self.pool.as_mut().map_or(0, |pool| pool.pages().free());
        let world = World { stand, free_pages };
        let mut plan = self.scheduler.plan(self.now_ms(), &world);
        for id in &plan.expired {
            self.end(*id, Err(EngineDefect::DeadlinePassed.into()));
        }
        for id in &plan.preempted {
            self.drop_pages(*id);
        }
        if plan.rows.is_empty() {
            self.note(false, false);
            return false;
        }
        let is_changed = self.admit_rows(&mut plan);
        if self.runtime.replica.check_usable().is_err() {
            self.lost();
            return true;
        }
        let mut outcome = Outcome::default();
        if plan.stand != world.stand
            && !plan.rows.is_empty()
            && let Err(error) = self.switch(&plan, &mut outcome)
        {
            self.switch_failed(&plan, error);
            return true;
        }
        let start = Instant::now();
        match self.run_rows(&plan.rows) {
            Ok(Ran { made, tokens, passes }) => {
                let is_as_planned = passes == 1 && tokens == plan.tokens() && !is_changed;
                outcome.step_ms = is_as_planned.then(|| start.elapsed().as_secs_f64() * 1e3);
                self.restores = 0;
                self.run_tokens += tokens;
                self.finish(&plan, made, outcome);
            }
            Err(_) => self.lost(),
        }
        true
    }

    /// Moves the weights to where the plan wants them.
    fn switch(&mut self, plan: &Plan, outcome: &mut Outcome) -> Result<()> {
        let target = match plan.stand.last() {
            Some(serial) => self.versions[serial].0.clone(),
            None => self.shared.nodes.root().clone(),
        };
        let start = Instant::now();
        let replica = &mut self.runtime.replica;
        contained(|| replica.switch(&target)).unwrap_or_else(panicked)?;
        outcome.switch_ms = Some(start.elapsed().as_secs_f64() * 1e3);
        self.forget_versions();
        Ok(())
    }

    /// The weights did not move: whoever of the plan needed them there ends, unless they are lost.
    fn switch_failed(&mut self, plan: &Plan, error: Error) {
        if self.runtime.replica.check_usable().is_err() {
            return self.lost();
        }
        let why = error.to_string();
        let mut error = Some(error);
        for row in &plan.rows {
            let same = || EngineDefect::SwitchFailed { why: why.clone() }.into();
            self.end(row.id, Err(error.take().unwrap_or_else(same)));
        }
    }

    /// Makes a plan's rows ready to be run: their deltas held, tables opened, pages given. Whether the
    /// rows are others than planned: one whose deltas cannot be held ends; of a prompt whose beginning
    /// is in the cache already the rest is run; and pages that are shared are not free when one of those
    /// that share them lets go, so there may be fewer than the plan counts with: then, as in a plan, the
    /// youngest lose theirs.
    fn admit_rows(&mut self, plan: &mut Plan) -> bool {
        let (mut gone, mut is_changed) = (BTreeSet::new(), false);
        for row in &mut plan.rows {
            if gone.contains(&row.id) {
                continue;
            }
            if let Err(error) = self.admit(row.id) {
                gone.insert(row.id);
                // Of lost weights nobody is to blame.
                if self.runtime.replica.check_usable().is_err() {
                    break;
                }
                let others_let_go = self.scheduler.running() > 1;
                match error {
                    Error::DeviceMemory { .. } if others_let_go => self.scheduler.restart(row.id),
                    error => self.end(row.id, Err(error)),
                }
            }
            while !gone.contains(&row.id) && !self.give_pages(row, &mut is_changed) {
                let youngest = self.scheduler.youngest().expect("whoever has a row runs");
                self.drop_pages(youngest);
                self.scheduler.restart(youngest);
                gone.insert(youngest);
            }
        }
        plan.rows.retain(|row| !gone.contains(&row.id));
        is_changed || !gone.is_empty()
    }

    /// Holds a request's deltas and opens its table, if that was not done before.
    fn admit(&mut self, id: JobId) -> Result<()> {
        let (Some(Active { work, table: table @ None, .. }), Some(pool)) =
            (self.active.get_mut(&id), &mut self.pool)
        else {
            return Ok(());
        };
        if let Some(WaitingDeltas { path, .. }) = &work.deltas {
            for (version, deltas) in work.version.path().iter().zip(path) {
                self.shared.put_back(version, deltas.clone());
            }
        }
        let replica = &mut self.runtime.replica;
        contained(|| replica.hold(&work.version)).unwrap_or_else(panicked)?;
        work.deltas = None;
        let (owner, tokens) = (replica.owner(&work.version), work.script.decoding.tokens());
        *table = Some(pool.pages().open_behind(owner, &work.salt, tokens));
        Ok(())
    }

    /// Gives a row its pages; whether there were enough.
    fn give_pages(&mut self, row: &mut Row, is_changed: &mut bool) -> bool {
        let (Some(Active { work, table: Some(table), .. }), Some(pool)) =
            (self.active.get(&row.id), &mut self.pool)
        else {
            return true;
        };
        let found = pool.pages().len(*table);
        if found > row.from {
            self.scheduler.found(row.id, found);
            let rest = work.script.decoding.tokens().len() - found;
            (row.from, row.tokens) = (found, row.tokens.min(rest));
            row.is_last = row.tokens == rest;
            *is_changed = true;
        }
        pool.pages().reserve(*table, row.pages).is_ok()
    }

    /// Runs rows whose tables have their pages; if that fails as a whole, each by itself. An error:
    /// the weights or the device are lost.
    fn run_rows(&mut self, rows: &[Row]) -> Result<Ran> {
        let error = match self.run_together(rows) {
            Ok(ran) => return Ok(ran),
            Err(error) => error,
        };
        self.runtime.replica.check_usable()?;
        if let [row] = rows {
            return Ok(Ran { made: vec![(row.id, Err(error))], ..Ran::default() });
        }
        let mut all = Ran::default();
        for row in rows {
            let Ran { made, tokens, passes } = self.run_rows(std::slice::from_ref(row))?;
            all.made.extend(made);
            (all.tokens, all.passes) = (all.tokens + tokens, all.passes + passes);
        }
        Ok(all)
    }

    /// Runs rows in one pass of the model.
    fn run_together(&mut self, rows: &[Row]) -> Result<Ran> {
        let pool = self.pool.as_mut().expect("there is one while sequences run");
        let mut parts = Vec::new();
        for row in rows {
            let Some(Active { work, table, pick, .. }) = self.active.get_mut(&row.id) else {
                continue;
            };
            let table = table.expect("it was given its pages");
            let range = row.from..row.from + row.tokens;
            let decoding = &mut work.script.decoding;
            let pick = row.is_last.then(|| *pick.get_or_insert_with(|| decoding.pick()));
            parts.push((row.id, table, range, pick));
        }
        if parts.is_empty() {
            return Ok(Ran::default());
        }
        let step_row = |(id, table, range, pick): &(JobId, TableId, std::ops::Range<usize>, _)| {
            let work = &self.active[id].work;
            let tokens = &work.script.decoding.tokens()[range.clone()];
            StepRow { version: &work.version, table: *table, tokens, pick: *pick }
        };
        let step_rows: Vec<StepRow<'_>> = parts.iter().map(step_row).collect();
        let replica = &self.runtime.replica;
        let made = contained(|| replica.step(pool, &step_rows)).unwrap_or_else(panicked)?;
        let tokens = parts.iter().map(|(_, _, range, _)| range.len()).sum();
        let made = parts.iter().map(|part| part.0).zip(made).collect();
        Ok(Ran { made, tokens, passes: 1 })
    }

    /// Hands out what a plan's rows came to.
    fn finish(&mut self, plan: &Plan, made: Vec<Made>, mut outcome: Outcome) {
        let (mut ended, mut failed) = (Vec::new(), Vec::new());
        for (id, made) in made {
            match made.and_then(|picked| self.hand_out(id, picked)) {
                Ok(None) => {}
                Ok(Some(reason)) => ended.push((id, reason)),
                Err(error) => failed.push((id, error)),
            }
        }
        for row in &plan.rows {
            if let Some(Active { work, table: Some(_), .. }) = self.active.get_mut(&row.id) {
                work.script.decoding.ran(row.from + row.tokens);
            }
        }
        outcome.ended = ended.iter().map(|(id, _)| *id).collect();
        self.scheduler.done(self.now_ms(), plan, &outcome);
        let ended = ended.into_iter().map(|(id, reason)| (id, Ok(reason)));
        let all = ended.chain(failed.into_iter().map(|(id, error)| (id, Err(error))));
        let gone: Vec<_> = all.filter_map(|(id, why)| Some((self.remove(id)?, why))).collect();
        // Whoever has their answer finds it counted.
        self.note(true, outcome.switch_ms.is_some());
        gone.into_iter().for_each(|(work, why)| self.say(work, why));
    }

    /// Takes a row's token and sends its text. Returns why the text ends, if it does: its last
    /// step is sent by [`Self::end`].
    fn hand_out(&mut self, id: JobId, picked: Option<Picked>) -> Result<Option<StopReason>> {
        let (Some(Active { work, pick, .. }), Some(picked)) = (self.active.get_mut(&id), picked)
        else {
            return Ok(None);
        };
        *pick = None;
        let decoding = &mut work.script.decoding;
        let token = match picked {
            Picked::Token(token) => token,
            Picked::Logits(logits) => decoding.choose_from(logits)?,
        };
        let token = decoding.take(token);
        let tokenizer = self.shared.tokenizer()?;
        if let Some(token) = token {
            let mut step = work.script.step(tokenizer, Some(token))?;
            // Its end is said once, with the last of the text.
            let stop = step.stop.take();
            if work.events.send(Ok(step)).is_err() {
                return Ok(Some(StopReason::Cancelled));
            }
            if stop.is_some() {
                return Ok(stop);
            }
        }
        work.script.decoding.end_at_limits();
        Ok(work.script.decoding.stop())
    }

    /// A sequence loses its pages: it is run again from its tokens.
    fn drop_pages(&mut self, id: JobId) {
        let Some(Active { work, table, .. }) = self.active.get_mut(&id) else { return };
        work.script.decoding.restart();
        let Some(table) = table.take() else { return };
        if let Some(pool) = &mut self.pool {
            pool.pages().release(table);
        }
        // For when it runs again.
        work.deltas = self.shared.loaded(&work.version).map(|path| self.waiting.keep(path));
        self.runtime.replica.release(&work.version);
        self.status.lock().unwrap_or_else(PoisonError::into_inner).preempted += 1;
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

    fn note(&mut self, has_run: bool, has_switched: bool) {
        let pages = self.pool.as_mut().map_or((0, 0), |pool| {
            let pages = pool.pages();
            (pages.free(), pages.total())
        });
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        self.runtime.replica.current().name().clone_into(&mut status.node);
        (status.running, status.waiting) = (self.scheduler.running(), self.scheduler.waiting());
        status.pages = pages;
        status.steps += u64::from(has_run);
        status.tokens += std::mem::take(&mut self.run_tokens) as u64;
        status.switches += u64::from(has_switched);
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
