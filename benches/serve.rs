//! What HTTP costs: tokens a second of 16 people at 16 leaves, through the server beside the engine
//! alone, turn about; and what a light user waits for a first token while 64 others of another
//! language keep the engine full.
//!
//! `cargo bench --bench serve -- [--threads N]`. Needs the base model that the tests use.

#![allow(clippy::print_stdout, reason = "a bench speaks to people")]

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pleach::testing::{measures, smollm2_base};
use pleach::{Engine, EngineOptions, GenerateOptions, Request, Runtime};
use pleach_serve::{Server, ServerOptions};
use serde_json::{Value, json};

const TASK: &str = "sysadmin/name-line";
const PROMPT: &str = "Nomme en une ligne la commande qui montre quels processus occupent le plus de \
    mémoire vive sur une machine Linux.";
const PEOPLE: usize = 16;
const HEAVY: usize = 64;
/// Tokens of an answer of one of many.
const HEAVY_TOKENS: usize = 64;

/// The shipped tree as two languages, with people below the task.
fn tree(folder: &Path) -> Result<()> {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../trees/smollm2/fr");
    for language in ["fr", "es"] {
        for node in ["", "sysadmin", TASK] {
            copy(&shipped.join(node), &folder.join(language).join(node))?;
        }
        for k in 0..HEAVY {
            let person = folder.join(language).join(TASK).join(format!("person-{k}"));
            copy(&shipped.join(TASK).join("alice"), &person)?;
        }
    }
    Ok(())
}

/// Copies an adapter, without what lies below it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(from.join(file), to.join(file))?;
    }
    Ok(())
}

fn person(language: &str, k: usize) -> String {
    format!("{language}/{TASK}/person-{k}")
}

/// An answer: its text, its tokens, milliseconds to the first.
struct Answered {
    text: String,
    tokens: usize,
    first_ms: f64,
}

/// Whoever asks: the engine, or a server by HTTP.
trait Asks: Sync {
    fn ask(&self, node: &str, tokens: usize) -> Result<Answered>;
}

impl Asks for Engine {
    fn ask(&self, node: &str, tokens: usize) -> Result<Answered> {
        let options =
            GenerateOptions { max_tokens: tokens, ignore_eos: true, ..GenerateOptions::default() };
        let asked = Instant::now();
        let mut answered = Answered { text: String::new(), tokens: 0, first_ms: 0.0 };
        for step in self.submit(Request { options, ..Request::new(node, PROMPT) })? {
            let step = step?;
            if answered.tokens == 0 {
                answered.first_ms = asked.elapsed().as_secs_f64() * 1e3;
            }
            answered.tokens += usize::from(step.token.is_some());
            answered.text += &step.text;
        }
        Ok(answered)
    }
}

