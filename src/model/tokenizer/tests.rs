//! The tokenizer of made models, and of the real base against the golden token ids.

use std::collections::BTreeMap;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};
use serde_json::{Value as Json, json};

use super::*;
use crate::file::gguf::GgufFile;
use crate::testing::{TinyModel, smollm2_base, tiny_gguf, tiny_hf_model};

const TEXTS: [&str; 6] = [
    "",
    "hello world",
    "<|im_start|>user\nhello<|im_end|>\n",
    "  l'été 2024, \t\n\n 12345 don't",
    "日本語 👩‍👩‍👧 ß\u{301}",
    "a\u{0}b\r\n ",
];

fn tiny() -> (Tokenizer, Tokenizer) {
    let dir = tempfile::tempdir().unwrap();
    tiny_hf_model(dir.path(), &TinyModel::default());
    let path = dir.path().join("tiny.gguf");
    tiny_gguf(&path, &TinyModel::default(), GgmlDType::Q8_0);
    let open = |path: &Path| Tokenizer::for_base(&BaseModel::open(path).unwrap(), None).unwrap();
    (open(dir.path()), open(&path))
}

/// A GGUF file with one metadata value changed or, with `None`, taken out.
fn changed(key: &str, value: Option<Value>) -> Result<Tokenizer> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    tiny_gguf(&path, &TinyModel::default(), GgmlDType::Q8_0);
    let mut file = std::fs::File::open(&path).unwrap();
    let content = Content::read(&mut file).unwrap();
    let mut metadata: BTreeMap<_, _> = content.metadata.clone().into_iter().collect();
    match value {
        Some(value) => metadata.insert(key.to_owned(), value),
        None => metadata.remove(key),
    };
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let mut bytes = std::io::Cursor::new(Vec::new());
    candle_core::quantized::gguf_file::write(&mut bytes, &metadata, &[]).unwrap();
    Tokenizer::from_gguf(&GgufFile::from_bytes(bytes.into_inner(), "test.gguf").unwrap(), 272)
}

#[test]
fn every_text_comes_back_and_special_tokens_are_one_id() {
    let (folder, gguf) = tiny();
    for tokenizer in [&folder, &gguf] {
        for text in TEXTS {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
            let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id)).collect();
            assert_eq!(bytes, text.as_bytes());
        }
        assert!(tokenizer.token_bytes(u32::MAX).is_empty());
        assert_eq!(tokenizer.encode("<|im_end|>").unwrap(), [2]);
        assert_eq!(tokenizer.token(2).as_deref(), Some("<|im_end|>"));
    }
    assert_eq!(folder.encode(TEXTS[1]).unwrap(), gguf.encode(TEXTS[1]).unwrap());
    assert_eq!(gguf.encode("hello").unwrap().len(), 1);
}

#[test]
fn stream_gives_only_whole_characters_and_all_of_the_text() {
    let (tokenizer, _) = tiny();
    for text in TEXTS {
        let ids = tokenizer.encode(text).unwrap();
        let mut stream = tokenizer.stream();
        let mut streamed = String::new();
        for id in &ids {
            let part = stream.push(*id).unwrap();
            assert!(!part.contains('\u{fffd}'), "{part:?}");
            streamed += &part;
        }
        streamed += &stream.finish().unwrap();
        assert_eq!(streamed, tokenizer.decode(&ids).unwrap());
    }
}

/// A byte that begins no character takes those before it in its run with it: they were given out,
/// and what follows is not lost.
#[test]
fn stray_bytes_behind_a_prompt_lose_no_text() {
    let vocabulary =
        json!({ "<unk>": 0, "<0x0A>": 1, "<0xE2>": 2, "<0x82>": 3, "<0xAC>": 4, "a": 5, "b": 6 });
    let file = json!({
        "model": { "type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": "<unk>", "byte_fallback": true },
        "decoder": { "type": "Sequence", "decoders": [{ "type": "ByteFallback" }, { "type": "Fuse" }] },
    });
    let tokenizer = Tokenizer::from_json(file.to_string().as_bytes(), None, 7).unwrap();
    for (ids, expected) in [
        (&[2, 3, 4, 5][..], "€a"),
        (&[2, 5, 6], "\u{fffd}ab"),
        (&[2, 1, 5], "\u{fffd}\u{fffd}a"),
        (&[5], "a"),
    ] {
        let mut stream = tokenizer.stream_after(&[5, 1]).unwrap();
        let mut text: String = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
        text += &stream.finish().unwrap();
        assert_eq!(text, expected, "{ids:?}");
    }
}

#[test]
fn unfinished_character_is_given_at_the_end_only() {
    let (tokenizer, _) = tiny();
    let ids = tokenizer.encode("aé").unwrap();
    let mut stream = tokenizer.stream();
    let parts: Vec<String> = ids[..2].iter().map(|id| stream.push(*id).unwrap()).collect();
    assert_eq!(parts, ["a", ""]);
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
}

