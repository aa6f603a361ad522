//! Rows of the embedding by token.

use super::Cpu;
use super::unmerged::RowsDelta;
use crate::lattice::{LatticeMatrix, Sign};

impl Cpu {
    /// [`crate::device::Compute::embed`]. A row with unmerged deltas is summed in integers, as a
    /// switch would, so it is the merged one to the bit.
    pub(super) fn embed_rows(
        &self,
        table: &LatticeMatrix,
        tokens: &[u32],
        unmerged: &[RowsDelta<'_>],
        out: &mut [f32],
    ) {
        self.for_rows(out, tokens.len(), table.cols(), |row, out| {
            let token = tokens[row] as usize;
            let step = table.steps()[token];
            let mut deltas = unmerged.iter().filter(|delta| delta.rows.contains(&row)).peekable();
            if deltas.peek().is_none() {
                let integers = out.iter_mut().zip(table.row(token));
                return integers.for_each(|(y, &n)| *y = f32::from(n) * step);
            }
            let mut sums: Vec<i64> = table.row(token).iter().map(|&n| n.into()).collect();
            deltas.for_each(|delta| delta.delta.add_row(token, Sign::Add, &mut sums));
            #[allow(clippy::cast_precision_loss, reason = "a node that leaves i16 is refused")]
            out.iter_mut().zip(sums).for_each(|(y, n)| *y = n as f32 * step);
        });
    }
}
