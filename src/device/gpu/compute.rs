//! [`Compute`] for the GPU: each call becomes dispatches, handed over at the next read.

use std::ops::Range;

use super::context::Slice;
use super::params::SiluMulParams;
use super::pipeline::Kernel;
use super::{Gpu, GpuBuffer, GpuMatrix, embed, matmul};
use crate::Result;
use crate::device::compute::{Attention, Choice, Compute, Heads, Product, Span};

/// Keys and values of one layer.
pub struct GpuKvLayer {}

impl Compute for Gpu {
    type KvLayer = GpuKvLayer;

    fn submit<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        work()
    }

    fn shape(&self, matrix: &GpuMatrix) -> (usize, usize) {
        (matrix.rows, matrix.cols)
    }

    fn len(&self, buffer: &GpuBuffer) -> usize {
        buffer.len
    }

    fn alloc(&self, len: usize) -> Result<GpuBuffer> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        Ok(GpuBuffer { buffer: self.context.buffer("activations", len as u64 * 4, usage)?, len })
    }

    fn alloc_kv(&self, _heads: Heads, _slots: usize, _capacity: usize) -> Result<GpuKvLayer> {
        Ok(GpuKvLayer {})
    }

    fn write(&self, values: &[f32], out: &mut GpuBuffer) {
        assert!(values.len() <= out.len, "more values than the buffer holds");
        self.pending().write(bytemuck::cast_slice(values), &out.buffer, 0);
    }

    fn read(&self, buffer: &GpuBuffer, range: Range<usize>) -> Result<Vec<f32>> {
        let slice = Slice::of(&buffer.buffer, range.start as u64 * 4..range.end as u64 * 4);
        let bytes = self.context.run(self.take_pending(), &[slice])?.bytes;
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    }

    fn embed(&self, table: &GpuMatrix, tokens: &[u32], out: &mut GpuBuffer) {
        embed::embed(self, table, tokens, out);
    }

    fn rms_norm(&self, _x: &GpuBuffer, _weight: &GpuBuffer, _eps: f32, _rows: usize, _out: &mut GpuBuffer) {}

    fn matmul<const N: usize>(&self, x: &GpuBuffer, rows: usize, products: [Product<'_, Self>; N]) {
        matmul::products(self, x, rows, &products);
    }

    fn attention(&self, _attention: Attention<'_, Self>, _spans: &[Span]) {}

    fn silu_mul(&self, gate: &mut GpuBuffer, up: &GpuBuffer, len: usize) {
        let params = SiluMulParams { len: u32::try_from(len).expect("a buffer holds less than 2^32 values") };
        let buffers = [gate.slice(), up.slice()];
        self.pending().dispatch(
            &self.context,
            &Kernel::new("silu_mul"),
            buffers,
            &params,
            self.context.grid(len.div_ceil(64)),
        );
    }

    fn select_rows(&self, _x: &GpuBuffer, _rows: &[usize], _width: usize, _out: &mut GpuBuffer) {}

    fn choose(&self, _logits: &GpuBuffer, _vocab_size: usize, _choices: &[Choice]) -> Result<Vec<u32>> {
        Ok(Vec::new())
    }
}
