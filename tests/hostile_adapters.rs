//! Adapters come from strangers. Elsewhere, a loader that kept only the config keys it knew lost
//! `rank_pattern` and answered with the wrong scaling; a PiSSA adapter on the stock base gave
//! fluent nonsense; a NaN in one factor turned every later user's model to NaN; a tensor that
//! fitted no module was skipped with a warning nobody read; a pickle ran code. Here each of them is
//! refused, by name, before a weight is touched.

use std::path::Path;

use pleach::adapter::{BaseShapes, Limits, PeftAdapter, PeftHeader};
use pleach::base::WeightInfo;
use pleach::error::{AdapterDefect, SafeTensorsDefect};
use pleach::testing::adapter::{TinyAdapter, TinyModule, serialize};
use pleach::{Error, WeightName};
use proptest::prelude::*;
use safetensors::Dtype;
use serde_json::{Value, json};

const Q: &str = "model.layers.0.self_attn.q_proj";

fn made() -> TinyAdapter {
    let v = "model.layers.1.self_attn.v_proj";
    TinyAdapter::new(vec![TinyModule::linear(Q, 6, 5), TinyModule::linear(v, 3, 5)], 2, 7)
}

fn base(q_rows: usize) -> BaseShapes {
    let matrix = |rows| WeightInfo { shape: vec![rows, 5], dtype: "F32".into() };
    let weights = [
        (WeightName::new(format!("{Q}.weight")), matrix(q_rows)),
        (WeightName::new("model.layers.1.self_attn.v_proj.weight"), matrix(3)),
    ];
    BaseShapes::new("tiny-base", weights.iter().map(|(name, info)| (name, info)))
}

fn defect<T: std::fmt::Debug>(result: pleach::Result<T>) -> AdapterDefect {
    match result {
        Err(Error::Adapter { defect, .. }) => *defect,
        other => panic!("{other:?}"),
    }
}

fn damage<T: std::fmt::Debug>(result: pleach::Result<T>) -> SafeTensorsDefect {
    match result {
        Err(Error::SafeTensors { defect, .. }) => defect,
        other => panic!("{other:?}"),
    }
}

fn refused_with(keys: Value) -> AdapterDefect {
    let made = made().with_config(keys);
    defect(PeftAdapter::from_bytes(&made.config_bytes(), made.tensor_bytes(), &Limits::default()))
}

type Tensors = Vec<(String, [usize; 2], Vec<f32>)>;

/// Opens the made adapter after a change to its tensors.
fn open_changed(change: impl FnOnce(&mut Tensors)) -> pleach::Result<PeftAdapter> {
    let mut tensors = made().tensors();
    change(&mut tensors);
    PeftAdapter::from_bytes(
        &made().config_bytes(),
        serialize(&tensors, Dtype::F32),
        &Limits::default(),
    )
}

#[test]
fn every_setting_that_changes_the_maths_is_refused_by_name() {
    for (key, value) in [
        ("use_dora", json!(true)),
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("pissa_niter_16")),
        ("init_lora_weights", json!("olora")),
        ("init_lora_weights", json!("corda")),
        ("init_lora_weights", json!("loftq")),
        ("init_lora_weights", json!("lora_ga")),
        ("kasa_config", json!({"beta": 1})),
        ("lora_ga_config", json!({"direction": "x"})),
        ("loftq_config", json!({"loftq_bits": 4})),
        ("alora_invocation_tokens", json!([1, 2])),
        ("layer_replication", json!([[0, 4], [2, 5]])),
        ("modules_to_save", json!(["lm_head"])),
        ("lora_bias", json!(true)),
        ("trainable_token_indices", json!([3])),
        ("target_parameters", json!(["mlp.experts.gate_up_proj"])),
        ("use_qalora", json!(true)),
        ("use_bdlora", json!({"nblocks": 2})),
        ("arrow_config", json!({"top_k": 3})),
        ("velora_config", json!({"x": 1})),
        ("monteclora_config", json!({"x": 1})),
        ("megatron_config", json!({"x": 1})),
    ] {
        match refused_with(json!({key: value})) {
            AdapterDefect::ConfigUnsupported { key: named, .. } => assert_eq!(named, key),
            other => panic!("{key}: {other:?}"),
        }
    }
}

