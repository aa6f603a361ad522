//! Texts: completions, chats, and what tokens texts are.

mod choices;
mod params;
mod render;
mod stream;
mod tokens;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};

use crate::access::Caller;
use crate::app::{App, REQUEST_ID, RequestId, new_id};
use crate::body;
use crate::error::ApiError;
use crate::log::Entry;
use choices::{Choices, Submission};
use params::{Asked, Kind};
use render::Render;
pub(crate) use tokens::{detokenize, tokenize};

/// `POST /v1/completions`
pub(crate) async fn completions(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    text(app, Kind::Completion, request).await
}

/// `POST /v1/chat/completions`
pub(crate) async fn chat(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    text(app, Kind::Chat, request).await
}

/// Makes a text, and counts the refusal where there is none.
async fn text(app: Arc<App>, kind: Kind, request: Request) -> Result<Response, ApiError> {
    let made = make(&app, kind, request).await;
    if let Err(error) = &made {
        app.metrics.refuse(match error.status.as_u16() {
            429 if error.code == Some("queue_full") => "queue",
            429 => "rate",
            400 => "request",
            404 => "model",
            408 => "timeout",
            413 => "size",
            503 => "stopping",
            _ => "error",
        });
    }
    made
}

async fn make(app: &Arc<App>, kind: Kind, request: Request) -> Result<Response, ApiError> {
    let asked_at = Instant::now();
    let (parts, body) = request.into_parts();
    let caller = Caller::of(&parts);
    let entry = parts.extensions.get::<Entry>().cloned().expect("every request has one");
    if app.is_draining.load(Ordering::Acquire) {
        return Err(ApiError::stopping());
    }
    caller.take_request()?;
    let value = body::json(&app.bounds, &parts.headers, body).await?;
    let asked = Asked::read(kind, value)?;
    let number = parts.extensions.get::<RequestId>().map_or_else(new_id, |id| id.0.clone());
    // As with vLLM, the header's number goes before the body's.
    let has_own = parts.headers.contains_key(&REQUEST_ID);
    let id = asked.request_id.clone().filter(|id| !has_own && !id.is_empty()).unwrap_or(number);
    let stream = asked.stream;
    let submission = Submission { asked, caller, entry, asked_at };
    let mut choices = app.blocking(move |app| Choices::submit(app, submission)).await?;
    // The first step says which version computes, and what fails at once fails with a status.
    let first = choices.first_step(app).await?;
    let render = Render::new(app, kind, &id, &choices);
    match stream {
        Some(usage) => Ok(stream::response(choices, render, first, usage)),
        None => {
            choices.collect(app, first).await?;
            Ok(axum::Json(render.whole(&choices)).into_response())
        }
    }
}
