//! A hundred users were a hundred runs of the program, each with its own copy of the weights, or a
//! script that switched for every one of them. Many prompts go into one run: as pairs, or a line
//! each.

#[path = "../common/cli.rs"]
mod cli;

use std::collections::BTreeMap;

use assert_cmd::Command;
use pleach::testing::adapter::{TinyAdapter, TinyModule};
use serde_json::{Value, json};

use cli::{Made, Run, keys, pleach};

const FIELDS: [&str; 9] = [
    "id",
    "node",
    "prompt_tokens",
    "token_ids",
    "text",
    "stop",
    "stop_token",
    "prefill_ms",
    "decode_ms",
];

impl Made {
    /// `pleach generate --base … --tree … --headroom 4 ARGUMENTS`.
    fn generate(&self, arguments: &[&str]) -> Run {
        let (base, tree) = (self.path("base"), self.path("tree"));
        pleach(
            &[
                &["generate", "--base", &base, "--tree", &tree, "--headroom", "4"][..],
                &["--device", "cpu"],
                arguments,
            ]
            .concat(),
        )
    }

    /// The same with a file of requests.
    fn serve(&self, lines: &str, arguments: &[&str]) -> Run {
        std::fs::write(self.at("requests.jsonl"), lines).unwrap();
        let file = self.path("requests.jsonl");
        self.generate(&[&["--requests", &file][..], arguments].concat())
    }

    /// The refusal of a file of requests, with no model there to be loaded.
    fn refusal(&self, lines: &str, arguments: &[&str]) -> String {
        let base = self.at("base");
        std::fs::rename(&base, self.at("away")).unwrap();
        let refusal = self.serve(lines, arguments).refusal();
        std::fs::rename(self.at("away"), base).unwrap();
        refusal
    }
}

