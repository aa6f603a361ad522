//! What all requests share, the routes, and what is done around every request: its number, who
//! sends it, its line in the log, and a panic that is its own.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use pleach::adapter::Limits;
use pleach::{Engine, NodeVersion};
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;

use crate::access::Access;
use crate::error::ApiError;
use crate::flights::Flights;
use crate::log::{Entry, Log, Logged};
use crate::metrics::Metrics;
use crate::{Bounds, adapters, metrics, models, page, status, text, tree};

/// The number of a request, the client's own or one made here.
pub(crate) static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest number of a client that is taken over.
const MAX_REQUEST_ID_BYTES: usize = 128;
/// What the page may load and call: what comes from here.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// What anybody may read, with the page's files: nothing of it says what is served.
const PUBLIC: [&str; 6] = ["/", "/health", "/ping", "/ready", "/version", "/openapi.json"];

/// What all requests share.
pub(crate) struct App {
    pub(crate) engine: Engine,
    /// The root's name.
    pub(crate) base_name: String,
    pub(crate) device: String,
    /// Names the base's bytes and this program.
    foundation: blake3::Hash,
    pub(crate) access: Access,
    pub(crate) bounds: Bounds,
    /// Texts that run at once, as the engine has it.
    pub(crate) max_running: usize,
    /// Adapters below it may be published by their path.
    pub(crate) adapter_root: Option<PathBuf>,
    pub(crate) limits: Limits,
    pub(crate) flights: Flights,
    pub(crate) metrics: Metrics,
    /// Leave to compile an adapter.
    pub(crate) publishing: Arc<Semaphore>,
    pub(crate) is_draining: AtomicBool,
    pub(crate) log: Option<Log>,
    pub(crate) started: Instant,
    /// The same in seconds since 1970.
    pub(crate) created: u64,
}

impl App {
    pub(crate) fn new(engine: Engine, device: String, options: crate::ServerOptions) -> Self {
        let crate::ServerOptions {
            name,
            access,
            bounds,
            adapter_root,
            limits,
            log,
            engine: engine_options,
            ..
        } = options;
        let path = engine.base().path();
        let stem = if path.is_dir() { path.file_name() } else { path.file_stem() };
        let own = || stem.map_or("base".into(), |stem| stem.to_string_lossy().into_owned());
        let mut foundation = blake3::Hasher::new_derive_key("pleach serve system_fingerprint 1");
        foundation.update(env!("CARGO_PKG_VERSION").as_bytes());
        foundation.update(engine.base().content_hash().as_bytes());
        // Of a folder the weights' files do not say how they are computed with.
        foundation.update(format!("{:?}", engine.base().config()).as_bytes());
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self {
            base_name: name.unwrap_or_else(own),
            device,
            foundation: foundation.finalize(),
            access,
            adapter_root,
            limits,
            flights: Flights::default(),
            metrics: Metrics::new(),
            publishing: Arc::new(Semaphore::new(bounds.publishing)),
            bounds,
            max_running: engine_options.scheduler.max_running,
            is_draining: AtomicBool::new(false),
            log,
            started: Instant::now(),
            created,
            engine,
        }
    }

    /// Most tokens of a prompt and its answer.
    pub(crate) fn context(&self) -> usize {
        self.engine.base().config().max_position_embeddings
    }

    /// What computed an answer: this program, the base's bytes, and what each node of the path
    /// changes, whatever it is called.
    pub(crate) fn fingerprint(&self, version: &NodeVersion) -> String {
        let mut hasher = blake3::Hasher::new_keyed(self.foundation.as_bytes());
        for node in version.path() {
            match node.content_hash() {
                Some(hash) => hasher.update(hash.as_bytes()),
                // In memory: it is known by its name alone.
                None => hasher.update(blake3::hash(node.name().as_bytes()).as_bytes()),
            };
        }
        format!("fp_{}", &hasher.finalize().to_hex()[..16])
    }

    /// Does work that may wait for a disk or a lock where nobody else has to wait for it.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Self>) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let app = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&app)).await;
        done.unwrap_or_else(|panic| Err(ApiError::failed(panic.to_string())))
    }
}

