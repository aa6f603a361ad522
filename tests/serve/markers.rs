//! `tests/engine_markers.rs` over HTTP: every version of every leaf writes a marker of its own, and
//! tenants with keys of their own publish, replace, remove, roll back and move leaves while many ask
//! for them. Each answer names a node and a generation, and its text is what that generation writes;
//! nobody gets another's.
//!
//! `PLEACH_SERVE_MARKER_REQUESTS=100000` asks that many; without it there are fewer.

#[path = "common.rs"]
mod common;

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::{Connection, Made, Running, engine, multipart_of, options, upload};
use pleach::adapter::{AdapterDeltas, FloatDelta};
use pleach::base::BaseModel;
use pleach::engine::Options;
use pleach::store::Details;
use pleach::testing::adapter::{TinyAdapter, serialize};
use pleach::testing::{TinyModel, tiny_hf_model};
use pleach::{EngineOptions, Runtime, StalePolicy, WeightName};
use pleach_serve::ServerOptions;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

const ASKING: usize = 16;
const TENANTS: usize = 4;
const LEAVES: usize = 10;
const VOCAB: usize = 264;
const HIDDEN: usize = 32;
const HEAD_DIM: usize = 16;
/// `!` to `%`: tokens of prompts. Behind them, to `~`, are markers.
const WORDS: [u32; 5] = [3, 4, 5, 6, 7];
const MARKERS: std::ops::Range<u32> = 8..97;

/// The text of a token that is one character.
fn character(token: u32) -> char {
    char::from_u32('!' as u32 + token - 3).unwrap()
}

fn model() -> TinyModel {
    let small = TinyModel {
        hidden: HIDDEN,
        intermediate: 48,
        heads: 2,
        kv_heads: 1,
        ..TinyModel::default()
    };
    TinyModel { layers: 1, vocab: VOCAB, tied: false, ..small }
}

/// What a leaf's adapter is made of, as in `tests/engine_markers.rs`.
struct Recipe {
    words: Vec<f32>,
    o_proj: Vec<f32>,
}

impl Recipe {
    fn new(base: &BaseModel) -> Self {
        let read = |name: &str, rows: std::ops::Range<usize>| {
            let mut values = vec![0.0; rows.len() * HIDDEN];
            base.read_rows(&WeightName::new(name), rows, &mut values).unwrap();
            values
        };
        let norm = read("model.layers.0.input_layernorm.weight", 0..1);
        let mut words = vec![0.0; HIDDEN];
        for word in WORDS.map(|word| word as usize) {
            let row = read("model.embed_tokens.weight", word..word + 1);
            let mean = row.iter().map(|x| x * x).sum::<f32>() / HIDDEN as f32;
            let normed = row.iter().zip(&norm).map(|(x, norm)| 0.1 * x * norm / mean.sqrt());
            words.iter_mut().zip(normed).for_each(|(sum, x)| *sum += x);
        }
        Self { words, o_proj: read("model.layers.0.self_attn.o_proj.weight", 0..HIDDEN) }
    }

