//! Adapters as people find them: written by other trainers, wrapped, renamed, half converted.
//! Loaders that knew PEFT's own keys alone called them damaged, or matched a pattern against a
//! spelling that PEFT never saw and took another scaling. Here each is read as PEFT reads it, or
//! called what it is.

use std::path::Path;

use pleach::adapter::{BaseShapes, FloatDelta, Limits, PeftAdapter};
use pleach::base::{BaseModel, WeightInfo};
use pleach::error::AdapterDefect;
use pleach::testing::adapter::{TinyAdapter, TinyModule, serialize};
use pleach::testing::{TinyModel, tiny_hf_model};
use pleach::{Error, WeightName};
use safetensors::Dtype;
use serde_json::{Value, json};

const Q: &str = "model.layers.0.self_attn.q_proj";
const V: &str = "model.layers.11.self_attn.v_proj";

type Tensors = Vec<(String, [usize; 2], Vec<f32>)>;

fn made(config: Value) -> TinyAdapter {
    TinyAdapter::new(vec![TinyModule::linear(Q, 6, 5), TinyModule::linear(V, 3, 5)], 2, 7)
        .with_config(config)
}

/// The made adapter with its keys rewritten.
fn renamed(config: Value, rename: impl Fn(&str) -> String) -> pleach::Result<PeftAdapter> {
    changed(config, |tensors| tensors.iter_mut().for_each(|(key, _, _)| *key = rename(key)))
}

fn changed(config: Value, change: impl FnOnce(&mut Tensors)) -> pleach::Result<PeftAdapter> {
    let made = made(config);
    let mut tensors = made.tensors();
    change(&mut tensors);
    PeftAdapter::from_bytes(
        &made.config_bytes(),
        serialize(&tensors, Dtype::F32),
        &Limits::default(),
    )
}

fn scaling(adapter: &PeftAdapter, module: &str) -> f64 {
    let weight = WeightName::new(format!("{module}.weight"));
    adapter.header().targets()[&weight].scaling
}

fn refused(result: pleach::Result<PeftAdapter>) -> AdapterDefect {
    match result {
        Err(Error::Adapter { defect, .. }) => *defect,
        other => panic!("{other:?}"),
    }
}

/// Expected values: PEFT 0.21.2, `re.match(rf"(.*\.)?({key})$", name)` with the name of the model
/// that it was given.
#[test]
fn patterns_look_at_the_files_own_spelling() {
    let patterns = json!({"alpha_pattern": {r"(model\.layers\.0\..*|.*v_proj)": 6, "q_proj": 10}});
    let plain = renamed(patterns.clone(), str::to_owned).unwrap();
    assert_eq!((scaling(&plain, Q), scaling(&plain, V)), (3.0, 3.0));
    for spelled in ["base_model.model.layers", "base_model.model.model.language_model.layers"] {
        let adapter =
            renamed(patterns.clone(), |key| key.replace("base_model.model.model.layers", spelled))
                .unwrap();
        assert_eq!((scaling(&adapter, Q), scaling(&adapter, V)), (5.0, 3.0), "{spelled}");
    }
    // What a wrapper put into the key was never part of the name.
    for wrapper in ["_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"] {
        let adapter = renamed(patterns.clone(), |key| {
            key.replace("self_attn", &format!("{wrapper}.self_attn"))
        })
        .unwrap();
        assert_eq!((scaling(&adapter, Q), scaling(&adapter, V)), (3.0, 3.0), "{wrapper}");
    }
}

/// `re.match(rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.", name)`, and `.*?\.[^.]*\.(\d+)\.` without a
/// pattern.
#[test]
fn layers_are_counted_where_peft_counts_them() {
    let with = |config: Value, spelled: &'static str| {
        renamed(config, move |key| key.replace("base_model.model.model.layers", spelled)).map(drop)
    };
    for pattern in
        [json!("layers"), json!("model.layers"), json!(["h", "layers"]), json!(r"(\w+)\.layers")]
    {
        let config = json!({"layers_to_transform": [0, 11], "layers_pattern": pattern});
        assert!(with(config, "base_model.model.model.layers").is_ok(), "{pattern}");
    }
    let bare = "base_model.model.layers";
    assert!(
        with(json!({"layers_to_transform": [0, 11], "layers_pattern": "layers"}), bare).is_ok()
    );
    for config in [
        // `model.layers` is not in the name of the bare model, and a name that starts with `layers`
        // has no dot before it.
        json!({"layers_to_transform": [0, 11], "layers_pattern": "model.layers"}),
        json!({"layers_to_transform": [0, 11]}),
        // Python's alternation splits the whole expression: `layers…` must then start the name, and
        // `h` alone has no index.
        json!({"layers_to_transform": [0, 11], "layers_pattern": ["layers|h", "layers"]}),
    ] {
        let spelled =
            if config.to_string().contains('|') { "base_model.model.model.layers" } else { bare };
        assert!(matches!(with(config.clone(), spelled), Err(Error::Adapter { .. })), "{config}");
    }
}

