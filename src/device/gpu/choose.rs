//! Choosing tokens where the logits are. Twin: `device/cpu/choose.rs`; shaders `likeliest` and
//! `choose`.
//!
//! **Invariant:** a token comes from finite logits only, and no logit leaves the device.

use wgpu::BufferUsages;

use super::context::Slice;
use super::params::ChooseParams;
use super::pipeline::Kernel;
use super::{Gpu, GpuBuffer, word};
use crate::device::Choice;
use crate::{Error, Result};

/// Words that come back for a row: token, index of a logit that is not finite, that logit.
const RESULT: usize = 3;

impl Gpu {
    /// [`crate::device::Compute::choose`].
    pub(super) fn choose_tokens(
        &self,
        logits: &GpuBuffer,
        vocab_size: usize,
        choices: &[Choice],
    ) -> Result<Vec<u32>> {
        if vocab_size == 0 && !choices.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC;
        let results = self.context.buffer("choices", (choices.len() * RESULT * 4) as u64, usage)?;
        let results = Slice::of(&results, 0..(choices.len() * RESULT * 4) as u64);
        let words = choices.iter().flat_map(|choice| {
            let Choice { temperature, top_k, top_p, min_p, random } = *choice;
            #[allow(clippy::cast_possible_truncation, reason = "finer than the sums it divides")]
            let random = random as f32;
            // −0 is 0 too.
            let temperature = if temperature == 0.0 { 0 } else { temperature.to_bits() };
            let top_k = top_k.filter(|k| *k < vocab_size).map_or(0, word);
            let top_p = top_p.map_or(1.0, |p| p.max(f32::MIN_POSITIVE)).to_bits();
            [temperature, top_k, top_p, min_p.unwrap_or(0.0).to_bits(), random.to_bits()]
        });
        let words: Vec<u32> = words.collect();
        if !choices.is_empty() {
            let mut pending = self.pending();
            let params = ChooseParams {
                words: pending.words(&words),
                rows: word(choices.len()),
                vocab_size: word(vocab_size),
            };
            let grid = self.context.grid(choices.len());
            let buffers = [logits.slice(), results.clone()];
            pending.dispatch(
                &self.context,
                &Kernel::new("likeliest"),
                buffers.clone(),
                &params,
                grid,
            );
            if choices.iter().any(|choice| choice.temperature != 0.0) {
                pending.dispatch(&self.context, &Kernel::new("choose"), buffers, &params, grid);
            }
        }
        let bytes = self.run_pending(&[results])?.bytes;
        let results: Vec<u32> = bytemuck::pod_collect_to_vec(&bytes);
        let token = |result: &[u32]| match result[1] {
            u32::MAX => Ok(result[0]),
            index => Err(Error::NonFiniteLogits {
                index: index as usize,
                value: f32::from_bits(result[2]),
            }),
        };
        results.chunks_exact(RESULT).map(token).collect()
    }
}
