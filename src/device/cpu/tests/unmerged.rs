//! Deltas that are not in the weights, for the rows of a batch: the kernels `shrink` and `expand`
//! against sums in f64, and against the weights that the same deltas are merged into.

use std::ops::Range;
use std::sync::Arc;

use proptest::prelude::*;
use rand::Rng;

use super::*;
use crate::WeightName;
use crate::adapter::FloatDelta;
use crate::device::NodeRows;
use crate::lattice::{
    CompiledDelta, DeltaKind, Grid, NodeDeltas, SignedDelta, compile, quantise, reference,
};

/// A matrix with memory for deltas as large as its weights, and its lattice.
fn made_base(rng: &mut StdRng, rows: usize, cols: usize) -> (LatticeMatrix, Grid) {
    let values: Vec<f32> = (0..rows * cols).map(|_| rng.random_range(-1.0..1.0)).collect();
    quantise(&WeightName::new("w"), rows, cols, 8.0, |range, out| {
        out.copy_from_slice(&values[range.start * cols..range.end * cols]);
        Ok(())
    })
    .expect("finite")
}

/// Low-rank of some rank, dense or sparse.
#[derive(Clone, Copy, Debug)]
enum Kind {
    LowRank(usize),
    Dense,
    Sparse,
}

fn made_delta(rng: &mut StdRng, grid: &Grid, kind: Kind) -> CompiledDelta {
    let (rows, cols) = (grid.rows(), grid.cols);
    let mut random = |n: usize| (0..n).map(|_| rng.random_range(-0.02..0.02)).collect::<Vec<f32>>();
    let float = match kind {
        Kind::LowRank(rank) => FloatDelta::LowRank {
            rank,
            lora_a: random(rank * cols),
            lora_b: random(rows * rank),
            scaling: 1.0,
        },
        Kind::Dense => FloatDelta::Dense { values: random(rows * cols) },
        Kind::Sparse => {
            let places = (0..rows * cols).filter(|k| k % 5 == 0);
            let values = random(rows * cols);
            let entry = |k: usize| ((k / cols) as u32, (k % cols) as u32, values[k]);
            FloatDelta::Sparse { entries: places.map(entry).collect() }
        }
    };
    compile(&WeightName::new("w"), &float, grid).expect("fits")
}

/// Matrices of one input, nodes with a delta on some of them, and the rows that each is for.
struct Case {
    matrices: Vec<LatticeMatrix>,
    nodes: Vec<(Range<usize>, Arc<NodeDeltas>)>,
    x: FloatBuffer,
}

impl Case {
    /// Node 0 is for all rows, the next for a part of them, the others for a row each.
    fn made(
        rng: &mut StdRng,
        rows: [usize; 2],
        cols: usize,
        kinds: &[Kind],
        tokens: usize,
    ) -> Self {
        let (matrices, grids): (Vec<_>, Vec<_>) =
            rows.map(|rows| made_base(rng, rows, cols)).into_iter().unzip();
        let part = tokens / 3..tokens.div_ceil(2).max(tokens / 3 + 1);
        let nodes = kinds.iter().enumerate().map(|(k, &kind)| {
            let rows = match k {
                0 => 0..tokens,
                1 => part.clone(),
                _ => (k - 2) % part.len() + part.start..(k - 2) % part.len() + part.start + 1,
            };
            // A node need not touch every matrix.
            let touched = (0..2).filter(|&id| k != 1 || id == 0);
            let deltas: Vec<_> =
                touched.map(|id| (MatrixId(id), made_delta(rng, &grids[id], kind))).collect();
            (rows, Arc::new(NodeDeltas::new(deltas)))
        });
        let nodes = nodes.collect();
        Self { matrices, nodes, x: random(rng, tokens * cols) }
    }

