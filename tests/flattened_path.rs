//! An adapter written with a scaling lost, or with a pattern that matches one module too many,
//! still loads, and answers only a little differently. So the real path, whose levels differ in
//! rank, scaling and modules, is flattened, written and read back, and every product is held
//! against the sum of the levels.

mod common;

use common::golden::Golden;
use pleach::WeightName;
use pleach::adapter::{
    AdapterDeltas, FloatDelta, Limits, PeftAdapter, PeftOptions, flatten, write_peft,
};
use pleach::testing::adapter::own_shapes;
use pleach::tree::{AdapterTree, NodeSource};

fn deltas(adapter: &PeftAdapter) -> AdapterDeltas {
    adapter.deltas(&own_shapes(adapter)).unwrap()
}

/// Adds `scaling · B · A` to `sums` in float64.
fn add_product(delta: &FloatDelta, sums: &mut [f64], cols: usize) {
    let FloatDelta::LowRank { rank, lora_a, lora_b, scaling } = delta else { panic!("{delta:?}") };
    for (row, b) in sums.chunks_mut(cols).zip(lora_b.chunks(*rank)) {
        for (b, a) in b.iter().zip(lora_a.chunks(cols)) {
            row.iter_mut()
                .zip(a)
                .for_each(|(sum, a)| *sum += scaling * f64::from(*b) * f64::from(*a));
        }
    }
}

#[test]
fn a_real_path_written_as_one_adapter_is_the_sum_of_its_levels() {
    let golden = Golden::load();
    let tree = AdapterTree::open(&golden.tree).unwrap();
    let levels: Vec<AdapterDeltas> = golden.nodes["fr/sysadmin/name-line/alice"]
        .path
        .iter()
        .map(|name| match tree.source(tree.node(name).unwrap()) {
            Some(NodeSource::Folder(path)) => {
                deltas(&PeftAdapter::open(path, &Limits::default()).unwrap())
            }
            other => panic!("{name}: {other:?}"),
        })
        .collect();
    assert_eq!(levels.len(), 4);
    let flat = flatten(&levels.iter().collect::<Vec<_>>()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for uniform_rank in [false, true] {
        let dir = folder.path().join(format!("alice-{uniform_rank}"));
        write_peft(&dir, &flat, &PeftOptions { uniform_rank, ..PeftOptions::default() }).unwrap();
        let adapter = PeftAdapter::open(&dir, &Limits::default()).unwrap();
        assert_eq!(adapter.summary().ranks.len() == 1, uniform_rank, "{}", adapter.summary());
        let found = deltas(&adapter);
        let expected: std::collections::BTreeSet<&WeightName> =
            levels.iter().flat_map(AdapterDeltas::keys).collect();
        assert!(found.keys().eq(expected), "the weights of every level and no others");
        for (weight, module) in adapter.header().targets() {
            let [rows, cols] = module.shape;
            let (mut sums, mut written) = (vec![0.0; rows * cols], vec![0.0; rows * cols]);
            levels
                .iter()
                .filter_map(|level| level.get(weight))
                .for_each(|d| add_product(d, &mut sums, cols));
            add_product(&found[weight], &mut written, cols);
            let norm =
                |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
            let error = norm(&mut sums.iter().zip(&written).map(|(sum, written)| sum - written));
            assert!(error <= 1e-7 * norm(&mut sums.iter().copied()), "{weight}: {error}");
        }
    }
}
