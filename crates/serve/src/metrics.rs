//! What Prometheus reads: the names that vLLM's dashboards and the Gateway API's model-server
//! protocol know, and ours beside them. No user's name is a label, but in the one gauge by which an
//! endpoint picker finds where an adapter is live.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use pleach::engine::Status;
use prometheus::core::{Collector, GenericCounter, GenericCounterVec};
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry,
    TextEncoder,
};

use crate::access::Caller;
use crate::app::App;
use crate::error::ApiError;

/// Buckets of times to a first token and of whole texts, in seconds, as vLLM's.
const LONG: [f64; 18] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96,
    81.92, 163.84, 327.68,
];
/// Of times between tokens.
const SHORT: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// All metrics.
pub(crate) struct Metrics {
    registry: Registry,
    writing: Mutex<()>,
    first_token: Histogram,
    token: Histogram,
    whole: Histogram,
    prompt_tokens: IntCounter,
    generated_tokens: IntCounter,
    ended: IntCounterVec,
    refused: IntCounterVec,
    preempted: IntCounter,
    running: Gauge,
    waiting: Gauge,
    kv_usage: Gauge,
    adapters: GaugeVec,
    ours: Ours,
}

/// Those that vLLM has no name for.
struct Ours {
    steps: IntCounter,
    run_tokens: IntCounter,
    rows: IntCounterVec,
    switches: IntCounterVec,
    switched_bytes: IntCounter,
    switch_seconds: GenericCounter<prometheus::core::AtomicF64>,
    depth: Gauge,
    pages: GaugeVec,
    cache_bytes: GaugeVec,
    cache_nodes: GaugeVec,
    cache: GenericCounterVec<prometheus::core::AtomicU64>,
}

