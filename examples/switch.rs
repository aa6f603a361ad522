//! The library in ten lines: load a base once, walk its tree, generate at two users' nodes.
//!
//! `cargo run --release --example switch -- BASE.gguf trees/smollm2`

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::ops::ControlFlow;

use pleach::Runtime;
use pleach::model::GenerateOptions;

fn main() -> pleach::Result<()> {
    let mut args = std::env::args().skip(1);
    let (base, tree) = (args.next().unwrap_or_default(), args.next().unwrap_or_default());
    let mut runtime = Runtime::builder().base(base).tree(tree).open()?;
    let tree = runtime.tree().expect("it is no store");
    let leaves: Vec<String> = tree.leaves().map(|leaf| tree.name(leaf).to_owned()).collect();
    for leaf in leaves {
        let report = runtime.switch_to(&leaf)?;
        println!("{leaf}: {} weights in {:.2} ms", report.touched_weights, report.pass_ms);
        let options = GenerateOptions { max_tokens: 24, ..GenerateOptions::default() };
        println!(
            "  {:?}",
            runtime
                .generate(&"Commande : mkdir\nNOM :".into(), &options, |_| ControlFlow::Continue(
                    ()
                ))?
                .text
        );
    }
    runtime.switch_to("/")?;
    println!("fingerprint of the base: {}", runtime.fingerprint()?);
    Ok(())
}
