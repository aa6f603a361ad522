//! Rows of the embedding by token.

use super::Cpu;
use crate::lattice::LatticeMatrix;

impl Cpu {
    /// [`crate::device::Compute::embed`].
    pub(super) fn embed_rows(&self, table: &LatticeMatrix, tokens: &[u32], out: &mut [f32]) {
        self.for_rows(out, tokens.len(), table.cols(), |row, out| {
            let token = tokens[row] as usize;
            let step = table.steps()[token];
            out.iter_mut().zip(table.row(token)).for_each(|(y, &n)| *y = f32::from(n) * step);
        });
    }
}
