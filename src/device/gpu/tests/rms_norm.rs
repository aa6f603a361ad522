//! The norm of rows, and their selection, against the CPU's.

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::{minimal, near, random};
use crate::device::Compute;
use crate::device::cpu::Cpu;

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
