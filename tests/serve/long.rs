//! Servers that keep a little of every request are restarted every week by people who do not know why.
//! Here very many requests, answered and broken off, leave memory, files, threads and lists as they
//! were.
//!
//! `PLEACH_SERVE_REQUESTS=100000` sends that many, and a tenth of them more that are broken off;
//! without it there are fewer.

#[path = "common.rs"]
mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Connection, Made, Running, completion, engine, options, request, with};
use pleach_serve::ServerOptions;
use serde_json::json;

const THREADS: usize = 8;
const NODES: [&str; 5] = ["tiny", "fr", "fr/alice", "fr/bob", "de"];
/// What may be more at the end: heaps of threads, each a little fuller than at some moment before; 1 to
/// 2 MB are usual after both runs. A leak of 1 kB a text would be 9 MB in the short run, one of 60
/// bytes 5 MB in the long one.
const MARGIN_BYTES: usize = 4 << 20;

/// What a process holds.
#[derive(Debug)]
struct Held {
    bytes: usize,
    files: usize,
    threads: usize,
}

fn held() -> Held {
    let count = |folder: &str| std::fs::read_dir(folder).unwrap().count();
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    Held { bytes: pages * 4096, files: count("/proc/self/fd"), threads: count("/proc/self/task") }
}

/// A request that is answered: every third a stream, every seventh refused, every fifth a look.
fn answered(connection: &mut Connection, k: usize) {
    let node = NODES[k % NODES.len()];
    let body = completion(node, 1 + k % 3, k as u64);
    if k.is_multiple_of(7) {
        let body = with(body, &json!({"model": "nobody"}));
        connection.ask("POST", "/v1/completions", &[], Some(&body)).error(404);
    } else if k.is_multiple_of(5) {
        let path = ["/v1/status", "/v1/models", "/metrics", "/v1/tree/children"][k % 4];
        assert_eq!(connection.ask("GET", path, &[], None).status, 200);
    } else if k.is_multiple_of(3) {
        let body = with(body, &json!({"stream": true, "logprobs": 2, "n": 2}));
        let answer = connection.ask("POST", "/v1/completions", &[], Some(&body));
        assert!(answer.status == 200 && answer.is_whole);
    } else {
        connection.ask("POST", "/v1/completions", &[], Some(&body)).of(200);
    }
}

/// A request whose client leaves: before its body, before its answer, in the middle of it.
fn broken_off(server: &Running, k: usize) {
    let body = completion(NODES[k % NODES.len()], 400, k as u64);
    let body = with(body, &json!({"stream": !k.is_multiple_of(3)}));
    let bytes = request("POST", "/v1/completions", &[], Some(&body));
    let mut connection = server.connect();
    match k % 4 {
        0 => connection.send(&bytes[..bytes.len() - 10]),
        1 => connection.send(&bytes),
        2 => {
            connection.send(&bytes);
            std::thread::sleep(Duration::from_millis(1));
        }
        _ => {
            connection.send(&bytes);
            connection.head();
        }
    }
}

/// Many requests, and a tenth as many that are broken off.
fn many(server: &Running, count: usize) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut connection = server.connect();
                loop {
                    let k = next.fetch_add(1, Ordering::Relaxed);
                    if k >= count {
                        return;
                    }
                    answered(&mut connection, k);
                    if k.is_multiple_of(10) {
                        broken_off(server, k / 10);
                    }
                }
            });
        }
    });
}

#[test]
fn very_many_requests_leave_nothing_behind() {
    let count = std::env::var("PLEACH_SERVE_REQUESTS");
    let count: usize = count.map_or(10_000, |count| count.parse().expect("a number of requests"));
    let made = Made::new(512).with_tree(&[("fr", 1), ("fr/alice", 2), ("fr/bob", 3), ("de", 4)]);
    // Few pages, so that all have been touched before memory is looked at.
    let log = Some(Box::new(|_: &_| ()) as pleach_serve::Log);
    let server = made.serve(ServerOptions { engine: engine(160, 16, 1024), log, ..options() });
    many(&server, 3000.min(count));
    server.wait_until_idle();
    // The last connections end.
    std::thread::sleep(Duration::from_millis(200));
    let (before, start) = (held(), Instant::now());
    many(&server, count);
    let status = server.wait_until_idle();
    let seconds = start.elapsed().as_secs_f64();
    // What served connections may end a moment later.
    let mut after = held();
    for _ in 0..100 {
        if after.files <= before.files && after.threads <= before.threads {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
        after = held();
    }
    println!("{count} requests in {seconds:.1} s: {before:?} → {after:?}; {}", status["requests"]);
    assert!(after.files <= before.files, "open files: {before:?} → {after:?}");
    // Threads that wait for blocking work may end, and come again.
    assert!(after.threads <= before.threads + 16, "threads: {before:?} → {after:?}");
    assert!(after.bytes <= before.bytes + MARGIN_BYTES, "memory: {before:?} → {after:?}");
    assert_eq!(status["requests"]["in_flight"], 0);
    let cancelled = status["requests"]["cancelled"].as_u64().unwrap();
    assert!(cancelled > count as u64 / 100, "{status}");
    assert_eq!(status["requests"]["failed"], 0, "{status}");
    server.post("/v1/completions", &completion("fr/alice", 3, 1)).of(200);
}
