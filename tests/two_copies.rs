//! One answer was being written when the next user's request moved the weights, and all that had
//! been computed for it was thrown away; a second copy of the weights compiled every adapter a
//! second time. A sequence belongs to a node version and goes on when the weights are back; copies
//! share everything but the weights.

use std::ops::ControlFlow;
use std::path::Path;

use pleach::error::TreeDefect;
use pleach::model::{GenerateOptions, Sampling, StopReason};
use pleach::runtime::{DeviceChoice, Prompt, Sequence, Step};
use pleach::testing::adapter::{TinyAdapter, TinyModule};
use pleach::testing::{TinyModel, tiny_hf_model};
use pleach::{Error, Runtime};
use tempfile::TempDir;

/// A base and a tree of fr, fr/alice and fr/bob.
fn made() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    tiny_hf_model(&dir.path().join("base"), &TinyModel::default());
    for (seed, name) in [(1, "fr"), (2, "fr/alice"), (3, "fr/bob")] {
        write(dir.path(), name, seed);
    }
    dir
}

fn write(dir: &Path, name: &str, seed: u64) {
    let modules = vec![
        TinyModule::linear("model.layers.1.mlp.up_proj", 96, 64),
        TinyModule::linear("model.layers.0.self_attn.q_proj", 64, 64),
    ];
    TinyAdapter::new(modules, 3, seed).write(&dir.join("tree").join(name)).unwrap();
}

fn open(dir: &TempDir) -> Runtime {
    Runtime::builder()
        .base(dir.path().join("base"))
        .tree(dir.path().join("tree"))
        .headroom(4.0)
        .open()
        .unwrap()
}

fn options(max_tokens: usize) -> GenerateOptions {
    let sampling = Sampling { temperature: 1.0, seed: 5, ..Sampling::default() };
    GenerateOptions { max_tokens, sampling, ignore_eos: true, ..GenerateOptions::default() }
}

fn step(runtime: &Runtime, sequence: &mut Sequence) -> Step {
    runtime.step(sequence).unwrap()
}

/// Another copy on a GPU, on the CPU where there is none; where CI is set there has to be one.
#[allow(clippy::print_stdout, reason = "a test says what it could not do")]
fn other_copy(runtime: &Runtime) -> Runtime {
    let on_gpu = "gpu".parse().and_then(|gpu| runtime.replica(gpu));
    match on_gpu {
        Err(Error::NoGpuSupport) => runtime.replica(DeviceChoice::Cpu).unwrap(),
        Err(Error::NoSuchDevice { .. }) if std::env::var_os("CI").is_none() => {
            println!("there is no GPU here: both copies are on the CPU");
            runtime.replica(DeviceChoice::Cpu).unwrap()
        }
        copy => copy.unwrap(),
    }
}

#[test]
fn a_sequence_goes_on_where_it_was_when_the_weights_are_back() {
    let dir = made();
    let (mut runtime, prompt) = (open(&dir), Prompt::from("hello world"));
    runtime.switch_to("fr/alice").unwrap();
    let whole = runtime.generate(&prompt, &options(12), |_| ControlFlow::Continue(())).unwrap();
    let mut alice = runtime.sequence(&prompt, &options(12)).unwrap();
    let mut text = String::new();
    for _ in 0..5 {
        text += &step(&runtime, &mut alice).text;
    }
    runtime.switch_to("fr/bob").unwrap();
    let mut bob = runtime.sequence(&prompt, &options(12)).unwrap();
    for _ in 0..7 {
        step(&runtime, &mut bob);
    }
    let error = runtime.step(&mut alice).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("the sequence was begun at fr/alice, the weights stand at fr/bob;"),
        "{error}"
    );
    assert!(matches!(error, Error::SequenceElsewhere { .. }));
    // By name, and by the version that the sequence holds.
    runtime.switch_to("fr/alice").unwrap();
    text += &step(&runtime, &mut alice).text;
    runtime.switch_to("/").unwrap();
    runtime.switch_to_version(&alice.version().clone()).unwrap();
    let last = loop {
        let step = step(&runtime, &mut alice);
        text += &step.text;
        if step.stop.is_some() {
            break step;
        }
    };
    assert_eq!((alice.token_ids(), &text), (&whole.token_ids[..], &whole.text));
    assert_eq!((last.stop, alice.stop()), (Some(StopReason::MaxTokens), Some(whole.stop)));
    // The last token is run by nobody.
    assert_eq!(alice.run_tokens(), alice.prompt_tokens() + 11);
    assert_eq!(
        step(&runtime, &mut alice),
        Step {
            token: None,
            text: String::new(),
            logprobs: None,
            stop: Some(StopReason::MaxTokens)
        }
    );
}

