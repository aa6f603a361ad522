//! Texts that are being made: at which nodes, and what they came to.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use pleach::engine::Progress;
use pleach::{Answer, Step, StopReason};

use crate::access::Caller;
use crate::app::App;

/// Texts whose times are remembered.
const REMEMBERED: usize = 512;

/// All texts that are being made, and the times of the last ones.
#[derive(Default)]
pub(crate) struct Flights {
    next: AtomicU64,
    prompt_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    in_flight: HashMap<u64, (String, Arc<Progress>)>,
    /// Milliseconds to the first token.
    first_token_ms: VecDeque<f64>,
    /// Mean milliseconds between the tokens of a text.
    token_ms: VecDeque<f64>,
    counts: Counts,
}

/// What texts came to so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) completed: u64,
    pub(crate) cancelled: u64,
    pub(crate) failed: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) generated_tokens: u64,
}

/// Texts at a node: those that hold pages, and those that wait.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct At {
    pub(crate) running: usize,
    pub(crate) waiting: usize,
}

/// The median and the 99th percentile.
pub(crate) type Quantiles = Option<(f64, f64)>;

impl Flights {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Texts by node.
    pub(crate) fn by_node(&self) -> BTreeMap<String, At> {
        let mut nodes = BTreeMap::<String, At>::new();
        for (node, progress) in self.state().in_flight.values() {
            let at = nodes.entry(node.clone()).or_default();
            if progress.is_running() { at.running += 1 } else { at.waiting += 1 }
        }
        nodes
    }

    /// Texts that are being made.
    pub(crate) fn len(&self) -> usize {
        self.state().in_flight.len()
    }

    pub(crate) fn counts(&self) -> Counts {
        let prompt_tokens = self.prompt_tokens.load(Ordering::Relaxed);
        let generated_tokens = self.generated_tokens.load(Ordering::Relaxed);
        Counts { prompt_tokens, generated_tokens, ..self.state().counts }
    }

    /// Milliseconds to the first token, and between tokens, of the last texts.
    pub(crate) fn latency(&self) -> (Quantiles, Quantiles) {
        let state = self.state();
        (quantiles(&state.first_token_ms), quantiles(&state.token_ms))
    }
}

fn quantiles(values: &VecDeque<f64>) -> Quantiles {
    let mut sorted: Vec<f64> = values.iter().copied().collect();
    sorted.sort_by(f64::total_cmp);
    let at = |per_cent: usize| sorted[(sorted.len() * per_cent / 100).min(sorted.len() - 1)];
    (!sorted.is_empty()).then(|| (at(50), at(99)))
}

fn remember(values: &mut VecDeque<f64>, value: f64) {
    if values.len() == REMEMBERED {
        values.pop_front();
    }
    values.push_back(value);
}

/// One text that is being made. When it is dropped, however that comes, it is counted.
pub(crate) struct Flight {
    app: Arc<App>,
    id: u64,
    caller: Caller,
    prompt_tokens: usize,
    asked: Instant,
    first: Option<Instant>,
    last: Option<Instant>,
    pub(crate) tokens: usize,
    outcome: Outcome,
}

#[derive(Clone, Copy)]
enum Outcome {
    Cancelled,
    Ended(StopReason),
    Failed,
}

impl Flight {
    /// Of a text whose request came at `asked`.
    pub(crate) fn new(
        app: &Arc<App>,
        caller: &Caller,
        node: &str,
        answer: &Answer,
        asked: Instant,
    ) -> Self {
        let id = app.flights.next.fetch_add(1, Ordering::Relaxed);
        let at = (node.to_owned(), answer.progress().clone());
        app.flights.state().in_flight.insert(id, at);
        Self {
            app: app.clone(),
            id,
            caller: caller.clone(),
            prompt_tokens: answer.prompt_tokens(),
            asked,
            first: None,
            last: None,
            tokens: 0,
            outcome: Outcome::Cancelled,
        }
    }

    /// Notes a step, or the error that ended it.
    pub(crate) fn note(&mut self, step: &pleach::Result<Step>) {
        let now = Instant::now();
        match step {
            Ok(step) => {
                if step.token.is_some() {
                    self.tokens += 1;
                    let (metrics, flights) = (&self.app.metrics, &self.app.flights);
                    flights.generated_tokens.fetch_add(1, Ordering::Relaxed);
                    match self.last {
                        None => {
                            self.first = Some(now);
                            let prompt_tokens = self.prompt_tokens as u64;
                            flights.prompt_tokens.fetch_add(prompt_tokens, Ordering::Relaxed);
                            metrics.first_token(now - self.asked);
                        }
                        Some(last) => metrics.next_token(now - last),
                    }
                    self.last = Some(now);
                }
                if let Some(stop) = step.stop {
                    self.outcome = Outcome::Ended(stop);
                }
            }
            Err(_) => self.outcome = Outcome::Failed,
        }
    }

    /// Milliseconds to its first token.
    pub(crate) fn first_token_ms(&self) -> Option<f64> {
        Some((self.first? - self.asked).as_secs_f64() * 1e3)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let reason = match self.outcome {
            Outcome::Cancelled | Outcome::Ended(StopReason::Cancelled) => "abort",
            Outcome::Ended(StopReason::StopToken(_) | StopReason::StopText) => "stop",
            Outcome::Ended(StopReason::MaxTokens | StopReason::ContextFull) => "length",
            Outcome::Failed => "error",
        };
        self.app.metrics.end(reason, self.asked.elapsed());
        self.caller.charge_tokens(self.prompt_tokens + self.tokens);
        let mut state = self.app.flights.state();
        state.in_flight.remove(&self.id);
        let counts = &mut state.counts;
        match reason {
            "abort" => counts.cancelled += 1,
            "error" => counts.failed += 1,
            _ => counts.completed += 1,
        }
        if let (Some(first), Some(last)) = (self.first, self.last) {
            remember(&mut state.first_token_ms, (first - self.asked).as_secs_f64() * 1e3);
            if self.tokens > 1 {
                #[allow(clippy::cast_precision_loss, reason = "tokens of one text")]
                let gaps = (self.tokens - 1) as f64;
                remember(&mut state.token_ms, (last - first).as_secs_f64() * 1e3 / gaps);
            }
        }
    }
}
