//! A tool-calling adapter was trained with two tokens more and a template of its own; its trainer saved both beside it, as PEFT's
//! do. Served without them it answers in another format, and nobody was told that they lay there. Most adapters have copies of
//! the base's own files beside them, and about those there is nothing to say.

#[path = "common/cli.rs"]
mod cli;

use std::path::{Path, PathBuf};

use cli::{make_base_and_tree, pleach};
use serde_json::{Value, json};

fn write(folder: &Path, files: &[(&str, Value)]) {
    for (name, value) in files {
        let bytes = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}

/// A tokenizer's files with `more` added tokens behind the vocabulary, and a template.
fn tokenizer(more: &[&str], template: &str) -> Vec<(&'static str, Value)> {
    let added = (2..).zip(more).map(|(id, text)| json!({ "id": id, "content": text, "special": true }));
    let added: Vec<Value> = added.collect();
    let file = json!({ "added_tokens": added, "model": { "type": "BPE", "vocab": { "a": 0, "b": 1, "</s>": 2 }, "merges": [] } });
    vec![("tokenizer.json", file), ("tokenizer_config.json", json!({ "chat_template": template }))]
}

/// What `inspect --base` and a switch say about the adapter `fr`, which must be the same.
fn told(dir: &Path) -> Vec<String> {
    let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (base, tree, fr) = (at("base"), at("tree"), at("tree/fr"));
    let answer = pleach(&["inspect", &fr, "--base", &base, "--json"]).json();
    let beside: Vec<String> = serde_json::from_value(answer["beside"].clone()).unwrap();
    let run = pleach(&["verify", "--base", &base, "--tree", &tree, "--switches", "6", "--device", "cpu"]);
    assert_eq!((run.status, run.stderr.lines().count()), (Some(0), usize::from(!beside.is_empty())), "{}", run.stderr);
    assert!(beside.iter().all(|what| run.stderr.contains(what)), "{}", run.stderr);
    let text = pleach(&["inspect", &fr, "--base", &base]).text();
    assert!(beside.iter().all(|what| text.contains(what)), "{text}");
    beside
}

fn made() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    make_base_and_tree(dir.path());
    write(&dir.path().join("base"), &tokenizer(&["</s>"], "{{ messages }}"));
    let fr = dir.path().join("tree/fr");
    (dir, fr)
}

#[test]
fn what_differs_from_the_base_is_told_once_and_copies_are_not() {
    let (dir, fr) = made();
    assert!(told(dir.path()).is_empty());
    write(&fr, &tokenizer(&["</s>"], "{{ messages }}\n"));
    assert!(told(dir.path()).is_empty(), "a copy");
    write(&fr, &tokenizer(&["</s>", "<tool>", "</tool>"], "{{ messages }}"));
    assert_eq!(told(dir.path()), ["a tokenizer with 2 tokens that the base does not have there (the first is <tool>)"]);
    write(&fr, &tokenizer(&["<tool>"], "{{ tools }}"));
    let expected = [
        "a tokenizer with a token that the base does not have there (<tool>)",
        "a chat template other than the base's",
    ];
    assert_eq!(told(dir.path()), expected, "a token in another's place");
}

#[test]
fn every_place_where_trainers_put_them_is_looked_at() {
    let (dir, fr) = made();
    let cases: [(&str, Value, &str); 4] = [
        ("added_tokens.json", json!({ "<tool>": 3 }), "(<tool>)"),
        ("tokenizer_config.json", json!({ "added_tokens_decoder": { "3": { "content": "<tool>" } } }), "(<tool>)"),
        ("chat_template.jinja", json!("{{ tools }}"), "template"),
        (
            "tokenizer_config.json",
            json!({ "chat_template": [{ "name": "default", "template": "{{ tools }}" }] }),
            "template",
        ),
    ];
    for (name, value, expected) in cases {
        write(&fr, &[(name, value)]);
        let told = told(dir.path());
        assert!(told.len() == 1 && told[0].contains(expected), "{name}: {told:?}");
        std::fs::remove_file(fr.join(name)).unwrap();
    }
}

#[test]
fn what_is_broken_or_lies_elsewhere_is_not_read() {
    let (dir, fr) = made();
    write(
        &fr,
        &[("tokenizer.json", json!("{")), ("added_tokens.json", json!([3])), ("tokenizer_config.json", json!("null"))],
    );
    assert!(told(dir.path()).is_empty());
    #[cfg(unix)]
    {
        let outside = dir.path().join("outside.jinja");
        std::fs::write(&outside, "{{ tools }}").unwrap();
        std::os::unix::fs::symlink(&outside, fr.join("chat_template.jinja")).unwrap();
        assert!(told(dir.path()).is_empty(), "a link out of the folder");
    }
}
