//! Many sequences on one copy of the weights, each at a version of its own: at the node where the
//! weights stand, or below it.
//!
//! **Invariant:** what lies between the weights and a row's version is held, on the device, from
//! before its first step to behind its last.

use std::any::Any;

use super::{AnyPool, Computing, DeviceReplica, Replica, Resident};
use crate::lattice::SignedDelta;
use crate::model::{Batch, KvPages, KvPool, NewTokens, Pick, Picked, TableId, UnmergedNode, Want};
use crate::nodes::{NodeVersion, Way};
use crate::runtime::{Shared, SwitchReport};
use crate::{Error, Result};

/// What one sequence brings to a step.
pub(crate) struct StepRow<'a> {
    /// Where it belongs: at the node where the weights stand or below.
    pub(crate) version: &'a NodeVersion,
    /// Its pages.
    pub(crate) table: TableId,
    /// Its new tokens.
    pub(crate) tokens: &'a [u32],
    /// What is wanted behind the last of them.
    pub(crate) pick: Option<Pick>,
}

impl<'a> StepRow<'a> {
    fn new_tokens(&self, owner: [u8; 32]) -> NewTokens<'a> {
        let want = if self.pick.is_some() { Want::Last } else { Want::Nothing };
        NewTokens { table: self.table, owner, tokens: self.tokens, want }
    }
}

/// Keys and values of many sequences, on the device of one copy of the weights.
pub(crate) struct Pool(pub(super) Box<dyn AnyPool>);

impl Pool {
    /// Which sequence holds which pages.
    pub(crate) fn pages(&mut self) -> &mut KvPages {
        self.0.pages_mut()
    }
}

/// A version whose rows may run unmerged, and how many asked for that.
pub(super) struct Held<D: Computing> {
    pub(super) resident: Resident<D>,
    holders: usize,
    /// Whether the weights could move there.
    is_checked: bool,
}

impl<D: Computing + 'static> DeviceReplica<D> {
    /// Keeps one node's deltas resident.
    fn hold_one(&mut self, version: &NodeVersion, report: &mut SwitchReport) -> Result<()> {
        if let Some(held) = self.held.get_mut(version) {
            held.holders += 1;
            return Ok(());
        }
        let resident = self.resident(version, report)?;
        self.pin(std::slice::from_ref(version));
        self.held.insert(version.clone(), Held { resident, holders: 1, is_checked: false });
        Ok(())
    }

    pub(super) fn release_one(&mut self, version: &NodeVersion) {
        let Some(held) = self.held.get_mut(version) else { return };
        held.holders -= 1;
        if held.holders == 0 {
            self.held.remove(version);
            self.unpin(std::slice::from_ref(version));
        }
    }

    /// Refuses a version that is held if the weights could not move there.
    fn check_held(&self, version: &NodeVersion) -> Result<()> {
        let Way { left, entered } = self.current.way_to(version);
        let common = self.applied.len() - left.len();
        let (path, left) = (version.path(), self.applied[common..].iter().rev());
        let deltas = |version: &NodeVersion| &*self.held[version].resident.compiled;
        let moving: Vec<_> = left
            .map(|node| SignedDelta::subtracted(&*node.compiled))
            .chain(entered.iter().map(|version| SignedDelta::added(deltas(version))))
            .collect();
        let path: Vec<_> = path.iter().map(deltas).collect();
        let Shared { host, nodes, .. } = &*self.shared;
        let checked = self.weights.check_bounds(&self.device, host, version.name(), &path, &moving);
        checked.map_err(|error| nodes.advised(error))
    }

    /// What lies between the weights and the versions of the rows, each node before those below it.
    fn unmerged(&self, rows: &[StepRow<'_>]) -> Result<Vec<UnmergedNode<'_, D>>> {
        let mut nodes: Vec<UnmergedNode<'_, D>> = Vec::new();
        // The path of the row before, with the place in `nodes` of what is not merged of it.
        let mut before: Vec<(NodeVersion, usize)> = Vec::new();
        for (row, StepRow { version, .. }) in rows.iter().enumerate() {
            let Way { left, entered } = self.current.way_to(version);
            if !left.is_empty() {
                let [sequence, weights] = [version, &self.current].map(|at| at.name().to_owned());
                return Err(Error::SequenceElsewhere { sequence, weights });
            }
            let shared = before.iter().zip(&entered).take_while(|((a, _), b)| a == *b).count();
            before.truncate(shared);
            before.iter().for_each(|&(_, place)| nodes[place].sequences.end = row + 1);
            for version in &entered[shared..] {
                let held = self.held.get(version).expect("a version that runs is held");
                before.push((version.clone(), nodes.len()));
                nodes.push(UnmergedNode {
                    sequences: row..row + 1,
                    deltas: &held.resident.on_device,
                });
            }
        }
        Ok(nodes)
    }

    /// [`Replica::hold`].
    pub(super) fn hold_path(&mut self, version: &NodeVersion) -> Result<()> {
        // The bounds of weights that are lost are no bounds.
        self.check_usable()?;
        let (path, mut report) = (version.path(), SwitchReport::default());
        for (depth, version) in path.iter().enumerate() {
            if let Err(error) = self.hold_one(version, &mut report) {
                path[..depth].iter().for_each(|version| self.release_one(version));
                self.give_up(&report);
                return Err(error);
            }
        }
        self.check_path(&path, &report).inspect_err(|_| {
            path.iter().for_each(|version| self.release_one(version));
            self.give_up(&report);
        })
    }

    /// Sees to it that the weights could move to each node of a path that is held, and that nothing of
    /// it is on its way to the device any more.
    fn check_path(&mut self, path: &[NodeVersion], report: &SwitchReport) -> Result<()> {
        for version in path {
            if !self.held[version].is_checked {
                self.check_held(version)?;
                self.held.get_mut(version).expect("it is held").is_checked = true;
            }
        }
        if report.uploaded.is_empty() {
            return Ok(());
        }
        let deltas: Vec<_> =
            path.iter().map(|version| &*self.held[version].resident.on_device).collect();
        self.device.finish_uploads(&deltas)
    }

    /// [`Replica::step`].
    pub(super) fn step_rows(
        &self,
        pool: &mut Pool,
        rows: &[StepRow<'_>],
    ) -> Result<Vec<Result<Option<Picked>>>> {
        self.check_usable()?;
        let pool = (&mut *pool.0 as &mut dyn Any).downcast_mut::<KvPool<D>>();
        let pool = pool.expect("a pool of this copy's device");
        let sequences: Vec<_> =
            rows.iter().map(|row| row.new_tokens(self.owner(row.version))).collect();
        let picks: Vec<_> = rows.iter().filter_map(|row| row.pick).collect();
        let batch = Batch { sequences: &sequences, unmerged: &self.unmerged(rows)? };
        let picked = self.model.pick(&self.device, &self.weights, pool, &batch, &picks)?;
        let mut picked = picked.into_iter();
        let of_row = |row: &StepRow<'_>| row.pick.and_then(|_| picked.next()).transpose();
        Ok(rows.iter().map(of_row).collect())
    }
}
