//! The arguments: what every command takes, and which commands there are.

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use pleach::adapter::Limits;
use pleach::runtime::DeviceChoice;

#[cfg(feature = "serve")]
use super::serve;
use super::{
    Console, bench, completions, demo, devices, escape, generate, inspect, score, store, tree,
    verify,
};

const ABOUT: &str = "One base model, a tree of LoRA adapters, one copy of the weights moved exactly from node to node";

const AFTER_HELP: &str = "\
A node is a place in a tree of adapters, written as a path such as fr/sysadmin/alice; the root, /, is the base itself.

With --json stdout is one JSON document: the answer, or {\"error\": \"…\"}; of many prompts, one a line. An error is printed on stderr as well.
Exit status: 0 done, 1 an error or a failed verification, 2 wrong usage.";

#[derive(Parser)]
#[command(name = "pleach", version, about = ABOUT, after_help = AFTER_HELP, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) options: Options,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// What the arguments ask for. Help and wrong usage end the program.
    pub(crate) fn parse_arguments() -> Self {
        Self::try_parse().unwrap_or_else(|error| {
            let text = error.render().to_string();
            // An argument is a name, too: one that would steer the terminal is printed without
            // colours.
            let plain = escape::escaped(&text);
            if plain == text {
                error.exit();
            }
            // An error that cannot be written is not missed.
            let _ = writeln!(io::stderr(), "{}", escape::moved_in(&plain));
            std::process::exit(error.exit_code())
        })
    }
}

/// What every command takes.
#[derive(Args)]
#[command(next_help_heading = "Everywhere")]
pub(crate) struct Options {
    /// Print one JSON document
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// What to compute on: cpu, gpu, gpu:N, gpu:NAME, or auto: a hardware GPU, else the CPU
    #[arg(long, global = true, default_value = "auto")]
    pub(crate) device: DeviceChoice,
    /// Threads to compute with [default: one a core]
    #[arg(long, global = true, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Largest rank of an adapter that is read
    #[arg(long, global = true, value_name = "RANK", default_value_t = Limits::default().rank)]
    pub(crate) max_rank: usize,
    /// No progress bars, notes or warnings (bars and notes are for terminals alone)
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    Demo(demo::Demo),
    Tree(tree::Tree),
    Inspect(inspect::Inspect),
    Generate(generate::Generate),
    Score(score::Score),
    Verify(verify::Verify),
    #[cfg(feature = "serve")]
    Serve(serve::Serve),
    #[cfg(feature = "serve")]
    Key(serve::key::Key),
    Store(store::Store),
    Bench(bench::Bench),
    Devices(devices::Devices),
    Completions(completions::Completions),
}

impl Command {
    pub(crate) fn run(self, console: &Console) -> anyhow::Result<ExitCode> {
        match self {
            Self::Demo(demo) => demo.run(console),
            Self::Tree(tree) => tree.run(console),
            Self::Inspect(inspect) => inspect.run(console),
            Self::Generate(generate) => generate.run(console),
            Self::Score(score) => score.run(console),
            Self::Verify(verify) => verify.run(console),
            #[cfg(feature = "serve")]
            Self::Serve(serve) => serve.run(console),
            #[cfg(feature = "serve")]
            Self::Key(key) => key.run(console),
            Self::Store(store) => store.run(console),
            Self::Bench(bench) => bench.run(console),
            Self::Devices(devices) => devices.run(console),
            Self::Completions(completions) => completions.run(console),
        }
    }
}
