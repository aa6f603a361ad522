//! Whether paths fit the lattice: what a switch would say, asked before it, when a node is
//! imported, published, replaced or moved, and over a whole store.
//!
//! A store knows each row's largest base integer, not the integers. Where those maxima leave a row
//! open, the base decides it exactly; without the base the answer may be that it is open, which is
//! reported and refuses nothing.

use std::sync::Mutex;

use rayon::prelude::*;
use serde::Serialize;

use super::after::After;
use super::change::Changes;
use super::{Store, clean_name};
use crate::base::BaseModel;
use crate::compile::CompiledNode;
use crate::error::{StoreDefect, all_or_worst};
use crate::lattice::{
    BaseLattice, CompiledDelta, SignedDelta, base_rows, check_rows, check_shape, close_rows,
    guess_rows,
};
use crate::{Error, Result, WeightName};

/// Nodes reported one by one.
const MAX_REPORTED: usize = 100;

/// Whether a path fits the lattice.
#[derive(Clone, Debug, PartialEq)]
pub enum PathFit {
    /// A switch to it is possible.
    Fits,
    /// Only the base's own integers can decide.
    Open {
        /// The weight that may not fit.
        weight: WeightName,
        /// The row of it that comes closest.
        row: usize,
        /// The headroom at which it surely would.
        needed: f64,
    },
}

/// Checks what a switch to the end of `path` checks: that every delta lands on a matrix of
/// `lattice`, and that no weight leaves it when all are added. Rows that the largest integers do
/// not clear are counted: with `base`, whose lattice it is, exactly.
///
/// # Errors
/// [`Error::Overflow`] with the headroom that would do, [`Error::NoSuchMatrix`],
/// [`Error::DeltaShape`], and what reading the base returns.
pub fn check_path(
    node: &str,
    path: &[&CompiledNode],
    lattice: &BaseLattice,
    base: Option<&BaseModel>,
) -> Result<PathFit> {
    let mut touched: Vec<&WeightName> = path.iter().flat_map(|node| node.keys()).collect();
    touched.sort_unstable();
    touched.dedup();
    let check = |weight: &&WeightName| {
        let grid = lattice
            .grid(weight)
            .ok_or_else(|| Error::NoSuchMatrix { weight: (*weight).clone() })?;
        let deltas: Vec<&CompiledDelta> =
            path.iter().filter_map(|node| node.get(*weight)).collect();
        deltas.iter().try_for_each(|delta| check_shape(weight, grid, delta))?;
        let rows = close_rows(grid, &deltas);
        match base {
            _ if rows.is_empty() => Ok(None),
            Some(base) => {
                let added: Vec<_> = deltas.iter().copied().map(SignedDelta::added).collect();
                check_rows(weight, grid, &rows, &base_rows(base, weight, grid, &rows)?, &added)
                    .map(|()| None)
            }
            None => Ok(guess_rows(weight, grid, &rows, &deltas)?
                .map(|(row, needed)| ((*weight).clone(), row, needed))),
        }
    };
    let checked: Vec<_> = touched.par_iter().map(check).collect();
    let open = all_or_worst(checked).map_err(|error| error.at_node(node))?.into_iter().flatten();
    Ok(match open.max_by(|a, b| a.2.total_cmp(&b.2)) {
        None => PathFit::Fits,
        Some((weight, row, needed)) => PathFit::Open { weight, row, needed },
    })
}

/// A node and what is said of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct NodeFit {
    /// Its name.
    pub node: String,
    /// What a switch to it would run into, or may.
    pub problem: String,
}

/// Which nodes a switch could not reach.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FitReport {
    /// Nodes whose whole path was looked at.
    pub checked: u64,
    /// Nodes that do not fit, the first 100.
    pub unreachable: Vec<NodeFit>,
    /// How many do not fit.
    pub unreachable_count: u64,
    /// Nodes that may not fit, where only the base's integers decide, or that could not be read;
    /// the first 100.
    pub open: Vec<NodeFit>,
    /// How many those are.
    pub open_count: u64,
}

