//! Servers that speak OpenAI's API differ from it where nobody looks: a stop text that lies across two
//! tokens, the index of the second prompt's second answer, a usage chunk that is missing. Here every
//! answer over HTTP, whole and streamed, is held against what the runtime says alone.

#[path = "common.rs"]
mod common;

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use common::{BASE, Made, Response, Running, completion, options, with};
use pleach::model::log_softmax_top;
use pleach::runtime::{Generation, Prompt};
use pleach::testing::{TinyModel, tiny_hf_model};
use pleach::{GenerateOptions, Message, Runtime, Sampling};
use serde_json::{Value, json};

const NODES: [(&str, u64); 6] = [
    ("fr", 1),
    ("fr/work", 2),
    ("fr/work/alice", 3),
    ("fr/work/alias", 3),
    ("fr/bob", 4),
    ("de", 5),
];

/// A server and the same model alone.
struct Pair {
    made: Made,
    server: Running,
    alone: Runtime,
}

impl Pair {
    fn new() -> Self {
        let made = Made::new(512).with_tree(&NODES);
        let (server, alone) = (made.serve(options()), made.open());
        Self { made, server, alone }
    }

    /// What the runtime says to such a body.
    fn alone(&mut self, node: &str, prompt: &Prompt, options: &GenerateOptions) -> Generation {
        self.alone.switch_to(node).unwrap();
        self.alone.generate(prompt, options, |_| ControlFlow::Continue(())).unwrap()
    }
}

fn drawn(max_tokens: usize, seed: u64) -> GenerateOptions {
    let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
    GenerateOptions { max_tokens, sampling, ignore_eos: true, ..GenerateOptions::default() }
}

/// The texts of a stream by choice, after looking whether it is one.
fn streamed(response: &Response, field: &str) -> Vec<(String, Value, Value)> {
    let events = response.events();
    let mut texts: Vec<(String, Value, Value)> = Vec::new();
    for event in &events {
        for head in ["id", "created", "model", "node", "node_generation", "system_fingerprint"] {
            assert_eq!(event[head], events[0][head], "{head}: {event}");
        }
        for choice in event["choices"].as_array().unwrap() {
            let index = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
            texts.resize(texts.len().max(index + 1), Default::default());
            let (text, finish, stop) = &mut texts[index];
            assert!(finish.is_null(), "{index} goes on behind its end");
            *text += match field {
                "text" => choice["text"].as_str().unwrap(),
                _ => choice["delta"]["content"].as_str().unwrap_or_default(),
            };
            (*finish, *stop) = (choice["finish_reason"].clone(), choice["stop_reason"].clone());
        }
    }
    texts
}

#[test]
fn a_completion_is_what_the_runtime_says_whole_and_streamed() {
    let mut pair = Pair::new();
    let prompt = Prompt::from("hello world");
    let prompt_tokens = pair.alone.encode(&prompt).unwrap().len();
    for (turn, (node, _)) in NODES.iter().chain([&("/", 0)]).enumerate() {
        let seed = turn as u64;
        let alone = pair.alone(node, &prompt, &drawn(40, seed));
        let body = completion(node, 40, seed);
        let answer = pair.server.post("/v1/completions", &body).of(200);
        assert_eq!(answer["choices"][0]["text"], alone.text, "{node}");
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        assert_eq!(
            (&answer["object"], &answer["model"]),
            (&json!("text_completion"), &json!(node))
        );
        assert_eq!((&answer["node"], &answer["node_generation"]), (&json!(node), &Value::Null));
        assert_eq!(answer["choices"].as_array().unwrap().len(), 1);
        let usage = json!({"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens + 40,
            "completion_tokens": 40});
        assert_eq!(answer["usage"], usage);
        let response = pair.server.post("/v1/completions", &with(body, &json!({"stream": true})));
        let kind = response.header("content-type").unwrap();
        assert_eq!(kind, "text/event-stream; charset=utf-8");
        assert_eq!(streamed(&response, "text"), [(alone.text, json!("length"), Value::Null)]);
        let events = response.events();
        assert!(events.len() > 10, "{} chunks are no stream of 40 tokens", events.len());
        assert!(events.iter().all(|event| event.get("usage").is_none()));
        assert_eq!(events[0]["system_fingerprint"], answer["system_fingerprint"]);
    }
}

