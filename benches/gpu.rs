//! The GPU's kernels beside the naive ones, what the device could do at best, and what the CPU of
//! the same machine could.
//!
//! Times are those of the device's own clock where it has one: what a call costs beside them is
//! `pleach bench`'s to say. Every answer is checked first: switches and fingerprints against the
//! CPU's bits, products against sums in f64.
//!
//! The matrices are layers of two models' shapes: on a GPU more than its caches hold, on a software
//! adapter what it can bear.

#![allow(clippy::print_stderr, reason = "a bench speaks to people")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};
use pleach::WeightName;
use pleach::adapter::FloatDelta;
use pleach::base::BaseModel;
use pleach::device::cpu::Cpu;
use pleach::device::gpu::{Gpu, GpuBuffer, GpuDeltas, GpuMatrix, GpuOptions, naive};
use pleach::device::{Ceilings, Compute, Device, NodeRows, PassTimes, Product};
use pleach::lattice::{
    DEFAULT_HEADROOM, Grid, LatticeMatrix, MatrixId, NodeDeltas, SignedDelta, compile, quantise,
};
use pleach::testing::measures;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const RANKS: [usize; 4] = [2, 8, 16, 64];
const TOKENS: [usize; 2] = [64, 256];
/// Those that are run once where nothing is measured.
const FEW_RANKS: [usize; 2] = [2, 64];
const FEW_TOKENS: [usize; 1] = [64];
/// Users who decode together.
const USERS: [usize; 2] = [1, 32];
/// Widest side of a matrix.
const WIDEST: usize = 8192;

type Group<'a> = BenchmarkGroup<'a, WallTime>;

struct Layers {
    host: Vec<LatticeMatrix>,
    grids: Vec<Grid>,
    there: Vec<GpuMatrix>,
    weights: u64,
}

impl Layers {
    /// Whole layers of SmolLM2-135M, and two of the matrices of layers of Llama-3.2-1B.
    fn new(gpu: &Gpu, small_layers: usize, large_layers: usize) -> Self {
        let kinds: [(&str, usize, &[&str]); 2] = [
            ("smollm2-135m", small_layers, &["_proj.weight"]),
            ("llama-3.2-1b", large_layers, &["q_proj.weight", "gate_proj.weight"]),
        ];
        let (mut host, mut grids) = (Vec::new(), Vec::new());
        for (shapes, layers, modules) in kinds {
            let base = BaseModel::made(shapes).expect("a known shape");
            let wanted = |name: &str| {
                let layer = name
                    .strip_prefix("model.layers.")
                    .and_then(|rest| rest.split('.').next()?.parse().ok());
                layer.is_some_and(|layer: usize| layer < layers)
                    && modules.iter().any(|module| name.ends_with(module))
            };
            for (name, info) in base.weights().filter(|(name, _)| wanted(name.as_str())) {
                let read = |rows, out: &mut [f32]| base.read_rows(name, rows, out);
                let (matrix, grid) =
                    quantise(name, info.rows(), info.cols(), DEFAULT_HEADROOM, read)
                        .expect("finite");
                host.push(matrix);
                grids.push(grid);
            }
        }
        let weights = grids.iter().map(|grid| (grid.rows() * grid.cols) as u64).sum();
        let mut layers = Self { host, grids, there: Vec::new(), weights };
        layers.upload(gpu);
        layers
    }

    /// Moves the weights to the GPU as the CPU has them.
    fn upload(&mut self, gpu: &Gpu) {
        self.there.clear();
        self.there.extend(
            self.host.iter().map(|matrix| gpu.upload_matrix(matrix.clone()).expect("memory")),
        );
    }

    fn adapter(&self, rank: usize, seed: u64) -> Arc<NodeDeltas> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut random =
            |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-0.02..0.02)).collect() };
        let compiled = self.grids.iter().enumerate().map(|(k, grid)| {
            let (lora_a, lora_b) = (random(rank * grid.cols), random(rank * grid.rows()));
            let delta = FloatDelta::LowRank { rank, lora_a, lora_b, scaling: 1.0 };
            (MatrixId(k), compile(&WeightName::new(format!("m{k}")), &delta, grid).expect("fits"))
        });
        Arc::new(NodeDeltas::new(compiled))
    }
}

/// Times `run`, which returns its milliseconds.
fn time(group: &mut Group, name: &str, mut run: impl FnMut() -> f64) {
    group.bench_function(name, |bencher| {
        // Criterion waits for a sum to grow: no time is nothing.
        bencher.iter_custom(|turns| {
            (0..turns).map(|_| Duration::from_secs_f64(run().max(1e-6) / 1e3)).sum()
        });
    });
}

