//! Rotary position embedding: rotates each head's halves against each other.
//!
//! **Source:** Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.

use super::Cpu;
use super::simd::{Kernel, Simd};

impl Cpu {
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
