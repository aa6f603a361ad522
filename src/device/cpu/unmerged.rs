//! Deltas that are not in the weights, by matrix, and what they add to the products of one call.

use std::collections::HashMap;
use std::ops::Range;

use crate::device::compute::NodeRows;
use crate::lattice::{CompiledDelta, DeltaKind, Factors, Lane, MatrixId, SparseRows};

/// What [`Compute::unmerged`](crate::device::Compute::unmerged) makes ready: for each matrix its
/// deltas and their rows, from the top of the tree down.
#[derive(Debug, Default)]
pub struct Unmerged<'a> {
    by_matrix: HashMap<MatrixId, Vec<RowsDelta<'a>>>,
}

/// A delta on one matrix, for these rows of the batch.
#[derive(Clone, Debug)]
pub(super) struct RowsDelta<'a> {
    pub(super) rows: Range<usize>,
    pub(super) delta: &'a CompiledDelta,
}

impl<'a> Unmerged<'a> {
    pub(super) fn new(
        nodes: &[NodeRows<'a, super::Cpu>],
        is_used: impl Fn(MatrixId) -> bool,
    ) -> Self {
        let mut by_matrix: HashMap<_, Vec<_>> = HashMap::new();
        for NodeRows { rows, deltas } in nodes {
            for (id, delta) in deltas.iter().filter(|(id, _)| is_used(*id)) {
                by_matrix.entry(id).or_default().push(RowsDelta { rows: rows.clone(), delta });
            }
        }
        Self { by_matrix }
    }

    /// The deltas on one matrix.
    pub(super) fn on(&self, id: MatrixId) -> &[RowsDelta<'a>] {
        self.by_matrix.get(&id).map_or(&[], |deltas| &deltas[..])
    }
}

/// What is added to a product for these rows.
pub(super) struct Addend<'a> {
    pub(super) rows: Range<usize>,
    pub(super) kind: AddendKind<'a>,
}

/// The integers of an addend.
pub(super) enum AddendKind<'a> {
    /// `2^(−s_i) · Σ_r B'_ir · s[t][2 · at + r]` with the sums that `shrink.rs` leaves behind.
    Factors { factors: &'a Factors, at: usize },
    /// `Σ_j Q_ij · x[t][j]`.
    Dense(&'a [Lane]),
    /// The same over the entries there are.
    Sparse(&'a SparseRows),
}

/// What is added to each of some products of `tokens` rows.
pub(super) fn addends<'a, const N: usize>(
    deltas: [&[RowsDelta<'a>]; N],
    tokens: usize,
) -> [Vec<Addend<'a>>; N] {
    if deltas.iter().all(|deltas| deltas.is_empty()) {
        return [const { Vec::new() }; N];
    }
    let mut used = vec![0; tokens];
    deltas.map(|deltas| addends_of_one(deltas, &mut used))
}

/// The addends of one matrix; `used[t]` is how many pairs of row `t` of the shrunk inputs are
/// taken. Rows of one delta have the same deltas above, so the same place.
fn addends_of_one<'a>(deltas: &[RowsDelta<'a>], used: &mut [usize]) -> Vec<Addend<'a>> {
    let mut addends = Vec::new();
    for RowsDelta { rows, delta } in deltas {
        let mut add = |kind| addends.push(Addend { rows: rows.clone(), kind });
        match &delta.kind {
            DeltaKind::LowRank(chunks) => {
                for factors in chunks {
                    let used = &mut used[rows.clone()];
                    let at = used.iter().copied().max().unwrap_or(0);
                    used.fill(at + factors.pairs);
                    add(AddendKind::Factors { factors, at });
                }
            }
            DeltaKind::Dense(lanes) => add(AddendKind::Dense(lanes)),
            DeltaKind::Sparse(sparse) => add(AddendKind::Sparse(sparse)),
        }
    }
    addends
}
