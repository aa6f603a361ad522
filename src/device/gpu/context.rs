//! The connection to one GPU: its memory, its errors, and work handed to it.
//!
//! **Invariant:** an error of the device, whenever it comes, is kept and returned by every later
//! call.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use wgpu::{BufferDescriptor, BufferUsages, ErrorFilter, Features, Limits};

use super::adapter::{GpuChoice, GpuInfo};
use super::pipeline::{FLAT_THREADS, Pipelines};
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
    /// Largest binding in bytes, if it shall be smaller than the device allows: matrices are split
    /// into parts of this.
    pub max_binding_bytes: Option<u64>,
    /// Whether the peak of the allocator's count is kept: it is asked at every allocation.
    pub count_peak: bool,
    /// The folder that keeps compiled shaders between runs, where the backend can (default:
    /// `shaders` in the cache folder).
    pub pipeline_cache: Option<std::path::PathBuf>,
}

impl Default for GpuOptions {
    fn default() -> Self {
        let pipeline_cache = crate::file::cache_folder().map(|folder| folder.join("shaders"));
        Self {
            choice: GpuChoice::Any,
            minimal: false,
            max_binding_bytes: None,
            count_peak: false,
            pipeline_cache,
        }
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
    /// The allocator's largest count, if it is kept.
    peak: Option<AtomicU64>,
    /// Allocations and submits until a test lets one fail.
    #[cfg(feature = "testing")]
    countdown: AtomicU64,
    nonce: AtomicU32,
    /// Largest binding that is used.
    pub(super) max_binding: u64,
    /// Memory for what a pass reads beside the weights.
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
    pub(super) fn open(
        (info, adapter): (GpuInfo, wgpu::Adapter),
        options: &GpuOptions,
    ) -> Result<Self> {
        if info.is_software() {
            tracing::warn!("{} is a software adapter: it computes on the CPU, slowly", info.name);
        }
        let wanted = Features::TIMESTAMP_QUERY
            | Features::TIMESTAMP_QUERY_INSIDE_ENCODERS
            | Features::PIPELINE_CACHE;
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
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|error| failed(error.to_string()))?;

        let fault = Arc::new(Mutex::new(None));
        let first = |fault: &Mutex<Option<String>>, problem: String| {
            fault.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(problem);
        };
        let kept = fault.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            first(&kept, error.to_string())
        }));
        let kept = fault.clone();
        device.set_device_lost_callback(move |reason, message| {
            first(&kept, format!("lost ({reason:?}): {message}"))
        });

        let limits = device.limits();
        let max_binding = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        let max_binding =
            options.max_binding_bytes.map_or(max_binding, |asked| asked.min(max_binding));
        let pipelines =
            Pipelines::new(&device, &adapter.get_info(), options.pipeline_cache.as_deref());
        Ok(Self {
            device,
            queue,
            info,
            pipelines,
            fault,
            staged: AtomicUsize::new(0),
            peak: options.count_peak.then(AtomicU64::default),
            #[cfg(feature = "testing")]
            countdown: AtomicU64::new(u64::MAX),
            nonce: AtomicU32::new(1),
            max_binding: max_binding / 256 * 256,
            scratch: Mutex::default(),
        })
    }

    /// The device's first error, if there was one.
    pub(super) fn check(&self) -> Result<()> {
        let fault = self.fault.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        fault.as_ref().map_or(Ok(()), |problem| Err(self.failed(problem.clone())))
    }

    fn failed(&self, problem: String) -> Error {
        Error::DeviceFailed { device: self.info.to_string(), problem }
    }

    /// Keeps a problem, as the device's error from now on, and returns it.
    pub(super) fn fault(&self, problem: impl std::fmt::Display) -> Error {
        let mut fault = self.fault.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.failed(fault.get_or_insert(problem.to_string()).clone())
    }

    /// Lets the `after`th allocation or submit from now fail.
    #[cfg(feature = "testing")]
    pub(super) fn fail_after(&self, after: u64) {
        self.countdown.store(after, Ordering::Relaxed);
    }

    /// How many allocations and submits are left until then; more than was asked for once it failed.
    #[cfg(feature = "testing")]
    pub(super) fn fails_in(&self) -> u64 {
        self.countdown.load(Ordering::Relaxed).wrapping_sub(1)
    }

    /// Whether this allocation or submit is the one that a test lets fail.
    #[cfg(feature = "testing")]
    pub(super) fn fails_now(&self) -> bool {
        self.countdown.load(Ordering::Relaxed) != u64::MAX
            && self.countdown.fetch_sub(1, Ordering::Relaxed) == 1
    }

    /// Never: only a test asks for failures.
    #[cfg(not(feature = "testing"))]
    pub(super) const fn fails_now(&self) -> bool {
        false
    }

    /// A number that no other submit has.
    pub(super) fn nonce(&self) -> u32 {
        self.nonce.fetch_add(1, Ordering::Relaxed)
    }

    /// A buffer of `bytes` zeros (rounded up to 4).
    ///
    /// # Errors
    /// When the device has no memory left, or cannot hold so much in one piece.
    pub(super) fn buffer(
        &self,
        label: &str,
        bytes: u64,
        usage: BufferUsages,
    ) -> Result<wgpu::Buffer> {
        self.make(label, bytes, usage, false)
    }

    /// A buffer in memory that the host writes, mapped, to be copied from.
    pub(super) fn staging(&self, label: &str, bytes: u64) -> Result<wgpu::Buffer> {
        self.make(label, bytes, BufferUsages::MAP_WRITE | BufferUsages::COPY_SRC, true)
    }

    /// One of two buffers that live as long as the device and grow: at least `bytes` of what nobody
    /// keeps.
    pub(super) fn scratch(&self, which: usize, bytes: u64) -> Result<wgpu::Buffer> {
        let mut scratch = self.scratch.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(buffer) = scratch[which].as_ref().filter(|buffer| buffer.size() >= bytes) {
            return Ok(buffer.clone());
        }
        scratch[which] = None;
        let buffer =
            self.buffer("scratch", bytes, BufferUsages::STORAGE | BufferUsages::COPY_DST)?;
        Ok(scratch[which].insert(buffer).clone())
    }

    fn make(
        &self,
        label: &str,
        bytes: u64,
        usage: BufferUsages,
        mapped: bool,
    ) -> Result<wgpu::Buffer> {
        self.check()?;
        let limit = self.device.limits().max_buffer_size;
        if bytes > limit {
            return Err(Error::DeviceLimit { what: label.to_owned(), bytes, limit });
        }
        // Popped in the reverse order of their opening.
        let refused = self.device.push_error_scope(ErrorFilter::Validation);
        let full = self.device.push_error_scope(ErrorFilter::OutOfMemory);
        let size = bytes.next_multiple_of(4).max(4);
        let descriptor =
            BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: mapped };
        let buffer = self.device.create_buffer(&descriptor);
        let full = pollster::block_on(full.pop());
        let refused = pollster::block_on(refused.pop());
        if let Some(peak) = &self.peak {
            peak.fetch_max(self.allocated_bytes().unwrap_or(0), Ordering::Relaxed);
        }
        if full.is_some() || self.fails_now() {
            return Err(Error::DeviceMemory {
                bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
            });
        }
        match refused {
            Some(error) => Err(self.fault(error)),
            None => Ok(buffer),
        }
    }

    /// The same, for a buffer that a shader sees whole.
    ///
    /// # Errors
    /// Besides, when one binding cannot reach so much.
    pub(super) fn bound_buffer(
        &self,
        label: &str,
        bytes: u64,
        usage: BufferUsages,
    ) -> Result<wgpu::Buffer> {
        let limit = self.device.limits().max_storage_buffer_binding_size;
        if bytes > limit {
            return Err(Error::DeviceLimit { what: label.to_owned(), bytes, limit });
        }
        self.buffer(label, bytes, usage)
    }

    /// A buffer with the given contents that shaders read and write, and that can be copied from
    /// and to.
    pub(super) fn storage(&self, label: &str, contents: &[u8]) -> Result<wgpu::Buffer> {
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC;
        let buffer = self.buffer(label, contents.len() as u64, usage)?;
        self.write(&buffer, 0, contents)?;
        Ok(buffer)
    }

    /// Overwrites part of a buffer; large contents go in pieces, so that staging memory stays
    /// small.
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
        // A device that is lost while it is waited for makes wgpu panic.
        let waited =
            std::panic::AssertUnwindSafe(|| self.device.poll(wgpu::PollType::wait_indefinitely()));
        match std::panic::catch_unwind(waited) {
            Ok(Ok(_)) => self.check(),
            Ok(Err(error)) => Err(self.fault(error)),
            Err(_) => Err(self.fault("lost while it was waited for")),
        }
    }

    /// Workgroups of a shader that takes one of `items` a thread.
    pub(super) fn flat(&self, items: usize) -> [u32; 3] {
        self.workgroups(items.div_ceil(FLAT_THREADS))
    }

    /// Workgroups in two dimensions, at least `count`: one dimension holds 65,535. A shader counts
    /// them as `y · X + x`.
    pub(super) fn workgroups(&self, count: usize) -> [u32; 3] {
        let most = self.device.limits().max_compute_workgroups_per_dimension as usize;
        let x = count.min(most);
        let y = count.div_ceil(x.max(1));
        [x, y, 1].map(|n| u32::try_from(n).expect("no more than a dimension holds"))
    }

    /// Bytes of all live buffers by the allocator's own count, where the backend keeps one.
    pub(super) fn allocated_bytes(&self) -> Option<u64> {
        self.device.generate_allocator_report().map(|report| report.total_allocated_bytes)
    }

    /// The largest that count has been, if it is kept.
    pub(super) fn peak_bytes(&self) -> Option<u64> {
        self.peak.as_ref().map(|peak| peak.load(Ordering::Relaxed)).filter(|&peak| peak > 0)
    }
}
