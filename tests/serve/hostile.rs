//! What strangers send to a server's port: bodies that end early or never, heads that two servers read
//! as two different requests, names that climb out of a folder, and the names of others. Each has its
//! answer here, and behind all of them the server still serves.

#[path = "common.rs"]
mod common;

use std::io::Read;
use std::time::{Duration, Instant};

use common::{Connection, Made, Running, completion, options, request, with};
use pleach_serve::{Bounds, ServerOptions};
use serde_json::json;

/// What comes back to some bytes: the statuses of all answers until the connection ends. A client
/// that sends no more before it has its answer has left, as far as the server can tell: so that is
/// said behind `count` answers.
fn statuses(server: &Running, bytes: &[u8], count: usize) -> Vec<u16> {
    let mut connection = server.connect();
    connection.send(bytes);
    let mut found = Vec::new();
    while found.len() < count {
        match connection.next_response() {
            Some(answer) => found.push(answer.status),
            None => return found,
        }
    }
    connection.send_no_more();
    found.extend(std::iter::from_fn(|| connection.next_response()).map(|answer| answer.status));
    found
}

fn post(path: &str, kind: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

fn completions(body: &[u8]) -> Vec<u8> {
    post("/v1/completions", "application/json", body)
}

fn server(made: &Made) -> Running {
    let bounds = Bounds { body_bytes: 1 << 20, upload_bytes: 1 << 20, ..options().bounds };
    made.serve(ServerOptions { bounds, ..options() })
}

/// Sends each and compares: all that are answered otherwise are told at once. What is `cut` ends with
/// the connection.
fn check(server: &Running, cases: &[(String, Vec<u8>, &[u16])]) {
    let mut findings = Vec::new();
    for (name, bytes, expected) in cases {
        let is_cut = name.starts_with("cut: ");
        let found = statuses(server, bytes, if is_cut { 0 } else { expected.len() });
        if found != *expected {
            findings.push(format!("{name}: {found:?}, not {expected:?}"));
        }
    }
    assert!(findings.is_empty(), "{}", findings.join("\n"));
    server.post("/v1/completions", &completion("fr/alice", 3, 1)).of(200);
    server.wait_until_idle();
}

#[test]
fn bodies_that_are_none_are_refused_and_harm_nobody() {
    let made = Made::new(512).with_tree(&[("fr", 1), ("fr/alice", 2)]);
    let server = server(&made);
    let mut cases: Vec<(String, Vec<u8>, &[u16])> = Vec::new();
    let deep = |depth: usize| format!("{{\"prompt\":{}1{}}}", "[".repeat(depth), "]".repeat(depth));
    let objects = |depth| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    let long_name = format!("{{\"{}\":1,\"prompt\":\"x\"}}", "n".repeat(900_000));
    let good = "{\"model\":\"fr\",\"prompt\":\"x\",\"max_tokens\":1}";
    let bodies: [(&str, &[u8], u16); 37] = [
        ("empty", b"", 400),
        ("blank", b"  \r\n\t ", 400),
        ("null", b"null", 400),
        ("a number", b"1e5", 400),
        ("a text", b"\"prompt\"", 400),
        ("a list", b"[{\"prompt\":\"x\"}]", 400),
        ("cut", b"{\"prompt\":\"x\"", 400),
        ("cut in a text", b"{\"prompt\":\"x", 400),
        ("cut in an escape", b"{\"prompt\":\"\\u00", 400),
        ("half of a pair", b"{\"prompt\":\"\\ud800\"}", 400),
        ("the other half", b"{\"prompt\":\"\\udc00\"}", 400),
        ("two documents", b"{\"prompt\":\"x\"}{\"prompt\":\"x\"}", 400),
        ("a tail", b"{\"prompt\":\"x\"} x", 400),
        ("a comma", b"{\"prompt\":\"x\",}", 400),
        ("a comment", b"{\"prompt\":\"x\"/**/}", 400),
        ("single quotes", b"{'prompt':'x'}", 400),
        ("NaN", b"{\"prompt\":\"x\",\"temperature\":NaN}", 400),
        ("Infinity", b"{\"prompt\":\"x\",\"temperature\":Infinity}", 400),
        ("minus Infinity", b"{\"prompt\":\"x\",\"top_p\":-Infinity}", 400),
        ("1e999", b"{\"prompt\":\"x\",\"temperature\":1e999}", 400),
        ("1e39, no f32", b"{\"prompt\":\"x\",\"temperature\":1e39}", 400),
        ("-1e999", b"{\"prompt\":\"x\",\"min_p\":-1e999}", 400),
        ("a NUL", b"{\"prompt\":\"x\"\0}", 400),
        ("a NUL in a text", b"{\"prompt\":\"x\0\"}", 400),
        ("a NUL in an escape", b"{\"prompt\":\"x\\u0000\",\"max_tokens\":1}", 200),
        ("a byte order mark", b"\xef\xbb\xbf{\"prompt\":\"x\"}", 400),
        ("UTF-16", b"\xff\xfe{\0\"\0p\0\"\0:\x001\0}\0", 400),
        ("not UTF-8", b"{\"prompt\":\"\xff\"}", 400),
        ("half a character", b"{\"prompt\":\"\xe2\x82\"}", 400),
        ("an overlong slash", b"{\"prompt\":\"\xc0\xaf\"}", 400),
        ("a surrogate's bytes", b"{\"prompt\":\"\xed\xa0\x80\"}", 400),
        ("twice, the last counts", b"{\"prompt\":3,\"prompt\":\"x\",\"max_tokens\":1}", 200),
        ("twice, the last is wrong", b"{\"prompt\":\"x\",\"prompt\":3}", 400),
        ("a model twice", b"{\"prompt\":\"x\",\"model\":\"fr\",\"model\":\"nobody\"}", 404),
        ("HTML", b"<html></html>", 400),
        ("a form", b"prompt=x&model=fr", 400),
        ("good", good.as_bytes(), 200),
    ];
    for (name, body, status) in bodies {
        let expected: &[u16] = match status {
            200 => &[200],
            404 => &[404],
            _ => &[400],
        };
        cases.push((name.to_owned(), completions(body), expected));
    }
    for depth in [127, 200, 4000, 400_000] {
        cases.push((format!("{depth} lists"), completions(deep(depth).as_bytes()), &[400]));
        if depth > 127 && depth < 100_000 {
            cases.push((
                format!("{depth} objects"),
                completions(objects(depth).as_bytes()),
                &[400],
            ));
        }
    }
    cases.push(("a long name".into(), completions(long_name.as_bytes()), &[200]));
    for kind in ["text/plain", "", "application/x-www-form-urlencoded", "application/jsonx", "json"]
    {
        let body = post("/v1/completions", kind, good.as_bytes());
        cases.push((format!("content type {kind:?}"), body, &[400]));
    }
    for kind in ["application/json", "Application/JSON; charset=utf-8"] {
        let body = post("/v1/completions", kind, good.as_bytes());
        cases.push((format!("content type {kind:?}"), body, &[200]));
    }
    // Longer than is read: by its header, in chunks, and without an end.
    let huge = vec![b' '; (1 << 20) + 1];
    cases.push(("huge".into(), completions(&huge), &[413]));
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let of = |rest: &str| format!("{head}{rest}").into_bytes();
    cases.push((
        "huge, by its header alone".into(),
        of("content-length: 99999999999\r\n\r\n"),
        &[413],
    ));
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(65536));
    let chunks = of(&format!("transfer-encoding: chunked\r\n\r\n{}0\r\n\r\n", chunk.repeat(17)));
    cases.push(("huge, in chunks".into(), chunks, &[413]));
    // It ends before its length is there.
    cases.push((
        "cut: shorter than it says".into(),
        of("content-length: 60\r\n\r\n{\"prompt\":"),
        &[400],
    ));
    cases.push(("cut: no body at all".into(), of("content-length: 60\r\n\r\n"), &[400]));
    cases.push((
        "cut: a chunk that is cut".into(),
        of("transfer-encoding: chunked\r\n\r\nff\r\n{"),
        &[400],
    ));
    cases.push((
        "cut: no last chunk".into(),
        of("transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n"),
        &[400],
    ));
    cases.push((
        "no chunk's size".into(),
        of("transfer-encoding: chunked\r\n\r\nxyz\r\n{}\r\n"),
        &[400],
    ));
    let overflow = of("transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}\r\n");
    cases.push(("a chunk of 2^68 bytes".into(), overflow, &[400]));
    let small = format!("{:x};a=b\r\n{good}\r\n0\r\nx: y\r\n\r\n", good.len());
    cases.push((
        "chunks".into(),
        of(&format!("transfer-encoding: chunked\r\n\r\n{small}")),
        &[200],
    ));
    assert!(cases.len() > 50, "{}", cases.len());
    check(&server, &cases);
}