    /// The files of an adapter that writes `marker`.
    fn form(&self, marker: u32, rng: &mut StdRng) -> (String, Vec<u8>) {
        let code: Vec<f32> = (0..HEAD_DIM).map(|_| if rng.random() { 3.0 } else { -3.0 }).collect();
        let carried = self.o_proj.chunks_exact(HIDDEN).map(|row| -> f32 {
            row.iter().zip(code.iter().cycle()).map(|(o, code)| o * code).sum()
        });
        let carried: Vec<f32> = carried.collect();
        let size = carried.iter().map(|x| x * x).sum::<f32>() / HIDDEN as f32;
        let along = carried.iter().map(|x| 0.25 * x / size.sqrt()).collect();
        let mut row = vec![0.0; VOCAB];
        row[marker as usize] = 1.0;
        let name =
            |module: &str, side: &str| format!("base_model.model.{module}.lora_{side}.weight");
        let v_proj = "model.layers.0.self_attn.v_proj";
        let tensors = [
            (name(v_proj, "A"), [1, HIDDEN], self.words.clone()),
            (name(v_proj, "B"), [HEAD_DIM, 1], code),
            (name("lm_head", "A"), [1, HIDDEN], along),
            (name("lm_head", "B"), [VOCAB, 1], row),
        ];
        let config = TinyAdapter { alpha: 1.0, ..TinyAdapter::new(Vec::new(), 1, 0) };
        let config = config.with_config(json!({"target_modules": ["v_proj", "lm_head"]}));
        let (config, tensors) = (config.config_bytes(), serialize(&tensors, config.dtype));
        let parts = [("adapter_config.json", &config[..]), ("adapter_model.safetensors", &tensors)];
        multipart_of(parts.into_iter())
    }
}

/// What is known of the tree while it changes.
struct World {
    server: Running,
    recipe: Recipe,
    /// The markers of generations: each is made once.
    made: Mutex<HashMap<u64, (String, u32)>>,
    /// By name, whether it was there, one entry a change; noted before it is taken away and after it
    /// is made.
    presence: HashMap<String, Mutex<Vec<bool>>>,
}

fn tenant(k: usize) -> String {
    format!("tenant-{k}")
}

impl World {
    fn note(&self, name: &str, is_there: bool) {
        self.presence[name].lock().unwrap().push(is_there);
    }

    fn is_there(&self, name: &str) -> bool {
        *self.presence[name].lock().unwrap().last().unwrap()
    }

    /// Sends a change of a tenant's; what was made of it.
    fn change(&self, key: &str, method: &str, path: &str, body: Option<&Value>) -> u64 {
        let answer = self.server.ask_as(key, method, &format!("/v1/tree/nodes/{path}"), body);
        answer.of(200)["generation"].as_u64().unwrap()
    }

