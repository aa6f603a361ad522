//! Deltas that are not in the weights: the kernels against the CPU's, which are checked against sums
//! in f64, and the embedding against the merged one; whatever lies in which buffer, whatever came
//! before, and whatever fails.

use std::ops::Range;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::switch::{Made, made_delta, made_matrix};
use super::*;
use crate::Error;
use crate::device::cpu::Cpu;
use crate::device::{NodeRows, Product};
use crate::lattice::{CompiledDelta, DeltaKind, MatrixId, SignedDelta, reference};

/// Space of a matrix for the deltas of a path, in steps.
const ROOM: i32 = 24_000;

/// Matrices of one input, nodes with deltas on some of them, and the rows that each is for.
struct Case {
    matrices: [LatticeMatrix; 3],
    biases: [Option<Vec<f32>>; 3],
    before: [Vec<f32>; 3],
    nodes: Vec<(Range<usize>, Arc<NodeDeltas>)>,
    x: Vec<f32>,
    rows: usize,
}

/// Which matrix's products are added to what is there.
const ACCUMULATES: [bool; 3] = [false, true, false];

impl Case {
    /// Node 0 is for all rows, node 1 for a part of them, the others for a row of that part each.
    fn made(
        rng: &mut StdRng,
        outputs: [usize; 3],
        cols: usize,
        rows: usize,
        kinds: &[Made],
    ) -> Self {
        let part = rows / 3..rows.div_ceil(2).max(rows / 3 + 1);
        let nodes = kinds.iter().enumerate().map(|(k, kind)| {
            let leaf = k.saturating_sub(2) % part.len() + part.start;
            let rows = [0..rows, part.clone(), leaf..leaf + 1][k.min(2)].clone();
            // A node need not touch every matrix.
            let touched = (0..3).filter(|&id| k != 1 || id != 2);
            let largest = ROOM / kinds.len() as i32;
            let delta = |id| {
                let delta = made_delta(rng, outputs[id], cols, kind, largest);
                (MatrixId(id), delta.expect("a kind that touches"))
            };
            (rows, Arc::new(NodeDeltas::new(touched.map(delta).collect::<Vec<_>>())))
        });
        let nodes = nodes.collect();
        Self {
            matrices: outputs.map(|outputs| made_matrix(rng, outputs, cols)),
            biases: [0, 1, 2].map(|id| (id != 1).then(|| random(rng, outputs[id]))),
            before: outputs.map(|outputs| random(rng, rows * outputs)),
            nodes,
            x: random(rng, rows * cols),
            rows,
        }
    }

    /// All products on any device, with the nodes that `picked` names.
    fn run<D: Compute>(&self, device: &D, picked: impl Fn(usize) -> bool) -> Vec<Vec<f32>> {
        let there = self.on(device);
        let nodes = there.nodes(&picked);
        let unmerged = device.unmerged(&nodes, |_| true).unwrap();
        there.run(device, self, &unmerged)
    }

    fn on<D: Compute>(&self, device: &D) -> There<D> {
        let vector = |values: &Vec<f32>| device.upload_buffer(values.clone()).unwrap();
        There {
            x: vector(&self.x),
            weights: self.matrices.each_ref().map(|m| device.upload_matrix(m.clone()).unwrap()),
            biases: self.biases.each_ref().map(|bias| bias.as_ref().map(&vector)),
            nodes: self
                .nodes
                .iter()
                .map(|(rows, deltas)| (rows.clone(), device.upload_deltas(deltas).unwrap()))
                .collect(),
        }
    }

    fn deltas_of(&self, t: usize, id: usize) -> Vec<&CompiledDelta> {
        let nodes = self.nodes.iter().filter(|(rows, _)| rows.contains(&t));
        nodes.filter_map(|(_, deltas)| deltas.delta(MatrixId(id))).collect()
    }

