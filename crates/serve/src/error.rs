//! What is said to a client whose request is refused or fails.
//!
//! **Invariant:** a text that goes to a client holds no path of the server's files, unless the
//! client may change what is served.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use pleach::Error;
use pleach::error::{ChatDefect, EngineDefect, StoreDefect, TokenizerDefect, TreeDefect};
use serde_json::{Value, json};

use crate::access::Caller;

/// openai-python asks again after 409 unless it is told not to.
static SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// A refusal or a failure, as OpenAI's API writes them.
#[derive(Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// The field of the request that is to blame.
    pub(crate) param: Option<Box<str>>,
    /// A name of the reason, for programs.
    pub(crate) code: Option<&'static str>,
    /// What kind it is called, where that does not follow from the status.
    pub(crate) kind: Option<&'static str>,
    /// Seconds after which it may be worth another try.
    pub(crate) retry_after: Option<u32>,
    /// Methods that the path has, where this one is not among them.
    pub(crate) allow: Option<&'static str>,
    /// Whether what happened is for the server's log and not for the client.
    pub(crate) cause: Option<Box<str>>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            status,
            message,
            param: None,
            code: None,
            kind: None,
            retry_after: None,
            allow: None,
            cause: None,
        }
    }

    /// A request that is wrong in `param`.
    pub(crate) fn bad(param: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message).param(param)
    }

    pub(crate) fn param(mut self, param: impl Into<Box<str>>) -> Self {
        self.param = Some(param.into());
        self
    }

    pub(crate) fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    pub(crate) fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// No model of that name, or none that this key may see: the two look alike.
    pub(crate) fn no_model(asked: &str, nearest: &[String]) -> Self {
        let names: Vec<String> = nearest.iter().map(|name| format!("`{name}`")).collect();
        let hint = match names.is_empty() {
            true => "GET /v1/models lists what there is".to_owned(),
            false => format!("did you mean {}?", names.join(", ")),
        };
        Self::new(StatusCode::NOT_FOUND, format!("The model `{asked}` does not exist; {hint}"))
            .param("model")
            .code("model_not_found")
    }

    /// The server is about to end, or its engine did.
    pub(crate) fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "The server is stopping; ask another one")
            .retry_after(5)
    }

    /// The name of a kind of error, by its status.
    fn kind(&self) -> &'static str {
        if let Some(kind) = self.kind {
            return kind;
        }
        match self.status {
            StatusCode::BAD_REQUEST => "BadRequestError",
            StatusCode::UNAUTHORIZED => "AuthenticationError",
            StatusCode::FORBIDDEN => "PermissionDeniedError",
            StatusCode::NOT_FOUND => "NotFoundError",
            StatusCode::METHOD_NOT_ALLOWED => "MethodNotAllowedError",
            StatusCode::REQUEST_TIMEOUT => "RequestTimeoutError",
            StatusCode::CONFLICT => "ConflictError",
            StatusCode::PAYLOAD_TOO_LARGE => "PayloadTooLargeError",
            StatusCode::UNPROCESSABLE_ENTITY => "UnprocessableEntityError",
            StatusCode::TOO_MANY_REQUESTS => "RateLimitError",
            StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailableError",
            _ => "InternalServerError",
        }
    }

    /// The body, or a stream's last word.
    pub(crate) fn body(&self) -> Value {
        let Self { message, param, code, .. } = self;
        json!({"error": {"message": message, "type": self.kind(), "param": param, "code": code}})
    }

    /// Of a text asked for at `model`: what the client can mend is said, what it cannot is logged.
    pub(crate) fn of_text(error: Error) -> Self {
        let text = error.to_string();
        let bad = |param: &str| Self::bad(param, text.clone());
        match error {
            Error::SamplingParameter { name, .. } => {
                let param = match name {
                    "stop_texts" => "stop",
                    "repeat_penalty" => "repetition_penalty",
                    name => name,
                };
                Self::bad(param, text.replacen(name, param, 1))
            }
            Error::EmptyPrompt | Error::UnknownToken { .. } => bad("prompt"),
            Error::ContextFull { .. } => bad("prompt").code("context_length_exceeded"),
            Error::Engine(defect) => Self::of_engine(defect),
            Error::Chat { defect, .. } => match defect {
                ChatDefect::Missing => Self::bad(
                    "messages",
                    "this model has no chat template; use /v1/completions, or start the server with --tokenizer FOLDER",
                ),
                defect => Self::bad("messages", format!("the chat template: {defect}")),
            },
            Error::Tokenizer { defect: TokenizerDefect::Missing, .. } => Self::failed(text),
            Error::Tokenizer { defect, .. } => Self::bad("prompt", defect.to_string()),
            Error::Tree(defect) if matches!(*defect, TreeDefect::UnknownNode { .. }) => {
                // It was there a moment ago.
                Self::no_model("", &[])
            }
            Error::Store { defect, .. } if matches!(*defect, StoreDefect::Stale { .. }) => {
                Self::new(StatusCode::CONFLICT, defect.to_string()).param("model")
            }
            _ => Self::failed(text),
        }
    }

    fn of_engine(defect: EngineDefect) -> Self {
        let text = defect.to_string();
        match defect {
            EngineDefect::QueueFull { .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, text).code("queue_full").retry_after(1)
            }
            EngineDefect::DeadlinePassed => {
                Self::new(StatusCode::REQUEST_TIMEOUT, text).param("deadline_ms")
            }
            EngineDefect::TooLarge { .. } => Self::bad("max_tokens", text),
            EngineDefect::Stopped => Self::stopping(),
            _ => Self::failed(text),
        }
    }

    /// Of a change of the store, for one who may make it.
    pub(crate) fn of_change(caller: &Caller, error: Error) -> Self {
        let error = without_unseen(caller, error);
        let text = error.to_string();
        let of = |status| Self::new(status, text.clone());
        let defect = match error {
            Error::Tree(defect) => {
                return match *defect {
                    TreeDefect::UnknownNode { .. } => of(StatusCode::NOT_FOUND),
                    _ => of(StatusCode::BAD_REQUEST),
                };
            }
            Error::Adapter { .. }
            | Error::Overflow { .. }
            | Error::DeltaShape { .. }
            | Error::NoSuchMatrix { .. }
            | Error::NonFinite { .. }
            | Error::SafeTensors { .. }
            | Error::FileTooLarge { .. }
            | Error::NotAFile { .. } => {
                return of(StatusCode::UNPROCESSABLE_ENTITY).code("invalid_lora_adapter");
            }
            Error::Store { defect, .. } => *defect,
            _ => return Self::failed(text),
        };
        let text = defect.to_string();
        let of = |status| Self::new(status, text.clone());
        match defect {
            StoreDefect::GenerationMismatch { .. } => {
                of(StatusCode::CONFLICT).code("lora_generation_mismatch")
            }
            StoreDefect::NodeExists { .. } => of(StatusCode::CONFLICT).code("node_exists"),
            StoreDefect::HasChildren { .. } => of(StatusCode::CONFLICT).code("has_children"),
            StoreDefect::Unreachable { .. } => of(StatusCode::CONFLICT).code("unreachable_nodes"),
            StoreDefect::UnknownGeneration { .. } => of(StatusCode::NOT_FOUND),
            StoreDefect::UnknownParent { .. }
            | StoreDefect::BelowItself { .. }
            | StoreDefect::Labels { .. }
            | StoreDefect::Root { .. }
            | StoreDefect::TrainedOn { .. } => of(StatusCode::BAD_REQUEST),
            StoreDefect::TooLarge { .. } => of(StatusCode::PAYLOAD_TOO_LARGE),
            StoreDefect::ReadOnly => of(StatusCode::FORBIDDEN).code("read_only"),
            StoreDefect::Busy { .. } => of(StatusCode::SERVICE_UNAVAILABLE).retry_after(1),
            _ => Self::failed(text),
        }
    }

    /// What is not the client's doing. The log says it all, the client the request's number.
    pub(crate) fn failed(cause: String) -> Self {
        let message = "The server could not do this; its log has the reason beside the x-request-id of this answer";
        let error = Self::new(StatusCode::INTERNAL_SERVER_ERROR, message);
        Self { cause: Some(cause.into()), ..error }
    }
}

