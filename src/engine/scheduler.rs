//! The state between two steps, and how it becomes the next step.

use std::collections::{BTreeMap, BTreeSet};

use super::cost::{CostModel, Measured};
use super::cover::{Choose, Cover, Member, Scene};
use super::job::{Job, JobId, Options};
use super::nodes::{NodePath, NodeTable, Serial};
use super::plan::{Outcome, Part, Plan, Row, World, features};
use super::tenants::{Queue, Verdict};
use crate::error::EngineDefect;
use crate::{Error, Result};

/// What a token that is made weighs in a tenant's share, against a token of a prompt.
const MADE_WEIGHT: f64 = 3.0;

/// Decides step by step who runs and where the weights stand.
pub struct Scheduler {
    options: Options,
    cost: CostModel,
    table: NodeTable,
    choose: Box<dyn Choose + Send>,
    sequences: BTreeMap<JobId, Sequence>,
    /// Those that hold pages, the oldest first.
    running: BTreeMap<u64, JobId>,
    queue: Queue,
    /// Jobs submitted so far.
    submitted: u64,
    /// Who ran in the last step.
    ran: BTreeSet<JobId>,
    /// What share of their `max_tokens` answers have, lately.
    share: f64,
}

/// A job in work.
struct Sequence {
    job: Job,
    /// Its number among all that were submitted.
    order: u64,
    submitted_ms: f64,
    /// New tokens so far.
    made: usize,
    /// Positions in the cache.
    computed: usize,
    /// Pages it holds.
    pages: usize,
    is_running: bool,
    /// Since when it could run and did not; none while it waits for its turn to be admitted.
    since_ms: Option<f64>,
    /// What its tenant was charged with for it.
    charge: f64,
}

impl Sequence {
    /// Tokens to run until the next is chosen.
    fn tokens(&self) -> usize {
        self.job.prompt_tokens + self.made - self.computed
    }

    /// Positions that it is admitted with: what there is and the next token, unless that is the last,
    /// which is not run.
    fn first_positions(&self) -> usize {
        (self.job.prompt_tokens + self.made + 1).min(self.job.most_positions())
    }

    fn is_finished(&self) -> bool {
        self.tokens() == 0 || self.made > 0 && self.made >= self.job.max_tokens
    }

    /// What it weighs in its tenant's share if it makes so many tokens.
    fn weight(&self, made: f64) -> f64 {
        self.job.prompt_tokens as f64 + MADE_WEIGHT * made
    }
}

impl Scheduler {
    /// A scheduler without jobs.
    ///
    /// # Errors
    /// [`EngineDefect::Option`] for bounds that nothing can run within.
    pub fn new(options: Options, cost: CostModel, table: NodeTable) -> Result<Self> {
        Self::with_choice(options, cost, table, Box::new(Cover))
    }