/// Milliseconds by the device's clock, or else of the whole call.
fn milliseconds(run: impl FnOnce() -> Option<f64>) -> f64 {
    let start = Instant::now();
    run().unwrap_or_else(|| start.elapsed().as_secs_f64() * 1e3)
}

type Apply = fn(&Gpu, &mut [GpuMatrix], &[SignedDelta<&GpuDeltas>]) -> pleach::Result<PassTimes>;

/// From leaf to leaf, all matrices.
fn switches(criterion: &mut Criterion, gpu: &Gpu, cpu: &Cpu, layers: &mut Layers) {
    let mut group = criterion.benchmark_group("switch");
    group.throughput(Throughput::Bytes(layers.weights * 4));
    time(&mut group, "ceiling_memory/gpu", || {
        gpu.read_modify_write_ms(&mut layers.there.iter_mut().collect::<Vec<_>>())
            .expect("the GPU works")
    });
    time(&mut group, "ceiling_memory/cpu", || {
        cpu.read_modify_write_ms(&mut layers.host.iter_mut().collect::<Vec<_>>())
            .expect("the CPU works")
    });
    for &rank in if measures() { &RANKS[..] } else { &FEW_RANKS } {
        let products = layers.weights * 2 * rank as u64;
        time(&mut group, &format!("ceiling_products/gpu/r{rank}"), || {
            gpu.integer_products_ms(products).expect("the GPU works")
        });
        time(&mut group, &format!("ceiling_products/cpu/r{rank}"), || {
            cpu.integer_products_ms(products).expect("the CPU works")
        });
        let deltas = [1, 2].map(|seed| layers.adapter(rank, seed));
        let uploaded = deltas.each_ref().map(|deltas| gpu.upload_deltas(deltas).expect("memory"));
        gpu.finish_uploads(&uploaded.iter().collect::<Vec<_>>()).expect("the GPU works");
        let mut hosts = deltas.iter().collect::<Vec<_>>();
        time(&mut group, &format!("cpu/r{rank}"), || {
            let deltas = [SignedDelta::subtracted(hosts[0]), SignedDelta::added(hosts[1])];
            hosts.swap(0, 1);
            milliseconds(|| {
                cpu.prepare_and_apply(&mut layers.host, &deltas).expect("the CPU works").pass_ms
            })
        });
        let ways: [(&str, Apply); 2] =
            [("fused", Gpu::prepare_and_apply), ("naive", naive::delta_apply)];
        // On a software adapter the last would take as long as all others together.
        let naive = usize::from(!gpu.info().is_software() || rank <= 16);
        for (name, apply) in ways.into_iter().take(1 + naive) {
            let mut uploaded = uploaded.iter().collect::<Vec<_>>();
            let mut switch = |there: &mut [GpuMatrix]| {
                let deltas =
                    [SignedDelta::subtracted(uploaded[0]), SignedDelta::added(uploaded[1])];
                uploaded.swap(0, 1);
                milliseconds(|| apply(gpu, there, &deltas).expect("the GPU works").pass_ms)
            };
            check_switch(gpu, cpu, layers, &deltas, &mut switch);
            time(&mut group, &format!("{name}/r{rank}"), || switch(&mut layers.there));
        }
    }
    group.finish();
}

/// There and back, every bit.
fn check_switch(
    gpu: &Gpu,
    cpu: &Cpu,
    layers: &mut Layers,
    [a, b]: &[Arc<NodeDeltas>; 2],
    switch: &mut dyn FnMut(&mut [GpuMatrix]) -> f64,
) {
    layers.upload(gpu);
    for (left, entered) in [(a, b), (b, a)] {
        switch(&mut layers.there);
        let deltas = [SignedDelta::subtracted(left), SignedDelta::added(entered)];
        cpu.prepare_and_apply(&mut layers.host, &deltas).expect("the CPU works");
        check_bits(gpu, cpu, layers);
    }
}

fn check_bits(gpu: &Gpu, cpu: &Cpu, layers: &Layers) {
    let found = gpu.fingerprint(&layers.there.iter().collect::<Vec<_>>()).expect("the GPU works");
    let expected = cpu.fingerprint(&layers.host.iter().collect::<Vec<_>>()).expect("the CPU works");
    assert!(found == expected, "the GPU has other bits than the CPU");
}

/// `tokens` rows times every matrix. Each has an output of its own, so that none waits for another.
struct Products {
    tokens: usize,
    x: Vec<f32>,
    input: GpuBuffer,
    outputs: Vec<GpuBuffer>,
}

