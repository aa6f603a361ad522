//! The whole model on the GPU, against its textbook form and against the CPU.

#![allow(clippy::cast_possible_truncation, reason = "test code")]

use crate::arch::ModelConfig;
use crate::device::cpu::Cpu;
use crate::device::gpu::GpuOptions;
use crate::device::{Choice, Compute};
use crate::model::testing::{TinyModel, cases, tiny_config};
use crate::model::{Batch, KvPool, NewTokens, Transformer, Want};
use crate::testing::gpu;

fn tokens(count: usize, seed: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * 17 + seed * 29 + i * i % 7) % 50) as u32).collect()
}

/// Logits of every token of two ragged sequences, by prefill and then token by token.
fn logits<D: Compute>(
    device: &D,
    model: &TinyModel,
    inputs: [&[u32]; 2],
    ahead: [usize; 2],
) -> [Vec<Vec<f32>>; 2] {
    let weights = model.weights(device);
    let transformer = Transformer::bind(device, &model.config, &weights).unwrap();
    let mut pool = KvPool::for_tokens(device, &model.config, 2 * 200).unwrap();
    let tables = [(); 2].map(|()| pool.pages_mut().open([7; 32]));
    let mut found = [Vec::new(), Vec::new()];
    let mut fed = [0, 0];
    let mut next = ahead;
    while fed != next {
        let picked: Vec<usize> = [0, 1].into_iter().filter(|&i| next[i] > fed[i]).collect();
        let sequence = |&i: &usize| NewTokens {
            table: tables[i],
            owner: [7; 32],
            tokens: &inputs[i][fed[i]..next[i]],
            want: Want::All,
        };
        let sequences: Vec<NewTokens<'_>> = picked.iter().map(sequence).collect();
        let batch = Batch::merged(&sequences);
        let logits = transformer.forward(device, &weights, &mut pool, &batch).unwrap();
        for (at, &i) in picked.iter().enumerate() {
            found[i].extend(logits.sequence(at).map(<[f32]>::to_vec));
        }
        fed = next;
        next = [0, 1].map(|i| inputs[i].len().min(fed[i] + 1));
    }
    found
}

