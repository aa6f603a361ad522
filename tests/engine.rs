//! One copy of the weights served one person at a time: a hundred at once meant a hundred switches a
//! token, or a hundred copies. The engine serves them all from one, and each has the answer that
//! they would have alone.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pleach::engine::Options;
use pleach::error::{EngineDefect, TreeDefect};
use pleach::model::{GenerateOptions, Sampling, StopReason};
use pleach::runtime::Prompt;
use pleach::testing::adapter::{TinyAdapter, TinyModule};
use pleach::testing::{TinyModel, tiny_hf_model};
use pleach::{Answer, Engine, EngineOptions, Error, Merge, Request, Runtime};
use tempfile::TempDir;

const NODES: [&str; 8] =
    ["/", "fr", "fr/work", "fr/work/alice", "fr/work/bob", "fr/home", "de", "de/carol"];

fn made() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    tiny_hf_model(&dir.path().join("base"), &TinyModel::default());
    for (seed, name) in NODES.iter().enumerate().skip(1) {
        write(dir.path(), name, seed);
    }
    dir
}

/// An adapter on matrices of both blocks and, at every second node, on the embedding.
fn write(dir: &Path, name: &str, seed: usize) {
    let mut modules = vec![
        TinyModule::linear("model.layers.1.mlp.up_proj", 96, 64),
        TinyModule::linear("model.layers.1.mlp.down_proj", 64, 96),
        TinyModule::linear("model.layers.0.self_attn.q_proj", 64, 64),
    ];
    if seed.is_multiple_of(2) {
        modules.push(TinyModule::linear("model.layers.0.self_attn.o_proj", 64, 64));
    }
    let rank = 1 + seed % 5;
    TinyAdapter::new(modules, rank, seed as u64).write(&dir.join("tree").join(name)).unwrap();
}

fn open(dir: &TempDir) -> Runtime {
    let builder = Runtime::builder().base(dir.path().join("base"));
    builder.tree(dir.path().join("tree")).headroom(8.0).open().unwrap()
}

fn engine(dir: &TempDir, options: &EngineOptions) -> Engine {
    Engine::new(open(dir), options).unwrap()
}

fn small(pages: u64) -> EngineOptions {
    // A page of the tiny model: 32 positions of keys and values in f32.
    let model = TinyModel::default();
    let head_dim = model.head_dim.unwrap_or(model.hidden / model.heads);
    let page = 32 * model.layers * model.kv_heads * head_dim.next_multiple_of(16) * 2 * 4;
    EngineOptions { kv_bytes: pages * page as u64, ..EngineOptions::default() }
}

fn options(max_tokens: usize, seed: u64) -> GenerateOptions {
    let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
    GenerateOptions { max_tokens, sampling, ignore_eos: true, ..GenerateOptions::default() }
}

fn request(node: &str, merge: Merge, options: GenerateOptions) -> Request {
    let prompt = Prompt::from("hello world, hello all who hear this and hello to the others");
    Request { merge, options, ..Request::new(node, prompt) }
}

/// What the runtime says alone, its weights at the node.
fn alone(runtime: &mut Runtime, request: &Request) -> Vec<u32> {
    runtime.switch_to(&request.node).unwrap();
    let generation =
        runtime.generate(&request.prompt, &request.options, |_| ControlFlow::Continue(()));
    generation.unwrap().token_ids
}

