//! The live weights on one device and the ledger of what is applied to them: the only mutable
//! state.
//!
//! **Order.** `Weights::untie`, `Weights::check_bounds`, `Weights::apply`. A head that is tied to
//! the embedding gets a matrix of its own before the first adapter that touches either is added,
//! since PEFT changes the one module alone: once, before either is touched, and a base whose
//! adapters leave them alone never pays for it. Ids do not change: a tied head has its own from
//! the start. `usable` is false while a pass runs and set back only at its end, so whatever breaks
//! it off leaves it false.
//!
//! **Fingerprint.** BLAKE3 over, in name order, each matrix's name, a zero byte and its hash; then
//! the hash of all vectors (name, zero byte, f32 values, in the base's order). A matrix's hash
//! covers rows and columns (u64), the integers without padding and the steps, all little-endian. A
//! tied head counts under its own name, so untying changes nothing. Only matrices touched since
//! the last call are hashed again.
//!
//! **Invariant:** `N = base + Σ Q_v` over the nodes of the ledger, or the copy is marked unusable
//! until it is loaded again.
//! **Invariant:** every check that can fail is made before the first weight moves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use crate::base::BaseModel;
use crate::compile::{CompiledNode, quantise_weight};
use crate::device::cpu::Cpu;
use crate::device::{Device, PassTimes};
use crate::error::all_or_worst;
pub use crate::lattice::MatrixId;
use crate::lattice::{
    BaseLattice, CompiledDelta, Grid, LANES, NodeDeltas, SignedDelta, check_rows, check_shape,
    close_rows,
};
pub(crate) use crate::name::{EMBEDDING, HEAD};
use crate::{Error, Result, WeightName};

/// Every weight of the model, resident on one device.
pub struct Weights<D: Device> {
    /// By id; a head that shares the embedding's matrix has none of its own yet, and the last id.
    matrices: Vec<D::Matrix>,
    grids: Arc<MatrixGrids>,
    /// The embedding, while the head shares its matrix.
    shared: Option<MatrixId>,
    vectors: BTreeMap<WeightName, D::Buffer>,
    vectors_hash: blake3::Hash,
    /// Hashes of the matrices as they are; `None` where a switch has touched one since.
    hashes: Mutex<Vec<Option<blake3::Hash>>>,
    usable: bool,
}

/// The matrices of a base, by name and by id, with their grids: the same for every copy of its
/// weights. A tied head is a matrix of its own here, with the last id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MatrixGrids {
    names: BTreeMap<WeightName, MatrixId>,
    grids: Vec<Grid>,
}

impl MatrixGrids {
    /// The matrix called `name`, if the base has one.
    pub fn id(&self, name: &WeightName) -> Option<MatrixId> {
        self.names.get(name).copied()
    }

    /// Steps and largest integers of a matrix.
    pub fn grid(&self, id: MatrixId) -> &Grid {
        &self.grids[id.0]
    }

    /// Names in their order, each with its id.
    pub fn names(&self) -> impl Iterator<Item = (&WeightName, MatrixId)> {
        self.names.iter().map(|(name, &id)| (name, id))
    }

    fn add(&mut self, name: WeightName, grid: Grid) {
        self.names.insert(name, MatrixId(self.grids.len()));
        self.grids.push(grid);
    }

    /// Compiled deltas by matrix in place of name.
    ///
    /// # Errors
    /// [`Error::NoSuchMatrix`], and [`Error::DeltaShape`] where a delta is of another shape than
    /// its matrix.
    pub(crate) fn place(&self, node: CompiledNode) -> Result<NodeDeltas> {
        let placed = node.into_iter().map(|(weight, delta)| {
            let Some(id) = self.id(&weight) else { return Err(Error::NoSuchMatrix { weight }) };
            check_shape(&weight, self.grid(id), &delta)?;
            Ok((id, delta))
        });
        Ok(NodeDeltas::new(placed.collect::<Result<Vec<_>>>()?))
    }

    /// The lattice of these matrices.
    pub(crate) fn lattice(&self, headroom: f32) -> BaseLattice {
        BaseLattice::new(
            headroom,
            self.names().map(|(name, id)| (name.clone(), self.grid(id).clone())),
        )
    }
}

