//! A server without bounds is as slow for everybody as its greediest client makes it, and one that
//! does not notice who has left works for nobody. Here every bound says so when it is reached, and
//! what was held is free again: places, pages, connections.

#[path = "common.rs"]
mod common;

use std::net::TcpStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{
    ADMIN, Connection, Made, Running, completion, engine, events, options, request, with,
};
use pleach_serve::{Bounds, ServerOptions};
use serde_json::{Value, json};

/// Positions of the context: a text of so many tokens takes seconds.
const LONG: usize = 30_000;

fn made() -> Made {
    Made::new(LONG).with_tree(&[("fr", 1), ("fr/alice", 2)])
}

/// A body whose text goes on and on.
fn endless(seed: u64) -> Value {
    with(completion("fr/alice", LONG - 100, seed), &json!({"stream": true}))
}

/// Sends a request and waits for nothing.
fn sent(server: &Running, path: &str, body: &Value) -> Connection {
    let mut connection = server.connect();
    connection.send(&request("POST", path, &[], Some(body)));
    connection
}

/// A stream of which the first chunk is there.
fn begun(server: &Running, body: &Value) -> Connection {
    let mut connection = sent(server, "/v1/completions", body);
    assert_eq!(connection.head().expect("an answer").status, 200);
    connection.chunk().expect("a chunk");
    connection
}

#[test]
fn a_full_queue_says_so_until_somebody_leaves() {
    let made = made();
    let server = made.serve(ServerOptions { engine: engine(4096, 1, 1), ..options() });
    let runs = begun(&server, &endless(1));
    let waits = sent(&server, "/v1/completions", &endless(2));
    server.wait_for("two in flight", |status| status["requests"]["in_flight"] == 2);
    for stream in [false, true] {
        let body = with(completion("fr", 2, 3), &json!({ "stream": stream }));
        let answer = server.post("/v1/completions", &body);
        let error = answer.error(429);
        assert_eq!(
            (&error["type"], &error["code"]),
            (&json!("RateLimitError"), &json!("queue_full"))
        );
        let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((1..60).contains(&seconds), "{seconds}");
    }
    assert_eq!(server.status()["requests"]["refused"], 2);
    // The one that waits gets no answer before its turn; it leaves, then the one that runs.
    drop(waits);
    server.wait_for("one in flight", |status| status["requests"]["in_flight"] == 1);
    // Its place is free once the engine, which looks between steps, has heard of it.
    let steps = |status: &serde_json::Value| status["steps"].as_u64().unwrap();
    let before = steps(&server.status());
    server.wait_for("two steps later", |status| steps(status) > before + 1);
    let mut next = sent(&server, "/v1/completions", &completion("fr", 2, 3));
    server.wait_for("two in flight", |status| status["requests"]["in_flight"] == 2);
    drop(runs);
    next.response().of(200);
    server.wait_until_idle();
}

#[test]
fn a_key_has_so_many_requests_and_tokens_a_minute() {
    let made = made();
    let access = made.access(&[
        ("three", "use = \"/\"\nrequests_per_minute = 3"),
        ("tokens", "use = \"/\"\ntokens_per_minute = 60"),
        ("free", "use = \"/\""),
    ]);
    let server = made.serve(ServerOptions { access, ..options() });
    let ask = |key: &str, max_tokens: usize| {
        let body = completion("fr", max_tokens, 1);
        server.ask_as(key, "POST", "/v1/completions", Some(&body))
    };
    let limited = |key: &str, most: u64| {
        let answer = ask(key, 1);
        let error = answer.error(429);
        assert_eq!(error["code"], "rate_limit_exceeded");
        let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=most).contains(&seconds), "{key}: {seconds} s");
    };
    for _ in 0..3 {
        ask("three", 1).of(200);
    }
    // The next one comes within a third of a minute.
    limited("three", 20);
    limited("three", 20);
    // The prompt counts, too, and what is beyond is owed.
    ask("tokens", 50).of(200);
    ask("tokens", 50).of(200);
    limited("tokens", 60);
    // A limit is its key's own, and for texts alone.
    ask("free", 50).of(200);
    server.ask_as("three", "GET", "/v1/models", None).of(200);
    server.ask_as("tokens", "GET", "/v1/status", None).of(200);
}

