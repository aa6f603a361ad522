//! `pleach demo`: loads a base once and walks a whole tree, saying what happens.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use indicatif::HumanCount;
use pleach::Runtime;
use pleach::adapter::Limits;
use pleach::base::fetched_smollm2;
use pleach::model::GenerateOptions;
use pleach::runtime::SwitchReport;
use pleach::tree::{AdapterTree, NodeId, render};
use serde::Serialize;

use super::model::Loading;
use super::{Console, tree};

/// Load the base once, walk the whole tree, generate at every node, come back bit for bit
#[derive(Args)]
pub(crate) struct Demo {
    /// Base model [default: the SmolLM2-135M that scripts/fetch-base fetched]
    #[arg(long)]
    base: Option<PathBuf>,
    /// Folder of the tree of adapters [default: trees/smollm2]
    #[arg(long)]
    tree: Option<PathBuf>,
    /// The prompt
    #[arg(
        short,
        long,
        value_name = "TEXT",
        default_value = "Commande : mkdir\nNOM :",
        hide_default_value = true
    )]
    prompt: String,
    #[command(flatten)]
    loading: Loading,
}

/// The answer as JSON.
#[derive(Serialize)]
struct Answer {
    base: PathBuf,
    tree: PathBuf,
    parameters: u64,
    load_ms: f64,
    prompt: String,
    fingerprint: String,
    stops: Vec<Stop>,
    back: SwitchReport,
    fingerprint_after: String,
    bit_for_bit: bool,
}

/// One node of the walk.
#[derive(Serialize)]
struct Stop {
    node: String,
    switch: SwitchReport,
    text: String,
    token_ids: Vec<u32>,
    prefill_ms: f64,
    decode_ms: f64,
}

impl Demo {
    pub(crate) fn run(self, console: &Console) -> anyhow::Result<ExitCode> {
        let base = self.base.clone().map_or_else(default_base, Ok)?;
        let folder = self.tree.clone().unwrap_or_else(default_tree);
        let tree = AdapterTree::open(&folder)?;
        let say = |text: String| if console.json { Ok(()) } else { console.print(&text) };

        let adapters = tree::Adapters::of(&tree, &console.limits);
        say(format!("{INTRODUCTION}\n{}", render::text(&tree, |node| adapters.note(node))))?;
        let nodes: Vec<String> = walk(&tree, &console.limits)
            .into_iter()
            .map(|node| tree.name(node).to_owned())
            .collect();
        let (mut runtime, load_ms) = self.loading.open(&base, tree, None, console)?;
        let fingerprint = runtime.fingerprint()?;
        let parameters = runtime.base().parameters();
        say(format!(
            "\n{}: {} weights, loaded once in {:.2} s.\nThe prompt is {:?}. At each node: what the switch subtracted (−) \
             and added (+), its cost, and\nwhat the model there writes.\n\n",
            file_name(&base),
            HumanCount(parameters),
            load_ms / 1e3,
            self.prompt
        ))?;

        let mut stops = Vec::new();
        for node in nodes {
            let stop = self.stop(&mut runtime, &node)?;
            say(format!("{}{}\n  {:?}\n", stop.node, cost(&stop.switch), stop.text))?;
            stops.push(stop);
        }

        let back = runtime.switch_to("/")?;
        let after = runtime.fingerprint()?;
        let bit_for_bit = after == fingerprint;
        say(format!(
            "/{}\n  fingerprint {} {} the first one: after {} switches the base is {}.\n",
            cost(&back),
            &after.to_hex()[..16],
            if bit_for_bit { "equals" } else { "DIFFERS FROM" },
            stops.len(),
            if bit_for_bit { "back bit for bit" } else { "NOT what it was" },
        ))?;
        let (fingerprint, fingerprint_after) = (fingerprint.to_string(), after.to_string());
        let (tree, prompt) = (folder, self.prompt);
        if console.json {
            let answer = Answer {
                base,
                tree,
                parameters,
                load_ms,
                prompt,
                fingerprint,
                stops,
                back,
                fingerprint_after,
                bit_for_bit,
            };
            console.answer(&answer, String::new)?;
        }
        Ok(if bit_for_bit { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn stop(&self, runtime: &mut Runtime, node: &str) -> anyhow::Result<Stop> {
        let switch = runtime.switch_to(node)?;
        let options = GenerateOptions { max_tokens: 24, ..GenerateOptions::default() };
        let generation = runtime
            .generate(&self.prompt.as_str().into(), &options, |_| ControlFlow::Continue(()))?;
        Ok(Stop {
            node: generation.node,
            switch,
            text: generation.text,
            token_ids: generation.token_ids,
            prefill_ms: generation.prefill_ms,
            decode_ms: generation.decode_ms,
        })
    }
}

const INTRODUCTION: &str = "\
Adapters form a tree, and the model at a node is the base plus every adapter on the way there from the root. One copy of
the weights, rounded once at load to 16-bit integers, moves from node to node: integers are subtracted and added, so
nothing drifts, and a node's bits do not depend on the way that led there.
";

/// The base that `scripts/fetch-base` fetched.
fn default_base() -> anyhow::Result<PathBuf> {
    let path = fetched_smollm2()
        .context("no --base, and the environment names no home folder to look in")?;
    if path.exists() {
        return Ok(path);
    }
    anyhow::bail!(
        "{}: there is no base here yet; run scripts/fetch-base, or name one with --base",
        path.display()
    )
}

/// The shipped tree: in the working folder, or else where this program was built.
fn default_tree() -> PathBuf {
    let here = PathBuf::from("trees/smollm2");
    let workspace =
        Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new(""));
    if here.exists() { here } else { workspace.join(here) }
}

/// The root, then every other node in the order that touches the fewest weights.
fn walk(tree: &AdapterTree, limits: &Limits) -> Vec<NodeId> {
    let all: Vec<NodeId> = tree.nodes().collect();
    let touched = |node| {
        tree::summary(tree, node, limits)
            .and_then(Result::ok)
            .map_or(0, |adapter| adapter.touched_weights)
    };
    let touched: HashMap<NodeId, u64> = all.iter().map(|&node| (node, touched(node))).collect();
    tree.tour(&all, tree.root(), |node| touched[&node])
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// `  + fr/alice: 106,168,320 weights in 30.1 ms`, and the time to read and compile an adapter met
/// for the first time.
fn cost(switch: &SwitchReport) -> String {
    let signed = |sign: &'static str, names: &[String]| {
        names.iter().map(|name| format!("{sign} {name}")).collect()
    };
    let mut steps: Vec<String> = signed("−", &switch.subtracted);
    steps.extend::<Vec<String>>(signed("+", &switch.added));
    if steps.is_empty() {
        return String::new();
    }
    let first = match switch.compiled.is_empty() {
        true => String::new(),
        false => format!(" ({:.0} ms to read the adapter)", switch.prepare_ms),
    };
    let weights = HumanCount(switch.touched_weights);
    format!("\n  {}: {weights} weights in {:.1} ms{first}", steps.join(" "), switch.pass_ms)
}
