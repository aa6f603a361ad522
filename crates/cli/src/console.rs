//! What is printed where: answers on stdout, bars, notes, warnings and errors on stderr.
//!
//! **Invariant:** bars and notes appear on a terminal only, and nothing but errors with `--quiet`.
//! **Invariant:** no text goes out but through here, and none with characters that steer a terminal: names, keys, labels and
//! paths are whoever's made the files. A model's own text alone goes as it is where stdout is no terminal.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pleach::adapter::Limits;
use pleach::runtime::DeviceChoice;
use serde::Serialize;
use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::span;

use super::Options;
use super::escape::{escaped, moved_in, spoken};

/// Where a command prints, and how it was asked to.
pub(crate) struct Console {
    /// Whether the answer is to be JSON.
    pub(crate) json: bool,
    /// Threads asked for.
    pub(crate) threads: Option<usize>,
    /// The device asked for.
    pub(crate) device: DeviceChoice,
    /// What the files of an adapter may hold.
    pub(crate) limits: Limits,
    /// Whether bars and notes are shown.
    lively: bool,
}

impl Console {
    /// The console that `options` ask for; from now on the library's warnings go to it, too.
    pub(crate) fn new(options: &Options) -> Self {
        if !options.quiet {
            // Fails only if it is set twice.
            let _ = tracing::subscriber::set_global_default(Warnings);
        }
        Self {
            json: options.json,
            threads: options.threads.map(Into::into),
            device: options.device.clone(),
            limits: Limits { rank: options.max_rank, ..Limits::default() },
            lively: !options.quiet && io::stderr().is_terminal(),
        }
    }

    /// Prints the answer: `json` as one line of JSON if that was asked for, otherwise the text.
    pub(crate) fn answer(&self, json: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        match self.json {
            true => self.print(&(serde_json::to_string(json).context("the answer as JSON")? + "\n")),
            false => self.print(&text()),
        }
    }

    /// Prints to stdout at once.
    pub(crate) fn print(&self, text: &str) -> anyhow::Result<()> {
        self.write(&escaped(text))
    }

    /// Prints what a model says: as it is for programs, without what would steer a terminal on one.
    pub(crate) fn say(&self, text: &str) -> anyhow::Result<()> {
        match io::stdout().is_terminal() {
            true => self.write(&spoken(text)),
            false => self.write(text),
        }
    }

    /// Writes to stdout at once. Where nobody reads any more, the program ends.
    #[allow(clippy::unused_self, reason = "who prints has a console")]
    fn write(&self, text: &str) -> anyhow::Result<()> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
            result => result.context("cannot write to standard output"),
        }
    }

    /// Tells people at a terminal something beside the answer.
    pub(crate) fn note(&self, text: &str) {
        if self.lively {
            // A note that cannot be written is not missed.
            let _ = writeln!(io::stderr(), "{}", moved_in(&escaped(text)));
        }
    }

    /// A progress bar for `what`.
    pub(crate) fn bar(&self, what: &'static str) -> ProgressBar {
        let target = if self.lively { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}").expect("the template is valid");
        ProgressBar::with_draw_target(None, target).with_style(style).with_message(what)
    }

    /// Tells an error and gives the exit status.
    pub(crate) fn fail(&self, error: &anyhow::Error) -> ExitCode {
        let message = message(error);
        let _ = writeln!(io::stderr(), "error: {}", moved_in(&escaped(&message)));
        if self.json {
            let _ = self.print(&format!("{}\n", json!({ "error": message })));
        }
        ExitCode::FAILURE
    }
}

/// The error and its causes, without those that the text before them tells already.
fn message(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.contains(&cause) {
        true => text,
        false if text.is_empty() => cause,
        false => format!("{text}: {cause}"),
    })
}

/// Prints the library's warnings.
struct Warnings;

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN && metadata.target().starts_with("pleach")
    }

    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = String::from("warning:");
        event.record(&mut Line(&mut line));
        let _ = writeln!(io::stderr(), "{}", moved_in(&escaped(&line)));
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

struct Line<'a>(&'a mut String);

impl Visit for Line<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = match field.name() {
            "message" => format!(" {value:?}"),
            name => format!(" {name}={value:?}"),
        };
        self.0.push_str(&text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_already_told_are_not_told_twice() {
        let error =
            anyhow::Error::new(io::Error::other("disk on fire")).context("a/b: disk on fire").context("reading");
        assert_eq!(message(&error), "reading: a/b: disk on fire");
    }
}
