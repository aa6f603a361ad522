//! An adapter read with a wrong scaling still answers, only a little differently: rank_pattern
//! dropped, alpha taken from the wrong pattern, rsLoRA ignored, bf16 read as f16. Nobody sees it in
//! the text. So the deltas of real adapters are held against a float64 sum computed elsewhere, and
//! every pattern of the real tree has to land on its modules.

mod common;

use common::golden::Golden;
use pleach::WeightName;
use pleach::adapter::{FloatDelta, Limits, PeftAdapter};
use pleach::testing::adapter::own_shapes;
use pleach::tree::{AdapterTree, NodeSource};

const CORNER: usize = 64;

fn open(tree: &AdapterTree, name: &str) -> PeftAdapter {
    match tree.source(tree.node(name).unwrap()) {
        Some(NodeSource::Folder(path)) => PeftAdapter::open(path, &Limits::default()).unwrap(),
        other => panic!("{name}: {other:?}"),
    }
}

/// `scaling · B · A` in float64, row-major.
fn product(delta: &FloatDelta, rows: usize, cols: usize) -> Vec<f64> {
    let FloatDelta::LowRank { rank, lora_a, lora_b, scaling } = delta else { panic!("{delta:?}") };
    let mut out = vec![0.0; rows * cols];
    for (i, row) in out.chunks_mut(cols).enumerate() {
        for r in 0..*rank {
            let b = scaling * f64::from(lora_b[i * rank + r]);
            row.iter_mut().zip(&lora_a[r * cols..]).for_each(|(sum, a)| *sum += b * f64::from(*a));
        }
    }
    out
}

#[test]
fn deltas_of_real_adapters_equal_the_float64_sum_of_the_path() {
    let golden = Golden::load();
    let tree = AdapterTree::open(&golden.tree).unwrap();
    for (name, node) in golden.adapter_nodes() {
        for (tensor, expected) in &node.tensors {
            let [rows, cols] = expected.shape;
            let mut sum = vec![0.0; rows * cols];
            for step in &node.path {
                let adapter = open(&tree, step);
                let deltas = adapter.deltas(&own_shapes(&adapter)).unwrap();
                if let Some(delta) = deltas.get(&WeightName::new(tensor)) {
                    sum.iter_mut()
                        .zip(product(delta, rows, cols))
                        .for_each(|(sum, value)| *sum += value);
                }
            }
            let norm = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
            assert!(
                (norm - expected.fro_delta).abs() < 1e-9,
                "{name} {tensor}: {norm} {}",
                expected.fro_delta
            );
            let (base, merged) = (golden.corner("base", tensor), golden.corner(name, tensor));
            for i in 0..CORNER {
                for j in 0..CORNER {
                    let (at, here) = (i * CORNER + j, sum[i * cols + j]);
                    assert!(
                        (merged[at] - base[at] - here).abs() < 1e-12,
                        "{name} {tensor} [{i}, {j}]"
                    );
                }
            }
        }
    }
}

#[test]
fn the_golden_tree_is_the_opened_tree() {
    let golden = Golden::load();
    let tree = AdapterTree::open(&golden.tree).unwrap();
    let names: Vec<&str> = tree.nodes().skip(1).map(|id| tree.name(id)).collect();
    assert_eq!(names.len(), golden.adapter_nodes().count());
    for (name, node) in golden.adapter_nodes() {
        let path = tree.path_from_root(tree.node(name).unwrap());
        assert_eq!(path.iter().map(|id| tree.name(*id)).collect::<Vec<_>>(), node.path, "{name}");
    }
}

#[test]
fn golden_logits_are_there_for_every_prompt() {
    let golden = Golden::load();
    for (name, node) in &golden.nodes {
        for (index, prompt) in node.prompts.iter().enumerate() {
            let logits = golden.logits(name, index);
            let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
            assert_eq!(best, prompt.greedy_ids[0] as usize, "{name} {:?}", prompt.text);
            assert_eq!(prompt.greedy_ids.len(), prompt.greedy_top2_margins.len());
        }
    }
}
