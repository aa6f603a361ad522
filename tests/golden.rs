//! A model that is merged a little wrongly still talks: with q and k rows permuted, a scaling lost,
//! a level of the path left out, it answers in French all the same. So every node of the tree of
//! real adapters is held against what two independent float implementations computed there: logits,
//! greedy tokens, corners of the merged weights.
//!
//! The yardstick is the shift: how far the node's adapters move the logits of the prompt from the
//! base's. A node may be off by 0.5 % of its own shift, the base by 0.5 % of the smallest shift
//! that any node makes at that prompt.

mod common;

use common::golden::{Golden, GoldenNode, GoldenPrompt};
use pleach::model::GenerateOptions;
use pleach::runtime::{DeviceChoice, Prompt};
use pleach::testing::smollm2_base;
use pleach::{Runtime, WeightName};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Largest distance from golden logits, as a share of the shift.
const SHARE_OF_SHIFT: f64 = 0.005;
/// Best two logits that lie closer than this may change places.
const NEAR_TIE: f64 = 0.15;
const CORNER: usize = 64;

/// Goldens and a runtime on the real base for each kind of device, if base and device are there.
fn open() -> impl Iterator<Item = (Golden, Runtime)> {
    let devices = smollm2_base()
        .into_iter()
        .flat_map(|base| devices().into_iter().map(move |d| (base.clone(), d)));
    devices.map(|(base, device)| {
        let golden = Golden::load();
        let runtime =
            Runtime::builder().base(base).tree(&golden.tree).device(device).open().unwrap();
        (golden, runtime)
    })
}

fn devices() -> Vec<DeviceChoice> {
    #[cfg(feature = "gpu")]
    if pleach::testing::gpu(&Default::default()).is_some() {
        return vec![DeviceChoice::Cpu, DeviceChoice::Gpu(Default::default())];
    }
    vec![DeviceChoice::Cpu]
}

/// Switches to every golden node, leaves first, so that the walk goes down, across and up, and then
/// to the root.
fn walk(
    golden: &Golden,
    runtime: &mut Runtime,
    mut visit: impl FnMut(&Runtime, &str, &GoldenNode),
) {
    for (name, node) in golden.nodes.iter().rev() {
        runtime.switch_to(if name == "base" { "/" } else { name }).unwrap();
        visit(runtime, name, node);
    }
}

fn tokens(prompt: &GoldenPrompt) -> Prompt {
    Prompt::Tokens(prompt.ids.clone())
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt()
}

fn best(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap()
}

#[test]
fn prompts_become_the_golden_tokens() {
    for (golden, runtime) in open().take(1) {
        for prompt in golden.nodes.values().flat_map(|node| &node.prompts) {
            assert_eq!(
                runtime.encode(&prompt.text.as_str().into()).unwrap(),
                prompt.ids,
                "{:?}",
                prompt.text
            );
        }
    }
}

/// How far every node moves the logits of each of its prompts from the base's; of the base the
/// smallest shift that any node makes.
fn shifts(golden: &Golden, runtime: &Runtime) -> BTreeMap<(String, usize), f64> {
    let base_prompts = &golden.nodes["base"].prompts;
    // The base's answer to a prompt; the goldens lack some, and then this base gives it, which is
    // itself tested below.
    let base_logits =
        |prompt: &GoldenPrompt| match base_prompts.iter().position(|known| known.ids == prompt.ids)
        {
            Some(index) => golden.logits("base", index),
            None => runtime.score(&tokens(prompt)).unwrap().logits,
        };
    let mut shifts = BTreeMap::new();
    for (name, node) in golden.adapter_nodes() {
        for (index, prompt) in node.prompts.iter().enumerate() {
            let shift = distance(&golden.logits(name, index), &base_logits(prompt));
            shifts.insert((name.clone(), index), shift);
            let smallest = shifts.entry(("base".to_owned(), index)).or_insert(f64::INFINITY);
            if base_prompts[index].ids == prompt.ids {
                *smallest = smallest.min(shift);
            }
        }
    }
    shifts
}

