//! A server in this process with a made model, and a client of plain sockets: what is hostile must
//! be sent byte by byte.

// Each test file compiles this for itself and uses a part of it.
#![allow(dead_code, unreachable_pub, reason = "shared by test files that use different parts")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pleach::adapter::Limits;
use pleach::base::BaseModel;
use pleach::compile::base_lattice;
use pleach::engine::Options;
use pleach::store::{Details, StoreInfo};
use pleach::testing::adapter::{TinyAdapter, TinyModule};
use pleach::testing::{TinyModel, tiny_hf_model};
use pleach::{EngineOptions, Runtime, Store};
use pleach_serve::{Access, Bounds, LogLine, Server, ServerOptions};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;

/// What the base is called.
pub const BASE: &str = "tiny";
/// Who may change everything.
pub const ADMIN: &str = "the administrator's token";
const HEADROOM: f32 = 8.0;
/// Longest wait for anything that is to happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A made base with an empty folder for adapters, which go with it.
pub struct Made {
    pub dir: TempDir,
    pub context: usize,
}

/// An adapter on matrices of both blocks.
pub fn adapter(seed: u64) -> TinyAdapter {
    let modules = vec![
        TinyModule::linear("model.layers.1.mlp.up_proj", 96, 64),
        TinyModule::linear("model.layers.1.mlp.down_proj", 64, 96),
        TinyModule::linear("model.layers.0.self_attn.q_proj", 64, 64),
    ];
    TinyAdapter::new(modules, 1 + usize::try_from(seed % 5).unwrap(), seed)
}

