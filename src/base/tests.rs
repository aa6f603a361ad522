//! Made models of both formats, sound and damaged.

use std::path::Path;

use candle_core::quantized::GgmlDType;
use safetensors::Dtype;
use serde_json::{Value, json};

use super::*;
use crate::arch::RopeScaling;
use crate::error::ConfigDefect;
use crate::name::HEAD;
use crate::testing::{TinyModel, tiny_gguf, tiny_hf_model};

fn read_all(base: &BaseModel, name: &str) -> Vec<f32> {
    let name = WeightName::new(name);
    let info = base.weight(&name).unwrap();
    let mut out = vec![f32::NAN; info.rows() * info.cols()];
    base.read_rows(&name, 0..info.rows(), &mut out).unwrap();
    out
}

fn folder(model: &TinyModel) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    tiny_hf_model(dir.path(), model);
    dir
}

fn edit_config(dir: &Path, edit: impl FnOnce(&mut Value)) {
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
}

fn refusal(path: &Path) -> Error {
    BaseModel::open(path).err().expect("must be refused")
}

fn config_refusal(change: Value) -> ConfigDefect {
    let dir = folder(&TinyModel::default());
    edit_config(dir.path(), |config| {
        let fields = change.as_object().unwrap().clone();
        config.as_object_mut().unwrap().extend(fields);
    });
    match refusal(dir.path()) {
        Error::Config { defect, .. } => defect,
        other => panic!("{other}"),
    }
}

#[test]
fn folder_gives_back_every_weight_bit_for_bit() {
    for model in [
        TinyModel::default(),
        TinyModel { arch: "MistralForCausalLM", tied: false, shards: 3, ..TinyModel::default() },
        TinyModel { arch: "Qwen2ForCausalLM", biases: true, ..TinyModel::default() },
        TinyModel { arch: "Qwen3ForCausalLM", head_dim: Some(24), ..TinyModel::default() },
    ] {
        let dir = folder(&model);
        let base = BaseModel::open(dir.path()).unwrap();
        let weights = model.weights();
        assert!(base.weights().map(|(name, _)| name.as_str()).eq(weights.keys()));
        for (name, (shape, values)) in &weights {
            assert_eq!(&base.weight(&WeightName::new(name)).unwrap().shape, shape);
            assert_eq!(&read_all(&base, name), values, "{name}");
        }
        assert_eq!(
            base.parameters(),
            weights.values().map(|(_, values)| values.len() as u64).sum::<u64>()
        );
    }
}

#[test]
fn what_a_family_adds_to_norms_is_in_the_rows_that_are_read() {
    let dir = folder(&TinyModel::default());
    let mut base = BaseModel::open(dir.path()).unwrap();
    let name = "model.layers.1.input_layernorm.weight";
    let stored = read_all(&base, name);
    base.weights.get_mut(&WeightName::new(name)).unwrap().added = 1.0;
    let expected: Vec<f32> = stored.iter().map(|value| value + 1.0).collect();
    assert_eq!(read_all(&base, name), expected);
}

#[test]
fn half_precision_folder_gives_the_rounded_weights() {
    for (dtype, round) in [
        (Dtype::F16, (|v| half::f16::from_f32(v).to_f32()) as fn(f32) -> f32),
        (Dtype::BF16, |v| half::bf16::from_f32(v).to_f32()),
    ] {
        let model = TinyModel { dtype, ..TinyModel::default() };
        let base = BaseModel::open(folder(&model).path()).unwrap();
        for (name, (_, values)) in model.weights() {
            assert_eq!(
                read_all(&base, &name),
                values.into_iter().map(round).collect::<Vec<_>>(),
                "{name}"
            );
        }
    }
}

#[test]
fn gguf_gives_the_rows_in_hugging_face_order() {
    for model in [
        TinyModel { hidden: 96, heads: 3, kv_heads: 1, ..TinyModel::default() },
        TinyModel { biases: true, tied: false, ..TinyModel::default() },
        TinyModel { arch: "Qwen2ForCausalLM", biases: true, ..TinyModel::default() },
        TinyModel { arch: "Qwen3ForCausalLM", head_dim: Some(24), ..TinyModel::default() },
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tiny.gguf");
        tiny_gguf(&path, &model, GgmlDType::F32);
        let base = BaseModel::open(&path).unwrap();
        let weights = model.weights();
        assert!(base.weights().map(|(name, _)| name.as_str()).eq(weights.keys()));
        for (name, (_, values)) in &weights {
            assert_eq!(&read_all(&base, name), values, "{name}");
        }
        assert_eq!(base.config().tie_word_embeddings, model.tied);
    }
}

