//! A tool-calling adapter was trained with two tokens more and a template of its own; its trainer
//! saved both beside it, as PEFT's do. Served without them it answers in another format, and nothing
//! said that they lay there. Most adapters have copies of the base's own files beside them, and
//! about those there is nothing to say.

#[path = "../common/cli.rs"]
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
    let added =
        (2..).zip(more).map(|(id, text)| json!({ "id": id, "content": text, "special": true }));
    let added: Vec<Value> = added.collect();
    let file = json!({ "added_tokens": added, "model": { "type": "BPE", "vocab": { "a": 0, "b": 1, "</s>": 2 }, "merges": [] } });
    vec![("tokenizer.json", file), ("tokenizer_config.json", json!({ "chat_template": template }))]
}

/// What `inspect --base` and a switch say about the adapter `fr`, which must be the same.
fn warned(dir: &Path) -> Vec<String> {
    let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (base, tree, fr) = (at("base"), at("tree"), at("tree/fr"));
    let answer = pleach(&["inspect", &fr, "--base", &base, "--json"]).json();
    let beside: Vec<String> = serde_json::from_value(answer["beside"].clone()).unwrap();
    let run =
        pleach(&["verify", "--base", &base, "--tree", &tree, "--switches", "6", "--device", "cpu"]);
    assert_eq!(
        (run.status, run.stderr.lines().count()),
        (Some(0), usize::from(!beside.is_empty())),
        "{}",
        run.stderr
    );
    assert!(beside.iter().all(|what| run.stderr.contains(what)), "{}", run.stderr);
    for inspected in [&fr, &tree] {
        let text = pleach(&["inspect", inspected, "--base", &base]).text();
        assert!(beside.iter().all(|what| text.contains(what)), "{text}");
    }
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
    assert!(warned(dir.path()).is_empty());
    write(&fr, &tokenizer(&["</s>"], "{{ messages }}\n"));
    assert!(warned(dir.path()).is_empty(), "a copy");
    write(&fr, &tokenizer(&["</s>", "<tool>", "</tool>"], "{{ messages }}"));
    assert_eq!(
        warned(dir.path()),
        ["a tokenizer with 2 tokens that the base does not have there (the first is <tool>)"]
    );
    write(&fr, &tokenizer(&["<tool>"], "{{ tools }}"));
    let expected = [
        "a tokenizer with a token that the base does not have there (<tool>)",
        "a chat template other than the base's",
    ];
    assert_eq!(warned(dir.path()), expected, "a token in another's place");
}

#[test]
fn every_place_where_trainers_put_them_is_looked_at() {
    let (dir, fr) = made();
    let cases: [(&str, Value, &str); 4] = [
        ("added_tokens.json", json!({ "<tool>": 3 }), "(<tool>)"),
        (
            "tokenizer_config.json",
            json!({ "added_tokens_decoder": { "3": { "content": "<tool>" } } }),
            "(<tool>)",
        ),
        ("chat_template.jinja", json!("{{ tools }}"), "template"),
        (
            "tokenizer_config.json",
            json!({ "chat_template": [{ "name": "default", "template": "{{ tools }}" }] }),
            "template",
        ),
    ];
    for (name, value, expected) in cases {
        write(&fr, &[(name, value)]);
        let warned = warned(dir.path());
        assert!(warned.len() == 1 && warned[0].contains(expected), "{name}: {warned:?}");
        std::fs::remove_file(fr.join(name)).unwrap();
    }
}

#[test]
fn what_is_broken_or_lies_elsewhere_is_not_read() {
    let (dir, fr) = made();
    write(
        &fr,
        &[
            ("tokenizer.json", json!("{")),
            ("added_tokens.json", json!([3])),
            ("tokenizer_config.json", json!("null")),
        ],
    );
    assert!(warned(dir.path()).is_empty());
    #[cfg(unix)]
    {
        let outside = dir.path().join("outside.jinja");
        std::fs::write(&outside, "{{ tools }}").unwrap();
        std::os::unix::fs::symlink(&outside, fr.join("chat_template.jinja")).unwrap();
        assert!(warned(dir.path()).is_empty(), "a link out of the folder");
    }
}

