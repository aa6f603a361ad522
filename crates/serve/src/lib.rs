//! An HTTP server over a tree of LoRA adapters: OpenAI's API with the tree as the list of models,
//! vLLM's adapter routes, and a page that shows what is live. It sits on [`pleach::Engine`], which
//! alone decides who runs.
//!
//! A request goes through `app.rs` (its number, its key, its line in the log) to one of
//! - `text/`: completions and chats, whole or streamed; tokens of a text
//! - `models.rs`, `tree.rs`, `adapters.rs`: the tree as models and as nodes, and changes to it
//! - `status.rs`, `metrics.rs`, `page.rs`: what looks on.
//!
//! `connections.rs` takes connections and ends them in time, `access.rs` knows keys and their
//! subtrees, `names.rs` what a model's name means, `flights.rs` which texts are being made.
//!
//! **Invariant:** every answer names the node, its generation and the fingerprint of what computed
//! it; no unknown name is served by the base.
//! **Invariant:** what a key does not open is as if it were not there.
//! **Invariant:** whoever leaves frees what their request held.
//! **Invariant:** a change is on disk before its answer is sent.

mod access;
mod adapters;
mod app;
mod body;
mod connections;
mod error;
mod flights;
mod log;
mod metrics;
mod models;
mod names;
mod page;
mod status;
mod text;
mod tree;

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pleach::adapter::Limits;
use pleach::{EngineOptions, Runtime};
use tokio::net::TcpListener;

pub use access::{Access, new_token};
pub use log::{Log, LogLine};

use app::App;

/// What is taken of a client, and how long is waited for one.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Longest body of a request, in bytes; of an upload it is [`Self::upload_bytes`].
    pub body_bytes: usize,
    /// How long a body may take to come.
    pub body_wait: Duration,
    /// Longest upload of an adapter, in bytes.
    pub upload_bytes: u64,
    /// How long it may take.
    pub upload_wait: Duration,
    /// How long a connection may take for the head of a request, and be silent between two.
    pub head_wait: Duration,
    /// How long a client may take none of an answer that is ready.
    pub write_wait: Duration,
    /// How long a request may take, waiting included.
    pub request_wait: Duration,
    /// How long requests may go on once the server is to stop.
    pub drain_wait: Duration,
    /// Connections at once; more wait to be taken.
    pub connections: usize,
    /// Adapters that are compiled at once; more are refused.
    pub publishing: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            body_bytes: 4 << 20,
            body_wait: Duration::from_secs(30),
            upload_bytes: 1 << 30,
            upload_wait: Duration::from_secs(600),
            head_wait: Duration::from_secs(30),
            write_wait: Duration::from_secs(60),
            request_wait: Duration::from_secs(600),
            drain_wait: Duration::from_secs(30),
            connections: 4096,
            publishing: 2,
        }
    }
}

/// How to serve.
pub struct ServerOptions {
    /// Where to listen; port 0 is any that is free.
    pub listen: SocketAddr,
    /// Where metrics are to be had without a key, if anywhere.
    pub metrics_listen: Option<SocketAddr>,
    /// What the base is called; without it, as its file or folder is.
    pub name: Option<String>,
    /// Who may use and change what.
    pub access: Access,
    /// What is taken of a client.
    pub bounds: Bounds,
    /// The folder below which adapters may be published by their path.
    pub adapter_root: Option<PathBuf>,
    /// What an adapter may hold.
    pub limits: Limits,
    /// Where a line a request goes.
    pub log: Option<Log>,
    /// Bounds of the engine.
    pub engine: EngineOptions,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8000)),
            metrics_listen: None,
            name: None,
            access: Access::open(),
            bounds: Bounds::default(),
            adapter_root: None,
            limits: Limits::default(),
            log: None,
            engine: EngineOptions::default(),
        }
    }
}

/// A server that listens.
pub struct Server {
    app: Arc<App>,
    listener: TcpListener,
    metrics: Option<TcpListener>,
}

impl Server {
    /// Listens, and begins to serve with the weights of `runtime`.
    ///
    /// # Errors
    /// In words: an address that cannot be listened at, a folder that is none, and what the engine
    /// returns.
    pub async fn bind(runtime: Runtime, mut options: ServerOptions) -> Result<Self, String> {
        let listen = async |address: SocketAddr| {
            let listener = TcpListener::bind(address).await;
            listener.map_err(|error| format!("cannot listen at {address}: {error}"))
        };
        let listener = listen(options.listen).await?;
        let metrics = match options.metrics_listen {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        if let Some(root) = &mut options.adapter_root {
            *root = root.canonicalize().map_err(|error| format!("{}: {error}", root.display()))?;
        }
        let device = runtime.device();
        let engine =
            pleach::Engine::new(runtime, &options.engine).map_err(|error| error.to_string())?;
        Ok(Self { app: Arc::new(App::new(engine, device, options)), listener, metrics })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// What the root is called.
    pub fn base_name(&self) -> &str {
        &self.app.base_name
    }

    /// Serves until `stop`; then takes nothing new, lets what runs go on for
    /// [`Bounds::drain_wait`], and ends.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Self { app, listener, metrics } = self;
        connections::serve(app, listener, metrics, stop).await;
    }
}
