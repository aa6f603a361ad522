//! The switch on the GPU: every low-rank segment of a matrix in one read and one write of it. Twin:
//! `device/cpu/delta_apply/`.
//!
//! A shader binds a fixed number of buffers, a switch moves any number of nodes: so the factors
//! that a group of matrices needs are first copied side by side into a scratch buffer, one or two
//! copies a node, since a node's factors lie in the order of the matrices. Two scratch buffers take
//! turns, so that while the pass over one group runs the factors of the next can arrive, from
//! staging memory if they are not on the device yet. All of it is one submit.
//!
//! **Invariant:** integers throughout, modulo 2^16 in the end: neither groups nor parts nor order
//! change a bit.

use super::context::{Context, Slice};
use super::deltas::{Chunk, GpuDeltas, Kind, Store};
use super::matrix::GpuMatrix;
use super::params::{DeltaApplyParams, DeltaDenseParams, DeltaSparseParams};
use super::pipeline::Kernel;
use super::steps::{Prepared, Steps};
use super::word;
use crate::Result;
use crate::lattice::{MatrixId, Sign};

/// Bytes of factors in one scratch buffer: small beside an upload that shall overlap with passes,
/// large beside a start.
const SCRATCH_BYTES: u64 = 8 << 20;

/// Rows and vectors of eight weights in a workgroup's tile: `ROWS` and half of `QUADS` of the
/// shader.
const TILE: (usize, usize) = (64, 16);

/// How the low-rank segments are applied.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// All of a matrix at once.
    Fused,
    /// One chunk after another: what the fused pass is measured against.
    Naive,
}

/// One chunk of one term, and where its factors lie in the scratch buffer, in words.
struct Item<'a> {
    term: usize,
    sign: Sign,
    chunk: &'a Chunk,
    store: &'a Store,
    at: usize,
}

/// The chunks that one pass over a matrix takes.
struct Job<'a> {
    matrix: &'a GpuMatrix,
    items: Vec<Item<'a>>,
}

/// Jobs whose factors lie in a scratch buffer together.
#[derive(Default)]
struct Group<'a> {
    jobs: Vec<Job<'a>>,
    bytes: u64,
}

/// Everything that applies every term, after `steps`, ready to be handed over.
///
/// # Errors
/// When there is no room for what that needs.
pub(super) fn prepare(
    context: &Context,
    mut steps: Steps,
    matrices: &[GpuMatrix],
    terms: &[(&GpuDeltas, Sign)],
    pass: Pass,
) -> Result<Prepared> {
    steps.timed = true;
    for (deltas, _) in terms {
        for (id, entry) in &deltas.entries {
            let matrix = &matrices[id.0];
            assert_eq!(
                entry.shape,
                (matrix.rows, matrix.cols),
                "a delta of another shape than its matrix"
            );
        }
    }
    let mut groups = groups(matrices, terms, SCRATCH_BYTES.min(context.max_binding));
    let room = groups.iter().map(|group| group.bytes).max().unwrap_or(0);
    let scratch = (0..groups.len().min(2))
        .map(|which| context.scratch(which, room))
        .collect::<Result<Vec<_>>>()?;
    for next in 0..=groups.len() {
        if let Some(group) = groups.get_mut(next) {
            gather(&mut steps, group, &scratch[next % 2]);
        }
        if let Some(last) = next.checked_sub(1) {
            for job in &groups[last].jobs {
                job.dispatch(context, &mut steps, &scratch[last % 2], pass);
            }
        }
        // Said after the last pass, so that it need not wait for these copies.
        if next < groups.len() {
            steps.ready(&scratch[next % 2]);
        }
    }
    others(context, &mut steps, matrices, terms);
    context.prepare(steps, &[])
}

