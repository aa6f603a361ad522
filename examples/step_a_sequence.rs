//! Two users' texts in turn on one copy of the weights: a sequence belongs to a node version, keeps
//! its keys and values while the weights are elsewhere, and goes on when they are back.
//!
//! `cargo run --release --example step_a_sequence [-- BASE TREE]` prints which leaf wrote which
//! tokens, each whole text, and how many tokens were run through the model: no token twice.

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::ops::ControlFlow::Continue;
use std::path::PathBuf;

use pleach::Runtime;
use pleach::base::fetched_smollm2;
use pleach::model::GenerateOptions;
use pleach::runtime::Prompt;

fn main() -> pleach::Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let base = arguments.next().or_else(fetched_smollm2).unwrap_or_default();
    let folder = arguments.next().unwrap_or("trees/smollm2".into());

    let mut runtime = Runtime::builder().base(base).tree(folder).open()?;
    let tree = runtime.tree().expect("it is no store");
    let leaves: Vec<String> = tree.leaves().map(|leaf| tree.name(leaf).to_owned()).collect();
    let prompt = Prompt::from("Commande : mkdir\nNOM :");
    let options = GenerateOptions { max_tokens: 24, ..GenerateOptions::default() };

    let mut texts = Vec::new();
    for leaf in &leaves {
        runtime.switch_to(leaf)?;
        texts.push((runtime.sequence(&prompt, &options)?, String::new()));
    }
    while texts.iter().any(|(sequence, _)| sequence.stop().is_none()) {
        for (sequence, text) in texts.iter_mut().filter(|(sequence, _)| sequence.stop().is_none()) {
            runtime.switch_to_version(&sequence.version().clone())?;
            let mut piece = String::new();
            for _ in 0..8 {
                piece += &runtime.step(sequence)?.text;
            }
            println!("{}: {piece:?}", sequence.version().name());
            *text += &piece;
        }
    }
    for (sequence, text) in &texts {
        runtime.switch_to_version(sequence.version())?;
        let whole = runtime.generate(&prompt, &options, |_| Continue(()))?;
        assert_eq!((sequence.token_ids(), text), (&whole.token_ids[..], &whole.text));
        let (run, at) = (sequence.run_tokens(), sequence.version().name());
        println!("{at}: {run} tokens run, as without a pause: {text:?}");
    }
    Ok(())
}
