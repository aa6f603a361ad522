//! A span a request, sent to a collector by OTLP. Of spans that cannot be sent in time the exporter
//! says so, and nobody waits.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{Span, SpanKind, Status, Tracer, TracerProvider};
use opentelemetry::{Context as TraceContext, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use pleach_serve::LogLine;

/// Where spans go. When it is dropped what is left of them is sent.
pub(super) struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    /// Sends to the collector at `endpoint`, `http://HOST:4318/v1/traces`.
    pub(super) fn to(endpoint: &str) -> anyhow::Result<Self> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint)
            .build()
            .context("--otlp")?;
        let resource = Resource::builder().with_service_name("pleach").build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource)
            .build();
        let tracer = provider.tracer("pleach-serve");
        Ok(Self { provider, tracer })
    }

    /// Sends a request, named and described by OpenTelemetry's conventions for HTTP and for generative
    /// models, and by ours.
    pub(super) fn send(&self, line: &LogLine) {
        let start = SystemTime::UNIX_EPOCH + Duration::from_millis(line.time_ms);
        let header = |trace: &String| HashMap::from([("traceparent".to_owned(), trace.clone())]);
        let parent = line.traceparent.as_ref().map(header).unwrap_or_default();
        let parent =
            TraceContextPropagator::new().extract_with_context(&TraceContext::new(), &parent);
        let mut span = self
            .tracer
            .span_builder(format!("{} {}", line.method, route(&line.path)))
            .with_kind(SpanKind::Server)
            .with_start_time(start)
            .with_attributes(attributes(line))
            .start_with_context(&self.tracer, &parent);
        if let Some(error) = line.error.as_ref().filter(|_| line.status >= 500) {
            span.set_status(Status::error(error.clone()));
        }
        let took = Duration::try_from_secs_f64(line.total_ms / 1e3).unwrap_or_default();
        span.end_with_timestamp(start + took);
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::warn!("the last traces were not sent: {error}");
        }
    }
}

/// A path without the nodes in it: span names are few.
fn route(path: &str) -> &str {
    let families = ["/v1/tree/nodes/", "/v1/models/"];
    families.into_iter().find(|family| path.starts_with(family)).unwrap_or(path)
}

fn attributes(line: &LogLine) -> Vec<KeyValue> {
    let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let mut attributes = vec![
        KeyValue::new("http.request.method", line.method.clone()),
        KeyValue::new("url.path", line.path.clone()),
        KeyValue::new("http.response.status_code", i64::from(line.status)),
        KeyValue::new("pleach.request_id", line.request_id.clone()),
        KeyValue::new("pleach.is_complete", line.is_complete),
    ];
    if let Some(node) = &line.node {
        attributes.push(KeyValue::new("gen_ai.request.model", node.clone()));
        attributes.push(KeyValue::new("gen_ai.usage.input_tokens", number(line.prompt_tokens)));
        attributes
            .push(KeyValue::new("gen_ai.usage.output_tokens", number(line.completion_tokens)));
    }
    if let Some(generation) = line.generation.and_then(|generation| i64::try_from(generation).ok())
    {
        attributes.push(KeyValue::new("pleach.node_generation", generation));
    }
    if let Some(ms) = line.first_token_ms {
        attributes.push(KeyValue::new("pleach.first_token_ms", ms));
    }
    if let Some(key) = &line.key {
        attributes.push(KeyValue::new("pleach.key", key.clone()));
    }
    attributes
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// Takes one request of a collector's and returns its path and body.
    fn collector() -> (String, std::thread::JoinHandle<(String, Vec<u8>)>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let taken = std::thread::spawn(move || {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            let (mut head, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                if line.trim().is_empty() {
                    break;
                }
                head += &line;
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            stream.get_mut().write_all(answer).unwrap();
            (head, body)
        });
        (format!("http://{address}/v1/traces"), taken)
    }

    #[test]
    fn a_request_is_a_span_of_its_callers_trace() {
        let (endpoint, taken) = collector();
        let traces = Traces::to(&endpoint).unwrap();
        let trace = "0af7651916cd43dd8448eb211c80319c";
        traces.send(&LogLine {
            method: "POST".to_owned(),
            path: "/v1/completions".to_owned(),
            status: 200,
            node: Some("fr/alice".to_owned()),
            generation: Some(7),
            prompt_tokens: 9,
            total_ms: 12.5,
            traceparent: Some(format!("00-{trace}-b7ad6b7169203331-01")),
            ..LogLine::default()
        });
        drop(traces);
        let (head, body) = taken.join().unwrap();
        assert!(head.starts_with("POST /v1/traces "), "{head}");
        let holds = |part: &[u8]| body.windows(part.len()).any(|window| window == part);
        let id: Vec<u8> =
            (0..16).map(|i| u8::from_str_radix(&trace[2 * i..][..2], 16).unwrap()).collect();
        assert!(holds(&id), "the trace's number");
        for part in
            ["POST /v1/completions", "gen_ai.request.model", "fr/alice", "pleach.node_generation"]
        {
            assert!(holds(part.as_bytes()), "{part}");
        }
    }

    #[test]
    fn names_of_spans_hold_no_nodes() {
        assert_eq!(route("/v1/tree/nodes/fr/alice/move"), "/v1/tree/nodes/");
        assert_eq!(route("/v1/completions"), "/v1/completions");
    }
}
