//! Deltas that are not in the weights: where those of a batch lie, and how they are added to
//! products. Twin: `device/cpu/unmerged.rs`.
//!
//! A call with factors among them takes one dispatch of `shrink.wgsl` for all its products and one
//! of `expand.wgsl` for each, however many nodes there are, while their factors fit one binding;
//! else some for each binding. A dense or sparse delta takes dispatches of its own.
//!
//! **Invariant:** a row's addends follow one another from the top of its path down; each is added
//! to the output itself, so the other rows, and what lies in which binding, change no bit.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use wgpu::BufferUsages;

use super::deltas::{GpuDeltas, Kind, SparsePiece, Store};
use super::gathered::{Gathered, Place};
use super::matmul::{self, Tiling, Weights};
use super::recording::Recording;
use super::{Gpu, GpuBuffer, Slice, expand, expand_sparse, lock, shrink, word};
use crate::Result;
use crate::device::{NodeRows, Product};
use crate::lattice::{LANES, MatrixId};

/// Products whose sums there is memory for at once: a call of more goes over its input again.
pub(super) const PRODUCTS: usize = 3;

/// What is kept from one batch to the next.
#[derive(Default)]
pub(super) struct Gathering {
    gathered: Gathered,
    /// Sums between the two kernels.
    sums: Option<wgpu::Buffer>,
}

/// What [`Compute::unmerged`](crate::device::Compute::unmerged) makes ready.
#[derive(Default)]
pub struct GpuUnmerged<'a> {
    nodes: Vec<Node<'a>>,
    /// Buffers with the factors.
    pages: Vec<Arc<wgpu::Buffer>>,
    /// Memory for the sums of `PRODUCTS` products.
    sums: Option<wgpu::Buffer>,
}

struct Node<'a> {
    rows: Range<usize>,
    deltas: &'a GpuDeltas,
    /// Of every store with factors.
    places: Vec<Option<Place>>,
}

/// What is added to a product for these rows.
pub(super) enum Addend<'a> {
    Factors(Factors),
    /// The integers by parts of the matrix.
    Dense(Range<usize>, Vec<&'a wgpu::Buffer>),
    Sparse(Range<usize>, Vec<(&'a SparsePiece, &'a wgpu::Buffer)>),
}

/// A chunk of factors; places are in words of its page.
pub(super) struct Factors {
    pub(super) rows: Range<usize>,
    pub(super) page: usize,
    /// `A'`.
    pub(super) a: u32,
    /// `B'`.
    pub(super) b: u32,
    pub(super) shifts: u32,
    pub(super) pairs: usize,
    /// Where its sums lie, in pairs: `rows × pairs` of them.
    pub(super) sums: usize,
}

impl<'a> GpuUnmerged<'a> {
    /// Brings the factors of all nodes side by side.
    ///
    /// # Errors
    /// When there is no memory, or the device fails.
    pub(super) fn new(gpu: &Gpu, nodes: &[NodeRows<'a, Gpu>]) -> Result<Self> {
        if nodes.is_empty() {
            return Ok(Self::default());
        }
        let mut gathering = lock(&gpu.gathering);
        let sums = gathering.sums(gpu, nodes)?;
        if let Err(error) = gathering.gather(gpu, nodes) {
            gathering.gathered = Gathered::default();
            return Err(error);
        }
        let place = |store: &Store| store.holds_factors.then(|| gathering.gathered.place(store));
        let node = |&NodeRows { ref rows, deltas }: &NodeRows<'a, Gpu>| Node {
            rows: rows.clone(),
            deltas,
            places: deltas.stores.iter().map(place).collect(),
        };
        let nodes = nodes.iter().map(node).collect();
        Ok(Self { nodes, pages: gathering.gathered.pages(), sums })
    }

