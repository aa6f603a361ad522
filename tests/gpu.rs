//! A switch that is exact on the CPU drifts on a GPU whose compiler fuses, reorders or flushes what
//! it likes; and a driver resets in the middle of the day. So everything the CPU promises is asked
//! of the GPU too, bit for bit where bits are promised, on software Vulkan where there is no other:
//! the same fingerprints at every node after any walk, the golden logits, and no answer from
//! weights that nobody vouches for.
#![cfg(feature = "gpu")]

mod common;

use common::golden::Golden;
use common::made;
use pleach::compile::base_lattice;
use pleach::device::gpu::GpuOptions;
use pleach::model::GenerateOptions;
use pleach::runtime::measure::Measure;
use pleach::runtime::{DeviceChoice, Prompt};
use pleach::store::{ImportOptions, Store};
use pleach::testing::{self, smollm2_base};
use pleach::tree::{AdapterTree, NodeId};
use pleach::{Engine, EngineOptions, Error, Request, Runtime};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::ops::ControlFlow;

const SWITCHES: usize = 10_000;
const REAL_SWITCHES: usize = 200;
/// Size of a made delta's entries, and the headroom for a path of them.
const SIZE: f32 = 0.05;
const HEADROOM: f32 = 4.0;

/// Whether there is a GPU of any kind; says so, or fails in CI, where there is none.
fn there_is_a_gpu() -> bool {
    testing::gpu(&GpuOptions::default()).is_some()
}

fn made_runtime(dir: &std::path::Path, device: DeviceChoice) -> (Runtime, AdapterTree) {
    let base = made::base(dir, &made::odd_model());
    let tree = made::tree(&mut StdRng::seed_from_u64(7), &base, 16, SIZE);
    let builder =
        Runtime::builder().base(dir).adapter_tree(tree.clone()).headroom(HEADROOM).device(device);
    (builder.open().unwrap(), tree)
}

fn gpu(options: GpuOptions) -> DeviceChoice {
    DeviceChoice::Gpu(options)
}

#[test]
fn ten_thousand_switches_leave_every_bit_as_a_fresh_load_on_the_cpu_has_it() {
    if !there_is_a_gpu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut runtime, tree) = made_runtime(dir.path(), gpu(GpuOptions::default()));
    let report = runtime.verify(SWITCHES, 1, 3, |_| ()).unwrap();
    println!("{report:?}");
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.compared, report.nodes_visited), (SWITCHES, tree.len()));
    let (cpu, _) = made_runtime(dir.path(), DeviceChoice::Cpu);
    assert_eq!(report.root_fingerprint, cpu.fingerprint().unwrap().to_hex().as_str());
}

#[test]
fn the_smallest_gpu_there_can_be_has_the_same_bits() {
    if !there_is_a_gpu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let options =
        GpuOptions { minimal: true, max_binding_bytes: Some(20 << 10), ..GpuOptions::default() };
    let (mut runtime, _) = made_runtime(dir.path(), gpu(options));
    let report = runtime.verify(300, 1, 5, |_| ()).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

#[test]
fn a_store_gives_the_gpu_the_bits_that_a_tree_in_memory_gives_the_cpu() {
    if !there_is_a_gpu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut cpu, tree) = made_runtime(dir.path(), DeviceChoice::Cpu);
    let lattice = base_lattice(cpu.base(), HEADROOM, |_, _| ()).unwrap();
    let path = dir.path().join("store");
    Store::import(&path, &tree, cpu.base(), &lattice, ImportOptions::default(), |_, _| ()).unwrap();
    let mut here = Runtime::builder()
        .base(dir.path())
        .tree(&path)
        .device(gpu(GpuOptions::default()))
        .open()
        .unwrap();
    for node in tree.nodes() {
        let name = tree.name(node);
        cpu.switch_to(name).unwrap();
        here.switch_to(name).unwrap();
        assert_eq!(here.fingerprint().unwrap(), cpu.fingerprint().unwrap(), "{name}");
    }
    assert!(here.verify(100, 1, 5, |_| ()).unwrap().is_clean());
}

