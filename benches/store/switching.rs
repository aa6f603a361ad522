//! Switching between random leaves of a store: from disk, and under a budget that holds one leaf in
//! a hundred.

use std::path::Path;

use anyhow::ensure;
use pleach::lattice::Sign;
use pleach::runtime::CacheStats;
use pleach::store::Store;
use pleach::{Runtime, WeightName};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::looking::bytes_of;
use crate::machine::{drop_folder_from_memory, timed};
use crate::made::{Made, TOUCHED, stored};
use crate::report::{Goal, Report};
use crate::turns;

/// Switches to leaves that nobody has read.
const FROM_DISK: usize = 300;
/// Switches counted, after those that fill the cache.
const SWITCHES: usize = 10_000;
/// One leaf in so many fits the budget.
const SHARE: u64 = 100;

pub(crate) fn measure(folder: &Path, made: &Made, report: &mut Report) -> anyhow::Result<()> {
    first_switches(folder, made, report)?;
    // Bytes of a leaf as it lies in memory.
    let mut runtime = open(folder, made, usize::MAX)?;
    runtime.switch_to(&Made::name(0))?;
    let CacheStats { bytes, nodes, .. } = runtime.cache_stats();
    let budget = bytes / nodes * usize::try_from(made.leaves / SHARE)?;
    report.row(
        "memory for deltas: holds one leaf in 100",
        budget as f64 / f64::from(1 << 20),
        "MiB",
        Goal::None,
    );
    let mut rng = StdRng::seed_from_u64(7);
    let zipf = Zipf::new(made.leaves);
    random_switches(folder, made, report, budget, "uniform traffic", || {
        rng.random_range(0..made.leaves)
    })?;
    let mut rng = StdRng::seed_from_u64(8);
    random_switches(folder, made, report, budget, "Zipf(1.0) traffic", || zipf.leaf(&mut rng))
}

pub(crate) fn open(folder: &Path, made: &Made, budget: usize) -> anyhow::Result<Runtime> {
    Ok(Runtime::builder().base(&made.base).tree(folder).delta_budget_bytes(budget).open()?)
}

/// Leaves whose bytes lie on the disk, then in the system's memory; neither in the runtime's.
fn first_switches(folder: &Path, made: &Made, report: &mut Report) -> anyhow::Result<()> {
    let segments = folder.join("segments");
    let store = Store::open(folder)?;
    for (figure, cold) in [("from disk", true), ("from the system's memory", false)] {
        if cold {
            drop_folder_from_memory(&segments)?;
        }
        let mut runtime = open(folder, made, usize::MAX)?;
        // Languages and domains are at hand: what is timed is the leaf.
        (0..Made::domains())
            .try_for_each(|domain| runtime.switch_to(&Made::domain(domain)).map(|_| ()))?;
        // The same leaves twice: the second turn finds them where the first left them.
        let mut rng = StdRng::seed_from_u64(6);
        let (mut alone, mut times, mut passes) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..FROM_DISK {
            // In turn, so that what else the machine does is the same to both.
            let other = stored(&store, &Made::name(made.random_leaf(&mut rng)))?;
            let (bytes, us) = timed(|| bytes_of(folder, &other));
            ensure!(bytes?.len() as u64 == other.length);
            alone.push(us);
            let leaf = made.random_leaf(&mut rng);
            let (switched, us) = timed(|| runtime.switch_to(&Made::name(leaf)));
            let switched = switched?;
            ensure!(switched.compiled == [Made::name(leaf)] || switched.compiled.is_empty());
            times.push(us);
            passes.push(switched.pass_ms * 1e3);
            check(&runtime, made, leaf)?;
        }
        let floor =
            report.percentiles(
                &format!("the bytes of a leaf {figure}, in turn"),
                alone,
                Goal::None,
            ) + report.percentiles(&format!("the pass of a switch {figure}"), passes, Goal::None);
        let found = report.percentiles(&format!("switch to a leaf {figure}"), times, Goal::None);
        let goal = if cold { Goal::AtMost(2.0) } else { Goal::None };
        report.row(
            &format!("switch to a leaf {figure}, over bytes and pass"),
            found / floor,
            "×",
            goal,
        );
    }
    Ok(())
}

