//! How long people wait for their next token while something else goes on: somebody asks for a leaf
//! that has to be read and compiled first, or a store is published to.
//!
//! Eight people have a token at each step; the gaps between their tokens are compared, phase beside
//! phase, turn about. In every phase somebody else asks for a short answer now and then: at rest at a
//! leaf that is in memory, so that nothing but what the phase is about differs. Each prompt is computed:
//! none shares pages with one before.
//!
//! `cargo bench --bench latency -- [--threads N]`. Needs the base model that the tests use.

#![allow(clippy::print_stdout, reason = "a bench speaks to people")]

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pleach::adapter::Limits;
use pleach::base::BaseModel;
use pleach::compile::base_lattice;
use pleach::model::GenerateOptions;
use pleach::store::{Details, ImportOptions, Store};
use pleach::testing::{measures, smollm2_base};
use pleach::tree::AdapterTree;
use pleach::{Engine, EngineOptions, Request, Runtime};

const TASK: &str = "fr/sysadmin/name-line";
const PROMPT: &str = "Nomme en une ligne la commande qui montre quels processus occupent le plus de \
    mémoire vive sur une machine Linux.";
const HEADROOM: f32 = 1.5;
const PEOPLE: usize = 8;
/// Between two requests of others.
const PAUSE: Duration = Duration::from_millis(250);
/// Leaves that are made for all phases together.
const NEW: usize = 400;

/// What goes on in a phase.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// Others ask for a leaf that is in memory.
    Rest,
    /// Others ask for leaves that have to be read.
    NewLeaves,
    /// As at rest, while leaves are published one after another.
    Publishing,
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        let target = to.join(path.file_name().context("a name")?);
        if path.is_dir() {
            copy(&path, &target)?;
        } else {
            std::fs::copy(&path, &target)?;
        }
    }
    Ok(())
}

/// The shipped tree with people and new leaves below the task: `alice`, and the task's own adapter
/// again, which has more to be read.
fn tree(folder: &Path, new: usize) -> Result<()> {
    let task = folder.join(TASK);
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("trees/smollm2"), folder)?;
    let spare = folder.with_extension("leaf");
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::create_dir_all(&spare)?;
        std::fs::copy(task.join(file), spare.join(file))?;
    }
    for k in 0..PEOPLE {
        copy(&task.join("alice"), &task.join(format!("person-{k}")))?;
    }
    (0..new).try_for_each(|k| copy(&spare, &task.join(format!("new-{k}"))))
}

fn request(node: String, max_tokens: usize) -> Request {
    let options = GenerateOptions { max_tokens, ignore_eos: true, ..GenerateOptions::default() };
    Request { options, ..Request::new(node, PROMPT) }
}

/// Gaps of each phase in milliseconds, and what others waited for their first tokens.
type Gaps = Vec<(Phase, Vec<f64>, Vec<f64>)>;

/// Runs the phases in turn, each for `time`.
fn measure(
    engine: &Engine,
    publish: Option<&(dyn Fn(usize) -> Result<()> + Sync)>,
    phases: &[Phase],
    (turns, time): (usize, Duration),
) -> Result<Gaps> {
    let tokens: Vec<_> = (0..PEOPLE).map(|_| Arc::new(Mutex::new(Vec::<Instant>::new()))).collect();
    let ends = AtomicBool::new(false);
    let mut gaps: Gaps = phases.iter().map(|phase| (*phase, Vec::new(), Vec::new())).collect();
    std::thread::scope(|scope| -> Result<()> {
        for (k, tokens) in tokens.iter().enumerate() {
            let answer = engine.submit(request(format!("{TASK}/person-{k}"), 8000))?;
            let ends = &ends;
            scope.spawn(move || {
                for step in answer {
                    if step.is_err() || ends.load(Ordering::Relaxed) {
                        return;
                    }
                    tokens.lock().expect("nobody panics").push(Instant::now());
                }
            });
        }
        let known = format!("{TASK}/alice");
        engine.submit(request(known.clone(), 1))?.wait()?;
        let (mut new, mut published, mut asked_others) = (0, 0, 0u64);
        for turn in 0..turns {
            for (phase, gaps, waits) in &mut gaps {
                let (start, is_over) = (Instant::now(), AtomicBool::new(false));
                std::thread::scope(|scope| -> Result<()> {
                    let is_over = &is_over;
                    let publishing = (*phase == Phase::Publishing).then(|| {
                        scope.spawn(move || -> Result<usize> {
                            let mut count = published;
                            while !is_over.load(Ordering::Relaxed) {
                                publish.context("a store")?(count)?;
                                count += 1;
                            }
                            Ok(count)
                        })
                    });
                    while start.elapsed() < time {
                        let node = if *phase == Phase::NewLeaves {
                            new += 1;
                            format!("{TASK}/new-{}", (new - 1) % NEW)
                        } else {
                            known.clone()
                        };
                        let asked = Instant::now();
                        // A salt of its own, so that every prompt is computed.
                        asked_others += 1;
                        let salt = asked_others.to_le_bytes().to_vec();
                        let answered =
                            engine.submit(Request { salt, ..request(node, 1) })?.wait()?;
                        waits.push(answered.prefill_ms);
                        std::thread::sleep(PAUSE.saturating_sub(asked.elapsed()));
                    }
                    is_over.store(true, Ordering::Relaxed);
                    if let Some(publishing) = publishing {
                        published = publishing.join().expect("it does not panic")?;
                    }
                    Ok(())
                })?;
                let end = Instant::now();
                // The first turn warms up.
                if turn == 0 && turns > 1 {
                    waits.clear();
                    continue;
                }
                for tokens in &tokens {
                    let tokens = tokens.lock().expect("nobody panics");
                    let within = |pair: &&[Instant]| pair[0] >= start && pair[1] <= end;
                    let pairs = tokens.windows(2).filter(within);
                    gaps.extend(pairs.map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1e3));
                }
            }
        }
        println!("{new} new leaves asked for, {published} published");
        ends.store(true, Ordering::Relaxed);
        Ok(())
    })?;
    Ok(gaps)
}

