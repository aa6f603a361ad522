//! An adapter on the wrong base makes text that looks like text and means nothing, and no tool said
//! a word: the shapes of two models of one family agree. A base with a NaN answers nothing but
//! that. Both are found before a weight moves.

#[path = "../common/cli.rs"]
mod cli;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{self, Value};
use pleach::base::BaseModel;
use pleach::error::{
    AdapterDefect, ConfigDefect, FileKind, GgufDefect, SafeTensorsDefect, TreeDefect,
};
use pleach::testing::adapter::{TinyAdapter, TinyModule};
use pleach::testing::{TinyModel, tiny_gguf, tiny_hf_model, tiny_hf_model_of};
use pleach::{Error, Runtime, WeightName};
use safetensors::Dtype;
use tempfile::TempDir;

/// A tree of one node for a base 64 wide, with a `tree.toml` that pins `blake3`.
fn tree(blake3: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let modules = vec![TinyModule::linear("model.layers.0.self_attn.q_proj", 64, 64)];
    TinyAdapter::new(modules, 2, 1).write(&dir.path().join("fr")).unwrap();
    if !blake3.is_empty() {
        std::fs::write(dir.path().join("tree.toml"), format!("[base]\nblake3 = \"{blake3}\"\n"))
            .unwrap();
    }
    dir
}

fn open(base: &Path, tree: &Path) -> pleach::Result<Runtime> {
    Runtime::builder().base(base).tree(tree).headroom(2.0).open()
}

#[test]
fn tree_pinned_to_another_base_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (right, wrong, gguf) =
        (dir.path().join("right"), dir.path().join("wrong"), dir.path().join("base.gguf"));
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
            Err(Error::Tree(defect)) => {
                assert!(matches!(*defect, TreeDefect::BadHash { .. }), "{defect:?}")
            }
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
            Err(Error::Headroom { headroom: found }) => {
                assert_eq!(found.to_bits(), headroom.to_bits())
            }
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
            let opened = Runtime::builder().base(dir.path()).open().map(drop);
            for result in [opened, BaseModel::open(dir.path()).unwrap().check_values()] {
                match result {
                    Err(Error::NonFinite { tensor, index, .. }) => {
                        assert_eq!((tensor.as_str(), index), (name, last))
                    }
                    other => panic!("{name} {dtype:?}: {other:?}"),
                }
            }
            let refusal = cli::pleach(&["inspect", dir.path().to_str().unwrap()]).refusal();
            assert!(refusal.contains(name), "{refusal}");
        }
    }
}

#[test]
fn base_with_rows_of_extreme_size_comes_back_bit_for_bit() {
    let model = TinyModel::default();
    for size in [f32::MAX, f32::MIN_POSITIVE / 8.0, 0.0] {
        let dir = tempfile::tempdir().unwrap();
        let mut weights = model.weights();
        weights.get_mut("model.layers.0.self_attn.q_proj.weight").unwrap().1[3 * 64..][..64]
            .fill(size);
        tiny_hf_model_of(dir.path(), &model, &weights);
        let tree = tree("");
        let mut runtime =
            Runtime::builder().base(dir.path()).tree(tree.path()).headroom(16.0).open().unwrap();
        let root = runtime.fingerprint().unwrap();
        runtime.switch_to("fr").unwrap();
        assert_ne!(runtime.fingerprint().unwrap(), root);
        runtime.switch_to("/").unwrap();
        assert_eq!(runtime.fingerprint().unwrap(), root, "{size}");
    }
}

fn refusal(path: &Path) -> Error {
    BaseModel::open(path).err().unwrap_or_else(|| panic!("{} is opened", path.display()))
}

fn config_defect(path: &Path) -> ConfigDefect {
    match refusal(path) {
        Error::Config { defect, .. } => defect,
        other => panic!("{other}"),
    }
}

