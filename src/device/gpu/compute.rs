//! [`Compute`] for the GPU: each call becomes dispatches, handed over at the next read.
//!
//! One submit a token or prompt. Keys lie in pages of 32 positions by fours of dimensions, values by
//! position, both f32; a pass brings the table of its sequences' pages once. Few sequences with long contexts are split over workgroups by blocks of
//! 128 positions and combined, with the same bits (`attention.rs`). Arg-max and sampling run on
//! the device, but where repetition is penalised: that token is chosen on the host. The host draws
//! the random number, so a seed makes the CPU's tokens up to rounding. Passes of several threads
//! take turns. `matvec` (up to 8 tokens) and `matmul` sum in different orders, so a prompt split
//! differently agrees to rounding, not to the bit as on the CPU.

use std::ops::Range;

use super::attention::GpuKvLayer;
use super::context::Slice;
use super::{
    Gpu, GpuBuffer, GpuMatrix, GpuUnmerged, embed, gelu_mul, lock, matmul, rms_norm, sampling,
    silu_mul,
};
use crate::Result;
use crate::device::compute::{
    Attention, Choice, Compute, Heads, NodeRows, Product, RotateAppend, Span,
};
use crate::lattice::MatrixId;

impl Compute for Gpu {
    type KvLayer = GpuKvLayer;
    type Unmerged<'a> = GpuUnmerged<'a>;

    fn submit<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let _turn = lock(&self.turn);
        let result = work();
        // What is left was not waited for: the work broke off before.
        drop(self.take_pending());
        result
    }

    fn shape(&self, matrix: &GpuMatrix) -> (usize, usize) {
        (matrix.rows, matrix.cols)
    }

    fn len(&self, buffer: &GpuBuffer) -> usize {
        buffer.len
    }

    fn alloc(&self, len: usize) -> Result<GpuBuffer> {
        let usage = wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_DST
            | wgpu::BufferUsages::COPY_SRC;
        Ok(GpuBuffer {
            buffer: self.context.bound_buffer("activations", len as u64 * 4, usage)?,
            len,
        })
    }

    fn alloc_kv(&self, heads: Heads, pages: usize) -> Result<GpuKvLayer> {
        GpuKvLayer::new(self, heads, pages)
    }

    fn kv_page_bytes(&self, heads: Heads) -> u64 {
        2 * GpuKvLayer::page_bytes(heads)
    }

    fn write(&self, values: &[f32], out: &mut GpuBuffer) {
        assert!(values.len() <= out.len, "more values than the buffer holds");
        self.pending().write(bytemuck::cast_slice(values), &out.buffer, 0);
    }

    fn read(&self, buffer: &GpuBuffer, range: Range<usize>) -> Result<Vec<f32>> {
        let slice = Slice::of(&buffer.buffer, range.start as u64 * 4..range.end as u64 * 4);
        let bytes = self.run_pending(&[slice])?.bytes;
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    }

    fn unmerged<'a>(
        &self,
        nodes: &[NodeRows<'a, Self>],
        // Copied whole or not at all, so that the same copies serve every matrix.
        _is_used: impl Fn(MatrixId) -> bool,
    ) -> Result<GpuUnmerged<'a>> {
        GpuUnmerged::new(self, nodes)
    }

    fn embed(
        &self,
        table: (&GpuMatrix, MatrixId),
        tokens: &[u32],
        unmerged: &GpuUnmerged<'_>,
        out: &mut GpuBuffer,
    ) {
        embed::embed(self, table, tokens, unmerged, out);
    }

    fn rms_norm(
        &self,
        x: &GpuBuffer,
        weight: &GpuBuffer,
        eps: f32,
        rows: usize,
        out: &mut GpuBuffer,
    ) {
        rms_norm::rms_norm(self, x, weight, eps, rows, out);
    }

    fn matmul<const N: usize>(
        &self,
        x: &GpuBuffer,
        rows: usize,
        products: [Product<'_, Self>; N],
        unmerged: &GpuUnmerged<'_>,
    ) {
        matmul::products(self, x, rows, &products, unmerged);
    }

    fn rotate_append(&self, what: RotateAppend<'_, Self>, spans: &[Span]) {
        self.rotate_and_append(what, spans);
    }

    fn attention(&self, attention: Attention<'_, Self>, spans: &[Span]) {
        self.attend(attention, spans);
    }

    fn silu_mul(&self, gate: &mut GpuBuffer, up: &GpuBuffer, len: usize) {
        silu_mul::silu_mul(self, gate, up, len);
    }

    fn gelu_mul(&self, gate: &mut GpuBuffer, up: &GpuBuffer, len: usize) {
        gelu_mul::gelu_mul(self, gate, up, len);
    }

    fn select_rows(&self, x: &GpuBuffer, rows: &[usize], width: usize, out: &mut GpuBuffer) {
        let stretch =
            |row: usize, count: usize| (row * width * 4) as u64..((row + count) * width * 4) as u64;
        let mut pending = self.pending();
        let mut at = 0;
        for rows in rows.chunk_by(|a, b| a + 1 == *b) {
            let from = Slice::of(&x.buffer, stretch(rows[0], rows.len()));
            pending.copy(from, Slice::of(&out.buffer, stretch(at, rows.len())));
            at += rows.len();
        }
    }

    fn sample(
        &self,
        logits: &GpuBuffer,
        vocab_size: usize,
        choices: &[Choice],
    ) -> Result<Vec<Result<u32>>> {
        sampling::sample(self, logits, vocab_size, choices)
    }
}
