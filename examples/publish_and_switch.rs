//! A store that changes while it is served: a runtime takes each change whole at its next switch,
//! and subtracts what it had added.
//!
//! `cargo run --release --example publish_and_switch [-- BASE TREE]` imports the tree into a store
//! in a temporary folder, publishes a new leaf there, replaces it, and prints after each change
//! what the next switch to it did and what the model there writes.

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::ops::ControlFlow::Continue;
use std::path::PathBuf;

use pleach::Runtime;
use pleach::adapter::Limits;
use pleach::base::{BaseModel, fetched_smollm2};
use pleach::compile::base_lattice;
use pleach::lattice::DEFAULT_HEADROOM;
use pleach::model::GenerateOptions;
use pleach::store::{Details, ImportOptions, Store};
use pleach::tree::{AdapterTree, NodeSource};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let base = BaseModel::open(&arguments.next().or_else(fetched_smollm2).unwrap_or_default())?;
    let tree = AdapterTree::open(&arguments.next().unwrap_or("trees/smollm2".into()))?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("store");

    let lattice = base_lattice(&base, DEFAULT_HEADROOM, |_, _| ())?;
    let made = Store::import(&path, &tree, &base, &lattice, ImportOptions::default(), |_, _| ())?;
    println!("a store of {} nodes, {} bytes", made.nodes, made.bytes);
    let store = Store::open(&path)?;
    let mut runtime = Runtime::builder().base_model(base).nodes(store.clone()).open()?;

    // The new leaf gets the adapters of the leaves that are there, one after the other.
    let leaves: Vec<_> = tree.leaves().collect();
    let parent = tree.parent(leaves[0]).expect("a leaf hangs under a node");
    let name = format!("{}/carol", tree.name(parent));
    for (k, leaf) in leaves.iter().filter(|&&leaf| tree.parent(leaf) == Some(parent)).enumerate() {
        let Some(NodeSource::Folder(adapter)) = tree.source(*leaf) else { continue };
        let content = store.compile_adapter(adapter, None, &Limits::default(), false)?;
        let generation = match k {
            0 => store.publish(&name, content, Details::default())?,
            _ => store.replace(&name, content, Details::default(), None)?,
        };
        let report = runtime.switch_to(&name)?;
        let options = GenerateOptions { max_tokens: 24, ..GenerateOptions::default() };
        let text =
            runtime.generate(&"Commande : mkdir\nNOM :".into(), &options, |_| Continue(()))?;
        println!("generation {generation}: − {:?} + {:?}", report.subtracted, report.added);
        println!("  {:?}", text.text);
    }
    Ok(())
}
