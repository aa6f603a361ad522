//! A field of the wrong type that is passed over changes an answer, and nobody hears of it. Here every
//! field of every body gets a value of every other type, and numbers from beyond its range.

#[path = "common.rs"]
mod common;

use common::{Made, completion, options, with};
use serde_json::{Value, json};

/// A value of every other type, and numbers beyond every range, for each field; no field is missed.
#[test]
fn a_field_of_another_type_is_refused_by_its_name() {
    let made = Made::new(512).with_tree(&[("fr", 1), ("fr/alice", 2)]);
    let server = made.serve(options());
    let (text, list, object) = (json!("x"), json!([1.5]), json!({"a": {"b": 1}}));
    let (yes, many, less) = (json!(true), json!(1e300), json!(-1.5));
    let wrong: [(&str, Vec<&Value>); 26] = [
        ("model", vec![&yes, &many, &list, &object]),
        ("prompt", vec![&yes, &many, &list, &object]),
        ("max_tokens", vec![&yes, &text, &list, &object, &less, &many]),
        ("max_completion_tokens", vec![&yes, &text, &list, &object, &less, &many]),
        ("n", vec![&yes, &text, &list, &object, &less, &many]),
        ("best_of", vec![&yes, &text, &list, &object, &less, &many]),
        ("stop", vec![&yes, &many, &list, &object]),
        ("stop_token_ids", vec![&yes, &text, &list, &object, &many]),
        ("ignore_eos", vec![&text, &list, &object, &many]),
        ("seed", vec![&yes, &text, &list, &object, &less, &many]),
        ("temperature", vec![&yes, &text, &list, &object, &less, &many]),
        ("top_p", vec![&yes, &text, &list, &object, &less, &many]),
        ("top_k", vec![&yes, &text, &list, &object, &less, &many]),
        ("min_p", vec![&yes, &text, &list, &object, &less, &many]),
        ("repetition_penalty", vec![&yes, &text, &list, &object, &less, &many]),
        ("presence_penalty", vec![&yes, &text, &list, &object, &many]),
        ("frequency_penalty", vec![&yes, &text, &list, &object, &many]),
        ("logit_bias", vec![&yes, &text, &list, &object, &many]),
        ("logprobs", vec![&yes, &text, &list, &object, &less, &many]),
        ("top_logprobs", vec![&yes, &text, &list, &object, &less, &many]),
        ("echo", vec![&text, &list, &object, &many]),
        ("stream", vec![&text, &list, &object, &many]),
        ("stream_options", vec![&yes, &text, &list, &many]),
        ("cache_salt", vec![&yes, &list, &object, &many]),
        ("merge", vec![&yes, &text, &list, &object, &many]),
        ("deadline_ms", vec![&yes, &text, &list, &object, &less, &many]),
    ];
    let mut connection = server.connect();
    let mut asked = 0;
    for (name, values) in wrong {
        for value in values {
            let body = with(completion("fr", 2, 1), &json!({ name: value }));
            let answer = connection.ask("POST", "/v1/completions", &[], Some(&body));
            let error = answer.error(400);
            let param = error["param"].as_str().unwrap_or_default();
            assert!(param.starts_with(name), "{name} {value}: {error}");
            assert_eq!(error["type"], "BadRequestError");
            asked += 1;
        }
    }
    for (messages, place) in [
        (json!("x"), "messages"),
        (json!([]), "messages"),
        (json!([3]), "messages[0].role"),
        (json!([{"role": "user"}]), "messages[0].content"),
        (json!([{"role": 3, "content": "x"}]), "messages[0].role"),
        (json!([{"role": "user", "content": {"text": "x"}}]), "messages[0].content"),
        (json!([{"role": "user", "content": [{"type": "image_url"}]}]), "messages[0].content"),
        (json!([{"role": "user", "content": [null]}]), "messages[0].content"),
    ] {
        let body = json!({"model": "fr", "messages": messages, "max_tokens": 1});
        let answer = connection.ask("POST", "/v1/chat/completions", &[], Some(&body));
        let error = answer.error(400);
        assert_eq!(error["param"], "messages");
        assert!(error["message"].as_str().unwrap().contains(place), "{error}");
        asked += 1;
    }
    for (path, body) in [
        ("/tokenize", json!({"prompt": 3})),
        ("/tokenize", json!({"prompt": "x", "messages": []})),
        ("/tokenize", json!({})),
        ("/tokenize", json!({"prompt": "x", "add_special_tokens": "yes"})),
        ("/detokenize", json!({})),
        ("/detokenize", json!({"tokens": "x"})),
        ("/detokenize", json!({"tokens": [-1]})),
        ("/detokenize", json!({"tokens": [4_294_967_296u64]})),
        ("/detokenize", json!({"tokens": [4_294_967_295u64]})),
    ] {
        connection.ask("POST", path, &[], Some(&body)).error(400);
        asked += 1;
    }
    // Far beyond what is sensible, and yet of the right type.
    let most = json!({"max_tokens": u64::MAX, "seed": i64::MIN, "deadline_ms": u64::MAX});
    for (fields, status) in [
        (json!({"max_tokens": u64::MAX}), 400),
        (json!({"n": u64::MAX}), 400),
        (json!({"top_k": i64::MAX, "seed": i64::MIN, "deadline_ms": u64::MAX}), 200),
        (json!({"top_k": u64::MAX}), 400),
        (json!({"seed": u64::MAX}), 400),
        (json!({"stop_token_ids": [u32::MAX]}), 200),
        (json!({"logit_bias": {"4294967295": 1}}), 400),
        (json!({"logit_bias": {"5": 1e30}}), 400),
        (json!({"stop": vec!["x"; 17]}), 400),
        (json!({"stop": ["x".repeat(500_000)]}), 200),
        (json!({"prompt": vec!["x"; 129]}), 400),
        (json!({"prompt": [vec![3; 400_000]]}), 400),
        (json!({"prompt": [[]]}), 400),
        (json!({"prompt": ""}), 400),
        (json!({"prompt": [u32::MAX]}), 400),
        (json!({"model": "x".repeat(5000)}), 400),
        (json!({"model": "\u{0}"}), 404),
        (json!({"model": "fr\u{0}"}), 404),
        (json!({"model": "../fr"}), 404),
        (json!({"deadline_ms": 0}), 408),
        (most, 400),
    ] {
        let body = with(completion("fr", 2, 1), &fields);
        let answer = connection.ask("POST", "/v1/completions", &[], Some(&body));
        assert_eq!(answer.status, status, "{fields:.100}: {}", answer.text());
        asked += 1;
    }
    assert!(asked > 150, "{asked}");
    server.wait_until_idle();
}