/// The same error without names of nodes that the caller does not see.
fn without_unseen(caller: &Caller, mut error: Error) -> Error {
    match &mut error {
        _ if caller.sees_all() => {}
        Error::Tree(defect) => {
            if let TreeDefect::UnknownNode { nearest, .. } = &mut **defect {
                nearest.retain(|name| caller.sees(name));
            }
        }
        Error::Store { defect, .. } => match &mut **defect {
            StoreDefect::HasChildren { children, .. } => *children = "nodes below it".to_owned(),
            StoreDefect::Unreachable { nodes, problem, .. } => {
                let count = nodes.len();
                nodes.retain(|name| caller.sees(name));
                if nodes.len() < count {
                    nodes.push("others'".to_owned());
                    // It names the first of them.
                    *problem = "it would leave the lattice".to_owned();
                }
            }
            _ => {}
        },
        _ => {}
    }
    error
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(methods) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(methods));
        }
        if matches!(self.status, StatusCode::CONFLICT | StatusCode::REQUEST_TIMEOUT) {
            headers.insert(&SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // For whoever writes the log.
        let said = Said { message: self.message, cause: self.cause.map(String::from) };
        response.extensions_mut().insert(said);
        response
    }
}

/// What was said to a client, and what was not.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) message: String,
    pub(crate) cause: Option<String>,
}
