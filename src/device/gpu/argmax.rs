//! The likeliest token of each row of logits. Twin: `device/cpu/argmax.rs`.

use super::context::{Context, Slice};
use super::params::SamplingParams;
use super::pipeline::Kernel;
use super::recording::Recording;

/// Appends the dispatch, a workgroup a row: `buffers` are the logits and a `RowToken` for each row.
pub(super) fn argmax(
    context: &Context,
    recording: &mut Recording,
    buffers: [Slice; 2],
    params: &SamplingParams,
) {
    let groups = context.workgroups(params.rows as usize);
    recording.dispatch(context, &Kernel::new("argmax"), buffers, params, groups);
}
