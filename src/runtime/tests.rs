//! A pass over the weights that breaks off in the middle.

use std::any::Any;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::replica::DeviceReplica;
use super::{Prompt, Runtime};
use crate::adapter::{AdapterDeltas, FloatDelta};
use crate::device::cpu::Cpu;
use crate::lattice::{CompiledDelta, DeltaKind, NodeDeltas, SparseRows};
use crate::model::GenerateOptions;
use crate::testing::{TinyModel, tiny_hf_model};
use crate::tree::{AdapterTree, NodeSource};
use crate::{Error, WeightName};

/// Ones in a whole column of every matrix that `runtime` has, but in the last matrix one column too
/// far, which no compiled delta ever has: the pass panics there, when other matrices are changed
/// already.
fn breaking_deltas(runtime: &Runtime) -> NodeDeltas {
    let grids = runtime.shared.grids();
    let matrices: Vec<_> = grids.names().map(|(_, id)| id).collect();
    let entry = |&id| {
        let grid = grids.grid(id);
        let rows = u32::try_from(grid.rows()).unwrap();
        let mut cols = vec![0; grid.rows()];
        if id == *matrices.iter().max().unwrap() {
            *cols.last_mut().unwrap() = u32::MAX;
        }
        let kind = DeltaKind::Sparse(SparseRows {
            row_start: (0..=rows).collect(),
            cols,
            values: vec![1; grid.rows()],
        });
        let compiled = CompiledDelta {
            rows: grid.rows(),
            cols: grid.cols,
            row_max: vec![1; grid.rows()],
            kind,
        };
        (id, compiled)
    };
    NodeDeltas::new(matrices.iter().map(entry))
}

#[test]
fn weights_are_unusable_after_a_panic_inside_the_pass_until_they_are_restored() {
    let dir = tempfile::tempdir().unwrap();
    tiny_hf_model(dir.path(), &TinyModel { tied: false, ..TinyModel::default() });
    let entries = vec![(0, 0, 0.01)];
    let delta =
        (WeightName::new("model.layers.0.mlp.up_proj.weight"), FloatDelta::Sparse { entries });
    let good = NodeSource::Memory(Arc::new(AdapterDeltas::from([delta])));
    let bad = NodeSource::Memory(Arc::default());
    let tree =
        AdapterTree::builder().node("good", "/", good).node("bad", "/", bad).build().unwrap();
    let mut runtime =
        Runtime::builder().base(dir.path()).adapter_tree(tree).headroom(2.0).open().unwrap();
    let root = runtime.fingerprint().unwrap();
    runtime.switch_to("good").unwrap();
    let good = runtime.fingerprint().unwrap();

    let (deltas, bad) = (breaking_deltas(&runtime), runtime.version("bad").unwrap());
    runtime.shared.compiled().get(&bad, || Ok((Arc::new(deltas), 0))).unwrap();
    let weights = |runtime: &Runtime| {
        let replica = (&*runtime.replica as &dyn Any)
            .downcast_ref::<DeviceReplica<Cpu>>()
            .expect("opened on the CPU");
        let first = runtime.shared.grids().names().map(|(_, id)| id).min().unwrap();
        replica.weights.matrix(first).clone()
    };
    let before = weights(&runtime);
    let panicked = catch_unwind(AssertUnwindSafe(|| runtime.switch_to("bad")));
    assert!(panicked.is_err(), "the pass broke off");
    assert_ne!(weights(&runtime), before, "and had changed weights before");

    let prompt = Prompt::from("hello");
    let unusable = |result: crate::Result<()>| assert!(matches!(result, Err(Error::Unusable)));
    unusable(runtime.fingerprint().map(drop));
    unusable(
        runtime
            .generate(&prompt, &GenerateOptions::default(), |_| ControlFlow::Continue(()))
            .map(drop),
    );
    unusable(runtime.score(&prompt).map(drop));
    for node in ["/", "good", "bad"] {
        unusable(runtime.switch_to(node).map(drop));
    }
    unusable(runtime.verify(1, 1, 1, |_| ()).map(drop));

    runtime.restore().unwrap();
    assert_eq!((runtime.current(), runtime.fingerprint().unwrap()), ("/", root));
    runtime.score(&prompt).unwrap();
    runtime.switch_to("good").unwrap();
    assert_eq!(runtime.fingerprint().unwrap(), good);
}
