//! The GPU, through wgpu: the only module that knows of it. Every kernel is a WGSL shader in
//! `shaders/`.
//!
//! **Bits.** A matrix lies as on the CPU, two i16 to a u32, in parts of whole rows that fit one
//! binding: as large as the GPU allows, or 128 MiB, which is WebGPU's default, where `GpuOptions`
//! asks for the smallest GPU there can be (`matrix.rs`). It is changed by `delta_apply`,
//! `delta_dense` and `delta_sparse` alone, which know no floats (and, with `measure`, by a ceiling
//! that flips one bit of every word and flips it back). `fingerprint.wgsl` is BLAKE3 of the same
//! bytes as on the CPU, a chunk of 1 KiB a thread and then the tree, so 32 bytes a matrix come
//! back and a node has one fingerprint everywhere.
//!
//! **Errors.** Buffers are made in an error scope: no memory, or too large, is an ordinary error,
//! and nothing has changed. A switch makes all it needs before it is handed over
//! (`Device::prepare_pass`), so only the device's own failure makes the copy unusable. What comes
//! outside a scope (a lost device, a refused command, no memory for wgpu's own staging) is kept by
//! the connection and returned from then on. Some drivers call work done that was given up, so the
//! last step of every submit copies a number that no other has, and work that does not bring it
//! back was not done. Where the deltas on the GPU leave no memory, those not in use go and the
//! upload is tried again. `tests/gpu.rs` makes every allocation and submit of a switch and of a
//! generation fail in turn.
//!
//! **Memory.** Weights as on the CPU, 2 bytes each and 4 a row; what the CPU keeps beside them
//! stays on the host. Uploads go 4 MiB at a time, so staging stays small. Compiled deltas have a
//! budget of their own. Compiled shaders are kept in the cache folder where the backend can,
//! behind their hash (`pipeline.rs`).
//!
//! **Unmerged deltas.** What lies between the weights and the node of a row is added to its products
//! in factored form (`unmerged.rs`, `shrink.wgsl`, `expand.wgsl`), from copies side by side
//! (`gathered.rs`); to the embedding as integers.
//!
//! **Layout.** Parameters and the records of a dispatch are structures in `params.rs` and in
//! `shaders/shared/params.wgsl`. Numbers that both sides know (tiles, workgroups, the rows'
//! alignment) are constants of Rust that set overrides without a value of their own. Bind group
//! layouts are read from the shader itself. All shaders are validated in a test that needs no GPU
//! (`tests/layout.rs`).
//!
//! **Invariant:** a switch moves integers only, so the weights at a node are the CPU's, bit for
//! bit.

mod adapter;
mod argmax;
mod attention;
#[cfg(feature = "measure")]
mod ceiling;
mod compute;
mod context;
mod delta_apply;
mod delta_dense;
mod delta_sparse;
mod deltas;
mod embed;
mod expand;
mod expand_sparse;
mod fingerprint;
mod gathered;
mod gelu_mul;
mod matmul;
mod matrix;
mod matvec;
#[doc(hidden)]
pub mod naive;
mod params;
mod pipeline;
mod recording;
mod rms_norm;
mod rotate_append;
mod sampling;
mod shrink;
mod silu_mul;
#[cfg(test)]
mod tests;
mod unmerged;

use std::sync::{Arc, Mutex, MutexGuard};

pub use adapter::{GpuChoice, GpuInfo, list};
pub use context::GpuOptions;
pub use deltas::GpuDeltas;
pub use matrix::GpuMatrix;
pub use unmerged::GpuUnmerged;

use crate::Result;
use crate::device::{Device, PassTimes};
use crate::lattice::{LatticeMatrix, NodeDeltas, SignedDelta};
use context::{Context, Slice};
use delta_apply::Pass;
use recording::{Finished, Prepared, Recording};

/// One GPU.
pub struct Gpu {
    context: Context,
    options: GpuOptions,
    /// What was asked for and not handed over yet: computing waits for the first read.
    pending: Mutex<Recording>,
    /// Held by the thread whose sequence of calls is pending.
    turn: Mutex<()>,
    /// What attention leaves between its two passes over long contexts, grown with the largest
    /// cache.
    partials: Mutex<Option<wgpu::Buffer>>,
    /// What was gathered for the deltas that are not in the weights.
    gathering: Mutex<unmerged::Gathering>,
}

/// A switch that only has to be handed over.
pub struct GpuPass(Prepared);

/// f32 values on a GPU.
pub struct GpuBuffer {
    buffer: wgpu::Buffer,
    len: usize,
}

impl GpuBuffer {
    fn slice(&self) -> Slice {
        Slice::whole(&self.buffer)
    }
}

/// A count as shaders take it.
fn word(count: impl TryInto<u32>) -> u32 {
    count.try_into().ok().expect("a binding holds less than 2^32 of anything")
}

impl Gpu {
    /// Opens a GPU.
    ///
    /// # Errors
    /// [`NoSuchDevice`](crate::Error::NoSuchDevice) when there is none of that choice,
    /// [`DeviceFailed`](crate::Error::DeviceFailed) when it cannot be opened.
    pub fn open(options: &GpuOptions) -> Result<Self> {
        Self::on(adapter::find(&options.choice)?, options)
    }

