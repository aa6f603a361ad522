//! The fingerprint of matrices, computed where they lie; 32 bytes a matrix come back. Twin:
//! `device/cpu/fingerprint.rs`.

use wgpu::BufferUsages;

use super::context::{Context, Slice};
use super::matrix::GpuMatrix;
use super::params::FingerprintParams;
use super::pipeline::Kernel;
use super::recording::Recording;
use super::word;
use crate::{Error, Result};

/// Bytes that BLAKE3 hashes on their own: a leaf of its tree (chunk, in its specification). That
/// leaves do not wait for each other is what lets a GPU hash at all.
const CHUNK: u64 = 1024;
/// Most chunks, or values, that one workgroup joins.
const GROUP: u32 = 64;
/// Bytes of one value.
const VALUE: u64 = 32;

fn kernel(entry: &'static str, group: u32) -> Kernel {
    let kernel = Kernel::new("fingerprint").entry(entry).constant("GROUP", group);
    kernel.constant("CHUNK_BYTES", word(CHUNK))
}

/// Hashes every matrix, all in one submit.
pub(super) fn fingerprint(context: &Context, matrices: &[&GpuMatrix]) -> Result<Vec<blake3::Hash>> {
    let plans = matrices.iter().map(|matrix| Plan::new(matrix)).collect::<Result<Vec<_>>>()?;
    // First the hashes, then values that one matrix after the other uses.
    let first = word(matrices.len());
    let free =
        plans.iter().map(|plan| plan.groups + plan.groups.div_ceil(GROUP)).max().unwrap_or(0);
    let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC;
    let values = context.buffer("hashes", u64::from(first + free) * VALUE, usage)?;
    let nothing = context.buffer("nothing", 16, usage)?;
    let scratch = Scratch { values: &values, free: first, nothing: &nothing };
    let mut recording = Recording::default();
    for (result, (matrix, plan)) in (0..).zip(matrices.iter().zip(&plans)) {
        plan.hash(context, &mut recording, matrix, &scratch, result);
    }
    let bytes =
        context.run(recording, &[Slice::of(&values, 0..matrices.len() as u64 * VALUE)])?.bytes;
    let hash = |bytes: &[u8]| blake3::Hash::from_bytes(bytes.try_into().expect("32 bytes"));
    Ok(bytes.chunks_exact(size_of::<[u32; 8]>()).map(hash).collect())
}

/// What the dispatches of one matrix after the other use.
struct Scratch<'a> {
    values: &'a wgpu::Buffer,
    /// The first value that is not a result.
    free: u32,
    /// Bound where a matrix has no part.
    nothing: &'a wgpu::Buffer,
}

/// How a matrix is cut.
struct Plan {
    chunks: u32,
    /// Chunks a workgroup hashes: a power of two.
    group: u32,
    /// Workgroups for all of them.
    groups: u32,
}

impl Plan {
    fn new(matrix: &GpuMatrix) -> Result<Self> {
        let bytes = stream_bytes(matrix.rows, matrix.cols) + 4 * matrix.rows as u64;
        let what = || format!("the fingerprint of a matrix of {} × {}", matrix.rows, matrix.cols);
        // The shader counts units of two bytes.
        let limit = u64::from(u32::MAX) * 2;
        if bytes > limit {
            return Err(Error::DeviceLimit { what: what(), bytes, limit });
        }
        // A workgroup sees two parts: the one that its chunks start in, and the next.
        let between = matrix.parts.len().checked_sub(2).and_then(|last| matrix.parts.get(1..=last));
        let narrowest =
            between.into_iter().flatten().map(|part| 2 * (part.rows * matrix.cols) as u64).min();
        let group = narrowest.map_or(GROUP, |bytes| word(bytes / CHUNK).min(GROUP));
        if group == 0 {
            return Err(Error::DeviceLimit {
                what: what(),
                bytes: CHUNK,
                limit: narrowest.unwrap_or(0),
            });
        }
        let group = 1 << group.ilog2();
        let chunks = word(bytes.div_ceil(CHUNK));
        Ok(Self { chunks, group, groups: chunks.div_ceil(group) })
    }

    /// The first workgroup that starts in row `row` or later.
    fn first_group(&self, matrix: &GpuMatrix, row: usize) -> u32 {
        if row == 0 {
            0
        } else {
            word(stream_bytes(row, matrix.cols).div_ceil(CHUNK * u64::from(self.group)))
        }
    }

    /// Leaves the hash at `result` of the scratch values.
    fn hash(
        &self,
        context: &Context,
        recording: &mut Recording,
        matrix: &GpuMatrix,
        scratch: &Scratch,
        result: u32,
    ) {
        let Scratch { values, free, nothing } = *scratch;
        let part = |index: usize| matrix.parts.get(index).map_or(nothing, |part| &part.integers);
        let end = if matrix.parts.is_empty() { 0 } else { matrix.rows };
        let row = |index: usize| matrix.parts.get(index).map_or(end, |part| part.first_row);
        let buffers =
            |index| [part(index), part(index + 1), &matrix.steps, values].map(Slice::whole);
        let mut params = FingerprintParams {
            rows: word(matrix.rows),
            cols: word(matrix.cols),
            row_words: word(matrix.row_words()),
            first_row: 0,
            second_row: 0,
            count: self.chunks,
            first_group: 0,
            groups: 0,
            source: 0,
            result: if self.groups == 1 { result } else { free },
        };
        let chunks = kernel("chunks", self.group);
        for index in 0..matrix.parts.len().max(1) {
            let end = if index + 1 < matrix.parts.len() {
                self.first_group(matrix, row(index + 1))
            } else {
                self.groups
            };
            params.first_row = word(row(index));
            params.second_row = word(row(index + 1));
            params.first_group = self.first_group(matrix, row(index)).min(end);
            params.groups = end - params.first_group;
            recording.dispatch(
                context,
                &chunks,
                buffers(index),
                &params,
                context.workgroups(params.groups as usize),
            );
        }
        let merge = kernel("merge", GROUP);
        let mut areas = [free, free + self.groups];
        let mut left = self.groups;
        while left > 1 {
            params.count = left;
            left = left.div_ceil(GROUP);
            params.groups = left;
            params.source = areas[0];
            params.result = if left == 1 { result } else { areas[1] };
            recording.dispatch(
                context,
                &merge,
                buffers(0),
                &params,
                context.workgroups(left as usize),
            );
            areas.swap(0, 1);
        }
    }
}

/// Bytes of the stream before row `row`: rows, columns, and the rows before.
fn stream_bytes(row: usize, cols: usize) -> u64 {
    16 + 2 * (row * cols) as u64
}
