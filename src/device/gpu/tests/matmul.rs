//! The products and the embedding against the CPU's, which are checked against sums in f64.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::device::Product;
use crate::device::cpu::Cpu;
use crate::device::gpu::matmul::{Tiling, matmul};
use crate::device::gpu::naive;
use crate::lattice::MatrixId;

fn random(rng: &mut StdRng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn random_matrix(rng: &mut StdRng, rows: usize, cols: usize) -> LatticeMatrix {
    let mut matrix = LatticeMatrix::zeros(rows, cols);
    let stride = matrix.stride();
    for row in matrix.integers_mut().chunks_exact_mut(stride) {
        row[..cols].fill_with(|| rng.random_range(i16::MIN..=i16::MAX));
    }
    matrix.parts_mut().1.fill_with(|| rng.random_range(1e-5..1e-4));
    matrix
}

/// Which kernels multiply.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kernels {
    Chosen,
    NaiveMatvec,
    NaiveMatmul,
}

/// One product: a matrix, its bias, what is in the output before, and whether that is added to.
struct Case {
    weight: LatticeMatrix,
    bias: Option<Vec<f32>>,
    before: Vec<f32>,
    accumulate: bool,
}

impl Case {
    fn random(rng: &mut StdRng, outputs: usize, inputs: usize, tokens: usize) -> Self {
        let bias = rng.random_bool(0.5).then(|| random(rng, outputs));
        let weight = random_matrix(rng, outputs, inputs);
        Self {
            weight,
            bias,
            before: random(rng, tokens * outputs),
            accumulate: rng.random_bool(0.5),
        }
    }
}

