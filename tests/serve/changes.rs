//! An adapter that is replaced while it is served has cost others dearly: a request that began with
//! one and ended with the other, a second publisher who never heard that there was a first, an answer
//! of success for what a crash then took back. Here each change is on disk when its answer comes, is
//! made by one of many, and leaves those who run what they began with.

#[path = "common.rs"]
mod common;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::time::Duration;

use common::{
    ADMIN, Made, Response, Running, adapter, completion, multipart, names_no_place, options,
    upload, with,
};
use pleach::runtime::Prompt;
use pleach::testing::adapter::{TinyAdapter, TinyModule, serialize};
use pleach::{GenerateOptions, Sampling};
use pleach_serve::{Access, ServerOptions};
use serde_json::{Value, json};

fn made() -> Made {
    Made::new(16_384).with_store(&[
        ("fr", "/", 1),
        ("fr/alice", "fr", 2),
        ("fr/bob", "fr", 3),
        ("de", "/", 4),
    ])
}

fn serve(made: &Made) -> Running {
    std::fs::create_dir_all(made.at("root")).unwrap();
    let access = Access::open().with_admin(ADMIN);
    made.serve(ServerOptions { access, adapter_root: Some(made.at("root")), ..options() })
}

fn admin() -> (&'static str, String) {
    ("authorization", format!("Bearer {ADMIN}"))
}

/// Uploads an adapter as the administrator.
fn put(
    server: &Running,
    node: &str,
    seed: u64,
    fields: &[(&str, &str)],
    headers: &[(&str, &str)],
) -> Response {
    let (name, value) = admin();
    let headers: Vec<_> = [(name, &value[..])].into_iter().chain(headers.iter().copied()).collect();
    let path = format!("/v1/tree/nodes/{node}");
    upload(&mut server.connect(), &path, &headers, &multipart(&adapter(seed), fields))
}

fn delete(server: &Running, path: &str) -> Response {
    server.ask_as(ADMIN, "DELETE", &format!("/v1/tree/nodes/{path}"), None)
}

fn post(server: &Running, path: &str, body: &Value) -> Response {
    server.ask_as(ADMIN, "POST", path, Some(body))
}

/// The generation in an answer, which another handle of the store must have already.
fn durable(made: &Made, node: &str, answer: &Value) -> u64 {
    let generation = answer["generation"].as_u64().unwrap();
    assert_eq!(made.store().get(node).unwrap().version.generation, generation, "{node}");
    assert_eq!(answer["node"], node);
    generation
}

/// Text, generation and fingerprint of a node over HTTP.
fn asked(server: &Running, node: &str) -> (String, Value, Value) {
    let answer = server.post("/v1/completions", &completion(node, 24, 5)).of(200);
    let text = answer["choices"][0]["text"].as_str().unwrap().to_owned();
    (text, answer["node_generation"].clone(), answer["system_fingerprint"].clone())
}

/// What a runtime that opens the store now says there.
fn alone(made: &Made, node: &str, max_tokens: usize) -> String {
    let mut runtime = made.open();
    runtime.switch_to(node).unwrap();
    let sampling = Sampling { temperature: 1.0, seed: 5, ..Sampling::default() };
    let options = GenerateOptions { max_tokens, sampling, ignore_eos: true, ..Default::default() };
    let prompt = Prompt::from("hello world");
    runtime.generate(&prompt, &options, |_| ControlFlow::Continue(())).unwrap().text
}

