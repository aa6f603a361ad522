//! A config.json says one thing in two places: an old key and a new one, a flag and the tensors, a
//! model type and an architecture. Whoever reads the first of them runs another model than
//! transformers does, and nothing says so: YaRN pasted into `rope_scaling` was ignored beside
//! `rope_parameters`, a head of its own was dropped for the sake of a flag, a window stood open
//! because its key was left out. The values below are what transformers 5.23 takes, or the two are
//! refused.

use std::collections::BTreeMap;
use std::path::Path;

use pleach::arch::{ModelConfig, RopeScaling};
use pleach::base::BaseModel;
use pleach::error::{ConfigDefect, WeightDefect};
use pleach::runtime::Prompt;
use pleach::testing::{TinyModel, tiny_hf_model, tiny_hf_model_of};
use pleach::{Error, Runtime, WeightName};
use serde_json::{Value, json};
use tempfile::TempDir;

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const LLAMA: &str = "LlamaForCausalLM";
const MISTRAL: &str = "MistralForCausalLM";
const QWEN2: &str = "Qwen2ForCausalLM";

/// A model of `arch` whose config.json has `change` on top; a key with the value "absent" is taken
/// out.
fn folder(arch: &'static str, change: &Value) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    tiny_hf_model(dir.path(), &TinyModel { arch, biases: arch == QWEN2, ..TinyModel::default() });
    edit(dir.path(), change);
    dir
}

fn edit(dir: &Path, change: &Value) {
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let fields = config.as_object_mut().unwrap();
    for (key, value) in change.as_object().unwrap() {
        match value == "absent" {
            true => drop(fields.remove(key)),
            false => drop(fields.insert(key.clone(), value.clone())),
        }
    }
    std::fs::write(path, config.to_string()).unwrap();
}

fn config(arch: &'static str, change: Value) -> ModelConfig {
    BaseModel::open(folder(arch, &change).path())
        .unwrap_or_else(|error| panic!("{change}: {error}"))
        .config()
        .clone()
}

fn refused(arch: &'static str, change: Value) -> ConfigDefect {
    match BaseModel::open(folder(arch, &change).path()) {
        Err(Error::Config { defect, .. }) => defect,
        Err(other) => panic!("{change}: {other}"),
        Ok(_) => panic!("{change} was accepted"),
    }
}

