//! PEFT's settings, patterns and files against what PEFT makes of them.

#![allow(clippy::float_cmp, reason = "the values must be equal, not near")]

use serde_json::json;

use super::*;
use crate::adapter::PeftAdapter;
use crate::testing::adapter::{TinyAdapter, TinyModule};
use crate::{Error, WeightName};

const Q: &str = "model.layers.0.self_attn.q_proj";
const V: &str = "model.layers.11.self_attn.v_proj";

fn two_modules() -> TinyAdapter {
    TinyAdapter::new(vec![TinyModule::linear(Q, 6, 5), TinyModule::linear(V, 3, 5)], 2, 7)
}

fn open(made: &TinyAdapter) -> PeftAdapter {
    PeftAdapter::from_bytes(&made.config_bytes(), made.tensor_bytes(), &Limits::default()).unwrap()
}

fn scaling_of(adapter: &PeftAdapter, module: &str) -> f64 {
    adapter.header().targets()[&WeightName::new(format!("{module}.weight"))].scaling
}

#[test]
fn rslora_divides_by_the_square_root_of_the_rank() {
    let made = two_modules().with_config(json!({"use_rslora": true, "lora_alpha": 16}));
    assert_eq!(scaling_of(&open(&made), Q), 16.0 / 2f64.sqrt());
    assert_eq!(open(&made).summary().kind, "rslora");
}

#[test]
fn patterns_set_rank_and_alpha_separately_and_the_first_match_wins() {
    let mut made = two_modules().with_config(json!({
        "rank_pattern": {"layers\\.(0|29)\\.self_attn\\.q_proj": 3},
        "alpha_pattern": {".*v_proj": 5, "layers.11.self_attn.v_proj": 99},
    }));
    made.modules[0].rank = Some(3);
    let adapter = open(&made);
    // Only the rank matched: alpha is not rescaled.
    assert_eq!(scaling_of(&adapter, Q), 4.0 / 3.0);
    assert_eq!(scaling_of(&adapter, V), 5.0 / 2.0);
}

#[test]
fn a_pattern_is_a_whole_name_or_follows_a_dot() {
    let with = |pattern: &str| {
        let made = two_modules().with_config(json!({"alpha_pattern": {pattern: 6}}));
        let opened =
            PeftAdapter::from_bytes(&made.config_bytes(), made.tensor_bytes(), &Limits::default());
        opened.map(|adapter| scaling_of(&adapter, Q))
    };
    for pattern in ["q_proj", "self_attn.q_proj", Q, "(?=q_)q_proj", "[qv]_proj", "layers.0.*"] {
        assert_eq!(with(pattern).unwrap(), 3.0, "{pattern}");
    }
    for pattern in ["_proj", "^q_proj", "q_pro", "layers.0"] {
        assert!(with(pattern).is_err(), "{pattern}");
    }
}

#[test]
fn defaults_are_those_of_peft() {
    let mut made = two_modules();
    made.modules.iter_mut().for_each(|module| module.rank = Some(8));
    let config = br#"{"peft_type": "LORA"}"#;
    let adapter = PeftAdapter::from_bytes(config, made.tensor_bytes(), &Limits::default()).unwrap();
    assert_eq!(scaling_of(&adapter, Q), 1.0);
}

#[test]
fn settings_that_do_not_change_the_maths_are_accepted() {
    let made = two_modules().with_config(json!({
        "lora_dropout": 0.1, "peft_version": "0.21.2", "task_type": "CAUSAL_LM", "inference_mode": true,
        "megatron_core": "megatron.core", "qalora_group_size": 16, "revision": "main", "runtime_config": {"x": 1},
        "auto_mapping": {"parent_library": "transformers"}, "eva_config": {"rho": 2.0}, "loftq_config": {},
        "bias": "lora_only", "lora_dtype": "float16", "lorap_emb_lr": 1e-6, "_comment": "by hand", "modules_to_save": [], "init_lora_weights": "gaussian", "a_key_of_tomorrow": null,
        "another": false, "one_more": {}, "and_more": "none", "fan_in_fan_out": true, "ensure_weight_tying": true,
        "layers_to_transform": [0, 11], "layers_pattern": "layers", "exclude_modules": ["lm_head"],
    }));
    assert_eq!(open(&made).deltas(&made.base_shapes()).unwrap().len(), 2);
}

#[test]
fn target_modules_may_be_a_regular_expression_or_all_linear() {
    for targets in
        [json!(".*\\.(q|v)_proj"), json!("all-linear"), json!([Q, "v_proj"]), json!(null)]
    {
        let made = two_modules().with_config(json!({"target_modules": targets}));
        assert_eq!(open(&made).header().targets().len(), 2);
    }
}

#[test]
fn adapter_whose_files_change_while_they_are_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, aside) = (folder.path().join("fr"), folder.path().join("aside"));
    let [first, second] = [1, 2].map(|seed| TinyAdapter { seed, ..two_modules() });
    let open = |between: &dyn Fn()| Files::in_folder(&dir).read(&Limits::default(), between);
    let write_over = |file: &str, bytes: Vec<u8>| std::fs::write(dir.join(file), bytes).unwrap();
    let replace = |file: &str, bytes: Vec<u8>| {
        std::fs::write(&aside, bytes).unwrap();
        std::fs::rename(&aside, dir.join(file)).unwrap();
    };
    let append = |mut bytes: Vec<u8>| {
        bytes.push(b' ');
        bytes
    };
    first.write(&dir).unwrap();
    assert!(open(&|| ()).is_ok());
    let changes: [(&str, &dyn Fn()); 6] = [
        (TENSOR_FILE, &|| replace(TENSOR_FILE, second.tensor_bytes())),
        (CONFIG_FILE, &|| replace(CONFIG_FILE, second.config_bytes())),
        (TENSOR_FILE, &|| write_over(TENSOR_FILE, append(second.tensor_bytes()))),
        (CONFIG_FILE, &|| write_over(CONFIG_FILE, append(second.config_bytes()))),
        (TENSOR_FILE, &|| std::fs::remove_file(dir.join(TENSOR_FILE)).unwrap()),
        (CONFIG_FILE, &|| {
            second.write(&aside).unwrap();
            std::fs::rename(&dir, folder.path().join("old")).unwrap();
            std::fs::rename(&aside, &dir).unwrap();
        }),
    ];
    for (k, (file, change)) in changes.into_iter().enumerate() {
        let _ = std::fs::remove_dir_all(&dir);
        first.write(&dir).unwrap();
        match open(change) {
            Err(Error::Adapter { defect, .. }) => {
                let changed =
                    matches!(*defect, AdapterDefect::Changed { file: found } if found == file);
                assert!(changed, "change {k}: {defect}");
            }
            other => panic!("change {k}: {:?}", other.err()),
        }
    }
}
