//! The switch on the GPU: every low-rank delta of a matrix in one read and one write of it. Twin:
//! `device/cpu/delta_apply/`.
//!
//! A shader binds a fixed number of buffers, a switch moves any number of nodes: so the factors
//! that a group of matrices needs are first copied side by side into a scratch buffer, one or two
//! copies a node, since a node's factors lie in the order of the matrices. Two scratch buffers take
//! turns, so that while the pass over one group runs the factors of the next can arrive, from
//! staging memory if they are not on the device yet. All of it is one submit.
//!
//! Matrices are taken in groups of up to 8 MiB of factors, and one dispatch a matrix part reads
//! and writes each weight once a group, whatever the number of deltas: the list of rank pairs goes
//! by in workgroup memory, eight pairs at a time, with a tile of 64 × 128 weights in the registers
//! of 256 threads, sign and shift as data. In order: copy 0, copy 1, pass 0, copy 2, pass 1, …:
//! each copy's barrier is recorded before the next copy (`Recording::ready`). Parameters lie in
//! one buffer, and nothing is read back but the clock. Dense and sparse deltas take a dispatch
//! each.
//!
//! **Invariant:** integers throughout, modulo 2^16 in the end: neither groups nor parts nor order
//! change a bit.

use super::context::{Context, Slice};
use super::deltas::{Chunk, GpuDeltas, Kind, Store};
use super::matrix::GpuMatrix;
use super::params::{DeltaApplyParams, RankPair};
use super::pipeline::Kernel;
use super::recording::{Prepared, Recording};
use super::{delta_dense, delta_sparse, word};
use crate::Result;
use crate::lattice::{LANES, MatrixId, PANEL_ROWS, Sign, SignedDelta};

/// Bytes of factors in one scratch buffer: small beside an upload that shall overlap with passes,
/// large beside a start.
const SCRATCH_BYTES: u64 = 8 << 20;

/// Rows of a workgroup's tile, and vectors of eight weights beside each other in it: 256 threads of
/// 4 × 8 weights, whose sums and changes fit the registers of every GPU.
const TILE: (usize, usize) = (64, 16);

/// How the low-rank deltas are applied.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// All of a matrix at once.
    Fused,
    /// One chunk after another: what the fused pass is measured against.
    Naive,
}

/// One chunk of one of the nodes, and where its factors lie in the scratch buffer, in words.
struct PlacedChunk<'a> {
    node: usize,
    chunk: SignedDelta<&'a Chunk>,
    store: &'a Store,
    at: usize,
}

/// The chunks that one pass over a matrix takes.
struct Job<'a> {
    matrix: &'a GpuMatrix,
    chunks: Vec<PlacedChunk<'a>>,
}

/// Jobs whose factors lie in a scratch buffer together.
#[derive(Default)]
struct Group<'a> {
    jobs: Vec<Job<'a>>,
    bytes: u64,
}

/// Everything that applies every delta, after `recording`, ready to be handed over.
///
/// # Errors
/// When there is no memory for what that needs.
pub(super) fn prepare(
    context: &Context,
    mut recording: Recording,
    matrices: &[GpuMatrix],
    deltas: &[SignedDelta<&GpuDeltas>],
    pass: Pass,
) -> Result<Prepared> {
    recording.timed = true;
    for node in deltas {
        for (id, entry) in &node.delta.entries {
            let matrix = &matrices[id.0];
            assert_eq!(
                entry.shape,
                (matrix.rows, matrix.cols),
                "a delta of another shape than its matrix"
            );
        }
    }
    let mut groups = groups(matrices, deltas, SCRATCH_BYTES.min(context.max_binding));
    let largest = groups.iter().map(|group| group.bytes).max().unwrap_or(0);
    let scratch = (0..groups.len().min(2))
        .map(|which| context.scratch(which, largest))
        .collect::<Result<Vec<_>>>()?;
    for next in 0..=groups.len() {
        if let Some(group) = groups.get_mut(next) {
            gather(&mut recording, group, &scratch[next % 2]);
        }
        if let Some(last) = next.checked_sub(1) {
            for job in &groups[last].jobs {
                job.dispatch(context, &mut recording, &scratch[last % 2], pass);
            }
        }
        // Said after the last pass, so that it need not wait for these copies.
        if next < groups.len() {
            recording.ready(&scratch[next % 2]);
        }
    }
    arrive(&mut recording, deltas);
    for node in deltas {
        delta_dense::dispatch(context, &mut recording, matrices, node);
        delta_sparse::dispatch(context, &mut recording, matrices, node);
    }
    context.prepare(recording, &[])
}

/// The low-rank deltas by matrix, in groups of at most `most_bytes` of factors (a single chunk
/// may take more). A matrix whose deltas do not fit one group is passed over several times.
fn groups<'a>(
    matrices: &'a [GpuMatrix],
    deltas: &[SignedDelta<&'a GpuDeltas>],
    most_bytes: u64,
) -> Vec<Group<'a>> {
    let mut groups = vec![Group::default()];
    for (id, matrix) in matrices.iter().enumerate() {
        let nodes = deltas.iter().enumerate();
        let chunks: Vec<_> =
            nodes.flat_map(|(node, term)| chunks_on(MatrixId(id), node, *term)).collect();
        let bytes = |placed: &PlacedChunk| placed.chunk.delta.len();
        let needed = chunks.iter().map(bytes).sum::<u64>();
        if needed > 0 && groups.last().is_some_and(|group| group.bytes + needed > most_bytes) {
            groups.push(Group::default());
        }
        let mut job: Option<Job> = None;
        for chunk in chunks {
            let mut group = groups.last_mut().expect("there is one");
            if group.bytes > 0 && group.bytes + bytes(&chunk) > most_bytes {
                group.jobs.extend(job.take());
                groups.push(Group::default());
                group = groups.last_mut().expect("there is one");
            }
            group.bytes += bytes(&chunk);
            job.get_or_insert_with(|| Job { matrix, chunks: Vec::new() }).chunks.push(chunk);
        }
        groups.last_mut().expect("there is one").jobs.extend(job);
    }
    groups.retain(|group| !group.jobs.is_empty());
    groups
}

