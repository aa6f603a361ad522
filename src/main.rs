//! The `pleach` command: parse → run → print.

mod cli;

use std::process::ExitCode;

use clap::Parser;
use cli::{Cli, Console};

fn main() -> ExitCode {
    let Cli { options, command } = Cli::parse();
    let console = Console::new(&options);
    let outcome = options.device.check().and_then(|()| command.run(&console));
    outcome.unwrap_or_else(|error| console.fail(&error))
}