#[test]
fn a_sequence_whose_keys_and_values_are_lost_runs_them_again() {
    let dir = made();
    let (mut runtime, prompt) = (open(&dir), Prompt::from("hello world"));
    runtime.switch_to("fr/alice").unwrap();
    let whole = runtime.generate(&prompt, &options(9), |_| ControlFlow::Continue(())).unwrap();
    let mut sequence = runtime.sequence(&prompt, &options(9)).unwrap();
    for _ in 0..4 {
        step(&runtime, &mut sequence);
    }
    runtime.restore().unwrap();
    assert!(matches!(runtime.step(&mut sequence), Err(Error::SequenceElsewhere { .. })));
    runtime.switch_to("fr/alice").unwrap();
    while step(&runtime, &mut sequence).stop.is_none() {}
    assert_eq!(sequence.token_ids(), whole.token_ids);
    let prompt = sequence.prompt_tokens();
    assert_eq!(sequence.run_tokens(), prompt + 8 + prompt + 3, "the prompt and three tokens twice");
}

#[test]
fn whoever_takes_the_text_may_end_it() {
    let dir = made();
    let runtime = open(&dir);
    let mut given = String::new();
    let generation = runtime.generate(&Prompt::from("hello"), &options(50), |piece| {
        given += piece;
        if given.len() > 8 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let generation = generation.unwrap();
    assert_eq!((generation.stop, &generation.text), (StopReason::Cancelled, &given));
    assert!(generation.token_ids.len() < 50);
    let mut sequence = runtime.sequence(&Prompt::from("hello"), &options(50)).unwrap();
    step(&runtime, &mut sequence);
    sequence.cancel();
    assert_eq!(step(&runtime, &mut sequence).stop, Some(StopReason::Cancelled));
    assert_eq!(sequence.run_tokens(), sequence.prompt_tokens());
}

#[test]
fn a_second_copy_shares_what_is_compiled_and_moves_on_its_own() {
    let dir = made();
    let mut one = open(&dir);
    let mut other = other_copy(&one);
    let mut fingerprints = Vec::new();
    for (here, there) in [("fr/alice", "fr/bob"), ("fr/bob", "/"), ("fr", "fr/alice"), ("/", "fr")]
    {
        let [reached, by_other] = [(&mut one, here), (&mut other, there)].map(|(runtime, node)| {
            runtime.switch_to(node).unwrap();
            (node, runtime.fingerprint().unwrap())
        });
        assert_eq!((one.current(), other.current()), (here, there));
        fingerprints.extend([reached, by_other]);
    }
    for (node, fingerprint) in &fingerprints {
        let mut fresh = open(&dir);
        fresh.switch_to(node).unwrap();
        assert_eq!(fresh.fingerprint().unwrap(), *fingerprint, "{node}");
    }
    let stats = one.cache_stats();
    assert_eq!(
        (stats.misses, stats.nodes, other.cache_stats()),
        (3, 3, stats),
        "each node is compiled once"
    );
    assert!(
        one.verify(20, 1, 1, |_| ()).unwrap().is_clean()
            && other.verify(20, 1, 1, |_| ()).unwrap().is_clean()
    );
    // A version is the same for both; a sequence is not: its keys and values lie on one device.
    one.switch_to("fr/alice").unwrap();
    other.switch_to("fr/alice").unwrap();
    assert_eq!(one.current_version(), other.current_version());
    let mut sequence = one.sequence(&Prompt::from("hello"), &options(4)).unwrap();
    step(&one, &mut sequence);
    while step(&other, &mut sequence).stop.is_none() {}
    assert_eq!(
        sequence.run_tokens(),
        2 * sequence.prompt_tokens() + 3,
        "the other copy ran the prompt again"
    );
    drop(one);
    other.switch_to("fr/bob").unwrap();
    // What is read from a folder is one content for both.
    write(dir.path(), "fr", 9);
    let mut third = other.replica(DeviceChoice::Cpu).unwrap();
    third.switch_to("fr").unwrap();
    let small = Runtime::builder()
        .base(dir.path().join("base"))
        .tree(dir.path().join("tree"))
        .headroom(4.0);
    let mut changed = small.delta_budget_bytes(0).open().unwrap();
    changed.switch_to("fr").unwrap();
    assert_ne!(third.fingerprint().unwrap(), changed.fingerprint().unwrap());
    changed.switch_to("/").unwrap();
    write(dir.path(), "fr", 10);
    let error = changed.replica(DeviceChoice::Cpu).unwrap().switch_to("fr").unwrap_err();
    assert!(matches!(error, Error::Tree(defect) if matches!(*defect, TreeDefect::Changed { .. })));
}
