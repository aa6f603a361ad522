//! Attention and the pages it reads against the CPU's.

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::{minimal, near, random};
use crate::Error;
use crate::device::cpu::Cpu;
use crate::device::{Attention, Compute, Heads, PAGE, RotateAppend, Span};

/// One layer of attention on one device, fed step by step.
struct Layer<'a, D: Compute> {
    device: &'a D,
    parts: Parts,
    cache: D::KvLayer,
    /// Of every sequence.
    pages: Vec<Vec<u32>>,
}

/// What attention is asked for.
#[derive(Clone, Copy, Debug)]
struct Parts {
    heads: Heads,
    window: Option<usize>,
    scale: f32,
    soft_cap: Option<f32>,
}

impl Parts {
    /// The usual scale, and no cap.
    fn new(heads: Heads, window: Option<usize>) -> Self {
        Self { heads, window, scale: 1.0 / (heads.head_dim as f32).sqrt(), soft_cap: None }
    }
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
    /// Each of some sequences in `capacity / PAGE` pages, one after another.
    fn new(device: &'a D, parts: Parts, sequences: usize, capacity: usize) -> Self {
        let each = capacity.div_ceil(PAGE) as u32;
        let pages = (0..sequences as u32).map(|i| (i * each..(i + 1) * each).collect()).collect();
        Self::in_pages(device, parts, pages)
    }

    fn in_pages(device: &'a D, parts: Parts, pages: Vec<Vec<u32>>) -> Self {
        let most = pages.iter().flatten().max().map_or(0, |&page| page as usize + 1);
        Self { device, parts, cache: device.alloc_kv(parts.heads, most).unwrap(), pages }
    }