impl FitReport {
    fn add(&mut self, node: &str, fit: Result<PathFit>, most_reported: usize) {
        self.checked += 1;
        let (list, count, problem) = match fit {
            Ok(PathFit::Fits) => return,
            Ok(PathFit::Open { weight, row, needed }) => {
                let problem = format!(
                    "{weight} row {row} may leave the lattice, which only the base decides (--base); a headroom of {needed} \
                     surely holds it"
                );
                (&mut self.open, &mut self.open_count, problem)
            }
            Err(
                error @ (Error::Overflow { .. }
                | Error::NoSuchMatrix { .. }
                | Error::DeltaShape { .. }),
            ) => (&mut self.unreachable, &mut self.unreachable_count, error.in_store().to_string()),
            Err(error) => (
                &mut self.open,
                &mut self.open_count,
                format!("it could not be looked at: {error}"),
            ),
        };
        *count += 1;
        if list.len() < most_reported {
            list.push(NodeFit { node: node.to_owned(), problem });
        }
    }
}

/// Where the nodes of a walk are looked up, and what is found there.
struct Walk<'a, P> {
    after: &'a After<'a>,
    lattice: &'a BaseLattice,
    base: Option<&'a BaseModel>,
    /// Nodes named in each list.
    most_reported: usize,
    /// What is found, the nodes come across so far, and who is shown it.
    report: Mutex<(FitReport, u64, P)>,
}

impl<P: FnMut(u64, u64) + Send> Walk<'_, P> {
    fn add(&self, node: &str, fit: Result<PathFit>) {
        let mut report = self.report.lock().expect("no thread panics holding it");
        let (report, found, progress) = &mut *report;
        report.add(node, fit, self.most_reported);
        progress(report.checked, *found);
    }

    /// Checks everything below `node`, whose own path is `path`. A node is read once and dropped
    /// when all below it is done.
    fn below(&self, node: &str, path: &[&CompiledNode]) -> Result<()> {
        self.after.each_page(node, |page| {
            self.report.lock().expect("no thread panics holding it").1 += page.len() as u64;
            page.par_iter().try_for_each(|child| {
                let Some(planned) = self.after.node(child)? else { return Ok(()) };
                let deltas = match self.after.read(&planned) {
                    Ok(deltas) => deltas,
                    Err(error) => {
                        self.add(child, Err(error));
                        return Ok(());
                    }
                };
                let path = [path, &[&deltas]].concat();
                if path.len() > crate::tree::MAX_DEPTH {
                    return Err(self.after.too_deep(child));
                }
                self.add(child, check_path(child, &path, self.lattice, self.base));
                self.below(child, &path)
            })
        })
    }

    fn report(self) -> FitReport {
        let mut report = self.report.into_inner().expect("no thread panicked holding it").0;
        report.unreachable.sort();
        report.open.sort();
        report
    }
}

