//! Who asks for what and when, drawn from a seed.
//!
//! Lengths are log-normal with the medians and 90th percentiles of Azure's conversation trace
//! (contexts 1020 and 2734 tokens, answers 129 and 424), contexts an eighth and answers a quarter
//! of them, as small models have it. Intervals are gamma: at a cv of 1 requests come one by one, at
//! 8 in bursts.

use std::sync::Arc;

use super::draw::Draw;
use crate::engine::{Job, JobId, Merge, NodeCost, NodePath, NodeTable, Serial};

/// Who uses the tree.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// One user.
    OneLeaf,
    /// All users of one task.
    OneTask,
    /// Users of two tasks in two languages.
    TwoTasks,
    /// Each request from another task of another domain.
    Strangers,
    /// Users by a power law over the whole tree, in bursts of this cv.
    Zipf {
        /// Deviation of intervals over their mean.
        cv: f64,
    },
    /// One language with nine requests of ten, others with the rest.
    HeavyAndLight,
    /// Strangers of whom every other one asks for a fixed merge point.
    Fixed,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// When it comes.
    pub at_ms: f64,
    /// What is asked for.
    pub job: Job,
    /// How many tokens the answer will have, which nobody knows before.
    pub answer_tokens: usize,
    /// When it is cancelled, if it is still in work.
    pub cancelled_ms: Option<f64>,
}

/// Requests over a tree.
#[derive(Clone, Debug)]
pub struct Trace {
    /// Who they are.
    pub kind: Kind,
    /// The tree.
    pub table: NodeTable,
    /// Requests in the order in which they come.
    pub arrivals: Vec<Arrival>,
    /// Leaves that are read from a disk when they are first asked for, and take so long.
    pub read_ms: f64,
}

/// Children of a node at each depth: languages, domains, tasks, users.
const CHILDREN: [usize; 4] = [4, 4, 4, 8];
/// Layers of the model.
const LAYERS: usize = 30;
/// Inputs and outputs of a layer's matrices: q, k, v, o, gate, up, down.
const MATRICES: [(u64, u64); 7] =
    [(576, 576), (576, 192), (576, 192), (576, 576), (576, 1536), (576, 1536), (1536, 576)];
/// Rank of a node at each depth, and the matrices of a layer it touches.
const NODES: [(u64, &[usize]); 4] = [
    (16, &[0, 1, 2, 3, 4, 5, 6]),
    (8, &[0, 1, 2, 3, 4, 5, 6]),
    (4, &[0, 1, 2, 3, 4, 5, 6]),
    (2, &[0, 2]),
];

/// The serial number of a node, by its places under its parents.
fn serial(places: &[usize]) -> Serial {
    let number = places.iter().fold(0, |number, place| number * 10 + place + 1);
    Serial(number as u64)
}

/// The path of the node at these places.
pub(super) fn path(places: &[usize]) -> NodePath {
    (1..=places.len()).map(|depth| serial(&places[..depth])).collect()
}

/// Adds what hangs below a node.
fn insert_below(table: &mut NodeTable, places: &[usize]) {
    let Some((rank, touched)) = NODES.get(places.len()) else { return };
    let matrices = (0..LAYERS).flat_map(|layer| touched.iter().map(move |m| layer * 7 + m));
    let per_layer: u64 = touched.iter().map(|m| MATRICES[*m].0 + MATRICES[*m].1).sum();
    let factors = rank * per_layer * LAYERS as u64;
    let cost = NodeCost { matrices: matrices.collect(), factors };
    for place in 0..CHILDREN[places.len()] {
        let places = [places, &[place]].concat();
        table.insert(serial(&places), &cost);
        insert_below(table, &places);
    }
}

/// A tree of languages, domains, tasks and users over a model of 135 million parameters.
fn made_tree() -> NodeTable {
    let bytes = |(inputs, outputs): (u64, u64)| 4 * inputs * outputs;
    let matrices: Arc<[u64]> = (0..LAYERS).flat_map(|_| MATRICES.map(bytes)).collect();
    let mut table = NodeTable::new(matrices);
    insert_below(&mut table, &[]);
    table
}

impl Trace {
    /// `count` requests, one every `interval_ms` on average.
    pub fn new(kind: Kind, seed: u64, count: usize, interval_ms: f64) -> Self {
        let mut draw = Draw::new(seed);
        let cv = if let Kind::Zipf { cv } = kind { cv } else { 1.0 };
        let mut at_ms = 0.0;
        let mut arrivals = Vec::with_capacity(count);
        for k in 0..count {
            at_ms += draw.gamma(interval_ms, cv);
            let answer_tokens = draw.length(32.0, 106.0, 1, 256);
            let job = Job {
                id: JobId(k as u64),
                path: path(&places(kind, k, &mut draw)),
                prompt_tokens: draw.length(128.0, 342.0, 1, 700),
                max_tokens: answer_tokens * (1 + draw.below(4)),
                merge: merge(kind, k, &mut draw),
                deadline_ms: None,
            };
            arrivals.push(Arrival { at_ms, job, answer_tokens, cancelled_ms: None });
        }
        Self { kind, table: made_tree(), arrivals, read_ms: 0.0 }
    }

    /// The same with requests that are given up: some cancelled, some with a deadline; and with
    /// leaves that take `read_ms` to be read.
    pub fn with_trouble(mut self, seed: u64, read_ms: f64) -> Self {
        let mut draw = Draw::new(seed);
        for arrival in &mut self.arrivals {
            let patience_ms = arrival.at_ms + draw.gamma(8000.0, 1.0);
            match draw.below(8) {
                0 => arrival.cancelled_ms = Some(patience_ms),
                1 => arrival.job.deadline_ms = Some(patience_ms),
                _ => {}
            }
        }
        self.read_ms = read_ms;
        self
    }
}

/// Whose the `k`-th request is.
fn places(kind: Kind, k: usize, draw: &mut Draw) -> Vec<usize> {
    let user = |draw: &mut Draw| draw.below(CHILDREN[3]);
    match kind {
        Kind::OneLeaf => vec![0, 0, 0, 0],
        Kind::OneTask => vec![0, 0, 0, user(draw)],
        Kind::TwoTasks => match draw.below(2) {
            0 => vec![0, 0, 0, user(draw)],
            _ => vec![1, 0, 0, user(draw)],
        },
        Kind::Strangers | Kind::Fixed => {
            let of = |divisor: usize, count: usize| k / divisor % count;
            vec![of(1, CHILDREN[0]), of(4, CHILDREN[1]), of(16, CHILDREN[2]), user(draw)]
        }
        Kind::Zipf { .. } => {
            let users = CHILDREN.iter().product();
            // The most frequent users are spread over the tree.
            let user = draw.zipf(users, 1.0) * 197 % users;
            vec![user / 128, user / 32 % 4, user / 8 % 4, user % 8]
        }
        Kind::HeavyAndLight => match draw.below(10) {
            0 => vec![1 + draw.below(3), draw.below(4), 0, user(draw)],
            _ => vec![0, draw.below(2), 0, user(draw)],
        },
    }
}

fn merge(kind: Kind, k: usize, draw: &mut Draw) -> Merge {
    match (kind, k % 2) {
        (Kind::Fixed, 0) => [Merge::Leaf, Merge::Parent, Merge::Root][draw.below(3)],
        _ => Merge::Automatic,
    }
}
