//! The input of a call in the ranks of the deltas that are not in the weights. Twin:
//! `device/cpu/shrink.rs`.

use std::collections::BTreeMap;

use super::params::{ShrinkGroup, ShrinkParams};
use super::pipeline::Kernel;
use super::recording::Recording;
use super::unmerged::{Addend, Factors, GpuUnmerged};
use super::{Gpu, GpuBuffer, word};

const THREADS: usize = 128;
/// Rows times pairs of a workgroup at most: their sums for all threads fill what every GPU has of
/// workgroup memory.
const MOST_SUMS: usize = 16;
/// Most rows of a workgroup: `MOST_ROWS` of the shader.
pub(super) const MOST_ROWS: usize = 8;
/// Most pairs of ranks of a workgroup: `MOST_PAIRS`.
pub(super) const MOST_PAIRS: usize = 4;
/// Pairs are not shared out to a workgroup each where more workgroups than this would be at work.
const BUSY: usize = 512;

/// Says where the sums of all factors go, and appends a dispatch for each buffer of factors that
/// makes them.
pub(super) fn shrink(
    gpu: &Gpu,
    pending: &mut Recording,
    unmerged: &GpuUnmerged<'_>,
    x: &GpuBuffer,
    inputs: usize,
    addends: &mut [Vec<Addend<'_>>],
) {
    let mut all: Vec<_> = addends.iter_mut().flatten().filter_map(Addend::factors_mut).collect();
    let most = all.iter().map(|factors| factors.rows.len()).max().unwrap_or(0);
    let rows = most.next_power_of_two().min(MOST_ROWS);
    let single = all.iter().map(|factors| factors.rows.len().div_ceil(rows) * factors.pairs);
    let is_busy = single.sum::<usize>() > BUSY;
    let pairs = if is_busy { MOST_PAIRS.min(MOST_SUMS / rows) } else { 1 };
    let mut groups: BTreeMap<usize, Vec<ShrinkGroup>> = BTreeMap::new();
    let mut sums = 0;
    for factors in &mut all {
        assert!(factors.rows.end * inputs <= x.len, "more rows than a buffer holds");
        factors.sums = sums;
        sums += factors.rows.len() * factors.pairs;
        groups.entry(factors.page).or_default().extend(groups_of(factors, rows, pairs));
    }
    let kernel = Kernel::new("shrink")
        .constant("ROWS", word(rows))
        .constant("PAIRS", word(pairs))
        .constant("THREADS", word(THREADS));
    for (page, groups) in groups {
        let first_group = pending.records(&groups);
        let params = ShrinkParams { first_group, groups: word(groups.len()), inputs: word(inputs) };
        let buffers = [unmerged.page(page), x.slice(), unmerged.sums()];
        let workgroups = gpu.context.workgroups(groups.len());
        pending.dispatch(&gpu.context, &kernel, buffers, &params, workgroups);
    }
}

/// The workgroups of one chunk of factors, each of up to so many rows and pairs.
fn groups_of(
    factors: &Factors,
    rows: usize,
    pairs: usize,
) -> impl Iterator<Item = ShrinkGroup> + '_ {
    let group = move |row: usize, pair: usize| ShrinkGroup {
        first_row: word(row),
        rows: word(rows.min(factors.rows.end - row)),
        a: factors.a_of(pair),
        pairs: word(pairs.min(factors.pairs - pair)),
        chunk_pairs: word(factors.pairs),
        sums: word(factors.sums + (row - factors.rows.start) * factors.pairs + pair),
    };
    let of_row = move |row| (0..factors.pairs).step_by(pairs).map(move |pair| group(row, pair));
    factors.rows.clone().step_by(rows).flat_map(of_row)
}
