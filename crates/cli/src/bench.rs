//! `pleach bench`: what this machine makes of it, every figure beside its ceiling, in one run.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use pleach::adapter::{AdapterDeltas, FloatDelta};
use pleach::base::{BaseModel, SHAPES};
use pleach::error::RefusedEntry;
use pleach::runtime::measure::{Measure, Measured, MeasuredSwitch, median};
use pleach::runtime::{Nodes, open_base};
use pleach::store::{Store, StoreNode};
use pleach::tree::{AdapterTree, NodeId, NodeSource, TreeBuilder};
use pleach::{Runtime, WeightName};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use super::Console;
use super::left_out::refused_lines;
use super::model::Loading;

/// Tokens of context before the decoded ones.
const CONTEXT: usize = 16;
/// Tokens decoded in one turn of a comparison.
const DECODED: usize = 16;

/// Measure switches, decode and prefill beside what this machine's memory and multipliers allow
#[derive(Args)]
#[command(after_help = "\
Every ceiling is measured beside the figure, in turns, and a ratio is the median of the turns' \
ratios. The ceiling of a switch is the larger of two times: reading, changing and writing the \
touched weights, and as many integer products from registers as the adapters' factors need. That \
of a decoded token is reading its weights; that of a prompt, its float products from registers. \
Made adapters (switch_all_*: all linears; switch_qv_*: q and v) go from leaf to sibling leaf. \
GB/s are the touched weights, read and written, over the time of the call. On a GPU the times of \
pass and copies by its own clock stand beside it, and *_uploading_ms is a switch whose target's \
deltas are in RAM but not on the GPU. On a software adapter the longest prompt is left out, and \
the walk that ends a measurement is a tenth as long.
Answers are checked first: weights at visited nodes against a fresh load, the root's bits against \
the base.")]
pub(crate) struct Bench {
    /// Base model: a Hugging Face folder, a GGUF file, or hf:ORG/NAME[@REVISION]
    #[arg(long, required_unless_present = "shapes")]
    base: Option<PathBuf>,
    /// Folder of the tree of adapters, or a store
    #[arg(long)]
    tree: Option<PathBuf>,
    /// Make random weights of this model's shapes instead of loading a base
    #[arg(long, value_name = "NAME", conflicts_with_all = ["base", "tree"], value_parser = SHAPES)]
    shapes: Option<String>,
    /// Ranks of the made adapters
    #[arg(long, value_name = "R,…", value_delimiter = ',', default_values_t = [2, 4, 8, 16, 64])]
    ranks: Vec<usize>,
    /// Turns of every measurement; on a GPU no further one after two seconds
    #[arg(long, value_name = "N", default_value_t = 9)]
    repeats: usize,
    #[command(flatten)]
    loading: Loading,
}

/// Switches of the walk that ends a measurement.
const DRIFT_SWITCHES: usize = 1000;
/// Most nodes of a store that are looked at.
const MAX_STORE_NODES: usize = 1000;

/// The answer as JSON.
#[derive(Serialize)]
struct Answer {
    base: String,
    device: String,
    figures: Vec<Figure>,
    /// What of the tree was left out, each with its reason.
    refused: Vec<RefusedEntry>,
}

/// One figure.
#[derive(Serialize)]
struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    /// What the machine allows, in the same unit.
    ceiling: Option<f64>,
    /// `value / ceiling`.
    ratio: Option<f64>,
    /// Of a switch: bytes of weights read and written over the time of the call, in 10⁹ a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    gb_s: Option<f64>,
    /// Of a switch on a GPU: the pass, by its own clock, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    device_pass_ms: Option<f64>,
    /// Of a switch on a GPU: the copies of deltas, by its own clock, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    device_upload_ms: Option<f64>,
}

