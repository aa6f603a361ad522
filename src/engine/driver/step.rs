//! One step: the scheduler's plan carried out, from the switch to the tokens that are handed out.

use std::collections::BTreeSet;
use std::time::Instant;

use super::{Active, Driver, panicked, path_of};
use crate::contain::contained;
use crate::engine::job::JobId;
use crate::engine::plan::{Outcome, Plan, Row, World};
use crate::engine::request::WaitingDeltas;
use crate::error::EngineDefect;
use crate::model::{Picked, StopReason, TableId};
use crate::runtime::StepRow;
use crate::{Error, Result};

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
    /// Plans one step and carries it out; whether there was anything to do.
    pub(super) fn step(&mut self) -> bool {
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
            self.note(false);
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
                self.note_rows(&plan, tokens);
                self.finish(&plan, made, outcome);
            }
            Err(_) => self.lost(),
        }
        true
    }

    /// Counts what was run.
    fn note_rows(&self, plan: &Plan, tokens: usize) {
        let depth_of = |row: &Row| Some(self.active.get(&row.id)?.work.version.path().len());
        let depths = plan.rows.iter().filter_map(depth_of);
        let (merged, factored): (Vec<_>, Vec<_>) =
            depths.partition(|depth| *depth == plan.stand.len());
        let mut status = self.noting();
        status.tokens += tokens as u64;
        status.merged_rows += merged.len() as u64;
        status.factored_rows += factored.len() as u64;
    }

    /// Moves the weights to where the plan wants them.
    fn switch(&mut self, plan: &Plan, outcome: &mut Outcome) -> Result<()> {
        let target = match plan.stand.last() {
            Some(serial) => self.versions[serial].0.clone(),
            None => self.shared.nodes.root().clone(),
        };
        let start = Instant::now();
        let replica = &mut self.runtime.replica;
        let report = contained(|| replica.switch(&target)).unwrap_or_else(panicked)?;
        outcome.switch_ms = Some(start.elapsed().as_secs_f64() * 1e3);
        let device_cache = self.runtime.replica.residence().uploaded;
        let mut status = self.noting();
        status.note_switch(report, target.path().len());
        status.device_cache = device_cache;
        drop(status);
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
        work.progress.set_running(true);
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
        self.note(true);
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
            if !work.events.send(Ok(step)) {
                return Ok(Some(StopReason::Cancelled));
            }
            if stop.is_some() {
                return Ok(stop);
            }
        }
        work.script.decoding.end_at_limits();
        Ok(work.script.decoding.stop())
    }
}
