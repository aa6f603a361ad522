//! Which device a runtime lives on.

use std::str::FromStr;

#[cfg(feature = "gpu")]
use crate::device::gpu::{GpuChoice, GpuOptions};
use crate::{Error, Result};

/// What to compute on. Parsed from `auto`, `cpu`, `gpu`, `gpu:NUMBER` or `gpu:NAME`.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum DeviceChoice {
    /// A GPU, but no software adapter; the CPU where there is none, or, with a warning, where it
    /// does not hold the model.
    Auto,
    /// The CPU.
    #[default]
    Cpu,
    /// A GPU, if need be one made of software.
    #[cfg(feature = "gpu")]
    Gpu(GpuOptions),
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':').unwrap_or((text, "")) {
            ("auto", "") => Ok(Self::Auto),
            ("cpu", "") => Ok(Self::Cpu),
            #[cfg(feature = "gpu")]
            ("gpu", which) => {
                let choice = match which.parse() {
                    Ok(index) => GpuChoice::Index(index),
                    Err(_) if which.is_empty() => GpuChoice::Any,
                    Err(_) => GpuChoice::Named(which.to_owned()),
                };
                Ok(Self::Gpu(GpuOptions { choice, ..GpuOptions::default() }))
            }
            #[cfg(not(feature = "gpu"))]
            ("gpu", _) => Err(Error::NoGpuSupport),
            _ => Err(Error::UnknownDevice { found: text.to_owned() }),
        }
    }
}