    /// The sizes of all terms of an output, added up.
    fn size(&self, t: usize, id: usize, i: usize) -> f64 {
        let matrix = &self.matrices[id];
        let x = &self.x[t * matrix.cols()..][..matrix.cols()];
        let step = f64::from(matrix.steps()[i]);
        let sum = |weight: &dyn Fn(usize) -> f64| -> f64 {
            x.iter().enumerate().map(|(j, x)| (weight(j) * f64::from(*x)).abs() * step).sum()
        };
        let of_delta = |delta: &CompiledDelta| match &delta.kind {
            DeltaKind::LowRank(chunks) => {
                let chunk = |factors: &crate::lattice::Factors| {
                    let scale = 1.0 / f64::from(1_u32 << factors.shift[i]);
                    let terms = factors.b_row(i).enumerate();
                    terms
                        .map(|(r, b)| sum(&|j| scale * f64::from(b) * f64::from(factors.a(r, j))))
                        .sum::<f64>()
                };
                chunks.iter().map(chunk).sum::<f64>()
            }
            _ => sum(&|j| f64::from(delta.q(i, j))),
        };
        let deltas: f64 = self.deltas_of(t, id).into_iter().map(of_delta).sum();
        // Bias and what was there before are below 1.
        sum(&|j| f64::from(matrix.row(i)[j])) + deltas + 2.0
    }

    /// Compares with the CPU: `√inputs`, but at least 8, units in the last place of the sum of the
    /// terms' sizes, as the products alone.
    fn check(&self, gpu: &Gpu, what: &str) {
        let expected = self.run(&Cpu::new(Some(2)).unwrap(), |_| true);
        let found = self.run(gpu, |_| true);
        let inputs = self.matrices[0].cols() as f64;
        for id in 0..3 {
            let width = self.matrices[id].rows();
            for (at, (found, expected)) in found[id].iter().zip(&expected[id]).enumerate() {
                let (t, i) = (at / width, at % width);
                let bound = inputs.sqrt().max(8.0) * f64::from(f32::EPSILON) * self.size(t, id, i);
                assert!(
                    (f64::from(*found) - f64::from(*expected)).abs() <= bound,
                    "{what}, matrix {id}, output {i} of row {t}: {found}, not {expected} ± {bound}"
                );
            }
        }
    }
}

/// A case on a device.
struct There<D: Compute> {
    x: D::Buffer,
    weights: [D::Matrix; 3],
    biases: [Option<D::Buffer>; 3],
    nodes: Vec<(Range<usize>, D::Deltas)>,
}

impl<D: Compute> There<D> {
    fn nodes(&self, picked: impl Fn(usize) -> bool) -> Vec<NodeRows<'_, D>> {
        let nodes = self.nodes.iter().enumerate().filter(|(k, _)| picked(*k));
        nodes.map(|(_, (rows, deltas))| NodeRows { rows: rows.clone(), deltas }).collect()
    }

    fn run(&self, device: &D, case: &Case, unmerged: &D::Unmerged<'_>) -> Vec<Vec<f32>> {
        let mut outs =
            case.before.each_ref().map(|before| device.upload_buffer(before.clone()).unwrap());
        let mut out = outs.iter_mut();
        let products = [0, 1, 2].map(|id| Product {
            weight: &self.weights[id],
            id: MatrixId(id),
            bias: self.biases[id].as_ref(),
            out: out.next().unwrap(),
            accumulate: ACCUMULATES[id],
        });
        device.matmul(&self.x, case.rows, products, unmerged);
        let read = |(out, before): (_, &Vec<f32>)| device.read(out, 0..before.len()).unwrap();
        outs.iter().zip(&case.before).map(read).collect()
    }
}

fn low_rank<const N: usize>(ranks: [usize; N]) -> Vec<Made> {
    ranks.map(Made::LowRank).to_vec()
}