#[test]
fn whoever_leaves_frees_what_their_request_held() {
    let made = made();
    let server = made.serve(ServerOptions { engine: engine(4096, 4, 64), ..options() });
    let mut left = 0;
    for turn in 0..6u64 {
        // Some are in the middle of a stream, some wait for a whole text, some for their turn.
        let streams: Vec<_> = (0..3).map(|k| begun(&server, &endless(10 * turn + k))).collect();
        let whole = with(endless(turn), &json!({"stream": false}));
        let chat = json!({"model": "fr", "messages": [{"role": "user", "content": "x"}], "n": 3,
            "ignore_eos": true, "stream": turn % 2 == 0});
        let others = [
            sent(&server, "/v1/completions", &whole),
            sent(&server, "/v1/chat/completions", &chat),
            sent(&server, "/v1/completions", &endless(99)),
        ];
        server.wait_for("eight in flight", |status| status["requests"]["in_flight"] == 8);
        left += 8;
        drop((streams, others));
        let status = server.wait_until_idle();
        assert_eq!(status["requests"]["cancelled"], left, "{status}");
        assert_eq!(status["active"], json!([]));
    }
    assert_eq!(server.ask_as(ADMIN, "GET", "/load", None).of(200)["server_load"], 0);
    server.post("/v1/completions", &completion("fr/alice", 5, 1)).of(200);
    let metrics = server.get("/metrics").text();
    let aborted = format!("vllm:request_success_total{{finished_reason=\"abort\"}} {left}\n");
    assert!(metrics.contains(&aborted), "{metrics}");
    let lines = server.lines.lock().unwrap();
    let broken = lines.iter().filter(|line| line.path.starts_with("/v1/c") && !line.is_complete);
    assert!(broken.count() >= 18, "the log says who left");
}

