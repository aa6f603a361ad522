//! `pleach generate`: continues a prompt at a node, streaming.

use std::ops::ControlFlow;
use std::process::ExitCode;

use clap::Args;
use pleach::model::chat::Message;
use pleach::model::{GenerateOptions, Sampling, StopReason};
use pleach::runtime::Prompt;
use serde::Serialize;

use super::Console;
use super::model::{Arrived, Place, PromptText};

/// Continue a prompt at a node; the text streams to stdout
#[derive(Args)]
#[command(after_help = "\
On a terminal the text's control characters but line feeds and tabs are written out (\\u001b); a \
pipe or file gets the bytes.")]
pub(crate) struct Generate {
    #[command(flatten)]
    prompt: PromptText,
    /// Most tokens to generate
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    max_tokens: usize,
    /// Divides the logits; 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Choose among this many likeliest tokens only; 0 is all
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Choose among the likeliest tokens that together reach this probability only; 1 is all
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Choose among tokens at least this share as likely as the likeliest only; 0 is all
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Divide the logits of tokens that were there before by this (multiply those below 0); 1 is
    /// off
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    repeat_penalty: f32,
    /// End at this text, which is not printed; give it several times for several
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Seed of the random choices
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Take the prompt as a user's message, written out by the model's chat template
    #[arg(long)]
    chat: bool,
    /// A system message before it
    #[arg(long, value_name = "TEXT", requires = "chat", allow_hyphen_values = true)]
    system: Option<String>,
    /// Which of the model's chat templates, where it has several [default: default]
    #[arg(long, value_name = "NAME", requires = "chat")]
    template: Option<String>,
    /// Go on after tokens that end a text
    #[arg(long)]
    ignore_eos: bool,
    #[command(flatten)]
    place: Place,
}

/// The answer as JSON.
#[derive(Serialize)]
struct Answer {
    node: String,
    fingerprint: String,
    prompt_tokens: usize,
    token_ids: Vec<u32>,
    text: String,
    /// `stop_token`, `stop_text`, `max_tokens`, `context_full` or `cancelled`.
    stop: &'static str,
    stop_token: Option<u32>,
    load_ms: f64,
    switch_ms: f64,
    prefill_ms: f64,
    decode_ms: f64,
}

impl Generate {
    pub(crate) fn run(self, console: &Console) -> anyhow::Result<ExitCode> {
        let prompt = self.prompt()?;
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            seed: self.seed,
        };
        let options = GenerateOptions {
            max_tokens: self.max_tokens,
            stop_texts: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            sampling,
            ..GenerateOptions::default()
        };
        let Arrived { runtime, load_ms, switch } = self.place.arrive(console)?;
        let mut printed = Ok(());
        let generation = runtime.generate(&prompt, &options, |piece| {
            if !console.json {
                printed = console.say(piece);
            }
            // Nobody reads any more: a pipe that was closed.
            if printed.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        printed?;
        if !console.json {
            console.print("\n")?;
            console.note(&format!(
                "{}: loaded in {load_ms:.0} ms, switched in {:.1} ms; {} prompt tokens in {:.0} ms, {} new ones in {:.0} ms",
                generation.node,
                switch.total_ms,
                generation.prompt_tokens,
                generation.prefill_ms,
                generation.token_ids.len(),
                generation.decode_ms
            ));
            return Ok(ExitCode::SUCCESS);
        }
        let (stop, stop_token) = match generation.stop {
            StopReason::StopToken(token) => ("stop_token", Some(token)),
            StopReason::StopText => ("stop_text", None),
            StopReason::MaxTokens => ("max_tokens", None),
            StopReason::ContextFull => ("context_full", None),
            StopReason::Cancelled => ("cancelled", None),
        };
        let answer = Answer {
            node: generation.node,
            fingerprint: runtime.fingerprint()?.to_hex().to_string(),
            prompt_tokens: generation.prompt_tokens,
            token_ids: generation.token_ids,
            text: generation.text,
            stop,
            stop_token,
            load_ms,
            switch_ms: switch.total_ms,
            prefill_ms: generation.prefill_ms,
            decode_ms: generation.decode_ms,
        };
        console.answer(&answer, String::new)?;
        Ok(ExitCode::SUCCESS)
    }

    fn prompt(&self) -> anyhow::Result<Prompt> {
        let text = self.prompt.read()?;
        if !self.chat {
            return Ok(Prompt::Text(text));
        }
        let message = |role: &str, content: String| Message { role: role.to_owned(), content };
        let system = self.system.clone().map(|content| message("system", content));
        let messages = system.into_iter().chain([message("user", text)]).collect();
        Ok(match self.template.clone() {
            Some(template) => Prompt::NamedChat { template, messages },
            None => Prompt::Chat(messages),
        })
    }
}