#[test]
fn unknown_keys_with_a_value_are_refused() {
    for value in [json!(true), json!(1), json!("x"), json!([0]), json!({"a": null})] {
        let found = refused_with(json!({"a_key_of_tomorrow": value}));
        assert!(
            matches!(&found, AdapterDefect::ConfigUnknownKey { key, .. } if key == "a_key_of_tomorrow"),
            "{found:?}"
        );
    }
}

#[test]
fn other_methods_are_refused_by_their_name() {
    for name in ["LOHA", "LOKR", "IA3", "VERA", "ADALORA", "PROMPT_TUNING", "OFT", "lora"] {
        let found = refused_with(json!({"peft_type": name}));
        assert!(
            matches!(&found, AdapterDefect::PeftType { found } if found.contains(name)),
            "{found:?}"
        );
    }
    let found = defect(PeftAdapter::from_bytes(b"{}", made().tensor_bytes(), &Limits::default()));
    assert!(matches!(found, AdapterDefect::PeftType { .. }));
}

#[test]
fn values_of_the_wrong_type_are_refused() {
    for (key, value) in [
        ("r", json!("2")),
        ("r", json!(-2)),
        ("r", json!(2.5)),
        ("lora_alpha", json!(true)),
        ("lora_alpha", json!(null)),
        ("use_rslora", json!("yes")),
        ("rank_pattern", json!([2])),
        ("rank_pattern", json!({"q_proj": "2"})),
        ("alpha_pattern", json!({"q_proj": null})),
        ("target_modules", json!([1])),
        ("layers_to_transform", json!("0")),
    ] {
        let found = refused_with(json!({key: value}));
        assert!(
            matches!(&found, AdapterDefect::ConfigValue { key: named, .. } if named == key),
            "{key}: {found:?}"
        );
    }
}

#[test]
fn config_that_is_no_object_is_refused() {
    for text in
        ["", "[]", "{", "null", "{\"r\": NaN}", "{\"peft_type\": \"LORA\", \"lora_alpha\": 1e999}"]
    {
        let found = defect(PeftAdapter::from_bytes(
            text.as_bytes(),
            made().tensor_bytes(),
            &Limits::default(),
        ));
        assert!(matches!(found, AdapterDefect::ConfigNotJson { .. }), "{text}: {found:?}");
    }
}

#[test]
fn rank_zero_is_refused() {
    assert!(matches!(refused_with(json!({"r": 0})), AdapterDefect::RankZero { .. }));
    assert!(matches!(
        refused_with(json!({"rank_pattern": {"q_proj": 0}})),
        AdapterDefect::RankZero { .. }
    ));
    let found = defect(open_changed(|tensors| {
        for (tensor, shape) in tensors.iter_mut().zip([[0, 5], [6, 0]]) {
            (tensor.1, tensor.2) = (shape, Vec::new());
        }
    }));
    assert!(matches!(found, AdapterDefect::RankZero { .. }), "{found:?}");
}

#[test]
fn ranks_that_disagree_are_refused() {
    let found = refused_with(json!({"r": 3}));
    assert!(
        matches!(found, AdapterDefect::RankMismatch { lora_a: 2, lora_b: 2, config: 3, .. }),
        "{found:?}"
    );
    let found =
        defect(open_changed(|tensors| (tensors[1].1, tensors[1].2) = ([6, 1], vec![0.0; 6])));
    assert!(
        matches!(found, AdapterDefect::RankMismatch { lora_a: 2, lora_b: 1, config: 2, .. }),
        "{found:?}"
    );
}

#[test]
fn a_without_b_and_b_without_a_are_refused() {
    let found = defect(open_changed(|tensors| drop(tensors.remove(1))));
    assert!(matches!(found, AdapterDefect::MissingHalf { missing: "lora_B", .. }), "{found:?}");
    let found = defect(open_changed(|tensors| drop(tensors.remove(0))));
    assert!(matches!(found, AdapterDefect::MissingHalf { missing: "lora_A", .. }), "{found:?}");
}

#[test]
fn an_adapter_without_tensors_is_refused() {
    assert!(matches!(defect(open_changed(Vec::clear)), AdapterDefect::NoTargets));
}

