//! The GPUs of this machine, and which of them is used.
//!
//! **Invariant:** a software adapter is taken only when it is asked for, by `gpu` or by its own
//! name or number.

use serde::Serialize;
use wgpu::{Backends, DeviceType, Features, Instance, InstanceDescriptor};

use crate::{Error, Result};

/// What a device calls itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GpuInfo {
    /// Its place in the list of [`list`].
    pub index: usize,
    /// Its name, such as `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub kind: &'static str,
    /// `vulkan`, `metal` or `dx12`.
    pub backend: String,
    /// The driver and its version.
    pub driver: String,
    /// Bytes one binding of a buffer can reach.
    pub max_binding_bytes: u64,
    /// Bytes one buffer can hold.
    pub max_buffer_bytes: u64,
    /// Whether it has a clock that passes can be timed with.
    pub timestamps: bool,
}

impl GpuInfo {
    /// Whether it is a program that computes on the CPU.
    pub fn is_software(&self) -> bool {
        self.kind == "software"
    }
}

impl std::fmt::Display for GpuInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, kind, backend, .. } = self;
        write!(f, "{name} ({kind} GPU, {backend})")
    }
}

/// Which adapter to take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum GpuChoice {
    /// A discrete GPU before an integrated one before any other, a software adapter last.
    #[default]
    Any,
    /// The same, but no software adapter.
    Hardware,
    /// The one with this place in the list.
    Index(usize),
    /// The first whose name contains this, whatever the case of its letters.
    Named(String),
}

impl std::fmt::Display for GpuChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => write!(f, "GPU"),
            Self::Hardware => write!(f, "GPU that is not a software adapter"),
            Self::Index(index) => write!(f, "GPU number {index}"),
            Self::Named(name) => write!(f, "GPU called `{name}`"),
        }
    }
}

/// Lists every adapter.
pub fn list() -> Vec<GpuInfo> {
    adapters().into_iter().map(|(info, _)| info).collect()
}

/// The adapter that `choice` means.
pub(super) fn find(choice: &GpuChoice) -> Result<(GpuInfo, wgpu::Adapter)> {
    let mut adapters = adapters();
    let rank = |info: &GpuInfo| {
        ["discrete", "integrated", "virtual", "other", "software"]
            .iter()
            .position(|k| *k == info.kind)
    };
    let best = |fits: &dyn Fn(&GpuInfo) -> bool| {
        adapters
            .iter()
            .map(|(info, _)| info)
            .filter(|info| fits(info))
            .min_by_key(|info| (rank(info), info.index))
    };
    let found = match choice {
        GpuChoice::Any => best(&|_| true),
        GpuChoice::Hardware => best(&|info| !info.is_software()),
        GpuChoice::Index(index) => best(&|info| info.index == *index),
        GpuChoice::Named(name) => {
            best(&|info| info.name.to_lowercase().contains(&name.to_lowercase()))
        }
    };
    match found.map(|info| info.index) {
        Some(index) => Ok(adapters.swap_remove(index)),
        None => Err(Error::NoSuchDevice {
            asked: choice.to_string(),
            found: adapters.iter().map(|(info, _)| format!("{}: {info}", info.index)).collect(),
        }),
    }
}

/// The adapter that was `known` before, the next in the list of those that look the same.
pub(super) fn find_again(known: &GpuInfo) -> Result<(GpuInfo, wgpu::Adapter)> {
    let same = |info: &GpuInfo| (&info.name, &info.backend) == (&known.name, &known.backend);
    let same = adapters().into_iter().filter(|(info, _)| same(info));
    let found = same.min_by_key(|(info, _)| info.index.abs_diff(known.index));
    found.ok_or_else(|| Error::NoSuchDevice {
        asked: known.to_string(),
        found: list().iter().map(GpuInfo::to_string).collect(),
    })
}

fn adapters() -> Vec<(GpuInfo, wgpu::Adapter)> {
    let descriptor = InstanceDescriptor {
        backends: Backends::VULKAN | Backends::METAL | Backends::DX12,
        ..InstanceDescriptor::new_without_display_handle()
    };
    let instance = Instance::new(descriptor);
    let adapters = pollster::block_on(instance.enumerate_adapters(Backends::all()));
    adapters
        .into_iter()
        .enumerate()
        .map(|(index, adapter)| (info(index, &adapter), adapter))
        .collect()
}

fn info(index: usize, adapter: &wgpu::Adapter) -> GpuInfo {
    let (about, limits) = (adapter.get_info(), adapter.limits());
    GpuInfo {
        index,
        name: about.name,
        kind: match about.device_type {
            DeviceType::DiscreteGpu => "discrete",
            DeviceType::IntegratedGpu => "integrated",
            DeviceType::VirtualGpu => "virtual",
            DeviceType::Cpu => "software",
            DeviceType::Other => "other",
        },
        backend: about.backend.to_string(),
        driver: [about.driver, about.driver_info].join(" ").trim().to_owned(),
        max_binding_bytes: limits.max_storage_buffer_binding_size,
        max_buffer_bytes: limits.max_buffer_size,
        timestamps: adapter.features().contains(Features::TIMESTAMP_QUERY),
    }
}