/// The low-rank segments by matrix, in groups of at most `room` bytes of factors (a single chunk
/// may take more). A matrix whose segments do not fit one group is passed over several times.
fn groups<'a>(
    matrices: &'a [GpuMatrix],
    terms: &[(&'a GpuDeltas, Sign)],
    room: u64,
) -> Vec<Group<'a>> {
    let mut groups = vec![Group::default()];
    for (id, matrix) in matrices.iter().enumerate() {
        let items_of = |(term, (deltas, sign)): (usize, &(&'a GpuDeltas, Sign))| {
            let chunks = match deltas.entries.get(&MatrixId(id)).map(|entry| &entry.kind) {
                Some(Kind::LowRank(chunks)) => &chunks[..],
                _ => &[],
            };
            let (stores, sign) = (&deltas.stores, *sign);
            chunks.iter().map(move |chunk| Item {
                term,
                sign,
                chunk,
                store: &stores[chunk.store],
                at: 0,
            })
        };
        let items: Vec<_> = terms.iter().enumerate().flat_map(items_of).collect();
        let bytes = |item: &Item| item.chunk.bytes.end - item.chunk.bytes.start;
        let needed = items.iter().map(bytes).sum::<u64>();
        if needed > 0 && groups.last().is_some_and(|group| group.bytes + needed > room) {
            groups.push(Group::default());
        }
        let mut job: Option<Job> = None;
        for item in items {
            let mut group = groups.last_mut().expect("there is one");
            if group.bytes > 0 && group.bytes + bytes(&item) > room {
                group.jobs.extend(job.take());
                groups.push(Group::default());
                group = groups.last_mut().expect("there is one");
            }
            group.bytes += bytes(&item);
            job.get_or_insert_with(|| Job { matrix, items: Vec::new() }).items.push(item);
        }
        groups.last_mut().expect("there is one").jobs.extend(job);
    }
    groups.retain(|group| !group.jobs.is_empty());
    groups
}

/// Copies the factors of a group into a scratch buffer, those of each term side by side.
fn gather(steps: &mut Steps, group: &mut Group, scratch: &wgpu::Buffer) {
    let mut items: Vec<_> = group.jobs.iter_mut().flat_map(|job| &mut job.items).collect();
    items.sort_by_key(|item| item.term);
    let together = |a: &&mut Item, b: &&mut Item| {
        a.term == b.term
            && std::ptr::eq(a.store, b.store)
            && a.chunk.bytes.end == b.chunk.bytes.start
    };
    let mut at = 0;
    for run in items.chunk_by_mut(together) {
        let (store, bytes) =
            (run[0].store, run[0].chunk.bytes.start..run[run.len() - 1].chunk.bytes.end);
        store.arrive(steps, bytes.clone());
        let to = at..at + (bytes.end - bytes.start);
        steps.copy(Slice::of(&store.buffer, bytes.clone()), Slice::of(scratch, to.clone()));
        for item in run {
            item.at = index((at + item.chunk.bytes.start - bytes.start) / 4);
        }
        at = to.end;
    }
}

impl Job<'_> {
    fn dispatch(&self, context: &Context, steps: &mut Steps, scratch: &wgpu::Buffer, pass: Pass) {
        let mut dispatch =
            |items: &[Item], kernel: &Kernel, groups: &dyn Fn(usize, usize) -> usize| {
                let slots: Vec<_> = items.iter().flat_map(Item::slots).collect();
                let first_slot = steps.words(slots.as_flattened());
                let row_vecs = self.matrix.row_words() / 4;
                for part in &self.matrix.parts {
                    let params = DeltaApplyParams {
                        rows: word(part.rows),
                        first_row: word(part.first_row),
                        row_vecs: word(row_vecs),
                        column_tiles: word(row_vecs.div_ceil(TILE.1)),
                        first_slot,
                        slots: word(slots.len()),
                    };
                    let buffers = [Slice::whole(&part.integers), Slice::whole(scratch)];
                    steps.dispatch(
                        context,
                        kernel,
                        buffers,
                        &params,
                        context.grid(groups(part.rows, row_vecs)),
                    );
                }
            };
        match pass {
            Pass::Fused => {
                let tiles =
                    |rows: usize, vecs: usize| rows.div_ceil(TILE.0) * vecs.div_ceil(TILE.1);
                dispatch(&self.items, &Kernel::new("delta_apply"), &tiles);
            }
            Pass::Naive => {
                for item in &self.items {
                    let kernel = Kernel::new("naive/delta_apply");
                    dispatch(std::slice::from_ref(item), &kernel, &|rows, vecs| {
                        (rows * vecs * 4).div_ceil(64)
                    });
                }
            }
        }
    }
}

impl Item<'_> {
    /// What the shader reads for each pair of ranks.
    fn slots(&self) -> impl Iterator<Item = [u32; 4]> {
        let Chunk { pairs, a_words, b_words, .. } = *self.chunk;
        let (a, b) = (self.at, self.at + a_words);
        let end = match self.sign {
            Sign::Add => 1,
            Sign::Subtract => 2,
        };
        let step = move |p| if p + 1 == pairs { pairs | end << 8 } else { pairs };
        (0..pairs).map(move |p| [a + 32 * p, b + p, step(p), b + b_words].map(word))
    }
}

/// Dense and sparse deltas, one pass each.
fn others(
    context: &Context,
    steps: &mut Steps,
    matrices: &[GpuMatrix],
    terms: &[(&GpuDeltas, Sign)],
) {
    let stores = |kind: &Kind| match kind {
        Kind::LowRank(_) => Vec::new(),
        Kind::Dense(stores) => stores.clone(),
        Kind::Sparse(pieces) => pieces.iter().map(|piece| piece.store).collect(),
    };
    for (deltas, _) in terms {
        for store in deltas.entries.values().flat_map(|entry| stores(&entry.kind)) {
            let store = &deltas.stores[store];
            store.arrive(steps, 0..store.buffer.size());
        }
    }
    for (deltas, sign) in terms {
        let subtract = u32::from(*sign == Sign::Subtract);
        for (id, entry) in &deltas.entries {
            let matrix = &matrices[id.0];
            let buffers = |part: usize, store: usize| {
                [&matrix.parts[part].integers, &deltas.stores[store].buffer].map(Slice::whole)
            };
            match &entry.kind {
                Kind::LowRank(_) => {}
                Kind::Dense(stores) => {
                    for (part, &store) in stores.iter().enumerate() {
                        let vecs = matrix.parts[part].rows * matrix.row_words() / 4;
                        let params = DeltaDenseParams { vecs: word(vecs), subtract };
                        let grid = context.grid(vecs.div_ceil(64));
                        steps.dispatch(
                            context,
                            &Kernel::new("delta_dense"),
                            buffers(part, store),
                            &params,
                            grid,
                        );
                    }
                }
                Kind::Sparse(pieces) => {
                    for piece in pieces {
                        let params = DeltaSparseParams { entries: word(piece.entries), subtract };
                        let (buffers, grid) = (
                            buffers(piece.part, piece.store),
                            context.grid(piece.entries.div_ceil(64)),
                        );
                        steps.dispatch(
                            context,
                            &Kernel::new("delta_sparse"),
                            buffers,
                            &params,
                            grid,
                        );
                    }
                }
            }
        }
    }
}

fn index(n: u64) -> usize {
    usize::try_from(n).expect("a buffer is addressable")
}
