//! Reads and compiles the deltas of requests that wait for them, on a thread of its own: those that
//! run go on meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::request::{Command, WaitingBytes, Work};
use crate::Result;
use crate::contain::contained;
use crate::device::cpu::Cpu;
use crate::error::EngineDefect;
use crate::lattice::NodeDeltas;
use crate::nodes::NodeVersion;
use crate::runtime::{Shared, SwitchReport};

/// How long it waits for others to be admitted before it looks whether it is to stop.
const PAUSE: Duration = Duration::from_millis(20);

/// How long one request lets others pass, whose deltas are smaller or there already.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the thread works with.
pub(super) struct Loading {
    pub(super) shared: Arc<Shared>,
    /// It reads no further while too much waits.
    pub(super) waiting: Arc<WaitingBytes>,
    /// Once set, it reads nothing more.
    pub(super) is_stopping: Arc<AtomicBool>,
}

impl Loading {
    /// Brings the deltas of a request into memory, unless it is cancelled, which the driver then says.
    fn load(&self, host: &Cpu, node: &str, work: &mut Work) -> Result<()> {
        if self.is_over(work) {
            return Ok(());
        }
        let loaded = contained(|| load(&self.shared, host, node, &mut work.version));
        let path = loaded.unwrap_or_else(|panic| Err(EngineDefect::Panicked { panic }.into()))?;
        let start = Instant::now();
        while work.deltas.is_none() && !self.is_over(work) {
            work.deltas = if start.elapsed() < PATIENCE {
                self.waiting.try_keep(path.clone())
            } else {
                Some(self.waiting.keep(path.clone()))
            };
            if work.deltas.is_none() {
                self.waiting.wait(PAUSE);
            }
        }
        Ok(())
    }

    /// Whether nobody waits for a request any more.
    fn is_over(&self, work: &Work) -> bool {
        if self.is_stopping.load(Ordering::Acquire) {
            work.progress.cancel();
        }
        work.progress.is_cancelled()
    }
}

/// Starts the thread. It ends when there is nobody left who could send.
pub(super) fn load_all(
    loading: Loading,
    loads: Receiver<(String, Box<Work>)>,
    commands: Sender<Command>,
) -> Result<JoinHandle<()>> {
    // Its own, so that those that run need not wait for its work on their threads.
    let host = Cpu::with_simd(Some(1), loading.shared.host.simd())?;
    let run = move || {
        for (node, mut work) in loads {
            match loading.load(&host, &node, &mut work) {
                // Without a driver nobody waits.
                Ok(()) => drop(commands.send(Command::Run(work))),
                Err(error) => work.finish(Err(error)),
            }
        }
    };
    let thread = Builder::new().name("pleach-loader".to_owned()).spawn(run);
    Ok(thread.map_err(|source| EngineDefect::Thread { source })?)
}

/// The deltas of a version's path. Where what it names is gone by now, as behind a compaction, those
/// of the node's version of now.
fn load(
    shared: &Shared,
    host: &Cpu,
    node: &str,
    version: &mut NodeVersion,
) -> Result<Vec<Arc<NodeDeltas>>> {
    let read = |version: &NodeVersion| -> Result<Vec<_>> {
        let mut report = SwitchReport::default();
        version.path().iter().map(|version| shared.deltas(version, host, &mut report)).collect()
    };
    if let Ok(deltas) = read(version) {
        return Ok(deltas);
    }
    let mut deltas = Vec::new();
    shared.nodes.with(node, &mut |now| {
        shared.nodes.check_stale(&now, shared.stale)?;
        deltas = read(&now)?;
        *version = now;
        Ok(())
    })?;
    Ok(deltas)
}
