//! Shaders and the pipelines made of them, each compiled once, when it is first used.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use wgpu::naga;

use super::word;
use crate::lattice::LANES;

/// WGSL needs no order of declarations, so a shader is its parts one after another.
macro_rules! shaders {
    ($($(#[$condition:meta])? $name:literal),* $(,)?) => {
        /// Every shader with its shared parts in front.
        pub(super) const SHADERS: &[(&str, &str)] = &[$($(#[$condition])? (
            $name,
            concat!(
                include_str!("../../../shaders/shared/params.wgsl"),
                include_str!("../../../shaders/shared/integers.wgsl"),
                include_str!("../../../shaders/shared/tanh.wgsl"),
                include_str!(concat!("../../../shaders/", $name, ".wgsl")),
            ),
        )),*];
    };
}

shaders![
    #[cfg(feature = "measure")]
    "ceiling",
    "silu_mul",
    "gelu_mul",
    "embed",
    "shrink",
    "expand",
    "expand_sparse",
    "matmul",
    "matvec",
    "naive/matmul",
    "naive/matvec",
    "rms_norm",
    "rotate_append",
    "attention",
    "argmax",
    "sampling",
    "delta_apply",
    "delta_dense",
    "delta_sparse",
    "fingerprint",
    "naive/delta_apply",
];

/// A compiled shader with the layout of what it binds.
pub(super) struct Pipeline {
    pub(super) compute: wgpu::ComputePipeline,
    /// Group 0: the buffers that a dispatch names, in order.
    pub(super) buffers: wgpu::BindGroupLayout,
    /// Group 1: binding 0 the parameters, at a dynamic offset; binding 1, if the shader has it, the
    /// words of the work.
    pub(super) work: wgpu::BindGroupLayout,
    pub(super) reads_words: bool,
    /// Size of the parameters.
    pub(super) params_bytes: u64,
}

/// Threads in a workgroup of a shader that takes one item a thread: one or two subgroups of most GPUs,
/// and no more, so that few items still spread over the device.
pub(super) const FLAT_THREADS: usize = 64;

/// Which pipeline: shader, entry point, and the values of the shader's overrides. Every number that
/// Rust and WGSL both know reaches WGSL here and has no default there, so one that is forgotten fails
/// when the pipeline is made; pipelines of other values are other pipelines.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Kernel {
    pub(super) shader: &'static str,
    pub(super) entry: &'static str,
    pub(super) constants: Vec<(&'static str, u32)>,
}

impl Kernel {
    /// The entry point `main` of a shader.
    pub(super) fn new(shader: &'static str) -> Self {
        Self { shader, entry: "main", constants: Vec::new() }.constant("ROW_ALIGNMENT", word(LANES))
    }

    /// The same, of a shader that takes one item a thread.
    pub(super) fn flat(shader: &'static str) -> Self {
        Self::new(shader).constant("THREADS", word(FLAT_THREADS))
    }

    pub(super) fn entry(self, entry: &'static str) -> Self {
        Self { entry, ..self }
    }

    pub(super) fn constant(mut self, name: &'static str, value: u32) -> Self {
        self.constants.push((name, value));
        self
    }
}

/// The pipelines made so far.
pub(super) struct Pipelines {
    device: wgpu::Device,
    made: Mutex<HashMap<Kernel, Arc<Pipeline>>>,
    kept: Option<Kept>,
}

/// Compiled shaders as the driver keeps them.
struct Kept {
    cache: wgpu::PipelineCache,
    file: Option<PathBuf>,
    /// Of what was in the file.
    hash: Option<blake3::Hash>,
}

/// What stands behind its own hash, if it does.
fn unsealed(bytes: &[u8]) -> Option<&[u8]> {
    let (hash, data) = bytes.split_at_checked(blake3::OUT_LEN)?;
    (blake3::hash(data).as_bytes() == hash).then_some(data)
}

/// The source of a shader with its shared parts.
///
/// # Panics
/// When there is none of this name.
pub(super) fn source(name: &str) -> &'static str {
    SHADERS.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("no shader {name}")).1
}

impl Pipelines {
    pub(super) fn new(
        device: &wgpu::Device,
        info: &wgpu::AdapterInfo,
        file: Option<&Path>,
    ) -> Self {
        let kept = device.features().contains(wgpu::Features::PIPELINE_CACHE).then(|| {
            // One file for each adapter and driver.
            let file =
                file.and_then(|folder| Some(folder.join(wgpu::util::pipeline_cache_key(info)?)));
            let kept =
                file.as_deref().and_then(|file| std::fs::read(file).ok()).unwrap_or_default();
            let data = unsealed(&kept);
            let descriptor = wgpu::PipelineCacheDescriptor { label: None, data, fallback: true };
            // SAFETY: the data is what `get_data` gave for this adapter, the key of which is the
            // file's name: its hash, kept before it, still fits.
            #[allow(unsafe_code, reason = "the only way to keep compiled shaders")]
            let cache = unsafe { device.create_pipeline_cache(&descriptor) };
            Kept { cache, file, hash: data.map(blake3::hash) }
        });
        Self { device: device.clone(), made: Mutex::default(), kept }
    }

