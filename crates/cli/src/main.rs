//! The `pleach` command: one subcommand a file, each of them parse → library → print.
//!
//! **Invariant:** stdout carries the answer alone, with `--json` as one JSON document, or
//! one a line where many answers are asked for; everything else goes to stderr.

mod arguments;
mod bench;
mod completions;
mod console;
mod demo;
mod devices;
mod escape;
mod generate;
mod inspect;
mod left_out;
mod model;
mod score;
#[cfg(feature = "serve")]
mod serve;
mod signals;
mod store;
mod tree;
mod verify;

use std::process::ExitCode;

use arguments::{Cli, Options};
use console::Console;

fn main() -> ExitCode {
    quieten_mesa();
    let Cli { options, command } = Cli::parse_arguments();
    let console = Console::new(&options);
    let outcome = command.run(&console);
    outcome.unwrap_or_else(|error| console.fail(&error))
}

/// Where there is no desktop session, Mesa's layer that sorts Vulkan devices complains on stderr
/// that it finds none. The order is ours, so the layer is not needed.
fn quieten_mesa() {
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: nothing has started a thread yet, so nothing reads the environment meanwhile.
        #[allow(unsafe_code, reason = "there is no other way to configure the layer")]
        unsafe {
            std::env::set_var("NODEVICE_SELECT", "1");
        }
    }
}
