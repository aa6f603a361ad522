//! `pleach inspect`: what an adapter, a base, a tree or a store is, and whether it fits a base.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use indicatif::{DecimalBytes, HumanCount};
use pleach::adapter::{AdapterSummary, BaseShapes, Limits, PeftAdapter};
use pleach::base::BaseModel;
use pleach::runtime::{open_base, shapes};
use pleach::store::Store;
use pleach::tree::{AdapterTree, NodeSource};
use serde::Serialize;

use super::Console;
use super::left_out::LeftOut;
use super::store::Summary;

/// Tell what an adapter, a base, a tree or a store is, and whether it fits a base
#[derive(Args)]
pub(crate) struct Inspect {
    /// Folder of an adapter, a base (also a GGUF file, or hf:ORG/NAME[@REVISION]), a tree or a store
    path: PathBuf,
    /// A base that the adapters are to fit: same names and shapes, no NaN or infinity in them
    #[arg(long)]
    base: Option<PathBuf>,
}

/// The answer as JSON.
#[derive(Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
enum Answer {
    Adapter(Adapter),
    Base(Base),
    Tree(Tree),
    Store(Stored),
}

#[derive(Serialize)]
struct Adapter {
    path: PathBuf,
    #[serde(flatten)]
    summary: AdapterSummary,
    #[serde(flatten)]
    fit: Fit,
}

/// Whether something fits `--base`: nulls where no base was given.
#[derive(Serialize)]
struct Fit {
    base: Option<PathBuf>,
    fits: Option<bool>,
    refusal: Option<String>,
}

#[derive(Serialize)]
struct Stored {
    #[serde(flatten)]
    summary: Summary,
    #[serde(flatten)]
    fit: Fit,
}

#[derive(Serialize)]
struct Base {
    path: PathBuf,
    /// `gguf` or `safetensors`.
    kind: &'static str,
    architecture: String,
    parameters: u64,
    bytes: u64,
    /// Weights by how they are stored.
    dtypes: BTreeMap<String, usize>,
    hidden_size: usize,
    intermediate_size: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocab_size: usize,
    context: usize,
    tied_head: bool,
    hash: String,
}

#[derive(Serialize)]
struct Tree {
    path: PathBuf,
    name: Option<String>,
    levels: Vec<String>,
    nodes: usize,
    leaves: usize,
    depth: usize,
    bytes: u64,
    base_name: Option<String>,
    base_hash: Option<String>,
    /// Every node but the root, parents before children.
    adapters: Vec<Node>,
    /// What is refused, passed over and doubtful.
    #[serde(flatten)]
    left_out: serde_json::Map<String, serde_json::Value>,
    #[serde(skip)]
    left_out_text: String,
    #[serde(flatten)]
    fit: Fit,
}

/// A node of the tree; an adapter that is refused has a `refusal` in place of a summary.
#[derive(Serialize)]
struct Node {
    node: String,
    #[serde(flatten)]
    summary: Option<AdapterSummary>,
    fits: Option<bool>,
    refusal: Option<String>,
}

impl Inspect {
    pub(crate) fn run(self, console: &Console) -> anyhow::Result<ExitCode> {
        let base = self.base.as_deref().map(open_base).transpose()?;
        let has = |file: &str| self.path.join(file).exists();
        let answer = if has("adapter_config.json") {
            Answer::Adapter(adapter(&self.path, base.as_ref())?)
        } else if Store::is_store(&self.path) {
            let store = Store::open(&self.path)?;
            let refusal = base.as_ref().and_then(|base| store.check_base(base).err()).map(|error| error.to_string());
            Answer::Store(Stored { summary: Summary::of(&store)?, fit: Fit::new(base.as_ref(), refusal) })
        } else if self.path.is_dir() && !has("config.json") {
            Answer::Tree(tree(&self.path, base.as_ref())?)
        } else if base.is_some() {
            bail!("{}: --base tells what an adapter or a tree is to fit, but this is a base", self.path.display());
        } else {
            Answer::Base(describe(&open_base(&self.path)?)?)
        };
        console.answer(&answer, || answer.text())?;
        Ok(ExitCode::SUCCESS)
    }
}

fn adapter(path: &Path, base: Option<&BaseModel>) -> anyhow::Result<Adapter> {
    let adapter = PeftAdapter::open(path, &Limits::default())?;
    let refusal = base.and_then(|base| adapter.deltas(&shapes(base)).err()).map(|error| error.to_string());
    Ok(Adapter { path: path.to_owned(), summary: adapter.summary(), fit: Fit::new(base, refusal) })
}

impl Fit {
    fn new(base: Option<&BaseModel>, refusal: Option<String>) -> Self {
        Self { base: base.map(|base| base.path().to_owned()), fits: base.map(|_| refusal.is_none()), refusal }
    }
}

fn describe(base: &BaseModel) -> anyhow::Result<Base> {
    base.check_values()?;
    let config = base.config();
    let mut dtypes = BTreeMap::new();
    for (_, info) in base.weights() {
        *dtypes.entry(info.dtype.clone()).or_default() += 1;
    }
    Ok(Base {
        path: base.path().to_owned(),
        kind: if base.gguf().is_some() { "gguf" } else { "safetensors" },
        architecture: config.architecture.clone(),
        parameters: base.parameters(),
        bytes: base.file_bytes(),
        dtypes,
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        layers: config.num_hidden_layers,
        heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        vocab_size: config.vocab_size,
        context: config.max_position_embeddings,
        tied_head: config.tie_word_embeddings,
        hash: base.content_hash().to_owned(),
    })
}

