//! `pleach inspect`: what an adapter, a base, a tree or a store is, and whether it fits a base.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use indicatif::{DecimalBytes, HumanCount};
use pleach::WeightName;
use pleach::adapter::{AdapterRemark, AdapterSummary, BaseShapes, Limits, PeftAdapter, beside};
use pleach::base::BaseModel;
use pleach::compile::{CompiledNode, base_lattice_of, compile_node};
use pleach::lattice::{BaseLattice, DEFAULT_HEADROOM, percent};
use pleach::runtime::{open_base, shapes};
use pleach::store::{FitReport, Store, check_path};
use pleach::tree::render::one_line;
use pleach::tree::{AdapterTree, NodeId, NodeSource};
use serde::Serialize;

use super::Console;
use super::left_out::LeftOut;
use super::store::{Summary, check_fit, moving};

/// Report what an adapter, a base, a tree or a store is, and whether it fits a base
#[derive(Args)]
#[command(after_help = "\
With --base an adapter is compiled as if it hung under the root, and of a tree or a store the \
whole path of every node is checked: names and shapes, copies of the embedding or head, and \
whether every weight stays on the lattice. Exit status 1 if anything does not fit.")]
pub(crate) struct Inspect {
    /// Folder of an adapter, a base (also a GGUF file, or hf:ORG/NAME[@REVISION]), a tree or a
    /// store
    path: PathBuf,
    /// A base that the adapters are to fit: all that a switch checks is checked
    #[arg(long)]
    base: Option<PathBuf>,
    /// Space above every row's largest weight, 1 to 1024, that adapters are to fit [default: 1.25,
    /// or the store's]
    #[arg(long, value_name = "FACTOR", requires = "base")]
    headroom: Option<f32>,
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
    /// What share of its change the lattice of `base` keeps, 0 to 1; null without a base and where
    /// nothing is changed.
    kept: Option<f64>,
    /// What it does less than it claims, on `--base`.
    remarks: Vec<AdapterRemark>,
    /// What lies beside it that is not as in `--base`.
    beside: Vec<String>,
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
    /// Which nodes a switch could not reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    paths: Option<FitReport>,
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
    /// As of an adapter.
    kept: Option<f64>,
    /// What else there is to say, where it is compared with a base.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    remarks: Vec<String>,
    fits: Option<bool>,
    refusal: Option<String>,
}