impl Bench {
    pub(crate) fn run(self, console: &Console) -> anyhow::Result<ExitCode> {
        anyhow::ensure!(self.repeats > 0, "--repeats 0: at least one turn is needed");
        let unfit = self.ranks.iter().find(|rank| !(1..=512).contains(*rank));
        anyhow::ensure!(
            unfit.is_none(),
            "--ranks: every rank lies between 1 and 512, not {}",
            unfit.unwrap_or(&0)
        );
        let base = self.base()?;
        let held = base.config().max_position_embeddings;
        anyhow::ensure!(
            held >= 2,
            "the base holds {held} token of context, and decoding takes 2 at least"
        );
        let (mut figures, mut refused) = (Figures::default(), Vec::new());
        if let Some(folder) = &self.tree {
            let nodes = Nodes::open(folder)?;
            let tree = match &nodes {
                Nodes::Tree(tree) => (**tree).clone(),
                Nodes::Store(store) => outline(store)?,
            };
            let mut runtime = self.loading.open_model(base, nodes, console)?;
            refused = self.measure_tree(&mut runtime, &tree, &mut figures, console)?;
        }
        let base = self.base()?;
        let tree = made_tree(&base, &self.ranks)?;
        let mut runtime = self.loading.open_model(base, tree, console)?;
        self.measure_made(&mut runtime, &mut figures, console)?;
        let (base, device) = (runtime.base().path().display().to_string(), runtime.device());
        let answer = Answer { base, device, figures: figures.0, refused };
        console.answer(&answer, || answer.text())?;
        Ok(ExitCode::SUCCESS)
    }

    fn base(&self) -> anyhow::Result<BaseModel> {
        match (&self.shapes, &self.base) {
            (Some(shapes), _) => Ok(BaseModel::made(shapes).expect("clap takes no other names")),
            (None, base) => Ok(open_base(base.as_deref().unwrap_or(Path::new("")))?),
        }
    }

    /// The figures of a real tree: its deepest pair of sibling leaves, and the way there from the
    /// root. Returns what of the tree is refused.
    fn measure_tree(
        &self,
        runtime: &mut Runtime,
        tree: &AdapterTree,
        figures: &mut Figures,
        console: &Console,
    ) -> anyhow::Result<Vec<RefusedEntry>> {
        memory(runtime, figures, "loaded");
        console
            .note(&format!("checking the tree's weights at every node, on {}", runtime.device()));
        let check = runtime.verify(4 * tree.len(), 1, 1, |_| ())?;
        anyhow::ensure!(
            check.is_clean(),
            "the weights are not what they should be: {check:?}; nothing was measured"
        );
        let (a, b) = siblings(tree, &check.refused);
        let [a, b] = [a, b].map(|node| tree.name(node).to_owned());
        console.note(&format!("measuring {a} ↔ {b}"));
        deltas_at_hand(runtime, &a, &b)?;
        let leaf = Measure::new(runtime).switch(&a, &b, 4 * self.repeats)?;
        figures.switch("switch_leaf_ms", leaf);
        if let Some(uploading) = Measure::new(runtime).uploading_switch(&a, &b, 4 * self.repeats)? {
            figures.switch("switch_leaf_uploading_ms", uploading);
        }
        deltas_at_hand(runtime, "/", &a)?;
        figures.switch("switch_path_ms", Measure::new(runtime).switch("/", &a, self.repeats)?);

        runtime.switch_to("/")?;
        self.speeds(runtime, figures, "base")?;
        runtime.switch_to(&a)?;
        let there = self.speeds(runtime, figures, "leaf")?;
        figures.ratio("switch_leaf_over_token", leaf.time.ms / there);
        figures.ratio("decode_leaf_over_base", self.leaf_over_base(runtime, &a)?);

        let switches = if is_software(runtime) { DRIFT_SWITCHES / 10 } else { DRIFT_SWITCHES };
        console.note(&format!("checking the weights on a walk of {switches} switches"));
        let drift = runtime.verify(switches, 50, 2, |_| ())?;
        figures.plain("drift_switches", switches as f64, "switches");
        figures.plain("drift_bits", drift.differing_bits as f64, "bits");
        figures.plain("drift_mismatched_nodes", drift.mismatched_nodes.len() as f64, "nodes");
        resident(runtime, figures);
        memory(runtime, figures, "used");
        let uploaded = runtime.device_cache_stats().bytes;
        figures.plain("delta_bytes", runtime.cache_stats().bytes as f64, "bytes");
        if uploaded > 0 {
            figures.plain("gpu_delta_bytes", uploaded as f64, "bytes");
        }
        if let Some(bytes) = peak_memory_bytes() {
            figures.plain("peak_memory_bytes", bytes, "bytes");
        }
        Ok(check.refused)
    }