fn tree(path: &Path, base: Option<&BaseModel>) -> anyhow::Result<Tree> {
    let tree = AdapterTree::open(path)?;
    let shapes = base.map(shapes);
    let adapters: Vec<Node> = tree
        .nodes()
        .filter_map(|id| match tree.source(id)? {
            NodeSource::Folder(folder) => Some(node(tree.name(id), folder, shapes.as_ref())),
            NodeSource::Memory(_) | NodeSource::Stored(_) => None,
        })
        .collect();
    let depth = tree.nodes().map(|id| tree.depth(id)).max().unwrap_or(0);
    let pin = tree.base().and_then(|pin| pin.blake3.clone());
    let other_base = pin.as_deref().zip(base).and_then(|(pin, base)| {
        let found = base.content_hash();
        (pin != found).then(|| format!("tree.toml asks for a base whose BLAKE3 is {pin}; this one's is {found}"))
    });
    let of_a_node = || adapters.iter().find_map(|node| Some(format!("{}: {}", node.node, node.refusal.as_ref()?)));
    let refusal = other_base.or_else(of_a_node);
    let left_out = LeftOut::of(&tree);
    Ok(Tree {
        left_out: left_out.json().into_iter().map(|(field, value)| (field.to_owned(), value)).collect(),
        left_out_text: left_out.text(),
        path: path.to_owned(),
        name: tree.tree_name().map(str::to_owned),
        levels: (1..=depth).map_while(|depth| tree.level_name(depth).map(str::to_owned)).collect(),
        // The root is the base.
        nodes: tree.len() - 1,
        leaves: tree.leaves().count(),
        depth,
        bytes: adapters.iter().filter_map(|node| Some(node.summary.as_ref()?.bytes)).sum(),
        base_name: tree.base().and_then(|pin| pin.name.clone()),
        base_hash: pin,
        adapters,
        fit: Fit::new(base, refusal),
    })
}

fn node(name: &str, folder: &Path, base: Option<&BaseShapes>) -> Node {
    let opened = PeftAdapter::open(folder, &Limits::default());
    let summary = opened.as_ref().ok().map(PeftAdapter::summary);
    let refusal = opened.and_then(|adapter| base.map_or(Ok(()), |base| adapter.deltas(base).map(drop))).err();
    let fits = base.map(|_| refusal.is_none());
    Node { node: name.to_owned(), summary, fits, refusal: refusal.map(|error| error.to_string()) }
}

impl Answer {
    fn text(&self) -> String {
        match self {
            Self::Adapter(adapter) => adapter.text(),
            Self::Base(base) => base.text(),
            Self::Tree(tree) => tree.text(),
            Self::Store(store) => store.summary.text() + &store.fit.text(),
        }
    }
}

/// One line: a word, and what there is to say about it.
pub(super) fn line(word: &str, text: impl std::fmt::Display) -> String {
    format!("{word:<12}{text}\n")
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

impl Adapter {
    fn text(&self) -> String {
        let summary = &self.summary;
        let matrices = summary.touched_matrices;
        [
            line("adapter", self.path.display()),
            line("kind", summary.kind),
            line("rank", list(&summary.ranks)),
            line("scaling", list(&summary.scalings)),
            line("targets", list(&summary.target_modules)),
            line("touches", format!("{} weights in {matrices} matrices", HumanCount(summary.touched_weights))),
            line("parameters", HumanCount(summary.parameters)),
            line("dtype", list(&summary.dtypes)),
            line("size", DecimalBytes(summary.bytes)),
            line("made for", summary.base_model.as_deref().unwrap_or("an unnamed base")),
            line("hash", summary.hash.as_deref().unwrap_or("unknown")),
            self.fit.text(),
        ]
        .concat()
    }
}

impl Fit {
    fn text(&self) -> String {
        match (&self.base, &self.refusal) {
            (Some(base), None) => line("fits", format!("{}: yes", base.display())),
            (Some(base), Some(refusal)) => line("fits", format!("{}: no: {refusal}", base.display())),
            (None, Some(refusal)) => line("refused", refusal),
            (None, None) => String::new(),
        }
    }
}

impl Base {
    fn text(&self) -> String {
        let stored: Vec<_> = self.dtypes.iter().map(|(dtype, count)| format!("{count} {dtype}")).collect();
        let heads = format!("{}, {} for keys and values", self.heads, self.kv_heads);
        [
            line("base", self.path.display()),
            line("kind", self.kind),
            line("model", &self.architecture),
            line("parameters", HumanCount(self.parameters)),
            line("layers", self.layers),
            line("width", format!("{}, {} inside", self.hidden_size, self.intermediate_size)),
            line("heads", heads),
            line("vocabulary", format!("{}, {} head", self.vocab_size, if self.tied_head { "tied" } else { "own" })),
            line("context", self.context),
            line("dtype", stored.join(", ")),
            line("size", DecimalBytes(self.bytes)),
            line("hash", &self.hash),
        ]
        .concat()
    }
}

impl Tree {
    fn text(&self) -> String {
        let mut text = [
            line("tree", self.path.display()),
            line("name", self.name.as_deref().unwrap_or("none")),
            line("nodes", format!("{}, {} of them leaves, {} deep", self.nodes, self.leaves, self.depth)),
            line("levels", if self.levels.is_empty() { "unnamed".to_owned() } else { self.levels.join(", ") }),
            line("made for", self.base_name.as_deref().or(self.base_hash.as_deref()).unwrap_or("an unnamed base")),
            line("size", DecimalBytes(self.bytes)),
        ]
        .concat();
        for node in &self.adapters {
            let summary = node.summary.as_ref().map(ToString::to_string).unwrap_or_default();
            let refusal = node.refusal.as_ref().map(|refusal| format!("  refused: {refusal}")).unwrap_or_default();
            let _ = writeln!(text, "  {}  {summary}{refusal}", node.node);
        }
        text + &self.left_out_text + &self.fit.text()
    }
}