#[test]
fn what_is_uploaded_is_on_disk_and_served_when_its_answer_comes() {
    let made = made();
    let server = serve(&made);
    let fields = [("labels", "{\"user\":\"carol\"}"), ("parent", "fr/bob")];
    let response = put(&server, "fr/carol", 7, &fields, &[]);
    let answer = response.of(201);
    let first = durable(&made, "fr/carol", &answer);
    assert!((0.5..=1.0).contains(&answer["kept"].as_f64().unwrap()), "{answer}");
    assert!(answer["bytes"].as_u64().unwrap() > 1000 && answer["remarks"].is_array(), "{answer}");
    let node = server.get("/v1/tree/nodes/fr%2Fcarol").of(200);
    assert_eq!((&node["parent"], &node["labels"]), (&json!("fr/bob"), &json!({"user": "carol"})));
    assert_eq!((&node["generation"], &node["content_generation"]), (&json!(first), &json!(first)));
    assert_eq!((&node["kind"], &node["trained_on"]), (&json!("low_rank"), &json!(3)));
    let of_seven = asked(&server, "fr/carol");
    assert_eq!((&of_seven.0, &of_seven.1), (&alone(&made, "fr/carol", 24), &json!(first)));

    let answer = put(&server, "fr/carol", 8, &[], &[]).of(200);
    let second = durable(&made, "fr/carol", &answer);
    let of_eight = asked(&server, "fr/carol");
    assert_eq!((&of_eight.0, &of_eight.1), (&alone(&made, "fr/carol", 24), &json!(second)));
    assert!(of_eight.0 != of_seven.0 && of_eight.2 != of_seven.2, "{of_seven:?} {of_eight:?}");
    // Its parent and labels are kept.
    let node = server.get("/v1/tree/nodes/fr%2Fcarol").of(200);
    assert_eq!((&node["parent"], &node["labels"]), (&json!("fr/bob"), &json!({"user": "carol"})));
    // The first content again: another generation of one fingerprint.
    put(&server, "fr/carol", 7, &[], &[]).of(200);
    let again = asked(&server, "fr/carol");
    assert_eq!((&again.0, &again.2), (&of_seven.0, &of_seven.2));
    assert_ne!(again.1, of_seven.1);
}

#[test]
fn a_change_of_what_was_changed_meanwhile_is_refused() {
    let made = made();
    let server = serve(&made);
    let now = made.store().get("fr/alice").unwrap().version.generation;
    let (now_text, old) = (now.to_string(), (now - 1).to_string());
    let quoted = format!("\"{now}\"");
    let refused = |answer: Response, code: &str| {
        let error = answer.error(409);
        assert_eq!((&error["code"], &error["type"]), (&json!(code), &json!("ConflictError")));
        assert_eq!(answer.header("x-should-retry"), Some("false"));
        let message = error["message"].as_str().unwrap();
        names_no_place(message, made.dir.path());
    };
    let mismatch = "lora_generation_mismatch";
    refused(put(&server, "fr/alice", 9, &[("expected_generation", &old)], &[]), mismatch);
    refused(put(&server, "fr/alice", 9, &[], &[("if-match", &old)]), mismatch);
    refused(put(&server, "fr/alice", 9, &[("expected_generation", "0")], &[]), "node_exists");
    refused(put(&server, "fr/alice", 9, &[], &[("if-none-match", "*")]), "node_exists");
    refused(put(&server, "fr/none", 9, &[("expected_generation", "1")], &[]), mismatch);
    refused(delete(&server, &format!("fr/alice?expected_generation={old}")), mismatch);
    let body = json!({"target": "fr/alicia", "expected_generation": now - 1});
    refused(post(&server, "/v1/tree/nodes/fr%2Falice/move", &body), mismatch);
    let body = json!({"generation": now, "expected_generation": now + 1});
    refused(post(&server, "/v1/tree/nodes/fr%2Falice/rollback", &body), mismatch);
    let body = json!({"lora_name": "fr/alice", "expected_generation": now - 1});
    refused(post(&server, "/v1/unload_lora_adapter", &body), mismatch);
    for (fields, headers) in [
        (vec![("expected_generation", &old[..])], vec![("if-match", &now_text[..])]),
        (vec![], vec![("if-match", "x")]),
        (vec![], vec![("if-none-match", "\"1\"")]),
    ] {
        put(&server, "fr/alice", 9, &fields, &headers).error(400);
    }
    assert_eq!(made.store().get("fr/alice").unwrap().version.generation, now, "nothing was made");
    let answer = put(&server, "fr/alice", 9, &[], &[("if-match", &quoted)]).of(200);
    let now = durable(&made, "fr/alice", &answer).to_string();
    let fields = [("expected_generation", &now[..])];
    durable(&made, "fr/alice", &put(&server, "fr/alice", 10, &fields, &[]).of(200));
    let answer = put(&server, "fr/dora", 9, &[], &[("if-none-match", "*")]).of(201);
    durable(&made, "fr/dora", &answer);
}