type Multiply<'f> = &'f dyn Fn(&Gpu, &GpuBuffer, usize, Product<'_, Gpu>);

fn tiled(gpu: &Gpu, x: &GpuBuffer, tokens: usize, product: Product<'_, Gpu>) {
    gpu.matmul(x, tokens, [product], &Default::default());
}

impl Products {
    fn new(gpu: &Gpu, layers: &Layers, tokens: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(3);
        let x: Vec<f32> = (0..tokens * WIDEST).map(|_| rng.random_range(-1.0..1.0)).collect();
        let input = gpu.upload_buffer(x.clone()).expect("memory");
        let outputs = layers
            .host
            .iter()
            .map(|matrix| gpu.alloc(tokens * matrix.rows()).expect("memory"))
            .collect();
        Self { tokens, x, input, outputs }
    }

    fn run(&mut self, gpu: &Gpu, layers: &Layers, multiply: Multiply<'_>) -> f64 {
        milliseconds(|| {
            for (k, (weight, out)) in layers.there.iter().zip(&mut self.outputs).enumerate() {
                let id = MatrixId(k);
                let product = Product { weight, id, bias: None, out, accumulate: false };
                multiply(gpu, &self.input, self.tokens, product);
            }
            gpu.finish().expect("the GPU works").pass_ms
        })
    }

    /// Some sums of every matrix.
    fn check(&mut self, gpu: &Gpu, layers: &Layers, multiply: Multiply<'_>) {
        self.run(gpu, layers, multiply);
        for (matrix, out) in layers.host.iter().zip(&self.outputs) {
            let y = gpu.read(out, 0..self.tokens * matrix.rows()).expect("the GPU works");
            let rows = self.x.chunks_exact(matrix.cols()).zip(y.chunks_exact(matrix.rows()));
            for (x, y) in rows.take(self.tokens).step_by(7) {
                for (i, y) in y.iter().enumerate().step_by(29) {
                    let terms =
                        matrix.row(i).iter().zip(x).map(|(&n, &x)| f64::from(n) * f64::from(x));
                    let (sum, size) =
                        terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                    let step = f64::from(matrix.steps()[i]);
                    assert!(
                        (f64::from(*y) - sum * step).abs() <= 1e-5 * size * step,
                        "row {i}: {y}, not {}",
                        sum * step
                    );
                }
            }
        }
    }
}

/// One token: each weight is read for one product.
fn decode(criterion: &mut Criterion, gpu: &Gpu, cpu: &Cpu, layers: &Layers) {
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Bytes(layers.weights * 2));
    let there: Vec<_> = layers.there.iter().collect();
    let host: Vec<_> = layers.host.iter().collect();
    time(&mut group, "ceiling_read/gpu", || gpu.read_ms(&there).expect("the GPU works"));
    time(&mut group, "ceiling_read/cpu", || cpu.read_ms(&host).expect("the CPU works"));
    let mut products = Products::new(gpu, layers, 1);
    for (name, multiply) in [("matvec", &tiled as Multiply<'_>), ("naive", &naive::matvec)] {
        products.check(gpu, layers, multiply);
        time(&mut group, name, || products.run(gpu, layers, multiply));
    }
    group.finish();
}

/// A prompt: each weight is read for many products, two operations each.
fn prefill(criterion: &mut Criterion, gpu: &Gpu, cpu: &Cpu, layers: &Layers) {
    let mut group = criterion.benchmark_group("prefill");
    for &tokens in if measures() { &TOKENS[..] } else { &FEW_TOKENS } {
        let count = layers.weights * tokens as u64;
        group.throughput(Throughput::Elements(2 * count));
        time(&mut group, &format!("ceiling_products/gpu/{tokens}"), || {
            gpu.float_products_ms(count).expect("the GPU works")
        });
        time(&mut group, &format!("ceiling_products/cpu/{tokens}"), || {
            cpu.float_products_ms(count).expect("the CPU works")
        });
        let mut products = Products::new(gpu, layers, tokens);
        for (name, multiply) in [("matmul", &tiled as Multiply<'_>), ("naive", &naive::matmul)] {
            products.check(gpu, layers, multiply);
            time(&mut group, &format!("{name}/{tokens}"), || products.run(gpu, layers, multiply));
        }
    }
    group.finish();
}

/// A token of every user: merged, and with a leaf of each user's own beside the weights.
fn unmerged(criterion: &mut Criterion, gpu: &Gpu, cpu: &Cpu, layers: &Layers) {
    let mut group = criterion.benchmark_group("unmerged");
    for users in USERS {
        let mut products = Products::new(gpu, layers, users);
        time(&mut group, &format!("merged/{users}"), || products.run(gpu, layers, &tiled));
        for rank in FEW_RANKS {
            let leaves: Vec<_> = (0..users).map(|user| layers.adapter(rank, user as u64)).collect();
            let there: Vec<_> =
                leaves.iter().map(|leaf| gpu.upload_deltas(leaf).expect("memory")).collect();
            let nodes: Vec<_> = rows_of::<Gpu>(&there).collect();
            let unmerged = gpu.unmerged(&nodes, |_| true).expect("memory");
            let beside = |gpu: &Gpu, x: &GpuBuffer, rows, product: Product<'_, Gpu>| {
                gpu.matmul(x, rows, [product], &unmerged);
            };
            time(&mut group, &format!("r{rank}/{users}"), || products.run(gpu, layers, &beside));
            check_unmerged(gpu, cpu, layers, &products, &leaves);
        }
    }
    group.finish();
}

/// A row for each of the deltas.
fn rows_of<D: Device>(deltas: &[D::Deltas]) -> impl Iterator<Item = NodeRows<'_, D>> {
    let row = |(row, deltas)| NodeRows { rows: row..row + 1, deltas };
    deltas.iter().enumerate().map(row)
}