    /// Decode speed at `leaf` against the root's, in turns: a machine whose speed drifts then
    /// drifts for both.
    fn leaf_over_base(&self, runtime: &mut Runtime, leaf: &str) -> anyhow::Result<f64> {
        let mut ratios = Vec::new();
        for _ in Measure::new(runtime).turns(self.repeats) {
            let mut token = |node| -> pleach::Result<f64> {
                runtime.switch_to(node)?;
                let (context, decoded) = decoding(runtime);
                Ok(Measure::new(runtime).decode(context, decoded.min(DECODED))?.ms)
            };
            ratios.push(token("/")? / token(leaf)?);
        }
        Ok(median(ratios.into_iter()))
    }

    /// Decode and prefill at the current node, as long as the base's context is; returns the
    /// milliseconds of a token.
    fn speeds(
        &self,
        runtime: &mut Runtime,
        figures: &mut Figures,
        place: &str,
    ) -> anyhow::Result<f64> {
        let token = self.decode(runtime)?;
        figures.speed(&format!("decode_tok_s_{place}"), 1.0, token);
        let held = runtime.base().config().max_position_embeddings;
        let longest = held.min(if is_software(runtime) { 256 } else { 512 });
        let mut lengths = [64, 256, 512].map(|tokens| tokens.min(longest)).to_vec();
        lengths.dedup();
        for tokens in lengths {
            let prompt = Measure::new(runtime).prefill(tokens, self.repeats)?;
            let suffix = if tokens == 256 { String::new() } else { format!("_{tokens}") };
            figures.speed(&format!("prefill_tok_s_{place}{suffix}"), tokens as f64, prompt);
        }
        Ok(token.ms)
    }

    fn decode(&self, runtime: &mut Runtime) -> pleach::Result<Measured> {
        let (context, decoded) = decoding(runtime);
        Measure::new(runtime).decode(context, (8 * self.repeats).min(decoded))
    }

    /// The figures of made adapters of every rank, on all linears and on q and v.
    fn measure_made(
        &self,
        runtime: &mut Runtime,
        figures: &mut Figures,
        console: &Console,
    ) -> anyhow::Result<()> {
        let token = match self.tree {
            Some(_) => self.decode(runtime)?.ms,
            None => {
                memory(runtime, figures, "loaded");
                resident(runtime, figures);
                self.speeds(runtime, figures, "base")?
            }
        };
        let largest = self.ranks.iter().max().copied().unwrap_or_default();
        let [a, b] = made_pair(SETS[0].0, largest);
        deltas_at_hand(runtime, &a, &b)?;
        console.note("checking the made adapters' weights");
        let check = runtime.verify(runtime.held_versions().min(12), 1, 1, |_| ())?;
        anyhow::ensure!(
            check.is_clean(),
            "the weights are not what they should be: {check:?}; no figure holds"
        );
        let before = runtime.fingerprint()?;
        for (set, _) in SETS {
            for rank in &self.ranks {
                console.note(&format!("measuring made adapters of rank {rank} on {set}"));
                let [a, b] = made_pair(set, *rank);
                let measured = Measure::new(runtime).switch(&a, &b, self.repeats)?;
                let name = format!("switch_{set}_r{rank}");
                figures.switch(&format!("{name}_ms"), measured);
                if let Some(uploading) =
                    Measure::new(runtime).uploading_switch(&a, &b, self.repeats)?
                {
                    figures.switch(&format!("{name}_uploading_ms"), uploading);
                }
                figures.ratio(&format!("{name}_over_token"), measured.time.ms / token);
                let tokens =
                    (2 * rank).max(32).min(runtime.base().config().max_position_embeddings);
                let forward = Measure::new(runtime).prefill(tokens, 3)?;
                figures.ratio(
                    &format!("{name}_over_prompt_of_{tokens}"),
                    measured.time.ms / forward.ms,
                );
            }
        }
        if self.tree.is_none() {
            memory(runtime, figures, "used");
        }
        runtime.switch_to("/")?;
        anyhow::ensure!(
            runtime.fingerprint()? == before,
            "the root's bits changed; no figure of this run holds"
        );
        Ok(())
    }
}

/// Tokens of context before the decoded ones, and how many of these: a base of a short context
/// leaves half of it to either.
fn decoding(runtime: &Runtime) -> (usize, usize) {
    let held = runtime.base().config().max_position_embeddings;
    let context = if held > CONTEXT + DECODED { CONTEXT } else { (held - 1) / 2 };
    (context, held - context - 1)
}

