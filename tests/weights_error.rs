//! Merging a path of adapters into bf16 weights, level by level, as is done everywhere, rounds the
//! weights once a level to 8 bits: the error it leaves is of the size of a user's own adapter, so
//! much of what is personal is lost. Here the error at every leaf of the real tree is measured
//! against the float64 sum, beside that of a bf16 merge of the same path.

mod common;

use common::golden::Golden;
use half::bf16;
use pleach::adapter::{AdapterDeltas, BaseShapes, FloatDelta, Limits, PeftAdapter};
use pleach::testing::smollm2_base;
use pleach::tree::{AdapterTree, NodeId, NodeSource};
use pleach::{Runtime, WeightName};
use rayon::prelude::*;

/// How many times smaller the error has to be than that of the bf16 merge.
const TIMES_SMALLER: f64 = 25.0;

/// Sums of squares over weights.
#[derive(Clone, Copy, Default)]
struct Squares {
    /// Live weights against the float64 sum.
    live: f64,
    /// A merge into bf16, level by level, against the same.
    merged: f64,
    /// The leaf's own delta.
    own: f64,
}

impl std::ops::Add for Squares {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            live: self.live + other.live,
            merged: self.merged + other.merged,
            own: self.own + other.own,
        }
    }
}

fn deltas(runtime: &Runtime, tree: &AdapterTree, node: NodeId) -> AdapterDeltas {
    let shapes = BaseShapes::new("the base", runtime.base().weights());
    match tree.source(node) {
        Some(NodeSource::Folder(path)) => {
            PeftAdapter::open(path, &Limits::default()).unwrap().deltas(&shapes).unwrap()
        }
        other => panic!("{other:?}"),
    }
}

/// Row `i` of `scaling · B · A`, in float64.
fn delta_row(delta: &FloatDelta, i: usize, cols: usize) -> Vec<f64> {
    let FloatDelta::LowRank { rank, lora_a, lora_b, scaling } = delta else { panic!("{delta:?}") };
    let mut row = vec![0.0; cols];
    for (b, a) in lora_b[i * rank..][..*rank].iter().zip(lora_a.chunks_exact(cols)) {
        let b = scaling * f64::from(*b);
        row.iter_mut().zip(a).for_each(|(sum, a)| *sum += b * f64::from(*a));
    }
    row
}

fn row_squares(runtime: &Runtime, name: &WeightName, path: &[AdapterDeltas], i: usize) -> Squares {
    let live = runtime.matrix(name).unwrap();
    let mut base = vec![0_f32; live.cols()];
    runtime.base().read_rows(name, i..i + 1, &mut base).unwrap();
    let mut exact: Vec<f64> = base.iter().map(|w| f64::from(*w)).collect();
    let mut merged: Vec<bf16> = base.iter().map(|w| bf16::from_f32(*w)).collect();
    let mut squares = Squares::default();
    for (level, deltas) in path.iter().enumerate() {
        let Some(delta) = deltas.get(name) else { continue };
        for ((sum, merged), delta) in
            exact.iter_mut().zip(&mut merged).zip(delta_row(delta, i, live.cols()))
        {
            *sum += delta;
            *merged = bf16::from_f64(merged.to_f64() + delta);
            squares.own += if level + 1 == path.len() { delta * delta } else { 0.0 };
        }
    }
    let step = f64::from(live.steps()[i]);
    for ((exact, merged), integer) in exact.iter().zip(&merged).zip(live.row(i)) {
        squares.live += (f64::from(*integer) * step - exact).powi(2);
        squares.merged += (merged.to_f64() - exact).powi(2);
    }
    squares
}

#[test]
fn weights_at_every_leaf_are_25_times_closer_to_the_sum_than_a_bf16_merge() {
    let Some(base) = smollm2_base() else { return };
    let golden = Golden::load();
    let tree = AdapterTree::open(&golden.tree).unwrap();
    let mut runtime = Runtime::builder().base(base).adapter_tree(tree.clone()).open().unwrap();
    for leaf in tree.leaves() {
        runtime.switch_to(tree.name(leaf)).unwrap();
        let path: Vec<_> =
            tree.path_from_root(leaf).iter().map(|node| deltas(&runtime, &tree, *node)).collect();
        let mut adapted: Vec<&WeightName> = path.iter().flat_map(|deltas| deltas.keys()).collect();
        adapted.sort();
        adapted.dedup();
        let rows = adapted.par_iter().flat_map_iter(|name| {
            let rows = runtime.base().weight(name).unwrap().rows();
            (0..rows).map(|i| row_squares(&runtime, name, &path, i))
        });
        let sum = rows.reduce(Squares::default, |a, b| a + b);
        let [live, merged] = [sum.live, sum.merged].map(|square| (square / sum.own).sqrt());
        println!(
            "{:<28} {:.3} % of the leaf's own delta; merged into bf16: {:.1} %; {:.1} times as much",
            tree.name(leaf),
            live * 100.0,
            merged * 100.0,
            merged / live
        );
        assert!(merged >= TIMES_SMALLER * live, "{}: {live} {merged}", tree.name(leaf));
    }
}
