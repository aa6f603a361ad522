//! The compiled deltas of one node in GPU memory, as they lie in the host's: nothing is repacked
//! but sparse entries.
//!
//! Their bytes wait in staging memory until a pass uses them or [`finish_uploads`] is called,
//! whichever comes first.
//!
//! **Invariant:** a chunk of factors lies in one buffer in whole words: `A'`, `B'`, shifts. Chunks
//! follow one another in the order of the matrices.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use wgpu::BufferUsages;

use super::context::{Context, Slice};
use super::matrix::rows_a_part;
use super::params::SparseWord;
use super::recording::Recording;
use crate::lattice::{CompiledDelta, DeltaKind, Factors, LANES, MatrixId, NodeDeltas, SparseRows};
use crate::{Error, Result};

/// The compiled deltas of one node in GPU memory.
pub struct GpuDeltas {
    pub(super) stores: Vec<Store>,
    pub(super) entries: BTreeMap<MatrixId, Entry>,
    /// Pairs of ranks on the matrix that has the most.
    pub(super) most_pairs: usize,
}

/// The delta on one matrix.
pub(super) struct Entry {
    /// Rows and columns.
    pub(super) shape: (usize, usize),
    pub(super) kind: Kind,
}

pub(super) enum Kind {
    LowRank(Vec<Chunk>),
    /// The store of each part of the matrix.
    Dense(Vec<usize>),
    Sparse(Vec<SparsePiece>),
}

impl Kind {
    /// Pairs of ranks of all chunks.
    fn pairs(&self) -> usize {
        match self {
            Self::LowRank(chunks) => chunks.iter().map(|chunk| chunk.pairs).sum(),
            _ => 0,
        }
    }

    /// The stores that hold nothing but this delta.
    pub(super) fn own_stores(&self) -> Vec<usize> {
        match self {
            Self::LowRank(_) => Vec::new(),
            Self::Dense(stores) => stores.clone(),
            Self::Sparse(pieces) => pieces.iter().map(|piece| piece.store).collect(),
        }
    }
}

/// Where the factors of one chunk lie.
pub(super) struct Chunk {
    pub(super) store: usize,
    pub(super) bytes: Range<u64>,
    pub(super) pairs: usize,
    pub(super) a_words: usize,
    pub(super) b_words: usize,
}

impl Chunk {
    /// Bytes of its factors.
    pub(super) fn len(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }
}

/// Entries of a sparse delta in one part of a matrix: for each the place of a word there, and what
/// it moves by.
pub(super) struct SparsePiece {
    pub(super) part: usize,
    pub(super) store: usize,
    pub(super) entries: usize,
}

/// A buffer whose contents may still be in staging memory.
pub(super) struct Store {
    /// No other store of this process has it.
    pub(super) serial: u64,
    pub(super) buffer: wgpu::Buffer,
    /// Whether it holds chunks of factors; else it is a dense or sparse delta's own.
    pub(super) holds_factors: bool,
    staged: Mutex<Option<wgpu::Buffer>>,
}

impl Store {
    fn new(context: &Context, pieces: &[Cow<[u8]>], holds_factors: bool) -> Result<Self> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let bytes = pieces.iter().map(|piece| whole_words(piece.len())).sum::<usize>();
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC;
        let buffer = context.buffer("delta", bytes as u64, usage)?;
        let staged = context.staging("delta on its way", bytes as u64)?;
        let mut view = staged.get_mapped_range_mut(..).map_err(|error| context.fault(error))?;
        let mut at = 0;
        for piece in pieces {
            view.slice(at..at + piece.len()).copy_from_slice(piece);
            at += whole_words(piece.len());
        }
        drop(view);
        staged.unmap();
        Ok(Self {
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            buffer,
            holds_factors,
            staged: Mutex::new(Some(staged)),
        })
    }

    fn staged(&self) -> MutexGuard<'_, Option<wgpu::Buffer>> {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn is_staged(&self) -> bool {
        self.staged().is_some()
    }

    /// Copies bytes that are still on their way. [`Self::arrived`] is to be called when that is
    /// done.
    pub(super) fn arrive(&self, recording: &mut Recording, bytes: Range<u64>) {
        if let Some(staged) = &*self.staged() {
            recording.copy(Slice::of(staged, bytes.clone()), Slice::of(&self.buffer, bytes));
        }
    }

    /// Lets go of the staging memory: everything that a pass reads is in the buffer.
    pub(super) fn arrived(&self) {
        *self.staged() = None;
    }
}

fn whole_words(bytes: usize) -> usize {
    bytes.next_multiple_of(4)
}

