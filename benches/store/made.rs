//! A made base, and made leaves of about 16 KiB for it: 20 languages, 20 domains each, the leaves
//! below those in turn.
//!
//! **Invariant:** a node's content follows from its number alone, and no two have the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use pleach::WeightName;
use pleach::adapter::{AdapterDeltas, FloatDelta};
use pleach::base::BaseModel;
use pleach::compile::base_lattice;
use pleach::compile::{CompiledNode, compile_node};
use pleach::lattice::{BaseLattice, DEFAULT_HEADROOM, LatticeMatrix, quantise};
use pleach::store::{Changes, Content, Details, Location, Store, StoreInfo};
use pleach::testing::{TinyModel, tiny_hf_model};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;

use crate::machine::timed;
use crate::report::{Goal, Report, commas};

const LANGUAGES: u64 = 20;
const DOMAINS: u64 = 20;
/// Width of the two matrices that a node touches.
const WIDTH: usize = 224;
const RANK: usize = 8;
pub(crate) const TOUCHED: [&str; 2] =
    ["model.layers.0.self_attn.o_proj.weight", "model.layers.0.self_attn.q_proj.weight"];
/// Leaves published together while the store is made.
const GROUP: u64 = 2_000;

pub(crate) struct Made {
    /// The base's folder.
    pub(crate) base: PathBuf,
    /// The base's content hash.
    base_hash: String,
    /// The base's matrices that nodes touch.
    pub(crate) matrices: BTreeMap<WeightName, LatticeMatrix>,
    pub(crate) leaves: u64,
    lattice: BaseLattice,
}

impl Made {
    pub(crate) fn new(base: PathBuf, leaves: u64) -> anyhow::Result<Self> {
        let model = TinyModel {
            hidden: WIDTH,
            intermediate: 32,
            layers: 1,
            heads: 4,
            kv_heads: 4,
            ..TinyModel::default()
        };
        tiny_hf_model(&base, &model);
        let opened = BaseModel::open(&base)?;
        let lattice = base_lattice(&opened, DEFAULT_HEADROOM, |_, _| ())?;
        let matrix = |weight| {
            let weight = WeightName::new(weight);
            let read = |rows, out: &mut [f32]| opened.read_rows(&weight, rows, out);
            let (matrix, _) = quantise(&weight, WIDTH, WIDTH, DEFAULT_HEADROOM, read)?;
            Ok((weight.clone(), matrix))
        };
        let matrices = TOUCHED.into_iter().map(matrix).collect::<pleach::Result<_>>()?;
        let base_hash = opened.content_hash().to_owned();
        Ok(Self { base, base_hash, matrices, leaves, lattice })
    }

    /// Nodes in all.
    pub(crate) fn nodes(&self) -> u64 {
        self.leaves + LANGUAGES + Self::domains()
    }

    /// The domain that a leaf hangs below.
    pub(crate) fn domain(leaf: u64) -> String {
        format!("l{:02}/d{:02}", leaf % LANGUAGES, leaf / LANGUAGES % DOMAINS)
    }

    /// The name of a leaf.
    pub(crate) fn name(leaf: u64) -> String {
        format!("{}/u{:07}", Self::domain(leaf), leaf / Self::domains())
    }

    /// How many domains there are, all languages together.
    pub(crate) fn domains() -> u64 {
        LANGUAGES * DOMAINS
    }

    /// The numbers of a leaf's language and domain and of the leaf.
    pub(crate) fn path(&self, leaf: u64) -> [u64; 3] {
        [self.leaves + leaf % LANGUAGES, self.leaves + LANGUAGES + leaf % Self::domains(), leaf]
    }

    pub(crate) fn random_leaf(&self, rng: &mut StdRng) -> u64 {
        rng.random_range(0..self.leaves)
    }