/// What a download or a clone leaves in a model's place used to be called damaged, or cut short.
#[test]
fn other_files_under_a_models_name_are_called_what_they_are() {
    for (bytes, kind, advice) in [
        (&b""[..], FileKind::Empty, "fetch it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
            FileKind::LfsPointer,
            "git lfs pull",
        ),
        (b"<!DOCTYPE html>\n<html class=\"\">\n<head>", FileKind::Page, "log-in"),
        (
            b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
            FileKind::Page,
            "web page",
        ),
        (b"PK\x03\x04\0\0\x08\x08archive/data.pkl", FileKind::Zip, "save_file"),
        (
            b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.",
            FileKind::Pickle,
            "never read",
        ),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", FileKind::Gzip, "unpack"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        tiny_hf_model(dir.path(), &TinyModel::default());
        std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        let error = refusal(dir.path());
        assert!(error.to_string().contains(advice), "{error}");
        match error {
            Error::SafeTensors { defect: SafeTensorsDefect::OtherFile { found }, .. } => {
                assert_eq!(found, kind)
            }
            other => panic!("{other}"),
        }
        let gguf = dir.path().join("base.gguf");
        std::fs::write(&gguf, bytes).unwrap();
        match refusal(&gguf) {
            Error::Gguf { defect: GgufDefect::OtherFile { found }, .. } => assert_eq!(found, kind),
            other => panic!("{other}"),
        }
        let nameless = dir.path().join("base");
        std::fs::write(&nameless, bytes).unwrap();
        match config_defect(&nameless) {
            ConfigDefect::OtherFile { found } => assert_eq!(found, kind),
            other => panic!("{other}"),
        }
    }
    let dir = tempfile::tempdir().unwrap();
    tiny_hf_model(dir.path(), &TinyModel::default());
    let file = dir.path().join("model.safetensors");
    tiny_gguf(&file, &TinyModel::default(), GgmlDType::F32);
    let found = match refusal(dir.path()) {
        Error::SafeTensors { defect: SafeTensorsDefect::OtherFile { found }, .. } => found,
        other => panic!("{other}"),
    };
    assert_eq!(found, FileKind::Gguf);
}

#[test]
fn parts_of_a_model_and_adapters_are_no_bases() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    tiny_hf_model(&model, &TinyModel::default());
    for file in ["model.safetensors", "config.json"] {
        match config_defect(&model.join(file)) {
            ConfigDefect::InsideFolder { folder } => assert_eq!(folder, model),
            other => panic!("{other}"),
        }
    }
    assert!(matches!(config_defect(&model.join("tokenizer.json")), ConfigDefect::NotABase));

    let tree = tree("");
    let adapter = tree.path().join("fr");
    let config = adapter.join("adapter_config.json");
    let edit = |base: &str| {
        let mut value: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
        value["base_model_name_or_path"] = base.into();
        std::fs::write(&config, value.to_string()).unwrap();
    };
    edit("org/plain");
    // With and without the base's config.json, which some trainers put beside it.
    for beside in [false, true] {
        if beside {
            std::fs::copy(model.join("config.json"), adapter.join("config.json")).unwrap();
        }
        match config_defect(&adapter) {
            ConfigDefect::Adapter { base } => assert_eq!(base, "`org/plain`"),
            other => panic!("{other}"),
        }
    }

    let around = dir.path().join("around");
    std::fs::create_dir(&around).unwrap();
    tiny_gguf(&around.join("base.gguf"), &TinyModel::default(), GgmlDType::F32);
    match config_defect(&around) {
        ConfigDefect::GgufInside { file } => assert_eq!(file, around.join("base.gguf")),
        other => panic!("{other}"),
    }
}

