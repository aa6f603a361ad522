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
Give --device gpu:N or gpu:NAME to choose a GPU. A software adapter computes on the CPU: it is slow, and taken only when
--device gpu finds nothing else or names it.")]
pub(crate) struct Devices {}

#[derive(Serialize)]
struct Answer {
    cpu: String,
    gpus: Vec<serde_json::Value>,
}

impl Devices {
    pub(crate) fn run(self, console: &Console) -> anyhow::Result<ExitCode> {
        let cpu = Cpu::new(console.threads)?.describe();
        let mut text = format!("cpu      {cpu}\n");
        let mut gpus = Vec::new();
        #[cfg(feature = "gpu")]
        for gpu in pleach::device::gpu::list() {
            text += &format!("gpu:{:<4} {gpu}, {}\n", gpu.index, gpu.driver);
            gpus.push(serde_json::to_value(&gpu)?);
        }
        if gpus.is_empty() {
            text += if cfg!(feature = "gpu") {
                "no GPU  (none that Vulkan, Metal or DirectX 12 reaches)\n"
            } else {
                "no GPU  (this build was made without the feature `gpu`)\n"
            };
        }
        console.answer(&Answer { cpu, gpus }, || text)?;
        Ok(ExitCode::SUCCESS)
    }
}
