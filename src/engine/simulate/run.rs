//! A trace, a scheduler and a machine, step by step until all is done.

use std::collections::{BTreeMap, BTreeSet};

use super::machine::{Machine, Speeds};
use super::report::Report;
use super::trace::{Arrival, Trace};
use crate::engine::{
    Choose, CostConstants, CostModel, JobId, NodePath, NodeTable, Options, Outcome, Plan,
    Scheduler, Serial, World,
};

/// What happened, beyond the figures.
#[derive(Debug, Default)]
pub struct Run {
    /// The figures.
    pub report: Report,
    /// Predicted and measured times of the steps that did not stall, in their order.
    pub steps_ms: Vec<(f64, f64)>,
    /// The same of switches.
    pub switches_ms: Vec<(f64, f64)>,
    /// Longest that a sequence that was ready and held pages went without a step.
    pub longest_stall_ms: f64,
    /// Longest step with its switch.
    pub longest_step_ms: f64,
    /// Where the weights stood in each step, and for how many rows.
    pub stands: Vec<(NodePath, usize)>,
    /// Jobs in the order in which they had their first rows, and when.
    pub admitted: Vec<(JobId, f64)>,
    /// How often a job lost its pages.
    pub preempted: BTreeMap<JobId, usize>,
    /// Jobs that made their whole answer.
    pub finished: BTreeSet<JobId>,
    /// Jobs that were cancelled or whose deadline passed.
    pub given_up: BTreeSet<JobId>,
    /// The model at the end, printed.
    pub cost: String,
}

struct State<'a> {
    run: Run,
    trace: &'a Trace,
    scheduler: Scheduler,
    machine: Machine,
    now_ms: f64,
    /// When each job was asked for or made its last token.
    last_ms: BTreeMap<JobId, f64>,
    /// When each sequence that holds pages made its last step.
    stepped_ms: BTreeMap<JobId, f64>,
    /// When leaves are read.
    reading: Vec<(f64, Serial)>,
    /// Who had a row.
    admitted: BTreeSet<JobId>,
}

/// Runs a trace to its end with a way to choose, on a machine of these speeds.
pub fn run(
    trace: &Trace,
    options: &Options,
    speeds: Speeds,
    choose: Box<dyn Choose + Send>,
) -> Run {
    let cost = CostModel::new(&CostConstants::default());
    let scheduler = Scheduler::with_choice(options.clone(), cost, trace.table.clone(), choose);
    let mut state = State {
        run: Run::default(),
        trace,
        scheduler: scheduler.expect("the options do"),
        machine: Machine::new(speeds, options, trace.arrivals.len() as u64),
        now_ms: 0.0,
        last_ms: BTreeMap::new(),
        stepped_ms: BTreeMap::new(),
        reading: Vec::new(),
        admitted: BTreeSet::new(),
    };
    let mut arrivals = trace.arrivals.iter().peekable();
    let mut known = BTreeSet::new();
    loop {
        while let Some(arrival) = arrivals.next_if(|next| next.at_ms <= state.now_ms) {
            state.arrive(arrival, &mut known);
        }
        state.cancel();
        state.finish_reading();
        let world =
            World { stand: state.machine.stand.clone(), free_pages: state.machine.free_pages() };
        let plan = state.scheduler.plan(state.now_ms, &world);
        state.expire(&plan);
        if !plan.rows.is_empty() {
            state.step(&plan, &trace.table);
            continue;
        }
        state.check_idle(&plan);
        let next = arrivals.peek().map(|next| next.at_ms);
        let read = state.reading.iter().map(|(at, _)| *at).min_by(f64::total_cmp);
        match [next, read].into_iter().flatten().min_by(f64::total_cmp) {
            Some(at_ms) => state.now_ms = state.now_ms.max(at_ms),
            None => break,
        }
    }
    state.end()
}