#[test]
fn a_walk_over_the_real_tree_leaves_no_trace_and_little_memory() {
    let Some(base) = smollm2_base().filter(|_| there_is_a_gpu()) else { return };
    let options = GpuOptions { count_peak: true, ..GpuOptions::default() };
    let mut runtime = Runtime::builder()
        .base(base)
        .tree(Golden::load().tree)
        .device(gpu(options))
        .open()
        .unwrap();
    let report = runtime.verify(REAL_SWITCHES, 1, 1, |_| ()).unwrap();
    let weights = runtime.resident_parameters() as f64;
    let peak = runtime.gpu().unwrap().peak_bytes().expect("Vulkan's allocator counts") as f64;
    // Deltas on their way are there twice, and gathered in two buffers of 8 MiB.
    let deltas = 2.0 * runtime.device_cache_stats().bytes as f64 + f64::from(16 << 20);
    println!(
        "at most {:.3} bytes a weight, {:.3} without deltas",
        peak / weights,
        (peak - deltas) / weights
    );
    assert!(
        (peak - deltas) / weights <= 2.1,
        "{peak} bytes, {deltas} of them deltas, for {weights} weights"
    );
    println!("{report:?}");
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.nodes_visited, runtime.held_versions());
}

fn relative_distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = a.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt() / norm
}

#[test]
fn logits_of_the_real_model_are_the_cpus() {
    let Some(base) = smollm2_base().filter(|_| there_is_a_gpu()) else { return };
    let golden = Golden::load();
    let open =
        |device| Runtime::builder().base(&base).tree(&golden.tree).device(device).open().unwrap();
    let (mut here, mut there) = (open(DeviceChoice::Cpu), open(gpu(GpuOptions::default())));
    let mut largest = 0_f64;
    for (name, node) in &golden.nodes {
        let name = if name == "base" { "/" } else { name };
        here.switch_to(name).unwrap();
        there.switch_to(name).unwrap();
        for prompt in &node.prompts {
            let [a, b] = [&here, &there]
                .map(|runtime| runtime.score(&Prompt::Tokens(prompt.ids.clone())).unwrap().logits);
            let off = relative_distance(&a, &b);
            assert!(off <= 1e-3, "{name} {:?}: {off}", prompt.text);
            largest = largest.max(off);
        }
        assert_eq!(there.fingerprint().unwrap(), here.fingerprint().unwrap(), "{name}");
    }
    println!("largest relative difference: {largest:.2e}");
}

/// Deltas that do not stay on the GPU are uploaded again, and are the same.
#[test]
fn a_small_budget_costs_uploads_and_no_bit() {
    if !there_is_a_gpu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let base = made::base(dir.path(), &made::odd_model());
    let tree = made::tree(&mut StdRng::seed_from_u64(7), &base, 16, SIZE);
    let builder =
        || Runtime::builder().base(dir.path()).adapter_tree(tree.clone()).headroom(HEADROOM);
    let mut cpu = builder().open().unwrap();
    let mut small =
        builder().device(gpu(GpuOptions::default())).device_delta_budget_bytes(0).open().unwrap();
    let nodes: Vec<NodeId> = tree.nodes().collect();
    let mut rng = StdRng::seed_from_u64(2);
    let mut uploads = 0;
    for _ in 0..100 {
        let node = nodes[rng.random_range(0..nodes.len())];
        cpu.switch_to(tree.name(node)).unwrap();
        uploads += small.switch_to(tree.name(node)).unwrap().uploaded.len();
        assert_eq!(small.fingerprint().unwrap(), cpu.fingerprint().unwrap());
    }
    assert!(uploads > nodes.len(), "{uploads} uploads");
    assert_eq!(small.device_cache_stats().misses, uploads as u64);

    let mut large = builder().device(gpu(GpuOptions::default())).open().unwrap();
    let leaf = tree.leaves().max_by_key(|&leaf| tree.depth(leaf)).unwrap();
    large.prefetch(tree.name(leaf)).unwrap();
    let report = large.switch_to(tree.name(leaf)).unwrap();
    assert!(report.compiled.is_empty() && report.uploaded.is_empty(), "{report:?}");
    let misses = large.device_cache_stats().misses;
    Measure::new(&mut large).switch(tree.name(leaf), "/", 4).unwrap();
    assert_eq!(large.device_cache_stats().misses, misses, "everything was there");
    let nodes_there = tree.depth(leaf) as u64;
    Measure::new(&mut large).uploading_switch(tree.name(leaf), "/", 4).unwrap().unwrap();
    assert_eq!(
        large.device_cache_stats().misses,
        misses + 2 * nodes_there,
        "two of four switches enter them"
    );
    large.switch_to(tree.name(leaf)).unwrap();
    cpu.switch_to(tree.name(leaf)).unwrap();
    assert_eq!(large.fingerprint().unwrap(), cpu.fingerprint().unwrap());
}