#[test]
fn of_two_rotary_embeddings_the_one_counts_that_transformers_takes() {
    let rope = |change: Value| {
        let config = config(LLAMA, change);
        (config.rope_theta, config.rope_scaling)
    };
    let linear = |factor| RopeScaling::Linear { factor };
    let (old, new) =
        (json!({"type": "linear", "factor": 2.0}), json!({"rope_type": "linear", "factor": 4.0}));
    assert_eq!(rope(json!({"rope_scaling": old, "rope_parameters": new})), (1e4, linear(2.0)));
    // Python's `or` passes an empty object over.
    assert_eq!(rope(json!({"rope_scaling": {}, "rope_parameters": new})), (1e4, linear(4.0)));
    assert_eq!(rope(json!({"rope_scaling": null, "rope_parameters": new})), (1e4, linear(4.0)));
    // The base of the frequencies inside comes before the one at the top, which comes before the
    // class's.
    assert_eq!(rope(json!({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e6}})).0, 1e6);
    assert_eq!(rope(json!({"rope_theta": 5e5, "rope_parameters": {}})).0, 5e5);
    assert_eq!(rope(json!({"rope_theta": "absent"})).0, 1e4);
    // What was pasted in counts alone, the base of the frequencies of the other object with it.
    let pasted = json!({"rope_theta": "absent", "rope_scaling": new, "rope_parameters": {"rope_theta": 1e6}});
    assert_eq!(rope(pasted), (1e4, linear(4.0)));
    assert_eq!(
        rope(json!({"rope_scaling": {"rope_type": "default", "type": "linear", "factor": 2.0}})).1,
        RopeScaling::None
    );
    assert_eq!(rope(json!({"rope_scaling": {"factor": 2.0}})).1, RopeScaling::None);
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512});
    let defect = refused(
        LLAMA,
        json!({"rope_scaling": yarn, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    );
    assert!(
        matches!(&defect, ConfigDefect::Unsupported { key, found, .. } if key == "rope_scaling.rope_type" && found == "yarn")
    );
    let defect = refused(
        QWEN2,
        json!({"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 4.0}}}),
    );
    assert!(
        matches!(&defect, ConfigDefect::Unsupported { key, .. } if key == "rope_parameters.full_attention")
    );
    let defect = refused(
        LLAMA,
        json!({"partial_rotary_factor": 1.0, "rope_parameters": {"partial_rotary_factor": 0.5}}),
    );
    assert!(
        matches!(&defect, ConfigDefect::Unsupported { key, .. } if key == "partial_rotary_factor")
    );
    assert!(matches!(
        refused(LLAMA, json!({"rope_scaling": "linear"})),
        ConfigDefect::Value { .. }
    ));
}

#[test]
fn the_length_trained_on_is_looked_for_where_transformers_does() {
    let original = |top: Value, inside: Value| {
        let mut rope = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
        rope["original_max_position_embeddings"] = inside;
        match config(LLAMA, json!({"rope_scaling": rope, "original_max_position_embeddings": top}))
            .rope_scaling
        {
            RopeScaling::Llama3 { original_max_position, .. } => original_max_position,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(original(json!("absent"), json!(128)), 128);
    assert_eq!(original(json!(64), json!(128)), 64);
    assert_eq!(original(json!("absent"), Value::Null), 512);
}

#[test]
fn a_window_is_what_the_family_makes_of_it() {
    let window = |arch, change| config(arch, change).sliding_window;
    assert_eq!(window(MISTRAL, json!({})), Some(4096));
    assert_eq!(window(MISTRAL, json!({"sliding_window": null})), None);
    assert_eq!(window(MISTRAL, json!({"sliding_window": 8, "use_sliding_window": false})), Some(8));
    let types = json!(["full_attention", "sliding_attention"]);
    let defect = refused(MISTRAL, json!({"sliding_window": 8, "layer_types": types}));
    assert!(
        matches!(&defect, ConfigDefect::Unsupported { key, .. } if key == "layer_types"),
        "{defect}"
    );
    // Llama's class knows none: nothing may hang on one.
    assert_eq!(window(LLAMA, json!({"sliding_window": null})), None);
    assert_eq!(window(LLAMA, json!({"sliding_window": 512})), None);
    let defect = refused(LLAMA, json!({"sliding_window": 8}));
    assert!(
        matches!(&defect, ConfigDefect::Unsupported { key, .. } if key == "sliding_window"),
        "{defect}"
    );
    // Qwen2 has a switch, and layers below the first that has a window.
    assert_eq!(window(QWEN2, json!({"sliding_window": 8})), None);
    assert_eq!(window(QWEN2, json!({"sliding_window": 8, "use_sliding_window": true})), None);
    let all = |layers: usize| json!({"sliding_window": 8, "use_sliding_window": true, "max_window_layers": layers});
    assert_eq!((window(QWEN2, all(0)), window(QWEN2, all(2))), (Some(8), None));
    let defect = refused(QWEN2, all(1));
    assert!(
        matches!(&defect, ConfigDefect::Unsupported { found, .. } if found == "1 of 2"),
        "{defect}"
    );
    let defect = refused(QWEN2, json!({"layer_types": types}));
    assert!(
        matches!(&defect, ConfigDefect::Unsupported { key, .. } if key == "layer_types"),
        "{defect}"
    );
}

#[test]
fn a_family_under_another_ones_name_is_refused() {
    for kind in ["granite", "smollm3", "helium", "mistral"] {
        let defect = refused(LLAMA, json!({"model_type": kind}));
        let text = defect.to_string();
        assert!(matches!(defect, ConfigDefect::FamilyConflict { .. }), "{text}");
        assert!(text.contains(kind) && text.contains(LLAMA), "{text}");
    }
    assert_eq!(
        config(MISTRAL, json!({"architectures": "absent", "model_type": "llama"})).architecture,
        LLAMA
    );
    assert_eq!(config(LLAMA, json!({"model_type": "llama"})).architecture, LLAMA);
    let defect = refused(LLAMA, json!({"architectures": "absent"}));
    assert!(
        matches!(&defect, ConfigDefect::Architecture { found, .. } if found == "not named"),
        "{defect}"
    );
    assert!(matches!(
        refused(LLAMA, json!({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"})),
        ConfigDefect::Architecture { .. }
    ));
}

#[test]
fn what_is_left_out_is_what_the_familys_class_takes() {
    for (arch, positions) in [(LLAMA, 2048), (MISTRAL, 131_072), (QWEN2, 32_768)] {
        let change = json!({"max_position_embeddings": "absent", "rms_norm_eps": "absent", "hidden_act": "swish"});
        let config = config(arch, change);
        assert_eq!(
            (config.max_position_embeddings, config.rms_norm_eps),
            (positions, 1e-6),
            "{arch}"
        );
    }
    // Four heads. Left out, Mistral's class takes eight for keys and values; null, as many as there
    // are.
    assert_eq!(TinyModel::default().heads, 4);
    let defect = refused(MISTRAL, json!({"num_key_value_heads": "absent"}));
    assert!(
        matches!(&defect, ConfigDefect::Value { key, found, .. } if key == "num_key_value_heads" && found == "8")
    );
    for (arch, value) in [(LLAMA, json!("absent")), (MISTRAL, Value::Null)] {
        let dir = folder(arch, &json!({"num_key_value_heads": value}));
        match BaseModel::open(dir.path()) {
            // The file has two: four were asked for.
            Err(Error::Weight { defect: WeightDefect::Shape { expected, .. }, .. }) => {
                assert_eq!(expected[0], 64)
            }
            other => panic!("{:?}", other.err()),
        }
    }
}

/// Logits after a prompt, and whether head and embedding are one.
fn run(dir: &Path) -> (Vec<f32>, bool) {
    let runtime = Runtime::builder().base(dir).open().unwrap();
    let logits = runtime.score(&Prompt::Tokens(vec![7, 99, 3, 250])).unwrap().logits;
    (logits, runtime.base().config().tie_word_embeddings)
}

fn write(dir: &Path, model: &TinyModel, weights: &BTreeMap<String, (Vec<usize>, Vec<f32>)>) {
    tiny_hf_model_of(dir, model, weights);
}

#[test]
fn a_head_that_differs_is_used_whatever_the_flag_says() {
    let model = TinyModel { tied: false, ..TinyModel::default() };
    let dir = tempfile::tempdir().unwrap();
    let weights = model.weights();
    assert_ne!(weights[HEAD].1, weights[EMBEDDING].1);
    write(dir.path(), &model, &weights);
    let untied = run(dir.path());
    edit(dir.path(), &json!({"tie_word_embeddings": true}));
    let flagged = run(dir.path());
    assert_eq!(flagged, (untied.0.clone(), false));
    let base = BaseModel::open(dir.path()).unwrap();
    assert_eq!(base.weight(&WeightName::new(HEAD)).unwrap().shape, weights[HEAD].0);

    // One element is enough, the last one.
    let mut nearly = weights.clone();
    nearly.insert(HEAD.into(), weights[EMBEDDING].clone());
    *nearly.get_mut(HEAD).unwrap().1.last_mut().unwrap() += 1.0;
    write(dir.path(), &TinyModel { tied: true, ..model.clone() }, &nearly);
    assert!(!run(dir.path()).1);
}

#[test]
fn an_equal_head_and_a_head_alone_are_tied() {
    let model = TinyModel { tied: true, ..TinyModel::default() };
    let dir = tempfile::tempdir().unwrap();
    let mut weights = model.weights();
    write(dir.path(), &model, &weights);
    let tied = run(dir.path());
    assert!(tied.1);
    weights.insert(HEAD.into(), weights[EMBEDDING].clone());
    write(dir.path(), &model, &weights);
    assert_eq!(run(dir.path()), tied);
    weights.remove(EMBEDDING);
    write(dir.path(), &model, &weights);
    assert_eq!(run(dir.path()), tied);
    assert!(BaseModel::open(dir.path()).unwrap().weight(&WeightName::new(HEAD)).is_err());
    weights.remove(HEAD);
    write(dir.path(), &model, &weights);
    match BaseModel::open(dir.path()) {
        Err(Error::Weight { weight, defect: WeightDefect::Missing { .. }, .. }) => {
            assert_eq!(weight.as_str(), EMBEDDING)
        }
        other => panic!("{:?}", other.err()),
    }
}
