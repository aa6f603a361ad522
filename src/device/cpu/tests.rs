//! Every kernel, at every instruction set this machine has, against the same formula in f64.

#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "test code")]

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::parallel::{Plane, RowBlocks};
use super::{Cpu, FloatBuffer, SimdLevel, Unmerged};
use crate::Error;
use crate::device::{Attention, Compute, Heads, PAGE, Product, RotateAppend, Span};
use crate::lattice::{LatticeMatrix, MatrixId};

mod unmerged;

fn levels() -> Vec<Cpu> {
    SimdLevel::available().map(|level| Cpu::with_simd(Some(2), level).expect("a pool")).collect()
}

fn random(rng: &mut StdRng, len: usize) -> FloatBuffer {
    FloatBuffer::from(&(0..len).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>()[..])
}

fn random_matrix(rng: &mut StdRng, rows: usize, cols: usize) -> LatticeMatrix {
    let mut matrix = LatticeMatrix::zeros(rows, cols);
    let stride = matrix.stride();
    for row in matrix.integers_mut().chunks_exact_mut(stride.max(1)) {
        row[..cols].fill_with(|| rng.random_range(-32_767..=32_767));
    }
    matrix.parts_mut().1.fill_with(|| rng.random_range(1e-5..1e-4));
    matrix
}

/// `W · x`, and the sum of its terms' sizes.
fn product(matrix: &LatticeMatrix, i: usize, x: &[f32]) -> (f64, f64) {
    let terms = matrix
        .row(i)
        .iter()
        .zip(x)
        .map(|(&n, &x)| f64::from(n) * f64::from(x) * f64::from(matrix.steps()[i]));
    terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
}

fn check_product(cpu: &Cpu, rng: &mut StdRng, rows: [usize; 2], cols: usize, tokens: usize) {
    let matrices = rows.map(|rows| random_matrix(rng, rows, cols));
    let x = random(rng, tokens * cols);
    let bias = random(rng, rows[0]);
    let start = rows.map(|rows| random(rng, tokens * rows));
    let mut out = start.clone();
    let [out_0, out_1] = &mut out;
    cpu.matmul(
        &x,
        tokens,
        [
            Product {
                weight: &matrices[0],
                id: MatrixId(0),
                bias: Some(&bias),
                out: out_0,
                accumulate: false,
            },
            Product {
                weight: &matrices[1],
                id: MatrixId(1),
                bias: None,
                out: out_1,
                accumulate: true,
            },
        ],
        &Unmerged::default(),
    );
    for t in 0..tokens {
        for which in 0..2 {
            for i in 0..rows[which] {
                let at = t * rows[which] + i;
                let added = f64::from(if which == 0 { bias[i] } else { start[1][at] });
                let (sum, size) = product(&matrices[which], i, &x[t * cols..][..cols]);
                let (found, expected) = (f64::from(out[which][at]), sum + added);
                assert!(
                    (found - expected).abs() <= 1e-6 * (size + added.abs()),
                    "{:?} {rows:?}x{cols}, {tokens} tokens: row {i} of token {t} is {found}, not {expected}",
                    cpu.simd(),
                );
            }
        }
    }
}

#[test]
fn products_equal_f64_sums_for_odd_shapes() {
    let mut rng = StdRng::seed_from_u64(1);
    for cpu in levels() {
        for cols in 1..=70 {
            for tokens in 1..=13 {
                let rows = [rng.random_range(1..=9), rng.random_range(1..=70)];
                check_product(&cpu, &mut rng, rows, cols, tokens);
            }
        }
        check_product(&cpu, &mut rng, [1, 1], 1, 1);
        for (rows, cols, tokens) in [
            ([33, 64], 1024, 1),
            ([70, 3], 1056, 7),
            ([97, 40], 2100, 2),
            ([64, 65], 576, 97),
            ([31, 1], 1100, 193),
        ] {
            check_product(&cpu, &mut rng, rows, cols, tokens);
        }
    }
}

