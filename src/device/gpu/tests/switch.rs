//! A weight that is off by one on the GPU stays off by one for ever: switches only add and
//! subtract. So every mix of deltas on random shapes is compared with the obvious loops, bit for
//! bit, and the device's own hash with the CPU's.

use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::device::Device;
use crate::device::cpu::Cpu;
use crate::device::gpu::{Gpu, GpuMatrix, GpuOptions};
use crate::lattice::{
    CHUNK_RANK, CompiledDelta, DeltaKind, Factors, LANES, Lane, LatticeMatrix, MatrixId,
    NodeDeltas, SignedDelta, SparseRows, reference,
};
use crate::testing::gpu;
use crate::{Error, Result};

/// One for all tests here; none where there is no adapter.
static GPU: LazyLock<Option<Gpu>> = LazyLock::new(|| gpu(&GpuOptions::default()));

/// As small as a GPU may be, and matrices in parts: 118 rows of 200 columns, 832 rows of 3.
static SMALL: LazyLock<Option<Gpu>> = LazyLock::new(|| {
    gpu(&GpuOptions { minimal: true, max_binding_bytes: Some(52 << 10), ..GpuOptions::default() })
});

static CPU: LazyLock<Cpu> = LazyLock::new(|| Cpu::new(Some(2)).unwrap());

/// Weights start below this, and deltas share what is left.
const BASE: i16 = 8000;

pub(super) fn made_matrix(rng: &mut StdRng, rows: usize, cols: usize) -> LatticeMatrix {
    let mut matrix = LatticeMatrix::zeros(rows, cols);
    let stride = matrix.stride();
    for row in matrix.integers_mut().chunks_exact_mut(stride.max(1)) {
        row[..cols].fill_with(|| rng.random_range(-BASE..=BASE));
    }
    matrix.parts_mut().1.fill_with(|| rng.random_range(1e-5..1e-4));
    matrix
}

/// Factors with rows of very different shift, up to the ends of i16, whose `Q` stays within
/// `largest`.
fn made_factors(rng: &mut StdRng, rows: usize, cols: usize, rank: usize, largest: i32) -> Factors {
    let pairs = rank.div_ceil(2);
    let used = |r: usize| r < rank;
    let a_largest = [1, 300, 32767][rng.random_range(0..3)];
    let mut a = vec![Lane([0; LANES]); cols.div_ceil(LANES) * pairs * 2];
    let mut b = vec![0; rows * pairs * 2];
    let shift: Vec<u8> = (0..rows)
        .map(|_| if rng.random_bool(0.5) { 16 } else { rng.random_range(0..=16) })
        .collect();
    for j in 0..cols {
        for r in (0..pairs * 2).filter(|&r| used(r)) {
            let lane = (j / LANES * pairs + r / 2) * 2 + j % 2;
            a[lane].0[(j % LANES) / 2 * 2 + r % 2] =
                rng.random_range(-a_largest..=a_largest) as i16;
        }
    }
    for (row, &shift) in b.chunks_exact_mut(pairs * 2).zip(&shift) {
        let b_most = (i64::from(largest - 1) << shift).min(1 << 30)
            / (pairs as i64 * 2 * i64::from(a_largest));
        let b_largest = b_most.min(32767) as i16;
        for (r, b) in row.iter_mut().enumerate().filter(|(r, _)| used(*r)) {
            *b = if (r + rows).is_multiple_of(5) {
                b_largest
            } else {
                rng.random_range(-b_largest..=b_largest)
            };
        }
    }
    Factors::from_rows(pairs, a, &b, shift)
}

/// What a node does to one matrix.
#[derive(Clone, Debug)]
pub(super) enum Made {
    Untouched,
    LowRank(usize),
    Dense,
    Sparse,
}

