//! The connection to one GPU: its memory, its errors, and work handed to it.
//!
//! **Invariant:** an error of the device, whenever it comes, is kept and returned by every later call.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use wgpu::{BufferDescriptor, BufferUsages, ErrorFilter, Features, Limits};

use super::adapter::{self, GpuChoice, GpuInfo};
use super::pipeline::Pipelines;
use crate::{Error, Result};

/// Bytes handed to the queue at a time: about the staging memory that uploads take.
const UPLOAD_BYTES: usize = 4 << 20;

/// How to open a GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuOptions {
    /// Which one.
    pub choice: GpuChoice,
    /// Runs under WebGPU's default limits and without optional features, as the smallest GPU would.
    pub minimal: bool,
    /// Largest binding in bytes, if it shall be smaller than the device allows: matrices are split into parts of this.
    pub max_binding_bytes: Option<u64>,
    /// The folder that keeps compiled shaders between runs, where the backend can (default: `shaders` in the cache folder).
    pub pipeline_cache: Option<std::path::PathBuf>,
}

impl Default for GpuOptions {
    fn default() -> Self {
        let pipeline_cache = crate::file::cache_folder().map(|folder| folder.join("shaders"));
        Self { choice: GpuChoice::Any, minimal: false, max_binding_bytes: None, pipeline_cache }
    }
}

/// An open device.
pub(super) struct Context {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) info: GpuInfo,
    pub(super) pipelines: Pipelines,
    fault: Arc<Mutex<Option<String>>>,
    /// Bytes that lie in staging memory since the last submit.
    staged: AtomicUsize,
    /// Largest binding that is used.
    pub(super) max_binding: u64,
    /// Room for what a pass reads beside the weights.
    scratch: Mutex<[Option<wgpu::Buffer>; 2]>,
}

/// A stretch of a buffer.
#[derive(Clone, Debug)]
pub(super) struct Slice {
    pub(super) buffer: wgpu::Buffer,
    pub(super) bytes: Range<u64>,
}

impl Slice {
    /// All of a buffer.
    pub(super) fn whole(buffer: &wgpu::Buffer) -> Self {
        Self { buffer: buffer.clone(), bytes: 0..buffer.size() }
    }

    /// `range`, in bytes, of a buffer.
    pub(super) fn of(buffer: &wgpu::Buffer, bytes: Range<u64>) -> Self {
        Self { buffer: buffer.clone(), bytes }
    }

    pub(super) fn len(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }
}

impl Context {
    pub(super) fn open(options: &GpuOptions) -> Result<Self> {
        let (info, adapter) = adapter::find(&options.choice)?;
        if info.is_software() {
            tracing::warn!("{} is a software adapter: it computes on the CPU, slowly", info.name);
        }
        let wanted = Features::TIMESTAMP_QUERY | Features::TIMESTAMP_QUERY_INSIDE_ENCODERS | Features::PIPELINE_CACHE;
        let (required_features, required_limits) = if options.minimal {
            (Features::empty(), Limits::default())
        } else {
            (adapter.features() & wanted, adapter.limits())
        };
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("pleach"),
            required_features,
            required_limits,
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        };
        let failed = |problem: String| Error::DeviceFailed { device: info.to_string(), problem };
        let (device, queue) =
            pollster::block_on(adapter.request_device(&descriptor)).map_err(|error| failed(error.to_string()))?;