/// Compares what `score` finds for every prompt of a node; returns the largest share of a shift.
fn check_logits(
    golden: &Golden,
    shifts: &BTreeMap<(String, usize), f64>,
    (name, node): (&str, &GoldenNode),
    mut score: impl FnMut(&Prompt) -> Vec<f32>,
) -> f64 {
    let mut largest = 0_f64;
    for (index, prompt) in node.prompts.iter().enumerate() {
        let (expected, found) = (golden.logits(name, index), score(&tokens(prompt)));
        let share = distance(&found, &expected) / shifts[&(name.to_owned(), index)];
        assert!(share <= SHARE_OF_SHIFT, "{name} {:?}: off by {share} of the shift", prompt.text);
        if prompt.greedy_top2_margins[0] > NEAR_TIE {
            assert_eq!(best(&found), best(&expected), "{name} {:?}", prompt.text);
        }
        largest = largest.max(share);
    }
    largest
}

#[test]
fn logits_are_the_golden_ones_at_every_node() {
    for (golden, mut runtime) in open() {
        let shifts = shifts(&golden, &runtime);
        println!("on {}", runtime.device());
        walk(&golden, &mut runtime, |runtime, name, node| {
            let score = |prompt: &Prompt| runtime.score(prompt).unwrap().logits;
            let share = check_logits(&golden, &shifts, (name, node), score);
            println!("{name:<28} {share:.6} of a shift");
        });
    }
}

/// The weights at every ancestor of every node, the root and the node itself among them: what is
/// below is applied in factored form.
#[test]
fn unmerged_logits_are_the_golden_ones_at_every_merge_point_of_every_path() {
    for (golden, mut runtime) in open() {
        let shifts = shifts(&golden, &runtime);
        println!("on {}", runtime.device());
        for (name, node) in golden.adapter_nodes() {
            let ancestors = name.match_indices('/').map(|(at, _)| &name[..at]);
            for merged in ["/"].into_iter().chain(ancestors).chain([name.as_str()]) {
                runtime.switch_to(merged).unwrap();
                let score = |prompt: &Prompt| runtime.score_below(prompt, name).unwrap().logits;
                let share = check_logits(&golden, &shifts, (name, node), score);
                println!("{name:<28} {share:.6} of a shift, the weights at {merged}");
                assert_eq!(runtime.current(), merged);
            }
        }
    }
}

#[test]
fn greedy_continuations_are_golden_up_to_the_first_near_tie() {
    for (golden, mut runtime) in open() {
        walk(&golden, &mut runtime, |runtime, name, node| {
            for prompt in &node.prompts {
                let length = prompt.greedy_ids.len();
                // The goldens do not stop at the end of a text.
                let options = GenerateOptions {
                    max_tokens: length,
                    ignore_eos: true,
                    ..GenerateOptions::default()
                };
                let found = runtime
                    .generate(&Prompt::Tokens(prompt.ids.clone()), &options, |_| {
                        ControlFlow::Continue(())
                    })
                    .unwrap()
                    .token_ids;
                let sure = prompt
                    .greedy_top2_margins
                    .iter()
                    .position(|margin| *margin <= NEAR_TIE)
                    .unwrap_or(length);
                let equal =
                    found.iter().zip(&prompt.greedy_ids).take_while(|(a, b)| a == b).count();
                println!(
                    "{name:<28} {:?}: {equal} of {length} equal, {sure} before the first near-tie",
                    prompt.text
                );
                assert!(
                    equal >= sure,
                    "{name} {:?}: {found:?}, golden {:?}",
                    prompt.text,
                    prompt.greedy_ids
                );
            }
        });
    }
}

#[test]
fn corners_of_merged_weights_lie_within_their_rounding() {
    for (golden, mut runtime) in open() {
        let mut largest = 0_f64;
        walk(&golden, &mut runtime, |runtime, name, node| {
            for tensor in node.tensors.keys() {
                let (live, expected) = (
                    runtime.matrix(&WeightName::new(tensor)).unwrap(),
                    golden.corner(name, tensor),
                );
                // Half a step for the base and for every delta; factors are rounded far finer, so a
                // tenth more is ample.
                #[allow(clippy::cast_precision_loss, reason = "a short path")]
                let allowed = 0.55 * (1 + node.path.len()) as f64;
                for (at, expected) in expected.iter().enumerate() {
                    let (i, j) = (at / CORNER, at % CORNER);
                    let step = f64::from(live.steps()[i]);
                    let off = (f64::from(live.row(i)[j]) * step - expected).abs() / step;
                    assert!(
                        off <= allowed,
                        "{name} {tensor} [{i}, {j}]: {off} steps off, {allowed} allowed"
                    );
                    largest = largest.max(off);
                }
            }
        });
        println!("largest: {largest:.3} steps");
    }
}