/// What is kept comes back byte for byte; what is the base's own is not kept a second time.
#[test]
fn kept_files_come_back_and_what_is_not_kept_is_told() {
    let (dir, fr) = made();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (base, tree, adapter) = (at("base"), at("tree"), at("tree/fr"));
    write(&fr, &tokenizer(&["</s>", "<tool>"], "{{ tools }}"));
    let same = std::fs::read(dir.path().join("base/tokenizer_config.json")).unwrap();
    std::fs::write(fr.join("tokenizer_config.json"), same).unwrap();
    write(
        &fr,
        &[("chat_template.jinja", json!("{{ tools }}\n")), ("notes.txt", json!("not ours"))],
    );

    let run = pleach(&["store", "import", &tree, &at("bare"), "--base", &base]);
    assert!(
        run.status == Some(0)
            && run.stderr.contains("(<tool>)")
            && run.stderr.contains("--keep-files"),
        "{run:?}"
    );
    pleach(&["store", "export", &at("bare"), "fr", &at("made")]).text();
    assert_eq!(std::fs::read_dir(at("made")).unwrap().count(), 2);

    let run = pleach(&["store", "import", &tree, &at("kept"), "--base", &base, "--keep-files"]);
    assert!(run.status == Some(0) && run.stderr.contains("it is kept"), "{run:?}");
    for (publish, base_given) in [("one", &["--base", &base][..]), ("two", &[][..])] {
        let run =
            pleach(&[&["store", "publish", &at("kept"), publish, &adapter], base_given].concat());
        assert!(run.status == Some(0) && run.stderr.contains("not kept"), "{run:?}");
        let kept = [
            &["store", "publish", &at("kept"), publish, &adapter, "--replace", "--keep-files"],
            base_given,
        ];
        assert_eq!(pleach(&kept.concat()).status, Some(0));
    }
    pleach(&["store", "verify", &at("kept"), "--deep"]).text();
    let names = [
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "tokenizer.json",
    ];
    for (node, more) in [("fr", &[][..]), ("one", &[][..]), ("two", &["tokenizer_config.json"][..])]
    {
        let out = at(&format!("out-{node}"));
        let answer = pleach(&["store", "export", &at("kept"), node, &out, "--json"]).json();
        let expected = [&names[..], more].concat();
        assert_eq!(answer["files"], json!(expected), "{node}");
        for name in &expected {
            let [was, is] =
                [&fr, Path::new(&out)].map(|folder| std::fs::read(folder.join(name)).unwrap());
            assert!(was == is, "{node}: {name}");
        }
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), expected.len());
    }

    #[cfg(unix)]
    {
        std::fs::remove_file(fr.join("chat_template.jinja")).unwrap();
        let outside = dir.path().join("outside.jinja");
        std::fs::write(&outside, "{{ tools }}").unwrap();
        std::os::unix::fs::symlink(&outside, fr.join("chat_template.jinja")).unwrap();
        let run = pleach(&["store", "publish", &at("kept"), "three", &adapter, "--keep-files"]);
        assert!(
            run.status == Some(1)
                && run.stderr.contains("chat_template.jinja leads out of the folder"),
            "{run:?}"
        );
    }
}

/// An adapter's own tokenizer and chat template are used where its folder is named.
#[test]
fn what_lies_beside_is_used_where_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    make_base_and_tree(dir.path());
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (base, tree, fr) = (at("base"), at("tree"), at("tree/fr"));
    let ids = |more: &[&str]| {
        let place = ["--base", &base, "--tree", &tree, "--node", "fr", "--device", "cpu"];
        let run = pleach(
            &[&["generate", "--chat", "-p", "hello", "-n", "1", "--json"], &place[..], more]
                .concat(),
        );
        let answer: Value = serde_json::from_str(&run.stdout).unwrap();
        (answer["prompt_tokens"].as_u64().unwrap(), run.stderr)
    };
    let (own, warned) = ids(&[]);
    assert_eq!(warned, "");
    // A template alone: the tokenizer stays the base's. `bos_token` is not said here, so it is the
    // base's, too.
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}";
    std::fs::write(dir.path().join("tree/fr/chat_template.jinja"), template).unwrap();
    let (ignored, warned) = ids(&[]);
    assert!(ignored == own && warned.contains("another: --tokenizer"), "{warned}");
    let (used, warned) = ids(&["--tokenizer", &fr]);
    assert_eq!((used, warned.as_str()), (1, ""), "`hello` is one token of this vocabulary");
    // A tokenizer that does not know `hello` as one.
    let path = dir.path().join("base/tokenizer.json");
    let mut file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    file["model"]["merges"] = json!([]);
    std::fs::write(dir.path().join("tree/fr/tokenizer.json"), file.to_string()).unwrap();
    assert_eq!(ids(&["--tokenizer", &fr]).0, 5);
    assert!(
        ids(&["--tokenizer", &at("tree/fr/tokenizer.json")]).0 > own,
        "a file is no folder: the base's template"
    );
    let run = pleach(&["generate", "--base", &base, "-p", "a", "--tokenizer", &tree]);
    assert!(run.status == Some(1) && run.stderr.contains("tokenizer.json"), "{run:?}");
}
