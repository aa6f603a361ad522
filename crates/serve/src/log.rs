//! One line a request, when the last of its answer is sent or given up. No prompts, no texts.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use serde::Serialize;

use crate::app::App;

/// Longest name of a trace that is taken over: version, trace, span and flags.
const MAX_TRACE_BYTES: usize = 55;

/// Where lines go.
pub type Log = Box<dyn Fn(&LogLine) + Send + Sync>;

/// What is logged of a request.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LogLine {
    /// When it arrived, in milliseconds since 1970.
    pub time_ms: u64,
    /// Its number, as its answer's `x-request-id` has it.
    pub request_id: String,
    /// `GET`, `POST`, ….
    pub method: String,
    /// The path, without what follows a question mark.
    pub path: String,
    /// The answer's status; 0 where the client left before it.
    pub status: u16,
    /// Whether the answer was sent to its end.
    pub is_complete: bool,
    /// Milliseconds from its arrival to the end of its answer.
    pub total_ms: f64,
    /// Name of the key it came with.
    pub key: Option<String>,
    /// The node that answered.
    pub node: Option<String>,
    /// That node's generation, of a store.
    pub generation: Option<u64>,
    /// Tokens of its prompts.
    pub prompt_tokens: usize,
    /// New tokens.
    pub completion_tokens: usize,
    /// Milliseconds to its first token.
    pub first_token_ms: Option<f64>,
    /// The trace that it is part of, as its header `traceparent` says (W3C Trace Context).
    pub traceparent: Option<String>,
    /// Why it was refused or failed.
    pub error: Option<String>,
}

impl LogLine {
    /// The line in words.
    pub fn text(&self) -> String {
        let Self { method, path, status, total_ms, .. } = self;
        let mut text = format!("{method} {path} {status} {total_ms:.1} ms");
        if !self.is_complete {
            text += ", the client left";
        }
        if let Some(node) = &self.node {
            text += &format!(", {node}");
        }
        if let Some(generation) = self.generation {
            text += &format!(" (generation {generation})");
        }
        if self.prompt_tokens > 0 {
            text += &format!(", {} + {} tokens", self.prompt_tokens, self.completion_tokens);
        }
        if let Some(first) = self.first_token_ms {
            text += &format!(", the first after {first:.1} ms");
        }
        if let Some(key) = &self.key {
            text += &format!(", key {key}");
        }
        text += &format!(", {}", self.request_id);
        if let Some(error) = &self.error {
            text += &format!(": {error}");
        }
        text
    }
}

/// A request's line as it becomes complete.
#[derive(Clone)]
pub(crate) struct Entry {
    line: Arc<Mutex<LogLine>>,
    pub(crate) arrived: Instant,
}

impl Entry {
    pub(crate) fn new(id: &str, request: &Request) -> Self {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let trace = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
        let line = LogLine {
            time_ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
            traceparent: trace.filter(|text| text.len() <= MAX_TRACE_BYTES).map(str::to_owned),
            request_id: id.to_owned(),
            method: request.method().to_string(),
            path: request.uri().path().to_owned(),
            ..LogLine::default()
        };
        Self { line: Arc::new(Mutex::new(line)), arrived: Instant::now() }
    }

    /// Adds to it.
    pub(crate) fn note(&self, change: impl FnOnce(&mut LogLine)) {
        change(&mut self.line.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A body whose end is logged.
pub(crate) struct Logged {
    body: Body,
    app: Arc<App>,
    entry: Entry,
    is_complete: bool,
}

impl Logged {
    pub(crate) fn new(body: Body, app: Arc<App>, entry: Entry) -> Self {
        let is_complete = body.is_end_stream();
        Self { body, app, entry, is_complete }
    }
}

impl HttpBody for Logged {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(frame) = &polled {
            self.is_complete = frame.is_none() || self.body.is_end_stream();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        let Some(log) = &self.app.log else { return };
        let total_ms = self.entry.arrived.elapsed().as_secs_f64() * 1e3;
        self.entry.note(|line| {
            (line.total_ms, line.is_complete) = (total_ms, self.is_complete);
            log(line);
        });
    }
}
