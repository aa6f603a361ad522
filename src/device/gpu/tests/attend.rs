//! Every operation of a forward pass but the products, against the CPU's.

#![allow(clippy::cast_possible_truncation, reason = "test code")]

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::Error;
use crate::device::cpu::Cpu;
use crate::device::gpu::{Gpu, GpuBuffer, GpuOptions};
use crate::device::{Attention, Choice, Compute, Device, Heads, Span};
use crate::testing::gpu;

fn minimal() -> Option<Gpu> {
    gpu(&GpuOptions { minimal: true, ..GpuOptions::default() })
}

fn random(rng: &mut StdRng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn near(found: &[f32], expected: &[f32], limit: f32, what: impl std::fmt::Display) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() <= limit * expected.abs().max(1.0),
            "{what} {i}: {found}, not {expected}"
        );
    }
}

#[test]
fn rms_norm_and_selected_rows_are_the_cpus() {
    let (Some(gpu), cpu) = (minimal(), Cpu::new(Some(1)).unwrap()) else { return };
    let mut rng = StdRng::seed_from_u64(1);
    for (rows, width) in [(1, 1), (3, 2), (7, 255), (2, 576), (5, 1000), (1, 4096), (40, 33)] {
        let (x, weight) = (random(&mut rng, rows * width), random(&mut rng, width));
        let picked: Vec<usize> =
            (0..rows).filter(|row| row % 3 != 1).rev().chain(0..rows).collect();
        fn run<D: Compute>(
            device: &D,
            x: &[f32],
            weight: &[f32],
            rows: usize,
            picked: &[usize],
        ) -> Vec<f32> {
            let (x, weight) = [x, weight].map(|v| device.upload_buffer(v.to_vec()).unwrap()).into();
            let width = device.len(&weight);
            let mut normed = device.alloc(rows * width + 5).unwrap();
            device.rms_norm(&x, &weight, 0.25, rows, &mut normed);
            let mut out = device.alloc(picked.len() * width).unwrap();
            device.select_rows(&normed, picked, width, &mut out);
            device.read(&out, 0..picked.len() * width).unwrap()
        }
        let [found, expected] =
            [run(&gpu, &x, &weight, rows, &picked), run(&cpu, &x, &weight, rows, &picked)];
        near(&found, &expected, 2e-6, format_args!("{rows} × {width}"));
    }
}

/// One layer of attention on one device, fed step by step.
struct Layer<'a, D: Compute> {
    device: &'a D,
    heads: Heads,
    window: Option<usize>,
    cache: D::KvLayer,
}

/// The tokens of every sequence: queries, keys, values and angles, a row a token.
struct Tokens {
    parts: [Vec<f32>; 4],
    widths: [usize; 4],
}

impl Tokens {
    fn random(rng: &mut StdRng, heads: Heads, count: usize) -> Self {
        let Heads { heads, kv_heads, head_dim } = heads;
        let widths = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim, head_dim];
        let mut parts = widths.map(|width| random(rng, count * width));
        parts[0].iter_mut().for_each(|x| *x *= 8.0);
        for angles in parts[3].chunks_exact_mut(head_dim) {
            let (cosines, sines) = angles.split_at_mut(head_dim / 2);
            cosines
                .iter_mut()
                .zip(sines)
                .for_each(|(cosine, sine)| (*sine, *cosine) = (*cosine * 3.0).sin_cos());
        }
        Self { parts, widths }
    }
}

impl<'a, D: Compute> Layer<'a, D> {
    fn new(
        device: &'a D,
        heads: Heads,
        window: Option<usize>,
        slots: usize,
        capacity: usize,
    ) -> Self {
        Self { device, heads, window, cache: device.alloc_kv(heads, slots, capacity).unwrap() }
    }