#[test]
fn everybody_has_the_tokens_that_they_would_have_alone() {
    let dir = made();
    let mut runtime = open(&dir);
    for pages in [300, 7] {
        let engine = engine(&dir, &small(pages));
        let mut asked = Vec::new();
        for seed in 0..6_usize {
            for node in NODES {
                let merge = [Merge::Leaf, Merge::Automatic, Merge::Parent, Merge::Root][seed % 4];
                let mut options = options(60, seed as u64);
                if seed == 5 {
                    options.sampling.repeat_penalty = 1.3;
                }
                let request = request(node, merge, options);
                asked.push((engine.submit(request.clone()).unwrap(), request));
            }
        }
        let mut different = 0;
        for (answer, request) in asked {
            let expected = alone(&mut runtime, &request);
            let found = answer.wait().unwrap();
            assert_eq!((found.stop, &found.node), (StopReason::MaxTokens, &request.node));
            assert_eq!(found.text, runtime.tokenizer().unwrap().decode(&found.token_ids).unwrap());
            if request.merge == Merge::Leaf {
                assert_eq!(found.token_ids, expected, "{}", request.node);
            }
            // What is unmerged is not rounded to the lattice: a draw at a border may turn out
            // differently.
            different += usize::from(found.token_ids != expected);
        }
        assert!(different <= 4, "{different} of 48 texts are others' or wrong");
        let status = engine.status();
        assert_eq!((status.running, status.waiting), (0, 0), "{status:?}");
        assert_eq!(status.preempted > 0, pages == 7, "{status:?}");
        let runtime = engine.close().unwrap();
        assert!(NODES.contains(&runtime.current()));
    }
}

#[test]
fn an_answer_of_a_fixed_merge_point_does_not_depend_on_the_company() {
    let dir = made();
    let texts = |company: usize| {
        let engine = engine(&dir, &small(100));
        let others: Vec<_> = (0..company)
            .map(|k| {
                let node = NODES[k % NODES.len()];
                engine.submit(request(node, Merge::Automatic, options(25, 90 + k as u64))).unwrap()
            })
            .collect();
        let asked = [Merge::Leaf, Merge::Parent, Merge::Root]
            .map(|merge| engine.submit(request("fr/work/alice", merge, options(15, 3))).unwrap());
        let texts = asked.map(|answer| answer.wait().unwrap().token_ids);
        others.into_iter().for_each(|other| drop(other.wait().unwrap()));
        texts
    };
    let lone = texts(0);
    for company in [1, 5, 24] {
        assert_eq!(texts(company), lone, "{company} others");
    }
}

#[test]
fn answers_come_step_by_step_and_end_when_they_are_told_to() {
    let dir = made();
    let engine = engine(&dir, &small(100));
    let mut long = engine.submit(request("fr", Merge::Automatic, options(60, 1))).unwrap();
    let first = long.next().unwrap().unwrap();
    assert!(first.token.is_some() && first.stop.is_none());
    long.cancel();
    let last = long.by_ref().last().unwrap().unwrap();
    assert_eq!((last.token, last.stop), (None, Some(StopReason::Cancelled)));
    assert!(long.next().is_none() && long.next_within(Duration::ZERO).is_none());
    // One that nobody waits for any more.
    drop(engine.submit(request("fr", Merge::Automatic, options(100, 1))).unwrap());
    let none = engine.submit(request("de", Merge::Automatic, options(0, 1))).unwrap();
    let none = none.wait().unwrap();
    assert_eq!((none.stop, none.token_ids.len()), (StopReason::MaxTokens, 0));
    // As the runtime cuts it.
    let mut stopping = request("de/carol", Merge::Leaf, options(40, 4));
    let whole = alone(&mut open(&dir), &stopping);
    let text = engine.submit(stopping.clone()).unwrap().wait().unwrap();
    assert_eq!(text.token_ids, whole);
    let at = text.text.char_indices().nth(text.text.chars().count() / 2).unwrap().0;
    let stop = text.text[at..].chars().take(2).collect::<String>();
    stopping.options.stop_texts = vec![stop.clone()];
    let cut = engine.submit(stopping).unwrap().wait().unwrap();
    assert_eq!(cut.stop, StopReason::StopText);
    assert_eq!(cut.text, text.text[..text.text.find(&stop).unwrap()]);
    let late =
        Request { deadline: Some(Duration::ZERO), ..request("fr", Merge::Leaf, options(9, 1)) };
    let late = engine.submit(late).unwrap().wait();
    assert!(matches!(late, Err(Error::Engine(EngineDefect::DeadlinePassed))), "{late:?}");
    let patient =
        Request { deadline: Some(Duration::MAX), ..request("fr", Merge::Leaf, options(9, 1)) };
    assert_eq!(engine.submit(patient).unwrap().wait().unwrap().token_ids.len(), 9);
}