/// All outputs of the products of one x, by any device.
fn multiply<D: Compute, const N: usize>(
    device: &D,
    x: &[f32],
    cases: &[Case; N],
    run: impl Fn(&D, &D::Buffer, [Product<'_, D>; N]),
) -> Vec<Vec<f32>> {
    let x = device.upload_buffer(x.to_vec()).unwrap();
    let weights = cases.each_ref().map(|case| device.upload_matrix(case.weight.clone()).unwrap());
    let biases = cases
        .each_ref()
        .map(|case| case.bias.clone().map(|bias| device.upload_buffer(bias).unwrap()));
    let mut outs = cases.each_ref().map(|case| device.upload_buffer(case.before.clone()).unwrap());
    let mut out = outs.iter_mut();
    run(
        device,
        &x,
        std::array::from_fn(|i| Product {
            weight: &weights[i],
            id: MatrixId(0),
            bias: biases[i].as_ref(),
            out: out.next().unwrap(),
            accumulate: cases[i].accumulate,
        }),
    );
    let read = |(out, case): (_, &Case)| device.read(out, 0..case.before.len()).unwrap();
    outs.iter().zip(cases).map(read).collect()
}

/// Compares with the CPU. Each rounding errs by a part of the sum of the terms' sizes, and some
/// `inputs` of them wander like a random walk: √inputs, but at least 8, units in the last place of
/// that sum.
fn check<const N: usize>(
    gpu: &Gpu,
    rng: &mut StdRng,
    outputs: [usize; N],
    inputs: usize,
    tokens: usize,
    by: Kernels,
) {
    let x = random(rng, tokens * inputs);
    let cases = outputs.map(|outputs| Case::random(rng, outputs, inputs, tokens));
    let expected = multiply(&Cpu::new(Some(2)).unwrap(), &x, &cases, |cpu, x, products| {
        cpu.matmul(x, tokens, products, &Default::default())
    });
    let found = multiply(gpu, &x, &cases, |gpu, x, products| match by {
        Kernels::Chosen => gpu.matmul(x, tokens, products, &Default::default()),
        Kernels::NaiveMatvec => {
            products.into_iter().for_each(|product| naive::matvec(gpu, x, tokens, product))
        }
        Kernels::NaiveMatmul => {
            products.into_iter().for_each(|product| naive::matmul(gpu, x, tokens, product))
        }
    });
    for (case, (found, expected)) in cases.iter().zip(found.iter().zip(&expected)) {
        let width = case.weight.rows();
        for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
            let (t, i) = (at / width, at % width);
            let step = f64::from(case.weight.steps()[i]);
            let terms = case.weight.row(i).iter().zip(&x[t * inputs..]);
            let size: f64 =
                terms.map(|(&n, &x)| (f64::from(n) * f64::from(x) * step).abs()).sum::<f64>() + 2.0;
            let bound = (inputs as f64).sqrt().max(8.0) * f64::from(f32::EPSILON) * size;
            assert!(
                (f64::from(*found) - f64::from(*expected)).abs() <= bound,
                "{by:?}, {width}x{inputs}, {tokens} tokens: output {i} of token {t} is {found}, not {expected} ± {bound}"
            );
        }
    }
}

fn devices(max_binding_bytes: Option<u64>) -> Option<[Gpu; 2]> {
    let whole = gpu(&GpuOptions { max_binding_bytes, ..GpuOptions::default() })?;
    let minimal = gpu(&GpuOptions { minimal: true, max_binding_bytes, ..GpuOptions::default() })?;
    Some([whole, minimal])
}

#[test]
fn matmul_and_matvec_equal_the_cpus_for_odd_shapes() {
    let Some(gpus) = devices(None) else { return };
    let mut rng = StdRng::seed_from_u64(1);
    for gpu in &gpus {
        for inputs in [1, 3, 4, 12, 16, 31, 33, 64, 70, 101] {
            for tokens in [1, 2, 3, 4, 5, 7, 8, 9, 13, 64, 65, 70] {
                let [a, b, c] = [1..=9, 1..=70, 60..=130].map(|range| rng.random_range(range));
                check(gpu, &mut rng, [a, b, c], inputs, tokens, Kernels::Chosen);
            }
        }
        for (outputs, inputs, tokens) in [
            (576, 576, 1),
            (192, 576, 6),
            (97, 2048, 1),
            (100, 2050, 2),
            (49, 2064, 4),
            (130, 576, 33),
            (65, 1100, 129),
        ] {
            check(gpu, &mut rng, [outputs], inputs, tokens, Kernels::Chosen);
        }
    }
}

#[test]
fn products_of_split_matrices_equal_the_cpus() {
    let Some(gpus) = devices(Some(4096)) else { return };
    let mut rng = StdRng::seed_from_u64(2);
    for gpu in &gpus {
        for tokens in [1, 3, 20] {
            check(gpu, &mut rng, [150, 21], 70, tokens, Kernels::Chosen);
            check(gpu, &mut rng, [9], 1999, tokens, Kernels::Chosen);
        }
    }
}

#[test]
fn more_outputs_than_a_dispatch_holds_in_one_dimension_are_all_made() {
    let Some(gpus) = devices(None) else { return };
    let mut rng = StdRng::seed_from_u64(3);
    // 16 outputs to a workgroup, and more than 65,535 of them.
    check(&gpus[1], &mut rng, [1_048_577], 2, 3, Kernels::Chosen);
    check(&gpus[1], &mut rng, [70_001], 5, 9, Kernels::Chosen);
}

#[test]
fn the_naive_versions_equal_the_cpu_too() {
    let Some(gpus) = devices(Some(4096)) else { return };
    let mut rng = StdRng::seed_from_u64(4);
    for by in [Kernels::NaiveMatvec, Kernels::NaiveMatmul] {
        for (inputs, tokens) in [(33, 1), (70, 8), (576, 19)] {
            check(&gpus[0], &mut rng, [100, 7], inputs, tokens, by);
        }
    }
}

#[test]
fn a_token_does_not_depend_on_the_others_that_its_kernel_multiplies() {
    let Some([gpu, _]) = devices(None) else { return };
    let mut rng = StdRng::seed_from_u64(5);
    for (outputs, inputs) in [(70, 112), (41, 1091), (33, 2048)] {
        for tokens in [1, 2, 4, 8, 16, 32, 70] {
            let mut case = Case::random(&mut rng, outputs, inputs, tokens);
            (case.bias, case.accumulate) = (None, false);
            let cases = [case];
            let own = random(&mut rng, inputs);
            // Of the kernel for `tokens` rows, with this token alone and at every place among
            // others.
            let tiling = Tiling::of(tokens, inputs);
            let run = |x: &[f32], rows| {
                multiply(&gpu, x, &cases, |gpu, x, products| {
                    matmul(gpu, &tiling, x, rows, &products)
                })
            };
            let alone = run(&own, 1)[0][..outputs].to_vec();
            for place in [0, tokens / 2, tokens - 1] {
                let mut x = random(&mut rng, tokens * inputs);
                // A neighbour that overflowed must not spread.
                x.fill_with(|| if rng.random_bool(0.1) { f32::NAN } else { 1.0 });
                x[place * inputs..][..inputs].copy_from_slice(&own);
                let found = &run(&x, tokens)[0][place * outputs..][..outputs];
                assert_eq!(found, alone, "{outputs}x{inputs}, place {place} of {tokens}");
            }
        }
    }
}

#[test]
fn embed_is_the_cpus_to_the_bit_however_the_table_is_split() {
    let mut rng = StdRng::seed_from_u64(6);
    let cpu = Cpu::new(Some(1)).unwrap();
    for (max_binding_bytes, rows, cols) in
        [(None, 90_u32, 37), (Some(4096), 90, 37), (Some(1024), 256, 1), (None, 300, 576)]
    {
        let Some(gpus) = devices(max_binding_bytes) else { return };
        let table = random_matrix(&mut rng, rows as usize, cols);
        let tokens: Vec<u32> = (0..50).map(|_| rng.random_range(0..rows)).collect();
        let mut expected = cpu.alloc(50 * cols).unwrap();
        cpu.embed((&table, MatrixId(0)), &tokens, &Default::default(), &mut expected);
        for gpu in &gpus {
            let there = gpu.upload_matrix(table.clone()).unwrap();
            let mut out = gpu.alloc(50 * cols + 3).unwrap();
            gpu.embed((&there, MatrixId(0)), &tokens[..20], &Default::default(), &mut out);
            gpu.embed((&there, MatrixId(0)), &tokens, &Default::default(), &mut out);
            assert_eq!(gpu.read(&out, 0..50 * cols).unwrap(), expected[..]);
        }
    }
}
