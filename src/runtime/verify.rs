//! Verification: a random walk over the tree, every arrival compared with a fresh load of the node.
//!
//! The expected fingerprints are made apart from the live weights: each matrix is read again from
//! the base, adapters are read and compiled again (a store's deltas are read again), and each path
//! is applied to the base in one pass from the root.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;
use serde::Serialize;

use super::{NodeVersion, Runtime};
use crate::device::Device;
use crate::device::cpu::delta_apply;
use crate::error::{RefusedEntry, StoreDefect, TreeDefect};
use crate::lattice::{CompiledDelta, SignedDelta, compile};
use crate::nodes::Deltas;
use crate::weights::{HEAD, MatrixId};
use crate::{Error, Result, WeightName};

/// Most nodes of a store that are visited.
const MAX_STORE_NODES: usize = 4096;

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Switches made.
    pub switches: usize,
    /// Nodes visited at least once.
    pub nodes_visited: usize,
    /// Arrivals whose fingerprint was compared.
    pub compared: usize,
    /// Nodes whose fingerprint differed from a fresh load at least once.
    pub mismatched_nodes: Vec<String>,
    /// Bits in which the weights, back at the root, differ from the base.
    pub differing_bits: u64,
    /// Fingerprint at the root, hexadecimal.
    pub root_fingerprint: String,
    /// Nodes and entries of the tree that cannot be served, and so were not visited, each with the
    /// reason.
    pub refused: Vec<RefusedEntry>,
}

impl VerifyReport {
    /// Whether nothing differed. What was refused is another question.
    pub fn is_clean(&self) -> bool {
        self.mismatched_nodes.is_empty() && self.differing_bits == 0
    }
}

/// The fresh load of nodes, matrix by matrix; what two nodes share is made once.
struct Expected {
    /// Hash of a matrix with the path down to the deepest node that touches it.
    hashes: HashMap<(MatrixId, Option<NodeVersion>), blake3::Hash>,
    compiled: HashMap<NodeVersion, HashMap<MatrixId, CompiledDelta>>,
    fingerprints: HashMap<NodeVersion, blake3::Hash>,
}

