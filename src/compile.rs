//! From floats to integers: a base's matrices onto the lattice, an adapter's deltas to integers on
//! it. The same on every machine.

use std::collections::BTreeMap;
use std::ops::Range;

use rayon::prelude::*;

use crate::adapter::{AdapterDeltas, FloatDelta};
use crate::base::BaseModel;
use crate::device::cpu::{SimdLevel, tighten_and_count};
use crate::error::all_or_worst;
use crate::lattice::{
    BaseLattice, CompiledDelta, Grid, Kept, LatticeMatrix, Squares, compile, quantise,
};
use crate::name::{EMBEDDING, HEAD};
use crate::{Error, Result, WeightName};

/// The compiled deltas of one node by weight.
pub type CompiledNode = BTreeMap<WeightName, CompiledDelta>;

/// Compiles one node's float deltas on the grids that `grid_of` returns, and counts what share of
/// them the lattice keeps.
///
/// # Errors
/// [`Error::NoSuchMatrix`], and what [`compile`] returns.
pub fn compile_node<'g>(
    deltas: &AdapterDeltas,
    grid_of: impl Fn(&WeightName) -> Option<&'g Grid> + Sync,
) -> Result<(CompiledNode, Kept)> {
    let compiled = deltas.par_iter().map(|(name, delta)| {
        let grid = grid_of(name).ok_or_else(|| Error::NoSuchMatrix { weight: name.clone() })?;
        compile_weight(name, delta, grid)
    });
    let (mut node, mut kept) = (CompiledNode::new(), Kept::default());
    for Compiled { name, delta, squares, grid } in all_or_worst(compiled.collect::<Vec<_>>())? {
        kept.add(name, squares, &delta, grid);
        node.insert(name.clone(), delta);
    }
    Ok((node, kept))
}

/// One weight's change on its grid, and how far that is from what it was in floats.
struct Compiled<'a> {
    name: &'a WeightName,
    delta: CompiledDelta,
    squares: Squares,
    grid: &'a Grid,
}

fn compile_weight<'a>(
    name: &'a WeightName,
    float: &FloatDelta,
    grid: &'a Grid,
) -> Result<Compiled<'a>> {
    let mut delta = compile(name, float, grid)?;
    let squares = tighten_and_count(SimdLevel::detect(), &mut delta, float, grid);
    Ok(Compiled { name, delta, squares, grid })
}

/// Reads one matrix of the base onto the lattice.
pub(crate) fn quantise_weight(
    base: &BaseModel,
    name: &WeightName,
    headroom: f32,
) -> Result<(LatticeMatrix, Grid)> {
    let (rows, cols) = matrix_shape(base, name)?;
    quantise(name, rows, cols, headroom, |range: Range<usize>, out: &mut [f32]| {
        base.read_rows(name, range, out)
    })
}

/// The lattice that loading puts `base` on. `progress` is called with how many of how many weights
/// are done.
///
/// # Errors
/// [`Error::Headroom`] for a headroom outside 1 to 1024; otherwise what reading the base returns.
pub fn base_lattice(
    base: &BaseModel,
    headroom: f32,
    progress: impl FnMut(usize, usize),
) -> Result<BaseLattice> {
    base_lattice_of(base, headroom, |_| true, progress)
}

/// The same of those matrices alone that are `wanted`: enough to check adapters that touch no
/// others.
///
/// # Errors
/// As [`base_lattice`].
pub fn base_lattice_of(
    base: &BaseModel,
    headroom: f32,
    wanted: impl Fn(&WeightName) -> bool,
    mut progress: impl FnMut(usize, usize),
) -> Result<BaseLattice> {
    let tied = base.config().tie_word_embeddings;
    let (embedding, head) = (WeightName::new(EMBEDDING), WeightName::new(HEAD));
    let wanted = |name: &WeightName| wanted(name) || (tied && *name == embedding && wanted(&head));
    let matrices = base.weights().filter(|(name, info)| info.shape.len() == 2 && wanted(name));
    let matrices: Vec<_> = matrices.map(|(name, _)| name.clone()).collect();
    let mut grids = BTreeMap::new();
    for (done, name) in matrices.iter().enumerate() {
        progress(done, matrices.len());
        grids.insert(name.clone(), quantise_weight(base, name, headroom)?.1);
    }
    progress(matrices.len(), matrices.len());
    if tied && let Some(embedding) = grids.get(&embedding).cloned() {
        grids.insert(head, embedding);
    }
    Ok(BaseLattice::new(headroom, grids))
}

fn matrix_shape(base: &BaseModel, name: &WeightName) -> Result<(usize, usize)> {
    let shape = base.weights().find(|(n, _)| *n == name).map(|(_, info)| &info.shape[..]);
    match shape {
        Some(&[rows, cols]) => Ok((rows, cols)),
        _ => Err(Error::NoSuchMatrix { weight: name.clone() }),
    }
}