/// Every output that is there, against the CPU's.
fn check_unmerged(
    gpu: &Gpu,
    cpu: &Cpu,
    layers: &Layers,
    products: &Products,
    leaves: &[Arc<NodeDeltas>],
) {
    let rows = leaves.len();
    let nodes: Vec<_> = rows_of::<Cpu>(leaves).collect();
    let unmerged = cpu.unmerged(&nodes, |_| true).expect("memory");
    for (k, (weight, found)) in layers.host.iter().zip(&products.outputs).enumerate() {
        let len = rows * weight.rows();
        let x = cpu.upload_buffer(products.x[..rows * weight.cols()].to_vec()).expect("memory");
        let mut out = cpu.alloc(len).expect("memory");
        let id = MatrixId(k);
        let product = Product { weight, id, bias: None, out: &mut out, accumulate: false };
        cpu.matmul(&x, rows, [product], &unmerged);
        let size = out.iter().fold(0f32, |size, y| size.max(y.abs()));
        let found = gpu.read(found, 0..len).expect("the GPU works");
        let far = found.iter().zip(&out[..]).any(|(a, b)| (a - b).abs() > 1e-4 * size);
        assert!(!far, "matrix {k}: the GPU's products are not the CPU's");
    }
}

fn fingerprints(criterion: &mut Criterion, gpu: &Gpu, cpu: &Cpu, layers: &Layers) {
    check_bits(gpu, cpu, layers);
    let mut group = criterion.benchmark_group("fingerprint");
    group.throughput(Throughput::Bytes(layers.weights * 2));
    let there: Vec<_> = layers.there.iter().collect();
    let host: Vec<_> = layers.host.iter().collect();
    time(&mut group, "gpu", || {
        milliseconds(|| {
            gpu.fingerprint(&there).expect("the GPU works");
            None
        })
    });
    time(&mut group, "cpu", || {
        milliseconds(|| {
            cpu.fingerprint(&host).expect("the CPU works");
            None
        })
    });
    group.finish();
}

fn main() {
    let gpu = match Gpu::open(&GpuOptions::default()) {
        Ok(gpu) => gpu,
        Err(error) => return eprintln!("nothing is measured: {error}"),
    };
    let cpu = Cpu::new(None).expect("threads");
    eprintln!("{}; {}", gpu.describe(), cpu.describe());
    let software = gpu.info().is_software();
    let criterion = Criterion::default().sample_size(10).nresamples(1000).without_plots();
    let criterion = criterion
        .warm_up_time(Duration::from_millis(1))
        .measurement_time(Duration::from_millis(300));
    let mut criterion = criterion.configure_from_args();
    let (small_layers, large_layers) = match (measures(), software) {
        (false, _) => (1, 0),
        (true, true) => (2, 1),
        (true, false) => (30, 8),
    };
    let mut layers = Layers::new(&gpu, small_layers, large_layers);
    switches(&mut criterion, &gpu, &cpu, &mut layers);
    layers.upload(&gpu);
    decode(&mut criterion, &gpu, &cpu, &layers);
    unmerged(&mut criterion, &gpu, &cpu, &layers);
    fingerprints(&mut criterion, &gpu, &cpu, &layers);
    if software {
        layers = Layers::new(&gpu, 1, 0);
    }
    prefill(&mut criterion, &gpu, &cpu, &layers);
    criterion.final_summary();
}
