//! Servers of several tenants have told one of another: by a list, by a hint in an error, by a 403 in
//! place of a 404, by a path that climbs out of its folder. Here every route is asked for what is
//! another's, and answers as if it were not there.

#[path = "common.rs"]
mod common;

use common::{
    ADMIN, BASE, Made, Response, Running, adapter, completion, multipart_of, options, request,
    upload, with,
};
use pleach::{Runtime, StalePolicy};
use pleach_serve::{Bounds, ServerOptions};
use serde_json::{Value, json};

/// Keys for `acme` and `globex`, both of which stand under one node, and for everything.
fn tenants() -> (Made, Running) {
    let made = Made::new(512).with_store(&[
        ("shared", "/", 1),
        ("acme", "shared", 2),
        ("acme/alice", "acme", 3),
        ("globex", "shared", 4),
        ("globex/alice", "globex", 5),
        ("globex/below-acme", "acme", 6),
    ]);
    let access = made.access(&[
        ("acme", "use = \"acme\"\nchange = \"acme\""),
        ("reader", "use = [\"acme\", \"shared\"]"),
        ("all", "use = \"/\""),
    ]);
    std::fs::create_dir(made.at("root")).unwrap();
    let adapter_root = Some(made.at("root"));
    let bounds = Bounds { upload_bytes: 1 << 20, ..options().bounds };
    let server = made.serve(ServerOptions { access, adapter_root, bounds, ..options() });
    (made, server)
}

/// Status, headers and body of an answer, with the name that was asked for left out.
fn shape(answer: &Response, asked: &str) -> (u16, Vec<(String, String)>, String) {
    let text = answer.text().replace(asked, "NAME").replace(&asked.replace('/', "%2F"), "NAME");
    let told = ["x-request-id", "date", "content-length"];
    let headers = answer.headers.iter().filter(|(name, _)| !told.contains(&&name[..])).cloned();
    (answer.status, headers.collect(), text)
}

