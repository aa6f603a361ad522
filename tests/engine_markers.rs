//! Serving systems have answered one user with another's text: a cache entry that outlived its owner,
//! a slot that was given on too early. Here every version of every leaf writes a marker of its own,
//! 64 threads ask for them while leaves are published, replaced, removed, rolled back and moved, and
//! budgets are too small on purpose: every request ends once, with a marker that its leaf had while it
//! was submitted.
//!
//! `PLEACH_MARKER_REQUESTS=1000000` asks that many; without it there are fewer.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pleach::adapter::{AdapterDeltas, FloatDelta};
use pleach::base::BaseModel;
use pleach::compile::base_lattice;
use pleach::engine::Options;
use pleach::error::TreeDefect;
use pleach::model::{GenerateOptions, StopReason};
use pleach::runtime::{Prompt, StalePolicy};
use pleach::store::{Content, Details, Store, StoreInfo};
use pleach::testing::{TinyModel, tiny_hf_model};
use pleach::{Engine, EngineOptions, Error, Merge, Request, Runtime, WeightName};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const HEADROOM: f32 = 16.0;
const THREADS: u64 = 64;
const DOMAINS: usize = 6;
const LEAVES: usize = 20;
/// Markers are tokens from here to the end of the vocabulary.
const FIRST_MARKER: u32 = 8;
const VOCAB: usize = 264;
const HIDDEN: usize = 32;
const HEAD_DIM: usize = 16;

/// Tokens of prompts.
const WORDS: [u32; 5] = [3, 4, 5, 6, 7];