    /// Feeds tokens `range` of some sequences; gives a row of results a token.
    fn feed(&mut self, spans: &[(usize, &Tokens, std::ops::Range<usize>)]) -> Vec<Vec<f32>> {
        let mut rows = 0;
        let place = |(sequence, _, range): &(usize, &Tokens, std::ops::Range<usize>)| {
            rows += range.len();
            let pages = self.pages[*sequence].clone();
            Span { rows: rows - range.len()..rows, past: range.start, pages }
        };
        let places: Vec<Span> = spans.iter().map(place).collect();
        let [mut queries, mut keys, values, angles] = [0, 1, 2, 3].map(|part| {
            let rows = spans.iter().flat_map(|(_, tokens, range)| {
                let width = tokens.widths[part];
                tokens.parts[part][range.start * width..range.end * width].to_vec()
            });
            self.device.upload_buffer(rows.collect()).unwrap()
        });
        let Parts { heads, window, scale, soft_cap } = self.parts;
        let width = heads.heads * heads.head_dim;
        let mut out = self.device.alloc(rows * width).unwrap();
        let rotate_append = RotateAppend {
            queries: &mut queries,
            keys: &mut keys,
            values: &values,
            angles: &angles,
            cache: &mut self.cache,
            heads,
        };
        self.device.rotate_append(rotate_append, &places);
        let attention = Attention {
            queries: &queries,
            cache: &self.cache,
            heads,
            scale,
            soft_cap,
            window,
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
    // New tokens a sequence, step by step: prefill and decode mixed, sequences left out.
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
        let usual = |window| Parts::new(heads, window);
        for parts in [
            usual(None),
            usual(Some(1)),
            usual(Some(7)),
            usual(Some(133)),
            Parts { scale: 0.3, soft_cap: Some(2.5), ..usual(None) },
            Parts { soft_cap: Some(50.0), ..usual(Some(133)) },
        ] {
            let tokens: Vec<Tokens> =
                (0..4).map(|_| Tokens::random(&mut rng, heads, 250)).collect();
            // Every fourth page, from the last on.
            let pages = |i: u32| (0..8).map(|page| 31 - (4 * page + i)).collect();
            let mut there = Layer::in_pages(&gpu, parts, (0..4).map(pages).collect());
            let mut here = Layer::new(&cpu, parts, 4, 250);
            let mut fed = [0; 4];
            for step in steps {
                let mut spans = Vec::new();
                for (i, &count) in step.iter().enumerate().filter(|(_, count)| **count > 0) {
                    spans.push((i, &tokens[i], fed[i]..fed[i] + count));
                    fed[i] += count;
                }
                for (row, (found, expected)) in
                    there.feed(&spans).iter().zip(here.feed(&spans)).enumerate()
                {
                    near(found, &expected, 2e-5, format_args!("{parts:?} {step:?} row {row}"));
                }
            }
        }
    }
}

#[test]
fn attention_of_a_token_does_not_depend_on_what_is_computed_beside_it() {
    let Some(gpu) = minimal() else { return };
    let mut rng = StdRng::seed_from_u64(4);
    for parts in [
        Parts::new(heads(9, 3, 20), None),
        Parts::new(heads(9, 3, 20), Some(150)),
        Parts::new(heads(8, 8, 6), None),
        Parts { soft_cap: Some(3.0), ..Parts::new(heads(8, 8, 6), None) },
    ] {
        let [tokens, others] = [400, 400].map(|count| Tokens::random(&mut rng, parts.heads, count));
        // One prefill: so many queries that each workgroup goes over all its positions.
        let whole = Layer::new(&gpu, parts, 1, 400).feed(&[(0, &tokens, 0..400)]);
        // Parts and single tokens, among others: each block of positions is a workgroup's.
        let mut layer = Layer::new(&gpu, parts, 3, 500);
        let mut in_parts = layer.feed(&[(1, &tokens, 0..37), (2, &others, 0..330)]);
        in_parts.truncate(37);
        for at in [37..38, 38..126, 126..127, 127..128, 128..129, 129..390] {
            let beside = 330 + at.start % 5;
            layer.feed(&[(2, &others, beside..beside + 1)]);
            let count = at.len();
            in_parts.extend(
                layer
                    .feed(&[(1, &tokens, at), (2, &others, beside + 1..beside + 3)])
                    .drain(..count),
            );
        }
        for at in 390..400 {
            in_parts.extend(layer.feed(&[(1, &tokens, at..at + 1)]));
        }
        for (row, (found, expected)) in in_parts.iter().zip(&whole).enumerate() {
            assert!(found == expected, "{parts:?} row {row}");
        }
    }
}

#[test]
fn attention_in_scattered_and_shared_pages_has_the_bits_of_consecutive_ones() {
    let Some(gpu) = minimal() else { return };
    let mut rng = StdRng::seed_from_u64(9);
    for parts in [
        Parts::new(heads(9, 3, 20), None),
        Parts::new(heads(9, 3, 20), Some(150)),
        Parts::new(heads(2, 1, 256), None),
    ] {
        let tokens = Tokens::random(&mut rng, parts.heads, 400);
        let steps = [0..290, 290..291, 291..330, 330..331, 331..400];
        let run = |layer: &mut Layer<'_, _>, sequence| {
            let steps = steps.clone().into_iter();
            steps.flat_map(|step| layer.feed(&[(sequence, &tokens, step)])).collect::<Vec<_>>()
        };
        let expected = run(&mut Layer::new(&gpu, parts, 1, 400), 0);
        // The second sequence reads the nine full pages of the first and writes its own behind them.
        let scattered = [7, 30, 2, 18, 0, 1, 29, 5, 12, 25, 9, 3, 14].to_vec();
        let shared = [&scattered[..9], &[20, 22, 4, 21]].concat();
        let mut layer = Layer::in_pages(&gpu, parts, vec![scattered, shared]);
        assert!(run(&mut layer, 0) == expected, "{parts:?}");
        let behind = [288..290, 290..400].map(|step| layer.feed(&[(1, &tokens, step)])).concat();
        assert!(behind == expected[288..], "{parts:?}");
        assert!(layer.feed(&[(0, &tokens, 399..400)]) == expected[399..], "{parts:?}");
    }
}

#[test]
fn pages_beyond_the_limits_are_refused() {
    let Some(gpu) = minimal() else { return };
    let refused = |heads, pages| match gpu.alloc_kv(heads, pages) {
        Err(Error::DeviceLimit { bytes, limit, .. }) => (bytes, limit),
        _ => panic!("not refused"),
    };
    assert_eq!(refused(heads(8, 8, 128), 1025), (1025 * 8 * 32 * 512, 128 << 20));
    assert_eq!(refused(heads(1, 1, 258), 1), (258 * 4, 1024));
}

#[test]
fn two_threads_on_one_gpu_do_not_disturb_each_other() {
    let Some(gpu) = minimal() else { return };
    let heads = heads(4, 2, 8);
    let run = |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let tokens = Tokens::random(&mut rng, heads, 180);
        let mut layer = Layer::new(&gpu, Parts::new(heads, None), 1, 180);
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
