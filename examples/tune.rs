use pleach::WeightName;
use pleach::adapter::FloatDelta;
use pleach::device::cpu::{SimdLevel, ceiling, delta_apply};
use pleach::lattice::*;
use rand::{Rng, SeedableRng, rngs::StdRng};
use rayon::prelude::*;
use std::time::Instant;
fn main() {
    let layers: usize = std::env::args().nth(1).map_or(16, |s| s.parse().unwrap());
    let tiny = layers == 0;
    let layers = layers.max(1);
    let threads: usize = std::env::args().nth(2).map_or(2, |s| s.parse().unwrap());
    let qv = std::env::args().nth(3).is_some();
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| run(layers, qv, tiny));
}
fn run(layers: usize, qv: bool, tiny: bool) {
    let shapes: Vec<(usize, usize)> = if tiny {
        vec![(128, 2048), (128, 2048)]
    } else if qv {
        vec![(2048, 2048), (512, 2048)]
    } else {
        vec![(2048, 2048), (512, 2048), (512, 2048), (2048, 2048), (8192, 2048), (8192, 2048), (2048, 8192)]
    };
    struct Q {
        matrix: LatticeMatrix,
        grid: Grid,
    }
    let mut mats: Vec<Q> = (0..layers)
        .flat_map(|_| shapes.clone())
        .collect::<Vec<_>>()
        .into_par_iter()
        .enumerate()
        .map(|(k, (r, c))| {
            let mut rng = StdRng::seed_from_u64(k as u64);
            let mut m = LatticeMatrix::zeros(r, c);
            let (l, s) = m.parts_mut();
            let x: i16 = rng.random_range(-20000..20000);
            l.iter_mut()
                .enumerate()
                .for_each(|(k, l)| l.0 = [x.wrapping_add((k % 5000) as i16).clamp(-20000, 20000); 32]);
            s.fill(1e-5);
            Q { matrix: m, grid: Grid { cols: c, steps: vec![1e-5; r], row_max: vec![26000; r], headroom: 1.25 } }
        })
        .collect();
    let weights: u64 = mats.iter().map(|m| (m.matrix.rows() * m.matrix.cols()) as u64).sum();
    println!("{weights} weights");
    let simd = SimdLevel::detect();
    for rank in [2usize, 4, 8, 16, 64] {
        let make = |seed: u64| -> Vec<CompiledDelta> {
            mats.par_iter()
                .enumerate()
                .map(|(k, m)| {
                    let (r, c) = (m.matrix.rows(), m.matrix.cols());
                    let mut rng = StdRng::seed_from_u64(seed + k as u64);
                    let lora_a = (0..rank * c).map(|_| rng.random_range(-0.02..0.02f32)).collect();
                    let lora_b = (0..rank * r).map(|_| rng.random_range(-0.02..0.02f32)).collect();
                    compile(&WeightName::new("w"), &FloatDelta::LowRank { rank, lora_a, lora_b, scaling: 1.0 }, &m.grid)
                        .unwrap()
                })
                .collect()
        };
        let t = Instant::now();
        let (a, b) = (make(1), make(1000));
        let compile_ms = t.elapsed().as_secs_f64() * 500.0;
        let mut rs = vec![];
        for rep in 0..7 {
            let t = Instant::now();
            let mut v: Vec<&mut [Lane]> = mats.iter_mut().map(|m| m.matrix.parts_mut().0).collect();
            ceiling::read_modify_write(simd, &mut v);
            let rmw = t.elapsed().as_secs_f64();
            let t = Instant::now();
            ceiling::integer_multiply_add(simd, weights * rank as u64 * 2);
            let mul = t.elapsed().as_secs_f64();
            let (x, y) = if rep % 2 == 0 { (&a, &b) } else { (&b, &a) };
            let t = Instant::now();
            let work = mats
                .iter_mut()
                .zip(x.iter().zip(y))
                .map(|(m, (x, y))| {
                    (
                        &mut m.matrix,
                        vec![Segment { delta: x, sign: Sign::Subtract }, Segment { delta: y, sign: Sign::Add }],
                    )
                })
                .collect();
            delta_apply(simd, work);
            let sw = t.elapsed().as_secs_f64();
            rs.push((sw / rmw.max(mul), sw, rmw, mul));
        }
        rs.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (r, sw, rmw, mul) = rs[3];
        println!(
            "r={rank:2} ratio {r:.2} [{:.2}..{:.2}] switch {:.1} ms rmw {:.1} ms ({:.1} GB/s) mul {:.1} ms ({:.0} GMAC/s)  compile {compile_ms:.0} ms",
            rs[0].0,
            rs[6].0,
            sw * 1e3,
            rmw * 1e3,
            weights as f64 * 4.0 / rmw / 1e9,
            mul * 1e3,
            weights as f64 * rank as f64 * 2.0 / mul / 1e9
        );
    }
}