#[test]
fn one_name_in_all_keys_is_the_adapters() {
    let named =
        |name: &'static str| move |key: &str| key.replace(".weight", &format!(".{name}.weight"));
    for name in ["default", "alice", "my-adapter_2"] {
        assert_eq!(renamed(json!({}), named(name)).unwrap().header().targets().len(), 2, "{name}");
    }
    let two =
        renamed(json!({}), |key| named(if key.contains("q_proj") { "alice" } else { "bob" })(key));
    let defect = refused(two);
    assert!(
        matches!(&defect, AdapterDefect::SeveralAdapters { first, second, .. } if [&first[..], second] == ["alice", "bob"])
    );
    let defect = refused(renamed(json!({}), |key| {
        if key.contains("q_proj") { named("alice")(key) } else { key.into() }
    }));
    assert!(
        matches!(&defect, AdapterDefect::SeveralAdapters { second, .. } if second == "default"),
        "{defect}"
    );
    let defect = refused(renamed(json!({}), |key| key.replace(".weight", ".a.b.weight")));
    assert!(matches!(defect, AdapterDefect::TensorRefused { .. }));
}

#[test]
fn bare_parameters_of_linear_modules_are_plain_lora() {
    let config = json!({"target_modules": [], "target_parameters": ["q_proj.weight", "11.self_attn.v_proj.weight"],
        "alpha_pattern": {"q_proj.weight": 6, ".*v_proj.weight": 10}});
    let adapter = renamed(config, str::to_owned).unwrap();
    assert_eq!((scaling(&adapter, Q), scaling(&adapter, V)), (3.0, 5.0));
    let one = json!({"target_modules": null, "target_parameters": ["q_proj.weight"]});
    assert!(matches!(refused(renamed(one, str::to_owned)), AdapterDefect::NotTargeted { .. }));
    // A pattern meets the parameter's name, not its module's.
    let module = json!({"target_modules": [], "target_parameters": ["q_proj.weight", "v_proj.weight"],
        "alpha_pattern": {"q_proj": 6}});
    assert!(matches!(
        refused(renamed(module, str::to_owned)),
        AdapterDefect::PatternMatchesNothing { .. }
    ));
}

#[test]
fn trained_biases_are_refused_only_where_there_are_some() {
    for bias in ["all", "lora_only", "none"] {
        assert!(renamed(json!({"bias": bias}), str::to_owned).is_ok(), "{bias}");
    }
    assert!(matches!(
        refused(renamed(json!({"bias": "some"}), str::to_owned)),
        AdapterDefect::ConfigValue { .. }
    ));
    let with_bias = changed(json!({"bias": "all"}), |tensors| {
        tensors.push((format!("base_model.model.{Q}.bias"), [1, 6], vec![0.0; 6]));
    });
    assert!(matches!(refused(with_bias), AdapterDefect::TensorRefused { .. }));
}