/// Fails if a switch between the two has to compile or upload: that is no measure of a switch.
fn deltas_at_hand(runtime: &mut Runtime, a: &str, b: &str) -> anyhow::Result<()> {
    runtime.switch_to(a)?;
    runtime.switch_to(b)?;
    let report = runtime.switch_to(a)?;
    let after = runtime.switch_to(b)?;
    let short = |option: &str| {
        format!("{option} has no memory for the deltas of both {a} and {b}: give more MiB")
    };
    anyhow::ensure!(
        report.compiled.is_empty() && after.compiled.is_empty(),
        short("--delta-budget")
    );
    anyhow::ensure!(
        report.uploaded.is_empty() && after.uploaded.is_empty(),
        short("--gpu-delta-budget")
    );
    Ok(())
}

/// Whether a software adapter plays the GPU: it cannot do as much in minutes.
#[cfg(feature = "gpu")]
fn is_software(runtime: &Runtime) -> bool {
    runtime.gpu().is_some_and(|gpu| gpu.info().is_software())
}

#[cfg(not(feature = "gpu"))]
fn is_software(_: &Runtime) -> bool {
    false
}

/// A GPU's memory by its allocator's own count, where it keeps one.
fn memory(runtime: &Runtime, figures: &mut Figures, when: &str) {
    #[cfg(feature = "gpu")]
    let bytes = runtime.gpu().and_then(|gpu| gpu.allocated_bytes());
    #[cfg(not(feature = "gpu"))]
    let bytes = None::<u64>;
    if let Some(bytes) = bytes {
        let per_weight = bytes as f64 / runtime.resident_parameters() as f64;
        figures.plain(&format!("gpu_bytes_per_weight_{when}"), per_weight, "bytes");
    }
}

fn resident(runtime: &Runtime, figures: &mut Figures) {
    let per_weight = runtime.resident_bytes() as f64 / runtime.resident_parameters() as f64;
    figures.plain("resident_bytes_per_weight", per_weight, "bytes");
}

/// The process's peak resident memory, where the operating system reports it.
fn peak_memory_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0)
}

/// The deepest two leaves with one parent; a leaf and its parent where no two are.
fn siblings(tree: &AdapterTree, refused: &[RefusedEntry]) -> (NodeId, NodeId) {
    let refused: HashSet<&str> = refused.iter().map(|entry| &entry.name[..]).collect();
    let is_served = |node: &NodeId| !refused.contains(tree.name(*node));
    // A leaf of what is served: what hangs below it, if anything, is refused.
    let is_leaf = |node: &NodeId| is_served(node) && !tree.children(*node).iter().any(is_served);
    let mut leaves: Vec<NodeId> = tree.nodes().filter(is_leaf).collect();
    leaves.sort_by_key(|&leaf| std::cmp::Reverse(tree.depth(leaf)));
    let pair = leaves.iter().enumerate().find_map(|(k, &a)| {
        let b = leaves[k + 1..].iter().find(|&&b| tree.parent(b) == tree.parent(a))?;
        Some((a, *b))
    });
    pair.unwrap_or_else(|| {
        let leaf = leaves.first().copied().unwrap_or_else(|| tree.root());
        (leaf, tree.parent(leaf).unwrap_or_else(|| tree.root()))
    })
}

/// The first nodes of a store as a tree of nothing but names.
fn outline(store: &Store) -> pleach::Result<AdapterTree> {
    let nodes = store.list("", None, MAX_STORE_NODES)?;
    let add = |tree: TreeBuilder, node: StoreNode| {
        tree.node(node.name, node.version.parent, NodeSource::Memory(Arc::default()))
    };
    nodes.into_iter().fold(AdapterTree::builder(), add).build()
}

/// Which modules the made adapters change.
const SETS: [(&str, &[&str]); 2] = [("all", &["proj"]), ("qv", &["q_proj", "v_proj"])];

/// The names of two made siblings.
fn made_pair(set: &str, rank: usize) -> [String; 2] {
    ["a", "b"].map(|leaf| format!("{set}-r{rank}-{leaf}"))
}

