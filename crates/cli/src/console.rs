//! What is printed where: answers on stdout, bars, notes, warnings and errors on stderr.
//!
//! **Invariant:** bars and notes appear on a terminal only, and nothing but errors with `--quiet`.
//! **Invariant:** no text goes out but through here, and none with characters that steer a
//! terminal: names, keys, labels and paths are whoever's made the files. A model's own text alone
//! goes as it is where stdout is no terminal.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pleach::adapter::Limits;
use pleach::runtime::DeviceChoice;
use serde::Serialize;
use serde_json::json;
use tracing::Event;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{self, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::LookupSpan;

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
            let _ = tracing::subscriber::set_global_default(warnings(io::stderr));
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
    pub(crate) fn answer(
        &self,
        json: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> anyhow::Result<()> {
        match self.json {
            true => {
                self.print(&(serde_json::to_string(json).context("the answer as JSON")? + "\n"))
            }
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

    /// Shows people at a terminal something beside the answer.
    pub(crate) fn note(&self, text: &str) {
        if self.lively {
            // A note that cannot be written is not missed.
            let _ = writeln!(io::stderr(), "{}", moved_in(&escaped(text)));
        }
    }

    /// Says something on stderr, whoever reads it.
    #[allow(clippy::unused_self, reason = "whoever calls it has a console")]
    pub(crate) fn tell(&self, text: &str) {
        // What cannot be written there cannot be said anywhere.
        let _ = writeln!(io::stderr(), "{}", moved_in(&escaped(text)));
    }

    /// A progress bar for `what`.
    pub(crate) fn bar(&self, what: &'static str) -> ProgressBar {
        self.styled_bar("{msg} {wide_bar} {pos}/{len}", what)
    }

    /// A progress bar whose message comes behind the count and changes.
    pub(crate) fn telling_bar(&self) -> ProgressBar {
        self.styled_bar("{wide_bar} {pos}/{len} {msg}", "")
    }

    fn styled_bar(&self, template: &str, what: &'static str) -> ProgressBar {
        let target =
            if self.lively { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = ProgressStyle::with_template(template).expect("the template is valid");
        ProgressBar::with_draw_target(None, target).with_style(style).with_message(what)
    }

    /// Prints an error and returns the exit status.
    pub(crate) fn fail(&self, error: &anyhow::Error) -> ExitCode {
        let message = message(error);
        self.tell(&format!("error: {message}"));
        if self.json {
            let _ = self.print(&format!("{}\n", json!({ "error": message })));
        }
        ExitCode::FAILURE
    }
}

/// Writes a line of a log to stderr. One that cannot be written is not missed.
#[cfg(feature = "serve")]
pub(crate) fn log(line: &str) {
    let _ = writeln!(io::stderr(), "{}", moved_in(&escaped(line)));
}

/// The error and its causes, without those that the text before them says already.
pub(crate) fn message(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| {
        match text.contains(&cause) {
            true => text,
            false if text.is_empty() => cause,
            false => format!("{text}: {cause}"),
        }
    })
}

/// Writes the warnings of the library and of the commands to `writer`, and nothing else that is
/// logged.
fn warnings(
    writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static,
) -> impl tracing::Subscriber + Send + Sync {
    // The formatter's own fields write out some control characters, otherwise than `escaped` does.
    let fields = format::debug_fn(|line, field, value| match field.name() {
        "message" => write!(line, " {value:?}"),
        name => write!(line, " {name}={value:?}"),
    });
    let layer = tracing_subscriber::fmt::layer().event_format(Warning).fmt_fields(fields);
    // A warning that cannot be written is not missed.
    let layer = layer.with_writer(writer).log_internal_errors(false);
    let ours = Targets::new().with_target("pleach", tracing::Level::WARN);
    tracing_subscriber::registry().with(layer.with_filter(ours))
}

/// How a warning is written.
struct Warning;

impl<S, N> FormatEvent<S, N> for Warning
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::from("warning:");
        context.format_fields(Writer::new(&mut line), event)?;
        writeln!(out, "{}", moved_in(&escaped(&line)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};
    use std::sync::Arc;

    use super::*;

    #[test]
    fn warnings_are_escaped_once_and_nothing_else_is_told() {
        let mut file = tempfile::tempfile().unwrap();
        let subscriber = warnings(Arc::new(file.try_clone().unwrap()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(node = "fr", "a\u{1b}[2J\u{9b}\u{202e}\t\\x1b\nerror: b");
            tracing::info!("not a warning");
            tracing::warn!(target: "wgpu_core", "not ours");
            tracing::error!("c");
        });
        let mut printed = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut printed).unwrap();
        let first = "warning: a\\u001b[2J\\u009b\\u202e\t\\x1b\n  error: b node=\"fr\"\n";
        assert_eq!(printed, format!("{first}warning: c\n"));
    }

    #[test]
    fn causes_already_told_are_not_told_twice() {
        let error = anyhow::Error::new(io::Error::other("disk on fire"))
            .context("a/b: disk on fire")
            .context("reading");
        assert_eq!(message(&error), "reading: a/b: disk on fire");
    }
}
