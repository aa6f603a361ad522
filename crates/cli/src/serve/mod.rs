//! `pleach serve`: OpenAI's API over a tree, until a signal ends it.

pub(crate) mod key;
#[cfg(feature = "otlp")]
mod traces;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::{Args, ValueEnum};
use pleach::Runtime;
use pleach_serve::{Access, Bounds, Log, LogLine, Server, ServerOptions};
use serde_json::json;

use super::Console;
use super::generate::engine_options;
use super::model::Model;
use super::signals;

const MIB: usize = 1 << 20;
/// Where the administrator's token may stand.
const ADMIN_VARIABLE: &str = "PLEACH_ADMIN_TOKEN";
/// Threads that read requests and write answers: the model computes on others.
const NETWORK_THREADS: usize = 2;

/// Serve the tree over HTTP: OpenAI's API, vLLM's adapter routes, and a page to look at
#[derive(Args)]
#[command(after_help = "\
A model's name is a node's path; the base's name is the root. GET /openapi.json describes all routes, \
docs/serving.md shows clients.

Without --keys everybody who reaches the address may use every node. With it each key opens its own \
subtrees, and what lies outside is as if it were not there: `pleach key` makes keys. Changes (publish, \
remove, move, roll back; of a store alone) need a key with `change`, or the token in PLEACH_ADMIN_TOKEN \
or --admin-token-file.

SIGTERM and SIGINT end it: nothing new is taken, what runs has --drain-seconds to end; a second one \
ends it at once. SIGHUP reads the keys again.")]
pub(crate) struct Serve {
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    network: Network,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    bounds: Bounding,
}

/// Where it is to be reached.
#[derive(Args)]
#[command(next_help_heading = "Network")]
struct Network {
    /// Address and port to listen at; port 0 is any that is free
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8000")]
    listen: SocketAddr,
    /// A second address where /metrics alone is to be had, without a key
    #[arg(long, value_name = "ADDRESS")]
    metrics_listen: Option<SocketAddr>,
    /// What the base is called [default: its file's or folder's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// A line a request on stderr: text, json, or off; never a prompt or an answer
    #[arg(long, value_enum, value_name = "HOW", default_value_t = LogAs::Text, hide_possible_values = true)]
    log: LogAs,
    /// A collector that gets a span a request by OTLP over HTTP: http://HOST:4318/v1/traces
    #[cfg(feature = "otlp")]
    #[arg(long, value_name = "URL")]
    otlp: Option<String>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum LogAs {
    Text,
    Json,
    Off,
}

/// Who may do what.
#[derive(Args)]
#[command(next_help_heading = "Access")]
struct Who {
    /// A file of keys (see `pleach key`): who has none is refused
    #[arg(long, value_name = "FILE.toml")]
    keys: Option<PathBuf>,
    /// A file with the token of whoever may change everything
    #[arg(long, value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
    /// A folder below which adapters may be published by their path
    #[arg(long, value_name = "FOLDER")]
    adapter_root: Option<PathBuf>,
}

/// How much at once.
#[derive(Args)]
#[command(next_help_heading = "Bounds")]
struct Bounding {
    /// Memory for keys and values of all that run [default: 1024]
    #[arg(long, value_name = "MIB")]
    kv_budget: Option<u64>,
    /// Most texts that run at once; the others wait [default: 32]
    #[arg(long, value_name = "N")]
    max_running: Option<NonZeroUsize>,
    /// Most texts that wait; more are refused with status 429 [default: 1024]
    #[arg(long, value_name = "N")]
    max_waiting: Option<NonZeroUsize>,
    /// Most seconds a request may take, waiting included
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout_seconds: u64,
    /// Most seconds that requests may go on once it is to end
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain_seconds: u64,
    /// Longest body of a request
    #[arg(long, value_name = "MIB", default_value_t = 4)]
    max_body: usize,
    /// Largest adapter that is uploaded
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    max_upload: usize,
    /// Most connections at once
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::new(4096).expect("not zero"))]
    max_connections: NonZeroUsize,
}