/// Two sibling leaves for every rank and set, random, their deltas about a hundredth of the
/// weights.
fn made_tree(base: &BaseModel, ranks: &[usize]) -> anyhow::Result<AdapterTree> {
    let mut builder = AdapterTree::builder();
    for (set, modules) in SETS {
        for &rank in ranks {
            for (seed, leaf) in made_pair(set, rank).into_iter().enumerate() {
                let deltas = made_adapter(base, modules, rank, seed as u64);
                builder = builder.node(leaf, "/", NodeSource::Memory(Arc::new(deltas)));
            }
        }
    }
    Ok(builder.build()?)
}

fn made_adapter(base: &BaseModel, modules: &[&str], rank: usize, seed: u64) -> AdapterDeltas {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut random = |n: usize, size: f32| -> Vec<f32> {
        (0..n).map(|_| rng.random_range(-size..size)).collect()
    };
    let targeted = |name: &WeightName| {
        modules.iter().any(|module| name.as_str().ends_with(&format!("{module}.weight")))
    };
    base.weights()
        .filter(|(name, info)| info.shape.len() == 2 && targeted(name))
        .map(|(name, info)| {
            let (lora_a, lora_b) =
                (random(rank * info.cols(), 0.02), random(rank * info.rows(), 0.02));
            (name.clone(), FloatDelta::LowRank { rank, lora_a, lora_b, scaling: 1.0 })
        })
        .collect()
}

/// The figures so far.
#[derive(Default)]
struct Figures(Vec<Figure>);

impl Figures {
    fn switch(&mut self, name: &str, measured: MeasuredSwitch) {
        let MeasuredSwitch { time: Measured { ms, ceiling_ms, ratio }, .. } = measured;
        self.0.push(Figure {
            gb_s: Some(measured.touched_bytes as f64 / ms / 1e6),
            device_pass_ms: measured.device_pass_ms,
            device_upload_ms: measured.device_upload_ms,
            ..Figure::new(name, ms, "ms", Some((ceiling_ms, ratio)))
        });
    }

    fn speed(&mut self, name: &str, tokens: f64, measured: Measured) {
        let speed = |ms: f64| tokens / ms * 1e3;
        let ceiling = Some((speed(measured.ceiling_ms), 1.0 / measured.ratio));
        self.0.push(Figure::new(name, speed(measured.ms), "tok/s", ceiling));
    }

    fn ratio(&mut self, name: &str, value: f64) {
        self.plain(name, value, "×");
    }

    fn plain(&mut self, name: &str, value: f64, unit: &'static str) {
        self.0.push(Figure::new(name, value, unit, None));
    }
}

impl Figure {
    /// A figure, beside its ceiling and the ratio to it if it has one.
    fn new(name: &str, value: f64, unit: &'static str, ceiling: Option<(f64, f64)>) -> Self {
        let (name, none) = (name.to_owned(), None);
        let (ceiling, ratio) = ceiling.unzip();
        Self {
            name,
            value,
            unit,
            ceiling,
            ratio,
            gb_s: none,
            device_pass_ms: none,
            device_upload_ms: none,
        }
    }
}

impl Answer {
    fn text(&self) -> String {
        let mut text = format!(
            "{} on {}\n\n{:<36}{:>14} {:<9}{:>14}{:>8}{:>9}{:>11}{:>11}\n",
            self.base,
            self.device,
            "figure",
            "value",
            "",
            "ceiling",
            "ratio",
            "GB/s",
            "pass ms",
            "upload ms"
        );
        let or_blank = |value: Option<f64>, decimals| {
            value.map_or(String::new(), |v| format!("{v:.decimals$}"))
        };
        for figure in &self.figures {
            let Figure { name, value, unit, .. } = figure;
            let decimals = if value.fract() == 0.0 { 0 } else { 3 };
            let line = format!(
                "{name:<36}{value:>14.decimals$} {unit:<9}{:>14}{:>8}{:>9}{:>11}{:>11}",
                or_blank(figure.ceiling, 3),
                or_blank(figure.ratio, 2),
                or_blank(figure.gb_s, 2),
                or_blank(figure.device_pass_ms, 3),
                or_blank(figure.device_upload_ms, 3),
            );
            text += &format!("{}\n", line.trim_end());
        }
        for line in refused_lines(&self.refused) {
            text += &format!("{line}\n");
        }
        text
    }
}