#[test]
fn text_on_the_gpu_is_that_on_the_cpu() {
    if !there_is_a_gpu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut here, tree) = made_runtime(dir.path(), DeviceChoice::Cpu);
    let (mut there, _) = made_runtime(dir.path(), gpu(GpuOptions::default()));
    let prompt = Prompt::Tokens(vec![3, 1, 4, 1, 5, 9, 2, 6]);
    for node in tree.nodes() {
        here.switch_to(tree.name(node)).unwrap();
        there.switch_to(tree.name(node)).unwrap();
        let (a, b) = (here.score(&prompt).unwrap().logits, there.score(&prompt).unwrap().logits);
        let off = relative_distance(&a, &b);
        assert!(off <= 1e-4, "{}: {off}", tree.name(node));
        let options =
            GenerateOptions { max_tokens: 20, ignore_eos: true, ..GenerateOptions::default() };
        let [a, b] = [&here, &there].map(|runtime| {
            runtime.generate(&prompt, &options, |_| ControlFlow::Continue(())).unwrap().token_ids
        });
        assert_eq!(a, b, "{}", tree.name(node));
    }
}

#[test]
fn a_lost_gpu_serves_nobody_until_the_weights_are_loaded_anew() {
    if !there_is_a_gpu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut runtime, tree) = made_runtime(dir.path(), gpu(GpuOptions::default()));
    let root = runtime.fingerprint().unwrap();
    let leaf = tree.leaves().next().unwrap();
    runtime.switch_to(tree.name(leaf)).unwrap();
    let at_leaf = runtime.fingerprint().unwrap();
    let prompt = Prompt::Tokens(vec![1, 2, 3]);
    let scores = runtime.score(&prompt).unwrap();

    runtime.gpu().unwrap().lose();
    let failed = |result: pleach::Result<()>| {
        let Err(error) = result else { panic!("an answer from a lost GPU") };
        assert!(matches!(error, Error::DeviceFailed { .. } | Error::Unusable), "{error}");
        let text = error.to_string();
        assert!(text.contains("restore"), "it says what to do: {text}");
    };
    failed(runtime.score(&prompt).map(drop));
    failed(runtime.switch_to("/").map(drop));
    failed(runtime.fingerprint().map(drop));
    failed(
        runtime
            .generate(
                &prompt,
                &GenerateOptions { max_tokens: 3, ..GenerateOptions::default() },
                |_| ControlFlow::Continue(()),
            )
            .map(drop),
    );
    failed(runtime.prefetch(tree.name(leaf)));

    runtime.restore().unwrap();
    assert_eq!((runtime.current(), runtime.fingerprint().unwrap()), ("/", root));
    runtime.switch_to(tree.name(leaf)).unwrap();
    assert_eq!(runtime.fingerprint().unwrap(), at_leaf);
    assert_eq!(runtime.score(&prompt).unwrap(), scores);
}