/// A short prompt, and one of which nearly all lies in two pages that can be shared.
fn prompts() -> [Vec<u32>; 2] {
    [vec![3, 5, 7], (0..66).map(|k| WORDS[k % 5]).collect()]
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

/// What a leaf is made of. Its `Δ v_proj` writes a code of its own into the values of every token, which
/// attention carries to the last hidden state; its `Δ head` makes its marker the likeliest token where
/// it finds this code there. So the marker is written only if keys and values are the leaf's, too.
struct Markers {
    /// What `v_proj` reads: the sum of the normed embeddings of [`WORDS`], `(hidden)`.
    words: Vec<f32>,
    /// `(hidden, heads × head_dim)`
    o_proj: Vec<f32>,
}

impl Markers {
    fn new(base: &BaseModel) -> Self {
        let read = |name: &str, rows: std::ops::Range<usize>, cols: usize| {
            let mut values = vec![0.0; rows.len() * cols];
            base.read_rows(&WeightName::new(name), rows, &mut values).unwrap();
            values
        };
        let norm = read("model.layers.0.input_layernorm.weight", 0..1, HIDDEN);
        let mut words = vec![0.0; HIDDEN];
        for word in WORDS {
            let row = read("model.embed_tokens.weight", word as usize..word as usize + 1, HIDDEN);
            let mean = row.iter().map(|x| x * x).sum::<f32>() / HIDDEN as f32;
            let normed = row.iter().zip(&norm).map(|(x, norm)| 0.1 * x * norm / mean.sqrt());
            words.iter_mut().zip(normed).for_each(|(sum, x)| *sum += x);
        }
        let o_proj = read("model.layers.0.self_attn.o_proj.weight", 0..HIDDEN, HIDDEN);
        Self { words, o_proj }
    }

    fn content(&self, store: &Store, marker: u32, rng: &mut StdRng) -> Content {
        let code: Vec<f32> = (0..HEAD_DIM).map(|_| if rng.random() { 3.0 } else { -3.0 }).collect();
        // Both query heads read the one head of values.
        let carried = self.o_proj.chunks_exact(HIDDEN).map(|row| -> f32 {
            row.iter().zip(code.iter().cycle()).map(|(o, code)| o * code).sum()
        });
        let carried: Vec<f32> = carried.collect();
        let size = carried.iter().map(|x| x * x).sum::<f32>() / HIDDEN as f32;
        let along = carried.iter().map(|x| 0.25 * x / size.sqrt()).collect();
        let mut row = vec![0.0; VOCAB];
        row[marker as usize] = 1.0;
        let rank_1 = |lora_a, lora_b| FloatDelta::LowRank { rank: 1, lora_a, lora_b, scaling: 1.0 };
        let deltas = [
            ("model.layers.0.self_attn.v_proj.weight", rank_1(self.words.clone(), code)),
            ("lm_head.weight", rank_1(along, row)),
        ];
        let deltas = deltas.map(|(name, delta)| (WeightName::new(name), delta));
        store.compile(&AdapterDeltas::from(deltas)).unwrap()
    }
}

/// What a name stood for, one entry a change; the last `events.len() - done` may not be made yet.
#[derive(Default)]
struct Ledger {
    events: Vec<Option<u32>>,
    done: usize,
}

impl Ledger {
    fn now(&self) -> Option<u32> {
        self.events[self.done - 1]
    }
}

struct World {
    store: Store,
    markers: Markers,
    names: Vec<String>,
    ledgers: Vec<Mutex<Ledger>>,
    next_marker: AtomicU64,
    /// Markers by generation.
    contents: Mutex<HashMap<u64, u32>>,
}

impl World {
    fn marker(&self) -> u32 {
        let count = VOCAB as u64 - u64::from(FIRST_MARKER);
        let next = self.next_marker.fetch_add(1, Ordering::Relaxed) % count;
        FIRST_MARKER + u32::try_from(next).unwrap()
    }

    /// Says what a name is about to stand for; then that it does.
    fn begin(&self, leaf: usize, event: Option<u32>) {
        self.ledgers[leaf].lock().unwrap().events.push(event);
    }

    fn done(&self, leaf: usize, generation: Option<u64>) {
        let mut ledger = self.ledgers[leaf].lock().unwrap();
        ledger.done = ledger.events.len();
        if let (Some(generation), Some(marker)) = (generation, ledger.now()) {
            self.contents.lock().unwrap().insert(generation, marker);
        }
    }

    fn publish(&self, leaf: usize, rng: &mut StdRng) {
        let marker = self.marker();
        let content = self.markers.content(&self.store, marker, rng);
        self.begin(leaf, Some(marker));
        let made = self.store.publish(&self.names[leaf], content, Details::default()).unwrap();
        self.done(leaf, Some(made));
    }

    /// One change of some leaf.
    fn change(&self, rng: &mut StdRng) {
        let leaf = rng.random_range(0..self.names.len());
        let name = &self.names[leaf];
        let now = self.ledgers[leaf].lock().unwrap().now();
        let Some(now) = now else {
            return if rng.random() { self.publish(leaf, rng) } else { self.roll_back(leaf, rng) };
        };
        match rng.random_range(0..8) {
            0 => {
                self.begin(leaf, None);
                self.store.remove(name, false, None).unwrap();
                self.done(leaf, None);
            }
            1 => self.roll_back(leaf, rng),
            2 | 3 => {
                let target = rng.random_range(0..self.names.len());
                if self.ledgers[target].lock().unwrap().now().is_some() {
                    return;
                }
                self.begin(leaf, None);
                self.begin(target, Some(now));
                let moved = self.store.move_to(name, &self.names[target], None).unwrap();
                self.done(leaf, None);
                self.done(target, Some(moved));
            }
            _ => {
                let marker = self.marker();
                let content = self.markers.content(&self.store, marker, rng);
                self.begin(leaf, Some(marker));
                let made = self.store.replace(name, content, Details::default(), None).unwrap();
                self.done(leaf, Some(made));
            }
        }
    }

    fn roll_back(&self, leaf: usize, rng: &mut StdRng) {
        // None of a name that never was a node.
        let past = self.store.history(&self.names[leaf]).unwrap_or_default();
        if past.is_empty() {
            return;
        }
        let version = &past[rng.random_range(0..past.len())].version;
        let marker = self.contents.lock().unwrap()[&version.content_generation];
        self.begin(leaf, Some(marker));
        let made = self.store.rollback(&self.names[leaf], version.generation, None).unwrap();
        self.done(leaf, Some(made));
    }
}

/// How requests ended.
#[derive(Default)]
struct Ends {
    right: AtomicUsize,
    unknown: AtomicUsize,
    cancelled: AtomicUsize,
}

/// Asks for one leaf, and checks what comes.
fn ask(engine: &Engine, world: &World, rng: &mut StdRng, ends: &Ends) {
    let leaf = rng.random_range(0..world.names.len());
    let before = world.ledgers[leaf].lock().unwrap().done - 1;
    let allowed = || world.ledgers[leaf].lock().unwrap().events[before..].to_vec();
    let prompt = prompts()[usize::from(rng.random_range(0..4) == 0)].clone();
    // Some outgrow what is kept for them, so that the youngest lose their pages.
    let max_tokens = if rng.random_range(0..20) == 0 { 100 } else { rng.random_range(1..4) };
    let options = GenerateOptions { max_tokens, ignore_eos: true, ..GenerateOptions::default() };
    let merge = match rng.random_range(0..100) {
        0 => Merge::Leaf,
        1 => Merge::Parent,
        2 => Merge::Root,
        _ => Merge::Automatic,
    };
    let request =
        Request { options, merge, ..Request::new(&*world.names[leaf], Prompt::Tokens(prompt)) };
    let submitted = engine.submit(request);
    let allowed = allowed();
    let mut answer = match submitted {
        Ok(answer) => answer,
        Err(Error::Tree(defect)) if matches!(*defect, TreeDefect::UnknownNode { .. }) => {
            assert!(allowed.contains(&None), "{} is there: {defect}", world.names[leaf]);
            ends.unknown.fetch_add(1, Ordering::Relaxed);
            return;
        }
        Err(error) => panic!("{}: {error}", world.names[leaf]),
    };
    if rng.random_range(0..100) == 0 {
        drop(answer);
        ends.cancelled.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let (mut tokens, mut stops) = (Vec::new(), Vec::new());
    for step in answer.by_ref() {
        let step = step.unwrap_or_else(|error| panic!("{}: {error}", world.names[leaf]));
        tokens.extend(step.token);
        stops.extend(step.stop);
    }
    assert!(answer.next().is_none());
    assert_eq!(stops, [StopReason::MaxTokens], "it ends once");
    assert_eq!(tokens.len(), max_tokens);
    // Those after it follow from other last states.
    let token = tokens[0];
    assert!(allowed.contains(&Some(token)), "{} wrote {token}, not {allowed:?}", world.names[leaf]);
    ends.right.fetch_add(1, Ordering::Relaxed);
}

/// Bytes in memory, where the system says so.
fn resident_bytes() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(text.split_whitespace().nth(1)?.parse::<usize>().ok()? * 4096)
}

#[test]
fn everybody_gets_their_own_answer_while_leaves_come_and_go() {
    let count = std::env::var("PLEACH_MARKER_REQUESTS");
    let count: usize = count.map_or(30_000, |count| count.parse().expect("a number of requests"));
    let dir = tempfile::tempdir().unwrap();
    tiny_hf_model(&dir.path().join("base"), &model());
    let base = BaseModel::open(&dir.path().join("base")).unwrap();
    let lattice = base_lattice(&base, HEADROOM, |_, _| ()).unwrap();
    let base_hash = base.content_hash().to_owned();
    let info = StoreInfo { base_name: "made".into(), base_hash, ..StoreInfo::default() };
    let store = Store::create(&dir.path().join("store"), info, &lattice).unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    for domain in 0..DOMAINS {
        let mut small = |count| (0..count).map(|_| rng.random_range(-0.01..0.01)).collect();
        let (lora_a, lora_b) = (small(2 * HIDDEN), small(2 * HIDDEN));
        let delta = FloatDelta::LowRank { rank: 2, lora_a, lora_b, scaling: 1.0 };
        let name = WeightName::new("model.layers.0.self_attn.q_proj.weight");
        let content = store.compile(&AdapterDeltas::from([(name, delta)])).unwrap();
        store.publish(&format!("domain-{domain}"), content, Details::default()).unwrap();
    }
    let leaf = |k: usize| format!("domain-{}/user-{}", k % DOMAINS, k / DOMAINS);
    let names: Vec<_> = (0..DOMAINS * LEAVES).map(leaf).collect();
    let absent = || Mutex::new(Ledger { events: vec![None], done: 1 });
    let world = World {
        markers: Markers::new(&base),
        ledgers: names.iter().map(|_| absent()).collect(),
        names,
        store: store.clone(),
        next_marker: AtomicU64::new(0),
        contents: Mutex::default(),
    };
    // One in five names stands for nothing at first.
    (0..world.names.len()).filter(|k| k % 5 > 0).for_each(|leaf| world.publish(leaf, &mut rng));

    // Deltas of some leaves, pages of some sequences.
    let builder = Runtime::builder().base_model(base).nodes(store.clone());
    let builder = builder.stale_policy(StalePolicy::Accept).delta_budget_bytes(20 << 10);
    let runtime = builder.open().unwrap();
    let root = runtime.fingerprint().unwrap();
    let page = 32 * 2 * 4 * 16;
    let scheduler = Options { max_running: 24, step_tokens: 96, ..Options::default() };
    let options = EngineOptions { kv_bytes: 12 * page, scheduler };
    let engine = Engine::new(runtime, &options).unwrap();

    let (ends, asked, start) = (Ends::default(), AtomicUsize::new(0), Instant::now());
    let (mut changes, mut at_first) = (0, None);
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..THREADS)
            .map(|seed| {
                let (engine, world, ends, asked) = (&engine, &world, &ends, &asked);
                scope.spawn(move || {
                    let mut rng = StdRng::seed_from_u64(seed);
                    while asked.fetch_add(1, Ordering::Relaxed) < count {
                        ask(engine, world, &mut rng, ends);
                    }
                })
            })
            .collect();
        while asking.iter().any(|thread| !thread.is_finished()) {
            world.change(&mut rng);
            changes += 1;
            if at_first.is_none() && asked.load(Ordering::Relaxed) > count / 5 {
                at_first = resident_bytes();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    let Ends { right, unknown, cancelled } = ends;
    let [right, unknown, cancelled] = [right, unknown, cancelled].map(AtomicUsize::into_inner);
    assert_eq!(right + unknown + cancelled, count);
    let status = engine.status();
    println!(
        "{right} right answers, {unknown} of leaves that were not there, {cancelled} dropped; {changes} changes, \
         {} steps, {} switches, {} preempted, in {:.1} s; memory {at_first:?} → {:?}",
        status.steps,
        status.switches,
        status.preempted,
        start.elapsed().as_secs_f64(),
        resident_bytes()
    );
    assert!(status.switches > 0 && changes > 10, "{status:?}");
    let mut runtime = engine.close().unwrap();
    assert!(runtime.cache_stats().evictions > 0, "budgets are too small on purpose");
    runtime.switch_to("/").unwrap();
    assert_eq!(runtime.fingerprint().unwrap(), root);
    if let (Some(first), Some(last)) = (at_first, resident_bytes()) {
        assert!(last < first + (64 << 20), "memory grew from {first} to {last} bytes");
    }
}
