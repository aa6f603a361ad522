//! Waiting for the locks on the catalogue's file: what takes longer than a second is reported, with
//! who is waited for.
//!
//! **Invariant:** a wait with a limit ends with it.

use std::io;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

use crate::store::folder::FileId;

/// Longer waits are reported.
const REPORTED_AFTER: Duration = Duration::from_secs(1);
/// A wait this short is no more than looking again and again.
const BRIEF: Duration = Duration::from_millis(2);
/// Between two looks, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_micros(20), Duration::from_millis(5));

/// Bytes of the file, first and last.
pub(super) type Range = (Bound<u64>, Bound<u64>);

/// How one waits for a lock on the catalogue.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) path: PathBuf,
    pub(super) file: FileId,
    /// Longest wait; without one it is as long as it takes.
    pub(super) limit: Option<Duration>,
}

impl Waiting {
    /// Takes a lock, waiting for who has it.
    ///
    /// # Errors
    /// Of kind `TimedOut` after the limit, with who has the lock as its text; and what locking
    /// returns.
    pub(super) fn lock(
        &self,
        backend: &FileBackend,
        range: Range,
        shared: bool,
    ) -> Result<(), BackendError> {
        let (start, end) = range;
        let (begin, mut pause, mut reported) = (Instant::now(), PAUSES.0, false);
        loop {
            let done = match shared {
                true => backend.try_lock_shared_range(start, end)?,
                false => backend.try_lock_range(start, end)?,
            };
            let waited = begin.elapsed();
            match self.limit {
                _ if done => return Ok(()),
                Some(limit) if waited >= limit => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, self.holder(range)).into());
                }
                None if waited >= BRIEF => return self.lock_however_long(backend, range, shared),
                _ => {}
            }
            if waited >= REPORTED_AFTER && !std::mem::replace(&mut reported, true) {
                self.report(range);
            }
            std::thread::sleep(
                pause.min(self.limit.map_or(pause, |limit| limit.saturating_sub(waited))),
            );
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// The system wakes who waits for a lock at once, but reports nothing meanwhile: another
    /// thread does.
    fn lock_however_long(
        &self,
        backend: &FileBackend,
        range: Range,
        shared: bool,
    ) -> Result<(), BackendError> {
        let (start, end) = range;
        std::thread::scope(|scope| {
            let (done, waiting) = channel::<()>();
            // Without another thread one waits in silence.
            let _ = std::thread::Builder::new().name("waiting".to_owned()).spawn_scoped(
                scope,
                move || {
                    if waiting.recv_timeout(REPORTED_AFTER.saturating_sub(BRIEF))
                        == Err(RecvTimeoutError::Timeout)
                    {
                        self.report(range);
                    }
                },
            );
            let locked = match shared {
                true => backend.lock_shared_range(start, end),
                false => backend.lock_range(start, end),
            };
            drop(done);
            locked
        })
    }

    fn report(&self, range: Range) {
        tracing::warn!(
            "{}: waiting for {}, which has it locked",
            self.path.display(),
            self.holder(range)
        );
    }

    /// Who has a lock in the range, in words.
    fn holder(&self, range: Range) -> String {
        holder(self.file, range).unwrap_or_else(|| "another program".to_owned())
    }
}

/// The system lists with each open file of a process the locks that were taken through it.
#[cfg(target_os = "linux")]
fn holder(file: FileId, range: Range) -> Option<String> {
    use std::fs::{metadata, read_dir, read_to_string};

    let (from, to) = match range {
        (Bound::Included(from), Bound::Included(to)) => (from, to),
        (Bound::Included(from), Bound::Excluded(end)) => (from, end.saturating_sub(1)),
        _ => (0, u64::MAX),
    };
    // lock: 1: OFDLCK ADVISORY WRITE -1 08:01:1234 FIRST LAST, the last byte a number or EOF.
    let overlaps = |line: &str| {
        let [.., first, last] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            return false;
        };
        let last = last.parse().unwrap_or(u64::MAX);
        line.starts_with("lock:")
            && first.parse().is_ok_and(|first: u64| first <= to)
            && last >= from
    };
    for process in read_dir("/proc").ok()?.flatten() {
        let name = process.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // Those of other users cannot be looked into.
        let Ok(files) = read_dir(process.path().join("fd")) else { continue };
        for open in files.flatten() {
            let is_it = metadata(open.path()).is_ok_and(|found| FileId::of(&found) == file);
            let info = process.path().join("fdinfo").join(open.file_name());
            if is_it && read_to_string(info).is_ok_and(|info| info.lines().any(overlaps)) {
                if number == std::process::id() {
                    return Some("another handle in this process".to_owned());
                }
                let command = read_to_string(process.path().join("comm")).unwrap_or_default();
                let state = read_to_string(process.path().join("stat")).unwrap_or_default();
                let stopped = state
                    .rsplit_once(')')
                    .is_some_and(|(_, rest)| rest.trim_start().starts_with(['T', 't']));
                let stopped = if stopped { ", stopped" } else { "" };
                return Some(format!("process {number} ({}{stopped})", command.trim()));
            }
        }
    }
    None
}

#[cfg(not(target_os = "linux"))]
fn holder(_: FileId, _: Range) -> Option<String> {
    None
}
