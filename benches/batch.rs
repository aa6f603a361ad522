//! A batch whose rows belong to different people: milliseconds a step and tokens a second, each
//! layout beside one merged node for all rows, in the same run, turn about.
//!
//! `cargo bench --bench batch -- [--threads N] [--only PART_OF_A_NAME]`. Needs the base model that the tests use. The leaves
//! are made: `fr/sysadmin/name-line/alice`, a little changed for each.

#![allow(clippy::print_stdout, reason = "a bench speaks to people")]

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use pleach::adapter::{AdapterDeltas, FloatDelta, Limits};
use pleach::runtime::Prompt;
use pleach::runtime::measure::{MeasuredBatch, median};
use pleach::testing::{measures, smollm2_base};
use pleach::tree::{AdapterTree, NodeSource};
use pleach::{PeftAdapter, Runtime};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const TASK: &str = "fr/sysadmin/name-line";
const PROMPT: &str = "Nomme en une ligne la commande qui montre quels processus occupent le plus de \
    mémoire vive sur une machine Linux.";

/// What others are compared with.
const ONE: &str = "16 rows at one node";

/// A layout of rows.
struct Layout {
    name: String,
    /// Where the weights stand.
    stand: String,
    nodes: Vec<String>,
    /// The layout that it is compared with.
    beside: Option<usize>,
}

/// A leaf as `alice` is, its factors a little moved and cut or repeated to `rank`.
fn leaf(alice: &AdapterDeltas, rank: usize, rng: &mut StdRng) -> AdapterDeltas {
    let mut made = AdapterDeltas::default();
    for (name, delta) in alice {
        let FloatDelta::LowRank { rank: own, lora_a, lora_b, scaling } = delta else { continue };
        let (cols, rows) = (lora_a.len() / own, lora_b.len() / own);
        let mut moved = |x: f32| x * rng.random_range(0.5..1.5);
        let a = (0..rank).flat_map(|r| &lora_a[r % own * cols..][..cols]).map(|x| moved(*x));
        let a = a.collect();
        let b = (0..rows).flat_map(|i| (0..rank).map(move |r| (i, r)));
        let b = b.map(|(i, r)| moved(lora_b[i * own + r % own]) / (rank / own).max(1) as f32);
        let delta = FloatDelta::LowRank { rank, lora_a: a, lora_b: b.collect(), scaling: *scaling };
        made.insert(name.clone(), delta);
    }
    made
}

/// The shipped tree twice, as two languages, with made tasks and leaves.
fn tree(base: &pleach::BaseModel) -> Result<AdapterTree> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("trees/smollm2");
    let shapes = pleach::runtime::shapes(base);
    let read = |node: &str| -> Result<Arc<AdapterDeltas>> {
        Ok(Arc::new(PeftAdapter::open(&folder.join(node), &Limits::default())?.deltas(&shapes)?))
    };
    let mut builder = AdapterTree::builder();
    let mut add = |name: &str, deltas: Arc<AdapterDeltas>| {
        let parent = name.rsplit_once('/').map_or("/", |(parent, _)| parent).to_owned();
        let next = std::mem::take(&mut builder).node(name, parent, NodeSource::Memory(deltas));
        builder = next;
    };
    let alice = read("fr/sysadmin/name-line/alice")?;
    let mut rng = StdRng::seed_from_u64(1);
    let levels = ["fr", "fr/sysadmin", TASK].map(&read);
    let [language, domain, task] = levels;
    let (language, domain, task) = (language?, domain?, task?);
    for (country, tasks) in [("fr", 4), ("es", 1)] {
        add(country, language.clone());
        add(&format!("{country}/sysadmin"), domain.clone());
        for number in 0..tasks {
            let name = match number {
                0 => format!("{country}/sysadmin/name-line"),
                number => format!("{country}/sysadmin/task-{number}"),
            };
            add(&name, task.clone());
            let leaves = if name == TASK { 1000 } else { 16 };
            for user in 0..leaves {
                add(&format!("{name}/user-{user}"), Arc::new(leaf(&alice, 2, &mut rng)));
            }
        }
    }
    for rank in [8, 16] {
        for user in 0..16 {
            let name = format!("{TASK}/rank-{rank}-{user}");
            add(&name, Arc::new(leaf(&alice, rank, &mut rng)));
        }
    }
    Ok(builder.build()?)
}

fn users(task: &str, range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|user| format!("{task}/user-{user}")).collect()
}