    fn put(&self, key: &str, name: &str, rng: &mut StdRng) {
        let marker = rng.random_range(MARKERS);
        let form = self.recipe.form(marker, rng);
        let bearer = format!("Bearer {key}");
        let headers = [("authorization", &bearer[..])];
        let path = format!("/v1/tree/nodes/{name}");
        let answer = loop {
            let answer = upload(&mut self.server.connect(), &path, &headers, &form);
            if answer.status != 429 {
                break answer;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        assert!([200, 201].contains(&answer.status), "{}", answer.text());
        let generation = answer.json()["generation"].as_u64().unwrap();
        self.made.lock().unwrap().insert(generation, (name.to_owned(), marker));
        self.note(name, true);
    }

    /// One change by a tenant, of a leaf of its own.
    fn make_one(&self, key: &str, rng: &mut StdRng) {
        let leaf = |rng: &mut StdRng| format!("{key}/user-{}", rng.random_range(0..LEAVES));
        let name = leaf(rng);
        let place = name.replace('/', "%2F");
        if !self.is_there(&name) {
            return self.put(key, &name, rng);
        }
        match rng.random_range(0..6) {
            0 => {
                self.note(&name, false);
                self.change(key, "DELETE", &place, None);
            }
            1 => {
                let path = format!("/v1/tree/nodes/{place}/history");
                let past = self.server.ask_as(key, "GET", &path, None).of(200);
                let Some(past) = past["versions"].as_array().unwrap().last().cloned() else {
                    return;
                };
                let body = json!({"generation": past["generation"]});
                let marker =
                    self.made.lock().unwrap()[&past["content_generation"].as_u64().unwrap()].1;
                let made = loop {
                    let path = format!("/v1/tree/nodes/{place}/rollback");
                    let answer = self.server.ask_as(key, "POST", &path, Some(&body));
                    if answer.status != 429 {
                        break answer.of(200)["generation"].as_u64().unwrap();
                    }
                };
                self.made.lock().unwrap().insert(made, (name, marker));
            }
            2 => {
                let target = leaf(rng);
                if self.is_there(&target) {
                    return;
                }
                let node = self.server.ask_as(key, "GET", &format!("/v1/tree/nodes/{place}"), None);
                let content = node.of(200)["content_generation"].as_u64().unwrap();
                let marker = self.made.lock().unwrap()[&content].1;
                self.note(&name, false);
                let body = json!({ "target": target });
                let made = loop {
                    let path = format!("/v1/tree/nodes/{place}/move");
                    let answer = self.server.ask_as(key, "POST", &path, Some(&body));
                    if answer.status != 429 {
                        break answer.of(200)["generation"].as_u64().unwrap();
                    }
                };
                self.made.lock().unwrap().insert(made, (target.clone(), marker));
                self.note(&target, true);
            }
            _ => self.put(key, &name, rng),
        }
    }
}

/// What an answer says of itself: the node, its generation, the marker.
type Said = (String, u64, char);

/// Asks for one leaf; what came, if it was there.
fn ask(world: &World, connection: &mut Connection, rng: &mut StdRng) -> Option<Said> {
    let own = rng.random_range(0..TENANTS);
    let is_other = rng.random_range(0..10) == 0;
    let of = if is_other { (own + 1) % TENANTS } else { own };
    let name = format!("{}/user-{}", tenant(of), rng.random_range(0..LEAVES));
    let before = world.presence[&name].lock().unwrap().len() - 1;
    let length = if rng.random_range(0..4) == 0 { 66 } else { 3 };
    let prompt: Vec<u32> = (0..length).map(|k| WORDS[k % 5]).collect();
    let is_streamed = rng.random();
    let body = json!({"model": name, "prompt": prompt, "temperature": 0, "ignore_eos": true,
        "max_tokens": rng.random_range(1..4), "stream": is_streamed});
    let bearer = format!("Bearer {}", tenant(own));
    let headers = [("authorization", &bearer[..])];
    let answer = connection.ask("POST", "/v1/completions", &headers, Some(&body));
    if answer.status == 404 {
        let presence = world.presence[&name].lock().unwrap();
        let was_away = presence[before..].contains(&false);
        assert!(is_other || was_away, "{name} was there: {}", answer.text());
        return None;
    }
    assert!(!is_other, "{name} is not {}'s: {}", tenant(own), answer.text());
    let parts = if is_streamed { answer.events() } else { vec![answer.of(200)] };
    let of_first = |part: &Value| (part["node"].clone(), part["node_generation"].clone());
    let said = of_first(&parts[0]);
    assert!(parts.iter().all(|part| of_first(part) == said), "one node, one generation");
    assert_eq!(said.0, json!(name));
    let text: String =
        parts.iter().map(|part| part["choices"][0]["text"].as_str().unwrap().to_owned()).collect();
    Some((name, said.1.as_u64().unwrap(), text.chars().next().unwrap()))
}

fn world(made: &Made) -> World {
    tiny_hf_model(&made.at("base"), &model());
    let (store, base) = made.create_store(16.0);
    let mut rng = StdRng::seed_from_u64(1);
    for k in 0..TENANTS {
        let mut small = |count| (0..count).map(|_| rng.random_range(-0.01..0.01)).collect();
        let (lora_a, lora_b) = (small(2 * HIDDEN), small(2 * HIDDEN));
        let delta = FloatDelta::LowRank { rank: 2, lora_a, lora_b, scaling: 1.0 };
        let name = WeightName::new("model.layers.0.self_attn.q_proj.weight");
        let content = store.compile(&AdapterDeltas::from([(name, delta)])).unwrap();
        store.publish(&tenant(k), content, Details::default()).unwrap();
    }
    let keys: Vec<(String, String)> = (0..TENANTS)
        .map(|k| (tenant(k), format!("use = \"{0}\"\nchange = \"{0}\"", tenant(k))))
        .collect();
    let keys: Vec<_> = keys.iter().map(|(name, rest)| (&name[..], &rest[..])).collect();
    let access = made.access(&keys);
    let recipe = Recipe::new(&base);
    // Deltas of some leaves, pages of some sequences.
    let builder = Runtime::builder().base_model(base).nodes(store);
    let builder = builder.stale_policy(StalePolicy::Accept).delta_budget_bytes(20 << 10);
    let scheduler = Options { max_running: 12, step_tokens: 96, ..Options::default() };
    // A page of this model is a quarter of one of the usual one's.
    let engine = EngineOptions { scheduler, ..engine(4, 12, 99) };
    let options = ServerOptions { access, engine, ..options() };
    let names =
        (0..TENANTS * LEAVES).map(|k| format!("{}/user-{}", tenant(k % TENANTS), k / TENANTS));
    World {
        server: Running::start(builder.open().unwrap(), options),
        recipe,
        made: Mutex::default(),
        presence: names.map(|name| (name, Mutex::new(vec![false]))).collect(),
    }
}

#[test]
fn everybody_gets_their_own_answer_while_leaves_come_and_go() {
    let count = std::env::var("PLEACH_SERVE_MARKER_REQUESTS");
    let count: usize = count.map_or(15_000, |count| count.parse().expect("a number of requests"));
    let made = Made::new(512);
    let world = world(&made);
    let (asked, changes, is_over) =
        (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let mut said = Vec::new();
    std::thread::scope(|scope| {
        let changing: Vec<_> = (0..TENANTS)
            .map(|k| {
                let (world, changes, is_over) = (&world, &changes, &is_over);
                scope.spawn(move || {
                    let mut rng = StdRng::seed_from_u64(100 + k as u64);
                    while !is_over.load(Ordering::Relaxed) {
                        world.make_one(&tenant(k), &mut rng);
                        changes.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let asking: Vec<_> = (0..ASKING)
            .map(|seed| {
                let (world, asked) = (&world, &asked);
                scope.spawn(move || {
                    let mut rng = StdRng::seed_from_u64(seed as u64);
                    let (mut connection, mut said) = (world.server.connect(), Vec::new());
                    while asked.fetch_add(1, Ordering::Relaxed) < count {
                        said.extend(ask(world, &mut connection, &mut rng));
                    }
                    said
                })
            })
            .collect();
        let found: Vec<_> = asking.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        is_over.store(true, Ordering::Relaxed);
        changing.into_iter().for_each(|thread| thread.join().unwrap());
        said = found.into_iter().flat_map(Result::unwrap).collect();
    });
    let made = world.made.lock().unwrap();
    let mut findings = Vec::new();
    for (name, generation, found) in &said {
        match made.get(generation) {
            Some((of, marker)) if of == name && character(*marker) == *found => {}
            made => findings.push(format!("{name} in {generation} wrote {found:?}: {made:?}")),
        }
    }
    let changes = changes.into_inner();
    println!("{} answers of {count}, {changes} changes, {} generations", said.len(), made.len());
    assert!(
        findings.is_empty(),
        "{} wrong: {}",
        findings.len(),
        findings[..findings.len().min(5)].join("\n")
    );
    assert!(said.len() > count / 3 && changes > 20, "{} answers, {changes} changes", said.len());
    let bearer = [("authorization", format!("Bearer {}", common::ADMIN))];
    let headers = bearer.each_ref().map(|(name, value)| (*name, &value[..]));
    let status = world.server.connect().ask("GET", "/v1/status", &headers, None).of(200);
    assert!(status["switches"].as_u64().unwrap() > 0, "{status}");
    assert!(
        status["cache"]["evictions"].as_u64().unwrap() > 0,
        "budgets are too small on purpose: {status}"
    );
    world.server.wait_until_idle();
}
