//! A machine that takes the time a real one would: other constants than the scheduler starts with,
//! other forms, too, with noise and stalls. And one that carries nothing out that breaks a rule.

use std::collections::{BTreeMap, BTreeSet};

use super::draw::Draw;
use crate::engine::{Features, Job, JobId, Merge, NodePath, NodeTable, Options, Plan, Serial};

/// What a machine really takes.
#[derive(Clone, Copy, Debug)]
pub struct Speeds {
    /// Milliseconds to read the weights once.
    pub weights_ms: f64,
    /// Milliseconds a row that decodes, beside.
    pub row_ms: f64,
    /// From so many rows on each takes twice as long.
    pub many_rows: f64,
    /// Milliseconds a token of a prompt.
    pub prompt_token_ms: f64,
    /// Milliseconds for a thousand positions attended to.
    pub attention_ms: f64,
    /// Milliseconds for a million factored multiply-adds.
    pub factored_ms: f64,
    /// Milliseconds for a million numbers of factors read.
    pub loaded_ms: f64,
    /// Milliseconds a range of rows.
    pub range_ms: f64,
    /// Milliseconds of any switch.
    pub switch_ms: f64,
    /// Milliseconds for a megabyte read and written.
    pub switch_megabyte_ms: f64,
    /// Deviation of times, as a share.
    pub noise: f64,
    /// Every so many-th time takes five times as long; 0: none does.
    pub stalls: usize,
}

impl Speeds {
    /// Some two thirds slower than what the scheduler starts with, and not everywhere alike.
    pub const SLOW: Self = Self {
        weights_ms: 30.0,
        row_ms: 1.9,
        many_rows: 16.0,
        prompt_token_ms: 1.6,
        attention_ms: 1.8,
        factored_ms: 0.07,
        loaded_ms: 0.25,
        range_ms: 0.05,
        switch_ms: 2.0,
        switch_megabyte_ms: 0.07,
        noise: 0.04,
        stalls: 200,
    };
    /// Several times faster: rows are nearly free, and so are switches.
    pub const FAST: Self = Self {
        weights_ms: 5.0,
        row_ms: 0.08,
        many_rows: 48.0,
        prompt_token_ms: 0.06,
        attention_ms: 0.1,
        factored_ms: 0.006,
        loaded_ms: 0.02,
        range_ms: 0.03,
        switch_ms: 0.6,
        switch_megabyte_ms: 0.004,
        noise: 0.04,
        stalls: 200,
    };

    fn step_ms(&self, features: &Features) -> f64 {
        let many = (features.rows - self.many_rows).max(0.0);
        self.weights_ms
            + self.row_ms * (features.rows + many)
            + self.prompt_token_ms * features.prompt_tokens
            + self.attention_ms * features.positions / 1e3
            + self.factored_ms * features.factored / 1e6
            + self.loaded_ms * features.loaded / 1e6
            + self.range_ms * features.ranges
    }
}

/// What the machine knows of a sequence.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) job: Job,
    pub(super) answer_tokens: usize,
    computed: usize,
    pub(super) made: usize,
    pages: usize,
}

/// Weights that stand somewhere, pages, and sequences.
#[derive(Debug)]
pub struct Machine {
    speeds: Speeds,
    options: Options,
    draw: Draw,
    turns: usize,
    /// Where the weights stand.
    pub(super) stand: NodePath,
    pub(super) held: BTreeMap<JobId, Held>,
    pub(super) unready: BTreeSet<Serial>,
}

/// What the machine did.
#[derive(Debug)]
pub(super) struct Did {
    pub(super) switch_ms: Option<f64>,
    pub(super) step_ms: f64,
    /// Whether one of both was a stall.
    pub(super) stalled: bool,
    /// Who made a token.
    pub(super) made: Vec<JobId>,
    /// Who is at the end.
    pub(super) ended: Vec<JobId>,
}

impl Machine {
    /// A machine whose weights stand at the root.
    pub fn new(speeds: Speeds, options: &Options, seed: u64) -> Self {
        Self {
            speeds,
            options: options.clone(),
            draw: Draw::new(seed),
            turns: 0,
            stand: NodePath::from([]),
            held: BTreeMap::new(),
            unready: BTreeSet::new(),
        }
    }

    /// Pages that nobody holds.
    pub(super) fn free_pages(&self) -> usize {
        let held: usize = self.held.values().map(|held| held.pages).sum();
        self.options.pages.checked_sub(held).expect("no more pages are held than there are")
    }