#[test]
fn an_adapter_is_published_by_its_path_and_taken_away() {
    let made = made();
    let server = serve(&made);
    adapter(11).write(&made.at("root/users/eve")).unwrap();
    let body = json!({"path": "users/eve", "parent": "/", "labels": {"a": "b"}});
    let answer = server.ask_as(ADMIN, "PUT", "/v1/tree/nodes/fr/eve", Some(&body)).of(201);
    durable(&made, "fr/eve", &answer);
    assert_eq!(server.get("/v1/tree/nodes/fr/eve").of(200)["parent"], "/");
    assert_eq!(asked(&server, "fr/eve").0, alone(&made, "fr/eve", 24));
    // The same files under another parent are another model.
    let other = json!({"path": "users/eve"});
    server.ask_as(ADMIN, "PUT", "/v1/tree/nodes/fr/eva", Some(&other)).of(201);
    assert_eq!(server.get("/v1/tree/nodes/fr/eva").of(200)["parent"], "fr");
    assert_ne!(asked(&server, "fr/eva").2, asked(&server, "fr/eve").2);

    let error = delete(&server, "fr").error(409);
    assert_eq!(error["code"], "has_children");
    assert!(made.store().get("fr/alice").is_ok());
    let answer = delete(&server, "fr/alice").of(200);
    assert!(answer["generation"].as_u64().unwrap() > 0 && answer["node"] == "fr/alice");
    assert!(made.store().get("fr/alice").is_err(), "it is gone from the disk");
    server.post("/v1/completions", &completion("fr/alice", 2, 1)).error(404);
    delete(&server, "fr/alice").error(404);
    delete(&server, "fr?recursive=true").of(200);
    let left: Vec<_> =
        made.store().list("", None, 99).unwrap().into_iter().map(|n| n.name).collect();
    // What hangs under the root stays, whatever it is called.
    assert_eq!(left, ["de", "fr/eve"]);
    delete(&server, "de?recursive=perhaps").error(400);
    server.ask_as(ADMIN, "DELETE", "/v1/tree/nodes/tiny", None).error(400);
}