#[test]
fn start_token_is_added_only_where_the_file_says_so_and_never_to_a_rendered_chat() {
    assert_eq!(changed("none", None).unwrap().encode("l").unwrap().len(), 1);
    let with_bos = changed("tokenizer.ggml.add_bos_token", Some(Value::Bool(true))).unwrap();
    assert_eq!(with_bos.encode("l").unwrap()[0], 0);
    assert_eq!(with_bos.encode("l").unwrap().len(), 2);
    assert_eq!(with_bos.encode_rendered("l").unwrap().len(), 1);
}

#[test]
fn every_known_pre_tokenizer_takes_every_text() {
    let names = "default gpt-2 phi-2 gigachat a.x-4.0 mellum mpt olmo jais trillion granite-docling exaone4 jina-es jina-de \
        jina-v2-es jina-v2-de modern-bert smollm starcoder refact command-r codeshell exaone minerva-7b mellum2 llama-bpe \
        llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano smaug-bpe dbrx glm4 chatglm-bpe jais-2 minicpm5 \
        qwen2 deepseek-r1-qwen megrez kormo f2llmv2 qwen35 stablelm2 hunyuan solar-open grok-2 laguna ufakzeka seed-coder \
        bailingmoe bailingmoe2 llada-moe exaone-moe tekken gpt-4o llama4 kanana2 talkie minimax-m2 tiny_aya cohere2moe youtu \
        deepseek-llm deepseek-coder deepseek-v3 hunyuan-dense joyai-llm hy_v4 spark2_5 falcon bloom poro-chat gpt3-finnish \
        viking chameleon";
    for pre in names.split_whitespace() {
        let tokenizer = changed("tokenizer.ggml.pre", Some(Value::String(pre.to_owned()))).unwrap();
        let ids = tokenizer.encode_rendered(TEXTS[3]).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), TEXTS[3], "{pre}");
    }
}

#[test]
fn unknown_kinds_and_damaged_vocabularies_are_refused_by_name() {
    let text = |text: &str| Some(Value::String(text.to_owned()));
    let defect = |key, value| match changed(key, value).err().expect("must be refused") {
        Error::Tokenizer { defect, .. } => defect,
        other => panic!("{other}"),
    };
    let found = defect("tokenizer.ggml.pre", text("nobody-knows"));
    assert!(
        matches!(&found, TokenizerDefect::PreTokenizer { found } if found == "nobody-knows"),
        "{found}"
    );
    assert!(found.to_string().contains("--tokenizer"));
    assert!(matches!(defect("tokenizer.ggml.model", text("llama")), TokenizerDefect::Kind { .. }));
    assert!(matches!(defect("tokenizer.ggml.model", None), TokenizerDefect::Missing));
    assert!(matches!(
        defect("tokenizer.ggml.token_type", Some(Value::Array(vec![Value::I32(1)]))),
        TokenizerDefect::Vocabulary { .. }
    ));
    let twice = Value::Array(vec![Value::String("a".to_owned()); 264]);
    assert!(matches!(
        defect("tokenizer.ggml.tokens", Some(twice)),
        TokenizerDefect::Vocabulary { .. }
    ));
    let merges = Value::Array(vec![Value::String("nospace".to_owned())]);
    assert!(matches!(
        defect("tokenizer.ggml.merges", Some(merges)),
        TokenizerDefect::Vocabulary { .. }
    ));
    let none = Value::Array(Vec::new());
    for lost in [None, Some(none), Some(Value::Array(vec![Value::String("no such".to_owned())]))] {
        let found = defect("tokenizer.ggml.merges", lost);
        assert!(
            matches!(found, TokenizerDefect::MergesLost { reached: 0, tokens: 5, .. }),
            "{found}"
        );
    }
}

/// The made model's tokens, some of them changed.
fn tokens(changes: &[(usize, &str)]) -> Option<Value> {
    let (_, gguf) = tiny();
    let mut texts: Vec<String> = (0..264).map(|id| gguf.token(id).unwrap()).collect();
    changes.iter().for_each(|(id, text)| texts[*id] = (*text).to_owned());
    Some(Value::Array(texts.into_iter().map(Value::String).collect()))
}

fn strings(texts: &[&str]) -> Option<Value> {
    Some(Value::Array(texts.iter().map(|text| Value::String((*text).to_owned())).collect()))
}

