//! The products of decode, of decode in batches and of prefill. Decode stands beside the machine's
//! ceiling: a plain read of the same bytes by the same threads; a batch beside the float products
//! of one row, too. Every answer is checked before it is timed.

#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pleach::device::cpu::{Cpu, FloatBuffer, Unmerged, ceiling};
use pleach::device::{Compute, Product};
use pleach::lattice::{LatticeMatrix, MatrixId};
use pleach::testing::measures;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;

const SHAPES: [(usize, usize); 4] = [(576, 576), (1536, 576), (2048, 2048), (8192, 2048)];
/// Weights in one decode measurement: more than any private cache holds.
const DECODE_WEIGHTS: usize = 64 << 20;
/// The products of a layer of SmolLM2-135M, of whose 30 layers a batch is decoded.
const LAYER: [(usize, usize); 7] =
    [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)];
const LAYERS: usize = 30;
/// Rows of a decode batch.
const BATCHES: [usize; 10] = [1, 4, 6, 7, 8, 12, 16, 24, 32, 64];

fn random_matrix(rng: &mut StdRng, rows: usize, cols: usize) -> LatticeMatrix {
    let mut matrix = LatticeMatrix::zeros(rows, cols);
    let stride = matrix.stride();
    for row in matrix.integers_mut().chunks_exact_mut(stride) {
        row[..cols].fill_with(|| rng.random_range(-26_000..=26_000));
    }
    matrix.parts_mut().1.fill(1e-5);
    matrix
}

fn random_rows(rng: &mut StdRng, len: usize) -> FloatBuffer {
    FloatBuffer::from(&(0..len).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>()[..])
}

fn check(matrix: &LatticeMatrix, x: &[f32], y: &[f32]) {
    for (x, y) in x.chunks_exact(matrix.cols()).zip(y.chunks_exact(matrix.rows())) {
        for (i, y) in y.iter().enumerate().step_by(7) {
            let terms = matrix.row(i).iter().zip(x).map(|(&n, &x)| f64::from(n) * f64::from(x));
            let (sum, size) =
                terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            let step = f64::from(matrix.steps()[i]);
            assert!(
                (f64::from(*y) - sum * step).abs() <= 1e-6 * size * step,
                "row {i}: {y}, not {}",
                sum * step
            );
        }
    }
}

fn multiply(
    cpu: &Cpu,
    matrix: &LatticeMatrix,
    x: &FloatBuffer,
    tokens: usize,
    y: &mut FloatBuffer,
) {
    let merged = Unmerged::default();
    cpu.matmul(
        x,
        tokens,
        [Product { weight: matrix, id: MatrixId(0), bias: None, out: y, accumulate: false }],
        &merged,
    );
}

fn read_all(cpu: &Cpu, matrices: &[LatticeMatrix]) -> u64 {
    cpu.install(|| {
        matrices
            .par_iter()
            .flat_map(|matrix| {
                bytemuck::cast_slice::<i16, u64>(matrix.integers()).par_chunks(1 << 12)
            })
            .map(|chunk| {
                let mut sums = [0u64; 32];
                for words in chunk.chunks_exact(32) {
                    sums.iter_mut().zip(words).for_each(|(sum, &x)| *sum = sum.wrapping_add(x));
                }
                sums.into_iter().fold(0, u64::wrapping_add)
            })
            .reduce(|| 0, u64::wrapping_add)
    })
}

fn matmul(c: &mut Criterion) {
    let cpu = Cpu::new(None).expect("a thread pool");
    let mut rng = StdRng::seed_from_u64(1);
    for (rows, cols) in SHAPES {
        let count = if measures() { DECODE_WEIGHTS / (rows * cols) } else { 1 };
        let matrices: Vec<_> = (0..count).map(|_| random_matrix(&mut rng, rows, cols)).collect();
        let bytes = (count * rows * cols * 2) as u64;
        let shape = format!("{rows}x{cols}");
        let mut group = c.benchmark_group("decode");
        group.sample_size(20).throughput(Throughput::Bytes(bytes));
        let x = random_rows(&mut rng, cols);
        let mut y = FloatBuffer::zeros(rows);
        multiply(&cpu, &matrices[0], &x, 1, &mut y);
        check(&matrices[0], &x, &y);
        group.bench_function(BenchmarkId::new("read_ceiling", &shape), |b| {
            b.iter(|| black_box(read_all(&cpu, &matrices)));
        });
        group.bench_function(BenchmarkId::new("matvec", &shape), |b| {
            b.iter(|| {
                cpu.submit(|| {
                    matrices.iter().for_each(|matrix| multiply(&cpu, matrix, &x, 1, &mut y))
                })
            });
        });
        group.finish();

        let mut group = c.benchmark_group("prefill");
        group.sample_size(20);
        for tokens in [64, 512] {
            let x = random_rows(&mut rng, tokens * cols);
            let mut y = FloatBuffer::zeros(tokens * rows);
            multiply(&cpu, &matrices[0], &x, tokens, &mut y);
            check(&matrices[0], &x, &y);
            group.throughput(Throughput::Elements((2 * tokens * rows * cols) as u64));
            group.bench_function(BenchmarkId::new(format!("flops_{tokens}_tokens"), &shape), |b| {
                b.iter(|| multiply(&cpu, &matrices[0], &x, tokens, &mut y));
            });
        }
        group.finish();
    }
}

/// All matrices of a model's layers, on one thread and on all: tokens a second for every number of
/// rows.
fn batches(c: &mut Criterion) {
    let mut rng = StdRng::seed_from_u64(2);
    let layers = if measures() { LAYERS } else { 1 };
    let shapes = (0..layers).flat_map(|_| LAYER);
    let matrices: Vec<_> = shapes.map(|(rows, cols)| random_matrix(&mut rng, rows, cols)).collect();
    let weights: usize = matrices.iter().map(|matrix| matrix.rows() * matrix.cols()).sum();
    let (most, widest) = (BATCHES[BATCHES.len() - 1], 1536);
    let x = random_rows(&mut rng, most * widest);
    let mut y = FloatBuffer::zeros(most * widest);
    for (threads, name) in [(Some(1), "one_thread"), (None, "all_threads")] {
        let cpu = Cpu::new(threads).expect("a thread pool");
        let mut group = c.benchmark_group(format!("batch_{name}"));
        group.sample_size(10).warm_up_time(Duration::from_millis(500));
        group.measurement_time(Duration::from_secs(2));
        group.throughput(Throughput::Bytes(2 * weights as u64));
        group.bench_function("read_ceiling", |b| {
            b.iter(|| black_box(read_all(&cpu, &matrices)));
        });
        group.throughput(Throughput::Elements(1));
        group.bench_function("products_ceiling_of_a_row", |b| {
            b.iter(|| {
                cpu.install(|| ceiling::float_multiply_add(cpu.simd(), weights as u64));
            });
        });
        for tokens in BATCHES {
            for matrix in &matrices[..LAYER.len()] {
                multiply(&cpu, matrix, &x, tokens, &mut y);
                check(matrix, &x[..tokens * matrix.cols()], &y);
            }
            group.throughput(Throughput::Elements(tokens as u64));
            group.bench_function(BenchmarkId::new("rows", tokens), |b| {
                b.iter(|| {
                    cpu.submit(|| {
                        matrices.iter().for_each(|w| multiply(&cpu, w, &x, tokens, &mut y))
                    })
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, batches, matmul);
criterion_main!(benches);