#[test]
fn logits_equal_the_textbook_and_the_cpu_for_every_block() {
    let base = ModelConfig { max_position_embeddings: 200, ..tiny_config() };
    let cases = cases(base);
    // A device of the smallest limits whose matrices must be split, and one as it is.
    for options in [
        GpuOptions { minimal: true, max_binding_bytes: Some(1024), ..GpuOptions::default() },
        GpuOptions::default(),
    ] {
        let (Some(gpu), cpu) = (gpu(&options), Cpu::new(Some(1)).unwrap()) else { return };
        for (name, config, biased) in &cases {
            let model = TinyModel::random(config.clone(), biased, 3);
            let inputs = [tokens(150, 1), tokens(23, 2)];
            let inputs = [&inputs[0][..], &inputs[1][..]];
            let found = logits(&gpu, &model, inputs, [140, 20]);
            let on_cpu = logits(&cpu, &model, inputs, [140, 20]);
            for (i, input) in inputs.into_iter().enumerate() {
                let expected = model.reference(input);
                let size = expected.iter().flatten().fold(0f64, |size, x| size.max(x.abs()));
                assert_eq!([found[i].len(), on_cpu[i].len()], [input.len(); 2]);
                for (position, expected) in expected.iter().enumerate() {
                    for (token, expected) in expected.iter().enumerate() {
                        let [found, on_cpu] =
                            [&found, &on_cpu].map(|logits| f64::from(logits[i][position][token]));
                        let error = (found - expected).abs().max((found - on_cpu).abs()) / size;
                        assert!(
                            error < 2e-5,
                            "{name} {i} position {position}: {found}, not {expected} or {on_cpu}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn tokens_generated_on_the_gpu_are_the_cpus() {
    let Some(gpu) = gpu(&GpuOptions::default()) else { return };
    let model = TinyModel::random(tiny_config(), &[], 1);
    fn run<D: Compute>(device: &D, model: &TinyModel) -> Vec<Vec<u32>> {
        let weights = model.weights(device);
        let transformer = Transformer::bind(device, &model.config, &weights).unwrap();
        let mut pool = KvPool::for_tokens(device, &model.config, 2 * 100).unwrap();
        let owner = [7; 32];
        let tables = [(); 2].map(|()| pool.pages_mut().open(owner));
        let mut texts = vec![tokens(9, 1), tokens(4, 2)];
        // A prefill that wants no logits.
        let (table, want) = (tables[0], Want::Nothing);
        let ahead = NewTokens { table, owner, tokens: &texts[0][..5], want };
        let ahead = [ahead];
        let batch = Batch::merged(&ahead);
        assert_eq!(
            transformer.forward(device, &weights, &mut pool, &batch).unwrap().rows().len(),
            0
        );
        let mut fed = [5, 0];
        for turn in 0..20 {
            let sequence = |i: usize| NewTokens {
                table: tables[i],
                owner,
                tokens: &texts[i][fed[i]..],
                want: Want::Last,
            };
            let sequences = [sequence(0), sequence(1)];
            let batch = Batch::merged(&sequences);
            let greedy = Choice::GREEDY;
            let sampled = Choice {
                temperature: 1.0,
                top_k: Some(20),
                top_p: Some(0.9),
                min_p: None,
                random: f64::from(turn) / 20.3,
            };
            let next = transformer
                .next_tokens(device, &weights, &mut pool, &batch, &[greedy, sampled])
                .unwrap();
            for (i, token) in next.into_iter().enumerate() {
                fed[i] = texts[i].len();
                texts[i].push(token);
            }
        }
        texts
    }
    assert_eq!(run(&gpu, &model), run(&Cpu::new(Some(1)).unwrap(), &model));
}

/// Sequences at several nodes of a tree in one batch, nothing of it merged, every matrix touched.
#[test]
fn unmerged_deltas_of_every_matrix_give_the_logits_of_the_merged_weights() {
    let base = ModelConfig { max_position_embeddings: 200, ..tiny_config() };
    let untied = ModelConfig { tie_word_embeddings: false, ..base.clone() };
    for (options, config) in [
        (GpuOptions::default(), base),
        (GpuOptions::default(), untied.clone()),
        (
            GpuOptions { minimal: true, max_binding_bytes: Some(2048), ..GpuOptions::default() },
            untied,
        ),
    ] {
        let Some(gpu) = gpu(&options) else { return };
        let cpu = Cpu::new(Some(1)).unwrap();
        let model = TinyModel::random(config, &["q_proj"], 3);
        let nodes = unmerged::nodes(&model);
        let inputs = [tokens(17, 1), tokens(5, 2), tokens(11, 3)];
        let [found, on_cpu] = [
            unmerged::logits(&gpu, &model, &nodes, &inputs),
            unmerged::logits(&cpu, &model, &nodes, &inputs),
        ];
        for (i, input) in inputs.iter().enumerate() {
            let merged = unmerged::merged(&model, &nodes, i);
            let [expected, _] = logits(&cpu, &merged, [input, &[1]], [input.len(), 1]);
            let size = expected.iter().flatten().fold(0f32, |size, x| size.max(x.abs()));
            assert_eq!([found[i].len(), on_cpu[i].len()], [input.len(); 2]);
            let positions = found[i].iter().zip(&on_cpu[i]).zip(&expected);
            for (position, ((found, on_cpu), expected)) in positions.enumerate() {
                for ((found, on_cpu), expected) in found.iter().zip(on_cpu).zip(expected) {
                    // Devices differ by rounding; merged weights by half a step of some 26 000 for
                    // each of a path's chunks and weights.
                    assert!(
                        (found - on_cpu).abs() <= 2e-5 * size
                            && (found - expected).abs() <= 1e-3 * size,
                        "sequence {i}, position {position}: {found}, not {on_cpu} or {expected}"
                    );
                }
            }
        }
    }
}

/// A root's child above all sequences, its child above two of them, and a leaf for each.
mod unmerged {
    use std::ops::Range;
    use std::sync::Arc;

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::super::switch::{Made, made_delta};
    use super::*;
    use crate::WeightName;
    use crate::lattice::{LatticeMatrix, MatrixId, NodeDeltas, SignedDelta, reference};
    use crate::model::UnmergedNode;

    /// Steps that a path may move a weight: what the made models leave of i16.
    const ROOM: i32 = 6000;

    pub(super) fn nodes(model: &TinyModel) -> Vec<(Range<usize>, Arc<NodeDeltas>)> {
        let mut rng = StdRng::seed_from_u64(9);
        let weights = model.weights(&Cpu::new(Some(1)).unwrap());
        let kinds =
            [(0..3, Some(4)), (1..3, None), (0..1, Some(2)), (1..2, Some(3)), (2..3, Some(8))];
        let mut node = |(sequences, rank): (Range<usize>, Option<usize>)| {
            let delta = |(k, (name, matrix)): (usize, (&String, &LatticeMatrix))| {
                let made = match rank {
                    Some(rank) => Made::LowRank(rank),
                    None if k % 2 == 0 => Made::Dense,
                    None => Made::Sparse,
                };
                let id = weights.matrix_id(&WeightName::new(name)).unwrap();
                let (rows, cols) = (matrix.rows(), matrix.cols());
                (id, made_delta(&mut rng, rows, cols, &made, ROOM / 3).unwrap())
            };
            let deltas: Vec<_> = model.matrices.iter().enumerate().map(delta).collect();
            (sequences, Arc::new(NodeDeltas::new(deltas)))
        };
        kinds.into_iter().map(&mut node).collect()
    }

    /// The model with the deltas of one sequence's nodes in its weights.
    pub(super) fn merged(
        model: &TinyModel,
        nodes: &[(Range<usize>, Arc<NodeDeltas>)],
        sequence: usize,
    ) -> TinyModel {
        let weights = model.weights(&Cpu::new(Some(1)).unwrap());
        let mut matrices = model.matrices.clone();
        for (name, matrix) in &mut matrices {
            let id: MatrixId = weights.matrix_id(&WeightName::new(name)).unwrap();
            let path = nodes.iter().filter(|(sequences, _)| sequences.contains(&sequence));
            let deltas = path.filter_map(|(_, deltas)| deltas.delta(id)).map(SignedDelta::added);
            reference::delta_apply(matrix, &deltas.collect::<Vec<_>>());
        }
        TinyModel { config: model.config.clone(), matrices, vectors: model.vectors.clone() }
    }

    /// Logits of every token: all but the last two of each sequence at once, then one by one.
    pub(super) fn logits<D: Compute>(
        device: &D,
        model: &TinyModel,
        nodes: &[(Range<usize>, Arc<NodeDeltas>)],
        inputs: &[Vec<u32>; 3],
    ) -> [Vec<Vec<f32>>; 3] {
        let weights = model.weights(device);
        let transformer = Transformer::bind(device, &model.config, &weights).unwrap();
        let mut pool = KvPool::for_tokens(device, &model.config, 3 * 200).unwrap();
        let owner = [7; 32];
        let tables = [(); 3].map(|()| pool.pages_mut().open(owner));
        let deltas: Vec<_> =
            nodes.iter().map(|(_, deltas)| device.upload_deltas(deltas).unwrap()).collect();
        let node = |((sequences, _), deltas): (&(Range<usize>, _), _)| UnmergedNode {
            sequences: sequences.clone(),
            deltas,
        };
        let unmerged: Vec<_> = nodes.iter().zip(&deltas).map(node).collect();
        let mut found = [Vec::new(), Vec::new(), Vec::new()];
        for step in 0..3 {
            let part = |input: &[u32]| match step {
                0 => 0..input.len() - 2,
                _ => input.len() - 3 + step..input.len() - 2 + step,
            };
            let sequence = |i: usize| NewTokens {
                table: tables[i],
                owner,
                tokens: &inputs[i][part(&inputs[i])],
                want: Want::All,
            };
            let sequences = [0, 1, 2].map(sequence);
            let batch = Batch { sequences: &sequences, unmerged: &unmerged };
            let logits = transformer.forward(device, &weights, &mut pool, &batch).unwrap();
            for (i, found) in found.iter_mut().enumerate() {
                found.extend(logits.sequence(i).map(<[f32]>::to_vec));
            }
        }
        found
    }
}