#[test]
fn tensors_that_are_no_factors_are_refused_with_what_they_are() {
    for (key, hint) in [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", "DoRA"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias", "lora_bias"),
        ("base_model.model.model.layers.0.self_attn.q_proj.bias", "bias"),
        ("base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight", "copy of the base"),
        (
            "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
            "trainable_token_indices",
        ),
        ("base_model.model.model.norm.weight", "whole weight"),
        ("base_model.model.model.layers.0.self_attn.q_proj.hada_w1_a", "LoHa"),
        ("lora_unet_down.lora_down.weight", "kohya"),
        ("prompt_embeddings", "prompt tuning"),
        ("whatever", "PEFT LoRA file"),
        (".lora_A.weight", "whole weight"),
    ] {
        let found = defect(open_changed(|tensors| tensors.push((key.into(), [1, 1], vec![0.0]))));
        assert!(
            matches!(&found, AdapterDefect::TensorRefused { tensor, .. } if tensor == key),
            "{key}: {found:?}"
        );
        assert!(found.to_string().contains(hint), "{found}");
    }
}

#[test]
fn one_weight_under_two_names_is_refused() {
    let found = defect(open_changed(|tensors| {
        let copies: Tensors = tensors[..2]
            .iter()
            .map(|(key, shape, values)| {
                (key.replace("base_model.model.", ""), *shape, values.clone())
            })
            .collect();
        tensors.extend(copies);
    }));
    assert!(matches!(found, AdapterDefect::DuplicateTarget { .. }), "{found:?}");
}

#[test]
fn tensors_the_config_does_not_select_are_refused() {
    for keys in [
        json!({"target_modules": ["q_proj"]}),
        json!({"target_modules": ["_proj"]}),
        json!({"target_modules": ".*q_proj"}),
        json!({"exclude_modules": ["v_proj"]}),
        json!({"layers_to_transform": [0]}),
        json!({"layers_to_transform": 0, "layers_pattern": ["layers"]}),
        json!({"layers_to_transform": [0, 1], "layers_pattern": "h"}),
    ] {
        let found = refused_with(keys.clone());
        assert!(matches!(found, AdapterDefect::NotTargeted { .. }), "{keys}: {found:?}");
    }
}

#[test]
fn patterns_that_match_nothing_are_refused() {
    for key in ["rank_pattern", "alpha_pattern"] {
        let found = refused_with(json!({key: {"^q_proj": 2}}));
        assert!(
            matches!(&found, AdapterDefect::PatternMatchesNothing { key: named, .. } if *named == key),
            "{found:?}"
        );
    }
}

#[test]
fn patterns_that_never_end_are_refused() {
    for pattern in ["(a|a)*(?=b)x(.+)+y", "(?=(.+)+z)q_proj", "((.*)*)*(?!x)\\2z"] {
        let found = refused_with(json!({"alpha_pattern": {pattern: 2}}));
        let named = matches!(
            found,
            AdapterDefect::PatternInvalid { .. } | AdapterDefect::PatternMatchesNothing { .. }
        );
        assert!(named, "{pattern}: {found:?}");
    }
    for pattern in ["(", "a{99999}{99999}", "(?P<n>x)(?P=m)"] {
        let found = refused_with(json!({"alpha_pattern": {pattern: 2}}));
        assert!(matches!(found, AdapterDefect::PatternInvalid { .. }), "{pattern}: {found:?}");
    }
    let found = refused_with(json!({"alpha_pattern": {"x".repeat(1025): 2}}));
    assert!(matches!(found, AdapterDefect::PatternTooLong { length: 1025, .. }), "{found:?}");
}

#[test]
fn too_many_patterns_are_refused_untried() {
    let names: Vec<String> = (0..2_200_000).map(|index| index.to_string()).collect();
    for key in ["target_modules", "exclude_modules"] {
        let found = refused_with(json!({key: names}));
        assert!(
            matches!(found, AdapterDefect::TooManyPatterns { modules: 2, .. }),
            "{key}: {found:?}"
        );
    }
    // As many as a config's bytes hold would take gigabytes, compiled.
    let many = |count: usize, text: &str| -> serde_json::Map<String, Value> {
        (0..count).map(|index| (format!("{text}{index}"), json!(2))).collect()
    };
    for key in ["rank_pattern", "alpha_pattern", "layers_pattern"] {
        let patterns = match key {
            "layers_pattern" => json!(&names[..20_001]),
            _ => many(20_001, "x").into(),
        };
        let found = refused_with(json!({key: patterns}));
        assert!(
            matches!(&found, AdapterDefect::ConfigValue { key: found, .. } if found == key),
            "{key}: {found:?}"
        );
    }
    // As many as a mixture of experts has, each spelt as PEFT spells it; and some that grow when
    // they are compiled.
    let found = refused_with(
        json!({"alpha_pattern": many(20_000, r"model\.layers\.11\.mlp\.experts\.gate_proj")}),
    );
    assert!(matches!(found, AdapterDefect::PatternMatchesNothing { .. }), "{found:?}");
    let found = refused_with(json!({"alpha_pattern": many(20_000, "a{900}")}));
    assert!(matches!(found, AdapterDefect::PatternInvalid { .. }), "{found:?}");
    let weights: Vec<String> = names.iter().map(|name| format!("{name}.weight")).collect();
    let found = refused_with(json!({"target_parameters": weights}));
    assert!(matches!(found, AdapterDefect::TooManyPatterns { modules: 2, .. }), "{found:?}");
}

