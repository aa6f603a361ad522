//! Many requests at once on one copy of the weights, each answer printed when it is complete.
//!
//! **Invariant:** every request has one answer or one error, and one of them fails alone.
//! **Invariant:** what the engine does not take yet waits here: its queue is never overrun.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use pleach::engine::Status;
use pleach::model::StopReason;
use pleach::tree::render::one_line;
use pleach::{Engine, EngineOptions, Merge, engine};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::requests::{Asked, Requests};
use super::stop_fields;
use crate::console::{Console, message};
use crate::escape::escaped;
use crate::model::Model;

const MIB: u64 = 1 << 20;
/// How long it waits for a step of the oldest answer before it looks at the others.
const PAUSE: Duration = Duration::from_millis(2);

/// How many requests are served.
#[derive(Args)]
#[command(next_help_heading = "Many at once")]
pub(super) struct Serving {
    /// Where the weights stand for a request: leaf, parent, root, or wherever it pays (see below)
    /// [default: auto]
    #[arg(long, value_enum, value_name = "PLACE", hide_possible_values = true)]
    merge: Option<MergeAt>,
    /// Most milliseconds a request may take from the start, waiting included
    #[arg(long, value_name = "MS")]
    deadline_ms: Option<u64>,
    /// Memory for keys and values of all that run [default: 1024]
    #[arg(long, value_name = "MIB")]
    kv_budget: Option<u64>,
    /// Most requests that run at once; the others wait [default: 32]
    #[arg(long, value_name = "N")]
    max_running: Option<NonZeroUsize>,
    /// Tell at the end, on stderr, what steps and switches are expected to take by now
    #[arg(long)]
    explain: bool,
}

/// A merge point as it is written.
#[derive(Clone, Copy, Debug, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum MergeAt {
    Leaf,
    Parent,
    Root,
    Auto,
}

impl From<MergeAt> for Merge {
    fn from(merge: MergeAt) -> Self {
        match merge {
            MergeAt::Leaf => Self::Leaf,
            MergeAt::Parent => Self::Parent,
            MergeAt::Root => Self::Root,
            MergeAt::Auto => Self::Automatic,
        }
    }
}

impl Serving {
    /// Where the weights stand for requests that do not say.
    pub(super) fn merge(&self) -> Merge {
        self.merge.map_or(Merge::Automatic, Merge::from)
    }

    /// How long requests that do not say may take.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.deadline_ms.map(Duration::from_millis)
    }

    /// Refuses what has no meaning for one prompt at one node.
    pub(super) fn refuse_for_one(&self) -> anyhow::Result<()> {
        let given = [
            (self.merge.is_some(), "--merge"),
            (self.deadline_ms.is_some(), "--deadline-ms"),
            (self.kv_budget.is_some(), "--kv-budget"),
            (self.max_running.is_some(), "--max-running"),
            (self.explain, "--explain"),
        ];
        match given.iter().find(|(is_given, _)| *is_given) {
            Some((_, option)) => bail!(
                "{option} is for many prompts at once, and there is one; leave it out, or use --requests"
            ),
            None => Ok(()),
        }
    }

    /// Answers all of them, each when it is complete.
    pub(super) fn serve(
        &self,
        mut requests: Requests,
        model: &Model,
        console: &Console,
    ) -> anyhow::Result<ExitCode> {
        let nodes = model.nodes()?;
        requests.check(&nodes, model)?;
        let (runtime, load_ms) = model.open(nodes, console)?;
        let options = engine_options(self.kv_budget, self.max_running);
        let engine = Engine::new(runtime, &options)?;
        let all = requests.0.len();
        let mut run = Run {
            engine: &engine,
            console,
            most: options.scheduler.max_running.saturating_add(options.scheduler.max_waiting),
            start: Instant::now(),
            waiting: requests.0.into(),
            in_work: Vec::new(),
            bar: console.telling_bar(),
            printed: 0,
            failed: 0,
        };
        run.bar.set_length(all as u64);
        run.answer_all()?;
        let (seconds, failed, status) =
            (run.start.elapsed().as_secs_f64(), run.failed, engine.status());
        console.note(&format!(
            "{all} requests, {failed} failed: loaded in {load_ms:.0} ms; {} tokens in {seconds:.2} s, {} switches",
            status.tokens, status.switches
        ));
        if self.explain {
            console.tell(&format!("expected by now:\n{}", status.cost));
        }
        Ok(if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

/// Bounds of an engine: MiB of keys and values, and requests that run at once.
pub(crate) fn engine_options(
    kv_budget: Option<u64>,
    max_running: Option<NonZeroUsize>,
) -> EngineOptions {
    let mut options = EngineOptions::default();
    if let Some(budget) = kv_budget {
        options.kv_bytes = budget.saturating_mul(MIB);
    }
    let bounds = &mut options.scheduler;
    if let Some(most) = max_running {
        bounds.max_running = most.get();
        bounds.step_tokens = bounds.step_tokens.max(most.get().saturating_mul(4));
    }
    options
}

/// An answer so far.
struct InWork {
    asked: Asked,
    answer: engine::Answer,
    token_ids: Vec<u32>,
    text: String,
    /// When its first step came.
    first: Option<Instant>,
}

/// A complete answer as JSON.
#[derive(Serialize)]
struct Answered<'a> {
    id: &'a Value,
    node: &'a str,
    prompt_tokens: usize,
    token_ids: &'a [u32],
    text: &'a str,
    stop: &'static str,
    stop_token: Option<u32>,
    prefill_ms: f64,
    decode_ms: f64,
}

/// A request that failed, as JSON.
#[derive(Serialize)]
struct Failed<'a> {
    id: &'a Value,
    node: &'a str,
    error: String,
}