fn layouts() -> Vec<Layout> {
    let one = format!("{TASK}/user-0");
    let mut layouts: Vec<Layout> = Vec::new();
    let mut add = |name: &str, stand: &str, nodes: Vec<String>| {
        // One merged node with as many rows comes first.
        let beside = layouts.iter().position(|layout: &Layout| {
            layout.nodes.len() == nodes.len() && layout.nodes.iter().all(|node| *node == one)
        });
        let layout = Layout { name: name.to_owned(), stand: stand.to_owned(), nodes, beside };
        layouts.push(layout);
    };
    for rows in [1, 2, 4, 6, 7, 8, 12, 16, 24, 32, 64] {
        add(&format!("{rows} rows at one node"), &one, vec![one.clone(); rows]);
    }
    add("1 own leaf", TASK, users(TASK, 0..1));
    add("16 own leaves of rank 2", TASK, users(TASK, 0..16));
    for rank in [8, 16] {
        let nodes = (0..16).map(|user| format!("{TASK}/rank-{rank}-{user}")).collect();
        add(&format!("16 own leaves of rank {rank}"), TASK, nodes);
    }
    add("64 own leaves of rank 2", TASK, users(TASK, 0..64));
    let tasks = (1..4).map(|task| format!("fr/sysadmin/task-{task}")).chain([TASK.to_owned()]);
    add("4 tasks of 4 leaves", "fr/sysadmin", tasks.flat_map(|task| users(&task, 0..4)).collect());
    let languages = [TASK, "es/sysadmin/name-line"];
    add(
        "2 languages of 8 leaves",
        "/",
        languages.iter().flat_map(|task| users(task, 0..8)).collect(),
    );
    layouts
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let option = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)
    };
    let threads = option("--threads").map_or(Ok(1), |n| n.parse()).context("--threads")?;
    let Some(path) = smollm2_base() else { return Ok(()) };
    let base = pleach::BaseModel::open(&path)?;
    let tree = tree(&base)?;
    let builder =
        Runtime::builder().base_model(base).adapter_tree(tree).threads(threads).headroom(1.5);
    let mut runtime = builder.open()?;
    let prompt = runtime.encode(&Prompt::from(PROMPT))?;
    let mut layouts = layouts();
    if let Some(part) = option("--only") {
        layouts.retain(|layout| layout.name.contains(part.as_str()) || layout.name == ONE);
        layouts.iter_mut().for_each(|layout| layout.beside = Some(0));
    }
    check(&mut runtime)?;
    let (turns, steps) = if measures() { (5, 3) } else { (1, 1) };
    let tokens = prompt.len() + turns * (steps + 1) + 2;
    let mut batches = Vec::new();
    let mut prompts = Vec::new();
    for layout in &layouts {
        let mut batch = MeasuredBatch::new(&mut runtime, &layout.nodes, tokens)?;
        runtime.switch_to(&layout.stand)?;
        prompts.push(batch.prompt(&runtime, &prompt)?);
        batches.push(batch);
    }
    let mut times = vec![Vec::new(); layouts.len()];
    for _ in 0..turns {
        for ((layout, batch), times) in layouts.iter().zip(&mut batches).zip(&mut times) {
            if runtime.current() != layout.stand {
                runtime.switch_to(&layout.stand)?;
            }
            // The first brings the weights back into the caches.
            batch.step(&runtime)?;
            for _ in 0..steps {
                times.push(batch.step(&runtime)?);
            }
        }
    }
    println!("{}, prompts of {} tokens", runtime.device(), prompt.len());
    println!(
        "{:28} {:>9} {:>8} {:>8}  {:>9} {:>8}",
        "", "ms a step", "tok/s", "of one", "prompts ms", "of one"
    );
    for (k, layout) in layouts.iter().enumerate() {
        let ms = median(times[k].iter().copied());
        let rows = layout.nodes.len() as f64;
        // Of the turns, each beside its neighbour of the same turn.
        let ratio = layout
            .beside
            .map(|one| median(times[one].iter().zip(&times[k]).map(|(one, own)| one / own)));
        let prompt_ratio = layout.beside.map(|one| prompts[one] / prompts[k]);
        let show = |ratio: Option<f64>| ratio.map_or(String::new(), |ratio| format!("{ratio:.3}"));
        println!(
            "{:28} {ms:9.2} {:8.1} {:>8}  {:9.1} {:>8}",
            layout.name,
            rows * 1e3 / ms,
            show(ratio),
            prompts[k],
            show(prompt_ratio)
        );
    }
    many_leaves(&mut runtime, &prompt, turns)?;
    batches.into_iter().for_each(|batch| batch.end(&mut runtime));
    Ok(())
}

/// 16 rows that are others at each step, of 5 leaves and of 1,000.
fn many_leaves(runtime: &mut Runtime, prompt: &[u32], turns: usize) -> Result<()> {
    runtime.switch_to(TASK)?;
    let mut times = [Vec::new(), Vec::new()];
    let count = if measures() { 30 } else { 1 };
    let mut batches = Vec::new();
    for leaves in [5, 1000] {
        let batch =
            |k: usize| (0..16).map(move |row| format!("{TASK}/user-{}", (k * 16 + row) % leaves));
        let made = (0..count).map(|k| {
            let mut batch = MeasuredBatch::new(
                runtime,
                &batch(k).collect::<Vec<_>>(),
                prompt.len() + turns + 2,
            )?;
            batch.prompt(runtime, &prompt[..4])?;
            Ok(batch)
        });
        batches.push(made.collect::<Result<Vec<_>>>()?);
    }
    for k in 0..count {
        for (batches, times) in batches.iter_mut().zip(&mut times) {
            times.push(batches[k].step(runtime)?);
        }
    }
    let ratio = median(times[0].iter().zip(&times[1]).map(|(few, many)| few / many));
    println!("16 rows, others each step: of 1,000 leaves {ratio:.3} of the speed of 5");
    batches.into_iter().flatten().for_each(|batch| batch.end(runtime));
    Ok(())
}

/// A row at a leaf above which the weights stand has the logits of the leaf itself.
fn check(runtime: &mut Runtime) -> Result<()> {
    let prompt = Prompt::from(PROMPT);
    let leaf = format!("{TASK}/user-3");
    runtime.switch_to(&leaf)?;
    let merged = runtime.score(&prompt)?.logits;
    runtime.switch_to("/")?;
    let root = runtime.score(&prompt)?.logits;
    let below = runtime.score_below(&prompt, &leaf)?.logits;
    let distance = |a: &[f32], b: &[f32]| {
        a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
    };
    let share = distance(&below, &merged) / distance(&root, &merged);
    ensure!(share < 0.01, "unmerged logits are off by {share} of the shift");
    println!("unmerged from the root: off by {share:.5} of the leaf's shift");
    Ok(())
}