/// Whatever fails, wherever: either nothing has changed, or nothing is served until the weights are
/// loaded again.
#[test]
fn a_switch_that_breaks_off_anywhere_leaves_all_or_says_so() {
    if !there_is_a_gpu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (_, tree) = made_runtime(dir.path(), DeviceChoice::Cpu);
    // No delta stays on the GPU, so every switch uploads.
    let builder = Runtime::builder().base(dir.path()).adapter_tree(tree.clone()).headroom(HEADROOM);
    let mut runtime =
        builder.device(gpu(GpuOptions::default())).device_delta_budget_bytes(0).open().unwrap();
    let leaf = tree.leaves().max_by_key(|&leaf| tree.depth(leaf)).unwrap();
    let other = tree.leaves().find(|&other| other != leaf).unwrap();
    let fingerprint = |node| {
        let (mut cpu, _) = made_runtime(dir.path(), DeviceChoice::Cpu);
        cpu.switch_to(tree.name(node)).unwrap();
        cpu.fingerprint().unwrap()
    };
    let (at_leaf, at_other) = (fingerprint(leaf), fingerprint(other));
    let (mut done, mut unchanged, mut broken) = (0, 0, 0);
    for after in 1..=40 {
        runtime.switch_to(tree.name(leaf)).unwrap();
        assert_eq!(runtime.fingerprint().unwrap(), at_leaf);
        runtime.gpu().unwrap().fail_after(after);
        let switched = runtime.switch_to(tree.name(other));
        runtime.gpu().unwrap().fail_after(u64::MAX);
        assert!(
            after > 1 || switched.is_ok(),
            "the upload is tried again when there is more memory: {switched:?}"
        );
        let served = runtime.fingerprint();
        match (switched, served) {
            (Ok(_), served) => {
                assert_eq!(served.unwrap(), at_other, "after {after}");
                done += 1;
            }
            (Err(Error::DeviceMemory { .. }), Ok(served)) => {
                assert_eq!(
                    (served, runtime.current()),
                    (at_leaf, tree.name(leaf)),
                    "after {after}"
                );
                unchanged += 1;
            }
            (Err(_), Err(Error::DeviceFailed { .. } | Error::Unusable)) => {
                let answer = runtime.score(&Prompt::Tokens(vec![1, 2]));
                assert!(
                    answer.is_err(),
                    "after {after}: an answer from weights that nobody vouches for"
                );
                runtime.restore().unwrap();
                broken += 1;
            }
            (switched, served) => panic!("after {after}: {switched:?}, then {served:?}"),
        }
    }
    println!(
        "{done} switches got through, {unchanged} failures changed nothing, {broken} needed a restore"
    );
    assert!(done > 0 && unchanged > 0 && broken > 0);
}