    fn node_rows(&self) -> Vec<NodeRows<'_, Cpu>> {
        let nodes = self.nodes.iter();
        nodes.map(|(rows, deltas)| NodeRows { rows: rows.clone(), deltas }).collect()
    }

    /// Both products for the rows `picked`, from what was in the outputs before.
    fn run(&self, cpu: &Cpu, picked: Range<usize>) -> [Vec<f32>; 2] {
        let cols = self.matrices[0].cols();
        let x = FloatBuffer::from(&self.x[picked.start * cols..picked.end * cols]);
        let nodes: Vec<_> = self
            .node_rows()
            .into_iter()
            .map(|node| NodeRows {
                rows: node.rows.start.max(picked.start) - picked.start
                    ..node.rows.end.clamp(picked.start, picked.end) - picked.start,
                ..node
            })
            .filter(|node| node.rows.start < node.rows.end)
            .collect();
        let unmerged = cpu.unmerged(&nodes, |_| true).unwrap();
        let [mut first, mut second] =
            [0, 1].map(|id| FloatBuffer::zeros(picked.len() * self.matrices[id].rows()));
        second.fill(0.25);
        let products = [
            Product {
                weight: &self.matrices[0],
                id: MatrixId(0),
                bias: None,
                out: &mut first,
                accumulate: false,
            },
            Product {
                weight: &self.matrices[1],
                id: MatrixId(1),
                bias: None,
                out: &mut second,
                accumulate: true,
            },
        ];
        cpu.matmul(&x, picked.len(), products, &unmerged);
        [first.to_vec(), second.to_vec()]
    }

    fn deltas_of(&self, t: usize, id: usize) -> Vec<&CompiledDelta> {
        let nodes = self.nodes.iter().filter(|(rows, _)| rows.contains(&t));
        nodes.filter_map(|(_, deltas)| deltas.delta(MatrixId(id))).collect()
    }

    fn x_of(&self, t: usize) -> &[f32] {
        let cols = self.matrices[0].cols();
        &self.x[t * cols..][..cols]
    }
}

/// What a delta adds to output `i`, without the step: the sum, and the sum of its terms' sizes.
fn added(delta: &CompiledDelta, i: usize, x: &[f32]) -> (f64, f64) {
    let mut total = (0.0, 0.0);
    let mut add = |weight: f64, x: f32| {
        total = (total.0 + weight * f64::from(x), total.1 + (weight * f64::from(x)).abs());
    };
    match &delta.kind {
        DeltaKind::LowRank(chunks) => {
            for factors in chunks {
                let scale = 1.0 / f64::from(1_u32 << factors.shift[i]);
                for (r, b) in factors.b_row(i).enumerate() {
                    for (j, &x) in x.iter().enumerate() {
                        add(scale * f64::from(b) * f64::from(factors.a(r, j)), x);
                    }
                }
            }
        }
        _ => x.iter().enumerate().for_each(|(j, &x)| add(f64::from(delta.q(i, j)), x)),
    }
    total
}