#[test]
fn a_saved_embedding_must_be_the_bases_own() {
    let model = TinyModel::default();
    let dir = tempfile::tempdir().unwrap();
    tiny_hf_model(dir.path(), &model);
    let base = BaseModel::open(dir.path()).unwrap();
    let (shape, values) = model.weights()["model.embed_tokens.weight"].clone();
    let module = TinyModule::linear(Q, model.hidden, model.hidden);
    let made = TinyAdapter::new(vec![module], 2, 7);
    // `save_embedding_layers=True` writes both, a tied head as well, and marks neither.
    for key in
        ["model.embed_tokens.weight", "lm_head.weight", "model.embed_tokens.base_layer.weight"]
    {
        let with = |values: Vec<f32>| {
            let mut tensors = made.tensors();
            tensors.push((format!("base_model.model.{key}"), [shape[0], shape[1]], values));
            let bytes = serialize(&tensors, Dtype::F32);
            PeftAdapter::from_bytes(&made.config_bytes(), bytes, &Limits::default()).unwrap()
        };
        assert!(with(values.clone()).has_copies());
        with(values.clone()).check_copies(&base).unwrap();
        let mut other = values.clone();
        *other.last_mut().unwrap() *= 1.5;
        let refused = with(other).check_copies(&base);
        assert!(
            matches!(refused, Err(Error::Adapter { defect, .. }) if matches!(*defect, AdapterDefect::CopyDiffers { row, .. } if row + 1 == shape[0]))
        );
    }
}

#[test]
fn tied_factors_are_one_pair_or_refused() {
    let module = |name, is_embedding| TinyModule { is_embedding, ..TinyModule::linear(name, 8, 4) };
    let modules = vec![module("model.embed_tokens", true), module("lm_head", false)];
    let made = TinyAdapter::new(modules, 2, 7).with_config(json!({"ensure_weight_tying": true}));
    let open = |tensors: &Tensors| {
        let bytes = serialize(tensors, Dtype::F32);
        PeftAdapter::from_bytes(&made.config_bytes(), bytes, &Limits::default())
    };
    let mut tensors = made.tensors();
    let transposed = |values: &[f32], rows: usize| -> Vec<f32> {
        let cols = values.len() / rows;
        (0..cols).flat_map(|col| (0..rows).map(move |row| values[row * cols + col])).collect()
    };
    assert!(matches!(refused(open(&tensors)), AdapterDefect::TiedFactorsDiffer));
    // lm_head's A is the embedding's B turned round, and its B the embedding's A: what PEFT writes.
    tensors[2].2 = transposed(&tensors[1].2, 4);
    tensors[3].2 = transposed(&tensors[0].2, 2);
    assert_eq!(open(&tensors).unwrap().header().targets().len(), 2);
    tensors.truncate(2);
    assert!(matches!(refused(open(&tensors)), AdapterDefect::ConfigUnsupported { .. }));
}