/// What moves on one matrix.
fn moving_on<'a>(
    moving: &[SignedDelta<&'a NodeDeltas>],
    id: MatrixId,
) -> Vec<SignedDelta<&'a CompiledDelta>> {
    moving.iter().filter_map(|node| node.on(id)).collect()
}

/// The cost of one pass over the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Touched {
    /// Matrices read and written.
    pub matrices: usize,
    /// Weights in them.
    pub weights: u64,
    /// What the device's clock says.
    pub times: PassTimes,
}

impl<D: Device> Weights<D> {
    /// Weights made of parts, for tests and measurements: they can be computed with, not switched.
    #[doc(hidden)]
    pub fn from_parts(
        matrices: impl IntoIterator<Item = (WeightName, D::Matrix)>,
        vectors: impl IntoIterator<Item = (WeightName, D::Buffer)>,
    ) -> Self {
        let (names, matrices): (Vec<_>, Vec<_>) = matrices.into_iter().unzip();
        let names = names.into_iter().enumerate().map(|(i, name)| (name, MatrixId(i))).collect();
        Self {
            hashes: Mutex::new(vec![None; matrices.len()]),
            matrices,
            grids: Arc::new(MatrixGrids { names, grids: Vec::new() }),
            shared: None,
            vectors: vectors.into_iter().collect(),
            vectors_hash: blake3::hash(b""),
            usable: true,
        }
    }

    /// No weights at all: what is left while others are loaded.
    pub(crate) fn unusable() -> Self {
        Self { usable: false, ..Self::from_parts([], []) }
    }