#[test]
fn what_cannot_be_served_is_refused_and_concerns_nobody_else() {
    let dir = made();
    // Another shape than its matrix has.
    let modules = vec![TinyModule::linear("model.layers.0.self_attn.q_proj", 32, 64)];
    TinyAdapter::new(modules, 2, 9).write(&dir.path().join("tree/fr/work/mallory")).unwrap();
    let options_of = |limit| EngineOptions {
        scheduler: Options { max_running: 1, max_waiting: limit, ..Options::default() },
        ..small(20)
    };
    let engine = engine(&dir, &options_of(2));
    let unknown = engine.submit(request("fr/nobody", Merge::Leaf, options(9, 1)));
    let Err(Error::Tree(defect)) = unknown else { panic!("{unknown:?}") };
    assert!(matches!(*defect, TreeDefect::UnknownNode { .. }), "{defect}");
    let empty = Request::new("fr", Prompt::Tokens(Vec::new()));
    assert!(matches!(engine.submit(empty), Err(Error::EmptyPrompt)));
    let strange = engine.submit(Request::new("fr", Prompt::Tokens(vec![3, 999])));
    assert!(matches!(strange, Err(Error::UnknownToken { token: 999, .. })), "{strange:?}");
    let good = engine.submit(request("fr/work/alice", Merge::Leaf, options(30, 1))).unwrap();
    let bad = engine.submit(request("fr/work/mallory", Merge::Automatic, options(9, 1))).unwrap();
    let bad = bad.wait().unwrap_err();
    assert!(bad.to_string().contains("mallory"), "{bad}");
    let more: Vec<_> = (0..2)
        .map(|seed| engine.submit(request("de", Merge::Leaf, options(30, seed))).unwrap())
        .collect();
    let full = engine.submit(request("de", Merge::Leaf, options(30, 1)));
    assert!(
        matches!(full, Err(Error::Engine(EngineDefect::QueueFull { waiting: 3, limit: 3 }))),
        "{full:?}"
    );
    assert_eq!(good.wait().unwrap().token_ids.len(), 30);
    more.into_iter().for_each(|answer| assert_eq!(answer.wait().unwrap().token_ids.len(), 30));
    let closed = engine.submit(request("de", Merge::Leaf, options(100, 1))).unwrap();
    drop(engine);
    assert_eq!(closed.wait().unwrap().stop, StopReason::Cancelled);
    let tight = self::engine(&dir, &small(2));
    let large = tight.submit(request("de", Merge::Leaf, options(60, 1))).unwrap().wait();
    assert!(
        matches!(large, Err(Error::Engine(EngineDefect::TooLarge { limit: 2, .. }))),
        "{large:?}"
    );
    let zero = EngineOptions { kv_bytes: 1, ..EngineOptions::default() };
    assert!(matches!(Engine::new(open(&dir), &zero), Err(Error::CacheSize { .. })));
}

/// As many as may run and wait come at once, before any of them runs: nobody who was taken is refused
/// after all.
#[test]
fn as_many_as_there_are_places_are_served() {
    let dir = made();
    let scheduler = Options { max_running: 3, max_waiting: 1, ..Options::default() };
    let engine = engine(&dir, &EngineOptions { scheduler, ..small(20) });
    for turn in 0..30 {
        let ask = |k: u64| {
            // Those of the turn before have ended, so their places are free.
            engine.submit(request("/", Merge::Automatic, options(2, 10 * turn + k))).unwrap()
        };
        for answer in [0u64, 1, 2, 3].map(ask) {
            assert_eq!(answer.wait().unwrap().token_ids.len(), 2);
        }
    }
}