#[test]
fn heads_that_are_none_are_refused_and_none_is_read_as_two_requests() {
    let made = Made::new(512).with_tree(&[("fr", 1), ("fr/alice", 2)]);
    let server = server(&made);
    let get = |path: &str, rest: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\n{rest}\r\n");
    let many = |count: usize| (0..count).map(|k| format!("x-{k}: 1\r\n")).collect::<String>();
    let body = "{\"model\":\"fr\",\"prompt\":\"x\",\"max_tokens\":1}";
    let length = body.len();
    let to = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    // What a second server could read as a request of somebody else's.
    let hidden = "GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n";
    let smuggled = |rest: &str| format!("{to}{rest}0\r\n\r\n{hidden}");
    let cases: Vec<(&str, String, &[u16])> = vec![
        ("plain", get("/version", ""), &[200]),
        ("two, one behind the other", get("/version", "").repeat(2), &[200, 200]),
        ("a hundred headers", get("/version", &many(98)), &[200]),
        ("more than a hundred", get("/version", &many(120)), &[431]),
        ("one of 60 kB", get("/version", &format!("x: {}\r\n", "y".repeat(60_000))), &[200]),
        ("one of 1 MB", get("/version", &format!("x: {}\r\n", "y".repeat(1 << 20))), &[431]),
        ("a name of 70 kB", get("/version", &format!("{}: y\r\n", "x".repeat(70_000))), &[431]),
        ("no host", "GET /version HTTP/1.1\r\n\r\n".into(), &[200]),
        ("HTTP/1.0", "GET /version HTTP/1.0\r\n\r\n".into(), &[200]),
        ("HTTP/0.9", "GET /version\r\n\r\n".into(), &[400]),
        ("HTTP/2's preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), &[]),
        ("HTTP/3.0", "GET /version HTTP/3.0\r\n\r\n".into(), &[400]),
        ("HTTP/1.2", "GET /version HTTP/1.2\r\n\r\n".into(), &[400]),
        ("a TLS hello", "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}\u{1}\r\n\r\n".into(), &[400]),
        ("nothing", String::new(), &[]),
        ("empty lines", "\r\n\r\n\r\n".into(), &[]),
        ("half a head", "GET /version HTTP/1.1\r\nhost:".into(), &[]),
        ("a bare line feed", "GET /version HTTP/1.1\nhost: x\n\n".into(), &[200]),
        ("a bare carriage return", "GET /version HTTP/1.1\rhost: x\r\r".into(), &[400]),
        ("a folded header", get("/version", "x: y\r\n z\r\n"), &[400]),
        ("a space before the colon", get("/version", "x : y\r\n"), &[400]),
        ("a header without a name", get("/version", ": y\r\n"), &[400]),
        ("a header without a colon", get("/version", "x\r\n"), &[400]),
        ("a NUL in a header", get("/version", "x: y\0z\r\n"), &[400]),
        ("a NUL in a name", get("/version", "x\0: y\r\n"), &[400]),
        ("a NUL in the path", get("/ver\0sion", ""), &[400]),
        ("a space in the path", get("/ver sion", ""), &[400]),
        ("no path", "GET  HTTP/1.1\r\nhost: x\r\n\r\n".into(), &[400]),
        ("a method of its own", get("/version", "").replacen("GET", "FROB", 1), &[405]),
        ("a method of no letters", get("/version", "").replacen("GET", "G\u{1}T", 1), &[400]),
        ("TRACE", get("/v1/models", "").replacen("GET", "TRACE", 1), &[405]),
        ("CONNECT", "CONNECT localhost:22 HTTP/1.1\r\nhost: x\r\n\r\n".into(), &[404]),
        ("OPTIONS *", "OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n".into(), &[404]),
        ("HEAD", get("/version", "connection: close\r\n").replacen("GET", "HEAD", 1), &[200]),
        ("another's address", get("http://example.org/version", ""), &[200]),
        ("another's scheme", get("file:///etc/passwd", ""), &[400]),
        ("an upgrade", get("/version", "connection: upgrade\r\nupgrade: h2c\r\n"), &[200]),
        ("Expect", get("/version", "expect: 100-continue\r\n"), &[200]),
        ("an Expect of its own", get("/version", "expect: a miracle\r\n"), &[200]),
        ("a length of no digits", format!("{to}content-length: x\r\n\r\n"), &[400]),
        ("a negative length", format!("{to}content-length: -1\r\n\r\n"), &[400]),
        ("a length with a sign", format!("{to}content-length: +{length}\r\n\r\n{body}"), &[400]),
        ("a length in hex", format!("{to}content-length: 0x10\r\n\r\n{body}"), &[400]),
        ("a length of 2^64", format!("{to}content-length: 18446744073709551616\r\n\r\n"), &[400]),
        (
            "a length of 2^64 - 1",
            format!("{to}content-length: 18446744073709551615\r\n\r\n"),
            &[431],
        ),
        ("two lengths", smuggled("content-length: 0\r\ncontent-length: 44\r\n\r\n"), &[400]),
        ("two lengths in one", smuggled("content-length: 0, 44\r\n\r\n"), &[400]),
        ("an unknown coding", smuggled("transfer-encoding: gzip\r\n\r\n"), &[400]),
        ("a coding behind chunked", smuggled("transfer-encoding: chunked, gzip\r\n\r\n"), &[400]),
        ("a coding that is misspelt", smuggled("transfer-encoding: xchunked\r\n\r\n"), &[400]),
        ("an empty coding", smuggled("transfer-encoding:\r\n\r\n"), &[400]),
        (
            "chunked in HTTP/1.0",
            smuggled("transfer-encoding: chunked\r\n\r\n").replacen("1.1", "1.0", 1),
            &[400],
        ),
    ];
    let cases: Vec<_> = cases
        .into_iter()
        .map(|(name, text, ok)| (name.to_owned(), text.into_bytes(), ok))
        .collect();
    assert!(cases.len() > 50, "{}", cases.len());
    check(&server, &cases);
}

/// A front that goes by the length would send what is hidden in the body on as a body, and hand its
/// answer to whoever asks next.
#[test]
fn a_length_beside_chunks_is_not_read_as_two_requests() {
    let made = Made::new(512).with_tree(&[("fr", 1), ("fr/alice", 2)]);
    let server = server(&made);
    let to = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let hidden = "GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n";
    let chunked = format!("0\r\n\r\n{hidden}");
    let length = chunked.len();
    for lengths in [
        format!("content-length: {length}\r\ntransfer-encoding: chunked\r\n"),
        format!("transfer-encoding: chunked\r\ncontent-length: {length}\r\n"),
        format!("transfer-encoding:\tchunked\r\ncontent-length: {length}\r\n"),
        format!("Transfer-Encoding: CHUNKED\r\ncontent-length: {length}\r\n"),
    ] {
        let found = statuses(&server, format!("{to}{lengths}\r\n{chunked}").as_bytes(), 1);
        assert_eq!(found, [400], "{lengths}");
    }
    // Behind a refusal nothing of its body is taken for a request either.
    for refused in [
        format!("{to}content-length: {}\r\n\r\n{hidden}", 1 << 30),
        format!("POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{hidden}"),
        format!("GET /version HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{hidden}"),
    ] {
        assert_eq!(statuses(&server, refused.as_bytes(), 1).len(), 1, "{refused}");
    }
    server.post("/v1/completions", &completion("fr/alice", 3, 1)).of(200);
}

#[test]
fn paths_that_climb_lead_nowhere() {
    let made = Made::new(512).with_tree(&[("fr", 1), ("fr/alice", 2)]);
    let server = server(&made);
    let mut asked = 0;
    let names = [
        "..",
        "../fr",
        "fr/..",
        "fr/../de",
        "%2e%2e",
        "%2e%2e%2ffr",
        "fr%2f..%2f..%2fetc%2fpasswd",
        "%252e%252e",
        "fr%252falice",
        "fr%00",
        "%00",
        "fr%5c..%5c..",
        "%ff",
        "%c0%ae%c0%ae",
        "fr%",
        "fr%2",
        "fr%zz",
        "%EF%BC%8E%EF%BC%8E",
        "~",
        ".git",
        "fr;x",
        "fr%0d%0aset-cookie:x",
        "%u002e",
        "etc/passwd",
        "/etc/passwd",
        "//fr",
        "C:%5c",
        "file:%2f%2f",
        "fr/.",
        "fr%20",
        "%20fr",
    ];
    for name in names {
        for path in [
            format!("/v1/models/{name}"),
            format!("/v1/tree/nodes/{name}"),
            format!("/v1/tree/nodes/{name}/children"),
            format!("/v1/models?parent={}", name.replace(['#', ';'], "")),
        ] {
            let answer = server.get(&path);
            // The slash before a name means nothing.
            let is_fr = ["//fr"].contains(&name);
            let expected: &[u16] = if is_fr { &[200] } else { &[400, 404] };
            assert!(
                expected.contains(&answer.status),
                "{path}: {} {}",
                answer.status,
                answer.text()
            );
            assert!(answer.header("set-cookie").is_none(), "{path}");
            common::names_no_place(&answer.text(), made.dir.path());
            asked += 1;
        }
    }
    for path in [
        "/../etc/passwd",
        "/page/../../x",
        "/v1/../version",
        "//version",
        "/VERSION",
        "/version/",
        "/v1/tree/nodes/",
        "/v1/models/",
        "/%76ersion",
        "/v1%2fmodels",
    ] {
        assert_eq!(server.get(path).status, 404, "{path}");
    }
    // A name that is no text is not looked up under another.
    for path in ["/v1/models/%ff", "/v1/tree/nodes/fr%ff", "/v1/tree/nodes/%c0%ae/children"] {
        server.get(path).error(400);
    }
    for count in [60_000, 200_000] {
        let long = format!("/v1/models/{}", "x/".repeat(count / 2));
        let status = server.get(&long).status;
        assert!([400, 404, 414, 431].contains(&status), "{count}: {status}");
    }
    for query in [
        "limit=0",
        "limit=-1",
        "limit=x",
        "limit=1001",
        "limit=99999999999999999999",
        "after=fr",
        "limit=1&limit=2",
        "parent=%ff&limit=3",
    ] {
        let status = server.get(&format!("/v1/models?{query}")).status;
        assert!([400, 404].contains(&status), "{query}: {status}");
        asked += 1;
    }
    assert!(asked > 100);
    server.get("/v1/models/fr/alice").of(200);
}

fn slow(made: &Made) -> Running {
    let bounds = Bounds {
        head_wait: Duration::from_millis(600),
        body_wait: Duration::from_millis(600),
        write_wait: Duration::from_millis(600),
        ..options().bounds
    };
    made.serve(ServerOptions { bounds, ..options() })
}

/// Sends a byte now and then until the connection ends; what came, and how long it took.
fn drip(connection: &mut Connection, bytes: &[u8]) -> (String, Duration) {
    let start = Instant::now();
    connection.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut answer = Vec::new();
    for byte in bytes.iter().cycle() {
        connection.send(&[*byte]);
        let mut found = [0; 4096];
        match connection.stream.read(&mut found) {
            Ok(0) => break,
            Ok(length) => answer.extend(&found[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(_) => {}
        }
        assert!(start.elapsed() < Duration::from_secs(20), "it is never ended");
    }
    (String::from_utf8(answer).unwrap(), start.elapsed())
}

#[test]
fn whoever_sends_too_slowly_is_hung_up_on() {
    let made = Made::new(512).with_tree(&[("fr", 1), ("fr/alice", 2)]);
    let server = slow(&made);
    let mut connection = server.connect();
    connection.send(b"GET /version HTTP/1.1\r\nhost: x\r\n");
    let (answer, time) = drip(&mut connection, b"x-slow: yes\r\n");
    assert!(time < Duration::from_secs(5), "{time:?}");
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    // Nothing at all, and nothing behind a first request.
    let mut silent = server.connect();
    assert!(silent.is_ended());
    let mut kept = server.connect();
    assert_eq!(kept.ask("GET", "/version", &[], None).status, 200);
    assert!(kept.is_ended());
    let mut connection = server.connect();
    connection.send(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
        content-length: 10000\r\n\r\n{",
    );
    let (answer, time) = drip(&mut connection, b" ");
    assert!(time < Duration::from_secs(5), "{time:?}");
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    server.post("/v1/completions", &completion("fr/alice", 3, 1)).of(200);
}

/// Its text is worth some megabytes, of which the sockets between take a part.
#[test]
fn whoever_reads_nothing_is_given_up_with_its_texts() {
    let made = Made::new(4096).with_tree(&[("fr", 1), ("fr/alice", 2)]);
    let server = slow(&made);
    let fields = json!({"stream": true, "n": 16, "logprobs": 20});
    let body = with(completion("fr", 2000, 1), &fields);
    let mut connection = server.connect();
    connection.send(&request("POST", "/v1/completions", &[], Some(&body)));
    assert_eq!(connection.head().unwrap().status, 200);
    let status = server.wait_until_idle();
    assert!(status["requests"]["cancelled"].as_u64().unwrap() > 0, "{status}");
    assert_eq!(status["requests"]["completed"], 0, "{status}");
    server.post("/v1/completions", &completion("fr/alice", 3, 1)).of(200);
}