#[test]
fn convolutions_and_empty_sides_are_refused() {
    let found = defect(open_changed(|tensors| (tensors[0].1, tensors[0].2) = ([2, 0], Vec::new())));
    assert!(matches!(found, AdapterDefect::TensorShape { .. }), "{found:?}");
    let view = safetensors::tensor::TensorView::new(Dtype::F32, vec![1, 1, 1, 1], &[0; 4]).unwrap();
    let file = safetensors::serialize([("x.lora_A.weight", view)], None).unwrap();
    let found = defect(PeftAdapter::from_bytes(&made().config_bytes(), file, &Limits::default()));
    assert!(matches!(found, AdapterDefect::TensorShape { .. }), "{found:?}");
}

#[test]
fn element_types_that_are_not_float_are_refused() {
    let view = safetensors::tensor::TensorView::new(Dtype::I8, vec![1, 4], &[0; 4]).unwrap();
    let file = safetensors::serialize([("x.lora_A.weight", view)], None).unwrap();
    let found = defect(PeftAdapter::from_bytes(&made().config_bytes(), file, &Limits::default()));
    assert!(
        matches!(&found, AdapterDefect::TensorDtype { dtype, .. } if dtype == "I8"),
        "{found:?}"
    );
}

#[test]
fn nan_and_infinity_are_refused_with_their_place() {
    for (value, tensor) in [(f32::NAN, 0), (f32::INFINITY, 1), (f32::NEG_INFINITY, 0)] {
        let adapter =
            open_changed(|tensors| *tensors[tensor].2.last_mut().unwrap() = value).unwrap();
        let (key, shape, _) = &made().tensors()[tensor];
        match defect(adapter.deltas(&base(6))) {
            AdapterDefect::NotFinite { tensor, row, column, .. } => {
                assert_eq!((&tensor, row, column), (key, shape[0] - 1, shape[1] - 1));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_alpha_without_a_finite_scaling_is_refused() {
    let found = refused_with(json!({"lora_alpha": "inf"}));
    assert!(matches!(found, AdapterDefect::ConfigValue { .. }), "{found:?}");
}

#[test]
fn an_adapter_for_another_base_is_refused_in_one_line() {
    let adapter =
        PeftAdapter::from_bytes(&made().config_bytes(), made().tensor_bytes(), &Limits::default())
            .unwrap();
    let found = defect(adapter.deltas(&base(8))).to_string();
    assert_eq!(
        found,
        "it was trained for model.layers.0.self_attn.q_proj.weight of 6×5, but the base tiny-base has 8×5 (1 of 2 \
         weights differ); it was made for made/tiny"
    );
    let other =
        TinyAdapter::new(vec![TinyModule::linear("model.layers.0.self_attn.qq_proj", 6, 5)], 2, 1);
    let adapter =
        PeftAdapter::from_bytes(&other.config_bytes(), other.tensor_bytes(), &Limits::default())
            .unwrap();
    match defect(adapter.deltas(&base(6))) {
        AdapterDefect::NotInBase { count: 1, total: 1, nearest, .. } => {
            assert_eq!(nearest[0], format!("{Q}.weight"))
        }
        found => panic!("{found:?}"),
    }
}

#[test]
fn limits_hold_at_their_edge() {
    let (config, tensors) = (made().config_bytes(), made().tensor_bytes());
    let dir = tempfile::tempdir().unwrap();
    made().write(dir.path()).unwrap();
    let exact = Limits {
        file_bytes: tensors.len() as u64,
        config_bytes: config.len() as u64,
        rank: 2,
        tensors: 4,
    };
    PeftAdapter::open(dir.path(), &exact).unwrap();
    PeftHeader::open(dir.path(), &exact).unwrap();
    let below = |limits: Limits| {
        let whole = PeftAdapter::open(dir.path(), &limits).unwrap_err();
        assert_eq!(
            whole.to_string(),
            PeftHeader::open(dir.path(), &limits).unwrap_err().to_string()
        );
        whole
    };
    for limits in [
        Limits { file_bytes: exact.file_bytes - 1, ..exact },
        Limits { config_bytes: exact.config_bytes - 1, ..exact },
    ] {
        let found = below(limits);
        assert!(matches!(found, Error::FileTooLarge { .. }), "{found:?}");
    }
    let below = |limits: Limits| defect::<()>(Err(below(limits)));
    assert!(matches!(
        below(Limits { rank: 1, ..exact }),
        AdapterDefect::RankTooLarge { rank: 2, limit: 1, .. }
    ));
    assert!(matches!(
        below(Limits { tensors: 3, ..exact }),
        AdapterDefect::TooManyTensors { found: 4, limit: 3 }
    ));
}

#[test]
fn pickles_and_missing_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let open = |dir: &Path| PeftAdapter::open(dir, &Limits::default());
    std::fs::write(dir.path().join("adapter_config.json"), made().config_bytes()).unwrap();
    let found = defect(open(dir.path()));
    assert!(
        matches!(found, AdapterDefect::MissingFile { file: "adapter_model.safetensors" }),
        "{found:?}"
    );
    std::fs::write(dir.path().join("adapter_model.bin"), b"\x80\x04").unwrap();
    assert!(matches!(defect(open(dir.path())), AdapterDefect::Pickle));
    std::fs::write(dir.path().join("adapter_model.safetensors"), made().tensor_bytes()).unwrap();
    open(dir.path()).unwrap();
    std::fs::remove_file(dir.path().join("adapter_config.json")).unwrap();
    let found = defect(open(dir.path()));
    assert!(
        matches!(found, AdapterDefect::MissingFile { file: "adapter_config.json" }),
        "{found:?}"
    );
    assert!(matches!(open(&dir.path().join("nowhere")), Err(Error::Io { .. })));
}

/// safetensors' own reader adds these sizes up without a check; they wrap to the file's true size.
#[test]
fn tensor_sizes_that_wrap_around_are_refused() {
    let giant = 1u64 << 60;
    let tensors: Vec<String> = (0..16u64)
        .map(|i| {
            let (start, end) = (i * giant, if i == 15 { u64::MAX - 63 } else { (i + 1) * giant });
            let len = end - start;
            format!(r#""t{i}.lora_A.weight":{{"dtype":"U8","shape":[{len}],"data_offsets":[{start},{end}]}}"#)
        })
        .collect();
    let header = format!("{{{}}}", tensors.join(","));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    let found = damage(PeftAdapter::from_bytes(&made().config_bytes(), file, &Limits::default()));
    assert!(matches!(found, SafeTensorsDefect::DataLength { .. }), "{found:?}");
}

#[test]
fn every_truncation_is_refused() {
    let (config, file) = (made().config_bytes(), made().tensor_bytes());
    for length in 0..file.len() {
        damage(PeftAdapter::from_bytes(&config, file[..length].to_vec(), &Limits::default()));
    }
    for length in 0..config.len() {
        defect(PeftAdapter::from_bytes(&config[..length], file.clone(), &Limits::default()));
    }
    damage(PeftAdapter::from_bytes(&config, [file, vec![0]].concat(), &Limits::default()));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(config: Vec<u8>, file: Vec<u8>) {
        let _ = PeftAdapter::from_bytes(&config, file, &Limits::default());
    }

    /// A flipped bit is refused, or changes a value but nothing else.
    #[test]
    fn flipped_bits_never_panic(at: prop::sample::Index, bit in 0..8u32, in_config: bool) {
        let (mut config, mut file) = (made().config_bytes(), made().tensor_bytes());
        let bytes = if in_config { &mut config } else { &mut file };
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(adapter) = PeftAdapter::from_bytes(&config, file, &Limits::default()) {
            let _ = adapter.deltas(&base(6));
        }
    }
}