#[test]
fn a_node_moves_goes_back_and_remembers() {
    let made = made();
    let server = serve(&made);
    let store = made.store();
    let first = store.get("fr/alice").unwrap().version.generation;
    let before = asked(&server, "fr/alice");
    put(&server, "fr/alice", 12, &[], &[]).of(200);
    let history = server.get("/v1/tree/nodes/fr/alice/history").of(200);
    let version = &history["versions"][0];
    assert_eq!((&version["generation"], &version["ending"]), (&json!(first), &json!("replaced")));
    assert_eq!((&version["node"], &version["parent"]), (&json!("fr/alice"), &json!("fr")));
    let body = json!({ "generation": first });
    let answer = post(&server, "/v1/tree/nodes/fr%2Falice/rollback", &body).of(200);
    let back = durable(&made, "fr/alice", &answer);
    let after = asked(&server, "fr/alice");
    assert_eq!((&after.0, &after.2), (&before.0, &before.2));
    assert_eq!(after.1, json!(back));
    assert_eq!(server.get("/v1/tree/nodes/fr/alice").of(200)["content_generation"], first);
    let error =
        post(&server, "/v1/tree/nodes/fr%2Falice/rollback", &json!({"generation": 999})).error(404);
    assert!(error["message"].as_str().unwrap().contains("999"), "{error}");

    let body = json!({"target": "de/alice"});
    let answer = post(&server, "/v1/tree/nodes/fr/alice/move", &body).of(200);
    durable(&made, "de/alice", &answer);
    server.post("/v1/completions", &completion("fr/alice", 2, 1)).error(404);
    let moved = asked(&server, "de/alice");
    assert_eq!(moved.0, alone(&made, "de/alice", 24));
    assert_ne!(moved.2, before.2, "it hangs under another node");
    let history = server.get("/v1/tree/nodes/fr/alice/history").of(200);
    let endings: Vec<_> =
        history["versions"].as_array().unwrap().iter().map(|v| &v["ending"]).collect();
    assert_eq!(endings, ["replaced", "replaced", "moved"]);
    for (target, status) in
        [("de/alice", 400), ("de/alice/below", 400), ("fr/bob", 409), ("..", 400), ("/", 400)]
    {
        let answer = post(&server, "/v1/tree/nodes/de%2Falice/move", &json!({ "target": target }));
        assert_eq!(answer.status, status, "{target}: {}", answer.text());
    }
    post(&server, "/v1/tree/nodes/nobody/move", &json!({"target": "x"})).error(404);
    post(&server, "/v1/tree/nodes/de%2Falice/move", &json!({})).error(400);
    for path in ["/v1/tree/nodes/de/history", "/v1/tree/nodes/de/children", "/v1/tree/nodes/de"] {
        assert_eq!(post(&server, path, &json!({})).status, 405, "{path}");
    }
    server.get("/v1/tree/nodes/de/move").error(405);
}

/// The words are those that vLLM 0.32 was recorded with; its codes are numbers, ours texts or null.
#[test]
fn the_routes_of_vllm_answer_as_vllm_does() {
    let made = made();
    let server = serve(&made);
    for (seed, name) in [(13, "user01"), (14, "user02")] {
        adapter(seed).write(&made.at("root").join(name)).unwrap();
    }
    let load = |body: Value| post(&server, "/v1/load_lora_adapter", &body);
    let unload = |body: Value| post(&server, "/v1/unload_lora_adapter", &body);
    let is = |answer: Response, status: u16, kind: &str, message: &str| {
        let error = answer.error(status);
        assert_eq!((&error["type"], &error["message"]), (&json!(kind), &json!(message)));
        assert!(error["code"].is_null() || error["code"].is_string(), "{error}");
    };
    let loaded = load(json!({"lora_name": "user01", "lora_path": "user01"}));
    assert_eq!(loaded.status, 200, "{}", loaded.text());
    assert_eq!(loaded.text(), "Success: LoRA adapter 'user01' added successfully.");
    let first = asked(&server, "user01");
    assert_eq!(first.0, alone(&made, "user01", 24));
    is(
        load(json!({"lora_name": "user01", "lora_path": "user01"})),
        400,
        "InvalidUserInput",
        "The lora adapter 'user01' has already been loaded. If you want to load the adapter in place, \
         set 'load_inplace' to True.",
    );
    let again = load(json!({"lora_name": "user01", "lora_path": "user02", "load_inplace": true}));
    assert_eq!(again.text(), "Success: LoRA adapter 'user01' added successfully.");
    assert_ne!(asked(&server, "user01").2, first.2);
    let new = load(json!({"lora_name": "user02", "lora_path": "user02", "load_inplace": true}));
    assert_eq!(new.text(), "Success: LoRA adapter 'user02' added successfully.");
    is(
        load(json!({"lora_name": "", "lora_path": "/x"})),
        400,
        "InvalidUserInput",
        "Both 'lora_name' and 'lora_path' must be provided.",
    );
    for base in ["tiny", "tiny/x", "/"] {
        is(
            load(json!({"lora_name": base, "lora_path": "user01"})),
            400,
            "InvalidUserInput",
            &format!("The lora adapter '{}' conflicts with a served base model.", base),
        );
    }
    let missing = load(json!({"lora_name": "x", "lora_path": "nowhere"})).error(404);
    assert_eq!(missing["type"], "NotFoundError");
    assert!(
        missing["message"].as_str().unwrap().contains("No adapter found for nowhere"),
        "{missing}"
    );
    assert_eq!(load(json!({"lora_name": "x"})).error(400)["type"], "BadRequestError");
    let removed = unload(json!({"lora_name": "user01"}));
    assert_eq!(removed.status, 200, "{}", removed.text());
    assert_eq!(removed.text(), "Success: LoRA adapter 'user01' removed successfully.");
    assert!(made.store().get("user01").is_err());
    is(
        unload(json!({"lora_name": "user01"})),
        404,
        "NotFoundError",
        "The lora adapter 'user01' cannot be found.",
    );
    assert_eq!(unload(json!({"lora_name": "fr"})).error(409)["code"], "has_children");
    // Whoever may not change anything is told what would let them.
    for path in ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"] {
        let body = json!({"lora_name": "user02", "lora_path": "user02"});
        assert_eq!(server.post(path, &body).error(403)["type"], "PermissionDeniedError");
        let closed = made.serve(options()).post(path, &body).error(403);
        assert!(closed["message"].as_str().unwrap().contains("--admin-token-file"), "{closed}");
    }
}