#[test]
fn a_chat_is_what_the_runtime_says_whole_and_streamed() {
    let mut pair = Pair::new();
    let turn = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    let turns = vec![turn("system", "be brief"), turn("user", "hello\nworld")];
    let alone = pair.alone("fr/bob", &Prompt::Chat(turns), &drawn(30, 5));
    let parts = json!([{"type": "text", "text": "hello"}, {"type": "text", "text": "world"}]);
    let body = json!({"model": "fr/bob", "max_completion_tokens": 30, "seed": 5, "merge": "leaf",
        "ignore_eos": true, "messages": [{"role": "developer", "content": "be brief"},
            {"role": "user", "content": parts}]});
    let answer = pair.server.post("/v1/chat/completions", &body).of(200);
    let choice = &answer["choices"][0];
    let message = json!({"role": "assistant", "content": alone.text, "refusal": null});
    assert_eq!((&choice["message"], &choice["finish_reason"]), (&message, &json!("length")));
    assert_eq!(answer["object"], "chat.completion");
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["usage"]["prompt_tokens"], alone.prompt_tokens);
    assert_eq!(answer["usage"]["completion_tokens"], 30);
    let body = with(body, &json!({"stream": true}));
    let response = pair.server.post("/v1/chat/completions", &body);
    let events = response.events();
    let opening = json!({"role": "assistant", "content": ""});
    assert_eq!(events[0]["choices"][0]["delta"], opening);
    assert_eq!(events[0]["object"], "chat.completion.chunk");
    assert_eq!(streamed(&response, "delta"), [(alone.text, json!("length"), Value::Null)]);
}

/// Without a limit a chat runs to the end of the context, a completion to 16 tokens.
#[test]
fn without_a_limit_there_is_one() {
    let pair = Pair::new();
    let mut body = completion("fr", 0, 1);
    body.as_object_mut().unwrap().remove("max_tokens");
    let answer = pair.server.post("/v1/completions", &body).of(200);
    assert_eq!(answer["usage"]["completion_tokens"], 16);
    body["messages"] = json!([{"role": "user", "content": "hello"}]);
    let answer = pair.server.post("/v1/chat/completions", &body).of(200);
    // The last token needs no place: nothing is computed behind it.
    assert_eq!(answer["usage"]["total_tokens"], pair.made.context + 1);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let none = pair.server.post("/v1/completions", &completion("fr", 0, 1)).of(200);
    assert_eq!(
        (&none["choices"][0]["text"], &none["usage"]["completion_tokens"]),
        (&json!(""), &json!(0))
    );
    let long = pair.server.post("/v1/completions", &completion("fr", 600, 1)).error(400);
    assert_eq!(
        (&long["code"], &long["param"]),
        (&json!("context_length_exceeded"), &json!("max_tokens"))
    );
    let ids: Vec<u32> = (0..513).map(|id| 3 + id % 200).collect();
    let prompt = with(completion("fr", 0, 1), &json!({ "prompt": ids }));
    let long = pair.server.post("/v1/completions", &prompt).error(400);
    assert_eq!(
        (&long["code"], &long["param"]),
        (&json!("context_length_exceeded"), &json!("prompt"))
    );
}

#[test]
fn a_text_ends_before_its_stop_text_wherever_the_tokens_lie() {
    let mut pair = Pair::new();
    let prompt = Prompt::from("hello world");
    let whole = pair.alone("de", &prompt, &drawn(60, 9));
    let characters: Vec<(usize, char)> = whole.text.char_indices().collect();
    let mut tried = 0;
    for start in (5..characters.len() - 3).step_by(4) {
        // Each token of this model is mostly one character, so that three lie across tokens.
        let stop: String = characters[start..start + 3].iter().map(|(_, c)| c).collect();
        let cut = &whole.text[..whole.text.find(&stop).unwrap()];
        let mut alone = drawn(60, 9);
        alone.stop_texts = vec![stop.clone()];
        let tokens = pair.alone("de", &prompt, &alone).token_ids.len();
        let ends = [json!(stop), json!([stop]), json!(["not in it at all", stop])];
        for (stops, reason) in ends.iter().zip([json!(stop), json!(stop), Value::Null]) {
            let body = with(completion("de", 60, 9), &json!({ "stop": stops }));
            let answer = pair.server.post("/v1/completions", &body).of(200);
            let choice = &answer["choices"][0];
            assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(cut), &json!("stop")));
            assert_eq!(choice["stop_reason"], reason);
            assert_eq!(answer["usage"]["completion_tokens"], tokens);
            let body = with(body, &json!({"stream": true}));
            let found = streamed(&pair.server.post("/v1/completions", &body), "text");
            assert_eq!(found, [(cut.to_owned(), json!("stop"), reason)]);
        }
        tried += 1;
    }
    assert!(tried > 5, "{tried} stop texts");
    // A token of the request's own.
    let token = whole.token_ids[20];
    let at = whole.token_ids.iter().position(|id| *id == token).unwrap();
    let body = with(completion("de", 60, 9), &json!({"stop_token_ids": [token]}));
    let answer = pair.server.post("/v1/completions", &body).of(200);
    let choice = &answer["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!(token)));
    let text = pair.alone.tokenizer().unwrap().decode(&whole.token_ids[..at]).unwrap();
    assert_eq!(choice["text"], text);
}

