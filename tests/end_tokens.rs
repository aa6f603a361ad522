//! A model that is not stopped where its peers stop it babbles on; one that is stopped by a stale
//! id falls silent. Folders end a text where transformers' `generate` does, GGUF files where
//! llama.cpp does, by key or by the token's text.

use std::collections::BTreeMap;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value, write};
use pleach::base::BaseModel;
use pleach::testing::{TinyModel, tiny_gguf, tiny_hf_model};
use serde_json::{Value as Json, json};

/// The end tokens of a folder with these values for `eos_token_id`; `None` leaves a file as it is,
/// or out.
fn of_folder(config: Option<Json>, generation: Option<Json>) -> pleach::Result<Vec<u32>> {
    let dir = tempfile::tempdir().unwrap();
    tiny_hf_model(dir.path(), &TinyModel::default());
    if let Some(ends) = config {
        let path = dir.path().join("config.json");
        let mut config: Json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config["eos_token_id"] = ends;
        std::fs::write(path, config.to_string()).unwrap();
    }
    if let Some(generation) = generation {
        std::fs::write(dir.path().join("generation_config.json"), generation.to_string()).unwrap();
    }
    BaseModel::open(dir.path()).map(|base| base.config().eos_token_ids.clone())
}

#[test]
fn folder_ends_texts_where_generate_does() {
    let generation = |ends: Json| Some(json!({ "eos_token_id": ends }));
    for (config, generation, expected) in [
        (None, None, &[2][..]),
        (None, generation(json!(7)), &[7]),
        (None, generation(json!([7, 2, 7])), &[7, 2]),
        (None, generation(json!(null)), &[2]),
        (None, generation(json!([])), &[]),
        (None, Some(json!({ "do_sample": true })), &[2]),
        (Some(json!([3, 4])), None, &[3, 4]),
        (Some(json!(null)), None, &[]),
        // What stands where there is no such token.
        (Some(json!(-1)), None, &[]),
        (Some(json!([-1, 5])), None, &[5]),
        (Some(json!(5)), generation(json!(-1)), &[]),
    ] {
        assert_eq!(
            of_folder(config.clone(), generation.clone()).unwrap(),
            expected,
            "{config:?} {generation:?}"
        );
    }
    for wrong in [json!("</s>"), json!(1.5), json!({"a": 1})] {
        let error = of_folder(Some(wrong), None).unwrap_err();
        assert!(error.to_string().contains("config.json"), "{error}");
    }
}

/// The end tokens of a GGUF file whose vocabulary has these tokens at its end and these keys.
fn of_gguf(last: &[&str], keys: &[(&str, Value)]) -> Vec<u32> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    tiny_gguf(&path, &TinyModel::default(), GgmlDType::Q8_0);
    let mut file = std::fs::File::open(&path).unwrap();
    let content = Content::read(&mut file).unwrap();
    let tensors: Vec<_> = content
        .tensor_infos
        .keys()
        .map(|name| {
            (name.clone(), content.tensor(&mut file, name, &candle_core::Device::Cpu).unwrap())
        })
        .collect();
    let mut metadata: BTreeMap<_, _> = content.metadata.clone().into_iter().collect();
    metadata.remove("tokenizer.ggml.eos_token_id");
    let mut tokens: Vec<Value> = metadata["tokenizer.ggml.tokens"].to_vec().unwrap().clone();
    // Not by their texts here: those of the made model.
    for token in &mut tokens[..3] {
        *token = Value::String(format!("{}x", token.to_string().unwrap()));
    }
    tokens.extend(last.iter().map(|text| Value::String((*text).to_owned())));
    metadata.insert(
        "tokenizer.ggml.token_type".to_owned(),
        Value::Array(vec![Value::I32(1); tokens.len()]),
    );
    metadata.insert("tokenizer.ggml.tokens".to_owned(), Value::Array(tokens));
    metadata
        .extend(keys.iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value.clone())));
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    write(&mut std::fs::File::create(&path).unwrap(), &metadata, &tensors).unwrap();
    BaseModel::open(&path).unwrap().config().eos_token_ids.clone()
}

#[test]
fn gguf_file_ends_texts_where_llama_cpp_does() {
    let id = Value::U32;
    let none: &[u32] = &[];
    assert_eq!(of_gguf(&["<|x|>"], &[]), none);
    assert_eq!(
        of_gguf(
            &["<|eot_id|>", "a b", "<|im_end|>", "<|endoftext|>", "<end_of_turn>", "</s>"],
            &[]
        ),
        [264, 266, 267, 268, 269]
    );
    // The keys' first, each once.
    assert_eq!(
        of_gguf(&["<|im_end|>", "<e>"], &[("eos_token_id", id(265)), ("eot_token_id", id(264))]),
        [265, 264]
    );
    assert_eq!(
        of_gguf(&["<|eom_id|>"], &[("eom_token_id", id(264)), ("eos_token_id", id(5))]),
        [5, 264]
    );
    // No token at all.
    assert_eq!(
        of_gguf(&[], &[("eos_token_id", Value::I32(-1)), ("eot_token_id", id(u32::MAX))]),
        none
    );
    // Of infilling: by key, else the first by its text; the others of its texts end nothing.
    assert_eq!(of_gguf(&["<PAD>", "<|fim_pad|>", "<|file_sep|>"], &[]), [264, 266]);
    assert_eq!(of_gguf(&["<PAD>", "<q>", "<REPO>"], &[("fim_pad_token_id", id(265))]), [265, 266]);
    // Where a call ends a turn, `<|end|>` ends a message within it; and with tool responses `</s>`
    // is a text.
    assert_eq!(of_gguf(&["<|end|>", "<|return|>"], &[]), [264, 265]);
    assert_eq!(of_gguf(&["<|end|>", "<|return|>", "<|call|>"], &[]), [265, 266]);
    assert_eq!(of_gguf(&["<|end|>", "<|flush|>", "<|calls|>"], &[]), [265, 266]);
    assert_eq!(of_gguf(&["</s>", "<|tool_response>", "<turn|>"], &[]), [265, 266]);
}
