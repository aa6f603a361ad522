//! A node's bits depend on the node alone: a walk over all nodes and the same walk backwards reach
//! each with one fingerprint, and end at the base.
//!
//! `cargo run --release --example walk_and_verify [-- BASE TREE]` prints the fingerprint of every
//! node, whether the second visit found the same, and what a random walk found that compares each
//! arrival with a fresh load of the node.

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::path::PathBuf;

use pleach::Runtime;
use pleach::base::fetched_smollm2;

fn main() -> pleach::Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let base = arguments.next().or_else(fetched_smollm2).unwrap_or_default();
    let folder = arguments.next().unwrap_or("trees/smollm2".into());

    let mut runtime = Runtime::builder().base(base).tree(folder).open()?;
    let tree = runtime.tree().expect("it is no store");
    let names: Vec<String> = tree.nodes().map(|node| tree.name(node).to_owned()).collect();

    let mut visits = Vec::new();
    for name in &names {
        runtime.switch_to(name)?;
        visits.push((name, runtime.fingerprint()?));
    }
    for (name, first) in visits.iter().rev() {
        runtime.switch_to(name)?;
        let again = runtime.fingerprint()?;
        let verdict = if again == *first { "the same again" } else { "ANOTHER" };
        println!("{}  {name}: {verdict}", &first.to_hex()[..16]);
        assert_eq!(again, *first, "{name}");
    }

    let report = runtime.verify(100, 10, 1, |_| ())?;
    println!(
        "{} random switches, {} arrivals compared with a fresh load: {} nodes differ, and {} bits \
         at /",
        report.switches,
        report.compared,
        report.mismatched_nodes.len(),
        report.differing_bits
    );
    assert!(report.is_clean());
    Ok(())
}