pub(super) fn made_delta(
    rng: &mut StdRng,
    rows: usize,
    cols: usize,
    made: &Made,
    largest: i32,
) -> Option<CompiledDelta> {
    let kind = match *made {
        Made::Untouched => return None,
        Made::LowRank(rank) => {
            let largest = largest / rank.div_ceil(CHUNK_RANK) as i32;
            let ranks = (0..rank).step_by(CHUNK_RANK).map(|first| CHUNK_RANK.min(rank - first));
            DeltaKind::LowRank(
                ranks.map(|rank| made_factors(rng, rows, cols, rank, largest)).collect(),
            )
        }
        Made::Dense => {
            let mut matrix = LatticeMatrix::zeros(rows, cols);
            let stride = matrix.stride();
            for row in matrix.integers_mut().chunks_exact_mut(stride) {
                row[..cols].fill_with(|| rng.random_range(-largest..=largest) as i16);
            }
            DeltaKind::Dense(matrix.into_lanes())
        }
        Made::Sparse => {
            let mut sparse =
                SparseRows { row_start: vec![0], cols: Vec::new(), values: Vec::new() };
            for _ in 0..rows {
                for j in (0..cols).filter(|_| rng.random_bool(0.3)).collect::<Vec<_>>() {
                    sparse.cols.push(j as u32);
                    sparse.values.push(rng.random_range(-largest..=largest) as i16);
                }
                sparse.row_start.push(sparse.cols.len() as u32);
            }
            DeltaKind::Sparse(sparse)
        }
    };
    Some(CompiledDelta { rows, cols, row_max: vec![largest as u32; rows], kind })
}

/// A term: what its node does to each matrix, whether it is added, whether it is on the device
/// before the switch.
type Term = (Vec<Made>, bool, bool);

fn made(ranks: impl Strategy<Value = usize> + 'static) -> impl Strategy<Value = Made> {
    prop_oneof![
        1 => Just(Made::Untouched),
        5 => ranks.prop_map(Made::LowRank),
        1 => Just(Made::Dense),
        1 => Just(Made::Sparse),
    ]
}

fn terms(
    ranks: impl Strategy<Value = usize> + Clone + 'static,
) -> impl Strategy<Value = Vec<Term>> {
    prop::collection::vec(
        (prop::collection::vec(made(ranks), 3), any::<bool>(), any::<bool>()),
        0..=10,
    )
}

fn signed<D>(delta: D, add: bool) -> SignedDelta<D> {
    if add { SignedDelta::added(delta) } else { SignedDelta::subtracted(delta) }
}

fn same(gpu: &Gpu, there: &[GpuMatrix], expected: &[LatticeMatrix], what: &str) -> TestCaseResult {
    for (there, expected) in there.iter().zip(expected) {
        prop_assert_eq!(&gpu.read_matrix(there).unwrap(), expected, "{}", what);
    }
    let found = gpu.fingerprint(&there.iter().collect::<Vec<_>>()).unwrap();
    prop_assert_eq!(
        found,
        CPU.fingerprint(&expected.iter().collect::<Vec<_>>()).unwrap(),
        "hash, {}",
        what
    );
    Ok(())
}

/// Switches there and back by every way, and compares with the obvious loops.
fn check(gpu: &Gpu, shapes: &[(usize, usize)], terms: &[Term], seed: u64) -> TestCaseResult {
    let mut rng = StdRng::seed_from_u64(seed);
    let base: Vec<_> =
        shapes.iter().map(|&(rows, cols)| made_matrix(&mut rng, rows, cols)).collect();
    let largest = (i32::from(i16::MAX) - i32::from(BASE)) / terms.len().max(1) as i32;
    let nodes: Vec<_> = terms
        .iter()
        .map(|(made, ..)| {
            let deltas =
                made.iter().zip(shapes).enumerate().filter_map(|(id, (made, &(rows, cols)))| {
                    Some((MatrixId(id), made_delta(&mut rng, rows, cols, made, largest)?))
                });
            Arc::new(NodeDeltas::new(deltas))
        })
        .collect();
    let mut expected = base.clone();
    for (id, matrix) in expected.iter_mut().enumerate() {
        let signed_nodes = nodes.iter().zip(terms).map(|(node, term)| signed(&**node, term.1));
        let deltas: Vec<_> = signed_nodes.filter_map(|node| node.on(MatrixId(id))).collect();
        reference::delta_apply(matrix, &deltas);
    }

    let mut there: Vec<_> =
        base.iter().map(|matrix| gpu.upload_matrix(matrix.clone()).unwrap()).collect();
    let deltas: Vec<_> = nodes.iter().map(|node| gpu.upload_deltas(node).unwrap()).collect();
    let early =
        deltas.iter().zip(terms).filter_map(|(deltas, (.., early))| early.then_some(deltas));
    gpu.finish_uploads(&early.collect::<Vec<_>>()).unwrap();
    let forth: Vec<_> =
        deltas.iter().zip(terms).map(|(deltas, term)| signed(deltas, term.1)).collect();
    let back: Vec<_> = forth.iter().map(|term| term.inverse()).rev().collect();
    gpu.prepare_and_apply(&mut there, &forth).unwrap();
    same(gpu, &there, &expected, "forth")?;
    gpu.prepare_and_apply(&mut there, &back).unwrap();
    same(gpu, &there, &base, "back")?;
    crate::device::gpu::naive::delta_apply(gpu, &mut there, &forth).unwrap();
    same(gpu, &there, &expected, "forth by the naive kernel")
}

