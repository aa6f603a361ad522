//! The engine as its users hold it: it takes requests from any thread and hands them to the driver.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use super::driver::Driver;
use super::job::{JobId, Options};
use super::loader::{Loading, load_all};
use super::request::{Answer, Command, Events, Progress, Request, Ticket, WaitingBytes, Work};
use super::status::Status;
use crate::Result;
use crate::base::BaseModel;
use crate::device::PAGE;
use crate::error::EngineDefect;
use crate::model::tokenizer::Tokenizer;
use crate::nodes::{CacheStats, NodeVersion};
use crate::runtime::{Prompt, Runtime, Script, Shared};
use crate::store::Store;
use crate::tree::AdapterTree;

/// How to serve.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Bytes of keys and values of all sequences together, allocated at once.
    pub kv_bytes: u64,
    /// Bounds of the scheduler; [`Options::pages`] and [`Options::page_positions`] follow from
    /// `kv_bytes`.
    pub scheduler: Options,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { kv_bytes: 1 << 30, scheduler: Options::default() }
    }
}

/// Serves many users at once on one copy of the weights. It may be shared by threads.
pub struct Engine {
    shared: Arc<Shared>,
    commands: Sender<Command>,
    to_load: Sender<(String, Box<Work>)>,
    waiting: Arc<WaitingBytes>,
    /// Whether nothing more is to be read.
    is_stopping: Arc<AtomicBool>,
    in_work: Arc<AtomicUsize>,
    limit: usize,
    next_id: AtomicU64,
    start: Instant,
    status: Arc<Mutex<Status>>,
    capacity: usize,
    driver: Option<JoinHandle<Runtime>>,
    loader: Option<JoinHandle<()>>,
}

impl Engine {
    /// Begins to serve with the weights of `runtime`, wherever they stand.
    ///
    /// # Errors
    /// [`EngineDefect::Option`] for bounds within which nothing could run; where there is no memory
    /// for the keys and values, or no thread to be had.
    pub fn new(runtime: Runtime, options: &EngineOptions) -> Result<Self> {
        let shared = runtime.shared.clone();
        let start = Instant::now();
        let (commands, received) = mpsc::channel();
        // Beside the cache as many again for those that wait.
        let waiting = WaitingBytes::new(shared.compiled().budget_bytes());
        let driver = Driver::new(runtime, options, start, received, waiting.clone())?;
        let status = driver.status();
        let pages = status.lock().unwrap_or_else(PoisonError::into_inner).pages.1;
        let (to_load, loads) = mpsc::channel();
        let is_stopping = Arc::new(AtomicBool::new(false));
        let loading = Loading {
            shared: shared.clone(),
            waiting: waiting.clone(),
            is_stopping: is_stopping.clone(),
        };
        let loader = load_all(loading, loads, commands.clone())?;
        let thread = Builder::new().name("pleach-engine".to_owned());
        let driver = thread.spawn(move || driver.run());
        let driver = driver.map_err(|source| EngineDefect::Thread { source })?;
        let limit = options.scheduler.max_running.saturating_add(options.scheduler.max_waiting);
        Ok(Self {
            shared,
            commands,
            to_load,
            waiting,
            is_stopping,
            in_work: Arc::default(),
            limit,
            next_id: AtomicU64::new(0),
            start,
            status,
            capacity: pages.saturating_mul(PAGE),
            driver: Some(driver),
            loader: Some(loader),
        })
    }

    /// Takes a request: its node's version is the one of now, whatever becomes of the node while it
    /// waits or runs.
    ///
    /// # Errors
    /// [`EngineDefect::QueueFull`]; an unknown node; a prompt that is empty or too long, a parameter out of
    /// its range. Whatever else fails comes with the answer.
    pub fn submit(&self, request: Request) -> Result<Answer> {
        let version = self.version(&request.node)?;
        self.submit_at(version, request)
    }

