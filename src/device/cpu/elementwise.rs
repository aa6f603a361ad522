//! Operations on one row or one value at a time: norms, rotation, activation, gathering.

use super::Cpu;
use super::parallel::{Plane, RowBlocks};
use super::simd::{CHUNK, Kernel, Simd};
use crate::lattice::LatticeMatrix;

/// Rows in one task.
const ROWS: usize = 8;
/// Values in one task of a flat operation.
const FLAT: usize = 1 << 13;

impl Cpu {
    /// Calls `task` with every row of `out (rows, width)` and its index.
    fn for_rows(
        &self,
        out: &mut [f32],
        rows: usize,
        width: usize,
        task: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let plane = Plane { data: out, width, block: width.max(1) };
        self.for_tiles(
            [plane],
            RowBlocks::Every { rows, block: ROWS },
            rows * width,
            |mut tile| {
                for row in tile.rows.clone() {
                    task(row, tile.row(row));
                }
            },
        );
    }

    /// [`crate::device::Compute::embed`].
    pub(super) fn embed_rows(&self, table: &LatticeMatrix, tokens: &[u32], out: &mut [f32]) {
        self.for_rows(out, tokens.len(), table.cols(), |row, out| {
            let token = tokens[row] as usize;
            let step = table.steps()[token];
            out.iter_mut().zip(table.row(token)).for_each(|(y, &n)| *y = f32::from(n) * step);
        });
    }

    /// [`crate::device::Compute::rms_norm`].
    pub(super) fn rms_norm_rows(
        &self,
        x: &[f32],
        weight: &[f32],
        eps: f32,
        rows: usize,
        out: &mut [f32],
    ) {
        let width = weight.len();
        self.for_rows(out, rows, width, |row, out| {
            self.simd.run(RmsNorm { x: &x[row * width..][..width], weight, eps, out });
        });
    }

    /// The rotations of [`crate::device::Compute::attention`].
    pub(super) fn rope_rows(
        &self,
        x: &mut [f32],
        heads: usize,
        head_dim: usize,
        angles: &[f32],
        rows: usize,
    ) {
        self.for_rows(x, rows, heads * head_dim, |row, x| {
            self.simd.run(Rope { x, head_dim, angles: &angles[row * head_dim..][..head_dim] });
        });
    }

    /// [`crate::device::Compute::silu_mul`].
    pub(super) fn silu_mul_values(&self, gate: &mut [f32], up: &[f32], len: usize) {
        let plane = Plane { data: &mut gate[..len], width: len, block: FLAT };
        // An exponential is worth about ten products.
        self.for_tiles([plane], RowBlocks::Every { rows: 1, block: 1 }, len * 10, |mut tile| {
            let up = &up[tile.cols.clone()];
            self.simd.run(SiluMul { gate: tile.row(0), up });
        });
    }

    /// [`crate::device::Compute::select_rows`].
    pub(super) fn copy_rows(&self, x: &[f32], rows: &[usize], width: usize, out: &mut [f32]) {
        self.for_rows(out, rows.len(), width, |row, out| {
            out.copy_from_slice(&x[rows[row] * width..][..width])
        });
    }
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (chunks, rest) = self.x.as_chunks::<CHUNK>();
        let mut squares = simd.splat(0.0);
        for chunk in chunks {
            for part in 0..S::PARTS {
                let x = simd.load(chunk, part);
                squares = simd.fma(x, x, squares);
            }
        }
        let mut total = simd.sum(squares);
        for &x in rest {
            total = simd.fma1(x, x, total);
        }
        #[allow(clippy::cast_precision_loss, reason = "a row has fewer than 2^24 values")]
        let scale = 1.0 / (total / self.x.len() as f32 + self.eps).sqrt();
        for ((y, x), w) in self.out.iter_mut().zip(self.x).zip(self.weight) {
            *y = x * scale * w;
        }
    }
}

struct Rope<'a> {
    x: &'a mut [f32],
    head_dim: usize,
    angles: &'a [f32],
}

impl Kernel for Rope<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (cosines, sines) = self.angles.split_at(self.head_dim / 2);
        for head in self.x.chunks_exact_mut(self.head_dim) {
            let (low, high) = head.split_at_mut(self.head_dim / 2);
            for (((low, high), &cos), &sin) in low.iter_mut().zip(high).zip(cosines).zip(sines) {
                let (x, y) = (*low, *high);
                *low = simd.fma1(x, cos, -y * sin);
                *high = simd.fma1(y, cos, x * sin);
            }
        }
    }
}

struct SiluMul<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Kernel for SiluMul<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (gate, up) in self.gate.iter_mut().zip(self.up) {
            *gate = *gate / (1.0 + exp(simd, -*gate)) * up;
        }
    }
}

/// `e^x` to 2 units in the last place; 0 below −87.3, about 2^127 above 88. NaN stays NaN. Without
/// branches, so loops over it become vectors. Cephes' polynomial.
#[inline(always)]
pub(super) fn exp<S: Simd>(simd: S, x: f32) -> f32 {
    // Adding 1.5·2^23 rounds to an integer, which the low bits then hold.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x < -87.3 { -87.3 } else { x };
    let clamped = if clamped > 88.0 { 88.0 } else { clamped };
    let shifted = simd.fma1(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = simd.fma1(n, -0.693_359_4, clamped);
    let r = simd.fma1(n, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = simd.fma1(p, r, c);
    }
    let p = simd.fma1(p, r * r, r) + 1.0;
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    let y = p * scale;
    if x < -87.3 { 0.0 } else { y }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::SimdLevel;

    struct Exp<'a>(&'a mut [f32]);

    impl Kernel for Exp<'_> {
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            self.0.iter_mut().for_each(|x| *x = exp(simd, *x));
        }
    }

    #[test]
    fn exp_is_exact_to_two_units_at_every_level() {
        for level in SimdLevel::available() {
            #[allow(clippy::cast_precision_loss, reason = "small integers")]
            let x: Vec<f32> = (-87_000..=87_000).map(|i| i as f32 * 1e-3).collect();
            let mut y = x.clone();
            level.run(Exp(&mut y));
            for (x, y) in x.iter().zip(&y) {
                let exact = f64::from(*x).exp();
                assert!(
                    (f64::from(*y) / exact - 1.0).abs() < 2.4e-7,
                    "exp({x}) = {y}, not {exact}, {level:?}"
                );
            }
            let mut special = [f32::NEG_INFINITY, -1000.0, f32::NAN, 0.0];
            level.run(Exp(&mut special));
            assert_eq!(special[..2], [0.0, 0.0]);
            assert!(special[2].is_nan());
            assert_eq!(special[3], 1.0);
        }
    }
}
