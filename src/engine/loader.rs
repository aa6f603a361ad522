//! Reads and compiles the deltas of requests that wait for them, on a thread of its own: those that
//! run go on meanwhile.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};
use std::thread::{Builder, JoinHandle};

use super::request::{Command, Work};
use crate::contain::contained;
use crate::device::cpu::Cpu;
use crate::nodes::NodeVersion;
use crate::runtime::{Shared, SwitchReport};
use crate::{Error, Result};

/// Starts the thread. It ends when there is nobody left who could send.
pub(super) fn load_all(
    shared: Arc<Shared>,
    loads: Receiver<(String, Box<Work>)>,
    commands: Sender<Command>,
) -> Result<JoinHandle<()>> {
    // Its own, so that those that run need not wait for its work on their threads.
    let host = Cpu::with_simd(Some(1), shared.host.simd())?;
    let thread = Builder::new().name("pleach-loader".to_owned());
    let run = move || {
        for (node, mut work) in loads {
            if work.is_cancelled.load(Ordering::Acquire) {
                // The driver says so.
                let _ = commands.send(Command::Run(work));
                continue;
            }
            let loaded = contained(|| load(&shared, &host, &node, &mut work.version));
            let loaded = loaded.unwrap_or_else(|panic| Err(Error::StepPanicked { panic }));
            match loaded {
                // Without a driver nobody waits.
                Ok(()) => drop(commands.send(Command::Run(work))),
                Err(error) => drop(work.events.send(Err(error))),
            }
        }
    };
    thread.spawn(run).map_err(|source| Error::Thread { source })
}

/// Brings the deltas of a version into memory. Where what it names is gone by now, as behind a
/// compaction, that of the node's version of now.
fn load(shared: &Shared, host: &Cpu, node: &str, version: &mut NodeVersion) -> Result<()> {
    let read = |version: &NodeVersion| {
        let mut report = SwitchReport::default();
        version
            .path()
            .iter()
            .try_for_each(|version| shared.deltas(version, host, &mut report).map(drop))
    };
    if read(version).is_ok() {
        return Ok(());
    }
    shared.nodes.with(node, &mut |now| {
        read(&now)?;
        *version = now;
        Ok(())
    })
}
