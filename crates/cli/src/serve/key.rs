//! `pleach key`: a new key for `pleach serve`.

use std::fmt::Write;
use std::process::ExitCode;

use clap::Args;
use pleach_serve::new_token;
use serde_json::json;

use crate::Console;

/// Make a key for `pleach serve --keys`
#[derive(Args)]
#[command(after_help = "\
The token is printed once and is for whoever asks the server; the lines behind it are for the file of \
keys, which holds no token but its BLAKE3 alone.")]
pub(crate) struct Key {
    /// What the key is called, in the file and in the log
    name: String,
    /// A node that it may use, with all below it; / is everything; may be given several times
    #[arg(long = "use", value_name = "NODE", required = true)]
    uses: Vec<String>,
    /// A node that it may change (and use), with all below it; may be given several times
    #[arg(long, value_name = "NODE")]
    change: Vec<String>,
    /// Most requests a minute
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<u32>,
    /// Most tokens a minute, of prompts and answers
    #[arg(long, value_name = "N")]
    tokens_per_minute: Option<u32>,
}

impl Key {
    pub(crate) fn run(self, console: &Console) -> anyhow::Result<ExitCode> {
        let (token, hash) = new_token();
        let entry = self.entry(&hash)?;
        let answer = json!({"token": token, "entry": entry});
        console.answer(&answer, || format!("token: {token}\n\n{entry}"))?;
        Ok(ExitCode::SUCCESS)
    }

    /// The key as the file has it.
    fn entry(&self, hash: &str) -> anyhow::Result<String> {
        // JSON's texts and lists are TOML's, too.
        let mut entry = format!("[[key]]\nname = {}\nblake3 = \"{hash}\"\n", json!(self.name));
        writeln!(entry, "use = {}", json!(self.uses))?;
        if !self.change.is_empty() {
            writeln!(entry, "change = {}", json!(self.change))?;
        }
        if let Some(limit) = self.requests_per_minute {
            writeln!(entry, "requests_per_minute = {limit}")?;
        }
        if let Some(limit) = self.tokens_per_minute {
            writeln!(entry, "tokens_per_minute = {limit}")?;
        }
        Ok(entry)
    }
}