/// The same below many users: each has the tokens that it would have had, or an error of its own, and
/// whoever comes after is served.
#[test]
fn an_engine_whose_step_breaks_off_serves_on() {
    if !there_is_a_gpu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let open = || made_runtime(dir.path(), gpu(GpuOptions::default())).0;
    let (runtime, tree) = made_runtime(dir.path(), gpu(GpuOptions::default()));
    let mut leaves = tree.leaves().map(|leaf| tree.name(leaf).to_owned());
    let nodes = [leaves.next().unwrap(), leaves.next().unwrap(), "/".to_owned()];
    let request = |node: &String| Request {
        options: GenerateOptions { max_tokens: 3, ignore_eos: true, ..GenerateOptions::default() },
        ..Request::new(node.clone(), Prompt::Tokens(vec![3, 1, 4]))
    };
    // As many pages as the requests need.
    let options = EngineOptions { kv_bytes: 64 << 10, ..EngineOptions::default() };
    let serve = |engine: &Engine| {
        let asked = nodes.each_ref().map(|node| engine.submit(request(node)).unwrap());
        asked.map(|answer| answer.wait().map(|generation| generation.token_ids))
    };
    let engine = Engine::new(runtime, &options).unwrap();
    let expected = serve(&engine).map(Result::unwrap);
    let mut runtime = Some(engine.close().unwrap());
    let (mut failures, mut errors) = (0, 0);
    for after in 1.. {
        let mut made = runtime.take().unwrap_or_else(open);
        made.switch_to("/").unwrap();
        made.gpu().unwrap().fail_after(after);
        // Without memory for keys and values there is no engine.
        let Ok(engine) = Engine::new(made, &options) else { continue };
        for (found, expected) in serve(&engine).into_iter().zip(&expected) {
            match found {
                Ok(found) => assert_eq!(found, *expected, "after {after}"),
                Err(error) => {
                    let is_its_own =
                        matches!(error, Error::DeviceMemory { .. } | Error::DeviceFailed { .. })
                            || error.to_string().contains("no memory");
                    assert!(is_its_own, "after {after}: {error}");
                    errors += 1;
                }
            }
        }
        let made = engine.close().unwrap();
        let has_failed = made.gpu().unwrap().fails_in() >= after;
        made.gpu().unwrap().fail_after(u64::MAX);
        let engine = Engine::new(made, &options).unwrap();
        assert_eq!(serve(&engine).map(Result::unwrap), expected, "after {after}");
        runtime = Some(engine.close().unwrap());
        if !has_failed {
            break;
        }
        failures += 1;
    }
    println!("{failures} failures, {errors} requests ended with an error");
    assert!(failures > 10);
}

/// The same in the middle of a generation: an error, and the next one is right.
#[test]
fn a_generation_that_breaks_off_leaves_nothing_behind() {
    if !there_is_a_gpu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut runtime, _) = made_runtime(dir.path(), gpu(GpuOptions::default()));
    let prompt = Prompt::Tokens(vec![3, 1, 4]);
    let options = GenerateOptions { max_tokens: 2, ignore_eos: true, ..GenerateOptions::default() };
    let expected =
        runtime.generate(&prompt, &options, |_| ControlFlow::Continue(())).unwrap().token_ids;
    let before = runtime.gpu().unwrap().allocated_bytes();
    let mut failures = 0;
    for after in 1.. {
        runtime.gpu().unwrap().fail_after(after);
        match runtime.generate(&prompt, &options, |_| ControlFlow::Continue(())) {
            Ok(generated) => {
                assert_eq!(generated.token_ids, expected);
                break;
            }
            Err(Error::DeviceMemory { .. }) => {
                assert_eq!(
                    runtime.gpu().unwrap().allocated_bytes(),
                    before,
                    "after {after}: memory is held"
                );
                failures += 1;
            }
            Err(Error::DeviceFailed { .. }) => {
                runtime.restore().unwrap();
                failures += 1;
            }
            Err(error) => panic!("after {after}: {error}"),
        }
        runtime.gpu().unwrap().fail_after(u64::MAX);
        assert_eq!(
            runtime.generate(&prompt, &options, |_| ControlFlow::Continue(())).unwrap().token_ids,
            expected,
            "after {after}"
        );
    }
    assert!(failures > 10, "{failures} failures");
}

#[test]
fn a_gpu_that_is_not_there_is_refused_with_what_is() {
    for choice in ["gpu:99", "gpu:no such card"] {
        let dir = tempfile::tempdir().unwrap();
        made::base(dir.path(), &made::odd_model());
        let error = Runtime::builder()
            .base(dir.path())
            .device(choice.parse().unwrap())
            .open()
            .map(drop)
            .unwrap_err();
        assert!(matches!(error, Error::NoSuchDevice { .. }), "{error}");
    }
    for wrong in ["", "tpu", "cpu:1", "auto:gpu"] {
        assert!(wrong.parse::<DeviceChoice>().is_err(), "{wrong}");
    }
}