fn quantile(sorted: &[f64], share: f64) -> f64 {
    let behind =
        sorted.iter().zip(1u32..).find(|(_, k)| f64::from(*k) >= share * sorted.len() as f64);
    *behind.expect("there are some").0
}

fn show(title: &str, gaps: Gaps) -> Result<()> {
    println!("{title}");
    let mut rest = None;
    for (phase, mut gaps, mut waits) in gaps {
        gaps.sort_by(f64::total_cmp);
        waits.sort_by(f64::total_cmp);
        ensure!(!gaps.is_empty() && !waits.is_empty(), "no token came in {phase:?}");
        let [median, most] = [0.5, 0.99].map(|share| quantile(&gaps, share));
        let rest = *rest.get_or_insert(most);
        println!(
            "  {:12} {:6} gaps: median {median:6.1} ms, p99 {most:6.1} ms = {:.2} of rest; others' first token {:6.1} ms",
            format!("{phase:?}"),
            gaps.len(),
            most / rest,
            quantile(&waits, 0.5)
        );
    }
    Ok(())
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let threads = arguments.iter().position(|argument| argument == "--threads");
    let threads = threads.and_then(|at| arguments.get(at + 1)).map_or(Ok(1), |n| n.parse());
    let threads = threads.context("--threads")?;
    let Some(path) = smollm2_base() else { return Ok(()) };
    let (turns, new) =
        if measures() { ((6, Duration::from_secs(4)), NEW) } else { ((1, PAUSE), 4) };
    let dir = tempfile::tempdir()?;
    let (folder, stored) = (dir.path().join("tree"), dir.path().join("store"));
    tree(&folder, new)?;
    let leaf = folder.with_extension("leaf");
    let options = EngineOptions::default();

    let builder = Runtime::builder().base(&path).tree(&folder);
    let runtime = builder.headroom(HEADROOM).threads(threads).open()?;
    println!("{}", runtime.device());
    let engine = Engine::new(runtime, &options)?;
    let gaps = measure(&engine, None, &[Phase::Rest, Phase::NewLeaves], turns)?;
    show("a tree of PEFT folders: new leaves are read and compiled", gaps)?;
    println!("{}", engine.status().cost);
    drop(engine);

    let base = BaseModel::open(&path)?;
    let lattice = base_lattice(&base, HEADROOM, |_, _| ())?;
    let import = ImportOptions::default();
    Store::import(&stored, &AdapterTree::open(&folder)?, &base, &lattice, import, |_, _| ())?;
    let store = Store::open(&stored)?;
    let builder = Runtime::builder().base_model(base).nodes(store.clone());
    let engine = Engine::new(builder.threads(threads).open()?, &options)?;
    let publish = |k: usize| -> Result<()> {
        let content = store.compile_adapter(&leaf, None, &Limits::default(), false)?;
        store.publish(&format!("{TASK}/published-{k}"), content, Details::default())?;
        Ok(())
    };
    let phases = [Phase::Rest, Phase::NewLeaves, Phase::Publishing];
    let gaps = measure(&engine, Some(&publish), &phases, turns)?;
    show("a store: new leaves are read; leaves are compiled and published", gaps)
}