    /// The same at a version that the request's node has, or had. Only where a compaction has dropped
    /// that version's bytes it is the one of then: [`Progress::version`] says which it was.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn submit_at(&self, version: NodeVersion, request: Request) -> Result<Answer> {
        let asked = Instant::now();
        let ticket = Ticket::take(&self.in_work, self.limit)?;
        let shared = &self.shared;
        shared.nodes.check_stale(&version, shared.stale)?;
        let ids = shared.encode(&request.prompt)?;
        let context = shared.base.config().max_position_embeddings;
        let script = Script::new(shared, &ids, &request.options, context)?;
        let (events, steps) = Events::new();
        let progress = Arc::<Progress>::default();
        let id = JobId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let node = version.name().to_owned();
        // Where something is to be read, or too much waits already, that is the loader's work.
        let deltas = shared.loaded(&version).and_then(|path| self.waiting.try_keep(path));
        let is_ready = deltas.is_some();
        let work = Box::new(Work {
            id,
            version,
            deltas,
            script,
            merge: request.merge,
            deadline_ms: request
                .deadline
                .map(|within| asked.duration_since(self.start).saturating_add(within))
                .map(|deadline| deadline.as_secs_f64() * 1e3),
            salt: request.salt(),
            max_tokens: request.options.max_tokens.min(context + 1 - ids.len()),
            events,
            progress: progress.clone(),
            ticket,
        });
        let sent = if is_ready {
            self.commands.send(Command::Run(work)).is_ok()
        } else {
            self.to_load.send((request.node, work)).is_ok()
        };
        if !sent {
            return Err(EngineDefect::Stopped.into());
        }
        let (commands, prompt_tokens) = (self.commands.clone(), ids.len());
        let has_ended = false;
        Ok(Answer { id, node, prompt_tokens, steps, commands, progress, asked, has_ended })
    }

    /// The base.
    pub fn base(&self) -> &BaseModel {
        &self.shared.base
    }

    /// The tree, where the nodes are those of one.
    pub fn tree(&self) -> Option<&AdapterTree> {
        self.shared.nodes.tree()
    }

    /// The store, where the nodes are those of one.
    pub fn store(&self) -> Option<&Store> {
        self.shared.nodes.store()
    }

    /// As [`Runtime::tokenizer`].
    ///
    /// # Errors
    /// As there.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.shared.tokenizer()
    }

    /// As [`Runtime::encode`].
    ///
    /// # Errors
    /// As there.
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        self.shared.encode(prompt)
    }

    /// As [`Runtime::version`].
    ///
    /// # Errors
    /// As there.
    pub fn version(&self, node: &str) -> Result<NodeVersion> {
        self.shared.nodes.resolve(node)
    }

    /// As [`Runtime::children`].
    ///
    /// # Errors
    /// As there.
    pub fn children(&self, node: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>> {
        self.shared.nodes.children(node, after, limit)
    }

    /// Whether the deltas of a version, without those above it, are in memory.
    pub fn is_loaded(&self, version: &NodeVersion) -> bool {
        self.shared.compiled().contains(version)
    }

    /// As [`Runtime::cache_stats`], and the budget, in bytes.
    pub fn cache_stats(&self) -> (CacheStats, usize) {
        let compiled = self.shared.compiled();
        (compiled.stats(), compiled.budget_bytes())
    }

    /// Positions that all sequences together have pages of keys and values for: none comes to hold
    /// more.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Whether it has broken off: nothing is served any more.
    pub fn has_stopped(&self) -> bool {
        self.driver.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// What it does now.
    pub fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends every request as cancelled and returns the runtime, its weights where they stand.
    ///
    /// # Errors
    /// [`EngineDefect::Stopped`] if it broke off before.
    pub fn close(mut self) -> Result<Runtime> {
        self.stop().ok_or(EngineDefect::Stopped.into())
    }

    fn stop(&mut self) -> Option<Runtime> {
        // The loader ends with its channel, and first: what it has still in hand the driver ends.
        self.is_stopping.store(true, Ordering::Release);
        self.to_load = mpsc::channel().0;
        drop(self.loader.take()?.join());
        // Without a driver there is nothing to stop.
        let _ = self.commands.send(Command::Stop);
        self.driver.take()?.join().ok()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("status", &self.status()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{GenerateOptions, StopReason};
    use crate::testing::{TinyModel, tiny_hf_model};

    /// [`Answer`] hands out nothing behind the first end, so this looks at what was sent.
    #[test]
    fn every_answer_is_sent_one_end_and_nothing_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        tiny_hf_model(dir.path(), &TinyModel::default());
        let runtime = Runtime::builder().base(dir.path()).open().unwrap();
        let options = EngineOptions { kv_bytes: 1 << 20, ..EngineOptions::default() };
        let engine = Engine::new(runtime, &options).unwrap();
        let ask = |max_tokens: usize| {
            let options =
                GenerateOptions { max_tokens, ignore_eos: true, ..GenerateOptions::default() };
            let prompt = Prompt::Tokens(vec![3, 5, 7]);
            engine.submit(Request { options, ..Request::new("/", prompt) }).unwrap()
        };
        let answers = [0, 1, 2, 40, 400, 400].map(ask);
        answers[4].cancel();
        // Twice, and perhaps behind its end.
        answers[2].cancel();
        answers[2].cancel();
        let last: Vec<_> = answers[3].steps.receiver.iter().collect();
        engine.close().unwrap();
        let sent = |answer: &Answer| answer.steps.receiver.iter().collect::<Vec<_>>();
        let all = [sent(&answers[0]), sent(&answers[1]), sent(&answers[2]), last];
        let all = all.into_iter().chain([sent(&answers[4]), sent(&answers[5])]);
        for (steps, expected) in all.zip([0, 1, 2, 40, 400, 400]) {
            let steps: Vec<_> = steps.into_iter().map(Result::unwrap).collect();
            let ends: Vec<_> = steps.iter().map(|step| step.stop).collect();
            assert!(ends[..ends.len() - 1].iter().all(Option::is_none), "{ends:?}");
            let tokens = steps.iter().filter(|step| step.token.is_some()).count();
            match ends.last().unwrap().unwrap() {
                StopReason::MaxTokens => assert_eq!(tokens, expected),
                stop => assert!(stop == StopReason::Cancelled && tokens < expected, "{stop:?}"),
            }
        }
    }
}