impl Made {
    /// A base of so many positions.
    pub fn new(context: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        tiny_hf_model(&dir.path().join("base"), &TinyModel::default());
        let made = Self { dir, context };
        let path = made.at("base/config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config["max_position_embeddings"] = context.into();
        std::fs::write(path, config.to_string()).unwrap();
        made
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same with adapters of these seeds in a folder.
    pub fn with_tree(self, nodes: &[(&str, u64)]) -> Self {
        for (name, seed) in nodes {
            adapter(*seed).write(&self.at("tree").join(name)).unwrap();
        }
        self
    }

    /// An empty store of its base, and the base.
    pub fn create_store(&self, headroom: f32) -> (Store, BaseModel) {
        let base = BaseModel::open(&self.at("base")).unwrap();
        let lattice = base_lattice(&base, headroom, |_, _| ()).unwrap();
        let base_hash = base.content_hash().to_owned();
        let info = StoreInfo { base_name: BASE.into(), base_hash, ..StoreInfo::default() };
        (Store::create(&self.at("store"), info, &lattice).unwrap(), base)
    }

    /// The same with a store of such adapters, each under the parent that is named.
    pub fn with_store(self, nodes: &[(&str, &str, u64)]) -> Self {
        let (store, base) = self.create_store(HEADROOM);
        for (name, parent, seed) in nodes {
            let folder = self.at("from").join(name);
            adapter(*seed).write(&folder).unwrap();
            let limits = Limits::default();
            let content = store.compile_adapter(&folder, Some(&base), &limits, false).unwrap();
            let details = Details { parent: Some((*parent).to_owned()), ..Details::default() };
            store.publish(name, content, details).unwrap();
        }
        self
    }

    /// The model at the root, its nodes those of the store if there is one.
    pub fn open(&self) -> Runtime {
        let builder = Runtime::builder().base(self.at("base"));
        if Store::is_store(&self.at("store")) {
            return builder.nodes(Store::open(&self.at("store")).unwrap()).open().unwrap();
        }
        let builder =
            if self.at("tree").exists() { builder.tree(self.at("tree")) } else { builder };
        builder.headroom(HEADROOM).open().unwrap()
    }

    /// Another handle of its store.
    pub fn store(&self) -> Store {
        Store::open(&self.at("store")).unwrap()
    }

    /// A file of keys: name, which is the token, too; the rest of its entry.
    pub fn access(&self, keys: &[(&str, &str)]) -> Access {
        let entry = |(name, rest): &(&str, &str)| {
            let hash = blake3::hash(name.as_bytes()).to_hex();
            format!("[[key]]\nname = \"{name}\"\nblake3 = \"{hash}\"\n{rest}\n")
        };
        std::fs::write(self.at("keys"), keys.iter().map(entry).collect::<String>()).unwrap();
        Access::open().with_keys(&self.at("keys")).unwrap().with_admin(ADMIN)
    }

    /// Serves it.
    pub fn serve(&self, options: ServerOptions) -> Running {
        Running::start(self.open(), options)
    }
}

/// Bounds of an engine with so many pages of the made model's keys and values.
pub fn engine(pages: u64, max_running: usize, max_waiting: usize) -> EngineOptions {
    let scheduler = Options { max_running, max_waiting, ..Options::default() };
    let model = TinyModel::default();
    let page = 32 * model.layers * model.kv_heads * (model.hidden / model.heads) * 2 * 4;
    EngineOptions { kv_bytes: pages * page as u64, scheduler }
}

/// Options for a server on a free port.
pub fn options() -> ServerOptions {
    ServerOptions {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        name: Some(BASE.to_owned()),
        bounds: Bounds { drain_wait: Duration::from_secs(5), ..Bounds::default() },
        engine: engine(1024, 32, 1024),
        ..ServerOptions::default()
    }
}

/// A server that runs.
pub struct Running {
    pub address: SocketAddr,
    /// A line a request.
    pub lines: Arc<Mutex<Vec<LogLine>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub fn start(runtime: Runtime, mut options: ServerOptions) -> Self {
        let (told, address) = mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let lines = Arc::<Mutex<Vec<LogLine>>>::default();
        if options.log.is_none() {
            let lines = lines.clone();
            options.log = Some(Box::new(move |line| lines.lock().unwrap().push(line.clone())));
        }
        let thread = std::thread::spawn(move || {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            let threads = builder.worker_threads(2).enable_all().build().unwrap();
            threads.block_on(async move {
                let server = Server::bind(runtime, options).await.unwrap();
                told.send(server.address().unwrap()).unwrap();
                server.run(async { drop(stopped.await) }).await;
            });
            threads.shutdown_timeout(Duration::from_secs(5));
        });
        let address = address.recv().expect("it listens");
        Self { address, lines, stop: Some(stop), thread: Some(thread) }
    }

    /// Tells it to stop, as a signal does.
    pub fn tell_to_stop(&mut self) {
        drop(self.stop.take());
    }

    /// Waits until it has.
    pub fn wait(&mut self) {
        self.thread.take().into_iter().for_each(|thread| thread.join().unwrap());
    }

    pub fn connect(&self) -> Connection {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Connection { stream, read: Vec::new() }
    }

    pub fn get(&self, path: &str) -> Response {
        self.connect().ask("GET", path, &[], None)
    }

    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.connect().ask("POST", path, &[], Some(body))
    }

    /// With somebody's key.
    pub fn ask_as(&self, key: &str, method: &str, path: &str, body: Option<&Value>) -> Response {
        let bearer = format!("Bearer {key}");
        self.connect().ask(method, path, &[("authorization", &bearer)], body)
    }

    /// What `/v1/status` says to the administrator.
    pub fn status(&self) -> Value {
        self.ask_as(ADMIN, "GET", "/v1/status", None).json()
    }

    /// Waits until nobody is served any more: no text is made, all pages are free.
    pub fn wait_until_idle(&self) -> Value {
        self.wait_for("no text is made", |status| {
            status["requests"]["in_flight"] == 0
                && status["pages"]["free"] == status["pages"]["total"]
                && status["running"] == 0
                && status["waiting"] == 0
        })
    }

    pub fn wait_for(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let status = self.status();
            if is_so(&status) {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "not {what}: {status}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    #[allow(clippy::print_stdout, reason = "a test that failed says what the server said")]
    fn drop(&mut self) {
        self.tell_to_stop();
        if std::thread::panicking() {
            let lines = self.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let failed = lines.iter().filter(|line| line.status >= 500);
            return failed.for_each(|line| println!("{}", line.text()));
        }
        self.wait();
    }
}

/// A connection to a server.
pub struct Connection {
    pub stream: TcpStream,
    /// What has come and is not looked at yet.
    read: Vec<u8>,
}

/// An answer.
#[derive(Debug, Default)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether all of its body came.
    pub is_whole: bool,
}

/// A request as it is sent.
pub fn request(
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&Value>,
) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: test\r\n");
    headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
    let body = body.map(Value::to_string).unwrap_or_default();
    if !body.is_empty() {
        text += &format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
    }
    format!("{text}\r\n{body}").into_bytes()
}

impl Connection {
    pub fn ask(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Response {
        self.send(&request(method, path, headers, body));
        self.response()
    }

    /// Sends bytes; that nobody takes them any more will be seen from the answer.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    pub fn send_no_more(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The next answer, which must come.
    pub fn response(&mut self) -> Response {
        self.next_response().expect("the connection ended without an answer")
    }

    /// The next answer; nothing if the connection ends before it.
    pub fn next_response(&mut self) -> Option<Response> {
        let mut response = self.head()?;
        let header = |name: &str| response.header(name).map(str::to_owned);
        if header("transfer-encoding").is_some_and(|coding| coding == "chunked") {
            loop {
                match self.chunk() {
                    Some(chunk) if chunk.is_empty() => {
                        response.is_whole = true;
                        break;
                    }
                    Some(chunk) => response.body.extend(chunk),
                    None => break,
                }
            }
        } else {
            let length = header("content-length").map_or(0, |length| length.parse().unwrap());
            response.is_whole = self.fill(length);
            let length = length.min(self.read.len());
            response.body = self.read.drain(..length).collect();
        }
        Some(response)
    }

    /// Status and headers of the next answer.
    pub fn head(&mut self) -> Option<Response> {
        let line = self.line()?;
        let status = line.strip_prefix("HTTP/1.").unwrap_or_else(|| panic!("an answer: {line:?}"));
        let status = status[2..5].parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Some(Response { status, headers, ..Response::default() });
            }
            let (name, value) = line.split_once(": ").expect("a header");
            headers.push((name.to_owned(), value.to_owned()));
        }
    }