    /// Feeds tokens `range` of some slots; gives a row of results a token.
    fn feed(&mut self, spans: &[(usize, &Tokens, std::ops::Range<usize>)]) -> Vec<Vec<f32>> {
        let mut rows = 0;
        let place = |(slot, _, range): &(usize, &Tokens, std::ops::Range<usize>)| {
            rows += range.len();
            Span { slot: *slot, rows: rows - range.len()..rows, past: range.start }
        };
        let places: Vec<Span> = spans.iter().map(place).collect();
        let [mut queries, mut keys, values, angles] = [0, 1, 2, 3].map(|part| {
            let rows = spans.iter().flat_map(|(_, tokens, range)| {
                let width = tokens.widths[part];
                tokens.parts[part][range.start * width..range.end * width].to_vec()
            });
            self.device.upload_buffer(rows.collect()).unwrap()
        });
        let width = self.heads.heads * self.heads.head_dim;
        let mut out = self.device.alloc(rows * width).unwrap();
        let attention = Attention {
            queries: &mut queries,
            keys: &mut keys,
            values: &values,
            angles: &angles,
            cache: &mut self.cache,
            heads: self.heads,
            window: self.window,
            out: &mut out,
        };
        self.device.attention(attention, &places);
        self.device
            .read(&out, 0..rows * width)
            .unwrap()
            .chunks_exact(width)
            .map(<[f32]>::to_vec)
            .collect()
    }
}

fn heads(heads: usize, kv_heads: usize, head_dim: usize) -> Heads {
    Heads { heads, kv_heads, head_dim }
}

#[test]
fn attention_equals_the_cpu_for_ragged_batches() {
    let (Some(gpu), cpu) = (minimal(), Cpu::new(Some(1)).unwrap()) else { return };
    let mut rng = StdRng::seed_from_u64(3);
    // New tokens per slot, step by step: prefill and decode mixed, slots left out.
    let steps: [[usize; 4]; 6] =
        [[5, 0, 37, 0], [1, 0, 1, 70], [18, 3, 1, 1], [1, 1, 0, 1], [130, 0, 2, 1], [1, 200, 1, 1]];
    let shapes = [
        (1, 1, 2),
        (6, 2, 6),
        (9, 3, 64),
        (14, 2, 20),
        (8, 8, 16),
        (11, 1, 80),
        (4, 2, 128),
        (2, 1, 256),
    ];
    for (h, kv, dim) in shapes {
        let heads = heads(h, kv, dim);
        for window in [None, Some(1), Some(7), Some(133)] {
            let tokens: Vec<Tokens> =
                (0..4).map(|_| Tokens::random(&mut rng, heads, 250)).collect();
            let mut there = Layer::new(&gpu, heads, window, 4, 250);
            let mut here = Layer::new(&cpu, heads, window, 4, 250);
            let mut fed = [0; 4];
            for step in steps {
                let mut spans = Vec::new();
                for (slot, &count) in step.iter().enumerate().filter(|(_, count)| **count > 0) {
                    spans.push((slot, &tokens[slot], fed[slot]..fed[slot] + count));
                    fed[slot] += count;
                }
                for (row, (found, expected)) in
                    there.feed(&spans).iter().zip(here.feed(&spans)).enumerate()
                {
                    near(
                        found,
                        &expected,
                        2e-5,
                        format_args!("{heads:?} {window:?} {step:?} row {row}"),
                    );
                }
            }
        }
    }
}