/// What hangs below a node may be another's: then it goes with it only by somebody who may change both.
#[test]
fn nobody_takes_away_what_is_another_s() {
    let made = Made::new(512).with_store(&[
        ("acme", "/", 1),
        ("acme/alice", "acme", 2),
        ("globex/deep", "acme/alice", 3),
    ]);
    let access = made.access(&[
        ("acme", "use = \"acme\"\nchange = \"acme\""),
        ("user", "use = \"acme\"\nchange = \"acme/alice\""),
    ]);
    let server = made.serve(ServerOptions { access, ..options() });
    for path in ["acme", "acme/alice"] {
        let path = format!("/v1/tree/nodes/{path}?recursive=true");
        server.ask_as("acme", "DELETE", &path, None).error(403);
    }
    server.ask_as("user", "DELETE", "/v1/tree/nodes/acme", None).error(403);
    let body = json!({"target": "globex/alice"});
    server.ask_as("acme", "POST", "/v1/tree/nodes/acme%2Falice/move", Some(&body)).error(403);
    let body = json!({"target": "acme/x"});
    server.ask_as("user", "POST", "/v1/tree/nodes/acme%2Falice/move", Some(&body)).error(403);
    let key = [("authorization", "Bearer user")];
    let form = multipart(&adapter(9), &[]);
    let answer = upload(&mut server.connect(), "/v1/tree/nodes/acme/bob", &key, &form);
    answer.error(403);
    upload(&mut server.connect(), "/v1/tree/nodes/acme/alice/x", &key, &form).of(201);
    assert_eq!(made.store().len().unwrap(), 4, "nothing else was made or taken");
    server.ask_as("user", "DELETE", "/v1/tree/nodes/acme/alice/x", None).of(200);
    server.ask_as(ADMIN, "DELETE", "/v1/tree/nodes/acme?recursive=true", None).of(200);
    assert!(made.store().is_empty().unwrap());
}