    /// The deltas that node `number` is made with.
    pub(crate) fn compiled(&self, number: u64) -> CompiledNode {
        let mut rng = StdRng::seed_from_u64(number);
        let deltas: AdapterDeltas = TOUCHED
            .into_iter()
            .map(|weight| {
                let mut random =
                    || (0..RANK * WIDTH).map(|_| rng.random_range(-0.02..0.02)).collect();
                let (lora_a, lora_b) = (random(), random());
                (
                    WeightName::new(weight),
                    FloatDelta::LowRank { rank: RANK, lora_a, lora_b, scaling: 1.0 },
                )
            })
            .collect();
        compile_node(&deltas, |weight| self.lattice.grid(weight)).expect("it fits the base").0
    }

    /// The contents of nodes from `first` on.
    pub(crate) fn contents(&self, first: u64, count: u64) -> Vec<Content> {
        (first..first + count)
            .into_par_iter()
            .map(|number| Content::new(&self.compiled(number), self.lattice.hash()))
            .collect()
    }

    /// Makes the store in `folder`.
    pub(crate) fn fill(&self, folder: &Path, report: &mut Report) -> anyhow::Result<()> {
        let info = StoreInfo {
            base_name: "made".to_owned(),
            base_hash: self.base_hash.clone(),
            tree_name: None,
            levels: ["language", "domain", "user"].map(str::to_owned).to_vec(),
        };
        let store = Store::create(folder, info, &self.lattice)?;
        let (mut compile_us, mut publish_us) = (0.0, 0.0);
        let mut publish = |names: Vec<String>, first: u64| -> anyhow::Result<u64> {
            let (contents, compile) = timed(|| self.contents(first, names.len() as u64));
            let bytes = contents[0].bytes();
            let mut changes = Changes::new();
            for (name, content) in names.iter().zip(contents) {
                changes.publish(name, content, Details::default());
            }
            let (generations, publish) = timed(|| store.apply(&changes));
            ensure!(generations?.len() == names.len(), "a generation for each");
            (compile_us, publish_us) = (compile_us + compile, publish_us + publish);
            Ok(bytes)
        };
        publish((0..LANGUAGES).map(|language| format!("l{language:02}")).collect(), self.leaves)?;
        publish((0..Self::domains()).map(Self::domain).collect(), self.leaves + LANGUAGES)?;
        let mut bytes = 0;
        for first in (0..self.leaves).step_by(GROUP as usize) {
            let last = (first + GROUP).min(self.leaves);
            bytes = publish((first..last).map(Self::name).collect(), first)?;
            if last.is_multiple_of(50_000) {
                eprintln!("{} leaves", commas(last));
            }
        }
        let stats = store.stats()?;
        ensure!(stats.nodes == self.nodes(), "{} nodes", stats.nodes);
        report.row("a leaf's compiled deltas", bytes as f64, "bytes", Goal::None);
        report.row("segments", stats.segment_bytes as f64 / 1e6, "MB", Goal::None);
        report.row("catalogue", stats.catalogue_bytes as f64 / 1e6, "MB", Goal::None);
        report.row(
            "catalogue, a node",
            stats.catalogue_bytes as f64 / stats.nodes as f64,
            "bytes",
            Goal::None,
        );
        report.row("making the leaves: compiling", compile_us / 1e6, "s", Goal::None);
        report.row("making the leaves: publishing", publish_us / 1e6, "s", Goal::None);
        let rate = self.nodes() as f64 / publish_us * 1e6;
        report.row(
            &format!("publishing in groups of {}", commas(GROUP)),
            rate,
            "leaves/s",
            Goal::AtLeast(2_000.0),
        );
        Ok(())
    }

    /// Compares `count` leaves all over the store with what they were made with.
    pub(crate) fn check(&self, store: &Store, count: u64) -> anyhow::Result<()> {
        let mut rng = StdRng::seed_from_u64(0);
        for leaf in (0..count).map(|_| self.random_leaf(&mut rng)) {
            let node = stored(store, &Self::name(leaf))?;
            ensure!(
                store.read(&node)? == self.compiled(leaf),
                "{} has other integers",
                Self::name(leaf)
            );
        }
        Ok(())
    }
}

/// Where a node's compiled deltas lie.
pub(crate) fn stored(store: &Store, name: &str) -> pleach::Result<Location> {
    Ok(store.get(name)?.version.location)
}