fn side() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1_usize), Just(2), 3..10_usize, 30..70_usize, Just(128), 129..200_usize]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn delta_apply_delta_dense_and_delta_sparse_have_the_bits_of_the_obvious_loops(
        shapes in prop::collection::vec((side(), side()), 3),
        terms in terms(prop_oneof![3 => 1_usize..9, 2 => 9..20_usize, 1 => 60..70_usize, 1 => Just(200)]),
        seed in any::<u64>(),
    ) {
        if let Some(gpu) = &*GPU {
            check(gpu, &shapes, &terms, seed)?;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn parts_of_matrices_and_of_nodes_give_the_same_bits(
        rows in 100..400_usize,
        cols in 190..=200_usize,
        terms in terms(prop_oneof![1_usize..9, 30..=40_usize]),
        seed in any::<u64>(),
    ) {
        if let Some(gpu) = &*SMALL {
            check(gpu, &[(rows, cols), (7, 9), (rows, 192)], &terms, seed)?;
        }
    }
}

#[test]
fn matrices_beyond_65535_rows_or_columns_move_whole() {
    let Some(gpu) = &*GPU else { return };
    let terms = [(vec![Made::LowRank(3), Made::LowRank(5), Made::Untouched], true, false)];
    check(gpu, &[(70_001, 3), (3, 140_002), (1, 1)], &terms, 1).unwrap();
}

#[test]
fn a_node_taken_twice_counts_twice() {
    let Some(gpu) = &*GPU else { return };
    let mut rng = StdRng::seed_from_u64(2);
    let base = made_matrix(&mut rng, 70, 90);
    for made in [Made::LowRank(6), Made::Dense, Made::Sparse] {
        let delta = made_delta(&mut rng, 70, 90, &made, 1000).unwrap();
        let mut expected = base.clone();
        reference::delta_apply(&mut expected, &[SignedDelta::added(&delta); 3]);
        let deltas = gpu.upload_deltas(&Arc::new(NodeDeltas::new([(MatrixId(0), delta)]))).unwrap();
        let mut there = [gpu.upload_matrix(base.clone()).unwrap()];
        gpu.prepare_and_apply(&mut there, &[SignedDelta::added(&deltas); 2]).unwrap();
        gpu.prepare_and_apply(&mut there, &[SignedDelta::added(&deltas)]).unwrap();
        assert_eq!(gpu.read_matrix(&there[0]).unwrap(), expected, "{made:?}");
    }
}

#[test]
fn sums_beyond_i16_wrap_on_the_way_and_come_back() {
    let Some(gpu) = &*GPU else { return };
    let mut rng = StdRng::seed_from_u64(3);
    let base = made_matrix(&mut rng, 33, 50);
    let node = |made| Arc::new(NodeDeltas::new([(MatrixId(0), made)]));
    let mut delta = || made_delta(&mut rng, 33, 50, &Made::LowRank(70), 32767).unwrap();
    let deltas = [delta(), delta(), delta()].map(|delta| gpu.upload_deltas(&node(delta)).unwrap());
    let mut there = [gpu.upload_matrix(base.clone()).unwrap()];
    let forth = deltas.each_ref().map(SignedDelta::added);
    gpu.prepare_and_apply(&mut there, &forth).unwrap();
    gpu.prepare_and_apply(&mut there, &forth.map(SignedDelta::inverse)).unwrap();
    assert_eq!(gpu.read_matrix(&there[0]).unwrap(), base);
}

#[test]
fn staging_memory_goes_when_the_upload_is_done() {
    let Some(gpu) = &*GPU else { return };
    let mut rng = StdRng::seed_from_u64(4);
    let delta = made_delta(&mut rng, 600, 64, &Made::LowRank(64), 1000).unwrap();
    let deltas = gpu.upload_deltas(&Arc::new(NodeDeltas::new([(MatrixId(0), delta)]))).unwrap();
    // `B'` in whole panels of 16 rows.
    assert_eq!(gpu.deltas_bytes(&deltas), 2 * 64 * (608 + 64) + 600);
    let waiting = || deltas.stores.iter().filter(|store| store.is_staged()).count();
    assert_eq!(waiting(), 1);
    gpu.finish_uploads(&[&deltas]).unwrap();
    assert_eq!(waiting(), 0);
}

#[test]
fn a_chunk_beyond_the_binding_limit_is_refused() {
    let Some(gpu) = &*SMALL else { return };
    let delta =
        made_delta(&mut StdRng::seed_from_u64(5), 400, 200, &Made::LowRank(64), 1000).unwrap();
    let refused: Result<_> = gpu.upload_deltas(&Arc::new(NodeDeltas::new([(MatrixId(0), delta)])));
    assert!(matches!(refused, Err(Error::DeviceLimit { limit: 53_248, .. })));
}

#[test]
fn fingerprint_is_the_cpus_at_every_edge_of_chunks_trees_and_parts() {
    let mut rng = StdRng::seed_from_u64(6);
    let one_chunk = [
        (0, 0),
        (0, 5),
        (4, 0),
        (1, 1),
        (3, 5),
        (1, 8),
        (1, 502),
        (1, 503),
        (2, 250),
        (1, 24),
        (63, 1),
    ];
    let some = [
        (1, 504),
        (31, 33),
        (65, 1000),
        (64, 512),
        (129, 255),
        (513, 64),
        (1, 32_758),
        (1, 32_759),
    ];
    let parts = [(400, 200), (355, 199), (3000, 3), (13_000, 1), (300, 192)];
    for (gpu, large) in [(&*GPU, Some((2100, 1024))), (&*SMALL, None)] {
        let Some(gpu) = gpu else { return };
        let shapes = one_chunk.into_iter().chain(some).chain(parts).chain(large);
        let of_small = |&(_, cols): &(usize, usize)| large.is_some() || cols * 2 <= 52 << 10;
        let matrices: Vec<_> =
            shapes.filter(of_small).map(|(rows, cols)| made_matrix(&mut rng, rows, cols)).collect();
        let there: Vec<_> =
            matrices.iter().map(|matrix| gpu.upload_matrix(matrix.clone()).unwrap()).collect();
        let found = gpu.fingerprint(&there.iter().collect::<Vec<_>>()).unwrap();
        let expected = CPU.fingerprint(&matrices.iter().collect::<Vec<_>>()).unwrap();
        for ((matrix, found), expected) in matrices.iter().zip(found).zip(expected) {
            assert_eq!(found, expected, "{} × {}", matrix.rows(), matrix.cols());
        }
    }
}

#[test]
fn a_hash_over_parts_of_less_than_a_chunk_is_refused() {
    let options = GpuOptions { max_binding_bytes: Some(4096), ..GpuOptions::default() };
    let Some(gpu) = gpu(&options) else { return };
    let there = gpu.upload_matrix(LatticeMatrix::zeros(200, 3)).unwrap();
    assert!(matches!(gpu.fingerprint(&[&there]), Err(Error::DeviceLimit { bytes: 1024, .. })));
}

/// The embedding of a large model is beyond the 128 MiB that a binding holds by default.
#[test]
fn a_matrix_beyond_the_default_binding_limit_has_the_cpus_bits() {
    let Some(gpu) = gpu(&GpuOptions { minimal: true, ..GpuOptions::default() }) else { return };
    let mut rng = StdRng::seed_from_u64(4);
    let (rows, cols) = (67_000, 1024);
    let mut here = vec![made_matrix(&mut rng, rows, cols)];
    let mut there = vec![gpu.upload_matrix(here[0].clone()).unwrap()];
    assert_eq!(there[0].parts.len(), 2);
    let delta = made_delta(&mut rng, rows, cols, &Made::LowRank(1), 5000).unwrap();
    let node = Arc::new(NodeDeltas::new([(MatrixId(0), delta)]));
    let on_gpu = gpu.upload_deltas(&node).unwrap();
    gpu.prepare_and_apply(&mut there, &[SignedDelta::added(&on_gpu)]).unwrap();
    CPU.prepare_and_apply(&mut here, &[SignedDelta::added(&node)]).unwrap();
    assert_eq!(gpu.fingerprint(&[&there[0]]).unwrap(), CPU.fingerprint(&[&here[0]]).unwrap());
}