#[test]
fn an_adapter_that_is_none_is_refused_without_a_word_of_where_it_lay() {
    let made = made();
    let server = serve(&made);
    let module = |name: &str, out, input| vec![TinyModule::linear(name, out, input)];
    let q_proj = "model.layers.0.self_attn.q_proj";
    let not_finite = |value: f32| {
        let good = TinyAdapter::new(module(q_proj, 64, 64), 2, 1);
        let mut tensors = good.tensors();
        *tensors[1].2.last_mut().unwrap() = value;
        (good.config_bytes(), serialize(&tensors, good.dtype))
    };
    let files = |adapter: &TinyAdapter| (adapter.config_bytes(), adapter.tensor_bytes());
    let large = TinyAdapter { alpha: 1e6, ..TinyAdapter::new(module(q_proj, 64, 64), 2, 1) };
    let shape = TinyAdapter::new(module(q_proj, 32, 64), 2, 1);
    let unknown = TinyAdapter::new(module("model.layers.9.self_attn.q_proj", 64, 64), 2, 1);
    let setting =
        TinyAdapter::new(module(q_proj, 64, 64), 2, 1).with_config(json!({"use_qalora": true}));
    let cases = [
        ("NaN", not_finite(f32::NAN)),
        ("infinity", not_finite(f32::INFINITY)),
        ("it leaves the lattice", files(&large)),
        ("another shape", files(&shape)),
        ("a layer that is not there", files(&unknown)),
        ("an unknown setting", files(&setting)),
        ("no configuration", (b"[]".to_vec(), adapter(1).tensor_bytes())),
        ("nothing", (Vec::new(), Vec::new())),
    ];
    for (k, (what, (config, tensors))) in cases.iter().enumerate() {
        let folder = made.at("root").join(k.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("adapter_config.json"), config).unwrap();
        std::fs::write(folder.join("adapter_model.safetensors"), tensors).unwrap();
        let parts = [("adapter_config.json", &config[..]), ("adapter_model.safetensors", tensors)];
        let form = common::multipart_of(parts.into_iter());
        let (name, value) = admin();
        let path = "/v1/tree/nodes/fr/alice";
        let uploaded = upload(&mut server.connect(), path, &[(name, &value)], &form);
        let by_path = server.ask_as(ADMIN, "PUT", path, Some(&json!({"path": k.to_string()})));
        let body = json!({"lora_name": "new", "lora_path": k.to_string()});
        for answer in [uploaded, by_path, post(&server, "/v1/load_lora_adapter", &body)] {
            let error = answer.error(422);
            assert_eq!(error["code"], "invalid_lora_adapter", "{what}");
            let message = error["message"].as_str().unwrap();
            names_no_place(message, made.dir.path());
            assert!(message.len() > 20, "{what}: {message}");
        }
    }
    assert_eq!(server.get("/v1/models/new").status, 404);
    // Nothing of it was made, and it is as good as before.
    let version = made.store().get("fr/alice").unwrap().version;
    assert_eq!(asked(&server, "fr/alice").1, json!(version.generation));
    assert_eq!(version.generation, version.content_generation);
}

#[test]
fn a_request_ends_with_what_it_began_with() {
    let made = made();
    let server = serve(&made);
    let before = alone(&made, "fr/alice", 12_000);
    let first = made.store().get("fr/alice").unwrap().version.generation;
    let body = with(completion("fr/alice", 12_000, 5), &json!({"stream": true}));
    let mut old = server.connect();
    old.send(&common::request("POST", "/v1/completions", &[], Some(&body)));
    assert_eq!(old.head().unwrap().status, 200);
    let mut text = String::from_utf8(old.chunk().unwrap()).unwrap();
    let answer = put(&server, "fr/alice", 15, &[], &[]).of(200);
    let second = durable(&made, "fr/alice", &answer);
    let new = asked(&server, "fr/alice");
    assert_eq!(server.status()["requests"]["in_flight"], 1, "the first one still runs");
    assert_eq!((&new.1, &new.0), (&json!(second), &alone(&made, "fr/alice", 24)));
    // One at a node that is taken away runs on, too.
    delete(&server, "fr/alice").of(200);
    while let Some(chunk) = old.chunk().filter(|chunk| !chunk.is_empty()) {
        text += &String::from_utf8(chunk).unwrap();
    }
    let mut found = String::new();
    for event in common::events(&text).iter().filter(|event| *event != "[DONE]") {
        let event: Value = serde_json::from_str(event).unwrap();
        assert_eq!(
            (&event["node"], &event["node_generation"]),
            (&json!("fr/alice"), &json!(first))
        );
        assert_ne!(event["system_fingerprint"], new.2);
        found += event["choices"][0]["text"].as_str().unwrap();
    }
    assert_eq!(found, before);
}

