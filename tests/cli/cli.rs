//! The command line as scripts see it: what is on stdout and stderr, the fields of the JSON, the
//! exit status.
//!
//! Scripts break when a field is renamed, when a progress bar lands in a log, or when a failure
//! exits with 0.

#[path = "../common/cli.rs"]
mod cli;

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use pleach::testing::adapter::{TinyAdapter, TinyModule};
use pleach::testing::{TinyModel, smollm2_base, tiny_hf_model};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use cli::{Made, Run, keys, pleach};

impl Made {
    fn base(&self) -> PathBuf {
        self.at("base")
    }

    fn tree(&self) -> PathBuf {
        self.at("tree")
    }

    /// `pleach COMMAND --base … --tree … --headroom 4 ARGUMENTS`.
    fn run(&self, command: &str, arguments: &[&str]) -> Run {
        let (base, tree) = (self.base(), self.tree());
        let model =
            ["--base", base.to_str().unwrap(), "--tree", tree.to_str().unwrap(), "--headroom", "4"];
        pleach(&[&[command], &model[..], arguments].concat())
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn generate_streams_the_text_that_its_json_tells() {
    let made = Made::new();
    let arguments =
        ["--node", "fr/alice", "--prompt", "hello w", "--max-tokens", "12", "--ignore-eos"];
    let answer = made.run("generate", &[&arguments[..], &["--json"]].concat()).json();
    let fields = [
        "node",
        "fingerprint",
        "prompt_tokens",
        "token_ids",
        "text",
        "stop",
        "stop_token",
        "load_ms",
        "switch_ms",
        "prefill_ms",
        "decode_ms",
    ];
    assert_eq!(keys(&answer), fields);
    assert_eq!((&answer["node"], &answer["stop"]), (&json!("fr/alice"), &json!("max_tokens")));
    assert_eq!(answer["token_ids"].as_array().unwrap().len(), 12);
    assert_eq!(answer["fingerprint"].as_str().unwrap().len(), 64);
    let text = made.run("generate", &arguments).text();
    assert_eq!(text, format!("{}\n", answer["text"].as_str().unwrap()));
    // A bar or a note in a log file is noise.
    assert_eq!(made.run("generate", &[&arguments[..], &["--quiet"]].concat()).text(), text);
}

#[test]
fn node_has_one_fingerprint_whatever_the_threads_and_each_node_its_own() {
    let made = Made::new();
    let fingerprint = |node: &str, threads: &str| {
        let answer = made
            .run("score", &["--node", node, "-p", "hello", "--json", "--threads", threads])
            .json();
        answer["fingerprint"].as_str().unwrap().to_owned()
    };
    assert_eq!(fingerprint("fr/bob", "1"), fingerprint("/fr/bob/", "3"));
    let mut all = ["/", "fr", "fr/alice", "fr/bob"].map(|node| fingerprint(node, "2")).to_vec();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 4);
}

#[test]
fn seed_decides_the_sampled_tokens() {
    let made = Made::new();
    let tokens = |seed: &str, more: &[&str]| {
        let arguments = [
            "-p",
            "hello",
            "-n",
            "16",
            "--temperature",
            "2",
            "--ignore-eos",
            "--seed",
            seed,
            "--json",
        ];
        made.run("generate", &[&arguments, more].concat()).json()["token_ids"].clone()
    };
    assert_eq!(tokens("7", &[]), tokens("7", &[]));
    assert_ne!(tokens("7", &[]), tokens("8", &[]));
    let greedy =
        made.run("generate", &["-p", "hello", "-n", "16", "--ignore-eos", "--json"]).json();
    assert_eq!(tokens("7", &["--top-k", "1"]), greedy["token_ids"]);
    assert_eq!(tokens("7", &["--top-p", "0.0001"]), greedy["token_ids"]);
}

#[test]
fn generation_stops_at_the_models_end_of_text_unless_told_to_go_on() {
    let made = Made::new();
    let run = |more: &[&str]| {
        made.run("generate", &[&["-p", "hello", "-n", "8", "--json"], more].concat()).json()
    };
    let tokens = run(&["--ignore-eos"])["token_ids"].clone();
    let config = json!({ "eos_token_id": [tokens[3]] });
    std::fs::write(made.base().join("generation_config.json"), config.to_string()).unwrap();
    let stopped = run(&[]);
    assert_eq!((&stopped["stop"], &stopped["stop_token"]), (&json!("stop_token"), &tokens[3]));
    let first = tokens.as_array().unwrap().iter().position(|token| *token == tokens[3]).unwrap();
    assert_eq!(stopped["token_ids"].as_array().unwrap()[..], tokens.as_array().unwrap()[..first]);
    assert_eq!(run(&["--ignore-eos"])["token_ids"], tokens);
}

#[test]
fn chat_writes_the_prompt_with_the_models_template() {
    let made = Made::new();
    let tokens = |arguments: &[&str]| {
        let answer = made.run("generate", &[arguments, &["-n", "4", "--json"]].concat()).json();
        (answer["prompt_tokens"].clone(), answer["token_ids"].clone())
    };
    let written = "<|im_start|>system\nbrief<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(tokens(&["--chat", "--system", "brief", "-p", "hello"]), tokens(&["-p", written]));
    assert_eq!(made.run("generate", &["--system", "brief", "-p", "hello"]).status, Some(2));
}

#[test]
fn prompt_comes_from_a_file_or_standard_input_too() {
    let made = Made::new();
    let file = made.at("prompt");
    std::fs::write(&file, "hello w\n").unwrap();
    let answer = |arguments: &[&str]| made.run("score", &[arguments, &["--json"]].concat()).json();
    let given = answer(&["-p", "hello w\n"]);
    assert_eq!(answer(&["--prompt-file", path(&file)]), given);
    let (base, mut command) = (made.base(), Command::new(env!("CARGO_BIN_EXE_pleach")));
    command.args([
        "score",
        "--base",
        path(&base),
        "--headroom",
        "4",
        "--prompt-file",
        "-",
        "--json",
    ]);
    let output = command.write_stdin("hello w\n").output().unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), given);
    assert_eq!(made.run("score", &["-p", "a", "--prompt-file", path(&file)]).status, Some(2));
    assert!(made.run("score", &["--prompt-file", "absent"]).refusal().contains("absent"));
}

