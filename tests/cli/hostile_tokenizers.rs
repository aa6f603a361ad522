//! A `tokenizer.json` that was broken inside one entry made the library that reads it panic, and
//! with it a whole server. Whatever stands in a tokenizer's or a template's file is now read or
//! refused, with its place, and nothing reaches stderr.

use std::process::Command;

use pleach::error::TokenizerDefect;
use pleach::testing::{TinyModel, read_tokenizer_bytes, tiny_hf_model};
use serde_json::{Value, json};

fn sound() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    tiny_hf_model(dir.path(), &TinyModel::default());
    let text = std::fs::read_to_string(dir.path().join("tokenizer.json")).unwrap();
    (dir, text)
}

/// The defect of a `tokenizer.json`.
fn defect(text: &str) -> TokenizerDefect {
    match read_tokenizer_bytes(text.as_bytes()).expect_err("must be refused") {
        pleach::Error::Tokenizer { defect, .. } => defect,
        other => panic!("{other}"),
    }
}

#[test]
fn entry_that_is_no_json_is_refused_with_its_place() {
    let (_dir, text) = sound();
    let value: Value = serde_json::from_str(&text).unwrap();
    for entry in
        ["decoder", "normalizer", "pre_tokenizer", "post_processor", "model", "added_tokens"]
    {
        let mut broken = value.clone();
        broken[entry] = json!("HERE");
        let broken = broken.to_string().replace("\"HERE\"", "znull");
        let found = defect(&broken);
        assert!(matches!(found, TokenizerDefect::Json { .. }), "{entry}: {found}");
        assert!(found.to_string().contains("line 1 column"), "{found}");
    }
}

#[test]
fn entry_of_another_kind_or_without_its_fields_is_refused() {
    let (_dir, text) = sound();
    let value: Value = serde_json::from_str(&text).unwrap();
    for entry in ["decoder", "normalizer", "pre_tokenizer", "post_processor"] {
        for (broken, place) in [
            (json!("x"), entry.to_owned()),
            (json!([1]), entry.to_owned()),
            (json!({}), format!("{entry}.type")),
        ] {
            let mut value = value.clone();
            value[entry] = broken;
            let found = defect(&value.to_string());
            assert!(
                matches!(&found, TokenizerDefect::Entry { entry, .. } if *entry == place),
                "{entry}: {found}"
            );
        }
    }
    // What only the library knows to be wrong; the first three are those it panics on.
    for (entry, broken) in [
        ("normalizer", json!({"type": "Precompiled"})),
        ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "%%%"})),
        (
            "normalizer",
            json!({"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap": 5}]}),
        ),
        ("normalizer", json!({"type": "Replace"})),
        ("normalizer", json!({"type": "Nobody"})),
        ("decoder", json!({"type": "Sequence"})),
        ("decoder", json!({"type": "Sequence", "decoders": [{"type": "Nobody"}]})),
        (
            "pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false}),
        ),
        ("post_processor", json!({"type": "TemplateProcessing", "single": [], "pair": []})),
    ] {
        let mut value = value.clone();
        value[entry] = broken.clone();
        let found = defect(&value.to_string());
        assert!(matches!(found, TokenizerDefect::Library { .. }), "{entry} {broken}: {found}");
    }
}

#[test]
fn command_line_tells_one_line_and_no_panic() {
    let (dir, text) = sound();
    let base = dir.path().to_str().unwrap().to_owned();
    let score = || {
        let arguments = ["score", "--base", &base, "--prompt", "hello", "--device", "cpu"];
        Command::new(env!("CARGO_BIN_EXE_pleach")).args(arguments).output().unwrap()
    };
    assert_eq!(score().status.code(), Some(0));
    let value: Value = serde_json::from_str(&text).unwrap();
    for broken in [json!("znull"), json!({"type": "Precompiled", "precompiled_charsmap": "%%%"})] {
        let mut value = value.clone();
        value["normalizer"] = broken;
        std::fs::write(
            dir.path().join("tokenizer.json"),
            value.to_string().replace("\"znull\"", "znull"),
        )
        .unwrap();
        let run = score();
        let message = String::from_utf8(run.stderr).unwrap();
        assert_eq!((run.status.code(), message.lines().count()), (Some(1), 1), "{message}");
        assert!(message.starts_with("error: ") && message.contains("tokenizer.json"), "{message}");
        assert!(!message.contains("panicked"), "{message}");
    }
}
