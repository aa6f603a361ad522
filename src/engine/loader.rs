//! Reads and compiles the deltas of requests that wait for them, on a thread of its own: those that
//! run go on meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::thread::{Builder, JoinHandle};

use super::request::{Command, Work};
use crate::Result;
use crate::contain::contained;
use crate::device::cpu::Cpu;
use crate::error::EngineDefect;
use crate::lattice::NodeDeltas;
use crate::nodes::NodeVersion;
use crate::runtime::{Shared, SwitchReport};

/// Starts the thread. It ends when there is nobody left who could send; once `is_stopping`, it reads
/// nothing more.
pub(super) fn load_all(
    shared: Arc<Shared>,
    loads: Receiver<(String, Box<Work>)>,
    commands: Sender<Command>,
    is_stopping: Arc<AtomicBool>,
) -> Result<JoinHandle<()>> {
    // Its own, so that those that run need not wait for its work on their threads.
    let host = Cpu::with_simd(Some(1), shared.host.simd())?;
    let run = move || {
        for (node, mut work) in loads {
            if is_stopping.load(Ordering::Acquire) {
                work.is_cancelled.store(true, Ordering::Release);
            }
            // Of what is cancelled the driver says so.
            if !work.is_cancelled.load(Ordering::Acquire) {
                let loaded = contained(|| load(&shared, &host, &node, &mut work.version));
                match loaded.unwrap_or_else(|panic| Err(EngineDefect::Panicked { panic }.into())) {
                    Ok(deltas) => work.deltas = deltas,
                    Err(error) => {
                        work.finish(Err(error));
                        continue;
                    }
                }
            }
            // Without a driver nobody waits.
            let _ = commands.send(Command::Run(work));
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