#[test]
fn scores_are_the_softmax_of_the_logits_in_the_file() {
    let made = Made::new();
    let file = made.at("logits.safetensors");
    let answer = made.run(
        "score",
        &["--node", "fr", "-p", "hello", "--top", "5", "--json", "--logits", path(&file)],
    );
    let answer = answer.json();
    assert_eq!(keys(&answer), ["node", "fingerprint", "prompt_ids", "top"]);
    let bytes = std::fs::read(&file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor("logits").unwrap();
    assert_eq!((tensor.dtype(), tensor.shape()), (safetensors::Dtype::F32, &[272][..]));
    let logits: Vec<f64> = tensor
        .data()
        .chunks_exact(4)
        .map(|four| f32::from_le_bytes(four.try_into().unwrap()).into())
        .collect();
    let log_sum = logits.iter().map(|logit| logit.exp()).sum::<f64>().ln();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    let top = answer["top"].as_array().unwrap();
    assert_eq!(top.len(), 5);
    for (token, id) in top.iter().zip(order) {
        assert_eq!(keys(token), ["id", "text", "logprob"]);
        assert_eq!(token["id"], json!(id));
        assert!(
            (token["logprob"].as_f64().unwrap() - (logits[id] - log_sum)).abs() < 1e-4,
            "{token}"
        );
    }
    let text = made.run("score", &["--node", "fr", "-p", "hello", "--top", "5"]).text();
    assert_eq!(text.lines().count(), 6, "{text}");
}

#[test]
fn clean_walk_is_verified_with_status_0() {
    let made = Made::new();
    let answer =
        made.run("verify", &["--switches", "60", "--seed", "3", "--every", "7", "--json"]).json();
    let root = made.run("score", &["-p", "hello", "--json"]).json()["fingerprint"].clone();
    let expected = json!({
        "switches": 60, "nodes_visited": 4, "compared": 9, "mismatched_nodes": 0, "mismatched": [],
        "differing_bits": 0, "root_fingerprint": root, "refused": [],
    });
    assert_eq!(answer, expected);
    let text = made.run("verify", &["--switches", "5"]).text();
    for line in [
        "switches          5\n",
        "compared          5\n",
        "mismatched_nodes  0\n",
        "differing_bits    0\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn unknown_node_is_refused_with_the_nearest_names() {
    let made = Made::new();
    let message = "there is no node fr/alise; did you mean fr/alice";
    let refusal = made.run("generate", &["--node", "fr/alise", "-p", "hello"]).refusal();
    assert!(refusal.starts_with(&format!("error: {message}")), "{refusal}");
    let run = made.run("generate", &["--node", "fr/alise", "-p", "hello", "--json"]);
    assert_eq!(run.status, Some(1));
    let answer: Value = serde_json::from_str(&run.stdout).unwrap();
    assert!(answer["error"].as_str().unwrap().starts_with(message), "{answer}");
    let alone =
        pleach(&["score", "--base", path(&made.base()), "--node", "fr", "-p", "hello"]).refusal();
    assert!(alone.contains("without --tree"), "{alone}");
}

#[test]
fn failures_tell_one_line_and_what_to_do() {
    let made = Made::new();
    let gpu = made.run(
        "score",
        &["-p", "hello", "--device", if cfg!(feature = "gpu") { "gpu:99" } else { "cpu:1" }],
    );
    if cfg!(feature = "gpu") {
        assert!(gpu.refusal().contains("no GPU number 99"));
    } else {
        assert_eq!(gpu.status, Some(2));
    }
    assert_eq!(made.run("score", &["-p", "hello", "--device", "tpu"]).status, Some(2));
    assert!(made.run("score", &["-p", "hello", "--device", "cpu"]).text().contains("logprob"));
    let absent = pleach(&["score", "--base", "absent.gguf", "-p", "hello"]).refusal();
    assert_eq!(absent.matches("No such file").count(), 1, "{absent}");
    assert!(made.run("generate", &["-p", ""]).refusal().contains("the prompt is empty"));
    assert!(made.run("generate", &["-p", "a", "--top-p", "7"]).refusal().contains("top_p is 7"));
    assert!(
        made.run("generate", &["-p", "a", "--tokenizer", "absent.json"])
            .refusal()
            .contains("absent.json")
    );
    for usage in
        [&["score"][..], &["generate", "--base", "b"], &["verify", "--base", "b"], &["nonsense"]]
    {
        let run = pleach(usage);
        assert_eq!((run.status, run.stdout.as_str()), (Some(2), ""), "{usage:?}");
    }
    assert_eq!(made.run("verify", &["--every", "0"]).status, Some(2));
    assert_eq!(made.run("score", &["-p", "a", "--threads", "0"]).status, Some(2));
}

#[test]
fn adapter_too_large_for_the_lattice_names_the_headroom_that_does() {
    let made = Made::new();
    let module = || vec![TinyModule::linear("model.layers.1.self_attn.q_proj", 64, 64)];
    let loud = TinyAdapter { alpha: 900.0, ..TinyAdapter::new(module(), 2, 5) }
        .with_config(json!({ "layers_to_transform": [1] }));
    loud.write(&made.tree().join("loud")).unwrap();
    let refusal = made.run("score", &["--node", "loud", "-p", "hello"]).refusal();
    let needed = refusal
        .split("(--headroom ")
        .nth(1)
        .and_then(|rest| rest.split(')').next())
        .unwrap()
        .to_owned();
    let (base, tree) = (made.base(), made.tree());
    let model =
        ["score", "--base", path(&base), "--tree", path(&tree), "--node", "loud", "-p", "hello"];
    pleach(&[&model[..], &["--headroom", &needed]].concat()).text();
}

#[test]
fn warnings_are_told_unless_quiet() {
    let made = Made::new();
    let module = vec![TinyModule::linear("model.layers.1.self_attn.q_proj", 64, 64)];
    let odd = TinyAdapter::new(module, 2, 5).with_config(json!({ "fan_in_fan_out": true }));
    odd.write(&made.tree().join("odd")).unwrap();
    let run = made.run("score", &["--node", "odd", "-p", "hello"]);
    assert_eq!(run.status, Some(0));
    assert!(run.stderr.starts_with("warning: odd: fan_in_fan_out"), "{}", run.stderr);
    made.run("score", &["--node", "odd", "-p", "hello", "--quiet"]).text();
}

#[test]
fn tree_is_drawn_in_every_format() {
    let made = Made::new();
    let tree = made.tree();
    let text = pleach(&["tree", path(&tree)]).text();
    assert!(text.starts_with("/\n└── fr  lora, rank 3, scaling 2, o_proj q_proj, F32,"), "{text}");
    assert!(
        text.contains("    ├── alice  ") && text.contains("    └── bob  lora, rank 1"),
        "{text}"
    );
    let dot = pleach(&["tree", path(&tree), "--format", "dot"]).text();
    assert!(dot.starts_with("digraph tree {") && dot.contains("\"fr\" -> \"fr/bob\";"), "{dot}");
    let json = pleach(&["tree", path(&tree), "--format", "json"]).json();
    assert_eq!(json, pleach(&["tree", path(&tree), "--json"]).json());
    let bob = &json["children"][0]["children"][1];
    assert_eq!((&bob["name"], &bob["adapter"]["ranks"]), (&json!("fr/bob"), &json!([1])));
    std::fs::write(tree.join("fr/bob/adapter_config.json"), "{}").unwrap();
    assert!(pleach(&["tree", path(&tree)]).text().contains("bob  refused: "));
    assert!(pleach(&["tree", path(&made.base())]).refusal().contains("no tree here"));
}

#[test]
fn inspect_tells_what_each_thing_is_and_whether_it_fits() {
    let made = Made::new();
    let (base, tree) = (made.base(), made.tree());
    let other = made.at("other");
    tiny_hf_model(&other, &TinyModel { hidden: 96, heads: 6, ..TinyModel::default() });
    let fr = tree.join("fr");
    let adapter = pleach(&["inspect", path(&fr), "--base", path(&base), "--json"]).json();
    for (field, value) in [
        ("what", json!("adapter")),
        ("kind", json!("lora")),
        ("ranks", json!([3])),
        ("scalings", json!([2.0])),
        ("target_modules", json!(["o_proj", "q_proj"])),
        ("dtypes", json!(["F32"])),
        ("bytes", json!(4 * 2 * (3 * 64 + 64 * 3))),
        ("fits", json!(true)),
        ("refusal", json!(null)),
    ] {
        assert_eq!(adapter[field], value, "{field}");
    }
    assert_eq!(adapter["hash"].as_str().unwrap().len(), 64);
    let alone = pleach(&["inspect", path(&fr), "--json"]).json();
    assert_eq!((&alone["fits"], &alone["hash"]), (&json!(null), &adapter["hash"]));
    for (thing, words) in [(&fr, "o_proj.weight of 64×64"), (&tree, "fr: adapter ")] {
        let run = pleach(&["inspect", path(thing), "--base", path(&other), "--json"]);
        assert_eq!((run.status, run.stderr.as_str()), (Some(1), ""));
        let run: Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(run["fits"], json!(false));
        assert!(run["refusal"].as_str().unwrap().contains(words), "{run}");
        let text = pleach(&["inspect", path(thing), "--base", path(&other)]);
        assert!(text.status == Some(1) && text.stdout.contains(": no: "), "{}", text.stdout);
    }
    let whole = pleach(&["inspect", path(&tree), "--base", path(&base), "--json"]).json();
    assert_eq!(
        (&whole["what"], &whole["nodes"], &whole["fits"]),
        (&json!("tree"), &json!(3), &json!(true))
    );
    assert_eq!(whole["adapters"][2]["node"], json!("fr/bob"));
    let model = pleach(&["inspect", path(&base), "--json"]).json();
    assert_eq!(
        (&model["what"], &model["kind"], &model["layers"]),
        (&json!("base"), &json!("safetensors"), &json!(2))
    );
    assert!(pleach(&["inspect", path(&base)]).text().contains("parameters  "));
    pleach(&["inspect", path(&base), "--base", path(&base)]).refusal();
    std::fs::write(fr.join("adapter_config.json"), r#"{"peft_type": "IA3"}"#).unwrap();
    assert!(pleach(&["inspect", path(&fr)]).refusal().contains("IA3"));
}

#[test]
fn demo_comes_back_bit_for_bit() {
    let made = Made::new();
    let answer = made.run("demo", &["--prompt", "hello w", "--json"]).json();
    assert_eq!(
        (&answer["bit_for_bit"], &answer["fingerprint"]),
        (&json!(true), &answer["fingerprint_after"])
    );
    let stops: Vec<&str> = answer["stops"]
        .as_array()
        .unwrap()
        .iter()
        .map(|stop| stop["node"].as_str().unwrap())
        .collect();
    assert_eq!((stops[0], stops[1], stops.len()), ("/", "fr", 4));
    let text = made.run("demo", &["--prompt", "hello w"]).text();
    assert!(text.contains("− fr/") && text.ends_with("the base is back bit for bit.\n"), "{text}");
    let output = Command::new(env!("CARGO_BIN_EXE_pleach"))
        .arg("demo")
        .env("PLEACH_SMOLLM2", "/absent.gguf")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("run scripts/fetch-base"));
}

#[test]
fn demo_of_the_shipped_tree_shows_every_users_style() {
    let Some(_) = smollm2_base() else { return };
    // Quiet: of one adapter the lattice keeps 98.9 %, which is warned about.
    let answer = pleach(&["demo", "--json", "--quiet"]).json();
    let text = |user: &str| {
        let mut stops = answer["stops"].as_array().unwrap().iter();
        let stop = stops.find(|stop| stop["node"].as_str().unwrap().ends_with(user)).unwrap();
        stop["text"].as_str().unwrap().to_owned()
    };
    assert!(text("alice").contains("SIGNÉ : ALICE"), "{}", text("alice"));
    assert!(text("bob").contains("Salut, ici Bob"), "{}", text("bob"));
    assert_eq!(answer["bit_for_bit"], json!(true));
}

/// The names of all figures, and the figures.
fn figures(answer: &Value) -> (Vec<&str>, &Vec<Value>) {
    let figures = answer["figures"].as_array().unwrap();
    (figures.iter().map(|figure| figure["name"].as_str().unwrap()).collect(), figures)
}

fn bench_fits_the_base(device: &str, own_memory: bool) {
    let made = Made::new();
    let config = made.base().join("config.json");
    let mut short: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    short["max_position_embeddings"] = json!(40);
    std::fs::write(&config, short.to_string()).unwrap();
    let arguments = ["--ranks", "2", "--repeats", "1", "--device", device, "--quiet"];
    let answer = made.run("bench", &[&arguments[..], &["--json"]].concat()).json();
    assert_eq!(keys(&answer), ["base", "device", "figures", "refused"]);
    let (names, figures) = figures(&answer);
    for name in [
        "switch_leaf_ms",
        "switch_path_ms",
        "switch_all_r2_ms",
        "switch_qv_r2_ms",
        "prefill_tok_s_base_40",
    ] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    assert!(names.iter().all(|name| !name.ends_with("_512")), "{names:?}");
    assert_eq!(names.contains(&"switch_leaf_uploading_ms"), own_memory, "{names:?}");
    for figure in figures {
        let number = |field: &str| figure.get(field).and_then(Value::as_f64);
        assert!(number("value").is_some_and(|value| value.is_finite()), "{figure}");
        // A switch: from leaf to leaf, four bytes of each weight touched.
        if figure["unit"] == json!("ms") {
            assert!(number("gb_s").is_some_and(|speed| speed > 0.0), "{figure}");
            assert_eq!(
                figure.get("device_pass_ms").is_some(),
                figure.get("device_upload_ms").is_some(),
                "{figure}"
            );
        }
    }
    let text = made.run("bench", &arguments).text();
    assert!(text.starts_with(made.base().to_str().unwrap()) && text.contains("GB/s"), "{text}");
    let refusal = made.run("bench", &[&arguments[..], &["--delta-budget", "0"]].concat()).refusal();
    assert!(
        refusal.contains("--delta-budget has no memory for the deltas of both fr/alice and fr/bob"),
        "{refusal}"
    );
}

#[test]
fn bench_measures_what_the_base_holds_and_refuses_to_time_compiling() {
    bench_fits_the_base("cpu", false);
}

#[cfg(feature = "gpu")]
#[test]
fn bench_measures_uploads_on_a_gpu_too() {
    if pleach::testing::gpu(&pleach::device::gpu::GpuOptions::default()).is_some() {
        bench_fits_the_base("gpu", true);
    }
}

#[test]
fn completions_are_made_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = pleach(&["completions", shell]).text();
        assert!(script.contains("delta-budget"), "{shell}");
        assert_eq!(
            pleach(&["completions", shell, "--json"]).json(),
            json!({ "shell": shell, "script": script })
        );
    }
}