#[test]
fn every_quantised_type_reads_close_to_the_weights_in_any_split_of_rows() {
    use GgmlDType::{BF16, F16, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    let model = TinyModel { hidden: 256, intermediate: 256, layers: 1, ..TinyModel::default() };
    let weights = model.weights();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    for (dtype, tolerance) in [
        (F16, 1e-3),
        (BF16, 5e-3),
        (Q8_0, 0.01),
        (Q6K, 0.04),
        (Q5_0, 0.08),
        (Q5_1, 0.08),
        (Q5K, 0.08),
        (Q4_0, 0.15),
        (Q4_1, 0.15),
        (Q4K, 0.15),
        (Q3K, 0.3),
        (Q2K, 0.5),
    ] {
        tiny_gguf(&path, &model, dtype);
        let base = BaseModel::open(&path).unwrap();
        for (name, (shape, values)) in &weights {
            let read = read_all(&base, name);
            let largest = values.iter().fold(0.0f32, |max, v| max.max(v.abs()));
            for (a, b) in read.iter().zip(values) {
                assert!((a - b).abs() <= tolerance * largest, "{dtype:?} {name}: {a} {b}");
            }
            if let [rows, cols] = shape[..] {
                let mut part = vec![0.0; 3 * cols];
                base.read_rows(&WeightName::new(name), rows - 3..rows, &mut part).unwrap();
                assert_eq!(part, read[(rows - 3) * cols..], "{dtype:?} {name}");
            }
        }
    }
}

#[test]
fn threads_read_the_same_rows_at_once() {
    let model = TinyModel::default();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    tiny_gguf(&path, &model, GgmlDType::Q4_1);
    let base = BaseModel::open(&path).unwrap();
    let name = "model.layers.1.self_attn.q_proj.weight";
    let once = read_all(&base, name);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..20).for_each(|_| assert_eq!(read_all(&base, name), once)));
        }
    });
}

#[test]
fn content_hash_follows_the_weights_only() {
    let hash = |model: &TinyModel| {
        BaseModel::open(folder(model).path()).unwrap().content_hash().to_owned()
    };
    let (one, other) = (TinyModel::default(), TinyModel { seed: 2, ..TinyModel::default() });
    let dir = folder(&one);
    edit_config(dir.path(), |config| config["eos_token_id"] = json!([1, 2]));
    let base = BaseModel::open(dir.path()).unwrap();
    let bytes = std::fs::read(dir.path().join("model.safetensors")).unwrap();
    assert_eq!(base.content_hash(), blake3::hash(&bytes).to_hex().as_str());
    assert_eq!(base.content_hash(), hash(&one));
    assert_ne!(base.content_hash(), hash(&other));
    let sharded = TinyModel { shards: 2, ..TinyModel::default() };
    assert_eq!(hash(&sharded), hash(&sharded));
    assert_ne!(hash(&sharded), hash(&one));
}

#[test]
fn settings_of_both_transformers_generations_are_read() {
    let dir = folder(&TinyModel::default());
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position: 8192,
    };
    edit_config(dir.path(), |config| {
        config["rope_theta"] = json!(500000.0);
        config["rope_scaling"] = llama3.clone();
    });
    std::fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [2, 7]}"#)
        .unwrap();
    let v4 = BaseModel::open(dir.path()).unwrap().config().clone();
    assert_eq!(
        (v4.rope_theta, &v4.rope_scaling, &v4.eos_token_ids[..]),
        (500000.0, &expected, &[2, 7][..])
    );
    edit_config(dir.path(), |config| {
        let fields = config.as_object_mut().unwrap();
        fields.remove("rope_theta");
        fields.insert("rope_scaling".to_owned(), Value::Null);
        let mut parameters = llama3;
        parameters["rope_theta"] = json!(500000.0);
        fields.insert("rope_parameters".to_owned(), parameters);
    });
    assert_eq!(*BaseModel::open(dir.path()).unwrap().config(), v4);
}

#[test]
fn sliding_window_is_used_only_where_the_model_uses_it() {
    let window = |change: Value| {
        let dir = folder(&TinyModel { arch: "MistralForCausalLM", ..TinyModel::default() });
        edit_config(dir.path(), |config| {
            config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone())
        });
        BaseModel::open(dir.path()).unwrap().config().sliding_window
    };
    assert_eq!(window(json!({"sliding_window": 64})), Some(64));
    assert_eq!(window(json!({"sliding_window": null})), None);
}

#[test]
fn settings_that_change_the_computation_are_refused_by_name() {
    for (change, name) in [
        (json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}), "rope_scaling.rope_type"),
        (json!({"hidden_act": "gelu"}), "hidden_act"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (json!({"sliding_window": 8}), "sliding_window"),
    ] {
        let defect = config_refusal(change);
        assert!(
            matches!(&defect, ConfigDefect::Unsupported { key, .. } if key == name),
            "{defect}"
        );
    }
    let defect = config_refusal(json!({"quantization_config": {"quant_method": "gptq"}}));
    assert!(
        matches!(&defect, ConfigDefect::Quantised { method, .. } if method == "gptq"),
        "{defect}"
    );
    let defect = config_refusal(json!({"architectures": ["GPT2LMHeadModel"]}));
    assert!(matches!(defect, ConfigDefect::Architecture { .. }), "{defect}");
}