#[test]
fn each_of_several_answers_is_the_one_of_its_seed_and_prompt() {
    let mut pair = Pair::new();
    let prompts = ["hello world", "hello"];
    let body = json!({"model": "fr/work/alice", "prompt": prompts, "n": 3, "max_tokens": 12,
        "seed": 7, "ignore_eos": true, "merge": "leaf"});
    let expected: Vec<String> = (0..6)
        .map(|k| {
            let prompt = Prompt::from(prompts[k / 3]);
            pair.alone("fr/work/alice", &prompt, &drawn(12, 7 + k as u64)).text
        })
        .collect();
    assert_eq!(expected.iter().collect::<BTreeSet<_>>().len(), 6, "six texts");
    let answer = pair.server.post("/v1/completions", &body).of(200);
    let choices = answer["choices"].as_array().unwrap();
    let texts: Vec<_> = choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert_eq!(texts, expected);
    let indices: Vec<_> = choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 2, 3, 4, 5]);
    let tokens = prompts.map(|prompt| pair.alone.encode(&prompt.into()).unwrap().len());
    assert_eq!(answer["usage"]["prompt_tokens"], tokens[0] + tokens[1]);
    assert_eq!(answer["usage"]["completion_tokens"], 72);
    let response = pair.server.post("/v1/completions", &with(body, &json!({"stream": true})));
    let texts: Vec<_> = streamed(&response, "text").into_iter().map(|(text, ..)| text).collect();
    assert_eq!(texts, expected);
    // Token ids in place of texts, one list and several.
    let ids = prompts.map(|prompt| pair.alone.encode(&prompt.into()).unwrap());
    for (prompt, seeds) in [(json!(ids[0]), vec![0]), (json!(ids), vec![0, 3])] {
        let body = with(completion("fr/work/alice", 12, 7), &json!({"prompt": prompt, "n": 1}));
        let answer = pair.server.post("/v1/completions", &body).of(200);
        let choices = answer["choices"].as_array().unwrap();
        assert_eq!((choices.len(), &choices[0]["text"]), (seeds.len(), &json!(expected[0])));
    }
}

#[test]
fn an_echo_stands_before_the_text_and_counts_as_the_prompt_alone() {
    let mut pair = Pair::new();
    let prompt = Prompt::from("hello world");
    let text = format!("hello world{}", pair.alone("fr", &prompt, &drawn(9, 3)).text);
    let ids = pair.alone.encode(&prompt).unwrap();
    for prompt in [json!("hello world"), json!(ids)] {
        let fields = json!({"prompt": prompt, "echo": true});
        let body = with(completion("fr", 9, 3), &fields);
        let answer = pair.server.post("/v1/completions", &body).of(200);
        assert_eq!(answer["choices"][0]["text"], text);
        assert_eq!(answer["usage"]["completion_tokens"], 9);
        let response = pair.server.post("/v1/completions", &with(body, &json!({"stream": true})));
        assert_eq!(streamed(&response, "text"), [(text.clone(), json!("length"), Value::Null)]);
    }
}

/// The logprobs of a text's tokens as the runtime scores them one by one: the chosen one, and the
/// likeliest.
fn scored(
    alone: &mut Runtime,
    prompt: &[u32],
    tokens: &[u32],
    k: usize,
) -> Vec<(f32, Vec<(u32, f32)>)> {
    let score = |at: usize| {
        let ids = [prompt, &tokens[..at]].concat();
        let scores = alone.score(&Prompt::Tokens(ids)).unwrap();
        let all = log_softmax_top(&scores.logits, scores.logits.len()).unwrap();
        let chosen = all.iter().find(|(id, _)| *id == tokens[at]).unwrap().1;
        (chosen, all[..k].to_vec())
    };
    (0..tokens.len()).map(score).collect()
}

