//! Whether everything a store says is so: every page of the catalogue, every record, every byte of
//! every blob.

use std::collections::BTreeSet;

use rayon::prelude::*;
use serde::Serialize;

use super::Store;
use super::catalogue::Version;
use crate::compile::CompiledNode;
use crate::device::cpu::{SimdLevel, tighten};
use crate::error::StoreDefect;
use crate::lattice::BaseLattice;
use crate::{Error, Result};

/// Versions checked at a time.
const AT_ONCE: usize = 512;
/// Problems reported one by one.
const MAX_PROBLEMS: usize = 100;

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StoreReport {
    /// Nodes looked at.
    pub nodes: u64,
    /// Past versions looked at.
    pub past_versions: u64,
    /// Bytes of compiled deltas and kept files read.
    pub bytes: u64,
    /// What is wrong, the first 100.
    pub problems: Vec<String>,
    /// How much is wrong.
    pub problem_count: u64,
    /// Segments that nothing names: a change that did not happen left them, a compaction removes
    /// them.
    pub unused_segments: u64,
    /// Whether the catalogue's account of its free pages was looked at, too, which takes the right
    /// to write.
    pub free_pages_checked: bool,
}

impl StoreReport {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problem_count == 0
    }

    fn problem(&mut self, problem: String) {
        self.problem_count += 1;
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem);
        }
    }
}

impl Store {
    /// Checks the catalogue's pages, every record, its parent and link, and every byte of every
    /// version, past ones too. With `deep` also that no row's integers reach further than its
    /// bound. Changes wait while the catalogue's pages are looked at; if they are damaged the
    /// database mends them where it can, and that is a problem in the report. Where the store may
    /// only be read nobody waits, and nothing is mended: every page in use is read, those that are
    /// free are not. `progress` is called with how many of how many versions are done.
    ///
    /// # Errors
    /// When the store cannot be read at all, or another process keeps it locked; what is wrong with
    /// parts of it is in the report.
    pub fn verify(&self, deep: bool, mut progress: impl FnMut(u64, u64)) -> Result<StoreReport> {
        let mut report = StoreReport::default();
        match self.inner.catalogue.check_integrity() {
            Ok(mended) => {
                report.free_pages_checked = mended.is_some();
                if mended == Some(true) {
                    report.problem("the catalogue was damaged and had to be mended".to_owned());
                }
            }
            Err(Error::Store { path, defect })
                if matches!(*defect, StoreDefect::Busy { .. } | StoreDefect::Replaced) =>
            {
                return Err(Error::Store { path, defect });
            }
            Err(error) => report.problem(error.to_string()),
        }
        let lattice = match self.lattice() {
            Ok(lattice) => Some(lattice),
            Err(error) => {
                report.problem(error.to_string());
                None
            }
        };
        let lattice = lattice.as_deref();
        let mut named = BTreeSet::new();
        let (nodes, past) = self
            .inner
            .catalogue
            .read_from_disk(|reading| Ok((reading.count()?, reading.past_count()?)))?;
        let mut batch = Vec::with_capacity(AT_ONCE);
        let mut check = |batch: &mut Vec<(String, Version)>,
                         report: &mut StoreReport,
                         named: &mut BTreeSet<u32>| {
            let found: Vec<_> = batch
                .par_iter()
                .map(|(name, version)| self.check_version(name, version, lattice, deep))
                .collect();
            for (_, version) in batch.drain(..) {
                report.bytes += version.locations().map(|location| location.length).sum::<u64>();
                named.extend(version.locations().map(|location| location.segment));
            }
            found
                .into_iter()
                .filter_map(Result::err)
                .for_each(|error| report.problem(error.to_string()));
            progress(report.nodes + report.past_versions, nodes + past);
        };
        self.inner.catalogue.read_from_disk(|reading| {
            named.insert(reading.state()?.lattice.segment);
            let mut links = 0;
            reading.each_node(None, |name, version| {
                report.nodes += 1;
                let version = match version.map_err(|failure| self.described(failure)) {
                    Ok(version) => version,
                    Err(problem) => {
                        report.problem(problem);
                        return Ok(true);
                    }
                };
                if !version.parent.is_empty()
                    && !matches!(reading.node(&version.parent), Ok(Some(_)))
                {
                    report.problem(format!("{name}: its parent {} is not there", version.parent));
                }
                match reading.is_child(&version.parent, name)? {
                    true => links += 1,
                    false => report.problem(format!(
                        "{name}: its link from {:?} is not there",
                        version.parent
                    )),
                }
                batch.push((name.to_owned(), version));
                if batch.len() == AT_ONCE {
                    check(&mut batch, &mut report, &mut named);
                }
                Ok(true)
            })?;
            let mut all_links = 0_u64;
            reading.each_link(|_, _| {
                all_links += 1;
                Ok(())
            })?;
            if all_links != links {
                report.problem(format!("there are {all_links} links to {links} nodes"));
            }
            reading.each_past(|name, past| {
                report.past_versions += 1;
                match past.map_err(|failure| self.described(failure)) {
                    Ok(past) => batch.push((name.to_owned(), past.version)),
                    Err(problem) => report.problem(problem),
                }
                if batch.len() == AT_ONCE {
                    check(&mut batch, &mut report, &mut named);
                }
                Ok(true)
            })?;
            check(&mut batch, &mut report, &mut named);
            // The tail's segment may be empty, and a change of another process may make the next
            // one now.
            let tail = reading.state()?.segment;
            let files = self.inner.segments.files()?;
            report.unused_segments = files
                .iter()
                .filter(|(segment, _)| *segment != tail && !named.contains(segment))
                .count() as u64;
            Ok(())
        })?;
        Ok(report)
    }