    /// The next chunk of a body, the last one empty.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let length = usize::from_str_radix(&self.line()?, 16).unwrap();
        if !self.fill(length + 2) {
            return None;
        }
        let chunk = self.read.drain(..length).collect();
        assert_eq!(self.read.drain(..2).collect::<Vec<_>>(), b"\r\n");
        Some(chunk)
    }

    fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.read.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.read.drain(..end + 2).take(end).collect();
                return Some(String::from_utf8(line).unwrap());
            }
            if !self.fill(self.read.len() + 1) {
                return None;
            }
        }
    }

    /// Reads until there are so many bytes; whether they came.
    fn fill(&mut self, count: usize) -> bool {
        let mut bytes = [0; 16384];
        while self.read.len() < count {
            match self.stream.read(&mut bytes) {
                Ok(0) => return false,
                Ok(length) => self.read.extend(&bytes[..length]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return false,
                Err(error) => panic!("no answer: {error}, after {:?}", self.read),
            }
        }
        true
    }

    /// Whether the server has ended it, waited for.
    pub fn is_ended(&mut self) -> bool {
        !self.fill(self.read.len() + 1)
    }
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(found, _)| found.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| &value[..])
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("{}: {}", self.status, self.text()))
    }

    /// The body of an answer of this status.
    pub fn of(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        self.json()
    }

    /// The error of an answer of this status.
    pub fn error(&self, status: u16) -> Value {
        self.of(status)["error"].clone()
    }

    /// The documents of a stream, which ends as streams do.
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.text());
        assert!(self.is_whole, "it broke off");
        let events = events(&self.text());
        let (last, events) = events.split_last().expect("it says something");
        assert_eq!(last, "[DONE]");
        events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }
}

/// What a stream's events say.
pub fn events(text: &str) -> Vec<String> {
    let events = text.split("\n\n").filter(|event| !event.is_empty());
    events.map(|event| event.strip_prefix("data: ").expect("an event").to_owned()).collect()
}

/// The body of a completion of random text that goes on to its length, with the weights at the leaf:
/// the same text whoever else is served.
pub fn completion(model: &str, max_tokens: usize, seed: u64) -> Value {
    json!({"model": model, "prompt": "hello world", "max_tokens": max_tokens, "seed": seed,
        "ignore_eos": true, "merge": "leaf"})
}

/// A body with further fields.
pub fn with(mut body: Value, fields: &Value) -> Value {
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// The two files of an adapter as `multipart/form-data`, with fields of text.
pub fn multipart(adapter: &TinyAdapter, fields: &[(&str, &str)]) -> (String, Vec<u8>) {
    let (config, tensors) = (adapter.config_bytes(), adapter.tensor_bytes());
    let files = [("adapter_config.json", &config[..]), ("adapter_model.safetensors", &tensors[..])];
    let fields = fields.iter().map(|(name, text)| (*name, text.as_bytes()));
    multipart_of(files.into_iter().chain(fields))
}

/// The same of any parts: the content type and the body.
pub fn multipart_of<'a>(parts: impl Iterator<Item = (&'a str, &'a [u8])>) -> (String, Vec<u8>) {
    let boundary = "a-line-that-is-in-no-file";
    let mut body = Vec::new();
    for (name, bytes) in parts {
        let head = "content-disposition: form-data; name=";
        let file = if name.starts_with("adapter_") { "; filename=\"x\"" } else { "" };
        body.extend(format!("--{boundary}\r\n{head}\"{name}\"{file}\r\n\r\n").into_bytes());
        body.extend(bytes);
        body.extend(b"\r\n");
    }
    body.extend(format!("--{boundary}--\r\n").into_bytes());
    (format!("multipart/form-data; boundary={boundary}"), body)
}

/// Uploads an adapter for a node.
pub fn upload(
    connection: &mut Connection,
    path: &str,
    headers: &[(&str, &str)],
    (kind, body): &(String, Vec<u8>),
) -> Response {
    let length = body.len().to_string();
    let own = [("content-type", &kind[..]), ("content-length", &length[..])];
    let all: Vec<_> = own.into_iter().chain(headers.iter().copied()).collect();
    let mut bytes = request("PUT", path, &all, None);
    bytes.extend(body);
    connection.send(&bytes);
    connection.response()
}

/// Files below a folder may not be told of.
pub fn names_no_place(text: &str, dir: &Path) {
    let places = [dir.display().to_string(), "/tmp".to_owned(), "/dev/shm".to_owned()];
    for place in places {
        assert!(!text.contains(&place), "{place} is none of a client's business: {text}");
    }
}