impl GpuDeltas {
    /// # Panics
    /// When entries of a sparse row do not ascend: compiling makes none.
    pub(super) fn upload(context: &Context, deltas: &NodeDeltas) -> Result<Self> {
        let mut contents =
            Contents { limit: context.max_binding, stores: Vec::new(), factors: None };
        let mut entries = BTreeMap::new();
        for (id, delta) in deltas.iter() {
            let kind = match &delta.kind {
                DeltaKind::LowRank(chunks) => Kind::LowRank(
                    chunks.iter().map(|factors| contents.chunk(factors)).collect::<Result<_>>()?,
                ),
                DeltaKind::Dense(lanes) => {
                    let row_lanes = delta.cols.div_ceil(LANES);
                    let parts = lanes
                        .chunks(rows_a_part(context, delta.cols).saturating_mul(row_lanes).max(1));
                    Kind::Dense(
                        parts
                            .map(|lanes| contents.own(bytemuck::cast_slice(lanes).into()))
                            .collect(),
                    )
                }
                DeltaKind::Sparse(sparse) => Kind::Sparse(contents.sparse(context, delta, sparse)),
            };
            entries.insert(id, Entry { shape: (delta.rows, delta.cols), kind });
        }
        let own: BTreeSet<usize> =
            entries.values().flat_map(|entry: &Entry| entry.kind.own_stores()).collect();
        let store = |(k, pieces): (usize, &Vec<_>)| Store::new(context, pieces, !own.contains(&k));
        let stores = contents.stores.iter().enumerate().map(store).collect::<Result<_>>()?;
        let most_pairs = entries.values().map(|entry| entry.kind.pairs()).max().unwrap_or(0);
        Ok(Self { stores, entries, most_pairs })
    }

    pub(super) fn bytes(&self) -> usize {
        self.stores
            .iter()
            .map(|store| usize::try_from(store.buffer.size()).unwrap_or(usize::MAX))
            .sum()
    }

    pub(super) fn arrived(&self) {
        self.stores.iter().for_each(Store::arrived);
    }
}

/// Copies what is still in staging memory, in one submit.
pub(super) fn finish_uploads(context: &Context, deltas: &[&GpuDeltas]) -> Result<()> {
    let mut recording = Recording::default();
    for store in deltas.iter().flat_map(|deltas| &deltas.stores) {
        store.arrive(&mut recording, 0..store.buffer.size());
    }
    if !recording.is_empty() {
        context.run(recording, &[])?;
        deltas.iter().for_each(|deltas| deltas.arrived());
    }
    Ok(())
}

/// What the stores will hold.
struct Contents<'a> {
    /// Most bytes of a store.
    limit: u64,
    stores: Vec<Vec<Cow<'a, [u8]>>>,
    /// The store that takes the next chunk, and the bytes it has.
    factors: Option<(usize, u64)>,
}

impl<'a> Contents<'a> {
    /// A store of its own.
    fn own(&mut self, bytes: Cow<'a, [u8]>) -> usize {
        self.stores.push(vec![bytes]);
        self.stores.len() - 1
    }

    fn chunk(&mut self, factors: &'a Factors) -> Result<Chunk> {
        let pieces = [
            bytemuck::cast_slice(&factors.a),
            bytemuck::cast_slice(&factors.b),
            &factors.shift[..],
        ];
        let bytes = pieces.iter().map(|piece| whole_words(piece.len()) as u64).sum();
        if bytes > self.limit {
            let what = format!("a delta of rank {} on one matrix", 2 * factors.pairs);
            return Err(Error::DeviceLimit { what, bytes, limit: self.limit });
        }
        let (store, at) =
            self.factors.filter(|(_, used)| used + bytes <= self.limit).unwrap_or_else(|| {
                self.stores.push(Vec::new());
                (self.stores.len() - 1, 0)
            });
        self.factors = Some((store, at + bytes));
        self.stores[store].extend(pieces.map(Cow::Borrowed));
        let [a_words, b_words] = [0, 1].map(|piece| pieces[piece].len() / 4);
        Ok(Chunk { store, bytes: at..at + bytes, pairs: factors.pairs, a_words, b_words })
    }

    /// The two columns of a word become one entry.
    fn sparse(
        &mut self,
        context: &Context,
        delta: &CompiledDelta,
        sparse: &SparseRows,
    ) -> Vec<SparsePiece> {
        let row_words = delta.cols.div_ceil(LANES) * LANES / 2;
        let part_rows = rows_a_part(context, delta.cols).max(1);
        let mut pieces = Vec::new();
        for part in 0..delta.rows.div_ceil(part_rows) {
            let first = part * part_rows;
            let mut words: Vec<SparseWord> = Vec::new();
            for row in first..delta.rows.min(first + part_rows) {
                let range = sparse.row_start[row] as usize..sparse.row_start[row + 1] as usize;
                assert!(
                    sparse.cols[range.clone()].is_sorted_by(|a, b| a < b),
                    "entries of row {row} do not ascend"
                );
                for (&column, &value) in
                    sparse.cols[range.clone()].iter().zip(&sparse.values[range])
                {
                    let place = u32::try_from((row - first) * row_words + column as usize / 2)
                        .expect("a part's words");
                    let change = u32::from(value.cast_unsigned()) << (16 * (column % 2));
                    match words.last_mut() {
                        Some(last) if last.place == place => last.change |= change,
                        _ => words.push(SparseWord { place, change }),
                    }
                }
            }
            let most = self.limit / size_of::<SparseWord>() as u64;
            let most = usize::try_from(most).unwrap_or(usize::MAX).max(1);
            for words in words.chunks(most) {
                let store = self.own(Cow::Owned(bytemuck::cast_slice(words).to_vec()));
                pieces.push(SparsePiece { part, store, entries: words.len() });
            }
        }
        pieces
    }
}