#[test]
fn merges_of_unknown_pieces_are_made_and_fall_apart_into_bytes_as_in_llama_cpp() {
    let pieces = |merges: &[&str], text: &str| -> Vec<String> {
        let tokenizer = changed("tokenizer.ggml.merges", strings(merges)).unwrap();
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        ids.iter().map(|id| tokenizer.token(*id).unwrap()).collect()
    };
    let known = ["h e", "l l", "he ll", "hell o", "Ġ w"];
    assert_eq!(pieces(&known, "hello w"), ["hello", "Ġw"]);
    assert_eq!(
        pieces(&[&known[..], &["x y", "xy z"]].concat(), "hello xyz"),
        ["hello", "Ġ", "x", "y", "z"]
    );
    // `lo` is made before `ll` and is no token.
    assert_eq!(pieces(&[&["l o"], &known[..]].concat(), "hello w"), ["he", "l", "l", "o", "Ġw"]);
    // A piece that is not there itself can be of no use.
    assert_eq!(pieces(&[&known[..], &["qq zz"]].concat(), "qqzz"), ["q", "q", "z", "z"]);
}

#[test]
fn empty_tokens_fill_up_a_vocabulary() {
    let tokenizer = changed("tokenizer.ggml.tokens", tokens(&[(250, ""), (251, "")])).unwrap();
    assert_eq!(
        (tokenizer.token(250).as_deref(), tokenizer.token(251).as_deref()),
        (Some("[EMPTY_250]"), Some("[EMPTY_251]"))
    );
    assert_eq!(tokenizer.encode("hello w").unwrap().len(), 2);
}

#[test]
fn tokens_of_control_are_known_by_their_texts_and_added_ones_come_back() {
    let texts = tokens(&[(258, "<|eot_id|>"), (257, "café"), (256, "<unused>")]);
    let mut kinds = vec![Value::I32(1); 264];
    kinds[257] = Value::I32(4);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    tiny_gguf(&path, &TinyModel::default(), GgmlDType::Q8_0);
    let content = Content::read(&mut std::fs::File::open(&path).unwrap()).unwrap();
    let mut metadata: BTreeMap<_, _> = content.metadata.clone().into_iter().collect();
    metadata.insert("tokenizer.ggml.tokens".to_owned(), texts.unwrap());
    metadata.insert("tokenizer.ggml.token_type".to_owned(), Value::Array(kinds));
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let mut bytes = std::io::Cursor::new(Vec::new());
    candle_core::quantized::gguf_file::write(&mut bytes, &metadata, &[]).unwrap();
    let tokenizer =
        Tokenizer::from_gguf(&GgufFile::from_bytes(bytes.into_inner(), "test.gguf").unwrap(), 272)
            .unwrap();
    let ids = tokenizer.encode("a café<|eot_id|>").unwrap();
    assert_eq!(ids[ids.len() - 2..], [257, 258]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "a café<|eot_id|>");
}

#[test]
fn file_without_a_pre_tokenizer_has_llama_cpps_default() {
    let [none, default] = [None, Some(Value::String("default".to_owned()))]
        .map(|pre| changed("tokenizer.ggml.pre", pre).unwrap());
    let text = "a+b 12345, don't";
    assert_eq!(none.encode(text).unwrap(), default.encode(text).unwrap());
}

#[test]
fn token_without_a_row_in_the_embedding_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    tiny_hf_model(dir.path(), &TinyModel::default());
    let tokenizer = Tokenizer::from_file(&dir.path().join("tokenizer.json"), 100).unwrap();
    let error = tokenizer.encode("\u{ff}").unwrap_err();
    assert!(
        matches!(error, Error::Tokenizer { defect: TokenizerDefect::Vocabulary { .. }, .. }),
        "{error}"
    );
}

#[test]
fn golden_prompts_give_the_golden_ids_and_the_golden_text() {
    let Some(path) = smollm2_base() else { return };
    let golden: Json =
        serde_json::from_str(include_str!("../../../tests/fixtures/smollm2/golden.json")).unwrap();
    let base = BaseModel::open(&path).unwrap();
    let tokenizer = Tokenizer::for_base(&base, None).unwrap();
    let ids = |value: &Json| serde_json::from_value::<Vec<u32>>(value.clone()).unwrap();
    let mut prompts = 0;
    for prompt in golden["nodes"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|node| node["prompts"].as_array().unwrap())
    {
        assert_eq!(
            tokenizer.encode(prompt["text"].as_str().unwrap()).unwrap(),
            ids(&prompt["ids"])
        );
        let greedy = ids(&prompt["greedy_ids"]);
        assert_eq!(tokenizer.decode(&greedy).unwrap(), prompt["greedy_text"].as_str().unwrap());
        let mut stream = tokenizer.stream();
        let mut streamed: String = greedy.iter().map(|id| stream.push(*id).unwrap()).collect();
        streamed += &stream.finish().unwrap();
        assert_eq!(streamed, prompt["greedy_text"].as_str().unwrap());
        prompts += 1;
    }
    assert!(prompts >= 12, "{prompts}");
    assert_eq!(tokenizer.encode("<|im_start|>user").unwrap()[0], 1);
    // `<|im_end|>` by its key, `<|endoftext|>` and `<reponame>` by their texts.
    assert_eq!(
        (base.config().eos_token_ids.as_slice(), base.config().vocab_size),
        (&[2, 0, 4][..], 49152)
    );
}