#[test]
fn absurd_settings_are_refused_before_anything_is_computed_from_them() {
    for (change, name) in [
        (json!({"num_attention_heads": 0}), "num_attention_heads"),
        (json!({"num_attention_heads": 3}), "num_attention_heads"),
        (json!({"num_key_value_heads": 0}), "num_key_value_heads"),
        (json!({"num_key_value_heads": 3}), "num_key_value_heads"),
        (json!({"num_hidden_layers": 4_000_000_000u64}), "num_hidden_layers"),
        (json!({"hidden_size": u64::MAX, "head_dim": 16}), "hidden_size"),
        (json!({"head_dim": 15}), "head_dim"),
        (json!({"vocab_size": 0}), "vocab_size"),
        (json!({"max_position_embeddings": u64::MAX}), "max_position_embeddings"),
        (json!({"rms_norm_eps": -1.0}), "rms_norm_eps"),
        (json!({"rope_theta": 0.0}), "rope_theta"),
    ] {
        let defect = config_refusal(change);
        assert!(matches!(&defect, ConfigDefect::Value { key, .. } if key == name), "{defect}");
    }
    let defect = config_refusal(json!({"hidden_size": null}));
    assert!(matches!(&defect, ConfigDefect::Missing { key } if key == "hidden_size"), "{defect}");
    assert!(matches!(config_refusal(json!({"hidden_size": -4})), ConfigDefect::Json { .. }));
}

#[test]
fn weights_that_are_missing_misshapen_or_unknown_are_refused_by_name() {
    let weight_refusal = |change: Value| {
        let dir = folder(&TinyModel::default());
        edit_config(dir.path(), |config| {
            config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone())
        });
        match refusal(dir.path()) {
            Error::Weight { weight, defect, .. } => (weight.to_string(), defect),
            other => panic!("{other}"),
        }
    };
    let (name, defect) = weight_refusal(json!({"tie_word_embeddings": false}));
    assert!(name == HEAD && matches!(defect, WeightDefect::Missing { .. }), "{defect}");
    let (name, defect) = weight_refusal(json!({"vocab_size": 271}));
    assert!(
        name == "model.embed_tokens.weight" && matches!(defect, WeightDefect::Shape { .. }),
        "{defect}"
    );
    let (name, defect) = weight_refusal(json!({"num_hidden_layers": 1}));
    assert!(
        name.starts_with("model.layers.1.") && matches!(defect, WeightDefect::NoPlace),
        "{defect}"
    );
    let (name, defect) = weight_refusal(json!({"attention_bias": true}));
    assert!(
        name.ends_with(".bias") && matches!(defect, WeightDefect::Missing { .. }),
        "{name}: {defect}"
    );
}

#[test]
fn folders_that_are_no_model_are_refused_each_for_its_reason() {
    let dir = folder(&TinyModel { shards: 2, ..TinyModel::default() });
    let defect = |path: &Path| match refusal(path) {
        Error::Config { defect, .. } => defect,
        other => panic!("{other}"),
    };
    assert!(matches!(defect(&dir.path().join("config.json")), ConfigDefect::InsideFolder { .. }));
    let index = dir.path().join("model.safetensors.index.json");
    for (file, tensor) in
        [("../model.safetensors", "model.norm.weight"), ("a.bin", "model.norm.weight")]
    {
        std::fs::write(&index, json!({"weight_map": {tensor: file}}).to_string()).unwrap();
        assert!(matches!(defect(dir.path()), ConfigDefect::ShardName { .. }));
    }
    std::fs::write(
        &index,
        json!({"weight_map": {"model.norm.weight": "b.safetensors"}}).to_string(),
    )
    .unwrap();
    assert!(matches!(defect(dir.path()), ConfigDefect::MissingShard { .. }));
    std::fs::remove_file(&index).unwrap();
    assert!(matches!(defect(dir.path()), ConfigDefect::NoWeights { .. }));
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    assert!(matches!(defect(dir.path()), ConfigDefect::NoConfig));
    assert!(matches!(refusal(&dir.path().join("absent.gguf")), Error::Io { .. }));
}

#[test]
fn rows_beyond_the_weight_and_unknown_names_are_refused() {
    let base = BaseModel::open(folder(&TinyModel::default()).path()).unwrap();
    let name = WeightName::new("model.norm.weight");
    let mut out = [0.0; 64];
    base.read_rows(&name, 0..1, &mut out).unwrap();
    for (rows, length) in [(0..2, 64), (0..1, 63), (1..2, 64), (0..0, 1)] {
        let error = base.read_rows(&name, rows, &mut out[..length]).unwrap_err();
        assert!(
            matches!(error, Error::Weight { defect: WeightDefect::Rows { .. }, .. }),
            "{error}"
        );
    }
    let error = base.read_rows(&WeightName::new("nothing"), 0..1, &mut out).unwrap_err();
    assert!(matches!(error, Error::Weight { defect: WeightDefect::Unknown, .. }), "{error}");
}