    fn on(adapter: (GpuInfo, wgpu::Adapter), options: &GpuOptions) -> Result<Self> {
        Ok(Self {
            context: Context::open(adapter, options)?,
            options: options.clone(),
            pending: Mutex::default(),
            turn: Mutex::default(),
            partials: Mutex::default(),
            gathering: Mutex::default(),
        })
    }

    /// What the GPU calls itself.
    pub fn info(&self) -> &GpuInfo {
        &self.context.info
    }

    /// Bytes of all live buffers by the allocator's own count, where the backend keeps one and the
    /// device works.
    pub fn allocated_bytes(&self) -> Option<u64> {
        self.context.flush().ok()?;
        self.context.allocated_bytes()
    }

    /// The largest that count has been, if [`GpuOptions::count_peak`] is set.
    pub fn peak_bytes(&self) -> Option<u64> {
        self.context.peak_bytes()
    }

    /// Lets the `after`th allocation from now find no memory, or, if it is a submit, the device be
    /// lost.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    pub fn fail_after(&self, after: u64) {
        self.context.fail_after(after);
    }

    /// How many allocations and submits are left until then; more than was asked for once it failed.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    pub fn fails_in(&self) -> u64 {
        self.context.fails_in()
    }

    /// Hands over what was asked for and not yet read, waits, and returns its times by the GPU's own
    /// clock.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn finish(&self) -> Result<PassTimes> {
        let mut recording = self.take_pending();
        recording.timed = true;
        Ok(self.context.run(recording, &[])?.times)
    }

    /// Cuts the connection, as when a driver resets: every later call fails until
    /// [`Device::reopen`].
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    pub fn lose(&self) {
        self.context.device.destroy();
    }

    fn pending(&self) -> MutexGuard<'_, Recording> {
        lock(&self.pending)
    }

    /// Hands over what is pending, waits, and copies `reads` back.
    fn run_pending(&self, reads: &[Slice]) -> Result<Finished> {
        self.context.run(self.take_pending(), reads)
    }

    fn take_pending(&self) -> Recording {
        std::mem::take(&mut *self.pending())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if let Err(error) = self.context.pipelines.save() {
            tracing::debug!("compiled shaders are not kept: {error}");
        }
    }
}

impl Device for Gpu {
    type Matrix = GpuMatrix;
    type Deltas = GpuDeltas;
    type Pass = GpuPass;
    type Buffer = GpuBuffer;

    const HOST_MEMORY: bool = false;

    fn describe(&self) -> String {
        self.context.info.to_string()
    }

    fn check(&self) -> Result<()> {
        self.context.check()
    }

    fn reopen(&mut self) -> Result<()> {
        // The same card, whatever has come or gone beside it.
        *self = Self::on(adapter::find_again(&self.context.info)?, &self.options)?;
        Ok(())
    }

    fn copy_matrix(&self, matrix: &GpuMatrix) -> Result<GpuMatrix> {
        matrix.copy(&self.context)
    }

    fn upload_matrix(&self, matrix: LatticeMatrix) -> Result<GpuMatrix> {
        GpuMatrix::upload(&self.context, &matrix)
    }

    fn upload_buffer(&self, values: Vec<f32>) -> Result<GpuBuffer> {
        let buffer = self.context.storage("vector", bytemuck::cast_slice(&values))?;
        Ok(GpuBuffer { buffer, len: values.len() })
    }

    fn upload_deltas(&self, deltas: &Arc<NodeDeltas>) -> Result<GpuDeltas> {
        GpuDeltas::upload(&self.context, deltas)
    }

    fn deltas_bytes(&self, deltas: &GpuDeltas) -> usize {
        deltas.bytes()
    }

    fn finish_uploads(&self, deltas: &[&GpuDeltas]) -> Result<()> {
        deltas::finish_uploads(&self.context, deltas)
    }

    fn read_matrix(&self, matrix: &GpuMatrix) -> Result<LatticeMatrix> {
        matrix.read(&self.context)
    }

    fn read_rows(&self, wanted: &[(&GpuMatrix, &[usize])]) -> Result<Vec<Vec<i16>>> {
        matrix::read_rows(&self.context, wanted)
    }

    fn prepare_pass(
        &self,
        matrices: &[GpuMatrix],
        deltas: &[SignedDelta<&GpuDeltas>],
    ) -> Result<GpuPass> {
        let _turn = lock(&self.turn);
        delta_apply::prepare(&self.context, self.take_pending(), matrices, deltas, Pass::Fused)
            .map(GpuPass)
    }

    fn delta_apply(
        &self,
        _: &mut [GpuMatrix],
        deltas: &[SignedDelta<&GpuDeltas>],
        pass: GpuPass,
    ) -> Result<PassTimes> {
        let times = self.context.submit(pass.0)?.times;
        deltas.iter().for_each(|node| node.delta.arrived());
        Ok(times)
    }

    fn fingerprint(&self, matrices: &[&GpuMatrix]) -> Result<Vec<blake3::Hash>> {
        fingerprint::fingerprint(&self.context, matrices)
    }
}