fn number(value: &Value) -> f32 {
    // The shortest text that is this f32.
    #[allow(clippy::cast_possible_truncation, reason = "it was an f32")]
    let number = value.as_f64().unwrap() as f32;
    number
}

#[test]
fn logprobs_are_what_the_runtime_scores() {
    let mut pair = Pair::new();
    let prompt = Prompt::from("hello world");
    let ids = pair.alone.encode(&prompt).unwrap();
    let tokens = pair.alone("fr/work", &prompt, &drawn(10, 11)).token_ids;
    let expected = scored(&mut pair.alone, &ids, &tokens, 4);
    let bytes = |id: u32| pair.alone.tokenizer().unwrap().token_bytes(id);
    let text = |id: u32| String::from_utf8_lossy(&bytes(id)).into_owned();

    let body = with(completion("fr/work", 10, 11), &json!({"logprobs": 4}));
    let whole =
        pair.server.post("/v1/completions", &body).of(200)["choices"][0]["logprobs"].clone();
    let response = pair.server.post("/v1/completions", &with(body, &json!({"stream": true})));
    let parts: Vec<Value> =
        response.events().iter().map(|event| event["choices"][0]["logprobs"].clone()).collect();
    for field in ["tokens", "token_logprobs", "top_logprobs"] {
        let all = parts.iter().flat_map(|part| part[field].as_array().unwrap());
        assert_eq!(json!(all.collect::<Vec<_>>()), whole[field], "{field}");
    }
    let mut offset = 0;
    for (at, (chosen, top)) in expected.iter().enumerate() {
        assert_eq!(whole["tokens"][at], text(tokens[at]));
        assert_eq!(number(&whole["token_logprobs"][at]), *chosen, "token {at}");
        assert_eq!(whole["text_offset"][at], offset);
        offset += text(tokens[at]).chars().count();
        let map = whole["top_logprobs"][at].as_object().unwrap();
        let is_new = !top.iter().any(|(id, _)| text(*id) == text(tokens[at]));
        let names: BTreeSet<String> = top.iter().map(|(id, _)| text(*id)).collect();
        assert_eq!(map.len(), names.len() + usize::from(is_new), "{map:?}");
        // Of tokens of one text the least likely stays.
        let last = top.iter().rev().find(|(id, _)| text(*id) == text(top[3].0)).unwrap();
        assert_eq!(number(&map[&text(top[3].0)]), last.1);
    }
    let turns = json!([{"role": "user", "content": "hello"}]);
    let body = json!({"model": "fr/work", "messages": turns, "max_tokens": 6, "seed": 2,
        "ignore_eos": true, "merge": "leaf", "logprobs": true, "top_logprobs": 3});
    let message = Message { role: "user".into(), content: "hello".into() };
    let prompt = Prompt::Chat(vec![message]);
    let ids = pair.alone.encode(&prompt).unwrap();
    let tokens = pair.alone("fr/work", &prompt, &drawn(6, 2)).token_ids;
    let expected = scored(&mut pair.alone, &ids, &tokens, 3);
    let answer = pair.server.post("/v1/chat/completions", &body).of(200);
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(content.len(), 6);
    let bytes = |id: u32| pair.alone.tokenizer().unwrap().token_bytes(id);
    for ((said, (chosen, top)), token) in content.iter().zip(&expected).zip(&tokens) {
        assert_eq!(said["bytes"], json!(bytes(*token)));
        assert_eq!(number(&said["logprob"]), *chosen);
        let said: Vec<_> = said["top_logprobs"].as_array().unwrap().iter().collect();
        assert_eq!(said.len(), 3);
        for (said, (id, logprob)) in said.iter().zip(top) {
            assert_eq!((&said["bytes"], number(&said["logprob"])), (&json!(bytes(*id)), *logprob));
        }
    }
}

