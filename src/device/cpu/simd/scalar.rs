//! The vector operations in plain Rust, four elements wide, for machines without the wider sets.

use std::array::from_fn;

use super::{CHUNK, Simd};

/// Needs no proof.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

impl Simd for Scalar {
    type V = [f32; 4];
    type I = [i32; 4];
    const PARTS: usize = 4;
    const PAIRS: usize = 4;
    // With 3 the compiler keeps the sums in memory.
    const TOKENS: usize = 2;

    #[inline(always)]
    fn splat(self, value: f32) -> [f32; 4] {
        [value; 4]
    }

    #[inline(always)]
    fn load(self, chunk: &[f32; CHUNK], part: usize) -> [f32; 4] {
        from_fn(|i| chunk[part * 4 + i])
    }

    #[inline(always)]
    fn load_i16(self, chunk: &[i16; CHUNK], part: usize) -> [f32; 4] {
        from_fn(|i| f32::from(chunk[part * 4 + i]))
    }

    #[inline(always)]
    fn load_pairs(self, pairs: &[i16; 2 * CHUNK], part: usize) -> [[f32; 4]; 2] {
        [0, 1].map(|member| from_fn(|i| f32::from(pairs[(part * 4 + i) * 2 + member])))
    }

    #[inline(always)]
    fn store(self, value: [f32; 4], chunk: &mut [f32; CHUNK], part: usize) {
        chunk[part * 4..][..4].copy_from_slice(&value);
    }

    #[inline(always)]
    fn add(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn fma(self, a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        from_fn(|i| self.fma1(a[i], b[i], c[i]))
    }

    #[inline(always)]
    fn sum4(self, vectors: [[f32; 4]; 4]) -> [f32; 4] {
        vectors.map(|v| (v[0] + v[2]) + (v[1] + v[3]))
    }

    #[inline(always)]
    fn prefetch<T>(self, _chunk: &[T; CHUNK], _ahead: usize) {}

    #[inline(always)]
    fn fma1(self, a: f32, b: f32, c: f32) -> f32 {
        // Every aarch64 fuses; elsewhere a fused product without its instruction is a slow library
        // call.
        if cfg!(target_arch = "aarch64") { a.mul_add(b, c) } else { a * b + c }
    }

    #[inline(always)]
    fn splat_pair(self, pair: [i16; 2]) -> [i32; 4] {
        [bytemuck::cast(pair); 4]
    }

    #[inline(always)]
    fn dot_pairs(self, sum: [i32; 4], a: [i32; 4], b: [i32; 4]) -> [i32; 4] {
        from_fn(|i| {
            let [a, b]: [[i16; 2]; 2] = [a[i], b[i]].map(bytemuck::cast);
            let products = [0, 1].map(|k| i32::from(a[k]) * i32::from(b[k]));
            sum[i].wrapping_add(products[0]).wrapping_add(products[1])
        })
    }
}