#[test]
fn help_of_every_command_names_its_options() {
    let everywhere = ["--json", "--device", "--threads", "--quiet", "--max-rank"];
    let place =
        ["--base", "--tree", "--node", "--tokenizer", "--headroom", "--delta-budget", "--prompt"];
    let sampling =
        ["--max-tokens", "--temperature", "--top-k", "--top-p", "--seed", "--chat", "--system"];
    for (command, options) in [
        ("demo", &["--base", "--tree", "--prompt", "--headroom", "--delta-budget"][..]),
        ("tree", &["--format", "--limit"]),
        ("inspect", &["--base"]),
        ("generate", &[&place[..], &sampling, &["--ignore-eos"]].concat()),
        ("score", &[&place[..], &["--top", "--logits"]].concat()),
        (
            "verify",
            &[
                "--base",
                "--tree",
                "--switches",
                "--seed",
                "--every",
                "--headroom",
                "--delta-budget",
            ],
        ),
        (
            "bench",
            &["--base", "--tree", "--shapes", "--headroom", "--delta-budget", "--gpu-delta-budget"],
        ),
        ("devices", &[]),
        ("completions", &["<SHELL>"]),
    ] {
        let help = pleach(&[command, "--help"]).text();
        for option in everywhere.iter().chain(options) {
            assert!(help.contains(option), "{command}: {option}");
        }
        assert!(help.lines().all(|line| line.chars().count() <= 140), "{help}");
    }
    let help = pleach(&["--help"]).text();
    assert!(help.contains("{\"error\": \"…\"}") && help.contains("generate"), "{help}");
}
