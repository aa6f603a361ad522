//! What the commands that run a model share: their arguments, and the way to a runtime at a node.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use clap::{Args, ValueEnum};
use pleach::Runtime;
use pleach::base::BaseModel;
use pleach::runtime::{
    DEFAULT_DELTA_BUDGET_BYTES, Nodes, RuntimeBuilder, StalePolicy, SwitchReport,
};
use pleach::tree::AdapterTree;

use super::Console;

const MIB: usize = 1 << 20;

/// How the weights are loaded.
#[derive(Args)]
#[command(next_help_heading = "Loading")]
pub(crate) struct Loading {
    /// Space above every row's largest weight, 1 to 1024: more is coarser [default: 1.25, or the
    /// store's]
    #[arg(long, value_name = "FACTOR")]
    headroom: Option<f32>,
    /// Memory for compiled deltas beside those applied
    #[arg(long, value_name = "MIB", default_value_t = DEFAULT_DELTA_BUDGET_BYTES / MIB)]
    delta_budget: usize,
    /// Memory of a GPU for compiled deltas beside those applied
    #[arg(long, value_name = "MIB", default_value_t = DEFAULT_DELTA_BUDGET_BYTES / MIB)]
    gpu_delta_budget: usize,
    /// A store's nodes that were trained on another version of their parent: warn, refuse or accept
    #[arg(long, value_enum, default_value_t = Stale::Warn, hide_possible_values = true)]
    stale: Stale,
}

#[derive(Clone, Copy, ValueEnum)]
enum Stale {
    Warn,
    Refuse,
    Accept,
}

impl From<Stale> for StalePolicy {
    fn from(stale: Stale) -> Self {
        match stale {
            Stale::Warn => Self::Warn,
            Stale::Refuse => Self::Refuse,
            Stale::Accept => Self::Accept,
        }
    }
}

impl Loading {
    /// Loads `base` with `tree`, at the root; returns the milliseconds that took, too.
    pub(crate) fn open(
        &self,
        base: &Path,
        nodes: impl Into<Nodes>,
        tokenizer: Option<&Path>,
        console: &Console,
    ) -> anyhow::Result<(Runtime, f64)> {
        let start = Instant::now();
        let builder = Runtime::builder().base(base);
        let builder = match tokenizer {
            Some(tokenizer) => builder.tokenizer(tokenizer),
            None => builder,
        };
        let runtime = self.load(builder, nodes.into(), console)?;
        Ok((runtime, start.elapsed().as_secs_f64() * 1e3))
    }

    /// The same with a base that is open already.
    pub(crate) fn open_model(
        &self,
        base: BaseModel,
        nodes: impl Into<Nodes>,
        console: &Console,
    ) -> anyhow::Result<Runtime> {
        self.load(Runtime::builder().base_model(base), nodes.into(), console)
    }

    fn load(
        &self,
        builder: RuntimeBuilder,
        nodes: Nodes,
        console: &Console,
    ) -> anyhow::Result<Runtime> {
        let mut builder = builder
            .nodes(nodes)
            .stale_policy(self.stale.into())
            .delta_budget_bytes(self.delta_budget.saturating_mul(MIB))
            .device_delta_budget_bytes(self.gpu_delta_budget.saturating_mul(MIB))
            .limits(console.limits)
            .device(console.device.clone());
        if let Some(headroom) = self.headroom {
            builder = builder.headroom(headroom);
        }
        if let Some(threads) = console.threads {
            builder = builder.threads(threads);
        }
        let bar = console.bar("loading the base");
        let runtime = builder.open_with(|done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        Ok(runtime)
    }
}

/// A base and a tree.
#[derive(Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct Model {
    /// Base model: a Hugging Face folder, a GGUF file, or hf:ORG/NAME[@REVISION]
    #[arg(long)]
    base: PathBuf,
    /// Folder of the tree of adapters, or a store
    #[arg(long)]
    tree: Option<PathBuf>,
    /// A tokenizer.json in place of the base's own, or a folder, such as an adapter's, with one and
    /// its chat template
    #[arg(long, value_name = "PATH")]
    tokenizer: Option<PathBuf>,
    #[command(flatten)]
    loading: Loading,
}

/// A runtime at the node asked for.
pub(crate) struct Arrived {
    pub(crate) runtime: Runtime,
    pub(crate) load_ms: f64,
    pub(crate) switch: SwitchReport,
}

impl Model {
    /// The nodes there are.
    pub(crate) fn nodes(&self) -> anyhow::Result<Nodes> {
        Ok(match &self.tree {
            Some(path) => Nodes::open(path)?,
            None => AdapterTree::builder().build()?.into(),
        })
    }

    /// The node's name as the tree has it. One that is not there is refused.
    pub(crate) fn check(&self, nodes: &Nodes, node: &str) -> anyhow::Result<String> {
        let found = match nodes {
            Nodes::Tree(tree) => tree.node(node).map(|id| tree.name(id).to_owned()),
            Nodes::Store(store) => store.path(node).map(|path| match path.last() {
                Some(node) => node.name.clone(),
                None => "/".to_owned(),
            }),
        };
        match self.tree {
            None => found.context("without --tree there is only the root, /"),
            Some(_) => Ok(found?),
        }
    }

    /// Loads the base, at the root; gives the milliseconds that took, too.
    pub(crate) fn open(&self, nodes: Nodes, console: &Console) -> anyhow::Result<(Runtime, f64)> {
        self.loading.open(&self.base, nodes, self.tokenizer.as_deref(), console)
    }

    /// Loads the base and switches to the node. A node that is not in the tree is refused before.
    pub(crate) fn arrive(&self, node: &str, console: &Console) -> anyhow::Result<Arrived> {
        let nodes = self.nodes()?;
        self.check(&nodes, node)?;
        let (mut runtime, load_ms) = self.open(nodes, console)?;
        let switch = runtime.switch_to(node)?;
        Ok(Arrived { runtime, load_ms, switch })
    }
}

/// A file's bytes; `-` is standard input.
pub(crate) fn read_input(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path.as_os_str() != "-" {
        return std::fs::read(path).with_context(|| input_name(path));
    }
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes).with_context(|| input_name(path))?;
    Ok(bytes)
}

/// A file's text; `-` is standard input.
pub(crate) fn read_text(path: &Path) -> anyhow::Result<String> {
    String::from_utf8(read_input(path)?).with_context(|| input_name(path))
}

/// What errors call it.
pub(crate) fn input_name(path: &Path) -> String {
    if path.as_os_str() == "-" { "standard input".to_owned() } else { path.display().to_string() }
}