impl Runtime {
    /// Makes `switches` random switches over all nodes (of a store up to 4,096, chosen at random),
    /// compares the fingerprint at every `every`-th arrival and at the last with that of a fresh
    /// load of the node, then returns to the root and compares every bit with the base. Of a tree
    /// every node is first tried once: what is refused there, and what hangs below it, is left out
    /// and in the report.
    ///
    /// # Errors
    /// What [`Runtime::switch_to`] and reading the base return, but for adapters that are refused.
    pub fn verify(
        &mut self,
        switches: usize,
        every: usize,
        seed: u64,
        mut progress: impl FnMut(usize),
    ) -> Result<VerifyReport> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut nodes = self.shared.nodes.sample(MAX_STORE_NODES, &mut rng)?;
        let refused = self.leave_out_refused(&mut nodes)?;
        let mut expected = Expected {
            hashes: HashMap::new(),
            compiled: HashMap::new(),
            fingerprints: HashMap::new(),
        };
        let mut report = VerifyReport { switches, refused, ..VerifyReport::default() };
        let mut visited = vec![false; nodes.len()];
        let mut mismatched = vec![false; nodes.len()];
        for done in 1..=switches {
            let at = rng.random_range(0..nodes.len());
            match self.switch_to(&nodes[at]) {
                // A store's nodes are not tried before: each is an arrival of its own in a million.
                Err(error) if self.store().is_some() && is_refusal(&error) => {
                    if report.refused.iter().all(|entry| entry.name != nodes[at]) {
                        report.refused.push(RefusedEntry::new(&nodes[at], error));
                    }
                    progress(done);
                    continue;
                }
                arrived => arrived?,
            };
            visited[at] = true;
            if done % every.max(1) == 0 || done == switches {
                report.compared += 1;
                mismatched[at] |=
                    self.fingerprint()? != self.expected_fingerprint(&mut expected)?;
            }
            progress(done);
        }
        report.refused.sort_by(|a, b| a.name.cmp(&b.name));
        self.switch_to("/")?;
        report.nodes_visited = visited.iter().filter(|&&v| v).count();
        report.mismatched_nodes =
            nodes.into_iter().zip(mismatched).filter(|(_, m)| *m).map(|(name, _)| name).collect();
        report.differing_bits = self.differing_bits_at_root()?;
        report.root_fingerprint = self.fingerprint()?.to_hex().to_string();
        Ok(report)
    }

    /// Switches to every one of `nodes`, parents first, if they are those of a tree; takes out of
    /// them those that cannot be served, and returns these with the reasons.
    fn leave_out_refused(&mut self, nodes: &mut Vec<String>) -> Result<Vec<RefusedEntry>> {
        let Some(mut refused) = self.tree().map(|tree| tree.refused().to_vec()) else {
            return Ok(Vec::new());
        };
        let mut unserved = HashSet::new();
        let mut served = Vec::with_capacity(nodes.len());
        for name in std::mem::take(nodes) {
            let version = self.version(&name)?;
            let parent = version.parent().filter(|parent| unserved.contains(*parent));
            let reason = match parent {
                Some(parent) => {
                    let parent = parent.name().to_owned();
                    TreeDefect::BelowRefused { node: name.clone(), parent }.into()
                }
                None => match self.switch_to_version(&version) {
                    Err(error) if is_refusal(&error) => error,
                    result => {
                        result?;
                        served.push(name);
                        continue;
                    }
                },
            };
            // What would leave the lattice may come back into it further down.
            if !matches!(reason, Error::Overflow { .. }) {
                unserved.insert(version);
            }
            refused.push(RefusedEntry::new(name, reason));
        }
        *nodes = served;
        refused.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(refused)
    }

    /// Bits in which the resident weights differ from the base, read again. Stand at the root
    /// before.
    fn differing_bits_at_root(&self) -> Result<u64> {
        let mut bits = 0;
        for name in self.matrix_names() {
            // It is the embedding's matrix under a second name.
            if self.is_tied() && name.as_str() == HEAD {
                continue;
            }
            let (fresh, _) = self.shared.fresh_matrix(name)?;
            let live = self.matrix(name)?;
            let pairs = fresh.integers().iter().zip(live.integers());
            bits += pairs.map(|(a, b)| u64::from((a ^ b).count_ones())).sum::<u64>();
            let steps = fresh.steps().iter().zip(live.steps());
            bits += steps
                .map(|(a, b)| u64::from((a.to_bits() ^ b.to_bits()).count_ones()))
                .sum::<u64>();
        }
        Ok(bits)
    }

    /// The fingerprint at the current version, by a fresh load.
    fn expected_fingerprint(&self, expected: &mut Expected) -> Result<blake3::Hash> {
        let (shared, version) = (&self.shared, self.current_version());
        if let Some(&known) = expected.fingerprints.get(version) {
            return Ok(known);
        }
        let (grids, path) = (shared.grids(), version.path());
        let id = |name: &WeightName| grids.id(name).expect("the switch found it");
        for version in &path {
            if let Entry::Vacant(entry) = expected.compiled.entry(version.clone()) {
                entry.insert(match shared.nodes.read(version, &shared.reading())? {
                    Deltas::Compiled(node) => {
                        node.into_iter().map(|(name, delta)| (id(&name), delta)).collect()
                    }
                    Deltas::Float(deltas) => {
                        let compiled = deltas.par_iter().map(|(name, delta)| {
                            let id = id(name);
                            Ok((id, compile(name, delta, grids.grid(id))?))
                        });
                        shared.host.install(|| compiled.collect::<Result<_>>())?
                    }
                });
            }
        }
        let touches = |version: &&NodeVersion, id| expected.compiled[*version].contains_key(&id);
        let keys: Vec<_> = grids
            .names()
            .map(|(name, id)| {
                (name, (id, path.iter().rev().find(|version| touches(version, id)).cloned()))
            })
            .collect();
        for (name, key) in &keys {
            if !expected.hashes.contains_key(key) {
                let (mut matrix, _) = shared.fresh_matrix(name)?;
                let deltas = path
                    .iter()
                    .filter_map(|version| expected.compiled[version].get(&key.0))
                    .map(SignedDelta::added);
                delta_apply(&shared.host, vec![(&mut matrix, deltas.collect())]);
                let hash = shared.host.fingerprint(&[&matrix])?[0];
                expected.hashes.insert(key.clone(), hash);
            }
        }
        let mut hashes = vec![blake3::hash(b""); keys.len()];
        for (_, key) in keys {
            hashes[key.0.0] = expected.hashes[&key];
        }
        let fingerprint = self.replica.fingerprint_of(&hashes);
        expected.fingerprints.insert(version.clone(), fingerprint);
        Ok(fingerprint)
    }
}

/// Whether an error is about one node and what is below it: the others can be served.
fn is_refusal(error: &Error) -> bool {
    match error {
        Error::Adapter { .. }
        | Error::SafeTensors { .. }
        | Error::NotAFile { .. }
        | Error::FileTooLarge { .. }
        | Error::Io { .. }
        | Error::NonFinite { .. }
        | Error::DeltaShape { .. }
        | Error::SparseEntry { .. }
        | Error::NoSuchMatrix { .. }
        | Error::Overflow { .. } => true,
        Error::Tree(defect) => matches!(**defect, TreeDefect::Gone { .. }),
        Error::Store { defect, .. } => {
            matches!(**defect, StoreDefect::Stale { .. } | StoreDefect::Damaged { .. })
        }
        _ => false,
    }
}