#[test]
fn usage_comes_where_it_is_asked_for_and_done_is_the_last_word() {
    let pair = Pair::new();
    let prompt = pair.alone.encode(&Prompt::from("hello world")).unwrap().len();
    let usage = |completion: usize| {
        json!({"prompt_tokens": prompt, "total_tokens": prompt + completion,
            "completion_tokens": completion})
    };
    let stream = |options: Value| {
        let fields = json!({"stream": true, "stream_options": options});
        pair.server.post("/v1/completions", &with(completion("fr", 8, 1), &fields)).events()
    };
    let at_end = stream(json!({"include_usage": true}));
    let (closing, others) = at_end.split_last().unwrap();
    assert_eq!((&closing["choices"], &closing["usage"]), (&json!([]), &usage(8)));
    assert!(others.iter().all(|event| event.get("usage") == Some(&Value::Null)));
    let always = stream(json!({"include_usage": true, "continuous_usage_stats": true}));
    let (closing, others) = always.split_last().unwrap();
    assert_eq!(closing["usage"], usage(8));
    let counts: Vec<_> =
        others.iter().map(|event| event["usage"]["completion_tokens"].as_u64().unwrap()).collect();
    assert!(
        counts.is_sorted() && counts.len() > 2 && counts[0] < 8 && counts.last() == Some(&8),
        "{counts:?}"
    );
    let none = stream(json!({"include_usage": false}));
    assert!(none.iter().all(|event| event.get("usage").is_none()));
    let refused = with(completion("fr", 8, 1), &json!({"stream_options": {"include_usage": true}}));
    assert_eq!(pair.server.post("/v1/completions", &refused).error(400)["param"], "stream_options");
}

#[test]
fn a_node_answers_to_every_spelling_and_nobody_else_does() {
    let pair = Pair::new();
    let text = |model: Option<&str>| {
        let mut body = completion("", 12, 4);
        match model {
            Some(model) => body["model"] = json!(model),
            None => drop(body.as_object_mut().unwrap().remove("model")),
        }
        let answer = pair.server.post("/v1/completions", &body).of(200);
        (answer["choices"][0]["text"].clone(), answer["node"].clone())
    };
    let base = text(None);
    assert_eq!(base.1, "/");
    for spelling in [BASE, "/", "tiny/", "tiny:", "tiny::", "tiny:/", ""] {
        assert_eq!(text(Some(spelling)), base, "{spelling:?}");
    }
    let leaf = text(Some("fr/work/alice"));
    assert_eq!(leaf.1, "fr/work/alice");
    assert_ne!(leaf.0, base.0);
    for spelling in [
        "tiny/fr/work/alice",
        "tiny:fr/work/alice",
        "tiny::fr/work/alice",
        "/fr/work/alice",
        "fr/work/alice/",
    ] {
        assert_eq!(text(Some(spelling)), leaf, "{spelling}");
    }
    for id in ["fr/work/alice", "fr%2Fwork%2Falice", "tiny%3Afr%2Fwork%2Falice"] {
        let model = pair.server.get(&format!("/v1/models/{id}")).of(200);
        assert_eq!((&model["id"], &model["parent"]), (&json!("fr/work/alice"), &json!("fr/work")));
    }
    for unknown in
        ["fr/work/alise", "tiny/fr/nobody", "tinyfr", "alice", "fr//work/alice", "Fr", "fr/"]
    {
        let body = completion(unknown, 1, 1);
        let is_known = unknown == "fr/";
        for stream in [false, true] {
            let body = with(body.clone(), &json!({ "stream": stream }));
            let response = pair.server.post("/v1/completions", &body);
            assert_eq!(response.status, if is_known { 200 } else { 404 }, "{unknown}");
        }
    }
    let error = pair.server.post("/v1/completions", &completion("fr/work/alise", 1, 1)).error(404);
    assert_eq!((&error["type"], &error["param"]), (&json!("NotFoundError"), &json!("model")));
    assert_eq!(error["code"], "model_not_found");
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("`fr/work/alise`") && message.contains("`fr/work/alice`"),
        "{message}"
    );
}

#[test]
fn a_fingerprint_is_that_of_the_content_whatever_it_is_called() {
    let pair = Pair::new();
    let fingerprint = |model: &str, max_tokens: usize| {
        let answer = pair.server.post("/v1/completions", &completion(model, max_tokens, 4)).of(200);
        answer["system_fingerprint"].clone()
    };
    // One that makes no token is computed by none; it must not name another content.
    let early = fingerprint("fr/work/alice", 0);
    let leaf = fingerprint("fr/work/alice", 2);
    assert!(leaf.as_str().unwrap().starts_with("fp_"), "{leaf}");
    assert!(early.is_null() || early == leaf, "{early}, then {leaf}");
    assert_eq!(fingerprint("fr/work/alias", 2), leaf);
    let all: Vec<_> = [BASE, "fr", "fr/work", "fr/work/alice", "fr/bob", "de"]
        .map(|node| fingerprint(node, 2).as_str().unwrap().to_owned())
        .into();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "{all:?}");
    // Another process with the same files says the same, one with another base something else.
    let again = pair.made.serve(options());
    let answer = again.post("/v1/completions", &completion("fr/bob", 2, 4)).of(200);
    assert_eq!(answer["system_fingerprint"], all[4]);
    let other = Made::new(512).with_tree(&NODES);
    let model = TinyModel { seed: 2, ..TinyModel::default() };
    tiny_hf_model(&other.at("base"), &model);
    let answer = other.serve(options()).post("/v1/completions", &completion("de", 2, 4)).of(200);
    assert!(!all.contains(&answer["system_fingerprint"].as_str().unwrap().to_owned()));
}