impl Asks for SocketAddr {
    fn ask(&self, node: &str, tokens: usize) -> Result<Answered> {
        let body = json!({"model": node, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0,
            "ignore_eos": true, "stream": true, "stream_options": {"include_usage": true}});
        let body = body.to_string();
        let asked = Instant::now();
        let mut stream = TcpStream::connect(self)?;
        stream.set_nodelay(true)?;
        let length = body.len();
        write!(
            stream,
            "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
        let mut answered = Answered { text: String::new(), tokens: 0, first_ms: 0.0 };
        for line in BufReader::new(stream).lines() {
            let line = line?;
            // The lines between are the sizes of HTTP's chunks.
            let Some(data) = line.strip_prefix("data: ").filter(|data| *data != "[DONE]") else {
                continue;
            };
            if answered.first_ms == 0.0 {
                answered.first_ms = asked.elapsed().as_secs_f64() * 1e3;
            }
            let chunk: Value = serde_json::from_str(data)?;
            ensure!(chunk.get("error").is_none(), "{chunk}");
            answered.text += chunk["choices"][0]["text"].as_str().unwrap_or_default();
            if let Some(count) = chunk["usage"]["completion_tokens"].as_u64() {
                answered.tokens = usize::try_from(count)?;
            }
        }
        ensure!(answered.tokens == tokens, "{} of {tokens} tokens came", answered.tokens);
        Ok(answered)
    }
}

/// Tokens a second of all people together.
fn throughput(whom: &dyn Asks, tokens: usize) -> Result<f64> {
    let start = Instant::now();
    std::thread::scope(|scope| {
        let people: Vec<_> =
            (0..PEOPLE).map(|k| scope.spawn(move || whom.ask(&person("fr", k), tokens))).collect();
        people.into_iter().try_for_each(|person| person.join().expect("no panic").map(drop))
    })?;
    Ok((PEOPLE * tokens) as f64 / start.elapsed().as_secs_f64())
}

/// Milliseconds to the first token of a light user while all others ask without a pause.
fn light(whom: &dyn Asks, count: usize) -> Result<Vec<f64>> {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for k in 0..HEAVY {
            let is_over = &is_over;
            scope.spawn(move || -> Result<()> {
                while !is_over.load(Ordering::Relaxed) {
                    whom.ask(&person("fr", k), HEAVY_TOKENS)?;
                }
                Ok(())
            });
        }
        std::thread::sleep(Duration::from_secs(if measures() { 5 } else { 0 }));
        // What lies above all of them is read and compiled for the first.
        whom.ask(&person("es", 0), 1)?;
        let waits = (1..=count).map(|k| Ok(whom.ask(&person("es", k % HEAVY), 4)?.first_ms));
        let waits = waits.collect();
        is_over.store(true, Ordering::Relaxed);
        waits
    })
}

fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[allow(clippy::cast_possible_truncation, reason = "a place among them")]
    let place = (sorted.len() as f64 * share) as usize;
    sorted[place.min(sorted.len() - 1)]
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let threads = arguments.iter().position(|argument| argument == "--threads");
    let threads = threads.and_then(|at| arguments.get(at + 1)).map_or(Ok(1), |n| n.parse());
    let threads = threads.context("--threads")?;
    let Some(path) = smollm2_base() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    tree(dir.path())?;
    let open =
        || Runtime::builder().base(&path).tree(dir.path()).headroom(1.5).threads(threads).open();
    let (turns, tokens, asked) = if measures() { (5, 96, 25) } else { (1, 8, 1) };
    let options = EngineOptions::default();
    let engine = Engine::new(open()?, &options)?;
    let mut network = tokio::runtime::Builder::new_multi_thread();
    let network = network.worker_threads(2).enable_all().build()?;
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = ServerOptions { listen, engine: options.clone(), ..ServerOptions::default() };
    let server = network.block_on(Server::bind(open()?, server)).map_err(anyhow::Error::msg)?;
    let address = server.address()?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = network.spawn(server.run(async {
        let _ = stopped.await;
    }));

    for node in [person("fr", 0), person("es", 1)] {
        let (own, by_http) = (engine.ask(&node, 24)?, address.ask(&node, 24)?);
        ensure!(own.text == by_http.text, "{:?} and by HTTP {:?}", own.text, by_http.text);
    }
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..turns {
        rates[0].push(throughput(&engine, tokens)?);
        rates[1].push(throughput(&address, tokens)?);
    }
    let ratios: Vec<f64> = rates[1].iter().zip(&rates[0]).map(|(http, own)| http / own).collect();
    println!(
        "{PEOPLE} people at {PEOPLE} leaves, {threads} threads: engine {:.1} tokens/s, by HTTP {:.1}: {:.3}",
        quantile(&rates[0], 0.5),
        quantile(&rates[1], 0.5),
        quantile(&ratios, 0.5)
    );
    for (name, whom) in [("engine", &engine as &dyn Asks), ("by HTTP", &address)] {
        let waits = light(whom, asked)?;
        println!(
            "a light user beside {HEAVY} of another language, {name}: first token after {:.0} ms, p99 {:.0} ms",
            quantile(&waits, 0.5),
            quantile(&waits, 0.99)
        );
    }
    println!("{}", engine.status().cost);
    let _ = stop.send(());
    Ok(network.block_on(running)?)
}