/// Every request ends with a word, wherever it is when the engine closes: while it runs, waits for a
/// place, or waits for its leaf to be read.
#[test]
fn everybody_hears_of_it_when_the_engine_closes() {
    let dir = made();
    for turn in 0..8 {
        let scheduler = Options { max_running: 2, max_waiting: 30, ..Options::default() };
        let engine = engine(&dir, &EngineOptions { scheduler, ..small(40) });
        let asked: Vec<_> = NODES
            .into_iter()
            .map(|node| engine.submit(request(node, Merge::Automatic, options(400, 1))).unwrap())
            .collect();
        std::thread::sleep(Duration::from_millis(turn));
        let closing = std::thread::spawn(move || engine.close());
        for answer in asked {
            let stop = answer.wait().unwrap().stop;
            assert_eq!(stop, StopReason::Cancelled);
        }
        assert!(closing.join().unwrap().is_ok());
    }
}

/// Whoever drops an answer that still waits for its turn takes no place and no page any more, long
/// before its turn comes.
#[test]
fn a_dropped_answer_makes_no_more_tokens() {
    let dir = made();
    let scheduler = Options { max_running: 1, ..Options::default() };
    let engine = engine(&dir, &EngineOptions { scheduler, ..small(40) });
    let mut first = engine.submit(request("fr", Merge::Leaf, options(400, 1))).unwrap();
    first.next().unwrap().unwrap();
    let dropped = engine.submit(request("fr", Merge::Leaf, options(400, 2))).unwrap();
    let has_waiting = |first: &mut Answer, count| {
        (0..300).any(|_| {
            let step = first.next().expect("it goes on").unwrap();
            assert!(step.stop.is_none(), "{step:?}");
            engine.status().waiting == count
        })
    };
    assert!(has_waiting(&mut first, 1));
    drop(dropped);
    assert!(has_waiting(&mut first, 0), "{:?}", engine.status());
}

/// A prompt longer than a step, in so few pages that company loses its own again and again.
#[test]
fn long_prompts_and_others_are_served_from_few_pages() {
    let dir = made();
    let mut runtime = open(&dir);
    let long = |node: &str, first: u32| Request {
        merge: Merge::Leaf,
        options: options(20, 5),
        ..Request::new(node, Prompt::Tokens((0..300).map(|k| (first + 7 * k) % 264).collect()))
    };
    // The first two share their pages.
    let mut requests = vec![long("fr/home", 0), long("fr/home", 0), long("fr/home", 1)];
    requests.extend((0..6).map(|seed| request("fr/home", Merge::Leaf, options(60, seed))));
    requests.push(long("de", 0));
    let expected: Vec<_> = requests.iter().map(|request| alone(&mut runtime, request)).collect();
    // The largest takes ten.
    for pages in [12, 16, 25] {
        let engine = engine(&dir, &small(pages));
        let asked: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
        for (k, (answer, expected)) in asked.into_iter().zip(&expected).enumerate() {
            assert_eq!(&answer.wait().unwrap().token_ids, expected, "request {k} of {pages} pages");
        }
        let status = engine.status();
        assert_eq!((status.running, status.waiting), (0, 0), "{status:?}");
        assert_eq!(status.pages.0, status.pages.1, "{status:?}");
    }
}

/// The cache may hold nothing, two may run, and leaves are read for one that waits at a time.
#[test]
fn everybody_is_served_where_no_deltas_may_wait() {
    let dir = made();
    let mut runtime = open(&dir);
    let builder = Runtime::builder().base(dir.path().join("base")).tree(dir.path().join("tree"));
    let small_cache = builder.headroom(8.0).delta_budget_bytes(0).open().unwrap();
    let scheduler = Options { max_running: 2, ..Options::default() };
    let engine = Engine::new(small_cache, &EngineOptions { scheduler, ..small(40) }).unwrap();
    let requests = (0..24).map(|k| request(NODES[k % 8], Merge::Leaf, options(10, k as u64)));
    let requests: Vec<_> = requests.collect();
    let asked: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
    for (answer, request) in asked.into_iter().zip(&requests) {
        assert_eq!(answer.wait().unwrap().token_ids, alone(&mut runtime, request));
    }
}

