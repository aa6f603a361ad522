//! The library in ten lines: load a base once, walk the leaves of its tree, write a text at each.
//!
//! `cargo run --release --example switch [-- BASE TREE]` prints what each switch touched and cost,
//! the text at the leaf, and at the end the fingerprint of the base.

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::ops::ControlFlow::Continue;
use std::path::PathBuf;

use pleach::Runtime;
use pleach::base::fetched_smollm2;
use pleach::model::GenerateOptions;

fn main() -> pleach::Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let base = arguments.next().or_else(fetched_smollm2).unwrap_or_default();
    let folder = arguments.next().unwrap_or("trees/smollm2".into());

    let mut runtime = Runtime::builder().base(base).tree(folder).open()?;
    let tree = runtime.tree().expect("it is no store");
    let leaves: Vec<String> = tree.leaves().map(|leaf| tree.name(leaf).to_owned()).collect();
    let options = GenerateOptions { max_tokens: 24, ..GenerateOptions::default() };
    for leaf in leaves {
        let report = runtime.switch_to(&leaf)?;
        println!("{leaf}: {} weights in {:.2} ms", report.touched_weights, report.pass_ms);
        let prompt = "Commande : mkdir\nNOM :".into();
        println!("  {:?}", runtime.generate(&prompt, &options, |_| Continue(()))?.text);
    }
    runtime.switch_to("/")?;
    println!("fingerprint of the base: {}", runtime.fingerprint()?);
    Ok(())
}
