//! Answers as they come: server-sent events, a chunk a step.

use std::collections::VecDeque;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::choices::{Choices, Stepped};
use super::params::{Kind, StreamUsage};
use super::render::{Render, usage};

const END: &str = "data: [DONE]\n\n";

/// A stream on its way.
struct Stream {
    choices: Choices,
    render: Render,
    usage: StreamUsage,
    /// What is to be sent next.
    ready: VecDeque<Bytes>,
    is_over: bool,
}

/// The response whose body is the stream.
pub(super) fn response(
    choices: Choices,
    render: Render,
    first: Stepped,
    usage: StreamUsage,
) -> Response {
    let ready = VecDeque::new();
    let mut stream = Stream { choices, render, usage, ready, is_over: false };
    stream.open();
    stream.push_step(first);
    let body = futures_util::stream::unfold(stream, |mut stream| async {
        let bytes = stream.next().await?;
        Some((Ok::<_, std::convert::Infallible>(bytes), stream))
    });
    let mut response = Response::new(Body::from_stream(body));
    let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

impl Stream {
    /// What comes before the first step.
    fn open(&mut self) {
        for index in 0..self.choices.list.len() {
            match self.render.kind {
                Kind::Chat => self.push(self.render.opening(index)),
                Kind::Completion if !self.choices.list[index].echo.is_empty() => {
                    let echo = std::mem::take(&mut self.choices.list[index].echo);
                    self.push(self.render.step(index, &echo, &self.choices));
                }
                Kind::Completion => {}
            }
        }
    }

    async fn next(&mut self) -> Option<Bytes> {
        while self.ready.is_empty() && !self.is_over {
            match self.choices.next(&self.render.app).await {
                Ok(Some(step)) => self.push_step(step),
                Ok(None) => {
                    if self.usage.at_end {
                        let closing = self.render.closing(&self.choices);
                        self.push(closing);
                    }
                    self.end();
                }
                Err(error) => {
                    if let Some(cause) = &error.cause {
                        tracing::warn!("a stream broke off: {cause}");
                    }
                    self.ready.push_back(event(&error.body()));
                    self.end();
                }
            }
        }
        self.ready.pop_front()
    }

    /// A step becomes a chunk, if it says anything.
    fn push_step(&mut self, (index, step): Stepped) {
        let text = self.choices.take((index, step));
        let choice = &self.choices.list[index];
        if !text.is_empty() || !choice.chosen.is_empty() || choice.stop.is_some() {
            let chunk = self.render.step(index, &text, &self.choices);
            self.push(chunk);
            let choice = &mut self.choices.list[index];
            choice.offset += self.render.chars(&choice.chosen);
            choice.chosen.clear();
        }
    }

    fn push(&mut self, mut chunk: Map<String, Value>) {
        if self.usage.always {
            chunk.insert("usage".to_owned(), usage(&self.choices));
        } else if self.usage.at_end && !chunk.contains_key("usage") {
            chunk.insert("usage".to_owned(), json!(null));
        }
        self.ready.push_back(event(&Value::Object(chunk)));
    }

    fn end(&mut self) {
        self.ready.push_back(Bytes::from_static(END.as_bytes()));
        self.is_over = true;
    }
}

fn event(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}
