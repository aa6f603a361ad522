//! [`Compute`] for the CPU: each call by name to its kernel.

use std::ops::Range;

use super::{Cpu, CpuKvLayer, FloatBuffer, Unmerged, sample};
use crate::Result;
use crate::device::compute::{
    Attention, Choice, Compute, Heads, NodeRows, Product, RotateAppend, Span,
};
use crate::lattice::{LatticeMatrix, MatrixId};

impl Compute for Cpu {
    type KvLayer = CpuKvLayer;
    type Unmerged<'a> = Unmerged<'a>;

    fn submit<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.install(work)
    }

    fn shape(&self, matrix: &LatticeMatrix) -> (usize, usize) {
        (matrix.rows(), matrix.cols())
    }

    fn len(&self, buffer: &FloatBuffer) -> usize {
        <[f32]>::len(buffer)
    }

    fn alloc(&self, len: usize) -> Result<FloatBuffer> {
        FloatBuffer::try_zeros(len)
    }

    fn alloc_kv(&self, heads: Heads, pages: usize) -> Result<CpuKvLayer> {
        CpuKvLayer::new(heads, pages)
    }

    fn kv_page_bytes(&self, heads: Heads) -> u64 {
        CpuKvLayer::page_bytes(heads)
    }

    fn write(&self, values: &[f32], out: &mut FloatBuffer) {
        out[..values.len()].copy_from_slice(values);
    }

    fn read(&self, buffer: &FloatBuffer, range: Range<usize>) -> Result<Vec<f32>> {
        Ok(buffer[range].to_vec())
    }

    fn unmerged<'a>(
        &self,
        nodes: &[NodeRows<'a, Self>],
        is_used: impl Fn(MatrixId) -> bool,
    ) -> Result<Unmerged<'a>> {
        Ok(Unmerged::new(nodes, is_used))
    }

    fn embed(
        &self,
        (table, id): (&LatticeMatrix, MatrixId),
        tokens: &[u32],
        unmerged: &Unmerged<'_>,
        out: &mut FloatBuffer,
    ) {
        self.embed_rows(table, tokens, unmerged.on(id), out);
    }

    fn rms_norm(
        &self,
        x: &FloatBuffer,
        weight: &FloatBuffer,
        eps: f32,
        rows: usize,
        out: &mut FloatBuffer,
    ) {
        self.rms_norm_rows(x, weight, eps, rows, out);
    }

    fn matmul<const N: usize>(
        &self,
        x: &FloatBuffer,
        rows: usize,
        products: [Product<'_, Self>; N],
        unmerged: &Unmerged<'_>,
    ) {
        self.products(x, rows, products, unmerged);
    }

    fn rotate_append(&self, what: RotateAppend<'_, Self>, spans: &[Span]) {
        self.rotate_and_append(what, spans);
    }

    fn attention(&self, attention: Attention<'_, Self>, spans: &[Span]) {
        self.attend(attention, spans);
    }

    fn silu_mul(&self, gate: &mut FloatBuffer, up: &FloatBuffer, len: usize) {
        self.silu_mul_values(gate, up, len);
    }

    fn gelu_mul(&self, gate: &mut FloatBuffer, up: &FloatBuffer, len: usize) {
        self.gelu_mul_values(gate, up, len);
    }

    fn select_rows(&self, x: &FloatBuffer, rows: &[usize], width: usize, out: &mut FloatBuffer) {
        self.for_rows(out, rows.len(), width, |row, out| {
            out.copy_from_slice(&x[rows[row] * width..][..width])
        });
    }

    fn sample(
        &self,
        logits: &FloatBuffer,
        vocab_size: usize,
        choices: &[Choice],
    ) -> Result<Vec<Result<u32>>> {
        let rows = logits.chunks_exact(vocab_size);
        Ok(rows.zip(choices).map(|(logits, choice)| sample(logits, choice)).collect())
    }
}