#[test]
fn what_is_another_s_is_as_if_it_were_not_there() {
    let (_made, server) = tenants();
    // A node of another tenant, one that is not there, and one that cannot be.
    let (theirs, none) = ("globex/alice", "globex/nobdy");
    let place = |name: &str| name.replace('/', "%2F");
    type Ask = Box<dyn Fn(&str) -> (&'static str, String, Option<Value>)>;
    let asks: Vec<Ask> = vec![
        Box::new(move |name| ("GET", format!("/v1/models/{name}"), None)),
        Box::new(move |name| ("GET", format!("/v1/models/{}", place(name)), None)),
        Box::new(move |name| ("GET", format!("/v1/models?parent={}", place(name)), None)),
        Box::new(move |name| ("POST", "/v1/completions".into(), Some(completion(name, 2, 1)))),
        Box::new(move |name| {
            let streamed = with(completion(name, 2, 1), &json!({"stream": true}));
            ("POST", "/v1/completions".into(), Some(streamed))
        }),
        Box::new(move |name| {
            let turns = json!([{"role": "user", "content": "x"}]);
            ("POST", "/v1/chat/completions".into(), Some(json!({"model": name, "messages": turns})))
        }),
        Box::new(move |name| {
            let named = format!("{BASE}:{name}");
            ("POST", "/v1/completions".into(), Some(completion(&named, 2, 1)))
        }),
        Box::new(move |name| {
            ("POST", "/tokenize".into(), Some(json!({"model": name, "prompt": "x"})))
        }),
        Box::new(move |name| {
            ("POST", "/detokenize".into(), Some(json!({"model": name, "tokens": [3]})))
        }),
        Box::new(move |name| ("GET", format!("/v1/tree/nodes/{name}"), None)),
        Box::new(move |name| ("GET", format!("/v1/tree/nodes/{}", place(name)), None)),
        Box::new(move |name| ("GET", format!("/v1/tree/nodes/{name}/children"), None)),
        Box::new(move |name| ("GET", format!("/v1/tree/nodes/{name}/history"), None)),
        Box::new(move |name| ("PUT", format!("/v1/tree/nodes/{name}"), Some(json!({"path": "x"})))),
        Box::new(move |name| ("DELETE", format!("/v1/tree/nodes/{name}"), None)),
        Box::new(move |name| ("DELETE", format!("/v1/tree/nodes/{name}?recursive=true"), None)),
        Box::new(move |name| {
            ("POST", format!("/v1/tree/nodes/{name}/move"), Some(json!({"target": "acme/x"})))
        }),
        Box::new(move |name| {
            ("POST", format!("/v1/tree/nodes/{name}/rollback"), Some(json!({"generation": 1})))
        }),
        Box::new(move |name| {
            ("POST", "/v1/tree/nodes/acme%2Falice/move".into(), Some(json!({"target": name})))
        }),
        Box::new(move |name| {
            let body = json!({"path": "nowhere", "parent": name});
            ("PUT", "/v1/tree/nodes/acme/new".into(), Some(body))
        }),
        Box::new(move |name| {
            let body = json!({"lora_name": name, "lora_path": "nowhere"});
            ("POST", "/v1/load_lora_adapter".into(), Some(body))
        }),
        Box::new(move |name| {
            ("POST", "/v1/unload_lora_adapter".into(), Some(json!({"lora_name": name})))
        }),
    ];
    assert!(asks.len() > 20);
    for key in ["acme", "reader"] {
        for ask in &asks {
            let answers = [theirs, none].map(|name| {
                let (method, path, body) = ask(name);
                let answer = server.ask_as(key, method, &path, body.as_ref());
                (format!("{method} {path}"), shape(&answer, name))
            });
            let [(what, theirs), (_, none)] = answers;
            assert_eq!(theirs, none, "{key}: {what}");
            assert!((400..500).contains(&theirs.0), "{key}: {what}: {}", theirs.0);
        }
    }
    // Nothing came of it.
    server.ask_as("all", "GET", "/v1/models/globex/alice", None).of(200);
    server.ask_as("acme", "GET", "/v1/models/acme/alice", None).of(200);
}

/// Nothing that a key is told names a node outside its subtrees, however it asks for its own.
#[test]
fn no_answer_names_what_its_key_does_not_open() {
    let (_made, server) = tenants();
    let asks: Vec<(&str, &str, Option<Value>)> = vec![
        ("GET", "/v1/models", None),
        ("GET", "/v1/models?parent=acme", None),
        ("GET", "/v1/models?parent=shared", None),
        ("GET", "/v1/models?parent=shared&limit=1", None),
        ("GET", "/v1/models/acme", None),
        ("GET", "/v1/models/acme/alise", None),
        ("GET", "/v1/models/lobex/alice", None),
        ("GET", "/v1/tree/children", None),
        ("GET", "/v1/tree/nodes/acme", None),
        ("GET", "/v1/tree/nodes/acme/children", None),
        ("GET", "/v1/tree/nodes/acme/children?limit=1", None),
        ("GET", "/v1/tree/nodes/acme/history", None),
        ("GET", "/v1/tree/nodes/acme/below-acme", None),
        ("GET", "/v1/status", None),
        ("GET", "/metrics", None),
        ("POST", "/v1/completions", Some(completion("acme/below-acme", 2, 1))),
        ("POST", "/v1/completions", Some(completion("acme/alice", 2, 1))),
        ("DELETE", "/v1/tree/nodes/acme/below-acme", None),
        ("DELETE", "/v1/tree/nodes/acme", None),
        ("DELETE", "/v1/tree/nodes/acme?recursive=true", None),
        ("POST", "/v1/tree/nodes/acme%2Fbelow-acme/move", Some(json!({"target": "acme/x"}))),
        ("POST", "/v1/tree/nodes/acme%2Fbelow-acme/rollback", Some(json!({"generation": 1}))),
        ("POST", "/v1/tree/nodes/acme%2Falice/rollback", Some(json!({"generation": 1}))),
        ("POST", "/v1/unload_lora_adapter", Some(json!({"lora_name": "acme/below-acme"}))),
        ("POST", "/v1/unload_lora_adapter", Some(json!({"lora_name": "acme"}))),
    ];
    // Somebody else's text, so that the weights have been there.
    server
        .ask_as("all", "POST", "/v1/completions", Some(&completion("globex/alice", 9, 1)))
        .of(200);
    let mut findings = Vec::new();
    for key in ["acme", "reader"] {
        for (method, path, body) in &asks {
            let answer = server.ask_as(key, method, path, body.as_ref());
            let text = answer.text().replace("lobex/alice`", "");
            if text.contains("globex")
                || (key == "acme" && text.replace("-shared", "").contains("\"shared"))
            {
                findings.push(format!(
                    "{key} {method} {path}: {} {}",
                    answer.status,
                    answer.text()
                ));
            }
        }
    }
    assert!(findings.is_empty(), "{}", findings.join("\n"));
    // A list that leaves some out does not say that there are more.
    let page =
        server.ask_as("reader", "GET", "/v1/tree/nodes/shared/children?limit=1", None).of(200);
    let names: Vec<_> =
        page["children"].as_array().unwrap().iter().map(|c| c["node"].clone()).collect();
    assert_eq!((names, &page["has_more"]), (vec![json!("acme")], &json!(false)));
    // Nor a node whose children are all others'.
    server.ask_as("acme", "DELETE", "/v1/tree/nodes/acme/alice", None).of(200);
    for path in ["/v1/tree/nodes/acme", "/v1/tree/nodes/acme?recursive=true"] {
        let answer = server.ask_as("acme", "DELETE", path, None);
        assert!([403, 409].contains(&answer.status), "{path}: {}", answer.status);
        assert!(!answer.text().contains("globex"), "{path}: {}", answer.text());
    }
    let node = server.ask_as("acme", "GET", "/v1/tree/nodes/acme", None).of(200);
    let model = server.ask_as("acme", "GET", "/v1/models/acme", None).of(200);
    assert_eq!((&node["has_children"], &model["children"]), (&json!(false), &json!(false)));
    let all = server.ask_as("all", "GET", "/v1/tree/nodes/acme", None).of(200);
    assert_eq!(all["has_children"], true);
}

/// A node whose parent was replaced is refused where the server was told so, and the refusal is the
/// key's alone to understand.
#[test]
fn a_stale_node_s_refusal_names_nobody_above_it() {
    let (made, _) = tenants();
    let access = made.access(&[("alice", "use = \"acme/alice\""), ("all", "use = \"/\"")]);
    let builder = Runtime::builder().base(made.at("base")).nodes(made.store());
    let runtime = builder.stale_policy(StalePolicy::Refuse).open().unwrap();
    let server = Running::start(runtime, ServerOptions { access, ..options() });
    let body = completion("acme/alice", 2, 1);
    server.ask_as("alice", "POST", "/v1/completions", Some(&body)).of(200);
    let form = multipart_of(adapter_parts(9).iter().map(|(name, bytes)| (&name[..], &bytes[..])));
    let admin = format!("Bearer {ADMIN}");
    let headers = [("authorization", &admin[..])];
    upload(&mut server.connect(), "/v1/tree/nodes/acme", &headers, &form).of(200);
    let theirs = server.ask_as("alice", "POST", "/v1/completions", Some(&body)).error(409);
    let message = theirs["message"].as_str().unwrap().replace("acme/alice", "");
    assert!(!message.contains("acme") && !message.contains("shared"), "{message}");
    let all = server.ask_as("all", "POST", "/v1/completions", Some(&body)).error(409);
    assert!(all["message"].as_str().unwrap().contains("acme, which now has content"), "{all}");
    assert_eq!((&all["param"], &theirs["param"]), (&json!("model"), &json!("model")));
}

/// The files of an adapter.
fn adapter_parts(seed: u64) -> [(String, Vec<u8>); 2] {
    let adapter = adapter(seed);
    let names = ["adapter_config.json", "adapter_model.safetensors"].map(str::to_owned);
    let [config, tensors] = names;
    [(config, adapter.config_bytes()), (tensors, adapter.tensor_bytes())]
}

#[test]
fn without_a_key_nothing_but_the_public_is_told() {
    let (_made, server) = tenants();
    let body = completion("acme", 1, 1);
    let page = ["/", "/page/page.css", "/page/main.js", "/page/try.js"];
    let open = ["/health", "/ping", "/ready", "/version", "/openapi.json"];
    for path in page.into_iter().chain(open) {
        let answer = server.get(path);
        assert_eq!(answer.status, 200, "{path}");
        let text = answer.text();
        assert!(
            !["acme", "globex", BASE].iter().any(|name| text.contains(&format!("\"{name}"))),
            "{path}"
        );
    }
    let closed = [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/acme"),
        ("GET", "/v1/status"),
        ("GET", "/metrics"),
        ("GET", "/load"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/unload_lora_adapter"),
        ("GET", "/v1/tree/children"),
        ("GET", "/v1/tree/nodes/acme"),
        ("PUT", "/v1/tree/nodes/acme"),
        ("DELETE", "/v1/tree/nodes/acme"),
        ("POST", "/v1/tree/nodes/acme/move"),
        ("GET", "/nowhere"),
        ("TRACE", "/v1/models"),
        ("GET", "//"),
        ("GET", "/health/"),
        ("GET", "/page/main.js/x"),
        ("GET", "/page/page.html"),
        ("GET", "/%2fhealth"),
    ];
    let authorizations: [Option<&str>; 9] = [
        None,
        Some(""),
        Some("Bearer"),
        Some("Bearer "),
        Some("Bearer acme2"),
        Some("Basic acme"),
        Some("acme"),
        Some("Bearer acme,all"),
        Some("Bearer ACME"),
    ];
    for (method, path) in closed {
        for authorization in authorizations {
            let header = authorization.map(|value| ("authorization", value));
            let headers: Vec<_> = header.into_iter().collect();
            let body = (method == "POST").then_some(&body);
            let answer = server.connect().ask(method, path, &headers, body);
            let error = answer.error(401);
            assert_eq!(error["type"], "AuthenticationError", "{method} {path} {authorization:?}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
    }
    // Two of them: the first counts, and says who it is.
    let two = [("authorization", "Bearer wrong"), ("authorization", "Bearer all")];
    assert_eq!(server.connect().ask("GET", "/v1/models", &two, None).status, 401);
    for token in ["acme", "reader", "all"] {
        let answer =
            server.ask_as(token, "PUT", "/v1/tree/nodes/globex", Some(&json!({"path": "x"})));
        assert_eq!(answer.error(403)["type"], "PermissionDeniedError");
    }
    // What the key's file says is not to be had as a token.
    let hash = blake3::hash(b"all").to_hex().to_string();
    assert_eq!(server.ask_as(&hash, "GET", "/v1/models", None).status, 401);
}

#[test]
fn adapters_are_read_below_their_root_alone() {
    let (made, server) = tenants();
    adapter(7).write(&made.at("root/good")).unwrap();
    adapter(7).write(&made.at("outside")).unwrap();
    let link = |target: &str, at: &str| {
        std::os::unix::fs::symlink(made.at(target), made.at(at)).unwrap();
    };
    link("outside", "root/link");
    std::fs::create_dir(made.at("empty")).unwrap();
    link("empty", "root/nothing");
    link(".", "root/up");
    link("root/good", "root/inside");
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        adapter(7).write(&made.at(&format!("root/{file}"))).unwrap();
        std::fs::remove_file(made.at(&format!("root/{file}/{file}"))).unwrap();
        link(&format!("outside/{file}"), &format!("root/{file}/{file}"));
    }
    let outside = made.at("outside").display().to_string();
    let forbidden = [
        "..",
        "../outside",
        "good/../../outside",
        "./../outside",
        &outside,
        "/etc",
        "/",
        "//etc",
        "link",
        "nothing",
        "up/outside",
        "adapter_config.json",
        "adapter_model.safetensors",
    ];
    let publish = |node: &str, path: &str| {
        let place = format!("/v1/tree/nodes/{node}");
        server.ask_as(ADMIN, "PUT", &place, Some(&json!({ "path": path })))
    };
    for path in forbidden {
        let answer = publish("acme/new", path);
        let error = answer.error(403);
        assert_eq!(error["code"], "adapter_path_forbidden", "{path}");
        common::names_no_place(&answer.text().replace(path, ""), made.dir.path());
        let body = json!({"lora_name": "acme/new", "lora_path": path});
        let answer = server.ask_as(ADMIN, "POST", "/v1/load_lora_adapter", Some(&body));
        assert_eq!(answer.error(403)["code"], "adapter_path_forbidden", "{path}");
    }
    for path in ["nowhere", "good/nowhere", "x\0y", "good\0", &"x".repeat(5000), "~", "file://good"]
    {
        let answer = publish("acme/new", path);
        assert_eq!(answer.status, 404, "{path:.20}: {}", answer.text());
        common::names_no_place(&answer.text(), made.dir.path());
    }
    for path in ["up/..", "good/adapter_config.json"] {
        let answer = publish("acme/new", path);
        assert!([403, 404, 422].contains(&answer.status), "{path}: {}", answer.text());
        common::names_no_place(&answer.text(), made.dir.path());
    }
    assert_eq!(server.ask_as(ADMIN, "GET", "/v1/models/acme/new", None).status, 404);
    publish("acme/new", "good").of(201);
    publish("acme/inside", "inside").of(201);
    let absolute = made.at("root").canonicalize().unwrap().join("good").display().to_string();
    publish("acme/absolute", &absolute).of(201);
}

/// The status of what is answered to bytes behind which the client sends no more.
fn cut(server: &Running, bytes: &[u8]) -> u16 {
    let mut connection = server.connect();
    connection.send(bytes);
    connection.send_no_more();
    connection.response().status
}

#[test]
fn uploads_that_are_none_are_refused() {
    let (made, server) = tenants();
    let (config, tensors) = (adapter(7).config_bytes(), adapter(7).tensor_bytes());
    let [first, second] = ["adapter_config.json", "adapter_model.safetensors"];
    let good = [(first, &config[..]), (second, &tensors[..])];
    let key = [("authorization", "Bearer acme")];
    type Part<'a> = (&'a str, &'a [u8]);
    let put = |name: &str, parts: &[Part<'_>]| {
        let form = multipart_of(parts.iter().copied());
        upload(&mut server.connect(), &format!("/v1/tree/nodes/{name}"), &key, &form)
    };
    let huge = vec![0; 1 << 20];
    let long = vec![b'1'; 70_000];
    let cases: Vec<(&str, Vec<Part<'_>>, u16)> = vec![
        ("nothing", vec![], 400),
        ("one file", vec![good[0]], 400),
        ("the other", vec![good[1]], 400),
        ("one twice", vec![good[0], good[0], good[1]], 400),
        ("a third file", vec![good[0], good[1], ("adapter_model.bin", b"x")], 400),
        ("a path", vec![good[0], ("../adapter_model.safetensors", &tensors)], 400),
        ("an unknown field", vec![good[0], good[1], ("base", b"x")], 400),
        ("no name", vec![good[0], good[1], ("", b"x")], 400),
        ("no generation", vec![good[0], good[1], ("expected_generation", b"x")], 400),
        ("a negative one", vec![good[0], good[1], ("expected_generation", b"-1")], 400),
        ("a long one", vec![good[0], good[1], ("expected_generation", &long)], 413),
        ("no UTF-8", vec![good[0], good[1], ("parent", b"\xff")], 400),
        ("labels of numbers", vec![good[0], good[1], ("labels", b"{\"a\":1}")], 400),
        ("labels of nothing", vec![good[0], good[1], ("labels", b"")], 400),
        ("no parent of theirs", vec![good[0], good[1], ("parent", b"globex")], 400),
        ("trained on the future", vec![good[0], good[1], ("trained_on", b"999")], 400),
        ("huge", vec![good[0], (second, &huge)], 413),
        ("a pickle", vec![good[0], (second, b"\x80\x02}q\x00.")], 422),
        ("an empty file", vec![good[0], (second, b"")], 422),
        ("no JSON", vec![(first, b"{"), good[1]], 422),
        ("half a file", vec![good[0], (second, &tensors[..tensors.len() / 2])], 422),
    ];
    for (what, parts, status) in &cases {
        let answer = put("acme/new", parts);
        assert_eq!(answer.status, *status, "{what}: {}", answer.text());
        common::names_no_place(&answer.text(), made.dir.path());
    }
    for (name, status) in [
        ("acme/..", 400),
        ("acme/.x", 400),
        ("acme/a%00b", 400),
        ("acme/%ff", 400),
        ("globex/x", 403),
        ("shared", 403),
        ("acmeo", 403),
        (BASE, 403),
        ("acme%2F..%2Fglobex", 400),
    ] {
        let answer = put(name, &good);
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
    }
    // A boundary that never comes, none at all, and a body that breaks off.
    for kind in [
        "multipart/form-data; boundary=never",
        "multipart/form-data",
        "multipart/form-data; boundary=",
    ] {
        let (_, body) = multipart_of(good.into_iter());
        let answer =
            upload(&mut server.connect(), "/v1/tree/nodes/acme/new", &key, &(kind.into(), body));
        assert_eq!(answer.status, 400, "{kind}: {}", answer.text());
    }
    let (kind, body) = multipart_of(good.into_iter());
    let mut bytes = request(
        "PUT",
        "/v1/tree/nodes/acme/new",
        &[("content-type", &kind), ("content-length", &(body.len() + 9).to_string()), key[0]],
        None,
    );
    bytes.extend(body);
    assert_eq!(cut(&server, &bytes[..bytes.len() - 40]), 400);
    assert_eq!(server.ask_as("acme", "GET", "/v1/models/acme/new", None).status, 404);
    put("acme/new", &good).of(201);
    // Of what was refused nothing is left lying about, and nobody holds leave to publish.
    for _ in 0..4 {
        put("acme/new", &good).of(200);
    }
}
