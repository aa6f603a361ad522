//! An adapter that loads and does less than it says: half its layers were lost on the way, B is all
//! zeros because training never ran, alpha is 0. Nothing is wrong with the file, and the answers
//! are the base's: PEFT prints "missing adapter keys" for the first and keeps silent about the
//! others. Here each is said, with counts, and what is meant stays quiet.

use pleach::WeightName;
#[path = "../common/cli.rs"]
mod cli;

use pleach::adapter::{AdapterRemark, BaseShapes, Limits, PeftAdapter};
use pleach::base::WeightInfo;
use pleach::testing::adapter::{TinyAdapter, TinyModule, serialize};
use safetensors::Dtype;
use serde_json::{Value, json};

const MODULES: [&str; 3] = ["self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"];

/// Four layers of three modules, an embedding and a head.
fn base() -> BaseShapes {
    let layers = (0..4)
        .flat_map(|layer| MODULES.map(|module| format!("model.layers.{layer}.{module}.weight")));
    let names = layers.chain(["model.embed_tokens.weight", "lm_head.weight"].map(str::to_owned));
    let info = WeightInfo { shape: vec![4, 4], dtype: "F32".into() };
    let weights: Vec<_> = names.map(|name| (WeightName::new(name), info.clone())).collect();
    BaseShapes::new("tiny", weights.iter().map(|(name, info)| (name, info)))
}

/// An adapter of `modules` in `layers`, with `config` and its factors of B set to zero where `zero`
/// says so.
fn remarks(
    layers: &[usize],
    modules: &[&str],
    config: Value,
    zero: impl Fn(&str) -> bool,
) -> Vec<AdapterRemark> {
    let targets = layers.iter().flat_map(|layer| {
        modules
            .iter()
            .map(move |module| TinyModule::linear(&format!("model.layers.{layer}.{module}"), 4, 4))
    });
    let made = TinyAdapter::new(targets.collect(), 2, 1).with_config(config);
    let mut tensors = made.tensors();
    for (_, _, values) in
        tensors.iter_mut().filter(|(key, _, _)| key.contains("lora_B") && zero(key))
    {
        values.fill(-0.0);
    }
    let bytes = serialize(&tensors, Dtype::F32);
    let adapter = PeftAdapter::from_bytes(&made.config_bytes(), bytes, &Limits::default()).unwrap();
    adapter.deltas(&base()).unwrap();
    adapter.remarks(&base()).unwrap()
}

#[test]
fn modules_without_tensors_are_counted() {
    let both = json!({"target_modules": ["q_proj", "v_proj"]});
    let half = remarks(&[0, 1], &MODULES[..2], both.clone(), |_| false);
    let first = [
        "model.layers.2.self_attn.q_proj",
        "model.layers.2.self_attn.v_proj",
        "model.layers.3.self_attn.q_proj",
    ];
    let expected =
        AdapterRemark::Missing { count: 4, selected: 8, first: first.map(str::to_owned).to_vec() };
    assert_eq!(half, [expected]);
    assert!(half[0].to_string().starts_with("4 of the 8 modules"), "{}", half[0]);
    assert!(half[0].to_string().ends_with("3.self_attn.q_proj, …"), "{}", half[0]);
    // Only q of q and v.
    let q = remarks(&[0, 1, 2, 3], &MODULES[..1], both, |_| false);
    assert!(matches!(&q[..], [AdapterRemark::Missing { count: 4, selected: 8, .. }]), "{q:?}");
    let pattern = json!({"target_modules": r"model\.layers\.\d+\..*_proj"});
    let up = remarks(&[0, 1, 2, 3], &MODULES[..2], pattern, |_| false);
    assert!(matches!(&up[..], [AdapterRemark::Missing { count: 4, selected: 12, .. }]), "{up:?}");
    let all = remarks(&[0, 1, 2], &MODULES, json!({"target_modules": "all-linear"}), |_| false);
    assert!(matches!(&all[..], [AdapterRemark::Missing { count: 3, selected: 12, .. }]), "{all:?}");
}

#[test]
fn what_is_meant_stays_quiet() {
    for config in [
        json!({"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1, 3]}),
        json!({"target_modules": r".*\.[13]\..*_proj", "exclude_modules": ["up_proj"]}),
    ] {
        assert_eq!(remarks(&[1, 3], &MODULES[..2], config, |_| false), []);
    }
    let lacking = json!({"target_modules": ["q_proj", "v_proj", "experts.gate_up_proj", "c_attn"]});
    assert_eq!(remarks(&[0, 1, 2, 3], &MODULES[..2], lacking, |_| false), []);
    assert_eq!(remarks(&[0], &MODULES[..1], json!({"target_modules": null}), |_| false), []);
}

#[test]
fn changes_of_nothing_are_counted() {
    let all = json!({"target_modules": "all-linear"});
    let zeros = remarks(&[0, 1, 2, 3], &MODULES, all.clone(), |key| key.contains("layers.2"));
    assert!(
        matches!(&zeros[..], [AdapterRemark::Nothing { count: 3, modules: 12, alpha: false, .. }]),
        "{zeros:?}"
    );
    assert!(
        zeros[0]
            .to_string()
            .contains("3 of its 12 modules change nothing, since a factor is all zeros")
    );
    let untrained = remarks(&[0, 1, 2, 3], &MODULES, all.clone(), |_| true);
    assert!(matches!(&untrained[..], [AdapterRemark::Nothing { count: 12, .. }]), "{untrained:?}");
    let silent = remarks(
        &[0, 1, 2, 3],
        &MODULES,
        json!({"target_modules": "all-linear", "lora_alpha": 0}),
        |_| false,
    );
    assert!(
        matches!(&silent[..], [AdapterRemark::Nothing { count: 12, alpha: true, .. }]),
        "{silent:?}"
    );
    assert_eq!(remarks(&[0, 1, 2, 3], &MODULES, all, |_| false), []);
}

#[test]
fn the_command_line_says_it_and_takes_the_limit_on_ranks() {
    let dir = tempfile::tempdir().unwrap();
    cli::make_base_and_tree(dir.path());
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let half = TinyAdapter::new(vec![cli::modules()[0].clone()], 600, 5)
        .with_config(json!({"target_modules": ["q_proj", "o_proj"], "lora_alpha": 0}));
    half.write(dir.path().join("half").as_path()).unwrap();
    let refused = cli::pleach(&["inspect", &at("half")]).refusal();
    assert!(
        refused.contains("rank 600, the limit is 512") && refused.contains("--max-rank"),
        "{refused}"
    );
    let (half, base) = (at("half"), at("base"));
    let inspect = ["inspect", &half[..], "--base", &base[..], "--max-rank", "600"];
    let run = cli::pleach(&[&inspect[..], &["--json", "--quiet"]].concat());
    assert_eq!((run.status, run.stderr.as_str()), (Some(0), ""));
    let answer: Value = serde_json::from_str(&run.stdout).unwrap();
    let remarks = answer["remarks"].as_array().unwrap();
    let found: Vec<_> = remarks
        .iter()
        .map(|remark| (remark["remark"].as_str().unwrap(), &remark["count"]))
        .collect();
    assert_eq!(found, [("missing", &json!(3)), ("nothing", &json!(1))]);
    let text = cli::pleach(&inspect).text();
    assert!(
        text.contains("remark      3 of the 4 modules") && text.contains("alpha is 0"),
        "{text}"
    );
}
