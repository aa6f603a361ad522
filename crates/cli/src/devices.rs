//! `pleach devices`: what there is to compute on.

use std::process::ExitCode;

use clap::Args;
use pleach::device::Device;
use pleach::device::cpu::Cpu;
use serde::Serialize;

use super::Console;

/// List what there is to compute on
#[derive(Args)]
#[command(after_help = "\
Give --device gpu:N or gpu:NAME to choose a GPU. A software adapter computes on the CPU: it is \
slow, and taken only when --device gpu finds nothing else or names it.")]
pub(crate) struct Devices {}

#[derive(Serialize)]
struct Answer<'a, G> {
    cpu: String,
    gpus: &'a [G],
}

impl Devices {
    pub(crate) fn run(self, console: &Console) -> anyhow::Result<ExitCode> {
        let cpu = Cpu::new(console.threads)?.describe();
        let mut text = format!("cpu      {cpu}\n");
        #[cfg(feature = "gpu")]
        let (gpus, none) =
            (pleach::device::gpu::list(), "none that Vulkan, Metal or DirectX 12 reaches");
        #[cfg(not(feature = "gpu"))]
        let (gpus, none) = ([(); 0], "this build was made without the feature `gpu`");
        #[cfg(feature = "gpu")]
        for gpu in &gpus {
            text += &format!("gpu:{:<4} {gpu}, {}\n", gpu.index, gpu.driver);
        }
        if gpus.is_empty() {
            text += &format!("no GPU   ({none})\n");
        }
        console.answer(&Answer { cpu, gpus: &gpus[..] }, || text)?;
        Ok(ExitCode::SUCCESS)
    }
}
