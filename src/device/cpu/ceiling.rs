//! What this machine's memory and multipliers allow: the ceilings every bench stands beside.
//!
//! Each runs on the current rayon pool with the widest instructions of `simd`.

use std::hint::black_box;

use rayon::prelude::*;

use super::SimdLevel;
use crate::lattice::{LANES, Lane};

/// Lanes one task passes over: the block size of the switch.
const TASK_LANES: usize = (1 << 18) / LANES;

/// Reads, changes and writes every weight once: the floor of a switch. Doing it twice restores the
/// weights.
pub fn read_modify_write(simd: SimdLevel, matrices: &mut [&mut [Lane]]) {
    matrices.par_iter_mut().for_each(|lanes| {
        lanes
            .par_chunks_mut(TASK_LANES)
            .for_each(|lanes| dispatch(simd, lanes, flip, flip_avx2, flip_avx512));
    });
}

/// Reads every weight once and returns a sum of all bits: the floor of a decoded token.
pub fn read(simd: SimdLevel, matrices: &[&[Lane]]) -> u64 {
    matrices
        .par_iter()
        .map(|lanes| {
            let sums = lanes
                .par_chunks(TASK_LANES)
                .map(|lanes| dispatch(simd, lanes, sum, sum_avx2, sum_avx512));
            sums.reduce(|| 0, u64::wrapping_add)
        })
        .reduce(|| 0, u64::wrapping_add)
}

/// Multiplies and adds pairs of i16 into i32 from registers, at least `count` products: the
/// arithmetic floor of a switch.
pub fn integer_multiply_add(simd: SimdLevel, count: u64) {
    let tasks = 64_u32;
    (0..tasks).into_par_iter().with_max_len(1).for_each(|_| {
        let count = count.div_ceil(tasks.into());
        dispatch(simd, count, multiply, multiply_avx2, multiply_avx512);
    });
}

/// Multiplies and adds f32 from registers, at least `count` products: the arithmetic ceiling of
/// prefill.
pub fn float_multiply_add(simd: SimdLevel, count: u64) {
    let tasks = 64_u32;
    (0..tasks).into_par_iter().with_max_len(1).for_each(|_| {
        let count = count.div_ceil(tasks.into());
        dispatch(simd, count, float_multiply, float_multiply_avx2, float_multiply_avx512);
    });
}

/// Calls the function compiled for `simd`.
fn dispatch<A, R>(
    simd: SimdLevel,
    arg: A,
    scalar: fn(A) -> R,
    avx2: unsafe fn(A) -> R,
    avx512: unsafe fn(A) -> R,
) -> R {
    assert!(simd <= SimdLevel::detect(), "this machine has no {simd:?}");
    match simd {
        SimdLevel::Scalar => scalar(arg),
        // SAFETY: asserted above.
        #[allow(unsafe_code, reason = "a call into instructions found at run time")]
        SimdLevel::Avx2 => unsafe { avx2(arg) },
        // SAFETY: asserted above.
        #[allow(unsafe_code, reason = "a call into instructions found at run time")]
        SimdLevel::Avx512 => unsafe { avx512(arg) },
    }
}

/// Compiles one body for plain Rust and for each instruction set.
macro_rules! for_each_simd {
    ($($scalar:ident, $avx2:ident, $avx512:ident: ($arg:ident: $ty:ty) -> $ret:ty $body:block)*) => {$(
        #[inline(always)]
        fn $scalar($arg: $ty) -> $ret $body

        #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
        fn $avx2($arg: $ty) -> $ret { $scalar($arg) }

        #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma"))]
        fn $avx512($arg: $ty) -> $ret { $scalar($arg) }
    )*};
}

for_each_simd! {
    flip, flip_avx2, flip_avx512: (lanes: &mut [Lane]) -> () {
        for lane in lanes {
            for n in &mut lane.0 {
                *n ^= 1;
            }
        }
    }
    sum, sum_avx2, sum_avx512: (lanes: &[Lane]) -> u64 {
        let mut sums = [[0_u64; 8]; 4];
        for lanes in lanes.chunks(4) {
            for (sums, lane) in sums.iter_mut().zip(lanes) {
                let words: &[u64; 8] = bytemuck::cast_ref(lane);
                for (sum, &word) in sums.iter_mut().zip(words) {
                    *sum = sum.wrapping_add(word);
                }
            }
        }
        sums.iter().flatten().fold(0, |a, &b| a.wrapping_add(b))
    }
}

fn multiply(count: u64) {
    let b = black_box([5_i16; 2]).map(i32::from);
    let mut sums = [0_i32; 16];
    for _ in 0..count.div_ceil(16 * 2) {
        for sum in &mut sums {
            let a = black_box([3_i16; 2]).map(i32::from);
            *sum = sum.wrapping_add(a[0] * b[0] + a[1] * b[1]);
        }
    }
    black_box(sums);
}

/// Sixteen independent chains, more than any core's latency times its multipliers.
macro_rules! multiply_chains {
    ($count:ident, $width:expr, $number:ty, $set:ident, $step:expr) => {{
        let (a, b) =
            ($set(<$number>::from(black_box(3_i16))), $set(<$number>::from(black_box(5_i16))));
        // Chains of different numbers, or the compiler would keep one for all.
        let mut sums: [_; 16] =
            std::array::from_fn(|k| $set(<$number>::from(i16::try_from(k).expect("small"))));
        for _ in 0..$count.div_ceil(16 * $width) {
            for sum in &mut sums {
                *sum = $step(*sum, a, b);
            }
        }
        black_box(sums);
    }};
}

#[cfg(not(target_arch = "x86_64"))]
use self::{
    float_multiply as float_multiply_avx2, float_multiply as float_multiply_avx512,
    multiply as multiply_avx2, multiply as multiply_avx512,
};

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn multiply_avx2(count: u64) {
    multiply_chains!(count, 16, i32, _mm256_set1_epi32, |sum, a, b| _mm256_add_epi32(
        _mm256_madd_epi16(sum, b),
        a
    ))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn multiply_avx512(count: u64) {
    multiply_chains!(count, 32, i32, _mm512_set1_epi32, _mm512_dpwssd_epi32)
}

fn float_multiply(count: u64) {
    let (a, b) = (black_box(3_f32), black_box(0.5_f32));
    let mut sums = [0_f32; 16];
    for _ in 0..count.div_ceil(16) {
        for sum in &mut sums {
            *sum += black_box(a) * b;
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn float_multiply_avx2(count: u64) {
    multiply_chains!(count, 8, f32, _mm256_set1_ps, |sum, a, b| _mm256_fmadd_ps(a, b, sum));
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn float_multiply_avx512(count: u64) {
    multiply_chains!(count, 16, f32, _mm512_set1_ps, |sum, a, b| _mm512_fmadd_ps(a, b, sum));
}