/// Puts a metric into the registry.
fn kept<M: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<M>) -> M {
    let metric = metric.expect("its name and labels are valid");
    registry.register(Box::new(metric.clone())).expect("its name is its own");
    metric
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| kept(&registry, IntCounter::new(name, help));
        let counters = |name: &str, help: &str, label: &str| {
            kept(&registry, IntCounterVec::new(Opts::new(name, help), &[label]))
        };
        let gauge = |name: &str, help: &str| kept(&registry, Gauge::new(name, help));
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            kept(&registry, GaugeVec::new(Opts::new(name, help), labels))
        };
        let times = |name: &str, help: &str, buckets: &[f64]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            kept(&registry, Histogram::with_opts(options))
        };
        let ours = Ours {
            steps: counter("pleach_steps_total", "Steps of the engine"),
            run_tokens: counter(
                "pleach_run_tokens_total",
                "Tokens that were run, of prompts and answers",
            ),
            rows: counters(
                "pleach_rows_total",
                "Rows of steps: merged, or with a part of the path in factored form",
                "kind",
            ),
            switches: counters(
                "pleach_switches_total",
                "Switches of the weights, by the depth of the node they led to",
                "depth",
            ),
            switched_bytes: counter(
                "pleach_switched_bytes_total",
                "Bytes of weights that switches read and wrote",
            ),
            switch_seconds: kept(
                &registry,
                prometheus::Counter::new("pleach_switch_seconds_total", "Time that switches took"),
            ),
            depth: gauge(
                "pleach_merge_depth",
                "Depth of the node where the weights stand; 0 is the base",
            ),
            pages: gauges("pleach_kv_pages", "Pages of keys and values", &["state"]),
            cache_bytes: gauges(
                "pleach_delta_cache_bytes",
                "Bytes of compiled deltas in memory",
                &["tier"],
            ),
            cache_nodes: gauges(
                "pleach_delta_cache_nodes",
                "Nodes whose compiled deltas are in memory",
                &["tier"],
            ),
            cache: counters(
                "pleach_delta_cache_events_total",
                "Deltas found in the host's cache, made, and dropped for want of memory",
                "event",
            ),
        };
        Self {
            first_token: times(
                "vllm:time_to_first_token_seconds",
                "Time from a request to its first token",
                &LONG,
            ),
            token: times(
                "vllm:inter_token_latency_seconds",
                "Time from a token to the next one",
                &SHORT,
            ),
            whole: times(
                "vllm:e2e_request_latency_seconds",
                "Time from a request to the end of its text",
                &LONG,
            ),
            prompt_tokens: counter("vllm:prompt_tokens_total", "Tokens of prompts"),
            generated_tokens: counter("vllm:generation_tokens_total", "New tokens"),
            ended: counters(
                "vllm:request_success_total",
                "Texts that ended, by why",
                "finished_reason",
            ),
            refused: counters(
                "pleach_refusals_total",
                "Requests that were refused, by why",
                "reason",
            ),
            preempted: counter(
                "vllm:num_preemptions_total",
                "Sequences that lost their pages and were run again",
            ),
            running: gauge("vllm:num_requests_running", "Texts that hold pages of keys and values"),
            waiting: gauge("vllm:num_requests_waiting", "Texts that wait"),
            kv_usage: gauge(
                "vllm:kv_cache_usage_perc",
                "Share of the pages of keys and values in use, 0 to 1",
            ),
            adapters: gauges(
                "vllm:lora_requests_info",
                "Nodes that are live, those above them too; the value is the time in seconds since 1970",
                &["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
            ),
            ours,
            writing: Mutex::default(),
            registry,
        }
    }

    pub(crate) fn first_token(&self, after: Duration) {
        self.first_token.observe(after.as_secs_f64());
    }

    pub(crate) fn next_token(&self, after: Duration) {
        self.token.observe(after.as_secs_f64());
    }

    /// Counts a text that ended.
    pub(crate) fn end(&self, reason: &str, after: Duration) {
        self.whole.observe(after.as_secs_f64());
        self.ended.with_label_values(&[reason]).inc();
    }

    /// Counts a request that was refused.
    pub(crate) fn refuse(&self, reason: &str) {
        self.refused.with_label_values(&[reason]).inc();
    }

    /// Requests that were refused.
    pub(crate) fn refusals(&self) -> u64 {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        let of = |metric: &prometheus::proto::Metric| metric.get_counter().get_value() as u64;
        self.refused.collect().iter().flat_map(|family| family.get_metric().iter().map(of)).sum()
    }

    /// Takes over what the engine counts, and writes all as text.
    fn text(&self, app: &App) -> prometheus::Result<Vec<u8>> {
        self.take_over(&app.engine.status());
        let counts = app.flights.counts();
        raise(&self.prompt_tokens, counts.prompt_tokens);
        raise(&self.generated_tokens, counts.generated_tokens);
        let (cache, _) = app.engine.cache_stats();
        let Ours { cache_bytes, cache_nodes, cache: events, .. } = &self.ours;
        cache_bytes.with_label_values(&["host"]).set(float(cache.bytes));
        cache_nodes.with_label_values(&["host"]).set(float(cache.nodes));
        for (event, count) in
            [("hit", cache.hits), ("miss", cache.misses), ("eviction", cache.evictions)]
        {
            raise(&events.with_label_values(&[event]), count);
        }
        let (mut running, mut waiting) = (0, 0);
        let (mut live, mut queued, mut at_work) = (Vec::new(), Vec::new(), BTreeSet::new());
        for (node, at) in app.flights.by_node() {
            (running, waiting) = (running + at.running, waiting + at.waiting);
            let name = node.trim_matches('/').to_owned();
            let names = if at.running > 0 { &mut live } else { &mut queued };
            // A comma parts the names.
            let names_of = ancestors(&name).filter(|name| !name.contains(','));
            names.extend(names_of.map(str::to_owned));
            if at.running > 0 {
                at_work.insert(name);
            }
        }
        self.running.set(float(running));
        self.waiting.set(float(waiting));
        for names in [&mut live, &mut queued] {
            names.sort_unstable();
            names.dedup();
        }
        queued.retain(|name| live.binary_search(name).is_err());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        // Each change of its labels were a series: there is one, the newest, whoever else asks.
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.adapters.reset();
        // Names that are there for what runs below them alone take no place.
        let above = live.iter().filter(|name| !at_work.contains(*name)).count();
        let most = (app.max_running + above).to_string();
        self.adapters.with_label_values(&[&most, &live.join(","), &queued.join(",")]).set(now);
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }

    fn take_over(&self, status: &Status) {
        let (free, all) = status.pages;
        let used = all.saturating_sub(free);
        self.kv_usage.set(if all > 0 { float(used) / float(all) } else { 0.0 });
        raise(&self.preempted, status.preempted);
        let ours = &self.ours;
        raise(&ours.steps, status.steps);
        raise(&ours.run_tokens, status.tokens);
        raise(&ours.switched_bytes, status.switched_bytes);
        raise(&ours.rows.with_label_values(&["merged"]), status.merged_rows);
        raise(&ours.rows.with_label_values(&["factored"]), status.factored_rows);
        for (depth, count) in status.switches_by_depth.iter().enumerate() {
            raise(&ours.switches.with_label_values(&[&depth.to_string()]), *count);
        }
        let seconds = status.switch_ms / 1e3 - ours.switch_seconds.get();
        if seconds > 0.0 {
            ours.switch_seconds.inc_by(seconds);
        }
        ours.depth.set(float(ancestors(status.node.trim_matches('/')).count()));
        ours.pages.with_label_values(&["used"]).set(float(used));
        ours.pages.with_label_values(&["free"]).set(float(free));
        let device = &status.device_cache;
        ours.cache_bytes.with_label_values(&["device"]).set(float(device.bytes));
        ours.cache_nodes.with_label_values(&["device"]).set(float(device.nodes));
    }
}

/// A node's name and those above it; nothing for the root.
fn ancestors(name: &str) -> impl Iterator<Item = &str> {
    let up = name.rmatch_indices('/').map(|(end, _)| &name[..end]);
    std::iter::once(name).chain(up).filter(|name| !name.is_empty())
}

/// Brings a counter up to what somebody else has counted.
fn raise(counter: &IntCounter, count: u64) {
    counter.inc_by(count.saturating_sub(counter.get()));
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
fn float(count: usize) -> f64 {
    count as f64
}

/// Metrics, to be sent.
pub(crate) type Written = ([(HeaderName, HeaderValue); 1], Vec<u8>);

/// `GET /metrics`
pub(crate) async fn metrics(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
) -> Result<Written, ApiError> {
    if !caller.sees_all() {
        let message = "Metrics name nodes of everybody: a key for / reads them, or whoever reaches --metrics-listen";
        return Err(ApiError::new(StatusCode::FORBIDDEN, message));
    }
    written(&app)
}

/// The metrics, to be sent.
pub(crate) fn written(app: &App) -> Result<Written, ApiError> {
    let text = app.metrics.text(app).map_err(|error| ApiError::failed(error.to_string()))?;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, kind)], text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_raised_and_never_lowered() {
        let counter = IntCounter::new("x", "y").unwrap();
        raise(&counter, 7);
        raise(&counter, 5);
        assert_eq!(counter.get(), 7);
    }

    #[test]
    fn the_names_above_a_node_are_its_beginnings() {
        assert_eq!(ancestors("a/b/c").collect::<Vec<_>>(), ["a/b/c", "a/b", "a"]);
        assert_eq!(ancestors("").count(), 0);
    }
}