    pub(super) fn submit(&mut self, job: Job, answer_tokens: usize) {
        let held = Held { job, answer_tokens, computed: 0, made: 0, pages: 0 };
        assert!(self.held.insert(held.job.id, held).is_none(), "a job comes once");
    }

    pub(super) fn forget(&mut self, id: JobId) {
        self.held.remove(&id).expect("whoever ends was there");
    }

    pub(super) fn restart(&mut self, id: JobId) {
        let held = self.held.get_mut(&id).expect("whoever is preempted is there");
        (held.computed, held.pages) = (0, 0);
    }

    /// The time that something takes this time.
    fn noisy(&mut self, ms: f64, stalled: &mut bool) -> f64 {
        self.turns += 1;
        let stalls = self.turns.is_multiple_of(self.speeds.stalls);
        *stalled |= stalls;
        ms * (1.0 + self.speeds.noise * self.draw.normal()).max(0.5)
            * if stalls { 5.0 } else { 1.0 }
    }

    /// Carries a plan out.
    pub(super) fn carry_out(&mut self, plan: &Plan, table: &NodeTable) -> Did {
        let oldest = self.held.values().find(|held| held.pages > 0).map(|held| held.job.id);
        for id in &plan.preempted {
            assert_ne!(oldest, Some(*id), "the oldest keeps its pages");
            self.restart(*id);
        }
        self.check(plan);
        let mut stalled = false;
        let bytes = table.switch_bytes(&self.stand, &plan.stand);
        let switch_ms = (self.stand != plan.stand).then(|| {
            self.noisy(
                self.speeds.switch_ms + self.speeds.switch_megabyte_ms * bytes / 1e6,
                &mut stalled,
            )
        });
        self.stand = plan.stand.clone();
        let step_ms = self.noisy(self.speeds.step_ms(&plan.features), &mut stalled);
        let mut did = Did { switch_ms, step_ms, stalled, made: Vec::new(), ended: Vec::new() };
        for row in &plan.rows {
            let held = self.held.get_mut(&row.id).expect("checked before");
            held.computed += row.tokens;
            held.pages = row.pages;
            if held.computed == held.job.prompt_tokens + held.made {
                assert!(row.is_last, "{:?} chooses a token here", row.id);
                held.made += 1;
                did.made.push(row.id);
                if held.made == held.answer_tokens {
                    did.ended.push(row.id);
                }
            }
        }
        // Panics if the pages are not enough.
        self.free_pages();
        did
    }

    /// Panics if a plan breaks a rule.
    fn check(&self, plan: &Plan) {
        assert!(plan.tokens() <= self.options.step_tokens, "{} tokens", plan.tokens());
        assert!(plan.rows.len() <= self.options.max_running, "{} rows", plan.rows.len());
        let ids: BTreeSet<JobId> = plan.rows.iter().map(|row| row.id).collect();
        assert_eq!(ids.len(), plan.rows.len(), "a sequence has one row");
        let paths: Vec<&NodePath> =
            plan.rows.iter().map(|row| &self.held[&row.id].job.path).collect();
        assert!(paths.is_sorted(), "rows are in depth-first order");
        for row in &plan.rows {
            let held = &self.held[&row.id];
            let path = &held.job.path;
            assert_eq!(row.from, held.computed, "{:?} goes on where it was", row.id);
            assert!(row.tokens > 0, "{:?} has a token at least", row.id);
            let all = held.job.prompt_tokens + held.made;
            assert!(held.computed + row.tokens <= all, "{:?} has no more tokens", row.id);
            let positions = row.pages * self.options.page_positions;
            assert!(held.computed + row.tokens <= positions, "{:?} lacks pages", row.id);
            assert!(row.pages >= held.pages, "{:?} gives none back", row.id);
            assert!(path.starts_with(&plan.stand), "{:?} does not belong below", row.id);
            assert!(!path.iter().any(|node| self.unready.contains(node)), "{path:?} is not ready");
            let exactly = match held.job.merge {
                Merge::Automatic => plan.stand.len(),
                Merge::Leaf => path.len(),
                Merge::Parent => path.len() - 1,
                Merge::Root => 0,
            };
            assert_eq!(plan.stand.len(), exactly, "{:?} has a merge point of its own", row.id);
        }
    }
}