fn any_kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        4 => Just(Kind::LowRank(2)),
        6 => (1..40_usize).prop_map(Kind::LowRank),
        2 => prop_oneof![Just(64_usize), Just(65), Just(130)].prop_map(Kind::LowRank),
        1 => Just(Kind::Dense),
        1 => Just(Kind::Sparse),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn shrink_and_expand_add_what_the_formula_says_whatever_the_neighbours(
        rows in [1..70_usize, 1..40_usize],
        cols in prop_oneof![1..70_usize, Just(576_usize), Just(1100)],
        kinds in prop::collection::vec(any_kind(), 1..7),
        tokens in prop_oneof![1..20_usize, Just(97_usize)],
        seed in any::<u64>(),
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let case = Case::made(&mut rng, rows, cols, &kinds, tokens);
        for cpu in levels() {
            let found = case.run(&cpu, 0..tokens);
            for t in 0..tokens {
                for id in 0..2 {
                    let before = if id == 0 { 0.0 } else { 0.25 };
                    for i in 0..rows[id] {
                        let matrix = &case.matrices[id];
                        let step = f64::from(matrix.steps()[i]);
                        let (mut sum, mut size) = product(matrix, i, case.x_of(t));
                        for delta in case.deltas_of(t, id) {
                            let (more, its_size) = added(delta, i, case.x_of(t));
                            (sum, size) = (sum + step * more, size + step * its_size);
                        }
                        let y = f64::from(found[id][t * rows[id] + i]);
                        prop_assert!(
                            (y - before - sum).abs() <= 1e-6 * (size + before),
                            "{:?}: matrix {id}, output {i} of token {t} is {y}, not {}",
                            cpu.simd(), sum + before,
                        );
                    }
                }
            }
            // Each row alone, and the last few together, have the same bits.
            let last = tokens - tokens.min(5)..tokens;
            for picked in (0..tokens).map(|t| t..t + 1).chain(std::iter::once(last)) {
                let alone = case.run(&cpu, picked.clone());
                for id in 0..2 {
                    let here = picked.start * rows[id]..picked.end * rows[id];
                    prop_assert_eq!(&alone[id], &found[id][here], "{:?}: rows {:?}", cpu.simd(), picked);
                }
            }
        }
    }

    #[test]
    fn unmerged_and_merged_differ_by_half_a_step_a_chunk_at_most(
        rows in 1..40_usize,
        cols in 1..200_usize,
        kinds in prop::collection::vec(any_kind(), 1..5),
        seed in any::<u64>(),
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let case = Case::made(&mut rng, [rows, 1], cols, &kinds, 9);
        let cpu = levels().pop().unwrap();
        let [found, _] = case.run(&cpu, 0..9);
        for t in 0..9 {
            let deltas = case.deltas_of(t, 0);
            let mut merged = case.matrices[0].clone();
            let terms: Vec<_> = deltas.iter().map(|delta| SignedDelta::added(*delta)).collect();
            reference::delta_apply(&mut merged, &terms);
            let chunks = |delta: &CompiledDelta| match &delta.kind {
                DeltaKind::LowRank(chunks) => chunks.len(),
                _ => 0,
            };
            let chunks: usize = deltas.iter().map(|delta| chunks(delta)).sum();
            let inputs: f64 = case.x_of(t).iter().map(|x| f64::from(x.abs())).sum();
            for i in 0..rows {
                let (sum, size) = product(&merged, i, case.x_of(t));
                let bound = f64::from(merged.steps()[i]) * chunks as f64 / 2.0 * inputs;
                let y = f64::from(found[t * rows + i]);
                prop_assert!(
                    (y - sum).abs() <= bound + 1e-6 * size,
                    "output {i} of token {t}: {y} for {sum}, bound {bound}"
                );
            }
        }
    }

    #[test]
    fn an_unmerged_row_of_an_embedding_is_the_merged_one_to_the_bit(
        cols in 1..100_usize,
        kinds in prop::collection::vec(any_kind(), 1..5),
        seed in any::<u64>(),
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let case = Case::made(&mut rng, [11, 1], cols, &kinds, 9);
        let tokens: Vec<u32> = (0..9).map(|_| rng.random_range(0..11)).collect();
        let cpu = &levels()[0];
        let unmerged = cpu.unmerged(&case.node_rows(), |id| id == MatrixId(0)).unwrap();
        let mut found = FloatBuffer::zeros(9 * cols);
        cpu.embed((&case.matrices[0], MatrixId(0)), &tokens, &unmerged, &mut found);
        for (t, &token) in tokens.iter().enumerate() {
            let mut merged = case.matrices[0].clone();
            let terms: Vec<_> =
                case.deltas_of(t, 0).into_iter().map(SignedDelta::added).collect();
            reference::delta_apply(&mut merged, &terms);
            let step = merged.steps()[token as usize];
            let expected: Vec<f32> =
                merged.row(token as usize).iter().map(|&n| f32::from(n) * step).collect();
            prop_assert_eq!(&found[t * cols..][..cols], &expected[..], "token {}", t);
        }
        // Only what was asked for is there.
        prop_assert!(unmerged.on(MatrixId(1)).is_empty());
    }
}
