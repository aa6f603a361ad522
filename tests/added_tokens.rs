//! Fine-tuned models declare their new tokens in any of four files beside `tokenizer.json`; read
//! from that one alone, `<tool>` fell apart into letters, `café` came back as other bytes, and
//! behind a prompt the first word of a text lost its space. `fixtures/text/tokens.json` is what
//! transformers 5.23 makes of such folders (`make_tokens.py` there makes it).

use std::path::Path;

use pleach::base::BaseModel;
use pleach::model::tokenizer::Tokenizer;
use pleach::testing::{TinyModel, tiny_hf_model};
use serde_json::{Value, json};

/// A made base whose tokenizer is these files.
fn open(dir: &Path, files: &Value) -> pleach::Result<Tokenizer> {
    tiny_hf_model(dir, &TinyModel { vocab: 300, ..TinyModel::default() });
    std::fs::remove_file(dir.join("tokenizer_config.json")).unwrap();
    for (name, value) in files.as_object().unwrap() {
        std::fs::write(dir.join(name), value.to_string()).unwrap();
    }
    Tokenizer::for_base(&BaseModel::open(dir).unwrap(), None)
}

fn cases() -> Value {
    serde_json::from_str(include_str!("fixtures/text/tokens.json")).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn tokens_declared_beside_tokenizer_json_are_those_of_transformers() {
    let cases = cases();
    assert_eq!(cases.as_object().unwrap().len(), 10);
    for (name, case) in cases.as_object().unwrap() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = open(dir.path(), &case["files"]).unwrap();
        for text in case["texts"].as_array().unwrap() {
            let found = tokenizer.encode(text["text"].as_str().unwrap()).unwrap();
            assert_eq!(found, ids(&text["ids"]), "{name}: {text}");
            assert_eq!(
                tokenizer.decode(&found).unwrap(),
                text["decoded"].as_str().unwrap(),
                "{name}: {text}"
            );
        }
    }
}

/// transformers decodes other bytes here, too: the text itself says what is right.
#[test]
fn added_token_with_letters_of_the_byte_alphabet_comes_back_as_it_is() {
    let mut files = cases()["nothing"]["files"].clone();
    files["added_tokens.json"] = json!({"café": 264, "ÿ Ġ": 265, "naïve": 266, "日本": 267});
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = open(dir.path(), &files).unwrap();
    let text = "a caféÿ Ġ, naïve 日本 é";
    let ids = tokenizer.encode(text).unwrap();
    for added in 264..268 {
        assert!(ids.contains(&added), "{added}: {ids:?}");
    }
    assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    assert_eq!(tokenizer.decode(&[264]).unwrap(), "café");
    let mut stream = tokenizer.stream();
    let streamed: String = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    assert_eq!(streamed + &stream.finish().unwrap(), text);
}

#[test]
fn first_word_behind_a_prompt_keeps_its_space() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = open(dir.path(), &cases()["sentencepiece"]["files"]).unwrap();
    let [prompt, all] = ["hello", "hello world é"].map(|text| tokenizer.encode(text).unwrap());
    let new = &all[prompt.len()..];
    assert_eq!(&all[..prompt.len()], prompt);
    let mut stream = tokenizer.stream_after(&prompt).unwrap();
    let streamed: String = new.iter().map(|id| stream.push(*id).unwrap()).collect();
    assert_eq!(streamed + &stream.finish().unwrap(), " world é");
    assert_eq!(tokenizer.continuation(&prompt, new[0]).unwrap(), " w");
    // A text of its own begins without it, as it was written.
    let mut stream = tokenizer.stream();
    let streamed: String = all.iter().map(|id| stream.push(*id).unwrap()).collect();
    assert_eq!(streamed, "hello world é");
    // A prompt that ends within a character is no context for the character's other half.
    let halves: Vec<u32> = tokenizer.encode("aé").unwrap()[2..].to_vec();
    assert_eq!(halves.len(), 2);
    let mut stream = tokenizer.stream_after(&halves[..1]).unwrap();
    assert_eq!(stream.push(tokenizer.encode("w").unwrap()[0]).unwrap(), "w");
}

#[test]
fn declarations_that_are_none_are_refused_with_their_place() {
    let declared = [
        ("tokenizer_config.json", json!({"bos_token": 5}), "`bos_token` is a number"),
        (
            "tokenizer_config.json",
            json!({"pad_token": {"contents": "x"}}),
            "`pad_token` is an object",
        ),
        (
            "tokenizer_config.json",
            json!({"extra_special_tokens": ["a", 1]}),
            "`extra_special_tokens` is a number",
        ),
        (
            "tokenizer_config.json",
            json!({"added_tokens_decoder": {"x": {"content": "y"}}}),
            "`added_tokens_decoder` is an object",
        ),
        ("added_tokens.json", json!({"<tool>": -1}), "not valid: invalid value: integer `-1`"),
        ("special_tokens_map.json", json!([]), "not valid"),
    ];
    for (file, value, expected) in declared {
        let mut files = cases()["nothing"]["files"].clone();
        files[file] = value;
        let dir = tempfile::tempdir().unwrap();
        let error = open(dir.path(), &files).err().expect("must be refused").to_string();
        assert!(error.contains(expected) && error.contains(".json"), "{error}");
    }
}