/// The chunks of a node's low-rank delta on one matrix, if it has one.
fn chunks_on<'a>(
    id: MatrixId,
    node: usize,
    term: SignedDelta<&'a GpuDeltas>,
) -> impl Iterator<Item = PlacedChunk<'a>> {
    let chunks = match term.delta.entries.get(&id).map(|entry| &entry.kind) {
        Some(Kind::LowRank(chunks)) => &chunks[..],
        _ => &[],
    };
    chunks.iter().map(move |chunk| PlacedChunk {
        node,
        chunk: term.with(chunk),
        store: &term.delta.stores[chunk.store],
        at: 0,
    })
}

/// Copies the factors of a group into a scratch buffer, those of each node side by side.
fn gather(recording: &mut Recording, group: &mut Group, scratch: &wgpu::Buffer) {
    let mut chunks: Vec<_> = group.jobs.iter_mut().flat_map(|job| &mut job.chunks).collect();
    chunks.sort_by_key(|placed| placed.node);
    let together = |a: &&mut PlacedChunk, b: &&mut PlacedChunk| {
        a.node == b.node
            && std::ptr::eq(a.store, b.store)
            && a.chunk.delta.bytes.end == b.chunk.delta.bytes.start
    };
    let mut at = 0;
    for run in chunks.chunk_by_mut(together) {
        let bytes = run[0].chunk.delta.bytes.start..run[run.len() - 1].chunk.delta.bytes.end;
        let store = run[0].store;
        store.arrive(recording, bytes.clone());
        let to = at..at + (bytes.end - bytes.start);
        recording.copy(Slice::of(&store.buffer, bytes.clone()), Slice::of(scratch, to.clone()));
        for placed in run {
            placed.at = index((at + placed.chunk.delta.bytes.start - bytes.start) / 4);
        }
        at = to.end;
    }
}

impl Job<'_> {
    fn dispatch(
        &self,
        context: &Context,
        recording: &mut Recording,
        scratch: &wgpu::Buffer,
        pass: Pass,
    ) {
        match pass {
            Pass::Fused => {
                let kernel = Kernel::new("delta_apply")
                    .constant("ROWS", word(TILE.0))
                    .constant("VECS", word(TILE.1));
                let tiles = |rows: usize, vecs: usize| {
                    context.workgroups(rows.div_ceil(TILE.0) * vecs.div_ceil(TILE.1))
                };
                self.dispatch_chunks(context, recording, scratch, &self.chunks, &kernel, tiles);
            }
            Pass::Naive => {
                let kernel = Kernel::flat("naive/delta_apply");
                let words = |rows: usize, vecs: usize| context.flat(rows * vecs * 4);
                for chunk in self.chunks.chunks(1) {
                    self.dispatch_chunks(context, recording, scratch, chunk, &kernel, words);
                }
            }
        }
    }

    /// A dispatch for each part of the matrix, of as many workgroups as its rows and vectors of
    /// eight weights ask for.
    fn dispatch_chunks(
        &self,
        context: &Context,
        recording: &mut Recording,
        scratch: &wgpu::Buffer,
        chunks: &[PlacedChunk],
        kernel: &Kernel,
        workgroups: impl Fn(usize, usize) -> [u32; 3],
    ) {
        let pairs: Vec<_> = chunks.iter().flat_map(PlacedChunk::pairs).collect();
        let first_pair = recording.records(&pairs);
        let row_vecs = self.matrix.row_words() / 4;
        for part in &self.matrix.parts {
            let params = DeltaApplyParams {
                rows: word(part.rows),
                first_row: word(part.first_row),
                row_vecs: word(row_vecs),
                column_tiles: word(row_vecs.div_ceil(TILE.1)),
                first_pair,
                pairs: word(pairs.len()),
            };
            let buffers = [Slice::whole(&part.integers), Slice::whole(scratch)];
            recording.dispatch(context, kernel, buffers, &params, workgroups(part.rows, row_vecs));
        }
    }
}

impl PlacedChunk<'_> {
    /// What the shader reads for each pair of ranks.
    fn pairs(&self) -> impl Iterator<Item = RankPair> {
        let SignedDelta { delta: &Chunk { pairs, a_words, b_words, .. }, sign } = self.chunk;
        let (a, b) = (self.at, self.at + a_words);
        let ends = match sign {
            Sign::Add => 1,
            Sign::Subtract => -1,
        };
        (0..pairs).map(move |p| RankPair {
            a: word(a + LANES * p),
            b: word(b + PANEL_ROWS * p),
            shifts: word(b + b_words),
            chunk_pairs: word(pairs),
            ends: if p + 1 == pairs { ends } else { 0 },
        })
    }
}

/// Copies what dense and sparse deltas still have in staging memory.
fn arrive(recording: &mut Recording, deltas: &[SignedDelta<&GpuDeltas>]) {
    for node in deltas {
        for store in node.delta.entries.values().flat_map(|entry| entry.kind.own_stores()) {
            let store = &node.delta.stores[store];
            store.arrive(recording, 0..store.buffer.size());
        }
    }
}

fn index(n: u64) -> usize {
    usize::try_from(n).expect("a buffer is addressable")
}
