//! What deltas that are not in the weights add to a product, from the sums of `shrink.rs`. Twin:
//! `device/cpu/expand.rs`.

use super::params::{ExpandParams, ExpandTerm};
use super::pipeline::{FLAT_THREADS, Kernel};
use super::recording::Recording;
use super::unmerged::{Factors, GpuUnmerged};
use super::{Gpu, Slice, word};
use crate::device::Product;

/// Most rows of a block: `MOST` of the shader.
pub(super) const MOST_ROWS: usize = 8;

/// Appends a dispatch that adds these factors, all in one buffer, to the rows that have them.
pub(super) fn expand(
    gpu: &Gpu,
    pending: &mut Recording,
    unmerged: &GpuUnmerged<'_>,
    product: &Product<'_, Gpu>,
    rows: usize,
    run: &[&Factors],
) {
    let outputs = product.weight.rows;
    let block_rows = rows.next_power_of_two().min(MOST_ROWS);
    let (terms, blocks) = terms(run, rows, block_rows);
    let tiles = outputs.div_ceil(FLAT_THREADS);
    let params = ExpandParams {
        rows: word(rows),
        outputs: word(outputs),
        first_term: pending.records(&terms),
        blocks: word(blocks),
        tiles: word(tiles),
    };
    let kernel = Kernel::flat("expand").constant("ROWS", word(block_rows));
    let steps = Slice::whole(&product.weight.steps);
    let buffers = [unmerged.page(run[0].page), unmerged.sums(), steps, product.out.slice()];
    let workgroups = gpu.context.workgroups(tiles * blocks);
    pending.dispatch(&gpu.context, &kernel, buffers, &params, workgroups);
}

/// The terms of every block of rows that has any, the first of each block before all others, and
/// how many such blocks there are.
fn terms(run: &[&Factors], rows: usize, block_rows: usize) -> (Vec<ExpandTerm>, usize) {
    let mut blocks = vec![Vec::new(); rows.div_ceil(block_rows)];
    for &factors in run {
        let touched = factors.rows.start / block_rows..factors.rows.end.div_ceil(block_rows);
        for block in touched {
            blocks[block].push(term(factors, block * block_rows));
        }
    }
    blocks.retain(|block| !block.is_empty());
    let mut terms: Vec<ExpandTerm> = blocks.iter().map(|block| block[0]).collect();
    for (first, block) in blocks.iter().enumerate() {
        terms[first].more = word(block.len() - 1);
        terms[first].next = word(terms.len());
        terms.extend_from_slice(&block[1..]);
    }
    (terms, blocks.len())
}

fn term(factors: &Factors, block_row: usize) -> ExpandTerm {
    ExpandTerm {
        block_row: word(block_row),
        first_row: word(factors.rows.start),
        end_row: word(factors.rows.end),
        b: factors.b,
        shifts: factors.shifts,
        pairs: word(factors.pairs),
        sums: word(factors.sums),
        more: 0,
        next: 0,
    }
}