impl InWork {
    /// Takes the steps that have come, the first within `wait`. Gives how it ended, if it did.
    fn collect(&mut self, mut wait: Duration) -> pleach::Result<Option<StopReason>> {
        while let Some(step) = self.answer.next_within(wait) {
            let step = step?;
            self.first.get_or_insert_with(Instant::now);
            self.token_ids.extend(step.token);
            self.text += &step.text;
            if step.stop.is_some() {
                return Ok(step.stop);
            }
            wait = Duration::ZERO;
        }
        Ok(None)
    }
}

/// Requests on their way.
struct Run<'a> {
    engine: &'a Engine,
    console: &'a Console,
    /// Most that the engine takes at once.
    most: usize,
    start: Instant,
    waiting: VecDeque<Asked>,
    /// The oldest first.
    in_work: Vec<InWork>,
    bar: ProgressBar,
    /// Texts printed.
    printed: usize,
    failed: usize,
}

impl Run<'_> {
    fn answer_all(&mut self) -> anyhow::Result<()> {
        while !(self.waiting.is_empty() && self.in_work.is_empty()) {
            self.submit()?;
            self.collect()?;
            self.show();
        }
        self.bar.finish_and_clear();
        Ok(())
    }

    /// Hands over as many as the engine takes.
    fn submit(&mut self) -> anyhow::Result<()> {
        while self.in_work.len() < self.most
            && let Some(asked) = self.waiting.pop_front()
        {
            let mut request = asked.request.clone();
            request.deadline =
                request.deadline.map(|within| within.saturating_sub(self.start.elapsed()));
            match self.engine.submit(request) {
                Ok(answer) => self.in_work.push(InWork {
                    asked,
                    answer,
                    token_ids: Vec::new(),
                    text: String::new(),
                    first: None,
                }),
                Err(error) => self.fail(&asked, error)?,
            }
        }
        Ok(())
    }

    /// Takes what has come, and prints what is complete.
    fn collect(&mut self) -> anyhow::Result<()> {
        let mut wait = PAUSE;
        for mut work in std::mem::take(&mut self.in_work) {
            match work.collect(std::mem::take(&mut wait)) {
                Ok(None) => self.in_work.push(work),
                Ok(Some(stop)) => self.print(&work, stop)?,
                Err(error) => self.fail(&work.asked, error)?,
            }
        }
        Ok(())
    }

    fn print(&mut self, work: &InWork, stop: StopReason) -> anyhow::Result<()> {
        let (console, node) = (self.console, &work.asked.request.node);
        let ended = Instant::now();
        let first = work.first.unwrap_or(ended);
        let ms = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1e3;
        let (stop, stop_token) = stop_fields(stop);
        let answer = Answered {
            id: &work.asked.id,
            node,
            prompt_tokens: work.answer.prompt_tokens(),
            token_ids: &work.token_ids,
            text: &work.text,
            stop,
            stop_token,
            prefill_ms: ms(self.start, first),
            decode_ms: ms(first, ended),
        };
        let gap = if self.printed > 0 { "\n" } else { "" };
        let heading = format!("{gap}== {}\n", title(&work.asked));
        self.bar.suspend(|| {
            console.answer(&answer, || heading)?;
            if !console.json {
                console.say(&work.text)?;
                console.print("\n")?;
            }
            anyhow::Ok(())
        })?;
        self.printed += 1;
        self.bar.inc(1);
        Ok(())
    }

    fn fail(&mut self, asked: &Asked, error: pleach::Error) -> anyhow::Result<()> {
        let error = message(&error.into());
        self.failed += 1;
        self.bar.inc(1);
        self.bar.suspend(|| {
            self.console.tell(&format!("error: {}: {error}", title(asked)));
            if self.console.json {
                let failed = Failed { id: &asked.id, node: &asked.request.node, error };
                self.console.answer(&failed, String::new)?;
            }
            Ok(())
        })
    }

    fn show(&self) {
        let Status { node, tokens, .. } = self.engine.status();
        let speed = tokens as f64 / self.start.elapsed().as_secs_f64();
        let text = format!("{speed:.0} tokens/s, at {}", one_line(&node));
        self.bar.set_message(escaped(&text).into_owned());
    }
}

/// The id and the node, in one line.
fn title(asked: &Asked) -> String {
    one_line(&format!("{} {}", asked.name(), asked.request.node)).into_owned()
}
