//! What the server does now, for the page and for people.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use pleach::CacheStats;
use pleach::engine::{RecentSwitch, Status};
use serde_json::{Value, json};

use crate::access::Caller;
use crate::app::App;
use crate::flights::{Counts, Quantiles};

/// `GET /load`
pub(crate) async fn load(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({ "server_load": app.flights.len() }))
}

/// `GET /v1/status`
pub(crate) async fn status(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
) -> Json<Value> {
    let status = app.engine.status();
    let (cache, budget) = app.engine.cache_stats();
    let Counts { completed, cancelled, failed, prompt_tokens, generated_tokens } =
        app.flights.counts();
    let (first_token, token) = app.flights.latency();
    let active: Vec<Value> = app
        .flights
        .by_node()
        .into_iter()
        .filter(|(node, _)| caller.sees(node.trim_matches('/')))
        .map(|(node, at)| json!({"node": node, "running": at.running, "waiting": at.waiting}))
        .collect();
    let switches: Vec<Value> =
        status.recent_switches.iter().map(|switch| recent(&caller, switch)).collect();
    let Status { steps, tokens, switches: count, preempted, running, waiting, .. } = status;
    // On the CPU there is no second tier.
    let device_cache =
        (status.device_cache != CacheStats::default()).then(|| cached(&status.device_cache, None));
    Json(json!({
        "model": app.base_name,
        "version": env!("CARGO_PKG_VERSION"),
        "device": app.device,
        "context": app.context(),
        "uptime_s": app.started.elapsed().as_secs_f64(),
        "is_store": app.engine.store().is_some(),
        "node": seen(&caller, &status.node),
        "running": running,
        "waiting": waiting,
        "pages": {"free": status.pages.0, "total": status.pages.1},
        "steps": steps,
        "tokens": tokens,
        "generated_tokens": generated_tokens,
        "prompt_tokens": prompt_tokens,
        "switches": count,
        "switched_bytes": status.switched_bytes,
        "switch_ms": status.switch_ms,
        "preempted": preempted,
        "rows": {"merged": status.merged_rows, "factored": status.factored_rows},
        "active": active,
        "recent_switches": switches,
        "cache": cached(&cache, Some(budget)),
        "device_cache": device_cache,
        "requests": {"completed": completed, "cancelled": cancelled, "failed": failed,
            "refused": app.metrics.refusals(), "in_flight": app.flights.len()},
        "latency": {"first_token_ms": quantiles(first_token), "token_ms": quantiles(token)},
        "can_change": caller.may_change_something() && app.engine.store().is_some(),
    }))
}

/// A node's name, if the caller may know it.
fn seen<'a>(caller: &Caller, node: &'a str) -> Option<&'a str> {
    caller.sees(node.trim_matches('/')).then_some(node)
}

fn recent(caller: &Caller, switch: &RecentSwitch) -> Value {
    let RecentSwitch { number, at, report } = switch;
    let all_seen = |names: &[String]| -> Vec<String> {
        names.iter().filter(|name| seen(caller, name).is_some()).cloned().collect()
    };
    json!({"number": number, "from": seen(caller, &report.source), "to": seen(caller, &report.target),
        "subtracted": all_seen(&report.subtracted), "added": all_seen(&report.added),
        "ms": report.total_ms, "bytes": report.touched_bytes,
        "age_ms": at.elapsed().as_secs_f64() * 1e3})
}

fn cached(stats: &CacheStats, budget: Option<usize>) -> Value {
    let CacheStats { bytes, nodes, hits, misses, evictions, .. } = stats;
    json!({"bytes": bytes, "budget": budget, "nodes": nodes, "hits": hits, "misses": misses,
        "evictions": evictions})
}

fn quantiles(found: Quantiles) -> Value {
    found.map_or(Value::Null, |(p50, p99)| json!({"p50": p50, "p99": p99}))
}
