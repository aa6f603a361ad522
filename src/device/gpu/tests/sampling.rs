//! The choice of a token, against the CPU's and against what chance says.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{minimal, random};
use crate::Error;
use crate::device::cpu::Cpu;
use crate::device::gpu::{Gpu, GpuBuffer};
use crate::device::{Choice, Compute, Device};

fn upload(gpu: &Gpu, rows: &[&[f32]]) -> GpuBuffer {
    gpu.upload_buffer(rows.concat()).unwrap()
}

const GREEDY: Choice =
    Choice { temperature: 0.0, top_k: None, top_p: None, min_p: None, random: 0.5 };

/// Tokens of rows that are all finite.
fn tokens(found: crate::Result<Vec<crate::Result<u32>>>) -> Vec<u32> {
    found.unwrap().into_iter().map(|token| token.unwrap()).collect()
}

#[test]
fn argmax_is_the_cpus_with_ties_and_both_zeros() {
    let (Some(gpu), cpu) = (minimal(), Cpu::new(Some(1)).unwrap()) else { return };
    let mut rng = StdRng::seed_from_u64(5);
    let mut rows: Vec<Vec<f32>> = (0..8).map(|_| random(&mut rng, 10_000)).collect();
    // Many equals; all below zero; zeros of both signs on top; the largest last and first.
    rows[1].iter_mut().for_each(|x| *x = (*x * 4.0).round());
    rows[2].iter_mut().for_each(|x| *x -= 2.0);
    rows[3]
        .iter_mut()
        .for_each(|x| *x = if *x > 0.0 { [0.0, -0.0][usize::from(*x < 0.9)] } else { *x });
    rows[4][9999] = 3.0;
    rows[5][0] = f32::MAX;
    rows[6].iter_mut().for_each(|x| *x = f32::MIN);
    let rows: Vec<&[f32]> = rows.iter().map(|row| &row[..]).collect();
    let expected = tokens(cpu.sample(&(&rows.concat()[..]).into(), 10_000, &[GREEDY; 8]));
    assert_eq!(tokens(gpu.sample(&upload(&gpu, &rows), 10_000, &[GREEDY; 8])), expected);
    assert_eq!(tokens(gpu.sample(&upload(&gpu, &[&[-1.0]]), 1, &[GREEDY])), [0]);
    assert!(gpu.sample(&upload(&gpu, &rows), 10_000, &[]).unwrap().is_empty());
}

#[test]
fn non_finite_logits_are_refused_with_their_place() {
    let Some(gpu) = minimal() else { return };
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut logits = vec![0.5; 1000];
        [999, 700, 301].into_iter().for_each(|at| logits[at] = bad);
        for choice in [
            GREEDY,
            Choice { temperature: 1.0, top_k: Some(3), top_p: Some(0.5), min_p: None, random: 0.5 },
        ] {
            let found = gpu.sample(&upload(&gpu, &[&[1.0; 1000], &logits]), 1000, &[choice; 2]);
            let found = found.unwrap();
            let [Ok(_), Err(Error::NonFiniteLogits { index: 301, value })] = found[..] else {
                panic!("{bad}: {found:?}")
            };
            assert_eq!(value.to_bits(), bad.to_bits());
        }
    }
}