/// The documents of a stdout, one a line.
fn documents(stdout: &str) -> Vec<Value> {
    stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The answers of a run without failures by their ids.
fn answers(run: Run) -> BTreeMap<String, Value> {
    let documents = documents(&run.text());
    let by_id = |answer: Value| {
        assert_eq!(keys(&answer), FIELDS);
        (answer["id"].to_string(), answer)
    };
    documents.into_iter().map(by_id).collect()
}

/// What does not depend on who else was served.
fn content(answer: &Value) -> Vec<&Value> {
    ["node", "prompt_tokens", "token_ids", "text", "stop", "stop_token"]
        .map(|key| &answer[key])
        .to_vec()
}

#[test]
fn pairs_have_the_answers_that_each_has_alone() {
    let made = Made::new();
    let pairs =
        [("fr/alice", "hello w"), ("fr/bob", "hello"), ("/", "all of it"), ("/fr/", "hello")];
    let fixed = ["-n", "12", "--ignore-eos", "--temperature", "1.5", "--seed", "4"];
    let mut all: Vec<&str> = fixed.to_vec();
    for (node, prompt) in pairs {
        all.extend(["--node", node, "--prompt", prompt]);
    }
    let together = answers(made.generate(&[&all[..], &["--json", "--merge", "leaf"]].concat()));
    assert_eq!(together.len(), 4);
    for ((node, prompt), number) in pairs.into_iter().zip(1..) {
        let one = [&fixed[..], &["--node", node, "--prompt", prompt]].concat();
        let alone = made.generate(&[&one[..], &["--json"]].concat()).json();
        assert_eq!(content(&together[&format!("{number}")]), content(&alone), "{node}");
    }
    let text = made.generate(&[&all[..], &["--merge", "leaf"]].concat()).text();
    for (number, node) in ["fr/alice", "fr/bob", "/", "fr"].into_iter().enumerate() {
        let answer = &together[&format!("{}", number + 1)];
        let part = format!("== {} {node}\n{}\n", number + 1, answer["text"].as_str().unwrap());
        assert!(text.contains(&part), "{part:?} in {text:?}");
    }
}

#[test]
fn one_node_is_for_all_prompts_and_one_prompt_for_all_nodes() {
    let made = Made::new();
    let nodes = |arguments: &[&str]| {
        let fixed = ["-n", "1", "--json", "--ignore-eos"];
        let answers = answers(made.generate(&[&fixed[..], arguments].concat()));
        answers.into_values().map(|answer| answer["node"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(nodes(&["-p", "a", "-p", "b", "--node", "fr"]), ["fr", "fr"]);
    assert_eq!(nodes(&["-p", "a", "-p", "b"]), ["/", "/"]);
    assert_eq!(nodes(&["-p", "a", "--node", "fr", "--node", "fr/bob"]), ["fr", "fr/bob"]);
    let file = made.path("prompt");
    std::fs::write(&file, "hello").unwrap();
    assert_eq!(nodes(&["--prompt-file", &file, "--node", "fr", "--node", "/"]), ["fr", "/"]);
    let unequal = ["-p", "a", "-p", "b", "-p", "c", "--node", "fr", "--node", "/"];
    let error = made.generate(&unequal).refusal();
    assert!(error.contains("there are 3 prompts and 2 nodes"), "{error}");
    let error = made.generate(&["-p", "a", "--node", "fr", "--merge", "leaf"]).refusal();
    assert!(error.contains("--merge is for many prompts at once"), "{error}");
    let unknown = made.generate(&["-p", "a", "--node", "fr", "--node", "fr/alise"]).refusal();
    assert!(unknown.contains("there is no node fr/alise; did you mean fr/alice"), "{unknown}");
    let both = made.generate(&["-p", "a", "--requests", "-"]);
    assert_eq!(both.status, Some(2), "{both:?}");
}

#[test]
fn every_key_of_a_line_does_what_its_option_does() {
    let made = Made::new();
    let fixed = ["--node", "fr/bob", "-n", "16", "--ignore-eos", "--json"];
    let hot = ["--temperature", "1.4", "--seed", "6"];
    let alone = |arguments: &[&str]| {
        made.generate(&[&fixed[..], &["-p", "hello w"], &hot, arguments].concat()).json()
    };
    let whole = alone(&[]);
    let text: Vec<char> = whole["text"].as_str().unwrap().chars().collect();
    let stop: String = text[text.len() / 2..text.len() / 2 + 2].iter().collect();
    let cases: [(Value, &[&str]); 9] = [
        (json!({}), &[]),
        (json!({ "max_tokens": 3 }), &["-n", "3"]),
        (json!({ "top_k": 2 }), &["--top-k", "2"]),
        (json!({ "top_p": 0.5 }), &["--top-p", "0.5"]),
        (json!({ "min_p": 0.2 }), &["--min-p", "0.2"]),
        (json!({ "repeat_penalty": 1.7 }), &["--repeat-penalty", "1.7"]),
        (json!({ "stop": stop }), &["--stop", &stop]),
        (json!({ "stop": ["never there", stop] }), &["--stop", &stop]),
        (json!({ "node": "fr/alice", "deadline_ms": 600_000 }), &["--node", "fr/alice"]),
    ];
    let mut lines = String::new();
    for (id, (keys, _)) in cases.iter().enumerate() {
        let mut line =
            json!({ "id": format!("case {id}"), "prompt": "hello w", "temperature": 1.4 });
        line["seed"] = json!(6);
        line["merge"] = json!("leaf");
        line.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        lines += &format!("{line}\r\n\n");
    }
    let found = answers(made.serve(&lines, &fixed));
    assert_eq!(found.len(), cases.len());
    for (id, (keys, options)) in cases.iter().enumerate() {
        // An option given twice is refused where it takes one value.
        let replaced = |option: &str| options.first().is_some_and(|given| *given == option);
        let mut one = vec!["--ignore-eos", "--json", "-p", "hello w"];
        one.extend(hot);
        for pair in [["--node", "fr/bob"], ["-n", "16"]] {
            if !replaced(pair[0]) {
                one.extend(pair);
            }
        }
        let alone = made.generate(&[&one[..], options].concat()).json();
        assert_eq!(content(&found[&format!("\"case {id}\"")]), content(&alone), "{keys}");
    }
}

#[test]
fn messages_ends_of_text_merge_points_and_defaults() {
    let made = Made::new();
    let tokens = made.generate(&["-p", "hello", "-n", "8", "--ignore-eos", "--json"]).json();
    let config = json!({ "eos_token_id": [tokens["token_ids"][3]] });
    std::fs::write(made.at("base/generation_config.json"), config.to_string()).unwrap();
    let lines = r#"
        {"prompt": "hello", "merge": "leaf"}
        {"prompt": "hello", "ignore_eos": true, "merge": "root", "id": 77}
        {"prompt": "hello", "ignore_eos": true, "merge": "parent", "id": null}
        {"messages": [{"role": "system", "content": "brief"}, {"role": "user", "content": "hello"}]}"#;
    let found = answers(made.serve(lines, &["-n", "8", "--json"]));
    assert_eq!(found.keys().collect::<Vec<_>>(), ["2", "4", "5", "77"], "numbers of lines are ids");
    assert_eq!(found["2"]["stop"], json!("stop_token"));
    assert_eq!(found["2"]["stop_token"], tokens["token_ids"][3]);
    for id in ["4", "77"] {
        assert_eq!(
            content(&found[id]),
            content(&tokens),
            "at the root every merge point is the leaf"
        );
    }
    let chat = ["--chat", "--system", "brief", "-p", "hello", "-n", "8", "--json"];
    let chat = made.generate(&chat).json();
    assert_eq!(found["5"]["prompt_tokens"], chat["prompt_tokens"]);
    let system = ["--chat", "--system", "brief", "--json"];
    let lines =
        "{\"prompt\": \"hello\"}\n{\"messages\": [{\"role\": \"user\", \"content\": \"hello\"}]}";
    let found = answers(made.serve(lines, &system));
    for id in ["1", "2"] {
        assert_eq!(found[id]["prompt_tokens"], chat["prompt_tokens"]);
    }
}

/// The first runs 200 times as long as the second, and they run together.
#[test]
fn answers_come_in_the_order_in_which_they_are_complete() {
    let made = Made::new();
    let lines = "{\"id\": \"long\", \"prompt\": \"a\", \"max_tokens\": 400}\n\
                 {\"id\": \"short\", \"prompt\": \"b\", \"max_tokens\": 2}\n";
    let run = made.serve(lines, &["--ignore-eos", "--json"]).text();
    let ids: Vec<Value> = documents(&run).iter().map(|answer| answer["id"].clone()).collect();
    assert_eq!(ids, ["short", "long"]);
}

#[test]
fn lines_are_refused_before_anything_is_loaded() {
    let made = Made::new();
    let good = r#"{"prompt": "a"}"#;
    let cases = [
        (r#"{"prompt": "a""#, "line 2, column"),
        (r#"["a"]"#, "line 2"),
        (
            r#"{"promt": "a"}"#,
            "line 2: column 8: unknown field `promt`, expected one of `id`, `node`, `prompt`",
        ),
        (r#"{"prompt": "a", "prompt": "b"}"#, "duplicate field `prompt`"),
        (r#"{"prompt": "a", "top_k": -1}"#, "line 2: column"),
        (
            r#"{"prompt": "a", "node": "fr/alise"}"#,
            "line 2: there is no node fr/alise; did you mean fr/alice",
        ),
        (r#"{"prompt": "a", "temperature": -1}"#, "line 2: sampling parameter temperature"),
        (
            r#"{"prompt": "a", "stop": ["x", 3]}"#,
            "line 2: stop is neither a text nor a list of texts",
        ),
        (r#"{"prompt": "a", "stop": ""}"#, "line 2: sampling parameter stop_texts is empty"),
        (r#"{"prompt": "a", "merge": "twig"}"#, "unknown variant `twig`, expected one of `leaf`"),
        (r#"{"prompt": "a", "id": [1]}"#, "line 2: id is [1], expected a text or a whole number"),
        (r#"{"prompt": "a", "id": 0.1}"#, "line 2: id is 0.1, expected a text or a whole number"),
        (r#"{"prompt": "a", "id": 1}"#, "line 2: the id 1 is there before, at "),
        (r#"{"node": "fr"}"#, "line 2: there is neither prompt nor messages"),
        (r#"{"prompt": "a", "messages": []}"#, "line 2: there are prompt and messages"),
        (r#"{"messages": []}"#, "line 2: messages is empty"),
        (
            r#"{"messages": [{"role": "user", "content": "a", "name": "b"}]}"#,
            "unknown field `name`",
        ),
    ];
    for (line, expected) in cases {
        for arguments in [&[][..], &["--quiet"]] {
            let error = made.refusal(&format!("{good}\n{line}\n{good}\n"), arguments);
            assert!(error.contains("requests.jsonl, line 2"), "{error}");
            let expected = expected.strip_prefix("line 2, ").unwrap_or(expected);
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
    for empty in ["", "\n  \r\n"] {
        let error = made.refusal(empty, &[]);
        assert!(
            error.contains("requests.jsonl holds no request; write one JSON object"),
            "{error}"
        );
    }
    let error = made.refusal(good, &["--node", "fr", "--node", "/"]);
    assert!(error.contains("there are 2 nodes beside --requests"), "{error}");
    assert!(made.generate(&["--requests", "absent"]).refusal().contains("absent"));
}

#[test]
fn one_that_fails_fails_alone() {
    let made = Made::new();
    // Another shape than its matrix has.
    let modules = vec![TinyModule::linear("model.layers.0.self_attn.q_proj", 32, 64)];
    TinyAdapter::new(modules, 2, 9).write(&made.at("tree/fr/mallory")).unwrap();
    let long = "hello ".repeat(600);
    let lines = [
        json!({ "id": "a", "node": "fr/alice", "prompt": "hello" }),
        json!({ "id": "m", "node": "fr/mallory", "prompt": "hello" }),
        json!({ "id": "long", "node": "fr", "prompt": long }),
        json!({ "id": "late", "node": "fr", "prompt": "hello", "deadline_ms": 0 }),
        json!({ "id": "b", "node": "fr/bob", "prompt": "hello" }),
    ];
    let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let run = made.serve(&lines, &["-n", "5", "--ignore-eos", "--json"]);
    assert_eq!(run.status, Some(1), "{run:?}");
    let (failed, answered): (Vec<_>, Vec<_>) =
        documents(&run.stdout).into_iter().partition(|answer| answer.get("error").is_some());
    let mut ids: Vec<_> = answered.iter().map(|answer| answer["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["a", "b"]);
    assert!(answered.iter().all(|answer| answer["token_ids"].as_array().unwrap().len() == 5));
    assert_eq!(failed.len(), 3);
    for answer in failed {
        assert_eq!(keys(&answer), ["id", "node", "error"]);
        let [id, node, error] = ["id", "node", "error"].map(|key| answer[key].as_str().unwrap());
        let told = format!("error: {id} {node}: {}", error.lines().next().unwrap());
        assert!(run.stderr.contains(&told), "{told}: {}", run.stderr);
        let expected = match id {
            "m" => "mallory",
            "late" => "the deadline has passed",
            _ => "512",
        };
        assert!(error.contains(expected), "{error}");
    }
    let text = made.serve(&lines, &["-n", "5", "--ignore-eos"]);
    assert_eq!((text.status, text.stdout.matches("== ").count()), (Some(1), 2), "{text:?}");
}

#[test]
fn more_than_the_engine_takes_wait_and_come_from_standard_input() {
    let made = Made::new();
    let nodes = ["/", "fr", "fr/alice", "fr/bob"];
    let lines: String = (0..1100)
        .map(|k| format!("{}\n", json!({ "prompt": "hello", "node": nodes[k % 4], "seed": k })))
        .collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pleach"));
    command.args(["generate", "--base", &made.path("base"), "--tree", &made.path("tree")]).args([
        "--headroom",
        "4",
        "--device",
        "cpu",
        "--requests",
        "-",
        "-n",
        "1",
        "--ignore-eos",
        "--max-running",
        "3",
        "--kv-budget",
        "1",
        "--explain",
        "--json",
    ]);
    let output = command.write_stdin(lines).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let answers = documents(std::str::from_utf8(&output.stdout).unwrap());
    let mut found: Vec<_> = answers.iter().map(|answer| (&answer["id"], &answer["node"])).collect();
    found.sort_by_key(|(id, _)| id.as_u64());
    let asked: Vec<_> = (0..1100).map(|k| (json!(k + 1), json!(nodes[k % 4]))).collect();
    assert_eq!(found, asked.iter().map(|(id, node)| (id, node)).collect::<Vec<_>>());
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.starts_with("expected by now:\n  pass ") && told.contains("\n  switch "),
        "{told}"
    );
    let error = made.serve("{\"prompt\": \"a\"}", &["--kv-budget", "0"]).refusal();
    assert!(error.contains("keys and values in 0 bytes"), "{error}");
}

/// An id is whoever's wrote the file: it is shown in one line, without what steers a terminal.
#[test]
fn ids_are_told_escaped_in_one_line() {
    let made = Made::new();
    let id = "\u{1b}[2J\n== 9 fr\u{202e}";
    let line = |deadline_ms: u64| json!({ "id": id, "prompt": "a", "deadline_ms": deadline_ms });
    let text = made.serve(&line(600_000).to_string(), &["-n", "1"]).text();
    assert!(text.starts_with("== \\u001b[2J\\n== 9 fr\\u202e /\n"), "{text:?}");
    let late = made.serve(&line(0).to_string(), &["-n", "1", "--json"]);
    assert!(late.stderr.starts_with("error: \\u001b[2J\\n== 9 fr\\u202e /: "), "{late:?}");
    assert_eq!(documents(&late.stdout)[0]["id"], json!(id), "JSON means the same");
}

/// Who is asked to end has printed what was complete, each in a whole line.
#[cfg(unix)]
#[test]
fn what_is_complete_is_printed_when_the_run_is_told_to_end() {
    use std::io::{BufRead, BufReader, Read};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    let made = Made::new();
    let line = json!({ "prompt": "hello", "max_tokens": 400 });
    std::fs::write(made.at("requests.jsonl"), format!("{line}\n").repeat(5000)).unwrap();
    let mut run = Command::new(env!("CARGO_BIN_EXE_pleach"))
        .args(["generate", "--base", &made.path("base"), "--device", "cpu", "--json"])
        .args(["--requests", &made.path("requests.jsonl"), "--ignore-eos", "--max-running", "2"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(run.stdout.take().unwrap());
    let mut printed = String::new();
    stdout.read_line(&mut printed).unwrap();
    let killed = Command::new("kill").args(["-TERM", &run.id().to_string()]).status().unwrap();
    assert!(killed.success());
    stdout.read_to_string(&mut printed).unwrap();
    assert_eq!(run.wait().unwrap().signal(), Some(15));
    let answers = documents(&printed);
    assert!((1..5000).contains(&answers.len()), "{}", answers.len());
    assert!(answers.iter().all(|answer| keys(answer) == FIELDS));
}