#[test]
fn product_of_one_token_does_not_depend_on_the_others() {
    let mut rng = StdRng::seed_from_u64(2);
    for cpu in levels() {
        for (rows, cols) in [(70, 100), (41, 1088), (6, 2050)] {
            let matrix = random_matrix(&mut rng, rows, cols);
            let x = random(&mut rng, 100 * cols);
            let run = |x: &FloatBuffer, tokens: usize| {
                let mut out = FloatBuffer::zeros(tokens * rows);
                cpu.matmul(
                    x,
                    tokens,
                    [Product {
                        weight: &matrix,
                        id: MatrixId(0),
                        bias: None,
                        out: &mut out,
                        accumulate: false,
                    }],
                    &Unmerged::default(),
                );
                out.to_vec()
            };
            let single: Vec<f32> =
                x.chunks_exact(cols).flat_map(|row| run(&FloatBuffer::from(row), 1)).collect();
            for tokens in (1..=20).chain([96, 97, 100]) {
                assert_eq!(
                    run(&x, tokens),
                    single[..tokens * rows],
                    "{:?}, {tokens} tokens",
                    cpu.simd()
                );
            }
        }
    }
}

/// Attention as the formula says, for one query over all keys and values of its sequence.
fn attend_one(
    query: &[f32],
    keys: &[&[f32]],
    values: &[&[f32]],
    scale: f32,
    soft_cap: Option<f32>,
) -> Vec<f64> {
    let dot = |key: &&[f32]| {
        query.iter().zip(*key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>()
    };
    let capped = |score: f64| match soft_cap.map(f64::from) {
        Some(cap) => cap * (score / cap).tanh(),
        None => score,
    };
    let scores: Vec<f64> = keys.iter().map(|key| capped(dot(key) * f64::from(scale))).collect();
    let largest = scores.iter().copied().fold(f64::MIN, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let total: f64 = weights.iter().sum();
    (0..query.len())
        .map(|d| {
            values.iter().zip(&weights).map(|(value, w)| f64::from(value[d]) * w).sum::<f64>()
                / total
        })
        .collect()
}

/// Angles of 0: a rotation by them changes no bit.
fn unturned(rows: usize, head_dim: usize) -> FloatBuffer {
    let row = (0..head_dim).map(|j| if j < head_dim / 2 { 1.0 } else { 0.0 });
    FloatBuffer::from(&row.collect::<Vec<f32>>().repeat(rows)[..])
}

#[test]
fn attention_equals_its_formula_for_ragged_batches() {
    let mut rng = StdRng::seed_from_u64(3);
    // New tokens a sequence, step by step: prefill and decode mixed, sequences left out.
    let steps: [[usize; 4]; 4] = [[5, 0, 37, 0], [1, 0, 1, 70], [18, 3, 1, 1], [1, 1, 0, 1]];
    for cpu in levels() {
        for (heads, kv_heads, head_dim) in
            [(1, 1, 2), (6, 2, 6), (9, 3, 64), (14, 2, 20), (8, 8, 16), (11, 1, 80)]
        {
            let usual = 1.0 / (head_dim as f32).sqrt();
            for (window, scale, soft_cap) in [
                (None, usual, None),
                (Some(1), usual, None),
                (Some(7), 0.3, None),
                (Some(33), usual, None),
                (None, usual, Some(2.5)),
                (Some(33), 0.3, Some(50.0)),
            ] {
                let heads = Heads { heads, kv_heads, head_dim };
                let (q_width, kv_width) = (heads.heads * head_dim, kv_heads * head_dim);
                let mut cache = cpu.alloc_kv(heads, 16).unwrap();
                let mut seen: [Vec<(Vec<f32>, Vec<f32>)>; 4] = Default::default();
                for step in steps {
                    let (mut spans, mut sequences): (Vec<Span>, Vec<usize>) = Default::default();
                    for (i, &count) in step.iter().enumerate().filter(|(_, count)| **count > 0) {
                        let start = spans.last().map_or(0, |span| span.rows.end);
                        // Every fourth page, from the last on.
                        let pages = (0..4).map(|page| 15 - (4 * page + i as u32)).collect();
                        spans.push(Span { rows: start..start + count, past: seen[i].len(), pages });
                        sequences.push(i);
                    }
                    let rows = spans.last().unwrap().rows.end;
                    let queries = random(&mut rng, rows * q_width)
                        .iter()
                        .map(|x| x * 8.0)
                        .collect::<Vec<_>>();
                    let mut queries = FloatBuffer::from(&queries[..]);
                    let (mut keys, values) =
                        (random(&mut rng, rows * kv_width), random(&mut rng, rows * kv_width));
                    let mut out = FloatBuffer::zeros(rows * q_width);
                    let rotate_append = RotateAppend {
                        queries: &mut queries,
                        keys: &mut keys,
                        values: &values,
                        angles: &unturned(rows, head_dim),
                        cache: &mut cache,
                        heads,
                    };
                    cpu.rotate_append(rotate_append, &spans);
                    let attention = Attention {
                        queries: &queries,
                        cache: &cache,
                        heads,
                        scale,
                        soft_cap,
                        window,
                        out: &mut out,
                    };
                    cpu.attention(attention, &spans);
                    for (span, i) in spans.iter().zip(sequences) {
                        let seen = &mut seen[i];
                        for row in span.rows.clone() {
                            let part = |x: &[f32]| x[row * kv_width..][..kv_width].to_vec();
                            seen.push((part(&keys), part(&values)));
                            let first =
                                window.map_or(0, |window| seen.len().saturating_sub(window));
                            for head in 0..heads.heads {
                                let from = head / (heads.heads / kv_heads) * head_dim;
                                let key = |kv: &'_ (Vec<f32>, Vec<f32>)| {
                                    kv.0[from..][..head_dim].to_vec()
                                };
                                let keys: Vec<_> = seen[first..].iter().map(key).collect();
                                let value = |kv: &'_ (Vec<f32>, Vec<f32>)| {
                                    kv.1[from..][..head_dim].to_vec()
                                };
                                let values: Vec<_> = seen[first..].iter().map(value).collect();
                                let keys: Vec<&[f32]> = keys.iter().map(|k| &k[..]).collect();
                                let values: Vec<&[f32]> = values.iter().map(|v| &v[..]).collect();
                                let at = row * q_width + head * head_dim;
                                let query = &queries[at..][..head_dim];
                                let expected = attend_one(query, &keys, &values, scale, soft_cap);
                                for (found, expected) in out[at..].iter().zip(expected) {
                                    assert!(
                                        (f64::from(*found) - expected).abs() < 2e-5,
                                        "{:?} {heads:?} {window:?} {soft_cap:?} row {row} head {head}: {found}, not {expected}",
                                        cpu.simd(),
                                    );
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Attention of all rows of `[queries, keys, values]`, so many at a step, in these pages.
fn attend_in_pages(
    cpu: &Cpu,
    heads: Heads,
    window: Option<usize>,
    parts: &[FloatBuffer; 3],
    steps: &[usize],
    pages: &[u32],
) -> Vec<f32> {
    let Heads { heads: query_heads, kv_heads, head_dim } = heads;
    let widths = [query_heads, kv_heads, kv_heads].map(|heads| heads * head_dim);
    let mut cache = cpu.alloc_kv(heads, 20).unwrap();
    // What was in a page before must not be read.
    cache.keys.fill(f32::NAN);
    let value_dim = cache.value_dim();
    for value in cache.values.chunks_exact_mut(value_dim) {
        value[..head_dim].fill(f32::NAN);
    }
    let (mut past, mut found) = (0, Vec::new());
    for &count in steps {
        let part = |i: usize| FloatBuffer::from(&parts[i][past * widths[i]..][..count * widths[i]]);
        let (mut queries, mut keys, values) = (part(0), part(1), part(2));
        let mut out = FloatBuffer::zeros(count * widths[0]);
        let spans = [Span { rows: 0..count, past, pages: pages.to_vec() }];
        let rotate_append = RotateAppend {
            queries: &mut queries,
            keys: &mut keys,
            values: &values,
            angles: &unturned(count, head_dim),
            cache: &mut cache,
            heads,
        };
        cpu.rotate_append(rotate_append, &spans);
        let attention = Attention {
            queries: &queries,
            cache: &cache,
            heads,
            scale: 0.3,
            soft_cap: None,
            window,
            out: &mut out,
        };
        cpu.attention(attention, &spans);
        found.extend_from_slice(&out);
        past += count;
    }
    found
}

#[test]
fn attention_in_scattered_pages_has_the_bits_of_consecutive_ones() {
    let mut rng = StdRng::seed_from_u64(8);
    let consecutive: Vec<u32> = (0..7).collect();
    let scattered = [19, 2, 11, 0, 12, 5, 6];
    for cpu in levels() {
        for (query_heads, kv_heads, head_dim) in [(6, 2, 6), (9, 3, 64), (14, 2, 20), (8, 1, 16)] {
            let heads = Heads { heads: query_heads, kv_heads, head_dim };
            let parts = [query_heads, kv_heads, kv_heads]
                .map(|heads| random(&mut rng, 212 * heads * head_dim));
            for window in [None, Some(1), Some(45)] {
                let run = |steps: &[usize], pages: &[u32]| {
                    attend_in_pages(&cpu, heads, window, &parts, steps, pages)
                };
                let expected = run(&[212], &consecutive);
                assert!(expected.iter().all(|x| x.is_finite()), "{heads:?} {window:?}");
                assert_eq!(run(&[212], &scattered), expected, "{heads:?} {window:?}");
                let steps = [31, 1, 1, 62, 1, 32, 64, 19, 1];
                assert_eq!(run(&steps, &scattered), expected, "{heads:?} {window:?}");
            }
        }
    }
}

#[test]
#[should_panic(expected = "row blocks overlap")]
fn page_written_by_two_sequences_is_refused() {
    let cpu = Cpu::new(Some(1)).unwrap();
    let heads = Heads { heads: 1, kv_heads: 1, head_dim: 2 };
    let mut cache = cpu.alloc_kv(heads, 4).unwrap();
    let [mut queries, mut keys, values] = [(); 3].map(|()| FloatBuffer::zeros(4));
    let span = |row, page| Span { rows: row..row + 1, past: PAGE, pages: vec![0, page] };
    let rotate_append = RotateAppend {
        queries: &mut queries,
        keys: &mut keys,
        values: &values,
        angles: &unturned(2, 2),
        cache: &mut cache,
        heads,
    };
    cpu.rotate_append(rotate_append, &[span(0, 3), span(1, 3)]);
}

/// The tanh form of GELU as the formula says.
fn gelu(x: f64) -> f64 {
    x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

#[test]
fn rowwise_operations_equal_their_formulas() {
    let mut rng = StdRng::seed_from_u64(4);
    for cpu in levels() {
        for width in (2..=70).step_by(2).chain([2048]) {
            for rows in [1, 3, 40] {
                let (x, weight) = (random(&mut rng, rows * width), random(&mut rng, width));
                let mut out = FloatBuffer::zeros(rows * width);
                cpu.rms_norm(&x, &weight, 0.25, rows, &mut out);
                for (x, out) in x.chunks_exact(width).zip(out.chunks_exact(width)) {
                    let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
                    for ((x, w), out) in x.iter().zip(weight.iter()).zip(out) {
                        let expected = f64::from(*x) * f64::from(*w) / (mean + 0.25).sqrt();
                        assert!(
                            (f64::from(*out) - expected).abs() < 1e-6,
                            "norm of {width}: {out}, not {expected}"
                        );
                    }
                }

                let (mut gate, up) =
                    (random(&mut rng, rows * width), random(&mut rng, rows * width));
                gate.iter_mut().for_each(|g| *g *= 100.0);
                let before = gate.clone();
                cpu.silu_mul(&mut gate, &up, rows * width);
                for ((found, g), u) in gate.iter().zip(before.iter()).zip(up.iter()) {
                    let expected = f64::from(*g) / (1.0 + (-f64::from(*g)).exp()) * f64::from(*u);
                    assert!(
                        (f64::from(*found) - expected).abs() <= 1e-6 * expected.abs() + 1e-35,
                        "silu({g})·{u}"
                    );
                }

                let mut gate = before.clone();
                cpu.gelu_mul(&mut gate, &up, rows * width);
                for ((found, g), u) in gate.iter().zip(before.iter()).zip(up.iter()) {
                    let expected = gelu(f64::from(*g)) * f64::from(*u);
                    // What is left of 1 + tanh where that is nearly −1 is worth little.
                    let size = (f64::from(*g) * f64::from(*u)).abs();
                    assert!((f64::from(*found) - expected).abs() <= 3e-7 * size, "gelu({g})·{u}");
                }

                let (heads, half) = (3, width / 2);
                let mut x = random(&mut rng, rows * heads * width);
                let (before, angles) = (x.clone(), random(&mut rng, rows * width));
                cpu.rotate_rows(&mut x, heads, width, &angles, rows);
                for i in 0..rows * heads {
                    let (old, new) = (&before[i * width..][..width], &x[i * width..][..width]);
                    let angles = &angles[i / heads * width..][..width];
                    for j in 0..half {
                        let (a, b) = (f64::from(old[j]), f64::from(old[j + half]));
                        let (cos, sin) = (f64::from(angles[j]), f64::from(angles[j + half]));
                        assert!((f64::from(new[j]) - (a * cos - b * sin)).abs() < 1e-6);
                        assert!((f64::from(new[j + half]) - (b * cos + a * sin)).abs() < 1e-6);
                    }
                }
            }
        }
    }
}

#[test]
fn embedding_and_selection_take_the_named_rows() {
    let mut rng = StdRng::seed_from_u64(5);
    let cpu = &levels()[0];
    let table = random_matrix(&mut rng, 9, 37);
    let mut out = FloatBuffer::zeros(3 * 37);
    cpu.embed((&table, MatrixId(0)), &[8, 0, 8], &Unmerged::default(), &mut out);
    for (row, token) in [8usize, 0, 8].into_iter().enumerate() {
        for (found, n) in out[row * 37..][..37].iter().zip(table.row(token)) {
            assert_eq!(*found, f32::from(*n) * table.steps()[token]);
        }
    }
    let mut picked = FloatBuffer::zeros(2 * 37);
    cpu.select_rows(&out, &[2, 1], 37, &mut picked);
    assert_eq!(picked[..37], out[74..]);
    assert_eq!(picked[37..], out[37..74]);
}

#[test]
fn every_tile_is_written_once() {
    let cpu = Cpu::new(Some(3)).unwrap();
    let blocks = [0..2, 2..2, 5..9, 9..30];
    for rows in [RowBlocks::Every { rows: 30, block: 7 }, RowBlocks::These(&blocks)] {
        let (mut a, mut b) = (vec![0.0; 30 * 11], vec![0.0; 30 * 4]);
        let planes = [
            Plane { data: &mut a, width: 11, block: 3 },
            Plane { data: &mut b, width: 4, block: 4 },
        ];
        cpu.for_tiles(planes, rows, usize::MAX, |mut tile| {
            for row in tile.rows.clone() {
                tile.row(row).iter_mut().for_each(|x| *x += 1.0);
            }
        });
        let covered =
            |row: usize| matches!(rows, RowBlocks::Every { .. }) || !(2..5).contains(&row);
        for row in 0..30 {
            let expected = f32::from(u8::from(covered(row)));
            assert!(
                a[row * 11..][..11].iter().chain(&b[row * 4..][..4]).all(|&x| x == expected),
                "row {row}"
            );
        }
    }
}

#[test]
#[should_panic(expected = "row blocks overlap")]
fn overlapping_tiles_are_refused() {
    let mut data = vec![0.0; 100];
    let plane = Plane { data: &mut data, width: 10, block: 10 };
    Cpu::new(Some(1)).unwrap().for_tiles([plane], RowBlocks::These(&[0..3, 2..5]), 1, |_| {});
}

#[test]
fn missing_instruction_set_is_refused() {
    let widest = SimdLevel::detect();
    for level in SimdLevel::ALL {
        match Cpu::with_simd(Some(1), level) {
            Ok(cpu) => assert!(cpu.simd() == level && level <= widest),
            Err(error) => assert!(matches!(error, Error::SimdUnavailable { .. }) && level > widest),
        }
    }
}

#[test]
fn buffers_start_on_a_cache_line() {
    for len in [0, 1, 15, 16, 17, 100_000] {
        let buffer = FloatBuffer::zeros(len);
        assert_eq!((buffer.len(), buffer.as_ptr() as usize % 64), (len, 0));
    }
}

#[test]
fn buffer_no_machine_can_hold_is_refused() {
    for len in [usize::MAX, usize::MAX / 4] {
        assert!(matches!(FloatBuffer::try_zeros(len), Err(Error::DeviceMemory { .. })));
    }
}