    /// The pipeline of a kernel, compiled now if it is used for the first time. What the driver
    /// refuses becomes the device's error.
    pub(super) fn get(&self, kernel: &Kernel) -> Arc<Pipeline> {
        let mut made = self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(pipeline) = made.get(kernel) {
            return pipeline.clone();
        }
        let pipeline = Arc::new(self.compile(kernel));
        made.insert(kernel.clone(), pipeline.clone());
        pipeline
    }

    /// Keeps what was compiled for the next run.
    pub(super) fn save(&self) -> std::io::Result<()> {
        if let Some(Kept { cache, file: Some(file), hash: before }) = &self.kept
            && let Some(data) = cache.get_data()
            && let Some(folder) = file.parent()
            && *before != Some(blake3::hash(&data))
        {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            std::fs::create_dir_all(folder)?;
            let ours = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            let fresh = file.with_extension(ours);
            std::fs::write(&fresh, [blake3::hash(&data).as_bytes(), &data[..]].concat())?;
            std::fs::rename(&fresh, file)?;
        }
        Ok(())
    }

    fn compile(&self, kernel: &Kernel) -> Pipeline {
        let source = source(kernel.shader);
        let module =
            naga::front::wgsl::parse_str(source).expect("every shader is parsed in a test");
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(kernel.shader),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        };
        let checks = wgpu::ShaderRuntimeChecks {
            force_loop_bounding: false,
            ..wgpu::ShaderRuntimeChecks::checked()
        };
        // SAFETY: bounds are checked as ever; only the counters that end an endless loop are left
        // out, and no shader has one: each loop counts up to a bound.
        #[allow(unsafe_code, reason = "counters in the innermost loops cost a third of their time")]
        let shader = unsafe { self.device.create_shader_module_trusted(descriptor, checks) };
        let bindings = bindings(&module);
        let [buffers, work] = [0, 1].map(|group| {
            let entries: Vec<_> =
                bindings.iter().filter(|found| found.group == group).map(Binding::entry).collect();
            let descriptor =
                wgpu::BindGroupLayoutDescriptor { label: Some(kernel.shader), entries: &entries };
            self.device.create_bind_group_layout(&descriptor)
        });
        let layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(kernel.shader),
            bind_group_layouts: &[Some(&buffers), Some(&work)],
            immediate_size: 0,
        });
        let constants: Vec<_> =
            kernel.constants.iter().map(|&(name, value)| (name, f64::from(value))).collect();
        let compute = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.shader),
            layout: Some(&layout),
            module: &shader,
            entry_point: Some(kernel.entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                zero_initialize_workgroup_memory: false,
            },
            cache: self.kept.as_ref().map(|kept| &kept.cache),
        });
        let find =
            |binding| bindings.iter().find(|found| (found.group, found.binding) == (1, binding));
        let params_bytes = find(0).map_or(0, |params| params.bytes.into());
        Pipeline { compute, buffers, work, reads_words: find(1).is_some(), params_bytes }
    }
}

/// One variable that a shader binds.
pub(super) struct Binding {
    group: u32,
    binding: u32,
    kind: wgpu::BufferBindingType,
    /// Size of its type; of an array without a length, that of one element.
    bytes: u32,
}

impl Binding {
    fn entry(&self) -> wgpu::BindGroupLayoutEntry {
        wgpu::BindGroupLayoutEntry {
            binding: self.binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: self.kind,
                has_dynamic_offset: self.kind == wgpu::BufferBindingType::Uniform,
                min_binding_size: None,
            },
            count: None,
        }
    }
}

/// What a shader binds, read from the shader itself.
fn bindings(module: &naga::Module) -> Vec<Binding> {
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).expect("every shader is checked in a test");
    let binding = |variable: &naga::GlobalVariable| {
        let at = variable.binding?;
        let kind = match variable.space {
            naga::AddressSpace::Uniform => wgpu::BufferBindingType::Uniform,
            naga::AddressSpace::Storage { access } => wgpu::BufferBindingType::Storage {
                read_only: !access.contains(naga::StorageAccess::STORE),
            },
            _ => return None,
        };
        Some(Binding {
            group: at.group,
            binding: at.binding,
            kind,
            bytes: layouter[variable.ty].size,
        })
    };
    module.global_variables.iter().filter_map(|(_, variable)| binding(variable)).collect()
}