    /// The same with another way to choose where to stand.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_choice(
        options: Options,
        cost: CostModel,
        table: NodeTable,
        choose: Box<dyn Choose + Send>,
    ) -> Result<Self> {
        options.check()?;
        Ok(Self {
            options,
            cost,
            table,
            choose,
            sequences: BTreeMap::new(),
            running: BTreeMap::new(),
            queue: Queue::default(),
            submitted: 0,
            ran: BTreeSet::new(),
            share: 1.0,
        })
    }

    /// What things are expected to take by now.
    pub fn cost(&self) -> &CostModel {
        &self.cost
    }

    /// The nodes, to be added before a job speaks of them.
    pub fn nodes(&mut self) -> &mut NodeTable {
        &mut self.table
    }

    /// Sequences that hold pages.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Jobs that wait.
    pub fn waiting(&self) -> usize {
        self.sequences.len() - self.running.len()
    }

    /// Puts a job into the queue.
    ///
    /// Subtrees at the top of the tree share the machine: next is a job of the one that was admitted
    /// for least, within it the first that came. Who does not fit into the free pages is passed
    /// over at first; once it has waited for `stall_ms`, nobody is admitted before it.
    ///
    /// # Errors
    /// [`EngineDefect::QueueFull`]; [`Error::EmptyPrompt`]; [`EngineDefect::TooLarge`] where all pages
    /// together do not hold it; [`EngineDefect::Repeated`] for a name that is in work;
    /// [`EngineDefect::UnknownNodeCost`] for a path with a node that the table lacks.
    pub fn submit(&mut self, now_ms: f64, job: Job) -> Result<()> {
        let (id, limit) = (job.id, self.options.pages);
        if job.prompt_tokens == 0 {
            return Err(Error::EmptyPrompt);
        }
        if self.sequences.contains_key(&id) {
            return Err(EngineDefect::Repeated { id: id.0 }.into());
        }
        self.table.check(&job.path)?;
        let needed = self.options.pages_of(job.most_positions());
        if needed > limit {
            return Err(EngineDefect::TooLarge { needed, limit }.into());
        }
        let (waiting, limit) = (self.waiting(), self.options.max_waiting);
        if waiting >= limit {
            return Err(EngineDefect::QueueFull { waiting, limit }.into());
        }
        let order = self.submitted;
        self.submitted += 1;
        self.queue.push(job.tenant(), order, id);
        let sequence = Sequence {
            job,
            order,
            submitted_ms: now_ms,
            made: 0,
            computed: 0,
            pages: 0,
            is_running: false,
            since_ms: None,
            charge: 0.0,
        };
        self.sequences.insert(id, sequence);
        Ok(())
    }

    /// Forgets a job; whoever has its pages frees them. False if there is none of that name.
    pub fn cancel(&mut self, id: JobId) -> bool {
        self.forget(id).is_some()
    }

    /// Says that a node is being read or compiled and cannot be used until [`Self::ready`]. Jobs at
    /// it or below wait without holding up others. Gives back those that were running there: they
    /// lose their pages and wait, too.
    pub fn not_ready(&mut self, node: Serial) -> Vec<JobId> {
        self.table.set_ready(node, false);
        let is_below = |id: &&JobId| self.sequences[id].job.path.contains(&node);
        let below: Vec<JobId> = self.running.values().filter(is_below).copied().collect();
        below.iter().for_each(|id| self.restart(*id));
        below
    }

    /// Says that a node can be used.
    pub fn ready(&mut self, node: Serial) {
        self.table.set_ready(node, true);
    }

    /// Says that the first `positions` of a sequence that runs are in the cache already, computed for
    /// another of the same beginning.
    pub fn found(&mut self, id: JobId, positions: usize) {
        if let Some(sequence) = self.sequences.get_mut(&id).filter(|s| s.is_running) {
            sequence.computed = sequence.computed.max(positions);
        }
    }

    /// Of those that hold pages the one that came last: the first to lose them.
    pub fn youngest(&self) -> Option<JobId> {
        self.running.last_key_value().map(|(_, id)| *id)
    }

    /// Says that a sequence lost its keys and values: it waits, in front of all that is new, and all
    /// its tokens are run again.
    pub fn restart(&mut self, id: JobId) {
        let Some(sequence) = self.sequences.get_mut(&id).filter(|s| s.is_running) else { return };
        sequence.is_running = false;
        (sequence.computed, sequence.pages, sequence.since_ms) = (0, 0, None);
        self.running.remove(&sequence.order);
        self.queue.push_returned(sequence.order, id);
    }

    /// Takes a job out of everything.
    fn forget(&mut self, id: JobId) -> Option<Sequence> {
        let sequence = self.sequences.remove(&id)?;
        let tenant = sequence.job.tenant();
        if !sequence.is_running {
            self.queue.take(tenant, sequence.order, None);
        }
        self.running.remove(&sequence.order);
        self.ran.remove(&id);
        if sequence.charge > 0.0 {
            self.queue.settle(tenant, sequence.weight(sequence.made as f64) - sequence.charge);
        }
        Some(sequence)
    }

    /// Decides the next step. What it preempts has lost its pages, and what it admits holds some,
    /// whether or not the step is carried out; rows advance with [`Self::done`] alone.
    pub fn plan(&mut self, now_ms: f64, world: &World) -> Plan {
        let mut free_pages = world.free_pages;
        let expired = self.expire(now_ms, &mut free_pages);
        let mut plan = Plan {
            expired,
            preempted: Vec::new(),
            stand: world.stand.clone(),
            switch_bytes: 0.0,
            rows: Vec::new(),
            features: Default::default(),
            predicted: Default::default(),
        };
        let mut passed_over = BTreeSet::new();
        while plan.rows.is_empty() {
            let Some((stand, chosen)) = self.choose(now_ms, world, free_pages, &passed_over) else {
                break;
            };
            plan.stand = stand;
            plan.rows = self.fill(now_ms, &chosen, &mut free_pages, &mut plan.preempted);
            // Who could not run now cannot run in this step, nor can who lost its pages for it.
            passed_over.extend(chosen.iter().chain(&plan.preempted));
        }
        if plan.rows.is_empty() {
            plan.stand = world.stand.clone();
        }
        self.describe(&mut plan, world);
        plan
    }

    /// Forgets jobs whose deadline has passed.
    fn expire(&mut self, now_ms: f64, free_pages: &mut usize) -> Vec<JobId> {
        let is_late = |s: &Sequence| s.job.deadline_ms.is_some_and(|deadline| deadline < now_ms);
        let late = self.sequences.iter().filter(|(_, sequence)| is_late(sequence));
        let late: Vec<JobId> = late.map(|(id, _)| *id).collect();
        for id in &late {
            *free_pages += self.forget(*id).map_or(0, |sequence| sequence.pages);
        }
        late
    }

    /// Jobs to be admitted next, as many as there are places and pages for.
    fn offer(&mut self, now_ms: f64, free_pages: usize, except: &BTreeSet<JobId>) -> Vec<JobId> {
        let Self { options, sequences, table, share, running, .. } = self;
        // So that those that run can grow.
        let mut kept_pages = running.len();
        let mut free_pages = free_pages;
        let judge = |id: JobId| {
            let sequence = &sequences[&id];
            if except.contains(&id) || !table.is_ready(&sequence.job.path) {
                return Verdict::Skip;
            }
            let needed = options.pages_of(sequence.first_positions());
            if needed + kept_pages > free_pages {
                let is_patient = now_ms - sequence.submitted_ms < options.stall_ms;
                return if is_patient { Verdict::Skip } else { Verdict::Hold };
            }
            free_pages -= needed;
            kept_pages += 1;
            Verdict::Take(sequence.weight(sequence.job.max_tokens as f64 * *share))
        };
        let places = options.max_running.saturating_sub(running.len());
        let offered = self.queue.next(places, judge);
        for id in &offered {
            self.sequences.entry(*id).and_modify(|s| _ = s.since_ms.get_or_insert(now_ms));
        }
        offered
    }

    /// Where to stand, and who of those that could run may do so there, in the order of the tree.
    /// None if nobody could.
    fn choose(
        &mut self,
        now_ms: f64,
        world: &World,
        free_pages: usize,
        except: &BTreeSet<JobId>,
    ) -> Option<(NodePath, Vec<JobId>)> {
        let offered = self.offer(now_ms, free_pages, except);
        let running = self.running.values().filter(|id| !except.contains(*id));
        let could_run = running.chain(&offered).map(|id| (*id, &self.sequences[id]));
        let member = |(id, sequence)| self.member(now_ms, id, sequence);
        let mut members: Vec<(u64, Member<'_>)> = could_run.map(member).collect();
        members.sort_by(|a, b| a.1.path.cmp(b.1.path).then(a.0.cmp(&b.0)));
        let members: Vec<Member<'_>> = members.into_iter().map(|(_, member)| member).collect();
        if members.is_empty() {
            return None;
        }
        let scene = Scene {
            now_ms,
            stand: &world.stand,
            members: &members,
            table: &self.table,
            cost: &self.cost,
            options: &self.options,
        };
        let choice = self.choose.choose(&scene);
        Some((choice.stand, choice.members.iter().map(|k| members[*k].id).collect()))
    }

    /// A sequence as it is chosen from, and its order.
    fn member<'a>(&self, now_ms: f64, id: JobId, sequence: &'a Sequence) -> (u64, Member<'a>) {
        let Sequence { job, computed, .. } = sequence;
        let expected = job.max_tokens as f64 * self.share - sequence.made as f64;
        let member = Member {
            id,
            path: &job.path,
            merge_depth: job.merge_depth(),
            from: *computed,
            tokens: sequence.tokens(),
            steps_left: expected.max(1.0),
            since_ms: sequence.since_ms.unwrap_or(now_ms),
            ran: self.ran.contains(&id),
        };
        (sequence.order, member)
    }

    /// Rows for the chosen: first those that decode, then prompts with the tokens that are left.
    fn fill(
        &mut self,
        now_ms: f64,
        chosen: &[JobId],
        free_pages: &mut usize,
        preempted: &mut Vec<JobId>,
    ) -> Vec<Row> {
        let is_decoding = |id: &&JobId| {
            let sequence = &self.sequences[id];
            sequence.is_running && sequence.tokens() == 1
        };
        let (mut decoding, mut prompts): (Vec<&JobId>, Vec<&JobId>) =
            chosen.iter().partition(is_decoding);
        decoding.sort_by_key(|id| self.sequences[id].order);
        let mut rows = Vec::new();
        for id in decoding {
            if self.grow(*id, free_pages, preempted) {
                rows.push(self.row(*id, 1));
            }
        }
        prompts.sort_by(|a, b| {
            let [a, b] = [a, b].map(|id| self.prompt_rank(now_ms, id));
            a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))
        });
        let mut tokens = self.options.step_tokens - rows.len();
        for id in prompts {
            if tokens > 0 && !preempted.contains(id) && self.admit(*id, free_pages) {
                let row = self.row(*id, tokens);
                tokens -= row.tokens;
                rows.push(row);
            }
        }
        rows.sort_by(|a, b| {
            let [a, b] = [a, b].map(|row| &self.sequences[&row.id]);
            a.job.path.cmp(&b.job.path).then(a.order.cmp(&b.order))
        });
        rows
    }

    /// Who comes first among prompts: who is overdue, by how long; who runs already; who came first.
    fn prompt_rank(&self, now_ms: f64, id: &JobId) -> (f64, (bool, u64)) {
        let sequence = &self.sequences[id];
        let since = sequence.since_ms.filter(|since| now_ms - since >= self.options.stall_ms);
        (since.unwrap_or(f64::INFINITY), (!sequence.is_running, sequence.order))
    }

    fn row(&self, id: JobId, most: usize) -> Row {
        let sequence = &self.sequences[&id];
        let tokens = sequence.tokens().min(most);
        let Sequence { computed: from, pages, .. } = *sequence;
        Row { id, from, tokens, pages, is_last: tokens == sequence.tokens() }
    }

    /// Gives a running sequence the page that its next token needs, if need be that of the youngest.
    /// False if it lost its own.
    fn grow(&mut self, id: JobId, free_pages: &mut usize, preempted: &mut Vec<JobId>) -> bool {
        let needed = |s: &Sequence| self.options.pages_of(s.computed + 1).saturating_sub(s.pages);
        let needed = needed(&self.sequences[&id]);
        while self.sequences[&id].is_running && *free_pages < needed && self.running.len() > 1 {
            let (_, youngest) = self.running.last_key_value().expect("several run");
            let youngest = *youngest;
            *free_pages += self.sequences[&youngest].pages;
            self.restart(youngest);
            preempted.push(youngest);
        }
        let Some(sequence) = self.sequences.get_mut(&id).filter(|s| s.is_running) else {
            return false;
        };
        if *free_pages < needed {
            return false;
        }
        *free_pages -= needed;
        sequence.pages += needed;
        true
    }

    /// Admits a job, unless it was before. False if there are no pages for it any more.
    fn admit(&mut self, id: JobId, free_pages: &mut usize) -> bool {
        let Some(sequence) = self.sequences.get_mut(&id).filter(|s| !s.is_running) else {
            return true;
        };
        let needed = self.options.pages_of(sequence.first_positions());
        if needed > *free_pages {
            return false;
        }
        *free_pages -= needed;
        (sequence.pages, sequence.is_running) = (needed, true);
        let charge = sequence.weight(sequence.job.max_tokens as f64 * self.share);
        let (tenant, order) = (sequence.job.tenant(), sequence.order);
        // Once for each job, however often it is admitted.
        if sequence.charge == 0.0 {
            sequence.charge = charge;
        }
        self.queue.take(tenant, order, Some(charge));
        self.running.insert(order, id);
        true
    }

    /// Counts a plan's features and predicts what it takes.
    fn describe(&self, plan: &mut Plan, world: &World) {
        let part = |row: &Row| Part {
            path: &self.sequences[&row.id].job.path,
            from: row.from,
            tokens: row.tokens,
        };
        plan.features = features(&self.table, plan.stand.len(), plan.rows.iter().map(part));
        plan.switch_bytes = self.table.switch_bytes(&world.stand, &plan.stand);
        plan.predicted = self.cost.step(&plan.features);
        plan.predicted.switch_ms = self.cost.switch_ms(plan.switch_bytes);
    }

    /// Takes in that a plan was carried out: its rows move on, those that ended are forgotten, what
    /// it took is learned from. Gives back whoever ended, by itself or by its `max_tokens`; their
    /// pages are free.
    pub fn done(&mut self, now_ms: f64, plan: &Plan, outcome: &Outcome) -> Vec<JobId> {
        if let Some(ms) = outcome.switch_ms {
            self.cost.observe(Measured::Switch { bytes: plan.switch_bytes }, ms);
        }
        if let Some(ms) = outcome.step_ms {
            self.cost.observe(Measured::Step(plan.features), ms);
        }
        self.ran.clear();
        let mut ended = Vec::new();
        for row in &plan.rows {
            // It may have been cancelled or have lost its pages meanwhile.
            let is_same = |s: &&mut Sequence| s.is_running && s.computed == row.from;
            let Some(sequence) = self.sequences.get_mut(&row.id).filter(is_same) else { continue };
            sequence.computed += row.tokens;
            sequence.since_ms = Some(now_ms);
            self.ran.insert(row.id);
            if row.is_last && sequence.made < sequence.job.max_tokens {
                sequence.made += 1;
            }
            if sequence.is_finished() || row.is_last && outcome.ended.contains(&row.id) {
                ended.push(row.id);
            }
        }
        for id in &ended {
            let Some(sequence) = self.forget(*id) else { continue };
            let share = sequence.made as f64 / sequence.job.max_tokens.max(1) as f64;
            self.share += 0.05 * (share - self.share);
        }
        ended
    }
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scheduler")
            .field("running", &self.running())
            .field("waiting", &self.waiting())
            .field("submitted", &self.submitted)
            .finish_non_exhaustive()
    }
}
