//! Root-mean-square norms of rows.
//!
//! **Source:** Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.

use super::Cpu;
use super::simd::{CHUNK, Kernel, Simd};

impl Cpu {
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