#[test]
fn a_request_takes_no_longer_than_it_may() {
    let made = made();
    let bounds = Bounds { request_wait: Duration::from_millis(500), ..options().bounds };
    let server = made.serve(ServerOptions { bounds, ..options() });
    let start = Instant::now();
    // One's own deadline may be shorter, not longer.
    for own in [50, 60_000] {
        let fields = json!({"stream": false, "deadline_ms": own});
        let error = server.post("/v1/completions", &with(endless(1), &fields)).error(408);
        assert_eq!(error["type"], "RequestTimeoutError");
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    // In a stream that has begun it is the last word before the end.
    let stream = server.post("/v1/completions", &endless(2));
    let said = events(&stream.text());
    let [.., error, done] = &said[..] else { panic!("{said:?}") };
    let error: Value = serde_json::from_str(error).unwrap();
    assert_eq!((&error["error"]["type"], &done[..]), (&json!("RequestTimeoutError"), "[DONE]"));
    server.wait_until_idle();
}

#[test]
fn no_more_connections_are_served_than_may_be() {
    let made = made();
    let bounds = Bounds { connections: 2, ..options().bounds };
    let server = made.serve(ServerOptions { bounds, ..options() });
    let mut first = server.connect();
    let mut second = server.connect();
    for connection in [&mut first, &mut second] {
        assert_eq!(connection.ask("GET", "/version", &[], None).status, 200);
    }
    let mut third = server.connect();
    third.send(&request("GET", "/version", &[], None));
    third.stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut byte = [0];
    assert!(third.stream.peek(&mut byte).is_err(), "it is served beside the two");
    third.stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
    drop(first);
    assert_eq!(third.response().status, 200);
}

#[test]
fn a_server_that_is_told_to_stop_finishes_what_runs_and_takes_nothing_new() {
    let made = made();
    let bounds = Bounds { drain_wait: Duration::from_secs(60), ..options().bounds };
    let mut server = made.serve(ServerOptions { bounds, ..options() });
    let whole = server.post("/v1/completions", &completion("fr/alice", 6000, 4)).of(200);
    let stream = with(completion("fr/alice", 6000, 4), &json!({"stream": true}));
    let mut runs = begun(&server, &stream);
    let mut kept = server.connect();
    assert_eq!(kept.ask("GET", "/ready", &[], None).status, 200);
    // Those whose heads are on their way.
    let late = |bytes: &[u8]| {
        let (first, rest) = bytes.split_at(10);
        let mut connection = server.connect();
        connection.send(first);
        (connection, rest.to_vec())
    };
    let ready = late(&request("GET", "/ready", &[], None));
    let health = late(&request("GET", "/health", &[], None));
    let text = late(&request("POST", "/v1/completions", &[], Some(&completion("fr", 2, 1))));
    std::thread::sleep(Duration::from_millis(100));
    server.tell_to_stop();
    let start = Instant::now();
    while TcpStream::connect(server.address).is_ok() {
        assert!(start.elapsed() < common::PATIENCE, "it still takes connections");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(kept.is_ended(), "nobody asks any more");
    for (name, (mut connection, rest), status) in
        [("ready", ready, 503), ("text", text, 503), ("health", health, 200)]
    {
        connection.send(&rest);
        let answer = connection.response();
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
        if status == 503 {
            assert_eq!(answer.error(503)["type"], "ServiceUnavailableError");
            assert!(answer.header("retry-after").is_some());
        }
        assert!(connection.is_ended(), "{name}");
    }
    // The first chunk was read before; so its text is the end of the whole.
    let mut rest = String::new();
    while let Some(chunk) = runs.chunk().filter(|chunk| !chunk.is_empty()) {
        rest += &String::from_utf8(chunk).unwrap();
    }
    let events = events(&rest);
    assert_eq!(events.last().unwrap(), "[DONE]");
    let text: String = events[..events.len() - 1]
        .iter()
        .map(|event| serde_json::from_str::<Value>(event).unwrap())
        .map(|event| event["choices"][0]["text"].as_str().unwrap().to_owned())
        .collect();
    assert!(text.len() > 1000 && whole["choices"][0]["text"].as_str().unwrap().ends_with(&text));
    server.wait();
}

#[test]
fn a_server_that_is_told_to_stop_does_not_wait_for_ever() {
    let made = made();
    let bounds = Bounds { drain_wait: Duration::from_millis(300), ..options().bounds };
    let mut server =
        made.serve(ServerOptions { bounds, engine: engine(8192, 32, 99), ..options() });
    let streams: Vec<_> = (0..3).map(|seed| begun(&server, &endless(seed))).collect();
    let start = Instant::now();
    server.tell_to_stop();
    let (told, ended) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            server.wait();
            told.send(start.elapsed()).unwrap();
        });
        let time = ended.recv_timeout(common::PATIENCE).expect("it ends");
        assert!(time >= Duration::from_millis(300), "{time:?}");
        assert!(time < Duration::from_secs(10), "{time:?}");
    });
    for mut stream in streams {
        // They break off, or are told.
        while let Some(chunk) = stream.chunk().filter(|chunk| !chunk.is_empty()) {
            assert!(!String::from_utf8_lossy(&chunk).contains("\"finish_reason\":\"length\""));
        }
    }
}

/// Whoever writes the log may fail: that costs one connection at most.
#[test]
fn a_panic_is_one_request_s_own() {
    let made = made();
    let log = |line: &pleach_serve::LogLine| assert!(line.path != "/version", "a panic on purpose");
    let server = made.serve(ServerOptions { log: Some(Box::new(log)), ..options() });
    for _ in 0..3 {
        let mut connection = server.connect();
        connection.send(&request("GET", "/version", &[], None));
        while connection.next_response().is_some() {
            connection.send_no_more();
        }
        server.post("/v1/completions", &completion("fr", 2, 1)).of(200);
    }
    let runs = begun(&server, &endless(1));
    drop(runs);
    server.wait_until_idle();
}
