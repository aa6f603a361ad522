//! `pleach completions`: completion scripts for shells.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use serde::Serialize;

use super::{Cli, Console};

/// Print the completion script for a shell
#[derive(Args)]
#[command(after_help = "For bash, put `source <(pleach completions bash)` into ~/.bashrc.")]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

#[derive(Serialize)]
struct Answer {
    shell: String,
    script: String,
}

impl Completions {
    pub(crate) fn run(self, console: &Console) -> anyhow::Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "pleach", &mut script);
        let answer = Answer { shell: self.shell.to_string(), script: String::from_utf8(script)? };
        console.answer(&answer, || answer.script.clone())?;
        Ok(ExitCode::SUCCESS)
    }
}
