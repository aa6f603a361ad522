//! An adapter on the wrong base gives text that looks like text and means nothing, and no tool said a word: the shapes
//! of two models of one family agree. A base with a NaN answers nothing but that. Both are found before a weight moves.

use std::path::Path;

use candle_core::quantized::GgmlDType;
use pleach::base::BaseModel;
use pleach::error::{AdapterDefect, TreeDefect};
use pleach::testing::adapter::{TinyAdapter, TinyModule};
use pleach::testing::{TinyModel, tiny_gguf, tiny_hf_model, tiny_hf_model_of};
use pleach::{Error, Runtime};
use safetensors::Dtype;
use tempfile::TempDir;

/// A tree of one node for a base 64 wide, with a `tree.toml` that pins `blake3`.
fn tree(blake3: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let modules = vec![TinyModule::linear("model.layers.0.self_attn.q_proj", 64, 64)];
    TinyAdapter::new(modules, 2, 1).write(&dir.path().join("fr")).unwrap();
    if !blake3.is_empty() {
        std::fs::write(dir.path().join("tree.toml"), format!("[base]\nblake3 = \"{blake3}\"\n")).unwrap();
    }
    dir
}

fn open(base: &Path, tree: &Path) -> pleach::Result<Runtime> {
    Runtime::builder().base(base).tree(tree).headroom(2.0).open()
}

#[test]
fn tree_pinned_to_another_base_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (right, wrong, gguf) = (dir.path().join("right"), dir.path().join("wrong"), dir.path().join("base.gguf"));
    let model = TinyModel::default();
    tiny_hf_model(&right, &model);
    tiny_hf_model(&wrong, &TinyModel { seed: 2, ..model.clone() });
    tiny_gguf(&gguf, &model, GgmlDType::F32);
    for base in [&right, &gguf] {
        let hash = BaseModel::open(base).unwrap().content_hash().to_owned();
        for pin in [hash.clone(), hash.to_uppercase()] {
            open(base, tree(&pin).path()).unwrap().switch_to("fr").unwrap();
        }
        // The same shapes, other numbers.
        match open(&wrong, tree(&hash).path()) {
            Err(Error::WrongBase { base, expected, found }) => {
                assert_eq!((base, expected), (wrong.clone(), hash.clone()));
                assert_ne!(found, hash);
            }
            other => panic!("{other:?}"),
        }
    }
    for pin in ["abc", &"g".repeat(64)] {
        match open(&right, tree(pin).path()) {
            Err(Error::Tree(defect)) => assert!(matches!(*defect, TreeDefect::BadHash { .. }), "{defect:?}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn tree_of_another_width_is_refused_and_the_root_still_answers() {
    let dir = tempfile::tempdir().unwrap();
    tiny_hf_model(dir.path(), &TinyModel { hidden: 32, ..TinyModel::default() });
    let tree = tree("");
    let mut runtime = open(dir.path(), tree.path()).unwrap();
    let root = (runtime.fingerprint().unwrap(), runtime.score(&"hello".into()).unwrap());
    match runtime.switch_to("fr") {
        Err(Error::Adapter { defect, .. }) => {
            assert!(matches!(*defect, AdapterDefect::ShapeMismatch { .. }), "{defect:?}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!((runtime.fingerprint().unwrap(), runtime.score(&"hello".into()).unwrap()), root);
}

#[test]
fn headroom_out_of_its_range_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    tiny_hf_model(dir.path(), &TinyModel::default());
    let open = |headroom: f32| Runtime::builder().base(dir.path()).headroom(headroom).open();
    for headroom in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.25, 0.0, 0.999, 1024.5] {
        match open(headroom) {
            Err(Error::Headroom { headroom: found }) => assert_eq!(found.to_bits(), headroom.to_bits()),
            other => panic!("{headroom}: {other:?}"),
        }
    }
    for headroom in [1.0, 1024.0] {
        open(headroom).unwrap();
    }
}

#[test]
fn base_with_a_number_that_is_none_is_refused() {
    let model = TinyModel::default();
    for (name, value) in [
        ("model.embed_tokens.weight", f32::NAN),
        ("model.layers.1.mlp.down_proj.weight", f32::INFINITY),
        ("model.layers.0.input_layernorm.weight", f32::NAN),
        ("model.norm.weight", f32::NEG_INFINITY),
    ] {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            let dir = tempfile::tempdir().unwrap();
            let mut weights = model.weights();
            let values = &mut weights.get_mut(name).unwrap().1;
            let last = values.len() - 1;
            values[last] = value;
            tiny_hf_model_of(dir.path(), &TinyModel { dtype, ..model.clone() }, &weights);
            match Runtime::builder().base(dir.path()).open() {
                Err(Error::NonFinite { tensor, index, .. }) => assert_eq!((tensor.as_str(), index), (name, last)),
                other => panic!("{name} {dtype:?}: {other:?}"),
            }
        }
    }
}

#[test]
fn base_with_rows_of_extreme_size_comes_back_bit_for_bit() {
    let model = TinyModel::default();
    for size in [f32::MAX, f32::MIN_POSITIVE / 8.0, 0.0] {
        let dir = tempfile::tempdir().unwrap();
        let mut weights = model.weights();
        weights.get_mut("model.layers.0.self_attn.q_proj.weight").unwrap().1[3 * 64..][..64].fill(size);
        tiny_hf_model_of(dir.path(), &model, &weights);
        let tree = tree("");
        let mut runtime = Runtime::builder().base(dir.path()).tree(tree.path()).headroom(16.0).open().unwrap();
        let root = runtime.fingerprint().unwrap();
        runtime.switch_to("fr").unwrap();
        assert_ne!(runtime.fingerprint().unwrap(), root);
        runtime.switch_to("/").unwrap();
        assert_eq!(runtime.fingerprint().unwrap(), root, "{size}");
    }
}