/// All routes.
pub(crate) fn router(app: &Arc<App>) -> Router {
    let nodes = get(tree::get).put(tree::put).delete(tree::delete).post(tree::post);
    Router::new()
        .route("/", get(page::html))
        .route("/page/{file}", get(page::file))
        .route("/openapi.json", get(page::openapi))
        .route("/health", get(health))
        .route("/ping", get(health).post(health))
        .route("/ready", get(ready))
        .route("/version", get(version))
        .route("/load", get(status::load))
        .route("/metrics", get(metrics::metrics))
        .route("/v1/status", get(status::status))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/v1/completions", post(text::completions))
        .route("/v1/chat/completions", post(text::chat))
        .route("/tokenize", post(text::tokenize))
        .route("/detokenize", post(text::detokenize))
        .route("/v1/load_lora_adapter", post(adapters::load))
        .route("/v1/unload_lora_adapter", post(adapters::unload))
        .route("/v1/tree/children", get(tree::root_children))
        .route("/v1/tree/nodes/{*path}", nodes)
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::disable())
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(app.clone(), around))
        .with_state(app.clone())
}

/// Everything that is done around a request.
async fn around(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let entry = Entry::new(&id, &request);
    let caller = match app.access.caller(request.headers()) {
        Ok(caller) => {
            entry.note(|line| line.key = caller.name().map(str::to_owned));
            Some(caller)
        }
        Err(_) if is_public(request.uri().path()) => None,
        Err(refusal) => {
            app.metrics.refuse("key");
            return finished(&app, &id, entry, refusal.into_response());
        }
    };
    if let Some(caller) = caller {
        request.extensions_mut().insert(caller);
    }
    request.extensions_mut().insert(RequestId(id.clone()));
    request.extensions_mut().insert(entry.clone());
    finished(&app, &id, entry, next.run(request).await)
}

fn is_public(path: &str) -> bool {
    PUBLIC.contains(&path) || page::is_file(path)
}

/// A response with what every one has, to be logged when the last of it is sent or given up.
fn finished(app: &Arc<App>, id: &str, entry: Entry, mut response: Response) -> Response {
    if let Some(said) = response.extensions_mut().remove::<crate::error::Said>() {
        if let Some(cause) = &said.cause {
            tracing::warn!("request {id}: {cause}");
        }
        entry.note(|line| line.error = Some(said.cause.unwrap_or(said.message)));
    }
    entry.note(|line| line.status = response.status().as_u16());
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(&REQUEST_ID, id);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    let app = app.clone();
    response.map(|body| axum::body::Body::new(Logged::new(body, app, entry)))
}

/// The number of a request.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(pub(crate) String);

/// The client's own number, where it is short and plain; or a new one.
fn request_id(headers: &HeaderMap) -> String {
    let own = headers.get(&REQUEST_ID).and_then(|value| value.to_str().ok());
    let is_plain = |id: &&str| {
        (1..=MAX_REQUEST_ID_BYTES).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_graphic())
    };
    own.filter(is_plain).map_or_else(new_id, str::to_owned)
}

/// 32 hexadecimal digits.
pub(crate) fn new_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

#[allow(clippy::needless_pass_by_value, reason = "the layer's signature")]
fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let text: Cow<'_, str> = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).into(),
        (_, Some(text)) => text.into(),
        _ => "no text".into(),
    };
    ApiError::failed(format!("a panic: {text}")).into_response()
}

async fn no_route(request: Request) -> ApiError {
    no_such_route(request.uri().path())
}

pub(crate) fn no_such_route(path: &str) -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        format!("There is no route {path}; GET /openapi.json lists all"),
    )
}

async fn wrong_method(request: Request) -> ApiError {
    let message = format!("{} is not for {}", request.method(), request.uri().path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
}

async fn health() {}

async fn ready(State(app): State<Arc<App>>) -> Result<(), ApiError> {
    let is_over = app.is_draining.load(Ordering::Acquire) || app.engine.has_stopped();
    if is_over { Err(ApiError::stopping()) } else { Ok(()) }
}

async fn version() -> impl IntoResponse {
    axum::Json(serde_json::json!({ "version": env!("CARGO_PKG_VERSION") }))
}