#[test]
fn attention_of_a_token_does_not_depend_on_what_is_computed_beside_it() {
    let Some(gpu) = minimal() else { return };
    let mut rng = StdRng::seed_from_u64(4);
    for (heads, window) in
        [(heads(9, 3, 20), None), (heads(9, 3, 20), Some(150)), (heads(8, 8, 6), None)]
    {
        let [tokens, others] = [400, 400].map(|count| Tokens::random(&mut rng, heads, count));
        // One prefill: so many queries that each workgroup goes over all its positions.
        let whole = Layer::new(&gpu, heads, window, 1, 400).feed(&[(0, &tokens, 0..400)]);
        // Parts and single tokens, among others: each block of positions is a workgroup's.
        let mut layer = Layer::new(&gpu, heads, window, 3, 500);
        let mut parts = layer.feed(&[(1, &tokens, 0..37), (2, &others, 0..330)]);
        parts.truncate(37);
        for at in [37..38, 38..126, 126..127, 127..128, 128..129, 129..390] {
            let beside = 330 + at.start % 5;
            layer.feed(&[(2, &others, beside..beside + 1)]);
            let count = at.len();
            parts.extend(
                layer
                    .feed(&[(1, &tokens, at), (2, &others, beside + 1..beside + 3)])
                    .drain(..count),
            );
        }
        for at in 390..400 {
            parts.extend(layer.feed(&[(1, &tokens, at..at + 1)]));
        }
        for (row, (found, expected)) in parts.iter().zip(&whole).enumerate() {
            assert!(found == expected, "{heads:?} {window:?} row {row}");
        }
    }
}

#[test]
fn cache_beyond_the_limits_is_refused() {
    let Some(gpu) = minimal() else { return };
    let refused = |heads, capacity| match gpu.alloc_kv(heads, 1, capacity) {
        Err(Error::DeviceLimit { bytes, limit, .. }) => (bytes, limit),
        _ => panic!("not refused"),
    };
    assert_eq!(refused(heads(8, 8, 128), 32_769), (8 * 32_800 * 512, 128 << 20));
    assert_eq!(refused(heads(1, 1, 258), 1), (258 * 4, 1024));
}

fn upload(gpu: &Gpu, rows: &[&[f32]]) -> GpuBuffer {
    gpu.upload_buffer(rows.concat()).unwrap()
}

const GREEDY: Choice =
    Choice { temperature: 0.0, top_k: None, top_p: None, min_p: None, random: 0.5 };

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
    let expected = cpu.sample(&(&rows.concat()[..]).into(), 10_000, &[GREEDY; 8]).unwrap();
    assert_eq!(gpu.sample(&upload(&gpu, &rows), 10_000, &[GREEDY; 8]).unwrap(), expected);
    assert_eq!(gpu.sample(&upload(&gpu, &[&[-1.0]]), 1, &[GREEDY]).unwrap(), [0]);
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
            let result = gpu.sample(&upload(&gpu, &[&[1.0; 1000], &logits]), 1000, &[choice; 2]);
            let Err(Error::NonFiniteLogits { index: 301, value }) = result else {
                panic!("{bad}: {result:?}")
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
        let found = gpu.sample(&upload(&gpu, &slices), vocab_size, &choices).unwrap();
        for ((logits, choice), found) in rows.iter().zip(&choices).zip(found) {
            let around = [-1.0, 0.0, 1.0].map(|side| Choice {
                random: (choice.random + side * 1e-4).clamp(0.0, 0.999_999),
                top_p: choice.top_p.map(|p| (p + side as f32 * 1e-5).min(1.0)),
                min_p: choice.min_p.map(|p| (p * (1.0 + side as f32 * 1e-5)).min(1.0)),
                ..*choice
            });
            let expected = around
                .map(|choice| cpu.sample(&(&logits[..]).into(), vocab_size, &[choice]).unwrap()[0]);
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
        for token in gpu.sample(&there, 4, &choices).unwrap() {
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

#[test]
fn two_threads_on_one_gpu_do_not_disturb_each_other() {
    let Some(gpu) = minimal() else { return };
    let heads = heads(4, 2, 8);
    let run = |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let tokens = Tokens::random(&mut rng, heads, 180);
        let mut layer = Layer::new(&gpu, heads, None, 1, 180);
        (0..180)
            .step_by(6)
            .flat_map(|at| gpu.submit(|| layer.feed(&[(0, &tokens, at..at + 6)])))
            .collect::<Vec<_>>()
    };
    let alone = [1, 2].map(run);
    std::thread::scope(|scope| {
        let together = [1, 2].map(|seed| scope.spawn(move || run(seed)));
        let together = together.map(|thread| thread.join().unwrap());
        assert!(together == alone);
    });
}