impl Serve {
    pub(crate) fn run(self, console: &Console) -> anyhow::Result<ExitCode> {
        // What cannot be served is said before the base is loaded.
        let access = self.who.access()?;
        let nodes = self.model.nodes()?;
        let options = ServerOptions {
            listen: self.network.listen,
            metrics_listen: self.network.metrics_listen,
            name: self.network.name.clone(),
            access,
            bounds: self.bounds.bounds(),
            adapter_root: self.who.adapter_root.clone(),
            limits: console.limits,
            log: self.network.log()?,
            engine: {
                let mut options = engine_options(self.bounds.kv_budget, self.bounds.max_running);
                if let Some(most) = self.bounds.max_waiting {
                    options.scheduler.max_waiting = most.get();
                }
                options
            },
        };
        let is_open = !options.access.needs_key();
        if is_open && !self.network.listen.ip().is_loopback() {
            tracing::warn!(
                "everybody who reaches {} may use every node: give --keys, or put something before it that asks for one",
                self.network.listen
            );
        }
        let threads = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(NETWORK_THREADS)
            .enable_all()
            .build()
            .context("cannot start the network's threads")?;
        let (runtime, _) = self.model.open(nodes, console)?;
        let served = threads.block_on(serve(runtime, options, console));
        // Whoever is still at work is given up.
        threads.shutdown_timeout(Duration::from_secs(5));
        served.map(|()| ExitCode::SUCCESS)
    }
}

async fn serve(runtime: Runtime, options: ServerOptions, console: &Console) -> anyhow::Result<()> {
    let access = options.access.clone();
    let stop = signals::told_to_end(move || match access.reload() {
        Ok(count) => tracing::warn!("SIGHUP: {count} keys were read"),
        Err(error) => tracing::warn!("SIGHUP: the keys stay as they were: {error}"),
    })?;
    let server = Server::bind(runtime, options).await.map_err(|error| anyhow!(error))?;
    let address = server.address().context("the address")?;
    let (name, url) = (server.base_name().to_owned(), format!("http://{address}/"));
    let told = json!({"address": address.to_string(), "url": url, "model": name});
    console.answer(&told, || format!("{name} is served at {url}\n"))?;
    server.run(stop).await;
    Ok(())
}

impl Network {
    fn log(&self) -> anyhow::Result<Option<Log>> {
        let write: fn(&LogLine) = match self.log {
            LogAs::Off => |_| (),
            LogAs::Text => |line| super::console::log(&line.text()),
            LogAs::Json => {
                |line| super::console::log(&serde_json::to_string(line).unwrap_or_default())
            }
        };
        #[cfg(feature = "otlp")]
        if let Some(endpoint) = &self.otlp {
            let traces = traces::Traces::to(endpoint)?;
            return Ok(Some(Box::new(move |line| {
                write(line);
                traces.send(line);
            })));
        }
        Ok((self.log != LogAs::Off).then(|| Box::new(write) as Log))
    }
}

impl Who {
    fn access(&self) -> anyhow::Result<Access> {
        let mut access = Access::open();
        if let Some(file) = &self.keys {
            access = access.with_keys(file).map_err(|error| anyhow!(error))?;
        }
        let variable = std::env::var_os(ADMIN_VARIABLE);
        let token = match (&self.admin_token_file, variable) {
            (Some(_), Some(_)) => {
                bail!("{ADMIN_VARIABLE} and --admin-token-file are both there; give one of them")
            }
            (Some(file), None) => Some((read_token(file)?, file.display().to_string())),
            (None, Some(token)) => {
                let token = token.into_string();
                let token = token.map_err(|_| anyhow!("{ADMIN_VARIABLE} is not UTF-8"))?;
                Some((token, ADMIN_VARIABLE.to_owned()))
            }
            (None, None) => None,
        };
        if let Some((token, place)) = token {
            if token.len() < 16 {
                bail!(
                    "the token in {place} has {} characters; give at least 16, such as one of `pleach key`",
                    token.len()
                );
            }
            access = access.with_admin(&token);
        }
        Ok(access)
    }
}

fn read_token(file: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    Ok(text.trim().to_owned())
}

impl Bounding {
    fn bounds(&self) -> Bounds {
        Bounds {
            body_bytes: self.max_body.saturating_mul(MIB),
            upload_bytes: self.max_upload.saturating_mul(MIB) as u64,
            request_wait: Duration::from_secs(self.timeout_seconds),
            drain_wait: Duration::from_secs(self.drain_seconds),
            connections: self.max_connections.get(),
            ..Bounds::default()
        }
    }
}
