//! An adapter needs no files: its factors can be made here, hung into a tree and switched to.
//!
//! `cargo run --release --example adapter_from_memory [-- BASE]` makes an adapter of rank 1 for one
//! matrix, and prints what share of its change the lattice keeps, the likeliest next tokens with
//! and without it, and the fingerprint of the base before and after.

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::path::PathBuf;

use pleach::adapter::{AdapterDeltas, FloatDelta};
use pleach::base::{BaseModel, fetched_smollm2};
use pleach::tree::{AdapterTree, NodeSource};
use pleach::{Runtime, WeightName};

fn main() -> pleach::Result<()> {
    let base = std::env::args_os().nth(1).map(PathBuf::from).or_else(fetched_smollm2);
    let base = BaseModel::open(&base.unwrap_or_default())?;

    // dW (out, in) = scaling · lora_b (out, rank) · lora_a (rank, in)
    let name = WeightName::new("model.layers.0.mlp.down_proj.weight");
    let (rows, cols) = (base.weight(&name)?.rows(), base.weight(&name)?.cols());
    let waves = |count: usize, pace: f32| (0..count).map(|k| (k as f32 * pace).sin()).collect();
    let (lora_a, lora_b) = (waves(cols, 0.7), waves(rows, 0.3));
    let delta = FloatDelta::LowRank { rank: 1, lora_a, lora_b, scaling: 0.1 };
    let adapter = NodeSource::Memory(AdapterDeltas::from([(name, delta)]).into());

    let tree = AdapterTree::builder().node("waves", "/", adapter).build()?;
    let mut runtime = Runtime::builder().base_model(base).adapter_tree(tree).open()?;
    let before = runtime.fingerprint()?;
    for node in ["/", "waves", "/"] {
        let report = runtime.switch_to(node)?;
        let scores = runtime.score(&"The capital of France is".into())?;
        let likely = runtime.likeliest(&scores, 3)?;
        let words: Vec<&str> = likely.iter().map(|token| token.text.as_str()).collect();
        println!("{node}: {} weights changed, next: {words:?}", report.touched_weights);
        for (node, kept) in &report.kept {
            println!("  of the change of {node} the lattice keeps {:.2} %", 100.0 * kept);
        }
    }
    println!("fingerprint before {before}\n       and after {}", runtime.fingerprint()?);
    assert_eq!(runtime.fingerprint()?, before);
    Ok(())
}