#[test]
fn sampling_draws_the_cpus_tokens_but_at_borders() {
    let (Some(gpu), cpu) = (minimal(), Cpu::new(Some(1)).unwrap()) else { return };
    let mut rng = StdRng::seed_from_u64(6);
    let (mut compared, mut all) = (0, 0);
    for round in 0..60 {
        let vocab_size =
            if round % 4 == 0 { rng.random_range(1..40) } else { rng.random_range(40..6000) };
        let rows: Vec<Vec<f32>> = (0..8)
            .map(|row| {
                let coarse = row % 2 == 0;
                let logit = |x: f32| if coarse { (x * 12.0).round() } else { x * 30.0 };
                random(&mut rng, vocab_size).into_iter().map(logit).collect()
            })
            .collect();
        let choices: Vec<Choice> = (0..8)
            .map(|row| Choice {
                temperature: [0.3, 1.0, 2.5, 1e-30][(row + round) % 4],
                top_k: [None, Some(1), Some(5), Some(50), Some(10_000)][rng.random_range(0..5)],
                top_p: [None, Some(0.05), Some(0.5), Some(0.9), Some(1.0)][rng.random_range(0..5)],
                min_p: [None, None, Some(0.0), Some(0.05), Some(0.4), Some(1.0)]
                    [rng.random_range(0..6)],
                random: rng.random(),
            })
            .collect();
        let slices: Vec<&[f32]> = rows.iter().map(|row| &row[..]).collect();
        let found = tokens(gpu.sample(&upload(&gpu, &slices), vocab_size, &choices));
        for ((logits, choice), found) in rows.iter().zip(&choices).zip(found) {
            let around = [-1.0, 0.0, 1.0].map(|side| Choice {
                random: (choice.random + side * 1e-4).clamp(0.0, 0.999_999),
                top_p: choice.top_p.map(|p| (p + side as f32 * 1e-5).min(1.0)),
                min_p: choice.min_p.map(|p| (p * (1.0 + side as f32 * 1e-5)).min(1.0)),
                ..*choice
            });
            let on_cpu = |choice| cpu.sample(&(&logits[..]).into(), vocab_size, &[choice]);
            let expected = around.map(|choice| tokens(on_cpu(choice))[0]);
            all += 1;
            if expected == [expected[0]; 3] {
                compared += 1;
                assert_eq!(found, expected[0], "{vocab_size} logits, {choice:?}");
            }
        }
    }
    assert!(compared * 10 > all * 8, "only {compared} of {all} compared");
}

#[test]
fn frequencies_follow_temperature_top_k_top_p_and_min_p() {
    let Some(gpu) = minimal() else { return };
    // Probabilities 0.5, 0.25, 0.125, 0.125 at temperature 1.
    let logits = [2f32.ln(), 4f32.ln(), 0.0, 0.0];
    let draws = 800;
    let there = upload(&gpu, &vec![&logits[..]; draws]);
    for (temperature, top_k, top_p, min_p, expected) in [
        (1.0, None, None, None, [0.25, 0.5, 0.125, 0.125]),
        (0.5, None, None, None, [4.0 / 22.0, 16.0 / 22.0, 1.0 / 22.0, 1.0 / 22.0]),
        (1.0, Some(2), None, None, [1.0 / 3.0, 2.0 / 3.0, 0.0, 0.0]),
        (1.0, None, Some(0.6), None, [1.0 / 3.0, 2.0 / 3.0, 0.0, 0.0]),
        (1.0, Some(3), None, None, [2.0 / 7.0, 4.0 / 7.0, 1.0 / 7.0, 0.0]),
        (1.0, Some(3), Some(0.5), None, [0.0, 1.0, 0.0, 0.0]),
        (1.0, None, Some(0.8), None, [2.0 / 7.0, 4.0 / 7.0, 1.0 / 7.0, 0.0]),
        (1.0, Some(1), None, None, [0.0, 1.0, 0.0, 0.0]),
        // A half and a quarter of the likeliest; the quarter is a sixteenth at half the
        // temperature.
        (1.0, None, None, Some(0.45), [1.0 / 3.0, 2.0 / 3.0, 0.0, 0.0]),
        (0.5, None, None, Some(0.2), [0.2, 0.8, 0.0, 0.0]),
        (1.0, None, None, Some(1.0), [0.0, 1.0, 0.0, 0.0]),
        (1.0, Some(3), Some(0.9), Some(0.2), [2.0 / 7.0, 4.0 / 7.0, 1.0 / 7.0, 0.0]),
    ] {
        let choice = |i: usize| Choice {
            temperature,
            top_k,
            top_p,
            min_p,
            random: (i as f64 + 0.5) / draws as f64,
        };
        let choices: Vec<Choice> = (0..draws).map(choice).collect();
        let mut counts = [0; 4];
        for token in tokens(gpu.sample(&there, 4, &choices)) {
            counts[token as usize] += 1;
        }
        for (count, expected) in counts.into_iter().zip(expected) {
            let expected = expected * draws as f64;
            assert!(
                (f64::from(count) - expected).abs() <= 1.0,
                "{temperature} {top_k:?} {top_p:?} {min_p:?}: {counts:?}"
            );
        }
    }
}