/// Whether the weights are the base's and what the leaf and those above it were made with.
pub(crate) fn check(runtime: &Runtime, made: &Made, leaf: u64) -> anyhow::Result<()> {
    let path = made.path(leaf).map(|number| made.compiled(number));
    for weight in TOUCHED.map(WeightName::new) {
        let (found, base) = (runtime.matrix(&weight)?, &made.matrices[&weight]);
        for row in 0..found.rows() {
            let mut sums: Vec<i64> = base.row(row).iter().map(|&n| i64::from(n)).collect();
            path.iter().for_each(|node| node[&weight].add_row(row, Sign::Add, &mut sums));
            let right =
                found.row(row).iter().zip(&sums).all(|(&found, &sum)| i64::from(found) == sum);
            ensure!(right, "row {row} of {weight} is wrong at {}", Made::name(leaf));
        }
    }
    Ok(())
}

fn random_switches(
    folder: &Path,
    made: &Made,
    report: &mut Report,
    budget: usize,
    traffic: &str,
    mut leaf: impl FnMut() -> u64,
) -> anyhow::Result<()> {
    let mut runtime = open(folder, made, budget)?;
    while runtime.cache_stats().evictions == 0 {
        runtime.switch_to(&Made::name(leaf()))?;
    }
    let before = runtime.cache_stats();
    let (mut hits, mut misses) = (Vec::new(), Vec::new());
    let switches = turns(SWITCHES);
    for turn in 1..=switches {
        let leaf = leaf();
        let (switched, us) = timed(|| runtime.switch_to(&Made::name(leaf)));
        let switched = switched?;
        if switched.compiled.is_empty() { &mut hits } else { &mut misses }.push(us);
        if turn % 100 == 0 {
            check(&runtime, made, leaf)?;
        }
    }
    let after = runtime.cache_stats();
    // The nodes of the path that is on the weights are beside the budget.
    ensure!(after.bytes <= budget + 3 * budget / usize::try_from(made.leaves / SHARE)?);
    report.row(
        &format!("{traffic}: leaves found in memory"),
        100.0 * hits.len() as f64 / switches as f64,
        "%",
        Goal::None,
    );
    for (what, count) in [
        ("nodes found in memory", after.hits - before.hits),
        ("nodes read", after.misses - before.misses),
        ("nodes dropped", after.evictions - before.evictions),
        ("MB read", (after.made_bytes - before.made_bytes) / 1_000_000),
    ] {
        report.row(&format!("{traffic}: {what}"), count as f64, "", Goal::None);
    }
    for (which, times) in [("found", hits), ("read", misses)] {
        if !times.is_empty() {
            report.percentiles(&format!("{traffic}: switch to a leaf {which}"), times, Goal::None);
        }
    }
    Ok(())
}

/// Leaves so that the `k`th most wanted one is wanted `1/k` as often as the first.
struct Zipf {
    /// The sum of `1/k` up to each rank.
    cumulative: Vec<f64>,
}

impl Zipf {
    fn new(leaves: u64) -> Self {
        let sums = (1..=leaves).scan(0.0, |sum, rank| {
            *sum += 1.0 / rank as f64;
            Some(*sum)
        });
        Self { cumulative: sums.collect() }
    }

    fn leaf(&self, rng: &mut StdRng) -> u64 {
        let wanted = rng.random_range(0.0..self.cumulative[self.cumulative.len() - 1]);
        let rank = self.cumulative.partition_point(|&sum| sum <= wanted) as u64;
        // A prime: what is much wanted lies all over the store.
        rank * 7_368_787 % self.cumulative.len() as u64
    }
}
