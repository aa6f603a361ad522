//! Sampling tokens where the logits are. Twin: `device/cpu/sampling.rs`.
//!
//! **Invariant:** a token comes from finite logits only, and no logit leaves the device.

use wgpu::BufferUsages;

use super::argmax::argmax;
use super::context::Slice;
use super::params::{RowSampling, RowToken, SamplingParams};
use super::pipeline::Kernel;
use super::{Gpu, GpuBuffer, word};
use crate::device::Choice;
use crate::{Error, Result};

/// [`crate::device::Compute::sample`].
pub(super) fn sample(
    gpu: &Gpu,
    logits: &GpuBuffer,
    vocab_size: usize,
    choices: &[Choice],
) -> Result<Vec<Result<u32>>> {
    if vocab_size == 0 && !choices.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    let bytes = (choices.len() * size_of::<RowToken>()) as u64;
    let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC;
    let results = Slice::of(&gpu.context.buffer("sampled tokens", bytes, usage)?, 0..bytes);
    if !choices.is_empty() {
        let rows: Vec<_> = choices.iter().map(|choice| row_sampling(choice, vocab_size)).collect();
        let mut pending = gpu.pending();
        let params = SamplingParams {
            first: pending.records(&rows),
            rows: word(rows.len()),
            vocab_size: word(vocab_size),
        };
        let buffers = [logits.slice(), results.clone()];
        argmax(&gpu.context, &mut pending, buffers.clone(), &params);
        if rows.iter().any(|row| row.temperature != 0.0) {
            let groups = gpu.context.workgroups(rows.len());
            pending.dispatch(&gpu.context, &Kernel::new("sampling"), buffers, &params, groups);
        }
    }
    let bytes = gpu.run_pending(&[results])?.bytes;
    Ok(bytemuck::pod_collect_to_vec::<u8, RowToken>(&bytes).iter().map(token).collect())
}

/// A choice as the shader takes it.
fn row_sampling(choice: &Choice, vocab_size: usize) -> RowSampling {
    let Choice { temperature, top_k, top_p, min_p, random } = *choice;
    #[allow(clippy::cast_possible_truncation, reason = "finer than the sums it divides")]
    let random = random as f32;
    RowSampling {
        // −0 is 0 too.
        temperature: if temperature == 0.0 { 0.0 } else { temperature },
        top_k: top_k.filter(|k| *k < vocab_size).map_or(0, word),
        top_p: top_p.map_or(1.0, |p| p.max(f32::MIN_POSITIVE)),
        min_p: min_p.unwrap_or(0.0),
        random,
    }
}

fn token(result: &RowToken) -> Result<u32> {
    match result.non_finite {
        u32::MAX => Ok(result.token),
        index => Err(Error::NonFiniteLogits {
            index: index as usize,
            value: f32::from_bits(result.logit_bits),
        }),
    }
}