#[test]
fn what_is_not_done_is_refused_by_name_on_both_routes() {
    let pair = Pair::new();
    let tool = json!([{"type": "function", "function": {"name": "f"}}]);
    let cases = [
        json!({ "tools": tool }),
        json!({"tool_choice": "required"}),
        json!({"tool_choice": {"type": "function"}}),
        json!({"functions": [{"name": "f"}]}),
        json!({"function_call": "f"}),
        json!({"response_format": {"type": "json_object"}}),
        json!({"response_format": {"type": "json_schema", "json_schema": {}}}),
        json!({"best_of": 3, "n": 2}),
        json!({"suffix": "x"}),
        json!({"audio": {"voice": "x"}}),
        json!({"modalities": ["text", "audio"]}),
        json!({"prompt_logprobs": 2}),
        json!({"min_tokens": 1}),
        json!({"guided_choice": ["a"]}),
        json!({"structured_outputs": {"regex": "a"}}),
        json!({"prompt_embeds": "x"}),
        json!({"add_generation_prompt": false}),
    ];
    for fields in &cases {
        let name = fields.as_object().unwrap().keys().next().unwrap();
        let mut body = with(completion("fr", 2, 1), fields);
        body["messages"] = json!([{"role": "user", "content": "x"}]);
        for route in ["/v1/completions", "/v1/chat/completions"] {
            let error = pair.server.post(route, &body).error(400);
            assert_eq!(error["param"], json!(name), "{error}");
            assert_eq!(error["code"], "unsupported_parameter");
            assert!(error["message"].as_str().unwrap().contains(name.as_str()), "{error}");
        }
    }
    let nothing = json!({"tools": [], "tool_choice": "auto", "functions": null, "suffix": "",
        "response_format": {"type": "text"}, "best_of": 1, "modalities": ["text"], "min_tokens": 0,
        "prompt_logprobs": null, "user": "somebody", "store": true, "frobnicate": {"x": 1}});
    let body = with(completion("fr", 2, 1), &nothing);
    pair.server.post("/v1/completions", &body).of(200);
}

#[test]
fn tokens_of_a_text_lead_back_to_it() {
    let pair = Pair::new();
    let text = "hello world, l'été";
    let ids = pair.alone.encode(&Prompt::from(text)).unwrap();
    let body = json!({"model": "fr", "prompt": text, "return_token_strs": true});
    let answer = pair.server.post("/tokenize", &body).of(200);
    assert_eq!((&answer["tokens"], &answer["count"]), (&json!(ids), &json!(ids.len())));
    assert_eq!(answer["max_model_len"], 512);
    assert_eq!(answer["token_strs"].as_array().unwrap().len(), ids.len());
    let back = json!({"model": "fr", "tokens": ids});
    assert_eq!(pair.server.post("/detokenize", &back).of(200)["prompt"], text);
    let outside = json!({"model": "fr", "tokens": [3, 272]});
    assert_eq!(pair.server.post("/detokenize", &outside).error(400)["param"], "tokens");
}

#[test]
fn an_answer_bears_its_request_s_number() {
    let pair = Pair::new();
    let ask = |id: &str| {
        let body = completion("fr", 1, 1);
        pair.server.connect().ask("POST", "/v1/completions", &[("x-request-id", id)], Some(&body))
    };
    let own = ask("abc-1");
    assert_eq!(own.header("x-request-id"), Some("abc-1"));
    assert_eq!(own.json()["id"], "cmpl-abc-1");
    for strange in [&"x".repeat(129)[..], "a b", "ü", ""] {
        let made = ask(strange);
        let id = made.header("x-request-id").unwrap().to_owned();
        assert_eq!(id.len(), 32, "{id}");
        assert_eq!(made.json()["id"], format!("cmpl-{id}"));
    }
    let line = pair.server.lines.lock().unwrap()[0].clone();
    assert_eq!((&line.request_id[..], line.status, line.completion_tokens), ("abc-1", 200, 1));
    assert_eq!(line.node.as_deref(), Some("fr"));
}
