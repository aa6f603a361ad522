//! What people ask of the engine, and how they get their answers.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::job::{JobId, Merge};
use crate::Result;
use crate::error::EngineDefect;
use crate::lattice::NodeDeltas;
use crate::model::{GenerateOptions, StopReason};
use crate::nodes::NodeVersion;
use crate::runtime::{Generation, Prompt, Script, Step};

/// A text asked for at a node.
#[derive(Clone, Debug)]
pub struct Request {
    /// The node, such as `fr/sysadmin/name-line/alice`; the root is `/`.
    pub node: String,
    /// What it starts from.
    pub prompt: Prompt,
    /// What to generate.
    pub options: GenerateOptions,
    /// Where the weights stand for it; anywhere on its path by default. At a fixed place its logits,
    /// and so its tokens, are the same whoever else is served: bit for bit on the CPU, to rounding on
    /// a GPU, whose kernels differ by the number of rows.
    pub merge: Merge,
    /// How long it may take from now on, waiting included.
    pub deadline: Option<Duration>,
    /// Keeps the beginning of its prompt apart from those of other salts: only requests of one node
    /// version and one salt share what was computed of equal prompts.
    pub salt: Vec<u8>,
}

impl Request {
    /// A text of the default options.
    pub fn new(node: impl Into<String>, prompt: impl Into<Prompt>) -> Self {
        Self {
            node: node.into(),
            prompt: prompt.into(),
            options: GenerateOptions::default(),
            merge: Merge::Automatic,
            deadline: None,
            salt: Vec::new(),
        }
    }

    /// What keeps its pages apart from those of others at the same version. What was computed at
    /// another merge point is the same to rounding alone: not what a fixed one promises.
    pub(super) fn salt(&self) -> Vec<u8> {
        let merge_point = match self.merge {
            Merge::Automatic => 0,
            Merge::Leaf => 1,
            Merge::Parent => 2,
            Merge::Root => 3,
        };
        [&[merge_point], &self.salt[..]].concat()
    }
}

/// What is asked of the driver.
pub(super) enum Command {
    /// A request whose deltas are in memory, as [`Work::deltas`].
    Run(Box<Work>),
    /// Nobody waits for it any more.
    Cancel(JobId),
    /// End everything.
    Stop,
}

/// A request in work.
pub(super) struct Work {
    pub(super) id: JobId,
    pub(super) version: NodeVersion,
    /// Those of the version's path, whatever becomes of the cache until it is admitted; none while
    /// they are to be read, and while it runs.
    pub(super) deltas: Option<WaitingDeltas>,
    pub(super) script: Script,
    pub(super) merge: Merge,
    pub(super) deadline_ms: Option<f64>,
    pub(super) salt: Vec<u8>,
    /// Most new tokens that there is a place for.
    pub(super) max_tokens: usize,
    pub(super) events: Events,
    pub(super) progress: Arc<Progress>,
    /// Its place among those in work.
    pub(super) ticket: Ticket,
}

impl Work {
    /// Sends its last event. Its place is free before: whoever has seen the end may ask again.
    pub(super) fn finish(self, last: Result<Step>) {
        let Self { events, ticket, .. } = self;
        drop(ticket);
        // Whoever does not wait any more needs no end.
        let _ = events.send(last);
    }
}

/// How far a request has come, as everybody may see who holds it.
#[derive(Debug, Default)]
pub struct Progress {
    is_cancelled: AtomicBool,
    is_running: AtomicBool,
    version: OnceLock<NodeVersion>,
}

impl Progress {
    /// The version that computes its answer; none before its deltas are in memory. No step comes
    /// before that, but the last of a request that was cancelled or asks for no token.
    pub fn version(&self) -> Option<&NodeVersion> {
        self.version.get()
    }

    /// Whether it has pages of keys and values; otherwise it waits, or has ended.
    pub fn is_running(&self) -> bool {
        self.is_running.load(Ordering::Acquire)
    }

    pub(super) fn set_running(&self, is_running: bool) {
        self.is_running.store(is_running, Ordering::Release);
    }

    /// Says once which version computes its answer.
    pub(super) fn begin(&self, version: &NodeVersion) {
        self.version.get_or_init(|| version.clone());
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Acquire)
    }

    pub(super) fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Release);
    }
}

/// Whoever waits for a step without blocking a thread.
type Waiting = Arc<Mutex<Option<Waker>>>;

/// Where a request's steps go.
pub(super) struct Events {
    /// There is one until it is dropped.
    steps: Option<Sender<Result<Step>>>,
    waiting: Waiting,
}