    /// Checks one version; what another process moved or dropped meanwhile is looked up again.
    fn check_version(
        &self,
        name: &str,
        version: &Version,
        lattice: Option<&BaseLattice>,
        deep: bool,
    ) -> Result<()> {
        let Err(error) = self.check_bytes(name, version, lattice, deep) else { return Ok(()) };
        let (now, past) = self
            .inner
            .catalogue
            .read(|reading| Ok((reading.node(name)?, reading.history(name)?)))?;
        let same = |now: &Version| now.generation == version.generation;
        match now.into_iter().chain(past.into_iter().map(|past| past.version)).find(same) {
            Some(now) if now == *version => Err(error),
            Some(now) => self.check_bytes(name, &now, lattice, deep),
            None => Ok(()),
        }
    }

    fn check_bytes(
        &self,
        name: &str,
        version: &Version,
        lattice: Option<&BaseLattice>,
        deep: bool,
    ) -> Result<()> {
        let node = self.read(&version.location)?;
        if let Some(original) = &version.original {
            self.kept_files(original, &self.blob(original)?)?;
        }
        let problem = lattice
            .and_then(|lattice| misfit(&node, lattice))
            .or_else(|| deep.then(|| wrong(&node)).flatten());
        let part = || format!("generation {} of {name}", version.generation);
        problem.map_or(Ok(()), |problem| Err(self.damaged(part(), &problem)))
    }

    fn described(&self, failure: super::catalogue::Failure) -> String {
        match failure {
            super::catalogue::Failure::Ours(error) => error.to_string(),
            super::catalogue::Failure::Database(error) => error.to_string(),
        }
    }
}

/// What does not fit the base.
fn misfit(node: &CompiledNode, lattice: &BaseLattice) -> Option<String> {
    node.iter().find_map(|(weight, delta)| match lattice.grid(weight) {
        None => Some(format!("the base has no matrix {weight}")),
        Some(grid) if (grid.rows(), grid.cols) != (delta.rows, delta.cols) => Some(format!(
            "{weight} is {}×{}, the base's {}×{}",
            delta.rows,
            delta.cols,
            grid.rows(),
            grid.cols
        )),
        Some(_) => None,
    })
}

/// What compiling would not have made.
fn wrong(node: &CompiledNode) -> Option<String> {
    node.iter().find_map(|(weight, delta)| {
        let mut counted = delta.clone();
        tighten(SimdLevel::detect(), &mut counted);
        let row = counted
            .row_max
            .iter()
            .zip(&delta.row_max)
            .position(|(counted, said)| counted > said)?;
        let (counted, said) = (counted.row_max[row], delta.row_max[row]);
        Some(format!("{weight}: row {row} reaches {counted}, its bound says {said}"))
    })
}