/// A delta that the lattice does not hold ends its own request.
#[test]
fn a_leaf_that_is_too_large_concerns_nobody_else() {
    let dir = made();
    let modules = vec![TinyModule::linear("model.layers.1.mlp.up_proj", 96, 64)];
    let adapter = TinyAdapter { alpha: 1e4, ..TinyAdapter::new(modules, 2, 9) };
    adapter.write(&dir.path().join("tree/fr/work/giant")).unwrap();
    let engine = engine(&dir, &small(40));
    let good = engine.submit(request("fr/work", Merge::Automatic, options(30, 1))).unwrap();
    let giant = engine.submit(request("fr/work/giant", Merge::Root, options(30, 1))).unwrap();
    let error = giant.wait().unwrap_err();
    assert!(matches!(error, Error::Overflow { .. }), "{error}");
    assert!(error.to_string().contains("fr/work/giant"), "{error}");
    assert_eq!(good.wait().unwrap().token_ids.len(), 30);
}

/// The weights of an engine may come to stand at any node above a leaf, so each has to fit: not the
/// leaf alone, which takes back what its parent adds too much.
#[test]
fn a_leaf_whose_parent_does_not_fit_is_refused_with_the_parents_name() {
    let dir = made();
    let write = |node: &str, alpha: f64| {
        let modules = vec![TinyModule::linear("model.layers.1.mlp.up_proj", 96, 64)];
        let adapter = TinyAdapter { alpha, ..TinyAdapter::new(modules, 2, 9) };
        adapter.write(&dir.path().join("tree").join(node)).unwrap();
    };
    write("giant", 300.0);
    write("giant/undone", -300.0);
    let mut runtime = open(&dir);
    runtime.switch_to("giant").unwrap_err();
    runtime.switch_to("giant/undone").unwrap();
    let engine = Engine::new(runtime, &small(40)).unwrap();
    assert_eq!(engine.status().node, "giant/undone");
    let undone = engine.submit(request("giant/undone", Merge::Automatic, options(5, 1))).unwrap();
    let error = undone.wait().unwrap_err();
    assert!(matches!(&error, Error::Overflow { node, .. } if node == "giant"), "{error}");
    let good = engine.submit(request("fr", Merge::Automatic, options(5, 1))).unwrap();
    assert_eq!(good.wait().unwrap().token_ids.len(), 5);
}

#[test]
fn a_prompt_of_one_leaf_is_computed_once_and_never_for_another() {
    let dir = made();
    let engine = engine(&dir, &small(100));
    let ask = |node: &str, salt: &[u8]| {
        let prompt = Prompt::Tokens((0..300).map(|k| 3 + k % 50).collect());
        let options = options(4, 7);
        let asked = Request { prompt, salt: salt.to_vec(), options, ..Request::new(node, "") };
        let before = engine.status();
        let answer = engine.submit(asked).unwrap().wait().unwrap().token_ids;
        let after = engine.status();
        (answer, (after.tokens - before.tokens, after.steps - before.steps))
    };
    let (first, all) = ask("fr/work/alice", b"");
    let (again, rest) = ask("fr/work/alice", b"");
    assert_eq!(first, again);
    // 128 tokens a step, and nine pages were there already.
    assert_eq!((all, rest), ((303, 6), (303 - 288, 4)));
    assert_eq!(ask("fr/work/alice", b"another").1, all);
    assert_eq!(ask("fr/work/bob", b"").1, all);
}

/// Every thread asks for its own node, many at once, and has its own answers.
#[test]
fn many_threads_ask_at_once() {
    let dir = made();
    let mut runtime = open(&dir);
    let expected: Vec<Vec<u32>> = NODES
        .iter()
        .map(|node| alone(&mut runtime, &request(node, Merge::Leaf, options(6, 11))))
        .collect();
    let engine = engine(&dir, &small(30));
    let right = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for (node, expected) in NODES.iter().zip(&expected) {
            let (engine, right) = (&engine, &right);
            scope.spawn(move || {
                for _ in 0..12 {
                    let asked = request(node, Merge::Leaf, options(6, 11));
                    let answer = engine.submit(asked).unwrap().wait().unwrap();
                    assert_eq!(&answer.token_ids, expected, "{node}");
                    right.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(right.into_inner(), 12 * NODES.len());
}