#[test]
fn what_other_programs_write_is_called_by_their_name() {
    for (from, to, says) in [
        (".lora_A.weight", ".lora_a.weight", "torchtune"),
        (".lora_B.weight", ".lora_b", "MLX"),
        (".lora_A.weight", ".lora_down.weight", "kohya"),
    ] {
        let defect = refused(renamed(json!({}), |key| key.replace(from, to)));
        assert!(
            matches!(&defect, AdapterDefect::TensorRefused { reason, .. } if reason.contains(says)),
            "{defect}"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    for (file, says) in [
        ("adapters.safetensors", "MLX"),
        ("adapter_0.pt", "torchtune"),
        ("pytorch_lora_weights.safetensors", "diffusers"),
        ("adapter_model-00001-of-00002.safetensors", "shards"),
        ("adapter-f16.gguf", "GGUF"),
    ] {
        let folder = dir.path().join(file.replace('.', "_"));
        made(json!({})).write(&folder).unwrap();
        std::fs::rename(folder.join("adapter_model.safetensors"), folder.join(file)).unwrap();
        let defect = refused(PeftAdapter::open(&folder, &Limits::default()));
        assert!(
            matches!(&defect, AdapterDefect::Foreign { what, .. } if what.contains(says)),
            "{defect}"
        );
        let defect = refused(PeftAdapter::open(&folder.join(file), &Limits::default()));
        assert!(matches!(defect, AdapterDefect::NotAFolder));
    }
    assert!(matches!(
        PeftAdapter::open(Path::new("/no/such"), &Limits::default()),
        Err(Error::Io { .. })
    ));
}

#[test]
fn factors_turned_round_are_told() {
    let swap = |tensors: &mut Tensors| {
        for pair in tensors.chunks_mut(2) {
            let [a, b] = pair else { panic!() };
            std::mem::swap(&mut a.0, &mut b.0);
        }
    };
    let transpose =
        |tensors: &mut Tensors| tensors.iter_mut().for_each(|(_, shape, _)| shape.reverse());
    for turned in [changed(json!({}), swap), changed(json!({}), transpose)] {
        let defect = refused(turned);
        assert!(defect.to_string().contains("swapped, or each is transposed"), "{defect}");
    }
    let defect = refused(renamed(json!({"r": 3}), str::to_owned));
    assert!(defect.to_string().contains("the config belongs to another file"), "{defect}");
}

#[test]
fn an_unknown_start_is_unknown() {
    let advice = |name: &str| {
        refused(renamed(json!({"init_lora_weights": name}), str::to_owned)).to_string()
    };
    assert!(advice("pissa_niter_4").contains("changed the base's own weights"));
    assert!(advice("tomorrow").contains("unknown here"));
    assert!(renamed(json!({"init_lora_weights": "GAUSSIAN"}), str::to_owned).is_ok());
}

#[test]
fn a_quantised_base_names_its_plain_twin() {
    for (name, twin) in [
        ("unsloth/Llama-3.2-1B-Instruct-unsloth-bnb-4bit", "unsloth/Llama-3.2-1B-Instruct"),
        ("TheBloke/Mistral-7B-v0.1-AWQ", "Mistral-7B-v0.1"),
    ] {
        let adapter = renamed(json!({"base_model_name_or_path": name}), str::to_owned).unwrap();
        let text = adapter.deltas(&base(7)).unwrap_err().to_string();
        assert!(text.contains(&format!("{name}, quantised from {twin}")), "{text}");
    }
}

fn base(q_rows: usize) -> BaseShapes {
    let info = |rows| WeightInfo { shape: vec![rows, 5], dtype: "F32".into() };
    let weights = [
        (WeightName::new(format!("{Q}.weight")), info(q_rows)),
        (WeightName::new(format!("{V}.weight")), info(3)),
    ];
    BaseShapes::new("tiny", weights.iter().map(|(name, info)| (name, info)))
}

#[test]
fn factors_in_double_precision_are_read() {
    let made = made(json!({}));
    let tensors = made.tensors();
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|t| t.2.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect())
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((key, shape, _), bytes)| {
        (
            key.as_str(),
            safetensors::tensor::TensorView::new(Dtype::F64, shape.to_vec(), bytes).unwrap(),
        )
    });
    let file = safetensors::serialize(views, None).unwrap();
    let adapter = PeftAdapter::from_bytes(&made.config_bytes(), file, &Limits::default()).unwrap();
    let deltas = adapter.deltas(&base(6)).unwrap();
    let FloatDelta::LowRank { lora_a, .. } = &deltas[&WeightName::new(format!("{Q}.weight"))]
    else {
        panic!()
    };
    assert_eq!(lora_a, &tensors[0].2);
}

#[test]
fn a_config_as_other_programs_save_it_is_read_or_explained() {
    let made = made(json!({}));
    let open =
        |config: Vec<u8>| PeftAdapter::from_bytes(&config, made.tensor_bytes(), &Limits::default());
    // A byte order mark means nothing.
    let marked = [b"\xef\xbb\xbf", &made.config_bytes()[..]].concat();
    assert_eq!(open(marked).unwrap().header().targets().len(), 2);
    for (config, says) in [
        (r#"{"peft_type": "LORA", "r": 2, "lora_alpha": NaN}"#, "NaN at line 1 column"),
        (r#"{"peft_type": "LORA", "lora_dropout": -Infinity}"#, "-Infinity at line 1 column"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
        ("<!DOCTYPE html><html>", "web page"),
    ] {
        let defect = refused(open(config.as_bytes().to_vec()));
        assert!(
            matches!(defect, AdapterDefect::ConfigNotJson { .. })
                && defect.to_string().contains(says),
            "{defect}"
        );
    }
    // The same of the tensors.
    for (bytes, says) in [
        (&b"version https://git-lfs.github.com/spec/v1\n"[..], "Git LFS"),
        (b"PK\x03\x04 torch.save", "zip archive"),
        (b"\x80\x02}q\x00(X\x05\x00\x00\x00", "pickle"),
        (b"<html><body>Sign in</body></html>", "web page"),
    ] {
        let error =
            PeftAdapter::from_bytes(&made.config_bytes(), bytes.to_vec(), &Limits::default())
                .unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}
