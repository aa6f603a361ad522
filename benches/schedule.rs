//! Where to stand for whom: the scheduler's way beside others that are fixed, over the same traces,
//! queue and pages, on made machines. A line a way: tokens a second, times to the first token and
//! from one to the next, switches. Nothing here measures this machine: equal seeds print equal
//! figures.
//!
//! `cargo bench --bench schedule -- [SEED]` draws the traces from another seed than 1.

#![allow(clippy::print_stdout, reason = "a bench speaks to people")]

use anyhow::Context;
use pleach::engine::simulate::{FixedDepth, Kind, MergedOrNot, Report, Speeds, Trace, run};
use pleach::engine::{Choose, Cover, Options};
use pleach::testing::measures;

/// A way to choose, and what it is called.
type Way = (&'static str, fn() -> Box<dyn Choose + Send>);

const OURS: Way = ("cheapest cover", || Box::new(Cover));
const RIVALS: [Way; 6] = [
    ("always root", || Box::new(FixedDepth(0))),
    ("by language", || Box::new(FixedDepth(1))),
    ("by domain", || Box::new(FixedDepth(2))),
    ("by task", || Box::new(FixedDepth(3))),
    ("by leaf", || Box::new(FixedDepth(4))),
    ("leaf or root", || Box::<MergedOrNot>::default()),
];

const KINDS: [Kind; 8] = [
    Kind::OneLeaf,
    Kind::OneTask,
    Kind::TwoTasks,
    Kind::Strangers,
    Kind::Zipf { cv: 1.0 },
    Kind::Zipf { cv: 8.0 },
    Kind::HeavyAndLight,
    Kind::Fixed,
];

/// Machines, and milliseconds between requests: more than can be served at once, and a third of it.
const MACHINES: [(&str, Speeds, f64); 4] = [
    ("a slow machine, overloaded", Speeds::SLOW, 250.0),
    ("a slow machine", Speeds::SLOW, 750.0),
    ("a fast machine, overloaded", Speeds::FAST, 15.0),
    ("a fast machine", Speeds::FAST, 45.0),
];

fn main() -> anyhow::Result<()> {
    let seed = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let seed = seed.map_or(Ok(1), |seed| seed.parse()).context("the seed is not a number")?;
    let requests = if measures() { 200 } else { 20 };
    for (machine, speeds, interval_ms) in MACHINES {
        println!("\n{machine}: {requests} requests, one every {interval_ms} ms");
        for kind in KINDS {
            let trace = Trace::new(kind, seed, requests, interval_ms);
            let report = |(name, choose): Way| {
                let report = run(&trace, &Options::default(), speeds, choose()).report;
                println!("{name:14} {report}");
                report.tokens_per_second()
            };
            println!("\n{:14} {}", format!("{kind:?}"), Report::HEAD);
            let ours = report(OURS);
            let best = RIVALS.into_iter().map(report).fold(0.0, f64::max);
            println!("{:14} {:.3} of the best other", "", ours / best);
        }
    }
    Ok(())
}