impl Events {
    /// With the end where they come out.
    pub(super) fn new() -> (Self, Steps) {
        let (sender, receiver) = mpsc::channel();
        let waiting = Waiting::default();
        (Self { steps: Some(sender), waiting: waiting.clone() }, Steps { receiver, waiting })
    }

    /// Sends a step; whether anybody waits for it.
    pub(super) fn send(&self, step: Result<Step>) -> bool {
        let is_sent = self.steps.as_ref().is_some_and(|steps| steps.send(step).is_ok());
        self.wake();
        is_sent
    }

    fn wake(&self) {
        let waker = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Events {
    /// Whoever waits hears that nothing more comes.
    fn drop(&mut self) {
        self.steps = None;
        self.wake();
    }
}

/// Where a request's steps come out.
pub(super) struct Steps {
    pub(super) receiver: Receiver<Result<Step>>,
    waiting: Waiting,
}

impl Steps {
    /// The next one, if it has come; otherwise `context` is woken when it does. An error: there is
    /// nobody left who could send one.
    fn poll(&self, context: &mut Context<'_>) -> Poll<Result<Result<Step>, ()>> {
        // Noted before it looks: what comes in between wakes.
        let waker = Some(context.waker().clone());
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = waker;
        match self.receiver.try_recv() {
            Ok(step) => Poll::Ready(Ok(step)),
            Err(TryRecvError::Empty) => Poll::Pending,
            Err(TryRecvError::Disconnected) => Poll::Ready(Err(())),
        }
    }
}

/// Bytes of the deltas of requests that wait.
pub(super) struct WaitingBytes {
    limit: usize,
    bytes: Mutex<usize>,
    less: Condvar,
}

impl WaitingBytes {
    /// None yet, of so many that may be.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, bytes: Mutex::new(0), less: Condvar::new() })
    }

    /// Keeps the deltas of a path for a request that waits. Its last node counts alone, since what is
    /// above it is many requests'. `None` where that were too many bytes, unless nobody else waits.
    pub(super) fn try_keep(self: &Arc<Self>, path: Vec<Arc<NodeDeltas>>) -> Option<WaitingDeltas> {
        self.keep_within(self.limit, path)
    }

    /// The same, however many bytes that are.
    pub(super) fn keep(self: &Arc<Self>, path: Vec<Arc<NodeDeltas>>) -> WaitingDeltas {
        self.keep_within(usize::MAX, path).expect("there is no limit")
    }

    fn keep_within(
        self: &Arc<Self>,
        limit: usize,
        path: Vec<Arc<NodeDeltas>>,
    ) -> Option<WaitingDeltas> {
        let bytes = path.last().map_or(0, |node| node.bytes());
        // Looked at and counted under one lock: many threads submit at once.
        let mut held = self.bytes();
        let sum = held.saturating_add(bytes);
        if *held > 0 && sum > limit {
            return None;
        }
        *held = sum;
        drop(held);
        Some(WaitingDeltas { path, bytes, waiting: self.clone() })
    }

    /// Waits until there are fewer, or for `most`.
    pub(super) fn wait(&self, most: Duration) {
        let bytes = self.bytes();
        if *bytes > 0 {
            drop(self.less.wait_timeout(bytes, most));
        }
    }

    fn bytes(&self) -> MutexGuard<'_, usize> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The deltas of a path, from the top down, of a request that waits.
pub(super) struct WaitingDeltas {
    pub(super) path: Vec<Arc<NodeDeltas>>,
    bytes: usize,
    waiting: Arc<WaitingBytes>,
}

impl Drop for WaitingDeltas {
    fn drop(&mut self) {
        *self.waiting.bytes() -= self.bytes;
        self.waiting.less.notify_all();
    }
}

/// A place among the requests in work.
pub(super) struct Ticket(Arc<AtomicUsize>);

impl Ticket {
    /// Takes one of `limit` places.
    pub(super) fn take(in_work: &Arc<AtomicUsize>, limit: usize) -> Result<Self> {
        let more = |count: usize| (count < limit).then_some(count + 1);
        match in_work.fetch_update(Ordering::AcqRel, Ordering::Acquire, more) {
            Ok(_) => Ok(Self(in_work.clone())),
            Err(waiting) => Err(EngineDefect::QueueFull { waiting, limit }.into()),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The answer to a request: its steps as they come. The last one says why it ended. Whoever drops an
/// answer before its end cancels the request.
pub struct Answer {
    pub(super) id: JobId,
    pub(super) node: String,
    pub(super) prompt_tokens: usize,
    pub(super) steps: Steps,
    pub(super) commands: Sender<Command>,
    pub(super) progress: Arc<Progress>,
    pub(super) asked: Instant,
    pub(super) has_ended: bool,
}

impl Answer {
    /// Its number, which no other answer of the engine has.
    pub fn id(&self) -> u64 {
        self.id.0
    }

    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// Ends it: the last step says [`StopReason::Cancelled`], unless it ended by itself before.
    pub fn cancel(&self) {
        self.progress.cancel();
        // Without a driver it has ended.
        let _ = self.commands.send(Command::Cancel(self.id));
    }

    /// How far it has come, to be held beside it.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// The next step without waiting: where it has not come, `context` is woken when it does. `None`
    /// behind the last.
    pub fn poll_step(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Step>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        self.steps.poll(context).map(|step| {
            Some(match step {
                Ok(step) => self.noted(step),
                Err(()) => self.gone(),
            })
        })
    }

    /// The next step if it comes within `wait`; `None` if it does not, or the answer has ended.
    pub fn next_within(&mut self, wait: Duration) -> Option<Result<Step>> {
        if self.has_ended {
            return None;
        }
        match self.steps.receiver.recv_timeout(wait) {
            Ok(step) => Some(self.noted(step)),
            Err(mpsc::RecvTimeoutError::Timeout) => None,
            Err(mpsc::RecvTimeoutError::Disconnected) => Some(self.gone()),
        }
    }

    /// Waits for all of it. The time of the prompt counts from when it was asked for, waiting
    /// included.
    ///
    /// # Errors
    /// What ended it.
    pub fn wait(mut self) -> Result<Generation> {
        let (mut token_ids, mut text, mut prefill_ms) = (Vec::new(), String::new(), None);
        let mut stop = StopReason::Cancelled;
        while let Some(step) = self.next() {
            let step = step?;
            prefill_ms.get_or_insert_with(|| self.asked.elapsed().as_secs_f64() * 1e3);
            token_ids.extend(step.token);
            text += &step.text;
            stop = step.stop.unwrap_or(stop);
        }
        let prefill_ms = prefill_ms.unwrap_or_default();
        Ok(Generation {
            node: self.node.clone(),
            prompt_tokens: self.prompt_tokens,
            token_ids,
            text,
            stop,
            prefill_ms,
            decode_ms: self.asked.elapsed().as_secs_f64() * 1e3 - prefill_ms,
        })
    }

    fn noted(&mut self, step: Result<Step>) -> Result<Step> {
        self.has_ended = step.as_ref().map_or(true, |step| step.stop.is_some());
        step
    }

    /// The driver went without a word: that is a panic of its own.
    fn gone(&mut self) -> Result<Step> {
        self.has_ended = true;
        Err(EngineDefect::Stopped.into())
    }
}

impl Iterator for Answer {
    type Item = Result<Step>;

    /// Waits for the next step; `None` behind the last.
    fn next(&mut self) -> Option<Result<Step>> {
        if self.has_ended {
            return None;
        }
        match self.steps.receiver.recv() {
            Ok(step) => Some(self.noted(step)),
            Err(_) => Some(self.gone()),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.has_ended {
            self.cancel();
        }
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer")
            .field("id", &self.id)
            .field("node", &self.node)
            .field("has_ended", &self.has_ended)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lattice::{CompiledDelta, DeltaKind, Lane, MatrixId};

    fn node(lanes: usize) -> Arc<NodeDeltas> {
        let kind = DeltaKind::Dense(vec![bytemuck::Zeroable::zeroed(); lanes]);
        let delta = CompiledDelta { rows: lanes, cols: 1, row_max: Vec::new(), kind };
        Arc::new(NodeDeltas::new([(MatrixId(0), delta)]))
    }

    #[test]
    fn no_more_deltas_wait_than_may_unless_nobody_else_waits() {
        let size = node(1).bytes();
        assert_eq!(size, size_of::<Lane>());
        let waiting = WaitingBytes::new(2 * size);
        // What is above a leaf does not count.
        let path = |lanes| vec![node(9), node(lanes)];
        let first = waiting.try_keep(path(1)).unwrap();
        let second = waiting.try_keep(path(1)).unwrap();
        assert!(waiting.try_keep(path(1)).is_none());
        drop(first);
        assert!(waiting.try_keep(path(2)).is_none());
        let third = waiting.try_keep(path(1)).unwrap();
        let forced = waiting.keep(path(3));
        drop((second, third));
        assert!(waiting.try_keep(path(1)).is_none());
        drop(forced);
        let large = waiting.try_keep(path(5)).expect("nobody else waits");
        assert!(waiting.try_keep(path(0)).is_none(), "more waits than may");
        waiting.wait(Duration::from_millis(1));
        drop(large);
        // It returns at once.
        waiting.wait(Duration::from_secs(3600));
        assert!(waiting.try_keep(Vec::new()).is_some());
    }
}