    /// What is added to products with one matrix, from the top of the tree down.
    pub(super) fn on(&self, id: MatrixId) -> Vec<Addend<'a>> {
        let mut addends = Vec::new();
        self.nodes.iter().for_each(|node| node.push_on(id, &mut addends));
        addends
    }

    #[cfg(test)]
    pub(super) fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Binds one of the buffers with factors.
    pub(super) fn page(&self, page: usize) -> Slice {
        Slice::whole(&self.pages[page])
    }

    /// Binds the memory for sums.
    ///
    /// # Panics
    /// When no node has factors.
    pub(super) fn sums(&self) -> Slice {
        Slice::whole(self.sums.as_ref().expect("there are factors, so there is memory for sums"))
    }

    /// What is added to up to `PRODUCTS` products of `x`, its sums being made.
    pub(super) fn shrink(
        &self,
        gpu: &Gpu,
        x: &GpuBuffer,
        products: &[Product<'_, Gpu>],
    ) -> Vec<Vec<Addend<'a>>> {
        let mut addends: Vec<_> = products.iter().map(|product| self.on(product.id)).collect();
        shrink::shrink(gpu, &mut gpu.pending(), self, x, products[0].weight.cols, &mut addends);
        addends
    }

    /// Adds that to the products, which are in the outputs.
    pub(super) fn expand(
        &self,
        gpu: &Gpu,
        tiling: &Tiling,
        x: &GpuBuffer,
        rows: usize,
        products: &[Product<'_, Gpu>],
        addends: &[Vec<Addend<'_>>],
    ) {
        let mut pending = gpu.pending();
        for (product, addends) in products.iter().zip(addends) {
            for run in addends.chunk_by(Addend::is_beside) {
                self.add_run(gpu, &mut pending, tiling, x, rows, product, run);
            }
        }
    }

    /// Adds addends that one dispatch takes, or a single one.
    #[allow(clippy::too_many_arguments, reason = "a call and its place in the work")]
    fn add_run(
        &self,
        gpu: &Gpu,
        pending: &mut Recording,
        tiling: &Tiling,
        x: &GpuBuffer,
        rows: usize,
        product: &Product<'_, Gpu>,
        run: &[Addend<'_>],
    ) {
        let factors = run.iter().filter_map(Addend::factors).collect::<Vec<_>>();
        match &run[0] {
            Addend::Factors(_) => expand::expand(gpu, pending, self, product, rows, &factors),
            Addend::Dense(rows, stores) => {
                for (part, store) in product.weight.parts.iter().zip(stores) {
                    let weights = Weights { part, integers: store, is_delta: true };
                    matmul::dispatch(gpu, pending, tiling, x, rows.clone(), product, &weights);
                }
            }
            Addend::Sparse(rows, pieces) => {
                for (piece, store) in pieces {
                    expand_sparse::expand(gpu, pending, x, rows, product, piece, store);
                }
            }
        }
    }
}

impl Gathering {
    /// Memory for the sums of the largest matrix of every node, `PRODUCTS` times.
    fn sums(&mut self, gpu: &Gpu, nodes: &[NodeRows<'_, Gpu>]) -> Result<Option<wgpu::Buffer>> {
        let pairs: usize = nodes.iter().map(|node| node.rows.len() * node.deltas.most_pairs).sum();
        let bytes = (PRODUCTS * pairs * size_of::<[f32; 2]>()) as u64;
        if bytes == 0 {
            return Ok(None);
        }
        if self.sums.as_ref().is_none_or(|sums| sums.size() < bytes) {
            self.sums = None;
            let sums = gpu.context.bound_buffer(
                "sums of unmerged deltas",
                bytes,
                BufferUsages::STORAGE,
            )?;
            self.sums = Some(sums);
        }
        Ok(self.sums.clone())
    }

    /// Copies what is still on its way to the device, and what does not lie side by side yet.
    fn gather(&mut self, gpu: &Gpu, nodes: &[NodeRows<'_, Gpu>]) -> Result<()> {
        let mut recording = Recording::default();
        let mut seen = BTreeSet::new();
        let stores = nodes.iter().flat_map(|node| &node.deltas.stores);
        let stores: Vec<&Store> = stores.filter(|store| seen.insert(store.serial)).collect();
        for store in &stores {
            store.arrive(&mut recording, 0..store.buffer.size());
        }
        let factors: Vec<&Store> =
            stores.iter().filter(|store| store.holds_factors).copied().collect();
        self.gathered.gather(&gpu.context, &factors, &mut recording)?;
        if !recording.is_empty() {
            gpu.context.run(recording, &[])?;
            stores.iter().for_each(|store| store.arrived());
        }
        Ok(())
    }
}

impl<'a> Node<'a> {
    /// Adds what the node has on a matrix.
    fn push_on(&self, id: MatrixId, addends: &mut Vec<Addend<'a>>) {
        let Self { rows, deltas, places } = self;
        let buffer = |store: usize| &deltas.stores[store].buffer;
        match deltas.entries.get(&id).map(|entry| &entry.kind) {
            None => {}
            Some(Kind::LowRank(chunks)) => {
                addends.extend(chunks.iter().map(|chunk| {
                    let Place { page, at } = places[chunk.store].expect("it holds factors");
                    let a = word((at + chunk.bytes.start) / 4);
                    let b = a + word(chunk.a_words);
                    let shifts = b + word(chunk.b_words);
                    let (rows, pairs) = (rows.clone(), chunk.pairs);
                    Addend::Factors(Factors { rows, page, a, b, shifts, pairs, sums: 0 })
                }));
            }
            Some(Kind::Dense(stores)) => {
                let stores = stores.iter().map(|&store| buffer(store)).collect();
                addends.push(Addend::Dense(rows.clone(), stores));
            }
            Some(Kind::Sparse(pieces)) => {
                let pieces = pieces.iter().map(|piece| (piece, buffer(piece.store))).collect();
                addends.push(Addend::Sparse(rows.clone(), pieces));
            }
        }
    }
}

impl Addend<'_> {
    /// Whether both are factors that one dispatch reaches.
    fn is_beside(&self, next: &Self) -> bool {
        match (self, next) {
            (Self::Factors(a), Self::Factors(b)) => a.page == b.page,
            _ => false,
        }
    }

    pub(super) fn factors(&self) -> Option<&Factors> {
        match self {
            Self::Factors(factors) => Some(factors),
            _ => None,
        }
    }

    pub(super) fn factors_mut(&mut self) -> Option<&mut Factors> {
        match self {
            Self::Factors(factors) => Some(factors),
            _ => None,
        }
    }
}

impl Factors {
    /// `A'` of a pair in panel 0.
    pub(super) fn a_of(&self, pair: usize) -> u32 {
        self.a + word(LANES * pair)
    }
}
