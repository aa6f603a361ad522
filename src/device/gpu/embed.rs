//! Rows of the embedding by token. Twin: `device/cpu/embed.rs`.
//!
//! A dispatch for each part of the table, which writes the tokens it holds. With deltas that are
//! not in the table the output holds integers until the last of the further dispatches: one for
//! each buffer of factors, and one for each part of a dense or sparse delta.

use std::collections::BTreeSet;
use std::ops::Range;

use super::params::EmbedParams;
use super::pipeline::Kernel;
use super::recording::Recording;
use super::unmerged::{Addend, Factors, GpuUnmerged};
use super::{Gpu, GpuBuffer, GpuMatrix, Slice, word};
use crate::lattice::MatrixId;

/// What one dispatch adds.
struct Addition {
    /// Tokens of the batch.
    tokens: Range<usize>,
    /// Rows of the table.
    rows: Range<usize>,
    source: Source,
    /// Factors, and where the lists of them lie in the words.
    lists: Option<(Slice, u32)>,
}

/// What is bound beside factors.
enum Source {
    Nothing,
    Integers(wgpu::Buffer),
    Entries(wgpu::Buffer, usize),
}

/// [`crate::device::Compute::embed`].
pub(super) fn embed(
    gpu: &Gpu,
    (table, id): (&GpuMatrix, MatrixId),
    tokens: &[u32],
    unmerged: &GpuUnmerged<'_>,
    out: &GpuBuffer,
) {
    assert!(tokens.len() * table.cols <= out.len, "more tokens than the buffer holds");
    assert!(
        tokens.iter().all(|&token| (token as usize) < table.rows),
        "a token that the table does not have"
    );
    let mut pending = gpu.pending();
    let at = pending.words(tokens);
    let all = 0..tokens.len();
    let addends = unmerged.on(id);
    let is_merged = addends.is_empty();
    for (part, rows) in parts(table) {
        let source = Source::Integers(table.parts[part].integers.clone());
        let addition = Addition { tokens: all.clone(), rows, source, lists: None };
        addition.dispatch(gpu, &mut pending, table, at, out, (false, is_merged));
    }
    if is_merged {
        return;
    }
    let mut additions: Vec<Addition> =
        addends.iter().flat_map(|addend| of_integers(table, addend)).collect();
    additions.extend(of_factors(table, &mut pending, unmerged, &addends, tokens.len()));
    let last = additions.len() - 1;
    for (k, addition) in additions.iter().enumerate() {
        addition.dispatch(gpu, &mut pending, table, at, out, (true, k == last));
    }
}

/// The parts of a table and their rows.
fn parts(table: &GpuMatrix) -> impl Iterator<Item = (usize, Range<usize>)> {
    let rows = table.parts.iter().map(|part| part.first_row..part.first_row + part.rows);
    rows.enumerate()
}

/// What a dense or sparse delta adds.
fn of_integers(table: &GpuMatrix, addend: &Addend<'_>) -> Vec<Addition> {
    let addition = |tokens: &Range<usize>, rows, source| Addition {
        tokens: tokens.clone(),
        rows,
        source,
        lists: None,
    };
    match addend {
        Addend::Factors(_) => Vec::new(),
        Addend::Dense(tokens, stores) => {
            let stores = stores.iter().map(|&store| Source::Integers(store.clone()));
            let pieces = parts(table).zip(stores);
            pieces.map(|((_, rows), source)| addition(tokens, rows, source)).collect()
        }
        Addend::Sparse(tokens, pieces) => {
            let ranges: Vec<_> = parts(table).map(|(_, rows)| rows).collect();
            let pieces = pieces.iter().map(|(piece, store)| {
                let source = Source::Entries((*store).clone(), piece.entries);
                addition(tokens, ranges[piece.part].clone(), source)
            });
            pieces.collect()
        }
    }
}

/// What the factors in each buffer add, at least one addition: it goes over every token and so may
/// be the last.
fn of_factors(
    table: &GpuMatrix,
    pending: &mut Recording,
    unmerged: &GpuUnmerged<'_>,
    addends: &[Addend<'_>],
    tokens: usize,
) -> Vec<Addition> {
    let all: Vec<&Factors> = addends.iter().filter_map(Addend::factors).collect();
    let pages: BTreeSet<usize> = all.iter().map(|factors| factors.page).collect();
    let addition =
        |lists| Addition { tokens: 0..tokens, rows: 0..table.rows, source: Source::Nothing, lists };
    if pages.is_empty() {
        return vec![addition(None)];
    }
    let of_page = |page: usize| {
        let here = all.iter().filter(|factors| factors.page == page).copied();
        let lists = lists(pending, &here.collect::<Vec<_>>(), tokens);
        addition(Some((unmerged.page(page), lists)))
    };
    pages.into_iter().map(of_page).collect()
}

/// Appends for every token the factors that its row gets: how many, and where they are described in
/// four words each.
fn lists(pending: &mut Recording, all: &[&Factors], tokens: usize) -> u32 {
    let mut lists = Vec::with_capacity(2 * tokens);
    for token in 0..tokens {
        let here = all.iter().filter(|factors| factors.rows.contains(&token));
        let words: Vec<u32> = here
            .flat_map(|factors| [factors.a, factors.b, factors.shifts, word(factors.pairs)])
            .collect();
        lists.extend([word(words.len() / 4), pending.words(&words)]);
    }
    pending.words(&lists)
}

impl Addition {
    /// Appends the dispatch: whether it adds to what is there, and whether it is the last.
    fn dispatch(
        &self,
        gpu: &Gpu,
        pending: &mut Recording,
        table: &GpuMatrix,
        tokens: u32,
        out: &GpuBuffer,
        (accumulate, finish): (bool, bool),
    ) {
        let len = self.tokens.len() * table.cols;
        // A binding that is not read may be anything.
        let steps = Slice::whole(&table.steps);
        let (kind, source, entries) = match &self.source {
            Source::Nothing => (0, steps.clone(), 0),
            Source::Integers(integers) => (1, Slice::whole(integers), 0),
            Source::Entries(entries, count) => (2, Slice::whole(entries), *count),
        };
        let (factors, lists) = self.lists.clone().unwrap_or((steps.clone(), 0));
        let params = EmbedParams {
            first_token: word(self.tokens.start),
            len: word(len),
            width: word(table.cols),
            tokens,
            first_row: word(self.rows.start),
            part_rows: word(self.rows.len()),
            source: kind,
            entries: word(entries),
            lists,
            has_lists: self.lists.is_some().into(),
            accumulate: accumulate.into(),
            finish: finish.into(),
        };
        let buffers = [source, factors, steps, out.slice()];
        let kernel = Kernel::flat("embed");
        pending.dispatch(&gpu.context, &kernel, buffers, &params, gpu.context.flat(len));
    }
}