impl Store {
    /// Checks, before `changes` are made, that a switch could reach what they change: the whole
    /// path of every node that is published, replaced, moved or rolled back, and with `below` those
    /// of all nodes that hang under it, which may be many: each one's deltas are read. With `base`
    /// every answer is exact. `progress` is called with how many of how many nodes come across so
    /// far are done.
    ///
    /// [`Self::apply`] does not call it: publishing a leaf would read its whole path. What changes
    /// meanwhile is not seen.
    ///
    /// # Errors
    /// [`Error::Overflow`], [`Error::NoSuchMatrix`] or [`Error::DeltaShape`] where a changed node
    /// itself does not fit, [`StoreDefect::WrongBase`], and what reading the store and the base
    /// returns. Those below are in the report.
    pub fn check_fits(
        &self,
        changes: &Changes,
        base: Option<&BaseModel>,
        below: bool,
        progress: impl FnMut(u64, u64) + Send,
    ) -> Result<FitReport> {
        base.map_or(Ok(()), |base| self.check_base(base))?;
        let (after, lattice) = (After::of(self, changes)?, self.lattice()?);
        let report = Mutex::new((FitReport::default(), 0, progress));
        let walk =
            Walk { after: &after, lattice: &lattice, base, most_reported: MAX_REPORTED, report };
        // The path of the node before: a batch of leaves shares its parents.
        let mut held: Vec<(String, CompiledNode)> = Vec::new();
        for name in &after.changed {
            let Some(path) = after.path(name)? else { continue };
            let above = &path[..path.len() - 1];
            if below && above.iter().any(|(name, _)| after.changed.contains(name)) {
                continue;
            }
            let same =
                held.iter().zip(&path).take_while(|(held, (name, _))| held.0 == *name).count();
            held.truncate(same);
            for (name, planned) in &path[same..] {
                held.push((name.clone(), after.read(planned)?));
            }
            let deltas: Vec<&CompiledNode> = held.iter().map(|(_, deltas)| deltas).collect();
            walk.report.lock().expect("no thread panics holding it").1 += 1;
            let fit = check_path(name, &deltas, &lattice, base).map_err(Error::in_store)?;
            walk.add(name, Ok(fit));
            if below {
                walk.below(name, &deltas)?;
            }
        }
        Ok(walk.report())
    }

    /// Checks that a switch could reach the node called `name`, as it now is. With `base` the
    /// answer is exact.
    ///
    /// # Errors
    /// What the switch would say: [`Error::Overflow`], [`Error::NoSuchMatrix`],
    /// [`Error::DeltaShape`], [`TreeDefect::UnknownNode`](crate::error::TreeDefect::UnknownNode);
    /// [`StoreDefect::WrongBase`].
    pub fn check_fit(&self, name: &str, base: Option<&BaseModel>) -> Result<PathFit> {
        base.map_or(Ok(()), |base| self.check_base(base))?;
        let name = clean_name(name);
        let after = After::unchanged(self);
        let path = after.path(&name)?.ok_or_else(|| self.unknown(&name))?;
        let deltas =
            path.iter().map(|(_, planned)| after.read(planned)).collect::<Result<Vec<_>>>()?;
        let deltas: Vec<&CompiledNode> = deltas.iter().collect();
        check_path(&name, &deltas, &*self.lattice()?, base).map_err(Error::in_store)
    }

    /// Checks that a switch could reach every node there is. With `base` every answer is exact.
    ///
    /// # Errors
    /// [`StoreDefect::WrongBase`], and what reading the catalogue returns. What is wrong with nodes
    /// is in the report.
    pub fn check_all_fit(
        &self,
        base: Option<&BaseModel>,
        progress: impl FnMut(u64, u64) + Send,
    ) -> Result<FitReport> {
        self.all_fits(base, MAX_REPORTED, progress)
    }

    /// The same with `most_reported` nodes named in each list.
    pub(super) fn all_fits(
        &self,
        base: Option<&BaseModel>,
        most_reported: usize,
        progress: impl FnMut(u64, u64) + Send,
    ) -> Result<FitReport> {
        base.map_or(Ok(()), |base| self.check_base(base))?;
        let lattice = self.lattice()?;
        let report = Mutex::new((FitReport::default(), 0, progress));
        let after = After::unchanged(self);
        let walk = Walk { after: &after, lattice: &lattice, base, most_reported, report };
        walk.below("", &[])?;
        Ok(walk.report())
    }

    /// The refusal of a change of `name` after which others can no longer be reached; none if there
    /// are none.
    pub fn unreachable(&self, name: &str, report: &FitReport) -> Option<Error> {
        let first = report.unreachable.first()?;
        let (nodes, count) = (
            report.unreachable.iter().map(|found| found.node.clone()).collect(),
            report.unreachable_count,
        );
        let problem = first.problem.clone();
        Some(self.defect(StoreDefect::Unreachable {
            name: clean_name(name),
            nodes,
            count,
            problem,
        }))
    }
}