#[test]
fn of_many_publishers_who_saw_one_generation_exactly_one_wins() {
    let made = made();
    let server = serve(&made);
    let mut busy = 0;
    for turn in 0..6 {
        // Of a node that is there, and of one that is not.
        let node = if turn % 2 == 0 { "fr/alice".to_owned() } else { format!("fr/new-{turn}") };
        let expected = made.store().get(&node).map_or(0, |node| node.version.generation);
        let results = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for publisher in 0..8u64 {
                let (server, node, results) = (&server, &node, &results);
                scope.spawn(move || {
                    let label = format!("{{\"by\":\"{publisher}\"}}");
                    let generation = expected.to_string();
                    let fields = [("labels", &label[..]), ("expected_generation", &generation)];
                    loop {
                        let answer = put(server, node, 100 + publisher, &fields, &[]);
                        results.lock().unwrap().push((publisher, answer.status, answer.text()));
                        if answer.status != 429 {
                            return;
                        }
                        assert_eq!(answer.error(429)["code"], "lora_load_busy");
                        assert_eq!(answer.header("retry-after"), Some("1"));
                        std::thread::sleep(Duration::from_millis(3));
                    }
                });
            }
        });
        let results = results.into_inner().unwrap();
        let mut counts = BTreeMap::<u16, usize>::new();
        results.iter().for_each(|(_, status, _)| *counts.entry(*status).or_default() += 1);
        busy += counts.remove(&429).unwrap_or_default();
        let won = if expected == 0 { 201 } else { 200 };
        assert_eq!(counts, BTreeMap::from([(won, 1), (409, 7)]), "{results:?}");
        let (winner, _, text) = results.iter().find(|(_, status, _)| *status == won).unwrap();
        let answer: Value = serde_json::from_str(text).unwrap();
        durable(&made, &node, &answer);
        assert_eq!(
            server.get(&format!("/v1/tree/nodes/{node}")).of(200)["labels"]["by"],
            winner.to_string()
        );
    }
    println!("{busy} were told to come again");
    assert_eq!(made.store().list("fr", None, 99).unwrap().len(), 6);
}

#[test]
fn a_folder_is_not_changed_and_strangers_change_nothing() {
    let made = Made::new(512).with_tree(&[("fr", 1)]);
    let server =
        made.serve(ServerOptions { access: Access::open().with_admin(ADMIN), ..options() });
    let answer = put(&server, "fr", 2, &[], &[]);
    assert_eq!(answer.error(409)["code"], "not_a_store");
    assert_eq!(delete(&server, "fr").error(409)["code"], "not_a_store");
    assert_eq!(server.get("/v1/tree/nodes/fr/history").error(409)["code"], "not_a_store");
    let body = json!({"lora_name": "x", "lora_path": "x"});
    post(&server, "/v1/load_lora_adapter", &body).error(409);
    let node = server.get("/v1/tree/nodes/fr").of(200);
    assert!(
        node["generation"].is_null() && node["kind"].is_null() && node["parent"] == "/",
        "{node}"
    );
    let made = self::made();
    for server in [serve(&made), made.serve(options())] {
        let form = multipart(&adapter(2), &[]);
        upload(&mut server.connect(), "/v1/tree/nodes/fr", &[], &form).error(403);
        server.connect().ask("DELETE", "/v1/tree/nodes/fr/alice", &[], None).error(403);
        let wrong = [("authorization", "Bearer the administrator")];
        server.connect().ask("DELETE", "/v1/tree/nodes/fr/alice", &wrong, None).error(403);
        let body = json!({"target": "x"});
        server.post("/v1/tree/nodes/fr%2Falice/move", &body).error(403);
        assert_eq!(server.get("/v1/status").of(200)["can_change"], false);
    }
    assert_eq!(made.store().len().unwrap(), 4);
}