        let fault = Arc::new(Mutex::new(None));
        let first = |fault: &Mutex<Option<String>>, problem: String| {
            fault.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(problem);
        };
        let kept = fault.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| first(&kept, error.to_string())));
        let kept = fault.clone();
        device.set_device_lost_callback(move |reason, message| first(&kept, format!("lost ({reason:?}): {message}")));

        let limits = device.limits();
        let max_binding = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        let max_binding = options.max_binding_bytes.map_or(max_binding, |asked| asked.min(max_binding));
        let pipelines = Pipelines::new(&device, &adapter.get_info(), options.pipeline_cache.as_deref());
        Ok(Self {
            device,
            queue,
            info,
            pipelines,
            fault,
            staged: AtomicUsize::new(0),
            max_binding: max_binding / 256 * 256,
            scratch: Mutex::default(),
        })
    }

    /// The device's first error, if there was one.
    pub(super) fn check(&self) -> Result<()> {
        let fault = self.fault.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        fault.as_ref().map_or(Ok(()), |problem| Err(self.failed(problem.clone())))
    }

    pub(super) fn failed(&self, problem: String) -> Error {
        Error::DeviceFailed { device: self.info.to_string(), problem }
    }

    /// A buffer of `bytes` zeros (rounded up to 4).
    ///
    /// # Errors
    /// When the device has no room, or cannot hold so much in one piece.
    pub(super) fn buffer(&self, label: &str, bytes: u64, usage: BufferUsages) -> Result<wgpu::Buffer> {
        self.make(label, bytes, usage, false)
    }

    /// A buffer in memory that the host writes, mapped, to be copied from.
    pub(super) fn staging(&self, label: &str, bytes: u64) -> Result<wgpu::Buffer> {
        self.make(label, bytes, BufferUsages::MAP_WRITE | BufferUsages::COPY_SRC, true)
    }

    /// One of two buffers that live as long as the device and grow: at least `bytes` of what nobody keeps.
    pub(super) fn scratch(&self, which: usize, bytes: u64) -> Result<wgpu::Buffer> {
        let mut scratch = self.scratch.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(buffer) = scratch[which].as_ref().filter(|buffer| buffer.size() >= bytes) {
            return Ok(buffer.clone());
        }
        scratch[which] = None;
        let buffer = self.buffer("scratch", bytes, BufferUsages::STORAGE | BufferUsages::COPY_DST)?;
        Ok(scratch[which].insert(buffer).clone())
    }

    fn make(&self, label: &str, bytes: u64, usage: BufferUsages, mapped: bool) -> Result<wgpu::Buffer> {
        self.check()?;
        let limit = self.device.limits().max_buffer_size;
        if bytes > limit {
            return Err(Error::DeviceLimit { what: label.to_owned(), bytes, limit });
        }
        // Popped in the reverse order of their opening.
        let refused = self.device.push_error_scope(ErrorFilter::Validation);
        let full = self.device.push_error_scope(ErrorFilter::OutOfMemory);
        let size = bytes.next_multiple_of(4).max(4);
        let descriptor = BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: mapped };
        let buffer = self.device.create_buffer(&descriptor);
        let full = pollster::block_on(full.pop());
        let refused = pollster::block_on(refused.pop());
        if full.is_some() {
            return Err(Error::DeviceMemory { bytes: usize::try_from(bytes).unwrap_or(usize::MAX) });
        }
        match refused {
            Some(error) => Err(self.failed(error.to_string())),
            None => Ok(buffer),
        }
    }

    /// The same, for a buffer that a shader sees whole.
    ///
    /// # Errors
    /// Besides, when one binding cannot reach so much.
    pub(super) fn bound_buffer(&self, label: &str, bytes: u64, usage: BufferUsages) -> Result<wgpu::Buffer> {
        let limit = self.device.limits().max_storage_buffer_binding_size;
        if bytes > limit {
            return Err(Error::DeviceLimit { what: label.to_owned(), bytes, limit });
        }
        self.buffer(label, bytes, usage)
    }

    /// A buffer with the given contents that shaders read and write, and that can be copied from and to.
    pub(super) fn storage(&self, label: &str, contents: &[u8]) -> Result<wgpu::Buffer> {
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC;
        let buffer = self.buffer(label, contents.len() as u64, usage)?;
        self.write(&buffer, 0, contents)?;
        Ok(buffer)
    }

    /// Overwrites part of a buffer; large contents go in pieces, so that staging memory stays small.
    pub(super) fn write(&self, buffer: &wgpu::Buffer, mut at: u64, contents: &[u8]) -> Result<()> {
        for piece in contents.chunks(UPLOAD_BYTES) {
            let (whole, rest) = piece.split_at(piece.len() / 4 * 4);
            self.queue.write_buffer(buffer, at, whole);
            if !rest.is_empty() {
                let mut word = [0; 4];
                word[..rest.len()].copy_from_slice(rest);
                self.queue.write_buffer(buffer, at + whole.len() as u64, &word);
            }
            at += piece.len() as u64;
            if self.staged.fetch_add(piece.len(), Ordering::Relaxed) + piece.len() >= UPLOAD_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Hands over what was written and waits, so that its staging memory is free again.
    pub(super) fn flush(&self) -> Result<()> {
        self.staged.store(0, Ordering::Relaxed);
        self.queue.submit([]);
        self.wait()
    }

    /// Waits until all work handed over is done.
    pub(super) fn wait(&self) -> Result<()> {
        self.device.poll(wgpu::PollType::wait_indefinitely()).map_err(|error| self.failed(error.to_string()))?;
        self.check()
    }

    /// Workgroups in two dimensions, at least `count`: one dimension holds 65,535. A shader counts them as `y · X + x`.
    pub(super) fn grid(&self, count: usize) -> [u32; 3] {
        let most = self.device.limits().max_compute_workgroups_per_dimension as usize;
        let x = count.min(most);
        let y = count.div_ceil(x.max(1));
        [x, y, 1].map(|n| u32::try_from(n).expect("no more than a dimension holds"))
    }

    /// Bytes of all live buffers by the allocator's own count, where the backend keeps one.
    pub(super) fn allocated_bytes(&self) -> Option<u64> {
        self.device.generate_allocator_report().map(|report| report.total_allocated_bytes)
    }
}
