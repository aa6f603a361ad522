//! From an adapter to what is published: the same integers on every machine.

use std::path::Path;

use rayon::prelude::*;

use super::Store;
use super::blob::CompiledNode;
use super::change::Content;
use crate::adapter::{AdapterDeltas, Limits, PeftAdapter};
use crate::base::BaseModel;
use crate::device::cpu::{SimdLevel, tighten_and_count};
use crate::error::{StoreDefect, all_or_worst};
use crate::lattice::{Grid, Kept, compile};
use crate::{Error, Result, WeightName};

/// Compiles one node's float deltas on the grids that `grid_of` gives, and counts what share of them the lattice keeps.
///
/// # Errors
/// [`Error::NoSuchMatrix`], and what [`compile`] returns.
pub fn compile_node<'g>(
    deltas: &AdapterDeltas,
    grid_of: impl Fn(&WeightName) -> Option<&'g Grid> + Sync,
) -> Result<(CompiledNode, Kept)> {
    let compiled = deltas.par_iter().map(|(name, delta)| {
        let grid = grid_of(name).ok_or_else(|| Error::NoSuchMatrix { weight: name.clone() })?;
        let mut compiled = compile(name, delta, grid)?;
        let squares = tighten_and_count(SimdLevel::detect(), &mut compiled, delta, grid);
        Ok((name, compiled, squares, grid))
    });
    let (mut node, mut kept) = (CompiledNode::new(), Kept::default());
    for (name, compiled, squares, grid) in all_or_worst(compiled.collect::<Vec<_>>())? {
        kept.add(name, squares, &compiled, grid);
        node.insert(name.clone(), compiled);
    }
    Ok((node, kept))
}

impl Store {
    /// Compiles float deltas for this store's base.
    ///
    /// # Errors
    /// [`Error::NoSuchMatrix`], and what [`compile`] returns.
    pub fn compile(&self, deltas: &AdapterDeltas) -> Result<Content> {
        let lattice = self.lattice()?;
        let (node, kept) = compile_node(deltas, |name| lattice.grid(name))?;
        let mut content = Content::new(&node, self.inner.header.lattice_hash.into());
        content.kept = Some(kept);
        Ok(content)
    }

    /// Reads the PEFT adapter in `folder` and compiles it for this store's base. An adapter that holds a copy of the
    /// embedding or head needs the base to compare it with. With `keep_files` the store keeps the files, too.
    ///
    /// # Errors
    /// [`Error::Adapter`] for an adapter that is refused, [`StoreDefect::NeedsBase`], and as [`Self::compile`].
    pub fn compile_adapter(
        &self,
        folder: &Path,
        base: Option<&BaseModel>,
        limits: &Limits,
        keep_files: bool,
    ) -> Result<Content> {
        let adapter = PeftAdapter::open(folder, limits)?;
        match base {
            Some(base) => {
                self.check_base(base)?;
                adapter.check_copies(base)?;
            }
            None if adapter.has_copies() => {
                return Err(self.defect(StoreDefect::NeedsBase { adapter: folder.to_owned() }));
            }
            None => {}
        }
        let mut content = self.compile(&adapter.deltas(&self.lattice()?.shapes(&self.inner.header.base_name))?)?;
        content.adapter_hash = adapter.hash().into();
        if keep_files {
            content.original = Some(adapter.file_bytes());
        }
        Ok(content)
    }
}
