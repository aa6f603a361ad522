//! What the machine says of itself, through the tools that Linux has: benches link no C library.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};

fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("{command:?} did not start"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Bytes free on the disk that `folder` is on.
pub(crate) fn free_bytes(folder: &Path) -> anyhow::Result<u64> {
    let found = output(Command::new("df").args(["-P", "-k"]).arg(folder))?;
    let blocks = found.lines().nth(1).and_then(|line| line.split_whitespace().nth(3));
    Ok(blocks.context("df reports no free space")?.parse::<u64>()? * 1024)
}

/// Date, processor, file system and load.
pub(crate) fn describe(folder: &Path) -> String {
    let found = |command: &mut Command| output(command).unwrap_or_default().trim().to_owned();
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let processor =
        processors.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    format!(
        "{}, {} × {}, {}, load {}",
        found(Command::new("date").arg("+%Y-%m-%d")),
        std::thread::available_parallelism().map_or(0, usize::from),
        processor.trim_start_matches(['\t', ' ', ':']),
        found(Command::new("findmnt").args(["-n", "-o", "FSTYPE,SOURCE", "-T"]).arg(folder)),
        read("/proc/loadavg").split_whitespace().take(1).collect::<String>(),
    )
}

/// A line of this process's `/proc/self/status` in bytes.
pub(crate) fn memory(field: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()).context("no such line")?;
    Ok(kilobytes.parse::<u64>()? * 1024)
}

/// Lets the system forget what it holds of a file in memory.
pub(crate) fn drop_from_memory(path: &Path) -> anyhow::Result<()> {
    std::fs::File::open(path)?.sync_all()?;
    let from = format!("if={}", path.display());
    output(Command::new("dd").args([from.as_str(), "iflag=nocache", "count=0", "status=none"]))
        .map(|_| ())
}

/// The same for every file in a folder.
pub(crate) fn drop_folder_from_memory(folder: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        drop_from_memory(&entry?.path())?;
    }
    Ok(())
}

/// What `work` returns, and its time in microseconds.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let done = work();
    (done, start.elapsed().as_secs_f64() * 1e6)
}
