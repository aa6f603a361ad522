//! The switch kernel on two layers of Llama-3.2-1B's shapes, sibling to sibling, beside its two
//! ceilings.
//!
//! The answer is checked first: sampled rows against the definition, and there and back makes the
//! same bits.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pleach::WeightName;
use pleach::adapter::FloatDelta;
use pleach::base::BaseModel;
use pleach::device::cpu::{Cpu, ceiling, delta_apply};
use pleach::lattice::{
    CompiledDelta, DEFAULT_HEADROOM, Grid, Lane, LatticeMatrix, SignedDelta, compile, quantise,
};
use pleach::testing::measures;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const LAYERS: [&str; 2] = ["model.layers.0.", "model.layers.1."];
const RANKS: [usize; 5] = [2, 4, 8, 16, 64];
/// Those that are run once where nothing is measured.
const FEW_RANKS: [usize; 2] = [2, 64];

struct Layer {
    name: WeightName,
    matrix: LatticeMatrix,
    grid: Grid,
}

fn layers(base: &BaseModel) -> Vec<Layer> {
    let wanted = &LAYERS[..if measures() { 2 } else { 1 }];
    let chosen = base.weights().filter(|(name, info)| {
        info.shape.len() == 2 && wanted.iter().any(|layer| name.as_str().starts_with(layer))
    });
    chosen
        .map(|(name, info)| {
            let read = |rows, out: &mut [f32]| base.read_rows(name, rows, out);
            let (matrix, grid) =
                quantise(name, info.rows(), info.cols(), DEFAULT_HEADROOM, read).expect("finite");
            Layer { name: name.clone(), matrix, grid }
        })
        .collect()
}

fn adapter(layers: &[Layer], rank: usize, seed: u64) -> Vec<CompiledDelta> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut random =
        |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-0.02..0.02)).collect() };
    let compiled = layers.iter().map(|Layer { name, grid, .. }| {
        let (lora_a, lora_b) = (random(rank * grid.cols), random(rank * grid.rows()));
        compile(name, &FloatDelta::LowRank { rank, lora_a, lora_b, scaling: 1.0 }, grid)
            .expect("fits")
    });
    compiled.collect()
}

/// From the node of `a` to that of `b`.
fn switch(cpu: &Cpu, layers: &mut [Layer], a: &[CompiledDelta], b: &[CompiledDelta]) {
    let deltas =
        a.iter().zip(b).map(|(a, b)| vec![SignedDelta::subtracted(a), SignedDelta::added(b)]);
    let work = layers.iter_mut().map(|layer| &mut layer.matrix).zip(deltas).collect();
    delta_apply(cpu, work);
}

/// Goes there and back, comparing every hundredth row with the definition.
fn check(cpu: &Cpu, layers: &mut [Layer], a: &[CompiledDelta], b: &[CompiledDelta]) {
    let before: Vec<_> = layers.iter().map(|layer| layer.matrix.clone()).collect();
    switch(cpu, layers, a, b);
    for (((layer, before), a), b) in layers.iter().zip(&before).zip(a).zip(b) {
        for i in (0..before.rows()).step_by(100) {
            for (j, (&n, &was)) in layer.matrix.row(i).iter().zip(before.row(i)).enumerate() {
                assert_eq!(
                    i32::from(n),
                    i32::from(was) - a.q(i, j) + b.q(i, j),
                    "{} ({i}, {j})",
                    layer.name
                );
            }
        }
    }
    switch(cpu, layers, b, a);
    assert!(layers.iter().zip(&before).all(|(layer, before)| layer.matrix == *before));
}

fn bench(criterion: &mut Criterion) {
    let cpu = Cpu::new(None).expect("threads");
    let base = BaseModel::made("llama-3.2-1b").expect("a known shape");
    let mut layers = layers(&base);
    let weights: u64 =
        layers.iter().map(|layer| (layer.grid.rows() * layer.grid.cols) as u64).sum();
    let mut group = criterion.benchmark_group("switch");
    group.sample_size(20).throughput(Throughput::Bytes(weights * 4));
    group.bench_function("ceiling/memory", |bencher| {
        bencher.iter(|| {
            let mut lanes: Vec<&mut [Lane]> =
                layers.iter_mut().map(|layer| layer.matrix.parts_mut().0).collect();
            cpu.install(|| ceiling::read_modify_write(cpu.simd(), black_box(&mut lanes)));
        });
    });
    for &rank in if measures() { &RANKS[..] } else { &FEW_RANKS } {
        let [mut a, mut b] = [1, 2].map(|seed| adapter(&layers, rank, seed));
        check(&cpu, &mut layers, &a, &b);
        group.bench_function(format!("ceiling/multiply/r{rank}"), |bencher| {
            bencher.iter(|| {
                cpu.install(|| ceiling::integer_multiply_add(cpu.simd(), weights * 2 * rank as u64))
            });
        });
        group.bench_function(format!("all/r{rank}"), |bencher| {
            bencher.iter(|| {
                switch(&cpu, &mut layers, &a, &b);
                std::mem::swap(&mut a, &mut b);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