#[test]
fn shrink_and_expand_equal_the_cpus_for_odd_shapes_ranks_and_nested_rows() {
    let mut rng = StdRng::seed_from_u64(1);
    for minimal in [false, true] {
        let Some(gpu) = gpu(&GpuOptions { minimal, ..GpuOptions::default() }) else { return };
        for (outputs, cols, rows, kinds) in [
            ([1, 3, 2], 1, 1, low_rank([1])),
            ([33, 1, 70], 31, 1, low_rank([2, 3, 8])),
            ([65, 5, 7], 33, 2, low_rank([1, 64, 65])),
            ([70, 130, 64], 70, 3, low_rank([200, 2])),
            ([9, 40, 33], 101, 5, low_rank([7, 130, 2, 2])),
            ([64, 20, 66], 64, 8, low_rank([16, 4, 1, 3])),
            ([40, 129, 1], 576, 9, low_rank([5, 8, 2, 2])),
            ([30, 31, 32], 1100, 13, low_rank([2, 4, 6, 8, 10, 12])),
            ([50, 20, 10], 48, 40, low_rank([8, 16, 2, 2, 2, 2, 2, 2, 2, 2])),
            ([20, 21, 22], 129, 100, low_rank([3, 66])),
            // Several pairs of ranks to a workgroup.
            ([20, 21, 22], 129, 100, low_rank([129, 66])),
            ([5, 6, 7], 40, 1, low_rank([200, 199, 198])),
            ([5, 6, 7], 40, 2, low_rank([200, 199, 198])),
            ([5, 6, 7], 40, 4, low_rank([200, 199, 198])),
        ] {
            let case = Case::made(&mut rng, outputs, cols, rows, &kinds);
            case.check(&gpu, &format!("{outputs:?} × {cols}, {rows} rows, {kinds:?}"));
        }
    }
}

#[test]
fn expand_sparse_and_dense_deltas_equal_the_cpus_in_any_order() {
    let Some(gpu) = gpu(&GpuOptions::default()) else { return };
    let mut rng = StdRng::seed_from_u64(2);
    use Made::{Dense, LowRank, Sparse};
    for (outputs, cols, rows, kinds) in [
        ([33, 2, 70], 1, 1, vec![Sparse]),
        ([33, 2, 70], 31, 1, vec![Dense]),
        ([9, 40, 33], 71, 6, vec![LowRank(2), Sparse, Dense, LowRank(4), Sparse]),
        ([64, 20, 66], 64, 20, vec![Dense, LowRank(3), LowRank(2), Sparse, LowRank(5), Dense]),
    ] {
        let case = Case::made(&mut rng, outputs, cols, rows, &kinds);
        case.check(&gpu, &format!("{outputs:?} × {cols}, {rows} rows, {kinds:?}"));
    }
}

