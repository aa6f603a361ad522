//! What this machine's memory and multipliers allow: the ceilings every bench stands beside.
//!
//! Each runs on the current rayon pool with the instructions of `simd`.

use std::hint::black_box;

use rayon::prelude::*;

use super::SimdLevel;
use super::simd::{CHUNK, Kernel, Simd};
use crate::lattice::{LANES, Lane};

/// Lanes one task passes over: the block size of the switch.
const TASK_LANES: usize = (1 << 18) / LANES;

/// Tasks that multiply, enough for any number of threads to end together.
const TASKS: u32 = 64;

/// Independent chains of products: more than the latency of a multiply-add times the multipliers of
/// any core, so that none waits for itself; with two factors they fit 16 registers.
const CHAINS: usize = 12;

/// Reads, changes and writes every weight once: the floor of a switch. Doing it twice restores the
/// weights.
pub fn read_modify_write(simd: SimdLevel, matrices: &mut [&mut [Lane]]) {
    matrices.par_iter_mut().for_each(|lanes| {
        lanes.par_chunks_mut(TASK_LANES).for_each(|lanes| simd.run(Flip { lanes }));
    });
}

/// Reads every weight once and returns a sum of all bits: the floor of a decoded token.
pub fn read(simd: SimdLevel, matrices: &[&[Lane]]) -> u64 {
    let sum = |lanes: &[Lane]| {
        let mut sum = 0;
        simd.run(Sum { lanes, sum: &mut sum });
        sum
    };
    matrices
        .par_iter()
        .map(|lanes| lanes.par_chunks(TASK_LANES).map(sum).reduce(|| 0, u64::wrapping_add))
        .reduce(|| 0, u64::wrapping_add)
}

/// Multiplies and adds pairs of i16 into i32 from registers, at least `count` products: the
/// arithmetic floor of a switch.
pub fn integer_multiply_add(simd: SimdLevel, count: u64) {
    (0..TASKS).into_par_iter().with_max_len(1).for_each(|_| {
        simd.run(IntegerChains { count: count.div_ceil(TASKS.into()) });
    });
}

/// Multiplies and adds f32 from registers, at least `count` products: the arithmetic ceiling of
/// prefill.
pub fn float_multiply_add(simd: SimdLevel, count: u64) {
    (0..TASKS).into_par_iter().with_max_len(1).for_each(|_| {
        simd.run(FloatChains { count: count.div_ceil(TASKS.into()) });
    });
}

/// Changes one bit of every weight. Plain loops, which the compiler makes vectors of for each level.
struct Flip<'a> {
    lanes: &'a mut [Lane],
}

impl Kernel for Flip<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for lane in self.lanes {
            for n in &mut lane.0 {
                *n ^= 1;
            }
        }
    }
}

struct Sum<'a> {
    lanes: &'a [Lane],
    sum: &'a mut u64,
}

impl Kernel for Sum<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let mut sums = [[0_u64; 8]; 4];
        for lanes in self.lanes.chunks(4) {
            for (sums, lane) in sums.iter_mut().zip(lanes) {
                let words: &[u64; 8] = bytemuck::cast_ref(lane);
                for (sum, &word) in sums.iter_mut().zip(words) {
                    *sum = sum.wrapping_add(word);
                }
            }
        }
        *self.sum = sums.iter().flatten().fold(0, |a, &b| a.wrapping_add(b));
    }
}

struct IntegerChains {
    count: u64,
}

impl Kernel for IntegerChains {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (a, b) = (simd.splat_pair(black_box([3, 3])), simd.splat_pair(black_box([5, 5])));
        // Chains of different numbers, or the compiler would keep one for all.
        let mut sums: [_; CHAINS] =
            std::array::from_fn(|k| simd.splat_pair([i16::try_from(k).expect("small"); 2]));
        for _ in 0..self.count.div_ceil((CHAINS * S::PAIRS * 2) as u64) {
            for sum in &mut sums {
                // The sum is a factor, so that no product can be taken out of the loop.
                *sum = simd.dot_pairs(a, *sum, b);
            }
        }
        black_box(sums);
    }
}

struct FloatChains {
    count: u64,
}

impl Kernel for FloatChains {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (a, b) = (simd.splat(black_box(3.0)), simd.splat(black_box(0.5)));
        #[allow(clippy::cast_precision_loss, reason = "small")]
        let mut sums: [_; CHAINS] = std::array::from_fn(|k| simd.splat(k as f32));
        for _ in 0..self.count.div_ceil((CHAINS * CHUNK / S::PARTS) as u64) {
            for sum in &mut sums {
                // As above; the chains tend to 6, so nothing becomes subnormal.
                *sum = simd.fma(*sum, b, a);
            }
        }
        black_box(sums);
    }
}
