//! A store of a million made leaves: making it, opening it, looking leaves up, reading them,
//! switching between them, publishing while others read. A figure a line, its goal beside it; then
//! the same as Markdown for `benches/record/`.
//!
//! `cargo bench --bench store` takes some 18 GB of disk and ten minutes, a smaller store less:
//! - `PLEACH_STORE_LEAVES`: how many leaves, 1,000,000 unless set;
//! - `PLEACH_STORE_PLACE`: a folder on the disk to measure, the one for temporary files unless
//!   set;
//! - `PLEACH_STORE_KEEP`: anything: the store is not removed at the end, and the next run measures
//!   it as it finds it.
//!
//! **Invariant:** every answer is checked: a leaf that is timed is the one that was asked for, and
//! a sample of them has the integers that it was made with.

#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a bench speaks to people")]
#![allow(clippy::cast_possible_truncation, reason = "what is counted here is far below 2^53")]

mod looking;
mod machine;
mod made;
mod publishing;
mod report;
mod switching;

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use pleach::store::Store;
use pleach::testing::measures;

use made::Made;
use report::{Report, commas};

/// Leaves, unless set otherwise.
const LEAVES: u64 = 1_000_000;
/// Fewer do not fill the groups that are measured; as many are made where nothing is.
const FEWEST_LEAVES: u64 = 4_000;
/// Disk a leaf takes with its record, and some to spare.
const BYTES_PER_LEAF: u64 = 18_500;
/// Disk that the rest of a run takes.
const OTHER_BYTES: u64 = 1 << 30;
/// Set in a process of its own that opens the store in this folder and reports its memory.
const OPEN_AND_TELL: &str = "PLEACH_STORE_OPEN_AND_TELL";

/// How often a thing is done that is measured so often; where nothing is measured, a few times.
fn turns(measured: usize) -> usize {
    if measures() { measured } else { measured.div_ceil(20) }
}

fn main() -> anyhow::Result<()> {
    if let Some(folder) = std::env::var_os(OPEN_AND_TELL) {
        let leaves = std::env::args().nth(1).context("how many leaves?")?.parse()?;
        return looking::tell_memory(Path::new(&folder), leaves);
    }
    let leaves = match std::env::var("PLEACH_STORE_LEAVES") {
        Ok(leaves) => {
            leaves.replace('_', "").parse().context("PLEACH_STORE_LEAVES is not a number")?
        }
        Err(_) if measures() => LEAVES,
        Err(_) => FEWEST_LEAVES,
    };
    ensure!(
        leaves >= FEWEST_LEAVES,
        "PLEACH_STORE_LEAVES is below {FEWEST_LEAVES}: too few to measure"
    );
    let place =
        std::env::var_os("PLEACH_STORE_PLACE").map_or_else(std::env::temp_dir, PathBuf::from);
    let keep = std::env::var_os("PLEACH_STORE_KEEP").is_some();
    let folder = place.join(format!("pleach-store-of-{leaves}"));
    let finished = Removed { folder: &folder, keep };
    std::fs::create_dir_all(&folder)?;
    measure(&folder, leaves)?;
    drop(finished);
    Ok(())
}

fn measure(folder: &Path, leaves: u64) -> anyhow::Result<()> {
    let mut report = Report::new(folder, leaves);
    let made = Made::new(folder.join("base"), leaves)?;
    let at = folder.join("store");
    if !Store::is_store(&at) {
        let (needed, free) = (leaves * BYTES_PER_LEAF + OTHER_BYTES, machine::free_bytes(folder)?);
        ensure!(
            free >= needed,
            "a store of {} leaves needs {} MB, {} has {}: free some, name another place in PLEACH_STORE_PLACE, or ask for \
             fewer leaves in PLEACH_STORE_LEAVES",
            commas(leaves),
            commas(needed / 1_000_000),
            folder.display(),
            commas(free / 1_000_000)
        );
        made.fill(&at, &mut report)?;
    }
    let store = Store::open(&at)?;
    let nodes = store.len()?;
    ensure!(
        nodes >= made.nodes(),
        "{} has {nodes} nodes, not {}: remove it",
        at.display(),
        made.nodes()
    );
    made.check(&store, 200)?;
    drop(store);
    looking::measure(&at, &made, &mut report)?;
    switching::measure(&at, &made, &mut report)?;
    publishing::measure(&at, &made, &mut report)?;
    println!("\n{}", report.markdown());
    Ok(())
}

/// Removes the store at the end, whatever the end.
struct Removed<'a> {
    folder: &'a Path,
    keep: bool,
}

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = std::fs::remove_dir_all(self.folder)
        {
            eprintln!("{} could not be removed: {error}", self.folder.display());
        }
    }
}