#[test]
fn gguf_files_that_are_no_models_are_named() {
    for (kind, advice) in [
        ("adapter", "PEFT folders"),
        ("mmproj", "the base's own file"),
        ("imatrix", "expected model"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("it.gguf");
        let metadata = [
            ("general.type", Value::String(kind.to_owned())),
            ("general.architecture", Value::String("llama".to_owned())),
        ];
        let metadata: Vec<_> = metadata.iter().map(|(key, value)| (*key, value)).collect();
        gguf_file::write(&mut std::fs::File::create(&path).unwrap(), &metadata, &[]).unwrap();
        let defect = config_defect(&path);
        assert!(
            matches!(&defect, ConfigDefect::GgufKind { found, .. } if found == kind),
            "{defect}"
        );
        assert!(defect.to_string().contains(advice), "{defect}");
    }
}

/// `save_pretrained` of transformers on a model that PEFT wrapped: with adapters in it nobody but
/// PEFT knows what is what.
#[test]
fn peft_model_saved_whole_is_read_only_where_it_is_exactly_the_model() {
    let model = TinyModel::default();
    let wrapped = |name: &str| format!("base_model.model.{name}");
    let plain: BTreeMap<_, _> =
        model.weights().into_iter().map(|(name, weight)| (wrapped(&name), weight)).collect();
    let dir = tempfile::tempdir().unwrap();
    tiny_hf_model_of(dir.path(), &model, &plain);
    let base = BaseModel::open(dir.path()).unwrap();
    let name = "model.layers.1.mlp.down_proj.weight";
    let mut values = vec![0.0; 64 * 96];
    base.read_rows(&WeightName::new(name), 0..64, &mut values).unwrap();
    assert_eq!(values, model.weights()[name].1);

    for (from, to) in [
        (wrapped(name), "base_model.model.model.layers.1.mlp.down_proj.base_layer.weight"),
        (wrapped("model.norm.weight"), "model.norm.weight"),
    ] {
        let mut weights = plain.clone();
        let weight = weights.remove(&from).unwrap();
        weights.insert(to.to_owned(), weight);
        tiny_hf_model_of(dir.path(), &model, &weights);
        match config_defect(dir.path()) {
            ConfigDefect::PeftModel { tensor } => assert_eq!(tensor, to),
            other => panic!("{other}"),
        }
    }
    let mut weights = plain;
    weights.insert(
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight".to_owned(),
        (vec![2, 64], vec![0.0; 128]),
    );
    tiny_hf_model_of(dir.path(), &model, &weights);
    assert!(matches!(config_defect(dir.path()), ConfigDefect::PeftModel { .. }));
}

#[test]
fn json_with_a_byte_order_mark_is_read_and_pythons_numbers_are_named() {
    let dir = tempfile::tempdir().unwrap();
    tiny_hf_model(dir.path(), &TinyModel { shards: 2, ..TinyModel::default() });
    for file in ["config.json", "model.safetensors.index.json"] {
        let path = dir.path().join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("\u{feff}{text}")).unwrap();
        BaseModel::open(dir.path()).unwrap();
        for number in ["NaN", "Infinity", "-Infinity"] {
            std::fs::write(&path, text.replacen('{', &format!("{{\"a\": {number},"), 1)).unwrap();
            let error = refusal(dir.path()).to_string();
            assert!(
                error.contains(file) && error.contains(&format!("{number} at line 1 column 7")),
                "{error}"
            );
        }
        std::fs::write(&path, "<!doctype html>").unwrap();
        let error = refusal(dir.path()).to_string();
        assert!(error.contains("web page"), "{error}");
        std::fs::write(&path, text).unwrap();
    }
}

#[test]
fn quantised_folder_names_its_plain_twin() {
    let dir = tempfile::tempdir().unwrap();
    for (folder, name, twin) in [
        ("Llama-3.2-1B-bnb-4bit", "", "Llama-3.2-1B,"),
        ("local", "unsloth/Qwen2.5-7B-Instruct-unsloth-bnb-4bit", "unsloth/Qwen2.5-7B-Instruct,"),
        ("models--Qwen--Qwen2.5-0.5B-Instruct-AWQ/snapshots/0a1b", "", "Qwen2.5-0.5B-Instruct,"),
        ("plain", "", ""),
    ] {
        let path = dir.path().join(folder);
        tiny_hf_model(&path, &TinyModel::default());
        let config = path.join("config.json");
        let mut value: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
        value["quantization_config"] =
            serde_json::json!({"quant_method": "bitsandbytes", "load_in_4bit": true});
        if !name.is_empty() {
            value["_name_or_path"] = name.into();
        }
        std::fs::write(&config, value.to_string()).unwrap();
        match config_defect(&path) {
            ConfigDefect::Quantised { method, twin: found } => {
                assert_eq!(
                    (method.as_str(), found.contains(twin), found.is_empty()),
                    ("bitsandbytes", true, twin.is_empty())
                );
            }
            other => panic!("{other}"),
        }
    }
}