impl Inspect {
    pub(crate) fn run(self, console: &Console) -> anyhow::Result<ExitCode> {
        let base = self.base.as_deref().map(open_base).transpose()?;
        let has = |file: &str| self.path.join(file).exists();
        let headroom = self.headroom.unwrap_or(DEFAULT_HEADROOM);
        let base = base.as_ref();
        let answer = if has("adapter_config.json") {
            Answer::Adapter(adapter(&self.path, base, headroom, console)?)
        } else if Store::is_store(&self.path) {
            let store = Store::open(&self.path)?;
            store.check_headroom(self.headroom)?;
            Answer::Store(stored(&store, base, console)?)
        } else if self.path.is_dir() && !has("config.json") {
            Answer::Tree(tree(&self.path, base, headroom, console)?)
        } else if base.is_some() {
            bail!(
                "{}: --base says what an adapter or a tree is to fit, but this is a base",
                self.path.display()
            );
        } else {
            Answer::Base(describe(&open_base(&self.path)?)?)
        };
        console.answer(&answer, || answer.text())?;
        Ok(if answer.misfits() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

/// A base with what checking adapters needs of it.
struct Target<'a> {
    base: &'a BaseModel,
    shapes: BaseShapes,
    lattice: BaseLattice,
}

impl<'a> Target<'a> {
    /// Reads those matrices of the base that are `wanted`.
    fn new(
        base: &'a BaseModel,
        headroom: f32,
        wanted: impl Fn(&WeightName) -> bool,
        console: &Console,
    ) -> anyhow::Result<Self> {
        let bar = console.bar("reading the base");
        let mut on = moving(&bar);
        let lattice =
            base_lattice_of(base, headroom, wanted, |done, total| on(done as u64, total as u64))?;
        bar.finish_and_clear();
        Ok(Self { base, shapes: shapes(base), lattice })
    }

    /// Compiles an adapter as a switch does, and warns where the lattice keeps little of it.
    fn compile(
        &self,
        name: &str,
        adapter: &PeftAdapter,
    ) -> pleach::Result<(CompiledNode, Option<f64>)> {
        adapter.check_copies(self.base)?;
        let compiled =
            compile_node(&adapter.deltas(&self.shapes)?, |weight| self.lattice.grid(weight));
        let (node, kept) = compiled.map_err(|error| error.at_node(name))?;
        if kept.is_low() {
            tracing::warn!("{name}: {}", kept.warning(false));
        }
        Ok((node, kept.share()))
    }

    /// Checks the path that ends at `name`.
    fn check(&self, name: &str, path: &[&CompiledNode]) -> pleach::Result<()> {
        check_path(name, path, &self.lattice, Some(self.base)).map(drop)
    }
}

fn adapter(
    path: &Path,
    base: Option<&BaseModel>,
    headroom: f32,
    console: &Console,
) -> anyhow::Result<Adapter> {
    let adapter = PeftAdapter::open(path, &console.limits)?;
    let (mut kept, mut refusal, mut remarks) = (None, None, Vec::new());
    if let Some(base) = base {
        let touched = adapter.header().targets();
        let target = Target::new(base, headroom, |weight| touched.contains_key(weight), console)?;
        let name = path.display().to_string();
        match target.compile(&name, &adapter) {
            Ok((node, share)) => {
                kept = share;
                refusal = target.check(&name, &[&node]).err();
                remarks = adapter.remarks(&target.shapes)?;
            }
            Err(error) => refusal = Some(error),
        }
    }
    let fit = Fit::new(base, refusal.map(|error| error.to_string()));
    let beside = base.map(|base| beside(path, base)).unwrap_or_default();
    Ok(Adapter { path: path.to_owned(), summary: adapter.summary(), kept, remarks, beside, fit })
}

fn stored(store: &Store, base: Option<&BaseModel>, console: &Console) -> anyhow::Result<Stored> {
    let (mut paths, mut refusal) = (None, None);
    if let Some(base) = base {
        refusal = store.check_base(base).err().map(|error| error.to_string());
        if refusal.is_none() {
            let report = check_fit(store, Some(base), console)?;
            refusal = report.unreachable.first().map(|found| match report.unreachable_count {
                1 => found.problem.clone(),
                count => format!("{count} nodes cannot be reached, the first: {}", found.problem),
            });
            paths = Some(report);
        }
    }
    Ok(Stored { summary: Summary::of(store)?, paths, fit: Fit::new(base, refusal) })
}

impl Fit {
    fn new(base: Option<&BaseModel>, refusal: Option<String>) -> Self {
        Self {
            base: base.map(|base| base.path().to_owned()),
            fits: base.map(|_| refusal.is_none()),
            refusal,
        }
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

fn tree(
    path: &Path,
    base: Option<&BaseModel>,
    headroom: f32,
    console: &Console,
) -> anyhow::Result<Tree> {
    let tree = AdapterTree::open(path)?;
    if let Some(conflict) = base.and_then(|base| tree.conflicting_bases(base, &console.limits)) {
        tracing::warn!("{conflict}");
    }
    let target = base.map(|base| Target::new(base, headroom, |_| true, console)).transpose()?;
    let bar = console.bar("compiling the adapters");
    let mut found = BTreeMap::new();
    below(&tree, tree.root(), target.as_ref(), Ok(&[]), &console.limits, &mut |id, node| {
        found.insert(id, node);
        bar.set_length(tree.len() as u64);
        bar.inc(1);
    });
    bar.finish_and_clear();
    let adapters: Vec<Node> = tree.nodes().filter_map(|id| found.remove(&id)).collect();
    let depth = tree.nodes().map(|id| tree.depth(id)).max().unwrap_or(0);
    let pin = tree.base().and_then(|pin| pin.blake3.clone());
    let other_base = pin.as_deref().zip(base).and_then(|(pin, base)| {
        let found = base.content_hash();
        (pin != found).then(|| {
            format!("tree.toml asks for a base whose BLAKE3 is {pin}; this one's is {found}")
        })
    });
    let of_a_node = || {
        adapters.iter().find_map(|node| Some(format!("{}: {}", node.node, node.refusal.as_ref()?)))
    };
    let refusal = other_base.or_else(of_a_node);
    let left_out = LeftOut::of(&tree, &console.limits);
    Ok(Tree {
        left_out: left_out
            .json()
            .into_iter()
            .map(|(field, value)| (field.to_owned(), value))
            .collect(),
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

/// Looks at every node below `at`, whose path's deltas are `path`, or the node that is refused
/// above.
fn below(
    tree: &AdapterTree,
    at: NodeId,
    target: Option<&Target>,
    path: Result<&[&CompiledNode], &str>,
    limits: &Limits,
    each: &mut impl FnMut(NodeId, Node),
) {
    for child in tree.children(at) {
        let name = tree.name(child);
        let Some(NodeSource::Folder(folder)) = tree.source(child) else {
            // A node without an adapter changes nothing.
            below(tree, child, target, path, limits, each);
            continue;
        };
        let opened = PeftAdapter::open(folder, limits);
        let summary = opened.as_ref().ok().map(PeftAdapter::summary);
        let Some(target) = target else {
            let refusal = opened.err().map(|error| error.to_string());
            let (kept, fits, remarks) = (None, None, Vec::new());
            each(child, Node { node: name.to_owned(), summary, kept, remarks, fits, refusal });
            below(tree, child, None, path, limits, each);
            continue;
        };
        let mut remarks = beside(folder, target.base);
        let compiled = opened.and_then(|adapter| {
            let compiled = target.compile(name, &adapter)?;
            remarks.extend(adapter.remarks(&target.shapes)?.iter().map(ToString::to_string));
            Ok(compiled)
        });
        let path = path.map(|path| {
            [path, &compiled.as_ref().map(|(node, _)| node).into_iter().collect::<Vec<_>>()]
                .concat()
        });
        let refusal = match (&compiled, &path) {
            (Err(error), _) => Some(error.to_string()),
            (Ok(_), Err(above)) => Some(format!("it hangs under {above}, which is refused")),
            // Those below may fit all the same: a switch checks where it leads alone.
            (Ok(_), Ok(path)) => target.check(name, path).err().map(|error| error.to_string()),
        };
        let kept = compiled.as_ref().ok().and_then(|(_, kept)| *kept);
        each(
            child,
            Node {
                node: name.to_owned(),
                summary,
                kept,
                remarks,
                fits: Some(refusal.is_none()),
                refusal,
            },
        );
        let path = match (&compiled, &path) {
            (_, Err(above)) => Err(*above),
            (Err(_), Ok(_)) => Err(name),
            (Ok(_), Ok(path)) => Ok(&path[..]),
        };
        below(tree, child, Some(target), path, limits, each);
    }
}

impl Answer {
    fn misfits(&self) -> bool {
        let fit = match self {
            Self::Adapter(adapter) => &adapter.fit,
            Self::Tree(tree) => &tree.fit,
            Self::Store(store) => &store.fit,
            Self::Base(_) => return false,
        };
        fit.fits == Some(false)
    }

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
    format!("{word:<12}{}\n", one_line(&text.to_string()))
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
            line(
                "touches",
                format!("{} weights in {matrices} matrices", HumanCount(summary.touched_weights)),
            ),
            line("parameters", HumanCount(summary.parameters)),
            line("dtype", list(&summary.dtypes)),
            line("size", DecimalBytes(summary.bytes)),
            line("made for", summary.base_model.as_deref().unwrap_or("an unnamed base")),
            line("hash", summary.hash.as_deref().unwrap_or("unknown")),
            self.kept
                .map(|share| line("kept", format!("{} of its change", percent(share))))
                .unwrap_or_default(),
            self.remarks.iter().map(|remark| line("remark", remark)).collect(),
            self.beside.iter().map(|what| line("beside", what)).collect(),
            self.fit.text(),
        ]
        .concat()
    }
}

impl Fit {
    fn text(&self) -> String {
        match (&self.base, &self.refusal) {
            (Some(base), None) => line("fits", format!("{}: yes", base.display())),
            (Some(base), Some(refusal)) => {
                line("fits", format!("{}: no: {refusal}", base.display()))
            }
            (None, Some(refusal)) => line("refused", refusal),
            (None, None) => String::new(),
        }
    }
}

impl Base {
    fn text(&self) -> String {
        let stored: Vec<_> =
            self.dtypes.iter().map(|(dtype, count)| format!("{count} {dtype}")).collect();
        let heads = format!("{}, {} for keys and values", self.heads, self.kv_heads);
        [
            line("base", self.path.display()),
            line("kind", self.kind),
            line("model", &self.architecture),
            line("parameters", HumanCount(self.parameters)),
            line("layers", self.layers),
            line("width", format!("{}, {} inside", self.hidden_size, self.intermediate_size)),
            line("heads", heads),
            line(
                "vocabulary",
                format!(
                    "{}, {} head",
                    self.vocab_size,
                    if self.tied_head { "tied" } else { "own" }
                ),
            ),
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
            line(
                "nodes",
                format!("{}, {} of them leaves, {} deep", self.nodes, self.leaves, self.depth),
            ),
            line(
                "levels",
                if self.levels.is_empty() { "unnamed".to_owned() } else { self.levels.join(", ") },
            ),
            line(
                "made for",
                self.base_name
                    .as_deref()
                    .or(self.base_hash.as_deref())
                    .unwrap_or("an unnamed base"),
            ),
            line("size", DecimalBytes(self.bytes)),
        ]
        .concat();
        for node in &self.adapters {
            let summary = node.summary.as_ref().map(ToString::to_string).unwrap_or_default();
            let refusal = node
                .refusal
                .as_ref()
                .map(|refusal| format!("  refused: {refusal}"))
                .unwrap_or_default();
            let kept =
                node.kept.map(|share| format!(", {} kept", percent(share))).unwrap_or_default();
            let _ = writeln!(
                text,
                "{}",
                one_line(&format!("  {}  {summary}{kept}{refusal}", node.node))
            );
            for remark in &node.remarks {
                let _ = writeln!(text, "{}", one_line(&format!("    {remark}")));
            }
        }
        text + &self.left_out_text + &self.fit.text()
    }
}
