//! A module's tensors → the change to its weight in floats: `dW = scaling · B · A`.
//!
//! A kind of change that scales the weight itself (DoRA's magnitudes, IA³'s vectors) needs the rows
//! of that weight as they are above the node: they come in at [`PeftAdapter::lower`], which its
//! caller in `bind.rs` calls weight by weight, and such a change is lowered to a dense delta.
//!
//! **Invariant:** every value of a delta is finite.
//!
//! **Source:** PEFT 0.21.2, `tuners/lora/layer.py`, `get_delta_weight` of `Linear` and `Embedding`.

use super::module::{Change, Module, TensorSpan};
use super::{FloatDelta, PeftAdapter, transpose};
use crate::error::AdapterDefect;
use crate::{Error, Result};

impl PeftAdapter {
    /// The change to the weight of `module`, `(out, in)` of its shape.
    ///
    /// # Errors
    /// [`AdapterDefect::NotFinite`] inside [`Error::Adapter`].
    pub(super) fn lower(&self, module: &Module) -> Result<FloatDelta> {
        let Change::Lora { lora_a: a, lora_b: b, is_transposed } = &module.change;
        let (mut lora_a, mut lora_b) = (self.read(a)?, self.read(b)?);
        if *is_transposed {
            // (B·A)ᵀ = Aᵀ·Bᵀ.
            (lora_a, lora_b) = (transpose(&lora_b, b.shape), transpose(&lora_a, a.shape));
        }
        Ok(FloatDelta::LowRank { rank: module.rank, lora_a, lora_b, scaling: module.scaling })
    }

    /// A tensor's values, all of them finite.
    fn read(&self, span: &TensorSpan) -> Result<Vec<f32>> {
        let values = self.contents.tensors.to_f32(&span.key)?;
        let Some(at) = values.iter().position(|value| !value.is_finite()) else {
            return Ok(values);
        };
        let (row, column) = (at / span.shape[1], at % span.shape[1]);
        let tensor = span.key.clone();
        let defect = AdapterDefect::NotFinite { tensor, row, column, value: values[at] };
        Err(Error::adapter(&self.header.path, defect))
    }
}