/// Matrices in several parts, and factors that one binding does not hold.
#[test]
fn expand_equals_the_cpus_however_matrices_and_factors_are_split() {
    let mut rng = StdRng::seed_from_u64(3);
    use Made::{Dense, LowRank, Sparse};
    for minimal in [false, true] {
        let options =
            GpuOptions { minimal, max_binding_bytes: Some(4096), ..GpuOptions::default() };
        let Some(gpu) = gpu(&options) else { return };
        for (rows, kinds) in [
            (1, vec![LowRank(2), LowRank(4), LowRank(1)]),
            (6, vec![LowRank(4), LowRank(2), Dense, LowRank(3), Sparse, LowRank(2)]),
            (20, vec![Sparse, Dense, LowRank(4), LowRank(2), LowRank(2), LowRank(2)]),
        ] {
            let case = Case::made(&mut rng, [150, 21, 64], 70, rows, &kinds);
            let there = case.on(&gpu);
            assert!(there.weights[0].parts.len() > 1);
            let unmerged = gpu.unmerged(&there.nodes(|_| true), |_| true).unwrap();
            assert!(unmerged.pages() > 1);
            case.check(&gpu, &format!("{rows} rows, {kinds:?}"));
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_others_nor_on_their_nodes() {
    let Some(gpu) = gpu(&GpuOptions::default()) else { return };
    let mut rng = StdRng::seed_from_u64(4);
    use Made::{Dense, LowRank, Sparse};
    for rows in [2, 4, 7, 30] {
        let kinds = [LowRank(5), LowRank(66), LowRank(2), LowRank(2), Sparse, Dense, LowRank(9)];
        let mut case = Case::made(&mut rng, [40, 33, 64], 80, rows, &kinds);
        let all = case.run(&gpu, |_| true);
        let own = rows / 3;
        for t in (0..rows).filter(|&t| t != own) {
            // A neighbour that overflowed must not spread.
            case.x[t * 80..][..80].fill(f32::NAN);
        }
        let of_own: Vec<bool> = case.nodes.iter().map(|(rows, _)| rows.contains(&own)).collect();
        let alone = case.run(&gpu, |k| of_own[k]);
        for id in 0..3 {
            let width = case.matrices[id].rows();
            let here = own * width..(own + 1) * width;
            assert_eq!(all[id][here.clone()], alone[id][here], "matrix {id}, row {own} of {rows}");
        }
    }
}

#[test]
fn an_unmerged_row_of_an_embedding_is_the_merged_one_to_the_bit() {
    let mut rng = StdRng::seed_from_u64(5);
    use Made::{Dense, LowRank, Sparse};
    for (max_binding_bytes, kinds, cols) in [
        (None, vec![LowRank(1)], 1),
        (None, vec![LowRank(200), LowRank(64), LowRank(3), LowRank(2)], 37),
        (None, vec![Sparse, LowRank(7), Dense, Sparse], 70),
        (None, vec![Dense, Sparse], 33),
        (Some(4096), vec![LowRank(4), LowRank(2), LowRank(3), LowRank(2)], 37),
        (Some(4096), vec![LowRank(4), Sparse, LowRank(2), Dense, LowRank(3)], 37),
    ] {
        let options = GpuOptions { max_binding_bytes, ..GpuOptions::default() };
        let Some(gpu) = gpu(&options) else { return };
        let case = Case::made(&mut rng, [90, 1, 1], cols, 9, &kinds);
        let tokens: Vec<u32> = (0..9).map(|_| rng.random_range(0..90)).collect();
        let there = case.on(&gpu);
        let unmerged = gpu.unmerged(&there.nodes(|_| true), |_| true).unwrap();
        let mut out = gpu.alloc(9 * cols + 3).unwrap();
        gpu.embed((&there.weights[0], MatrixId(0)), &tokens, &unmerged, &mut out);
        let found = gpu.read(&out, 0..9 * cols).unwrap();
        for (t, &token) in tokens.iter().enumerate() {
            let mut merged = case.matrices[0].clone();
            let deltas: Vec<_> = case.deltas_of(t, 0).into_iter().map(SignedDelta::added).collect();
            reference::delta_apply(&mut merged, &deltas);
            let (step, row) = (merged.steps()[token as usize], merged.row(token as usize));
            let expected: Vec<f32> = row.iter().map(|&n| f32::from(n) * step).collect();
            assert_eq!(&found[t * cols..][..cols], &expected[..], "{kinds:?}, token {t}");
        }
    }
}

/// Nodes that come, go and come back, with pages that are too small, and without any.
#[test]
fn nothing_is_left_of_what_was_unmerged_before() {
    let mut rng = StdRng::seed_from_u64(6);
    for max_binding_bytes in [None, Some(4096)] {
        let options = GpuOptions { max_binding_bytes, ..GpuOptions::default() };
        let Some(used) = gpu(&options) else { return };
        let kinds = low_rank([2, 4, 2, 3, 2, 4, 2, 1]);
        let case = Case::made(&mut rng, [150, 21, 64], 70, 16, &kinds);
        let there = case.on(&used);
        let run = |gpu: &Gpu, there: &There<Gpu>, picked: u32| {
            let nodes = there.nodes(|k| (picked >> k) & 1 == 1);
            there.run(gpu, &case, &gpu.unmerged(&nodes, |_| true).unwrap())
        };
        for picked in [0b1, 0b11, 0b11, 0, 0b100, 0b1111_1111, 0b1111_0000, 0b1, 0] {
            let found = run(&used, &there, picked);
            let fresh = gpu(&options).unwrap();
            assert_eq!(found, run(&fresh, &case.on(&fresh), picked), "{picked:b}");
        }
        // What was made ready before is still right after others were.
        let first = used.unmerged(&there.nodes(|k| k == 1), |_| true).unwrap();
        let second = used.unmerged(&there.nodes(|k| k != 1), |_| true).unwrap();
        assert_eq!(there.run(&used, &case, &first), run(&used, &there, 0b10));
        assert_eq!(there.run(&used, &case, &second), run(&used, &there, 0b1111_1101));
    }
}

#[test]
fn deltas_on_their_way_arrive_and_a_switch_adds_them_as_ever() {
    let Some(gpu) = gpu(&GpuOptions::default()) else { return };
    let mut rng = StdRng::seed_from_u64(7);
    let kinds = [Made::LowRank(3), Made::Dense, Made::Sparse];
    let case = Case::made(&mut rng, [50, 20, 30], 40, 4, &kinds);
    let mut there = case.on(&gpu);
    let waiting = |there: &There<Gpu>| {
        let stores = there.nodes.iter().flat_map(|(_, deltas)| &deltas.stores);
        stores.filter(|store| store.is_staged()).count()
    };
    assert!(waiting(&there) > 3);
    drop(gpu.unmerged(&there.nodes(|_| true), |_| true).unwrap());
    assert_eq!(waiting(&there), 0);
    // The same nodes again take no memory and no submit.
    gpu.context.fail_after(1);
    drop(gpu.unmerged(&there.nodes(|_| true), |_| true).unwrap());
    drop(gpu.unmerged(&there.nodes(|k| k == 1), |_| true).unwrap());
    gpu.context.fail_after(u64::MAX);
    let deltas: Vec<_> = there.nodes.iter().map(|(_, deltas)| deltas).collect();
    let forth: Vec<_> = deltas.iter().map(|deltas| SignedDelta::added(*deltas)).collect();
    gpu.prepare_and_apply(&mut there.weights, &forth).unwrap();
    for id in 0..3 {
        let mut merged = case.matrices[id].clone();
        let deltas = case.nodes.iter().filter_map(|(_, deltas)| deltas.delta(MatrixId(id)));
        reference::delta_apply(&mut merged, &deltas.map(SignedDelta::added).collect::<Vec<_>>());
        assert_eq!(gpu.read_matrix(&there.weights[id]).unwrap(), merged);
    }
}

/// However many users there are: one dispatch to shrink and one a product to expand.
#[test]
fn a_call_takes_as_many_dispatches_for_forty_nodes_as_for_one() {
    let Some(gpu) = gpu(&GpuOptions::default()) else { return };
    let mut rng = StdRng::seed_from_u64(8);
    let case = Case::made(&mut rng, [40, 20, 30], 64, 60, &vec![Made::LowRank(2); 40]);
    let there = case.on(&gpu);
    let dispatches = |picked: &dyn Fn(usize) -> bool| {
        let unmerged = gpu.unmerged(&there.nodes(picked), |_| true).unwrap();
        let mut outs = case.before.each_ref().map(|before| gpu.alloc(before.len()).unwrap());
        let mut out = outs.iter_mut();
        let products = [0, 1, 2].map(|id| Product {
            weight: &there.weights[id],
            id: MatrixId(id),
            bias: None,
            out: out.next().unwrap(),
            accumulate: false,
        });
        gpu.matmul(&there.x, case.rows, products, &unmerged);
        gpu.take_pending().dispatches()
    };
    assert_eq!(dispatches(&|_| false), 3);
    assert_eq!(dispatches(&|k| k == 0), 3 + 1 + 3);
    assert_eq!(dispatches(&|_| true), 3 + 1 + 3);
    // Node 1 leaves the third matrix alone.
    assert_eq!(dispatches(&|k| k == 1), 3 + 1 + 2);
}

/// Whatever finds no memory or is lost: an error of the device, and the next batch is right.
#[test]
fn what_fails_while_deltas_are_made_ready_leaves_nothing_behind() {
    let Some(mut gpu) = gpu(&GpuOptions::default()) else { return };
    let mut rng = StdRng::seed_from_u64(9);
    let case = Case::made(&mut rng, [50, 20, 30], 40, 4, &low_rank([3, 70, 2]));
    let expected = case.run(&gpu, |_| true);
    gpu.reopen().unwrap();
    let (mut short, mut lost) = (0, 0);
    for after in 1.. {
        let there = case.on(&gpu);
        let nodes = there.nodes(|_| true);
        gpu.context.fail_after(after);
        let unmerged = gpu.unmerged(&nodes, |_| true);
        gpu.context.fail_after(u64::MAX);
        match unmerged {
            Ok(unmerged) => {
                assert_eq!(there.run(&gpu, &case, &unmerged), expected);
                break;
            }
            Err(Error::DeviceMemory { .. }) => {
                let again = gpu.unmerged(&nodes, |_| true).unwrap();
                assert_eq!(there.run(&gpu, &case, &again), expected, "after {after}");
                short += 1;
            }
            Err(Error::DeviceFailed { .. }) => lost += 1,
            Err(error) => panic!("after {after}: {error}"),
        }
        drop(there);
        // As it was before the first batch.
        gpu.reopen().unwrap();
    }
    assert!(short > 3 && lost == 1, "{short} allocations and {lost} submits failed");
}
