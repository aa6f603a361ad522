//! What people expect of a text generator and did not find: to stop at a text wherever the tokens
//! lie, to leave out unlikely tokens, to repeat less, `top_k 0` and `top_p 1` for off, another of
//! the model's templates; and a bench on a toy of a model.

use std::ops::ControlFlow;
use std::process::Command;

use pleach::Runtime;
use pleach::model::{GenerateOptions, Sampling, StopReason};
use pleach::runtime::Prompt;
use pleach::testing::{TinyModel, tiny_hf_model};
use serde_json::{Value, json};

fn base(model: &TinyModel) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    tiny_hf_model(dir.path(), model);
    dir
}

fn runtime(dir: &tempfile::TempDir, device: &str) -> Runtime {
    Runtime::builder().base(dir.path()).device(device.parse().unwrap()).open().unwrap()
}

/// `pleach COMMAND --base …` with `--json`, or the error's text.
fn pleach(command: &str, dir: &tempfile::TempDir, arguments: &[&str]) -> Result<Value, String> {
    let mut run = Command::new(env!("CARGO_BIN_EXE_pleach"));
    run.args([command, "--base", dir.path().to_str().unwrap(), "--device", "cpu", "--json"])
        .args(arguments);
    let output = run.output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    match output.status.success() {
        true => Ok(answer),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

const LONG: usize = 24;

fn options() -> GenerateOptions {
    GenerateOptions { max_tokens: LONG, ignore_eos: true, ..GenerateOptions::default() }
}

#[test]
fn text_stops_before_a_stop_text_wherever_the_tokens_lie() {
    let dir = base(&TinyModel::default());
    let runtime = runtime(&dir, "cpu");
    let prompt = Prompt::from("hello w");
    let sampling = Sampling { temperature: 1.0, seed: 5, ..Sampling::default() };
    let free = GenerateOptions { sampling, ..options() };
    let whole = runtime.generate(&prompt, &free, |_| ControlFlow::Continue(())).unwrap();
    let chars: Vec<char> = whole.text.chars().collect();
    assert!(chars.len() > 12, "{:?}", whole.text);
    for (start, length) in [(0, 1), (3, 1), (4, 3), (7, 5)] {
        let stop: String = chars[start..start + length].iter().collect();
        let at = whole.text.find(&stop).unwrap();
        let with = GenerateOptions {
            stop_texts: vec!["never there".to_owned(), stop.clone()],
            ..free.clone()
        };
        let mut streamed = String::new();
        let stopped = runtime
            .generate(&prompt, &with, |piece| {
                streamed.push_str(piece);
                assert!(!streamed.contains(&stop), "{stop:?} was printed");
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(
            (stopped.text.as_str(), stopped.stop),
            (&whole.text[..at], StopReason::StopText),
            "{stop:?}"
        );
        assert_eq!(streamed, stopped.text);
        assert!(stopped.token_ids.len() < LONG && whole.token_ids.starts_with(&stopped.token_ids));
    }
    // What only begins like a stop text is given in full.
    let almost = chars[chars.len() - 3..].iter().collect::<String>() + "never there";
    let with = GenerateOptions { stop_texts: vec![almost], ..free.clone() };
    let found = runtime.generate(&prompt, &with, |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((found.text, found.stop), (whole.text, StopReason::MaxTokens));
    let empty = GenerateOptions { stop_texts: vec![String::new()], ..free };
    assert!(
        runtime
            .generate(&prompt, &empty, |_| ControlFlow::Continue(()))
            .unwrap_err()
            .to_string()
            .contains("stop_texts")
    );
}

/// Greedy with a penalty, step by step over the model's own logits.
#[test]
fn repeat_penalty_is_that_of_transformers() {
    let dir = base(&TinyModel::default());
    let runtime = runtime(&dir, "cpu");
    let mut ids = runtime.encode(&"hello hello w".into()).unwrap();
    let prompt = Prompt::Tokens(ids.clone());
    let penalty = 1.7;
    let mut expected = Vec::new();
    for _ in 0..LONG {
        let mut logits = runtime.score(&Prompt::Tokens(ids.clone())).unwrap().logits;
        let mut seen = ids.clone();
        seen.sort_unstable();
        seen.dedup();
        for id in seen {
            let logit = &mut logits[id as usize];
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
        let best = pleach::model::argmax(&logits).unwrap();
        expected.push(best);
        ids.push(best);
    }
    let sampling = Sampling { repeat_penalty: penalty, ..Sampling::default() };
    let found =
        runtime
            .generate(&prompt, &GenerateOptions { sampling, ..options() }, |_| {
                ControlFlow::Continue(())
            })
            .unwrap()
            .token_ids;
    assert_eq!(found, expected);
    let plain =
        runtime.generate(&prompt, &options(), |_| ControlFlow::Continue(())).unwrap().token_ids;
    assert_ne!(found, plain, "the penalty changes something here");
}

#[test]
fn off_is_off_and_min_p_one_is_greedy() {
    let dir = base(&TinyModel::default());
    let run = |arguments: &[&str]| {
        let fixed = ["--prompt", "hello w", "--max-tokens", "12", "--ignore-eos", "--seed", "3"];
        pleach("generate", &dir, &[&fixed[..], arguments].concat()).unwrap()["token_ids"].clone()
    };
    let hot = run(&["--temperature", "1.3"]);
    assert_eq!(
        run(&[
            "--temperature",
            "1.3",
            "--top-k",
            "0",
            "--top-p",
            "1",
            "--min-p",
            "0",
            "--repeat-penalty",
            "1"
        ]),
        hot
    );
    let greedy = run(&[]);
    assert_ne!(hot, greedy);
    assert_eq!(run(&["--temperature", "1.3", "--min-p", "1"]), greedy);
    for (option, value) in [("--min-p", "1.5"), ("--repeat-penalty", "0"), ("--top-p", "0")] {
        let error = pleach("generate", &dir, &["--prompt", "a", option, value]).unwrap_err();
        assert!(error.starts_with("error: sampling parameter"), "{error}");
    }
}

#[test]
fn command_line_stops_at_several_texts_and_takes_a_named_template() {
    let dir = base(&TinyModel::default());
    let fixed = [
        "--prompt",
        "hello w",
        "--max-tokens",
        "24",
        "--ignore-eos",
        "--temperature",
        "1",
        "--seed",
        "5",
    ];
    let whole = pleach("generate", &dir, &fixed).unwrap();
    let text = whole["text"].as_str().unwrap();
    let at = text.char_indices().nth(6).unwrap().0;
    let stop = text[at..].chars().next().unwrap().to_string();
    let answer = pleach(
        "generate",
        &dir,
        &[&fixed[..], &["--stop", "never there", "--stop", &stop]].concat(),
    )
    .unwrap();
    assert_eq!(answer["text"].as_str().unwrap(), &text[..text.find(&stop).unwrap()]);
    assert_eq!((&answer["stop"], &answer["stop_token"]), (&json!("stop_text"), &json!(null)));

    let path = dir.path().join("tokenizer_config.json");
    let templates =
        json!({"chat_template": {"default": "hello", "rag": "hello w {{ messages[0].content }}"}});
    std::fs::write(path, templates.to_string()).unwrap();
    let chat = |more: &[&str]| {
        pleach(
            "generate",
            &dir,
            &[&["--chat", "--prompt", "lo", "--max-tokens", "1"], more].concat(),
        )
    };
    assert_eq!(chat(&[]).unwrap()["prompt_tokens"], json!(1));
    let expected = runtime(&dir, "cpu").tokenizer().unwrap().encode("hello w lo").unwrap().len();
    assert_eq!(chat(&["--template", "rag"]).unwrap()["prompt_tokens"], json!(expected));
    let error = chat(&["--template", "rags"]).unwrap_err();
    assert!(error.contains("no chat template `rags`; there are: default, rag"), "{error}");
}

#[test]
fn bench_runs_on_a_small_vocabulary_and_a_short_context() {
    let dir = base(&TinyModel { vocab: 264, ..TinyModel::default() });
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for held in [512, 9, 2] {
        config["max_position_embeddings"] = json!(held);
        std::fs::write(&path, config.to_string()).unwrap();
        let answer = pleach("bench", &dir, &["--ranks", "2", "--repeats", "1", "--quiet"]).unwrap();
        let figures = answer["figures"].as_array().unwrap();
        let decode = figures
            .iter()
            .find(|figure| figure["name"] == json!("decode_tok_s_base"))
            .expect("decode is measured");
        assert!(
            decode["value"].as_f64().is_some_and(|speed| speed.is_finite() && speed > 0.0),
            "{held}: {decode}"
        );
    }
    config["max_position_embeddings"] = json!(1);
    std::fs::write(&path, config.to_string()).unwrap();
    let error = pleach("bench", &dir, &["--ranks", "2", "--repeats", "1"]).unwrap_err();
    assert!(error.contains("the base holds 1 token of context"), "{error}");
}

/// On a GPU `min_p` is the shader's, and a penalty takes the logits to the host: the tokens are the
/// CPU's.
#[cfg(feature = "gpu")]
#[test]
fn gpu_leaves_out_and_penalises_as_the_cpu_does() {
    if pleach::testing::gpu(&pleach::device::gpu::GpuOptions::default()).is_none() {
        return;
    }
    let dir = base(&TinyModel::default());
    let [here, there] = ["cpu", "gpu"].map(|device| runtime(&dir, device));
    for sampling in [
        Sampling { temperature: 1.0, min_p: Some(0.3), seed: 4, ..Sampling::default() },
        Sampling { repeat_penalty: 1.5, ..Sampling::default() },
        Sampling {
            temperature: 0.8,
            repeat_penalty: 1.2,
            top_k: Some(20),
            min_p: Some(0.1),
            seed: 9,
            ..Sampling::default()
        },
    ] {
        let options = GenerateOptions { sampling, ..options() };
        let [a, b] = [&here, &there].map(|runtime| {
            runtime
                .generate(&"hello w".into(), &options, |_| ControlFlow::Continue(()))
                .unwrap()
                .token_ids
        });
        assert_eq!(a, b, "{options:?}");
    }
}