impl State<'_> {
    fn arrive(&mut self, arrival: &Arrival, known: &mut BTreeSet<Serial>) {
        let leaf = arrival.job.path.last().copied();
        if let Some(leaf) = leaf.filter(|leaf| self.trace.read_ms > 0.0 && known.insert(*leaf)) {
            assert!(self.scheduler.not_ready(leaf).is_empty(), "nobody runs where nobody was");
            self.machine.unready.insert(leaf);
            self.reading.push((arrival.at_ms + self.trace.read_ms, leaf));
        }
        self.scheduler.submit(self.now_ms, arrival.job.clone()).expect("there is a place");
        self.machine.submit(arrival.job.clone(), arrival.answer_tokens);
        self.last_ms.insert(arrival.job.id, arrival.at_ms);
    }

    fn cancel(&mut self) {
        let is_due = |arrival: &&Arrival| {
            arrival.cancelled_ms.is_some_and(|at_ms| at_ms <= self.now_ms)
                && self.machine.held.contains_key(&arrival.job.id)
        };
        let due = self.trace.arrivals.iter().filter(is_due).map(|arrival| arrival.job.id);
        for id in due.collect::<Vec<_>>() {
            assert!(self.scheduler.cancel(id), "{id:?} was there");
            self.give_up(id);
        }
    }

    fn give_up(&mut self, id: JobId) {
        self.machine.forget(id);
        self.stepped_ms.remove(&id);
        assert!(self.run.given_up.insert(id), "{id:?} is given up once");
    }

    fn finish_reading(&mut self) {
        let now_ms = self.now_ms;
        let (done, reading) = self.reading.iter().partition(|(at_ms, _)| *at_ms <= now_ms);
        self.reading = reading;
        for (_, leaf) in Vec::<(f64, _)>::from_iter(done) {
            self.machine.unready.remove(&leaf);
            self.scheduler.ready(leaf);
        }
    }

    fn expire(&mut self, plan: &Plan) {
        for id in &plan.expired {
            let deadline = self.machine.held[id].job.deadline_ms.expect("it had one");
            assert!(deadline < self.now_ms, "{id:?} had time");
            self.give_up(*id);
        }
    }

    /// Panics if somebody could run although a plan has no rows.
    fn check_idle(&self, plan: &Plan) {
        assert!(plan.preempted.is_empty(), "nobody loses pages for nothing");
        for held in self.machine.held.values() {
            let is_ready = !held.job.path.iter().any(|node| self.machine.unready.contains(node));
            assert!(!is_ready, "{:?} could run", held.job.id);
        }
    }

    fn step(&mut self, plan: &Plan, table: &NodeTable) {
        let did = self.machine.carry_out(plan, table);
        let step_ms = did.step_ms + did.switch_ms.unwrap_or(0.0);
        self.now_ms += step_ms;
        let run = &mut self.run;
        run.report.steps += 1;
        run.report.switches += usize::from(did.switch_ms.is_some());
        run.report.preemptions += plan.preempted.len();
        run.longest_step_ms = run.longest_step_ms.max(step_ms);
        run.stands.push((plan.stand.clone(), plan.rows.len()));
        if !did.stalled {
            run.steps_ms.push((plan.predicted.step_ms(), did.step_ms));
            let switch = did.switch_ms.map(|ms| (plan.predicted.switch_ms, ms));
            run.switches_ms.extend(switch);
        }
        for id in &plan.preempted {
            self.stepped_ms.remove(id);
            *run.preempted.entry(*id).or_default() += 1;
        }
        for row in &plan.rows {
            if self.admitted.insert(row.id) {
                run.admitted.push((row.id, self.now_ms));
            }
            if let Some(before) = self.stepped_ms.insert(row.id, self.now_ms) {
                run.longest_stall_ms = run.longest_stall_ms.max(self.now_ms - before);
            }
        }
        for id in &did.made {
            let ms = self.now_ms - self.last_ms.insert(*id, self.now_ms).expect("it came");
            let is_first = self.machine.held[id].made == 1;
            let report = &mut run.report;
            if is_first { &mut report.first_token_ms } else { &mut report.next_token_ms }.push(ms);
            report.tokens += 1;
        }
        let outcome = Outcome {
            switch_ms: did.switch_ms,
            step_ms: Some(did.step_ms),
            ended: did.ended.clone(),
        };
        let mut ended = self.scheduler.done(self.now_ms, plan, &outcome);
        ended.sort_unstable();
        let mut expected = did.ended;
        expected.sort_unstable();
        assert_eq!(ended, expected, "who is at the end ends, and nobody else");
        for id in ended {
            self.machine.forget(id);
            self.stepped_ms.remove(&id);
            assert!(self.run.finished.insert(id), "{id:?} ends once");
        }
    }

    fn end(mut self) -> Run {
        assert!(self.machine.held.is_empty(), "{} jobs were lost", self.machine.held.len());
        assert_eq!((self.scheduler.running(), self.scheduler.waiting()), (0, 0));
        let report = &mut self.run.report;
        report.total_ms = self.now_ms - self.trace.arrivals.first().map_or(0.0, |a| a.at_ms);
        report.first_token_ms.sort_by(f64::total_cmp);
        report.next_token_ms.sort_by(f64::total_cmp);
        self.run.cost = self.scheduler.cost().to_string();
        self.run
    }
}