    /// Loads every weight of `base` tensor by tensor.
    ///
    /// # Errors
    /// [`Error::Headroom`] for a headroom outside 1 to 1024; otherwise what reading and the device
    /// return.
    pub fn load(
        base: &BaseModel,
        device: &D,
        headroom: f32,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Self> {
        let mut weights = Self {
            matrices: Vec::new(),
            grids: Arc::default(),
            shared: None,
            vectors: BTreeMap::new(),
            vectors_hash: blake3::hash(b""),
            hashes: Mutex::default(),
            usable: true,
        };
        let mut vectors_hash = blake3::Hasher::new();
        let mut grids = MatrixGrids::default();
        let total = base.weights().count();
        for (done, (name, info)) in base.weights().enumerate() {
            progress(done, total);
            match info.shape[..] {
                [_, _] => {
                    let (matrix, grid) = quantise_weight(base, name, headroom)?;
                    grids.add(name.clone(), grid);
                    weights.matrices.push(device.upload_matrix(matrix)?);
                }
                _ => {
                    let mut values = vec![0_f32; info.shape.iter().product()];
                    base.read_rows(name, 0..1, &mut values)?;
                    if let Some(index) = values.iter().position(|v| !v.is_finite()) {
                        return Err(Error::NonFinite {
                            tensor: name.to_string(),
                            index,
                            value: values[index],
                        });
                    }
                    vectors_hash.update(name.as_str().as_bytes()).update(&[0]);
                    for value in &values {
                        vectors_hash.update(&value.to_le_bytes());
                    }
                    weights.vectors.insert(name.clone(), device.upload_buffer(values)?);
                }
            }
        }
        progress(total, total);
        weights.vectors_hash = vectors_hash.finalize();
        weights.hashes = Mutex::new(vec![None; weights.matrices.len()]);
        if base.config().tie_word_embeddings
            && let Some(embedding) = grids.id(&WeightName::new(EMBEDDING))
        {
            grids.add(WeightName::new(HEAD), grids.grid(embedding).clone());
            weights.shared = Some(embedding);
        }
        weights.grids = Arc::new(grids);
        Ok(weights)
    }

    /// The matrix called `name`, if the model has one.
    pub fn matrix_id(&self, name: &WeightName) -> Option<MatrixId> {
        self.grids.id(name)
    }

    /// The resident matrix; that of a tied head is the embedding's.
    pub fn matrix(&self, id: MatrixId) -> &D::Matrix {
        &self.matrices[self.place_of(id)]
    }

    /// Where a matrix lies.
    fn place_of(&self, id: MatrixId) -> usize {
        self.shared.filter(|_| id.0 == self.matrices.len()).unwrap_or(id).0
    }

    /// The base's matrices.
    pub(crate) fn grids(&self) -> &Arc<MatrixGrids> {
        &self.grids
    }

    /// Hands some matrices to a measurement that leaves every bit as it was, if it does not fail.
    ///
    /// # Errors
    /// What `work` returns; the copy is then unusable.
    #[cfg(feature = "measure")]
    pub(crate) fn measure<R>(
        &mut self,
        ids: &[MatrixId],
        work: impl FnOnce(&mut [&mut D::Matrix]) -> Result<R>,
    ) -> Result<R> {
        let places: Vec<usize> = ids.iter().map(|id| self.place_of(*id)).collect();
        self.changing(|matrices| {
            let chosen = matrices.iter_mut().enumerate().filter(|(k, _)| places.contains(k));
            work(&mut chosen.map(|(_, matrix)| matrix).collect::<Vec<_>>())
        })
    }

    /// Changes matrices. The copy is usable again only when that has ended: a panic or an error
    /// inside leaves it unusable.
    fn changing<R>(&mut self, work: impl FnOnce(&mut [D::Matrix]) -> Result<R>) -> Result<R> {
        self.usable = false;
        let result = work(&mut self.matrices)?;
        self.usable = true;
        Ok(result)
    }

    /// Steps and largest integers of the base matrix.
    pub fn grid(&self, id: MatrixId) -> &Grid {
        self.grids.grid(id)
    }

    /// The vector (norm or bias) called `name`, if the model has one.
    pub fn vector(&self, name: &WeightName) -> Option<&D::Buffer> {
        self.vectors.get(name)
    }

    /// Names of all matrices, each with its id; a tied head appears beside the embedding.
    pub fn matrix_names(&self) -> impl Iterator<Item = (&WeightName, MatrixId)> {
        self.grids.names()
    }

    /// Grids of the matrices that have a place of their own.
    fn own_grids(&self) -> impl Iterator<Item = &Grid> {
        self.grids.grids.iter().take(self.matrices.len())
    }

    /// Weights in all matrices.
    pub fn parameters(&self) -> u64 {
        self.own_grids().map(|grid| (grid.rows() * grid.cols) as u64).sum()
    }

    /// Bytes of all matrices as they are resident: two for every weight, padded rows included, and
    /// ten a row: its step, on the device and beside it, and its largest integer.
    pub fn resident_bytes(&self) -> u64 {
        let bytes = |grid: &Grid| grid.rows() * (grid.cols.next_multiple_of(LANES) * 2 + 10);
        self.own_grids().map(|grid| bytes(grid) as u64).sum()
    }

    /// Whether embedding and head are one matrix.
    pub fn is_tied(&self) -> bool {
        self.shared.is_some()
    }

    /// Gives the head a copy of the embedding, so that a delta on one leaves the other alone, as it
    /// does while an adapter is trained. The copy must be made before either is touched.
    ///
    /// # Errors
    /// When the device has no memory left.
    pub(crate) fn untie(&mut self, device: &D) -> Result<()> {
        let Some(MatrixId(source)) = self.shared else { return Ok(()) };
        let copy = device.copy_matrix(&self.matrices[source])?;
        self.matrices.push(copy);
        self.shared = None;
        let hashes = self.hashes.get_mut().expect("no thread panics holding the hashes");
        let known = hashes[source];
        hashes.push(known);
        Ok(())
    }

    /// Checks that no weight leaves the lattice where `moving` leads, the deltas of the nodes that
    /// are left and entered. `path` holds the deltas applied there: where the sum of their largest
    /// entries leaves space nothing else is looked at, and the other rows are counted exactly. What
    /// was found to fit is not looked at again while its deltas stay in memory.
    ///
    /// # Errors
    /// [`Error::Overflow`] with the headroom that would do.
    pub(crate) fn check_bounds(
        &self,
        device: &D,
        host: &Cpu,
        node: &str,
        path: &[&NodeDeltas],
        moving: &[SignedDelta<&NodeDeltas>],
    ) -> Result<()> {
        let Some(last) = path.last() else { return Ok(()) };
        if last.known_to_fit(path) {
            return Ok(());
        }
        let mut close = Vec::new();
        let moved: BTreeSet<MatrixId> =
            path.iter().flat_map(|deltas| deltas.iter().map(|(id, _)| id)).collect();
        for (name, id) in self.matrix_names().filter(|(_, id)| moved.contains(id)) {
            let touching: Vec<_> = path.iter().filter_map(|deltas| deltas.delta(id)).collect();
            let rows = close_rows(self.grid(id), &touching);
            if !rows.is_empty() {
                close.push((name, id, rows));
            }
        }
        let check =
            |((name, id, rows), integers): (&(&WeightName, MatrixId, Vec<usize>), &Vec<i16>)| {
                check_rows(name, self.grid(*id), rows, integers, &moving_on(moving, *id))
            };
        // To wake the threads costs more than all that came before.
        if !close.is_empty() {
            host.install(|| {
                let wanted: Vec<_> =
                    close.iter().map(|(_, id, rows)| (self.matrix(*id), &rows[..])).collect();
                all_or_worst(close.iter().zip(&device.read_rows(&wanted)?).map(check))
                    .map_err(|error| error.at_node(node))
            })?;
        }
        last.fits(path);
        Ok(())
    }

    /// Whether the weights are what the ledger says.
    pub fn is_usable(&self) -> bool {
        self.usable
    }

    /// Moves the weights: one fused pass over every touched matrix. `resident` is what `moving`
    /// is on the device.
    ///
    /// # Errors
    /// [`Error::Unusable`] when an earlier pass broke off, and what the device returns; the copy is
    /// then unusable.
    pub(crate) fn apply(
        &mut self,
        device: &D,
        moving: &[SignedDelta<&NodeDeltas>],
        resident: &[SignedDelta<&D::Deltas>],
    ) -> Result<Touched> {
        if !self.usable {
            return Err(Error::Unusable);
        }
        let mut touched = Touched::default();
        let hashes = self.hashes.get_mut().expect("no thread panics holding the hashes");
        let ids: BTreeSet<MatrixId> =
            moving.iter().flat_map(|node| node.delta.iter().map(|(id, _)| id)).collect();
        for id in ids {
            let grid = self.grids.grid(id);
            touched.matrices += 1;
            touched.weights += (grid.rows() * grid.cols) as u64;
            hashes[id.0] = None;
        }
        let pass = device.prepare_pass(&self.matrices, resident)?;
        touched.times = self.changing(|matrices| device.delta_apply(matrices, resident, pass))?;
        Ok(touched)
    }

    /// The fingerprint of the resident bits: BLAKE3 over every matrix's name and hash, in name
    /// order, and the vectors' hash. Only matrices touched since the last call are hashed again. A
    /// tied head counts as a matrix of its own.
    ///
    /// # Errors
    /// When the device fails.
    pub fn fingerprint(&self, device: &D) -> Result<blake3::Hash> {
        let hashes = self.matrix_hashes(device)?;
        Ok(combine(
            self.matrix_names().map(|(name, id)| (name, hashes[self.place_of(id)])),
            self.vectors_hash,
        ))
    }

    /// The fingerprint that a node would have whose matrices hash to `hashes`, by id.
    pub(crate) fn fingerprint_of(&self, hashes: &[blake3::Hash]) -> blake3::Hash {
        combine(self.matrix_names().map(|(name, id)| (name, hashes[id.0])), self.vectors_hash)
    }

    fn matrix_hashes(&self, device: &D) -> Result<Vec<blake3::Hash>> {
        let mut hashes = self.hashes.lock().expect("no thread panics holding the hashes");
        let unknown: Vec<usize> = (0..hashes.len()).filter(|&k| hashes[k].is_none()).collect();
        let matrices: Vec<_> = unknown.iter().map(|&k| &self.matrices[k]).collect();
        for (&k, hash) in unknown.iter().zip(device.fingerprint(&matrices)?) {
            hashes[k] = Some(hash);
        }
        Ok(hashes.iter().map(|hash| hash.expect("all are known now")).collect())
    }
}

fn combine<'a>(
    matrices: impl Iterator<Item = (&'a WeightName, blake3::Hash)>,
    vectors: blake3::Hash,
) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for (name, hash) in matrices {
        hasher.update(name.as_str().as_bytes()).update(&[0]).update(hash.as_bytes());
    }
    hasher.update(vectors.as_bytes()).finalize()
}
